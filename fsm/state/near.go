package state

import (
	"bytes"
	"fmt"
	"math/bits"
	"reflect"
	"slices"
)

// What a row names is often wanted right after it: a credential's consumer. Among millions each of the two is waited for several times, one after
// the other, because only the credential says which consumer it is. So the slots by which rows of such a table are found hold a hint beside the
// place: where the row that this one names lay when the slot was written. Both rows are then asked for at once.
//
// A hint decides nothing. It is followed only if, in the very view that is read, a row begins at that place and is the current version of
// itself (places), and if that row has the id that is looked for. No two current rows have the same id, so that it is the row that the hash by id
// would have found; with any other hint, the hash is asked.

// places is a copy-on-write set of places: those of all rows that are in a table now. Like a tree it is copied by assignment, and
// freeze makes the original copy what it changes.
type places struct {
	pages  []*page // by slab
	epoch  uint64
	listed uint64 // epoch of pages
}

type page struct {
	epoch uint64
	bits  [perSlab / bits.UintSize]uint
}

func (p *places) freeze() { p.epoch++ }

func (p *places) has(at place) bool {
	slab := int(at / perSlab)
	return slab < len(p.pages) && p.pages[slab] != nil && p.pages[slab].bits[at%perSlab/bits.UintSize]>>(at%bits.UintSize)&1 != 0
}

// put takes a place in or out.
func (p *places) put(at place, in bool) {
	if p.listed != p.epoch {
		p.pages, p.listed = slices.Clone(p.pages), p.epoch
	}
	slab := int(at / perSlab)
	for len(p.pages) <= slab {
		p.pages = append(p.pages, nil)
	}
	switch x := p.pages[slab]; {
	case x == nil:
		p.pages[slab] = &page{epoch: p.epoch}
	case x.epoch != p.epoch:
		c := *x
		c.epoch = p.epoch
		p.pages[slab] = &c
	}
	word, bit := &p.pages[slab].bits[at%perSlab/bits.UintSize], uint(1)<<(at%bits.UintSize)
	if *word &^= bit; in {
		*word |= bit
	}
}

// reference is the field of a table whose hints its unique indexes hold.
type reference struct {
	ix   int // of the field's index; -1: no hints
	slot int // of the table that it names rows of
}

// refer finds the reference of a table among its fields: the first one that every row has.
func (m *meta) refer(metas []*meta) {
	m.near.ix = -1
	unique := slices.ContainsFunc(m.indexes, func(ix index) bool { return ix.unique })
	for _, f := range m.def.Schema.ForeignFields() {
		slot := slices.IndexFunc(metas, func(to *meta) bool { return to.def.Schema.Name == f.Ref && !to.def.Journal })
		if unique && f.Required && slot >= 0 {
			m.near = reference{m.index(f.Name), slot}
			return
		}
	}
}

// referred is the id of the row that a row names; false if it names none.
func (r *record) referred() (ID, bool) {
	if r.shape.m.near.ix < 0 {
		return ID{}, false
	}
	id, err := ParseID(r.text(r.shape.parts[r.shape.m.near.ix][0]))
	return id, err == nil
}

// refersTo says whether a row names the one with the id as text, if it does so in the form that ids nearly always have: a plain reference, in
// lower case.
func (r *record) refersTo(id []byte) bool {
	i := r.shape.parts[r.shape.m.near.ix][0]
	if i < 0 {
		return false
	}
	_, _, text := r.member(i)
	return bytes.Equal(text, id)
}

// hint is the place of the row that a row names; 0 if there is none.
func (t *table) hint(r *record) place {
	if id, ok := r.referred(); ok {
		return t.near.get(t.near.m, &id)
	}
	return 0
}

// maxHints is how many rows that name a moved one get a new hint. Those that are left out are found as if there were no hints.
const maxHints = 16

// rehint tells the rows that name the row at a place, that it lies there now. It calls f with the slots of their tables.
func (t *table) rehint(at place, f func(slot int)) {
	for _, from := range t.from {
		tree := &from.trees[byIndex+from.m.near.ix]
		if tree.len == 0 {
			continue
		}
		id := t.idAt(at)
		head := from.m.hash(id.String())
		k := tree.seek(&from.content, &point{head: head})
		for range maxHints {
			it := k.next()
			if it == nil || it.head() != head {
				break
			}
			r := from.record(it.at)
			if of, ok := r.referred(); !ok || of != id {
				continue
			}
			f(from.m.slot)
			from.heads(&r, func(int, *point) {}, func(x int, head uint64) { from.hashes[x].rehint(head, it.at, at) })
		}
	}
}

// Join finds rows of one table by a key together with the rows of another one that they name.
type Join[T, Of any] struct {
	t  *Table[T]
	of *Table[Of]
	ix int
}

// JoinOf makes it for a unique index. It panics when there is none, or when the reference that all rows of T have is not to
// rows of Of: mistakes in the program's wiring.
func JoinOf[T, Of any](s *Store, index string) *Join[T, Of] {
	j := &Join[T, Of]{t: TableOf[T](s), of: TableOf[Of](s)}
	m := j.t.m
	if j.ix = m.index(index); j.ix < 0 || !m.indexes[j.ix].unique || m.near.ix < 0 || m.near.slot != j.of.m.slot {
		panic(fmt.Sprintf("state: %s cannot be joined with %s by %s", reflect.TypeFor[T](), reflect.TypeFor[Of](), index))
	}
	return j
}

// By finds the row with the key, as Table.By does, and the row that it names, as Table.Get does. ok is false unless there are both.
func (j *Join[T, Of]) By(v *View, key string) (row Row[T], of Row[Of], ok bool) {
	var r, named record
	m, owners := j.t.m, v.tables[j.of.m.slot]
	if key == "" {
		return row, of, false
	}
	at, hint := v.tables[m.slot].unique(m, j.ix, key, v.now, &r, owners)
	if at == 0 {
		return row, of, false
	}
	if hint != 0 && r.refersTo(owners.bytes(hint)[:idSize]) {
		if owners.dict.parse(owners.bytes(hint), &named); named.expired(v.now) {
			return row, of, false
		}
	} else if id, ok := r.referred(); !ok || !j.of.m.get(v, id, &named) {
		return row, of, false
	}
	j.t.read(v, &r, &row)
	j.of.read(v, &named, &of)
	return row, of, true
}

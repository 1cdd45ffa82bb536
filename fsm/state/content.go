package state

import (
	"encoding/binary"
	"slices"

	"concord/fsm/seal"
)

const (
	slabStep = 8
	slabSize = 64 << 10
	perSlab  = slabSize / slabStep // places; a row that is larger than a slab has one of its own
)

// content is the rows of one table as a view sees them: in slabs of bytes without pointers, found through trees and hashes. A slab is only
// ever appended to, so that views and the writer share it; it is garbage when no view and no string of a row needs it.
type content struct {
	dict   *dict
	slabs  [][]byte
	trees  []tree // by id, by expiry, then by index; a unique index has none
	hashes []hash // by id, none, then by index; only a unique index has one
	now    places // of a table that hints are about
	open   int    // the slab that rows are added to
	used   int    // bytes of it
}

// The numbers of trees and hashes.
const (
	byID     = 0 // heads: of the tree the first half of the id, of the hash its hash
	byExpiry = 1 // head: the time; only rows that expire
	byIndex  = 2 // and on, head: the hash of the key
)

// bytes begins with the row at a place. It ends where the writer may be adding rows.
func (c *content) bytes(at place) []byte {
	slab := int(at / perSlab)
	b := c.slabs[slab]
	if slab == c.open {
		b = b[:c.used]
	}
	return b[at%perSlab*slabStep:]
}

// ahead asks for the cache lines of the row that b begins with, all at once: where a value lies is read from those before it, so that
// the lines would be waited for one after the other. It is true, since ids begin with a digit.
func ahead(b []byte) bool { return len(b) < 128 || b[0]|b[64]|b[112] != 0 }

func (c *content) idAt(at place) ID { return readID(c.bytes(at)) }

// extent is the length of the row that b begins with.
func extent(b []byte) int {
	n, size := binary.Uvarint(b[idSize:])
	return idSize + size + int(n)
}

func (c *content) record(at place) (r record) {
	c.dict.parse(c.bytes(at), &r)
	return r
}

func headOfTime(ms int64) uint64 { return uint64(ms) ^ 1<<63 } // in the order of int64

// get finds the place of a row.
func (c *content) get(m *meta, id *ID) place {
	if m.def.Journal {
		k := c.trees[byID].seek(c, &point{headOf(id), *id})
		if it := k.next(); it != nil && c.idAt(it.at) == *id {
			return it.at
		}
		return 0
	}
	tag := tagOf(m.hashID(id))
	b := c.hashes[byID].bucket(tag)
	for i := b.find(b.home(tag), tag); i >= 0; i = b.find(b.after(i), tag) {
		at := b.at(i)
		if row := c.bytes(at); ahead(row) && readID(row) == *id {
			return at
		}
	}
	return 0
}

// by finds the first row, by id, that has the key in an index and is not expired at now (0: whenever).
func (c *content) by(m *meta, ix int, key string, now int64, r *record) place {
	if m.indexes[ix].unique {
		at, _ := c.unique(m, ix, key, now, r, nil)
		return at
	}
	p := point{head: m.hash(key)}
	k := c.trees[byIndex+ix].seek(c, &p)
	for it := k.next(); it != nil && it.head() == p.head; it = k.next() {
		if c.dict.parse(c.bytes(it.at), r); r.has(ix, key) && !r.expired(now) {
			return it.at
		}
	}
	return 0
}

// unique is by for a unique index. With the table that its hints are about, it also gives the hint if a row is there.
func (c *content) unique(m *meta, ix int, key string, now int64, r *record, near *content) (at, hint place) {
	tag := tagOf(m.hash(key))
	b := c.hashes[byIndex+ix].bucket(tag)
	for i := b.find(b.home(tag), tag); i >= 0; i = b.find(b.after(i), tag) {
		at := b.at(i)
		row := c.bytes(at)
		if !ahead(row) {
			continue
		}
		if near != nil { // asked for before either of the rows is waited for
			if hint = b.hint(i); !near.now.has(hint) || !ahead(near.bytes(hint)) {
				hint = 0
			}
		}
		if c.dict.parse(row, r); r.has(ix, key) && !r.expired(now) {
			return at, hint
		}
	}
	return 0, 0
}

// table is the writer's side of a content.
type table struct {
	content
	m      *meta
	live   []int    // bytes of the rows that are in the trees, by slab
	free   []int    // slabs that are no more
	sparse []int    // slabs that fell below half, and may have risen again
	near   *table   // that the hints in the table's hashes are about
	from   []*table // whose hints are about this one
}

func newTable(m *meta, keys *seal.Keyring) *table {
	t := &table{content: content{dict: newDict(m, keys), trees: make([]tree, byIndex+len(m.indexes)), hashes: make([]hash, byIndex+len(m.indexes))}, m: m}
	for ix := range m.indexes {
		t.hashes[byIndex+ix].hinted = m.near.ix >= 0
	}
	return t
}

// publish gives what views see of the table now.
func (t *table) publish() *content {
	c := t.content
	c.trees, c.hashes = slices.Clone(t.trees), slices.Clone(t.hashes)
	for i := range t.trees {
		t.trees[i].freeze()
		t.hashes[i].freeze()
	}
	t.now.freeze()
	return &c
}

// add copies an encoded row into a slab.
func (t *table) add(row []byte) place {
	need := padded(len(row))
	if t.open >= len(t.slabs) || t.used+need > len(t.slabs[t.open]) {
		t.newSlab(need)
	}
	at := place(t.open*perSlab + t.used/slabStep)
	copy(t.slabs[t.open][t.used:], row)
	t.used += need
	return at
}

func padded(n int) int { return (n + slabStep - 1) &^ (slabStep - 1) }

// firstSlab is the size of a table's first slab; most tables have a few rows only.
const firstSlab = 2 << 10

func (t *table) newSlab(need int) {
	if len(t.slabs) == 1<<32/perSlab && len(t.free) == 0 {
		panic("state: table " + t.m.def.Schema.Name + " is larger than 32 GiB") // a place would name another row
	}
	full := t.open
	size := max(slabStep+need, min(slabSize, firstSlab<<min(len(t.slabs), 16)))
	if n := len(t.free); n > 0 {
		t.open, t.free = t.free[n-1], t.free[:n-1]
		t.slabs[t.open] = make([]byte, size)
	} else {
		t.open = len(t.slabs)
		t.slabs = append(t.slabs, make([]byte, size))
		t.live = append(t.live, 0)
	}
	t.used = slabStep // no row begins a slab, so that 0 is no place
	t.weigh(full)
}

// weigh notes a slab of which less than half lives.
func (t *table) weigh(slab int) {
	if slab != t.open && t.live[slab] < len(t.slabs[slab])/2 {
		t.sparse = append(t.sparse, slab)
	}
}

// heads calls tree and hash with the number of every one that the row belongs to.
func (t *table) heads(r *record, tree func(x int, p *point), hash func(x int, head uint64)) {
	id := r.rowID()
	tree(byID, &point{headOf(&id), id})
	if !t.m.def.Journal { // which has no hash: the tree's end is at hand, and a hash costs as much again to write
		hash(byID, t.m.hashID(&id))
	}
	if r.expires != 0 {
		tree(byExpiry, &point{headOfTime(r.expires), id})
	}
	for ix := range t.m.indexes {
		r.keys(ix, func(key string) bool {
			if head := t.m.hash(key); t.m.indexes[ix].unique {
				hash(byIndex+ix, head)
			} else {
				tree(byIndex+ix, &point{head, id})
			}
			return true
		})
	}
}

// link makes the row at a place found. old is 0, or the place that the same row moves from.
func (t *table) link(old, at place) {
	r := t.record(at)
	var hint place
	if old == 0 { // one that moves keeps its hint
		hint = t.hint(&r)
	}
	t.heads(&r, func(x int, p *point) { t.trees[x].set(&t.content, p, at) }, func(x int, head uint64) { t.hashes[x].set(head, old, at, hint) })
	t.live[at/perSlab] += padded(extent(t.bytes(at)))
	t.current(old, at)
}

// current notes that what is in the table lies at a place, and no more at the old one; either may be 0.
func (t *table) current(old, at place) {
	if len(t.from) == 0 {
		return
	}
	if old != 0 {
		t.now.put(old, false)
	}
	if at != 0 {
		t.now.put(at, true)
	}
}

// swap has the row at a place found in the stead of its older version, if nothing else than its place is to be changed for that.
func (t *table) swap(old, at place) bool {
	r, was := t.record(at), t.record(old)
	if len(t.m.indexes) > 0 || r.expires != 0 || was.expires != 0 {
		return false
	}
	id := r.rowID()
	t.trees[byID].set(&t.content, &point{headOf(&id), id}, at)
	if !t.m.def.Journal {
		t.hashes[byID].set(t.m.hashID(&id), old, at, 0)
	}
	t.current(old, at)
	t.live[at/perSlab] += padded(extent(t.bytes(at)))
	t.live[old/perSlab] -= padded(extent(t.bytes(old)))
	t.weigh(int(old / perSlab))
	return true
}

func (t *table) unlink(at place) {
	r := t.record(at)
	t.heads(&r, func(x int, p *point) { t.trees[x].delete(&t.content, p) }, func(x int, head uint64) { t.hashes[x].delete(head, at) })
	t.live[at/perSlab] -= padded(extent(t.bytes(at)))
	t.current(at, 0)
	t.weigh(int(at / perSlab))
}

// compact moves the rows out of slabs of which less than half lives, and lets go of these. So the slabs hold at most twice what lives,
// and at most one row is moved for each that was replaced or deleted. It calls moved with the new places.
func (t *table) compact(moved func(at place)) {
	shared := true
	for len(t.sparse) > 0 {
		slab := t.sparse[len(t.sparse)-1]
		t.sparse = t.sparse[:len(t.sparse)-1]
		b := t.slabs[slab]
		if b == nil || slab == t.open || t.live[slab] >= len(b)/2 {
			continue
		}
		for at := slabStep; t.live[slab] > 0; {
			size := extent(b[at:])
			from := place(slab*perSlab + at/slabStep)
			if id := t.idAt(from); t.get(t.m, &id) == from {
				to := t.add(b[at : at+size])
				t.link(from, to)
				moved(to)
				t.live[slab] -= padded(size)
			}
			at += padded(size)
		}
		if shared { // with views, which go on using the slab
			t.slabs, shared = slices.Clone(t.slabs), false
		}
		t.slabs[slab] = nil
		t.free = append(t.free, slab)
	}
}

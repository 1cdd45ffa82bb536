// Package state holds the rows of all entities in memory: typed tables with indexes, read through immutable views.
//
// A table is bytes: rows in a compact form, found through copy-on-write B-trees, one by id, one per index of the entity's schema, one by
// expiry. A commit publishes copies of the trees it changed, so a View is one atomic load, never changes and never blocks. Rows are decoded
// when they are read.
//
// The package does not judge what is written beyond unique keys, knows no log, no clock and no disk, and makes no ids: package
// fsm decides, and is the only writer.
package state

import (
	"fmt"
	"iter"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"concord/fsm/entity"
	"concord/fsm/seal"
)

// Store holds the tables of a list of definitions.
type Store struct {
	keys   atomic.Pointer[seal.Keyring]
	metas  []*meta // by table number
	view   atomic.Pointer[View]
	writer sync.Mutex // held from Begin to Commit or Abort
	work   []*table

	subMu   sync.Mutex
	subs    []subscriber
	follows []follower
	subNext int
}

type subscriber struct {
	id int
	f  func(Changes)
}

// New makes an empty store. It panics when two definitions share a table number or name or when a schema indexes a field that
// the entity's struct lacks: these are mistakes in the program, found whenever it starts.
func New(defs []entity.Def, keys *seal.Keyring) *Store {
	s := &Store{}
	s.keys.Store(keys)
	defs = slices.Clone(defs)
	slices.SortStableFunc(defs, func(a, b entity.Def) int { return int(a.Table) - int(b.Table) })
	names := map[string]bool{}
	for i, d := range defs {
		if i > 0 && defs[i-1].Table == d.Table || names[d.Schema.Name] {
			panic(fmt.Sprintf("state: table %d %q is defined twice", d.Table, d.Schema.Name))
		}
		names[d.Schema.Name] = true
		s.metas = append(s.metas, newMeta(d, i))
	}
	for _, m := range s.metas {
		m.refer(s.metas)
	}
	s.work = s.empty(keys)
	s.view.Store(&View{tables: s.publish(nil, nil)})
	return s
}

func (s *Store) empty(keys *seal.Keyring) []*table {
	t := make([]*table, len(s.metas))
	for i, m := range s.metas {
		t[i] = newTable(m, keys)
	}
	for _, from := range t {
		if near := from.m.near; near.ix >= 0 {
			from.near = t[near.slot]
			from.near.from = append(from.near.from, from)
		}
	}
	return t
}

// publish gives the tables of the next view; those of the previous one where nothing changed.
func (s *Store) publish(prev []*content, dirty []bool) []*content {
	c := make([]*content, len(s.work))
	for i, t := range s.work {
		if prev != nil && !dirty[i] {
			c[i] = prev[i]
		} else {
			c[i] = t.publish()
		}
	}
	return c
}

// many is the number of rows from which on a table has so many leaves and buckets that they are worth packing.
const many = 1 << 16

// Pack has the leaves and buckets of tables of many rows lie together, as they do after a Load, so that a collection of garbage has fewer things to look
// at. It changes nothing that is read; commits wait for it, a twentieth of a second for a million rows. It is for after many writes. It tells
// whether there was anything to pack, copies of which are garbage now.
func (s *Store) Pack() bool {
	s.writer.Lock()
	defer s.writer.Unlock()
	dirty := make([]bool, len(s.work))
	for i, t := range s.work {
		if dirty[i] = t.trees[byID].len >= many; !dirty[i] {
			continue
		}
		for x := range t.trees {
			t.trees[x].pack()
			t.hashes[x].pack()
		}
	}
	v := s.View()
	s.view.Store(&View{index: v.index, aux: v.aux, tables: s.publish(v.tables, dirty)})
	return slices.Contains(dirty, true)
}

// View is the newest committed state.
func (s *Store) View() *View { return s.view.Load() }

// Keys is the keyring that rows are opened with.
func (s *Store) Keys() *seal.Keyring { return s.keys.Load() }

// Table finds a table by the entity's plural name.
func (s *Store) Table(name string) (AnyTable, bool) {
	for _, m := range s.metas {
		if m.def.Schema.Name == name {
			return anyTable{m}, true
		}
	}
	return nil, false
}

// Tables lists all tables by number.
func (s *Store) Tables() []AnyTable {
	list := make([]AnyTable, len(s.metas))
	for i, m := range s.metas {
		list[i] = anyTable{m}
	}
	return list
}

// Changes is what one commit did: the net effect on each row, every row at most once. Journals are left out.
type Changes struct {
	Index uint64
	Reset bool // everything may have changed: List is empty, read the view
	List  []Change
}

// Change is one write: Old and New are *T, or nil where the row did not or does not exist.
type Change struct {
	Table    uint16
	ID       ID
	Old, New any
}

// Subscribe calls f after every commit, in order, when the new view is visible, on the goroutine that applies the log: f must be
// quick and must not write. Subscribe first and load a View then: no change is missed between. After cancel no further
// call begins.
func (s *Store) Subscribe(f func(Changes)) (cancel func()) {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	s.subNext++
	id := s.subNext
	s.subs = append(slices.Clip(s.subs), subscriber{id, f})
	return func() {
		s.subMu.Lock()
		defer s.subMu.Unlock()
		s.subs = slices.DeleteFunc(slices.Clone(s.subs), func(x subscriber) bool { return x.id == id })
	}
}

func (s *Store) subscribers() []subscriber {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	return s.subs
}

// View is one committed state of all tables. It never changes; holding it keeps its rows alive.
type View struct {
	index  uint64
	now    int64
	aux    any
	tables []*content
}

// Index is the log index the view reflects.
func (v *View) Index() uint64 { return v.index }

// Aux is what the writer attached to the commit.
func (v *View) Aux() any { return v.aux }

// At is the same view with the rows hidden that expired at or before nowMS (Unix milliseconds). Len still counts them.
func (v *View) At(nowMS int64) *View {
	c := *v
	c.now = nowMS
	return &c
}

// Due says whether a row expires before the time (Unix milliseconds).
func (v *View) Due(beforeMS int64) bool {
	for _, c := range v.tables {
		first := c.trees[byExpiry].seek(c, &point{})
		if it := first.next(); it != nil && it.head() < headOfTime(beforeMS) {
			return true
		}
	}
	return false
}

// Table is the typed handle of one table. Get and By do not allocate, unless T has lists, maps or pointers that are set.
type Table[T any] struct{ m *meta }

// TableOf finds the table whose rows decode to T. It panics when there is none: a mistake in the program's wiring.
func TableOf[T any](s *Store) *Table[T] {
	for _, m := range s.metas {
		if m.typ == reflect.TypeFor[T]() {
			return &Table[T]{m}
		}
	}
	panic(fmt.Sprintf("state: no table holds %s", reflect.TypeFor[T]()))
}

// Get finds a row by id.
func (t *Table[T]) Get(v *View, id ID) (row Row[T], ok bool) {
	var r record
	if ok = t.m.get(v, id, &r); ok {
		t.read(v, &r, &row)
	}
	return row, ok
}

// By finds the row with the key in a unique index; for other indexes the first of its rows. An unknown index holds nothing.
func (t *Table[T]) By(v *View, index, key string) (row Row[T], ok bool) {
	var r record
	if ok = t.m.by(v, index, key, &r); ok {
		t.read(v, &r, &row)
	}
	return row, ok
}

func (t *Table[T]) read(v *View, r *record, row *Row[T]) {
	row.ID, row.Index, row.ExpiresAt = r.rowID(), r.index, r.expires
	if r.shape.direct {
		r.fill(unsafe.Pointer(&row.Val)) // a T, as TableOf made sure
	} else {
		row.Val = *(*T)(v.tables[t.m.slot].dict.decode(r).UnsafePointer())
	}
}

// Scan yields the rows with a key in an index, by id; without a key, all rows that have one, each as often as it has different
// ones (tags). Index "" is the primary one, with all rows.
func (t *Table[T]) Scan(v *View, index, key string) iter.Seq[Row[T]] {
	return func(yield func(Row[T]) bool) {
		t.m.scan(v, index, key, ID{}, func(r *record) bool {
			var row Row[T]
			t.read(v, r, &row)
			return yield(row)
		})
	}
}

// All yields all rows by id.
func (t *Table[T]) All(v *View) iter.Seq[Row[T]] { return t.Scan(v, "", "") }

// Len counts the rows, those that the view hides included.
func (t *Table[T]) Len(v *View) int { return v.tables[t.m.slot].trees[byID].len }

// AnyTable is a table for code that works on any entity.
type AnyTable interface {
	Name() string
	Number() uint16
	Def() entity.Def
	Get(v *View, id ID) (AnyRow, bool)
	By(v *View, index, key string) (AnyRow, bool)
	// Scan is Table.Scan from behind the row with id after (zero: from the start).
	Scan(v *View, index, key string, after ID) iter.Seq[AnyRow]
	// Raws calls f with all rows by id, without Val and with a Raw that is overwritten by the next one.
	Raws(v *View, f func(*AnyRow))
	Len(v *View) int
}

type anyTable struct{ m *meta }

func (t anyTable) Name() string    { return t.m.def.Schema.Name }
func (t anyTable) Number() uint16  { return t.m.def.Table }
func (t anyTable) Def() entity.Def { return t.m.def }
func (t anyTable) Len(v *View) int { return v.tables[t.m.slot].trees[byID].len }

func (t anyTable) row(v *View, r *record) AnyRow {
	return AnyRow{ID: r.rowID(), Index: r.index, ExpiresAt: r.expires, Raw: r.appendRaw(nil), Val: v.tables[t.m.slot].dict.decode(r).Interface()}
}

func (t anyTable) Get(v *View, id ID) (row AnyRow, ok bool) {
	var r record
	if ok = t.m.get(v, id, &r); ok {
		row = t.row(v, &r)
	}
	return row, ok
}

func (t anyTable) By(v *View, index, key string) (row AnyRow, ok bool) {
	var r record
	if ok = t.m.by(v, index, key, &r); ok {
		row = t.row(v, &r)
	}
	return row, ok
}

func (t anyTable) Scan(v *View, index, key string, after ID) iter.Seq[AnyRow] {
	return func(yield func(AnyRow) bool) {
		t.m.scan(v, index, key, after, func(r *record) bool { return yield(t.row(v, r)) })
	}
}

func (t anyTable) Raws(v *View, f func(*AnyRow)) {
	c := v.tables[t.m.slot]
	k := c.trees[byID].seek(c, &point{})
	var row AnyRow
	var r record
	var ids [64]ID
	var places [64]place
	for n := len(ids); n == len(ids); {
		// The rows lie anywhere: the memory of many is asked for before the first is needed.
		n = 0
		for it := k.next(); it != nil; it = k.next() {
			ids[n], places[n] = c.idAt(it.at), it.at
			if n++; n == len(ids) {
				break
			}
		}
		for i, at := range places[:n] {
			if c.dict.parse(c.bytes(at), &r); !r.expired(v.now) {
				row = AnyRow{ID: ids[i], Index: r.index, ExpiresAt: r.expires, Raw: r.appendRaw(row.Raw[:0])}
				f(&row)
			}
		}
	}
}

func (m *meta) get(v *View, id ID, r *record) bool {
	c := v.tables[m.slot]
	at := c.get(m, &id)
	if at == 0 {
		return false
	}
	c.dict.parse(c.bytes(at), r)
	return !r.expired(v.now)
}

func (m *meta) by(v *View, index, key string, r *record) bool {
	ix := m.index(index)
	return ix >= 0 && key != "" && v.tables[m.slot].by(m, ix, key, v.now, r) != 0
}

func (m *meta) scan(v *View, index, key string, after ID, yield func(*record) bool) {
	c := v.tables[m.slot]
	ix, x, from := -1, byID, point{headOf(&after), after}
	if index != "" {
		if ix = m.index(index); ix < 0 {
			return
		}
		switch {
		case key == "": // whichever order: that of the ids
			m.scan(v, "", "", after, func(r *record) bool {
				more := true
				r.keys(ix, func(string) bool { more = yield(r); return more })
				return more
			})
			return
		case m.indexes[ix].unique:
			var r record
			if c.by(m, ix, key, v.now, &r) != 0 {
				if id := r.rowID(); compareID(&id, &after) > 0 {
					yield(&r)
				}
			}
			return
		}
		x, from = byIndex+ix, point{m.hash(key), after}
	}
	k := c.trees[x].seek(c, &from)
	for it := k.next(); it != nil && (ix < 0 || it.head() == from.head); it = k.next() {
		r := c.record(it.at)
		if r.expired(v.now) || ix >= 0 && !r.has(ix, key) || !after.IsZero() && r.rowID() == after {
			continue
		}
		if !yield(&r) {
			return
		}
	}
}

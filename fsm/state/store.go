// Package state holds the rows of all entities in memory: typed tables with indexes, read through immutable views.
//
// A table is a set of copy-on-write B-trees: one by id, one per index of the entity's schema, one by expiry. A commit
// publishes copies of the trees it changed, so a View is one atomic load, never changes and never blocks.
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

	"concord/fsm/entity"
	"concord/fsm/seal"
)

// Store holds the tables of a list of definitions.
type Store struct {
	keys   atomic.Pointer[seal.Keyring]
	metas  []*meta // by table number
	view   atomic.Pointer[View]
	writer sync.Mutex // held from Begin to Commit or Abort
	work   []*trees   // the writer's own trees

	subMu   sync.Mutex
	subs    []subscriber
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
	s.work = s.empty()
	s.view.Store(&View{tables: s.publish(nil, nil)})
	return s
}

func (s *Store) empty() []*trees {
	t := make([]*trees, len(s.metas))
	for i, m := range s.metas {
		t[i] = newTrees(m)
	}
	return t
}

// publish gives the tables of the next view: copies of the writer's trees, or the previous copy where nothing changed.
func (s *Store) publish(prev []*trees, dirty []bool) []*trees {
	t := make([]*trees, len(s.work))
	for i, w := range s.work {
		if prev != nil && !dirty[i] {
			t[i] = prev[i]
		} else {
			t[i] = w.copy()
		}
	}
	return t
}

// View is the newest committed state.
func (s *Store) View() *View { return s.view.Load() }

// Keys is the keyring that rows are opened with.
func (s *Store) Keys() *seal.Keyring { return s.keys.Load() }

// SetKeys has rows opened with another keyring from the next one on, for a node that enters another cluster.
func (s *Store) SetKeys(k *seal.Keyring) { s.keys.Store(k) }

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

// Changes is what one commit did: the net effect on each row, every row at most once.
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
	tables []*trees
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
	for _, t := range v.tables {
		if d, ok := t.expiry.Min(); ok && d.at < beforeMS {
			return true
		}
	}
	return false
}

func (v *View) hides(r *row) bool { return v.now != 0 && r.ExpiresAt != 0 && r.ExpiresAt <= v.now }

// Table is the typed handle of one table. Get and By do not allocate.
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
func (t *Table[T]) Get(v *View, id ID) (*Row[T], bool) {
	r := t.m.get(v, id)
	return typed[T](r), r != nil
}

// By finds the row with the key in a unique index; for other indexes the first of its rows. An unknown index holds nothing.
func (t *Table[T]) By(v *View, index, key string) (*Row[T], bool) {
	r := t.m.by(v, index, key)
	return typed[T](r), r != nil
}

// Scan yields the rows of an index by key, then id: all rows for prefix "", else those whose key equals prefix or, in a composite
// index, begins with the same parts (see Key). Index "" is the primary one. A row with several keys (tags)
// occurs once per key that matches.
func (t *Table[T]) Scan(v *View, index, prefix string) iter.Seq[*Row[T]] {
	return func(yield func(*Row[T]) bool) {
		t.m.scan(v, index, prefix, ID{}, func(r *row) bool { return yield(typed[T](r)) })
	}
}

// All yields all rows by id.
func (t *Table[T]) All(v *View) iter.Seq[*Row[T]] { return t.Scan(v, "", "") }

// Len counts the rows, those that the view hides included.
func (t *Table[T]) Len(v *View) int { return v.tables[t.m.slot].rows.Len() }

// AnyTable is a table for code that works on any entity.
type AnyTable interface {
	Name() string
	Number() uint16
	Def() entity.Def
	Get(v *View, id ID) (AnyRow, bool)
	By(v *View, index, key string) (AnyRow, bool)
	// Scan is Table.Scan from behind the row with id after (zero: from the start). To page with after, prefix must be a whole key
	// or index must be "": only then is the order that of the ids.
	Scan(v *View, index, prefix string, after ID) iter.Seq[AnyRow]
	Len(v *View) int
}

type anyTable struct{ m *meta }

func (t anyTable) Name() string    { return t.m.def.Schema.Name }
func (t anyTable) Number() uint16  { return t.m.def.Table }
func (t anyTable) Def() entity.Def { return t.m.def }
func (t anyTable) Len(v *View) int { return v.tables[t.m.slot].rows.Len() }

func (t anyTable) Get(v *View, id ID) (AnyRow, bool) {
	if r := t.m.get(v, id); r != nil {
		return t.m.anyOf(r), true
	}
	return AnyRow{}, false
}

func (t anyTable) By(v *View, index, key string) (AnyRow, bool) {
	if r := t.m.by(v, index, key); r != nil {
		return t.m.anyOf(r), true
	}
	return AnyRow{}, false
}

func (t anyTable) Scan(v *View, index, prefix string, after ID) iter.Seq[AnyRow] {
	return func(yield func(AnyRow) bool) {
		t.m.scan(v, index, prefix, after, func(r *row) bool { return yield(t.m.anyOf(r)) })
	}
}

func (m *meta) get(v *View, id ID) *row {
	e, ok := v.tables[m.slot].rows.Get(entry{id: id})
	if !ok || v.hides(e.row) {
		return nil
	}
	return e.row
}

func (m *meta) by(v *View, name, key string) *row {
	for i := range m.indexes {
		if ix := &m.indexes[i]; ix.name == name && ix.unique {
			it, ok := v.tables[m.slot].indexes[i].Get(newItem(key, nil))
			if !ok || v.hides(it.row) {
				return nil
			}
			return it.row
		}
	}
	var first *row
	if key != "" {
		m.scan(v, name, key, ID{}, func(r *row) bool { first = r; return false })
	}
	return first
}

func (m *meta) scan(v *View, name, prefix string, after ID, yield func(*row) bool) {
	t := v.tables[m.slot]
	if name == "" {
		t.rows.Ascend(entry{id: after}, func(e entry) bool {
			return e.id == after || v.hides(e.row) || yield(e.row)
		})
		return
	}
	for i := range m.indexes {
		ix := &m.indexes[i]
		if ix.name != name {
			continue
		}
		from := newItem(prefix, nil)
		if !after.IsZero() {
			from.row = &row{ID: after}
		}
		t.indexes[i].Ascend(from, func(it item) bool {
			if !ix.matches(it.key, prefix) {
				return false
			}
			seen := it.key == prefix && compareID(&it.row.ID, &after) <= 0
			return seen || v.hides(it.row) || yield(it.row)
		})
		return
	}
}

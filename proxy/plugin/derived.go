package plugin

import (
	"strings"
	"sync"

	"concord/fsm/state"
)

// Derived keeps what a plugin computes from rows of the store (parsed keys, a consumer's groups), so that a request finds it
// with one look-up.
type Derived[K, D any] struct {
	store   *state.Store
	rows    *state.Table[K]
	id      func(*K) string
	compute func(*state.View, *K) *D
	shards  [16]shard[D] // by the last digit of the id
}

type shard[D any] struct {
	mu sync.RWMutex
	m  map[string]*D // by the row's id
}

// NewDerived watches the store for its lifetime. The value of a row is dropped when the row changes; touched, if not nil, gives
// for an old or new row of another table the id of the row whose value depends on it, or "".
func NewDerived[K, D any](store *state.Store, id func(*K) string, compute func(*state.View, *K) *D, touched func(row any) string) *Derived[K, D] {
	d := &Derived[K, D]{store: store, rows: state.TableOf[K](store), id: id, compute: compute}
	store.Subscribe(func(c state.Changes) {
		if c.Reset {
			for i := range d.shards {
				d.shards[i].clear()
			}
			return
		}
		for _, ch := range c.List {
			for _, row := range []any{ch.Old, ch.New} {
				if k, ok := row.(*K); ok {
					d.drop(d.id(k))
				} else if touched != nil && row != nil {
					d.drop(touched(row))
				}
			}
		}
	})
	return d
}

func (d *Derived[K, D]) shard(id string) *shard[D] { return &d.shards[id[len(id)-1]%16] }

func (d *Derived[K, D]) drop(id string) {
	if id != "" {
		s := d.shard(id)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.m, id)
	}
}

func (s *shard[D]) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.m)
}

// Of is the value for k, the row with this id of view v or of one before. The value may be of a later version of the row: it is never older
// than v.
func (d *Derived[K, D]) Of(v *state.View, id string, k *K) *D {
	s := d.shard(id)
	s.mu.RLock()
	val := s.m[id]
	s.mu.RUnlock()
	if val != nil {
		return val
	}
	row := *k // so that k itself may stay on the caller's stack
	key, err := state.ParseID(id)
	now, found := d.rows.Get(v, key)
	if err == nil && found {
		row = now.Val
	}
	val = d.compute(v, &row)
	s.mu.Lock()
	defer s.mu.Unlock()
	// A commit from here on reports its changes when the lock is free, and drops the value; one before may have reported already.
	if found && d.store.View() == v {
		if s.m == nil {
			s.m = make(map[string]*D)
		}
		s.m[strings.Clone(id)] = val
	}
	return val
}

package plugin

import (
	"sync"

	"concord/fsm/state"
)

// Derived keeps what a plugin computes from rows of the store (parsed keys, a consumer's groups), so that a request finds it
// with one look-up. A value belongs to one version of a row: K is the row's decoded entity, and a new version is a new pointer.
type Derived[K, D any] struct {
	store   *state.Store
	rows    *state.Table[K]
	id      func(*K) string
	compute func(*state.View, *K) *D
	m       sync.Map // *K → *D
}

// NewDerived watches the store for its lifetime. The value of a row is dropped when the row changes; touched, if not nil, gives
// for an old or new row of another table the id of the row whose value depends on it, or "".
func NewDerived[K, D any](store *state.Store, id func(*K) string, compute func(*state.View, *K) *D, touched func(row any) string) *Derived[K, D] {
	d := &Derived[K, D]{store: store, rows: state.TableOf[K](store), id: id, compute: compute}
	store.Subscribe(func(c state.Changes) {
		if c.Reset {
			d.m.Clear()
			return
		}
		for _, ch := range c.List {
			if old, ok := ch.Old.(*K); ok {
				d.m.Delete(old)
			}
			for _, row := range []any{ch.Old, ch.New} {
				if touched == nil || row == nil {
					continue
				}
				if k := d.current(store.View(), touched(row)); k != nil {
					d.m.Delete(k)
				}
			}
		}
	})
	return d
}

// Of is the value for k, a row of view v or of one before.
func (d *Derived[K, D]) Of(v *state.View, k *K) *D {
	if x, ok := d.m.Load(k); ok {
		return x.(*D)
	}
	val := d.compute(v, k)
	d.m.Store(k, val)
	// A commit after this check reports its changes after the Store above, so it drops the value; one before it may have
	// reported already, so the value is not kept.
	if d.store.View() != v || d.current(v, d.id(k)) != k {
		d.m.Delete(k)
	}
	return val
}

func (d *Derived[K, D]) current(v *state.View, id string) *K {
	if key, err := state.ParseID(id); err == nil {
		if row, ok := d.rows.Get(v, key); ok {
			return row.Val
		}
	}
	return nil
}

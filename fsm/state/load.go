package state

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"concord/fsm/seal"
)

// Load is a write transaction that begins without rows; its commit replaces everything. Trees and hashes are made when all rows are there,
// which takes a fraction of the time of putting them in one by one. Build comes before Commit; without rows it may be left out.
type Load struct {
	s      *Store
	keys   *seal.Keyring
	work   []*table
	last   []ID           // by table
	trees  [][][]item     // by table and tree
	hashes [][][]seedling // by table and hash; hints are the tags of rows named
}

// BeginLoad opens it, like Begin; its rows, and all after its commit, are opened with the keyring.
func (s *Store) BeginLoad(keys *seal.Keyring) *Load {
	s.writer.Lock()
	l := &Load{s: s, keys: keys, work: s.empty(keys), last: make([]ID, len(s.metas))}
	for _, t := range l.work {
		l.trees, l.hashes = append(l.trees, make([][]item, len(t.trees))), append(l.hashes, make([][]seedling, len(t.hashes)))
	}
	return l
}

// Decode is Tx.Decode.
func (l *Load) Decode(table uint16, r AnyRow) (Decoded, error) {
	return decode(l.work, table, r, false)
}

// Add takes a row. Those of a table come in the order of their ids.
func (l *Load) Add(d Decoded) error {
	t, slot := d.t, d.t.m.slot
	if compareID(&d.id, &l.last[slot]) <= 0 {
		return fmt.Errorf("%s comes behind %s", d.id, l.last[slot])
	}
	l.last[slot] = d.id
	at := t.add(d.row)
	t.live[at/perSlab] += padded(len(d.row))
	t.current(0, at)
	r := t.record(at)
	var named uint32
	if id, ok := r.referred(); ok {
		named = tagOf(t.near.m.hashID(&id))
	}
	t.heads(&r, func(x int, p *point) { l.trees[slot][x] = append(l.trees[slot][x], newItem(p.head, at)) },
		func(x int, head uint64) {
			l.hashes[slot][x] = append(l.hashes[slot][x], seedling{newItem(head, at), named})
		})
	return nil
}

// Build makes trees and hashes. It fails if two rows have the same key of a unique index.
func (l *Load) Build() error {
	var wg sync.WaitGroup
	errs := make([][]error, len(l.work))
	for slot, t := range l.work {
		errs[slot] = make([]error, len(t.hashes))
		for x := range t.trees {
			wg.Go(func() {
				list := l.trees[slot][x]
				// Rows with equal heads came, and lie, in the order of their ids.
				slices.SortFunc(list, func(a, b item) int { return cmp.Or(cmp.Compare(a.head(), b.head()), cmp.Compare(a.at, b.at)) })
				t.trees[x] = plant(&t.content, list)
			})
		}
		wg.Go(func() { l.sow(slot, byID, errs[slot]) })
	}
	wg.Wait()
	for slot, t := range l.work { // with hints, from the hashes by id
		for x := byIndex; x < len(t.hashes); x++ {
			wg.Go(func() { l.sow(slot, x, errs[slot]) })
		}
	}
	wg.Wait()
	l.trees, l.hashes = nil, nil
	return errors.Join(slices.Concat(errs...)...)
}

func (l *Load) sow(slot, x int, errs []error) {
	t := l.work[slot]
	t.hashes[x].sow(l.hashes[slot][x], func(a, b place) { errs[x] = cmp.Or(errs[x], t.double(x-byIndex, a, b)) }, func(tag uint32) place {
		if t.near == nil || x == byID || tag == 0 {
			return 0
		}
		b := t.near.hashes[byID].bucket(tag)
		if i := b.find(b.home(tag), tag); i >= 0 { // another row of the same tag at worst: a hint that is not followed
			return b.at(i)
		}
		return 0
	})
	t.hashes[x].pack()
}

// double is the error if two rows with the same hash have the same key.
func (t *table) double(ix int, a, b place) (err error) {
	if ix >= 0 { // ids differ
		x, y := t.record(a), t.record(b)
		x.keys(ix, func(key string) bool {
			if y.has(ix, key) {
				err = fmt.Errorf("%s and %s have the same %s", x.id, y.id, t.m.indexes[ix].name)
			}
			return err == nil
		})
	}
	return err
}

// Commit publishes the rows as the view of the log index, with aux attached to it, and tells the subscribers.
func (l *Load) Commit(index uint64, aux any) {
	defer l.s.writer.Unlock()
	l.s.work = l.work
	l.s.keys.Store(l.keys)
	l.s.view.Store(&View{index: index, aux: aux, tables: l.s.publish(nil, nil)})
	for _, sub := range l.s.subscribers() {
		sub.f(Changes{Index: index, Reset: true})
	}
	for _, f := range l.s.followers() {
		f.f(History{Index: index, Reset: true})
	}
}

// Abort leaves the store as it was.
func (l *Load) Abort() { l.s.writer.Unlock() }

package fsm

import (
	"slices"
	"sync"

	"concord/fsm/state"
)

const (
	// Remember is the number of request ids the machine remembers.
	Remember = 65536
	// rememberKeys is the number of keys it remembers of each: a bulk write would fill the memory of every node with its keys.
	rememberKeys = 16
)

// Key names a row.
type Key struct {
	Table uint16
	ID    state.ID
}

// remembered is requests that succeeded, oldest first. It is append-only, so that a view may hold one while the machine goes on, and it
// holds no pointers to each of them, which every collection of garbage would follow.
type remembered struct {
	list []request
	keys []Key // of all of them
}

type request struct {
	id       [16]byte
	index    uint64
	from, to int // its keys
}

func (r *remembered) add(id [16]byte, index uint64, keys []Key) {
	from := len(r.keys)
	r.keys = append(r.keys, keys[:min(len(keys), rememberKeys)]...)
	r.list = append(r.list, request{id, index, from, len(r.keys)})
}

func (r *remembered) keysOf(q request) []Key { return r.keys[q.from:q.to:q.to] }

// last is the newest n.
func (r *remembered) last(n int) remembered {
	return remembered{slices.Clip(r.list[max(0, len(r.list)-n):]), slices.Clip(r.keys)}
}

// recent holds the last Remember requests. When there are twice as many, the live half moves to a new list.
type recent struct {
	mu sync.RWMutex
	remembered
	at map[[16]byte]int // position in list
}

func (r *recent) reset(x remembered) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.move(x)
}

func (r *recent) move(x remembered) {
	r.remembered = remembered{list: make([]request, 0, len(x.list))}
	r.at = make(map[[16]byte]int, len(x.list))
	for i, q := range x.list {
		r.at[q.id] = i
		r.remembered.add(q.id, q.index, x.keysOf(q))
	}
}

func (r *recent) get(id [16]byte) (Result, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	i, ok := r.at[id]
	if !ok {
		return Result{}, false
	}
	return Result{Index: r.list[i].index, Keys: r.keysOf(r.list[i])}, true
}

func (r *recent) add(id [16]byte, res Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) >= 2*Remember {
		r.move(r.last(Remember))
	}
	if len(r.list) >= Remember {
		delete(r.at, r.list[len(r.list)-Remember].id)
	}
	r.at[id] = len(r.list)
	r.remembered.add(id, res.Index, res.Keys)
}

// snapshot is the requests remembered now. What it returns stays as it is.
func (r *recent) snapshot() remembered { return r.last(Remember) }

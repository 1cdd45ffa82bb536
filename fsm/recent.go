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

// remembered is a request that succeeded.
type remembered struct {
	id    [16]byte
	index uint64
	keys  []Key
}

// recent holds the last Remember requests. The list is append-only, so that a view may hold a slice of it while the machine goes
// on; when it is twice as long, the live half moves to a new one.
type recent struct {
	mu   sync.RWMutex
	list []remembered
	at   map[[16]byte]int // position in list
}

func (r *recent) reset(list []remembered) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.move(list)
}

func (r *recent) move(list []remembered) {
	r.list = slices.Clone(list)
	r.at = make(map[[16]byte]int, len(list))
	for i := range list {
		r.at[list[i].id] = i
	}
}

func (r *recent) get(id [16]byte) (Result, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	i, ok := r.at[id]
	if !ok {
		return Result{}, false
	}
	return Result{Index: r.list[i].index, Keys: r.list[i].keys}, true
}

func (r *recent) add(id [16]byte, res Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) >= 2*Remember {
		r.move(r.list[len(r.list)-Remember:])
	}
	if len(r.list) >= Remember {
		delete(r.at, r.list[len(r.list)-Remember].id)
	}
	r.at[id] = len(r.list)
	r.list = append(r.list, remembered{id: id, index: res.Index, keys: slices.Clone(res.Keys[:min(len(res.Keys), rememberKeys)])})
}

// snapshot is the requests remembered now, oldest first. What it returns stays as it is.
func (r *recent) snapshot() []remembered {
	return slices.Clip(r.list[max(0, len(r.list)-Remember):])
}

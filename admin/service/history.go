package service

import (
	"slices"
	"sync"

	"concord/fsm/state"
)

// What is kept of the past, at most: writes, and bytes of rows before and after them.
const (
	keptWrites = 64 << 10
	keptBytes  = 32 << 20
)

// history is the latest writes to the configuration, for those who follow it. Positions count writes since it began.
type history struct {
	mu     sync.Mutex
	writes []state.Write
	begin  uint64        // position of writes[0]
	bytes  int           // of the rows in writes
	floor  uint64        // index up to which writes have been dropped: everything behind it is here
	head   uint64        // index of the newest commit
	epoch  uint64        // how often the whole state was replaced
	news   chan struct{} // closed by the next commit

	maxWrites, maxBytes int
}

// newHistory follows the tables of a store from now on.
func newHistory(store *state.Store, tables []uint16) *history {
	h := &history{news: make(chan struct{}), maxWrites: keptWrites, maxBytes: keptBytes}
	h.mu.Lock()
	defer h.mu.Unlock()
	store.Follow(tables, h.add)
	h.floor = store.View().Index() // what is told of it again is dropped by add
	h.head = h.floor
	return h
}

func (h *history) add(c state.History) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case c.Reset:
		h.drop(len(h.writes))
		h.floor, h.epoch = c.Index, h.epoch+1
	case c.Index <= h.floor:
		return // in the view from which the history begins
	}
	h.head = c.Index
	if n := len(c.Writes) - h.maxWrites; n > 0 { // would be dropped at once
		h.drop(len(h.writes))
		h.floor, h.begin, c.Writes = c.Writes[n-1].Index, h.begin+uint64(n), c.Writes[n:]
	}
	h.writes = slices.Grow(h.writes, len(c.Writes))
	for _, w := range c.Writes {
		h.writes = append(h.writes, w)
		h.bytes += w.Old.Size() + w.New.Size()
	}
	n, bytes := 0, h.bytes
	for len(h.writes)-n > h.maxWrites || bytes > h.maxBytes {
		bytes -= h.writes[n].Old.Size() + h.writes[n].New.Size()
		n++
	}
	h.drop(n)
	close(h.news)
	h.news = make(chan struct{})
}

// drop forgets the first n writes.
func (h *history) drop(n int) {
	if n == 0 {
		return
	}
	h.floor = h.writes[n-1].Index
	for i := range h.writes[:n] {
		h.bytes -= h.writes[i].Old.Size() + h.writes[i].New.Size()
		h.writes[i] = state.Write{}
	}
	h.writes, h.begin = h.writes[n:], h.begin+uint64(n)
}

// cursor is how far someone has come.
type cursor struct {
	index uint64 // everything up to it is known
	at    uint64 // position of the next write
	epoch uint64
}

// resume finds where to go on behind an index, which may not be here yet; ok is false if that is too long ago.
func (h *history) resume(index uint64) (c cursor, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, _ := slices.BinarySearchFunc(h.writes, index+1, func(w state.Write, index uint64) int {
		if w.Index < index {
			return -1
		}
		return 1
	})
	return cursor{index: index, at: h.begin + uint64(at), epoch: h.epoch}, index >= h.floor
}

// end is where the history ends.
func (h *history) end() cursor {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cursor{index: h.head, at: h.begin + uint64(len(h.writes)), epoch: h.epoch}
}

// next is the next writes behind a cursor, up to the end of the entry in which the limit is reached. upTo is the index that is
// complete with them; news is closed when there may be more than none. fate tells how it stands with the cursor.
func (h *history) next(c *cursor, limit int) (writes []state.Write, upTo uint64, news <-chan struct{}, fate fate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case c.epoch != h.epoch:
		return nil, 0, nil, replaced
	case c.at < h.begin:
		return nil, 0, nil, behind
	}
	from := int(c.at - h.begin)
	for from < len(h.writes) && h.writes[from].Index <= c.index { // was in the view that c began with
		from++
	}
	to := min(len(h.writes), from+limit)
	for to > from && to < len(h.writes) && h.writes[to].Index == h.writes[to-1].Index {
		to++
	}
	c.at = h.begin + uint64(to)
	upTo = max(h.head, c.index)
	if to < len(h.writes) {
		upTo = h.writes[to-1].Index
	}
	c.index = upTo
	return slices.Clone(h.writes[from:to]), upTo, h.news, alive
}

// fate of a cursor.
type fate int

const (
	alive    fate = iota
	replaced      // the whole state was
	behind        // what comes next has been dropped
)

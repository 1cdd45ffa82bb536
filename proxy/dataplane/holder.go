package dataplane

import (
	"context"
	"sync"
	"sync/atomic"
)

// Holder is where requests find the current Snapshot.
type Holder struct {
	current   atomic.Pointer[Snapshot]
	published atomic.Uint64

	mu   sync.Mutex
	more chan struct{} // closed at the next publication
}

// Load is the current snapshot. To be sure that its plugins are not closed while in use, Pin it.
func (h *Holder) Load() *Snapshot { return h.current.Load() }

// Pin is Load for the time of one exchange: until Unpin, with the same shard, no plugin instance of it is closed. shard is any number
// that differs between busy goroutines.
func (h *Holder) Pin(shard uint64) *Snapshot {
	for {
		s := h.current.Load()
		s.pins[shard%pinShards].n.Add(1)
		// The count must be up before the snapshot is replaced, or whoever closes its plugins may have missed it.
		if h.current.Load() == s {
			return s
		}
		s.Unpin(shard)
	}
}

// InUse tells whether exchanges are under way with the current snapshot.
func (h *Holder) InUse() bool { return h.current.Load().pinned() }

// PublishedIndex is the log index up to which requests see every change.
func (h *Holder) PublishedIndex() uint64 { return h.published.Load() }

// Wait returns once PublishedIndex has reached index.
func (h *Holder) Wait(ctx context.Context, index uint64) error {
	for h.published.Load() < index {
		h.mu.Lock()
		more := h.more
		done := h.published.Load() >= index
		h.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// publish makes s (nil: the same as before) current and index visible.
func (h *Holder) publish(s *Snapshot, index uint64) {
	if s != nil {
		h.current.Store(s)
	}
	h.mu.Lock()
	h.published.Store(index)
	close(h.more)
	h.more = make(chan struct{})
	h.mu.Unlock()
}

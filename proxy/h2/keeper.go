package h2

import (
	"sync"
	"sync/atomic"
	"time"
)

var longAgo = time.Unix(1, 0)

// keeper holds the connections of a server or a pool and watches their deadlines with one ticker, so that arming one is a
// store instead of a runtime timer. Deadlines are milliseconds of its clock; 0 is none.
type keeper struct {
	start time.Time
	ms    atomic.Int64
	stop  chan struct{}
	once  sync.Once

	mu    sync.Mutex
	conns map[*conn]struct{}

	oversize atomic.Int32 // connections amid a header block above the limit
}

// newKeeper makes a keeper that looks four times within the shortest of the timeouts, but not more often than it can and
// not less often than Date needs.
func newKeeper(timeouts ...time.Duration) *keeper {
	every := 250 * time.Millisecond
	for _, d := range timeouts {
		every = min(every, d/4)
	}
	k := &keeper{start: time.Now(), stop: make(chan struct{}), conns: map[*conn]struct{}{}}
	k.ms.Store(1)
	go k.run(max(every, 5*time.Millisecond))
	return k
}

func (k *keeper) close() { k.once.Do(func() { close(k.stop) }) }

func (k *keeper) run(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-k.stop:
			return
		case now := <-t.C:
			ms := 1 + now.Sub(k.start).Milliseconds()
			k.ms.Store(ms)
			k.mu.Lock()
			for c := range k.conns {
				c.tick(ms)
			}
			k.mu.Unlock()
		}
	}
}

// now is the coarse time.
func (k *keeper) now() int64 { return k.ms.Load() }

// in is the time d from now, for a deadline.
func (k *keeper) in(d time.Duration) int64 { return k.ms.Load() + d.Milliseconds() }

func (k *keeper) add(c *conn) {
	k.mu.Lock()
	k.conns[c] = struct{}{}
	k.mu.Unlock()
}

func (k *keeper) remove(c *conn) {
	k.mu.Lock()
	delete(k.conns, c)
	k.mu.Unlock()
}

// large tells whether there is room for a connection amid a header block above the limit, until small.
func (k *keeper) large(c *conn) bool {
	if !c.oversize {
		c.oversize = k.oversize.Add(1) <= largeAtOnce
		if !c.oversize {
			k.oversize.Add(-1)
		}
	}
	return c.oversize
}

func (k *keeper) small(c *conn) {
	if c.oversize {
		c.oversize = false
		k.oversize.Add(-1)
	}
}

func (k *keeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)
}

// each calls f for every connection.
func (k *keeper) each(f func(*conn)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		f(c)
	}
}

// tick interrupts what took too long. The goroutine that waits finds out itself what it was.
func (c *conn) tick(now int64) {
	if t := c.readBy.Load(); t > 0 && now >= t && c.readBy.CompareAndSwap(t, 0) {
		c.wake()
	}
	if t := c.writeBy.Load(); t > 0 && now >= t && c.writeBy.CompareAndSwap(t, 0) {
		_ = c.nc.SetWriteDeadline(longAgo)
	}
	if t := c.restBy.Load(); t > 0 && now >= t && c.restBy.CompareAndSwap(t, 0) {
		c.wake()
	}
	if cc, ok := c.side.(*clientConn); ok {
		cc.beat(now)
	}
	if c.waits.Load() == 0 {
		return
	}
	c.mu.Lock()
	for _, s := range c.streams {
		if s.readBy > 0 && now >= s.readBy {
			s.readLate = true
			s.recv.Broadcast()
		}
		if s.writeBy > 0 && now >= s.writeBy {
			s.writeLate = true
			s.send.Broadcast()
		}
	}
	c.mu.Unlock()
}

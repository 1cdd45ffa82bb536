package h1

import (
	"math"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// tick is how late a deadline may fire. Timeouts below precise are left to the runtime's own timers.
const (
	tick    = 250 * time.Millisecond
	precise = 2 * time.Second
)

// Values of a deadline that goes off: nobody clears it while the clock still does something about it.
const (
	fired  = -1
	firing = -2
)

var longAgo = time.Unix(1, 0)

// Clock keeps the coarse time, the Date header, and the deadlines of all connections with one ticker, so that arming a
// deadline is a store instead of a runtime timer. Servers and transports may share one.
type Clock struct {
	start time.Time
	ms    atomic.Int64 // since start
	date  atomic.Pointer[string]
	stop  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	alarms []*alarm
	lot    lot
}

// NewClock starts a clock; Stop ends it.
func NewClock() *Clock {
	c := &Clock{start: time.Now(), stop: make(chan struct{})}
	c.set(c.start)
	go c.run()
	return c
}

// Stop ends the clock. Deadlines do not fire any more.
func (c *Clock) Stop() {
	c.once.Do(func() {
		close(c.stop)
		c.lot.close()
	})
}

// Spot is where a connection waits that was parked. The zero value is free.
type Spot struct {
	nc     net.Conn
	resume func()
	ticket uint64 // of the lot, guarded by its mutex; 0: free
}

// Park lets nc wait without a goroutine until something comes, be it the end of its stream, or until Wake; what has come already counts. resume
// then runs, in a goroutine of its own. false: nc has to be waited for. When it is true the caller no longer has the connection: it must not touch
// it any more.
//
// A deadline that goes off meanwhile would wake nobody. So whoever is to wake the connection says so first, and calls Wake then; still, which is
// called when no Wake can pass unnoticed any more, tells whether nobody has said so.
func (c *Clock) Park(s *Spot, nc net.Conn, resume func(), still func() bool) bool {
	return c.lot.park(s, nc, resume, still)
}

// Wake goes on with a connection if it is parked.
func (c *Clock) Wake(s *Spot) { c.lot.wake(s) }

// Millis is the coarse time in milliseconds since the clock was started.
func (c *Clock) Millis() int64 { return c.ms.Load() }

func (c *Clock) set(now time.Time) {
	c.ms.Store(1 + now.Sub(c.start).Milliseconds())
	if d := now.UTC().Format(http.TimeFormat); c.date.Load() == nil || *c.date.Load() != d {
		c.date.Store(&d)
	}
}

func (c *Clock) run() {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-c.stop:
			return
		case now := <-t.C:
			c.set(now)
			c.sweep()
		}
	}
}

func (c *Clock) sweep() {
	now := c.ms.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.alarms {
		if t := a.rd.Load(); t > 0 && now >= t && a.rd.CompareAndSwap(t, firing) {
			_ = a.nc.SetReadDeadline(longAgo)
			a.rd.Store(fired)
			c.lot.wake(&a.spot)
		}
		if t := a.wr.Load(); t > 0 && now >= t && a.wr.CompareAndSwap(t, fired) {
			_ = a.nc.SetWriteDeadline(longAgo)
		}
		a.look(now)
	}
}

// alarm is the pair of deadlines of one connection: 0 is off, otherwise the clock's ms at which to interrupt.
type alarm struct {
	nc     net.Conn
	clock  *Clock
	rd, wr atomic.Int64
	index  int

	// Of client connections: while an exchange runs nobody reads from the client, so the clock looks whether it is still there.
	busy atomic.Int64 // 0: no exchange; the clock's ms when it was looked last, or looking, or told

	// Of client connections between two requests.
	still atomic.Int64 // 0: not between two requests, or parked; the clock's ms since when, or never, interrupting, or interrupted
	owner owner
	spot  Spot
}

// owner is a client connection, as its alarm sees it.
type owner interface {
	clientLeft() // while an exchange runs
}

const (
	lookEvery = 1000 // ms
	looking   = -1
	told      = -2

	parkAfter    = 1000 // ms
	interrupting = -1
	interrupted  = -2
	never        = math.MaxInt64 // the goroutine stays
)

// interrupt ends a wait between two requests that has lasted since t.
func (a *alarm) interrupt(t int64) {
	if a.still.CompareAndSwap(t, interrupting) {
		_ = a.nc.SetReadDeadline(longAgo)
		a.still.Store(interrupted)
	}
}

// stir ends the state between two requests and tells whether the wait was interrupted. Whoever does that has set the read deadline when stir
// returns, and does not touch it later.
func (a *alarm) stir() bool {
	for {
		if t := a.still.Load(); t == 0 {
			return false
		} else if t != interrupting && a.still.CompareAndSwap(t, 0) {
			return t == interrupted
		}
		runtime.Gosched()
	}
}

func (a *alarm) watch() { a.busy.Store(a.clock.ms.Load()) }

// unwatch returns when left does not run any more.
func (a *alarm) unwatch() {
	for {
		if t := a.busy.Load(); t != looking && a.busy.CompareAndSwap(t, 0) {
			return
		}
		runtime.Gosched()
	}
}

func (a *alarm) look(now int64) {
	if t := a.still.Load(); t > 0 && now-t >= parkAfter {
		a.interrupt(t)
	}
	t := a.busy.Load()
	if t <= 0 || now-t < lookEvery || !a.busy.CompareAndSwap(t, looking) {
		return
	}
	if peerEnded(a.nc) {
		a.owner.clientLeft()
		now = told
	}
	a.busy.Store(now)
}

func (a *alarm) attach(nc net.Conn, c *Clock) {
	a.nc, a.clock = nc, c
	c.mu.Lock()
	a.index = len(c.alarms)
	c.alarms = append(c.alarms, a)
	c.mu.Unlock()
}

func (a *alarm) detach() {
	c := a.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.index < 0 {
		return
	}
	last := len(c.alarms) - 1
	c.alarms[a.index] = c.alarms[last]
	c.alarms[a.index].index = a.index
	c.alarms[last] = nil
	c.alarms = c.alarms[:last]
	a.index = -1
}

func (a *alarm) armRead(d time.Duration) {
	if d <= 0 {
		return
	}
	if d < precise {
		_ = a.nc.SetReadDeadline(time.Now().Add(d))
		return
	}
	a.rd.Store(a.clock.ms.Load() + d.Milliseconds())
}

// disarmRead tells whether the alarm went off.
func (a *alarm) disarmRead(d time.Duration) bool {
	if d > 0 && d < precise {
		_ = a.nc.SetReadDeadline(time.Time{})
		return false
	}
	for {
		if t := a.rd.Load(); t != firing && a.rd.CompareAndSwap(t, 0) {
			return t == fired
		}
		runtime.Gosched()
	}
}

func (a *alarm) armWrite(d time.Duration) {
	if d <= 0 {
		return
	}
	if d < precise {
		_ = a.nc.SetWriteDeadline(time.Now().Add(d))
		return
	}
	a.wr.Store(a.clock.ms.Load() + d.Milliseconds())
}

func (a *alarm) disarmWrite(d time.Duration) bool {
	if d > 0 && d < precise {
		_ = a.nc.SetWriteDeadline(time.Time{})
		return false
	}
	return a.wr.Swap(0) == fired
}

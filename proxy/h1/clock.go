package h1

import (
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

// fired is the value of an alarm that has gone off.
const fired = -1

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
}

// NewClock starts a clock; Stop ends it.
func NewClock() *Clock {
	c := &Clock{start: time.Now(), stop: make(chan struct{})}
	c.set(c.start)
	go c.run()
	return c
}

// Stop ends the clock. Deadlines do not fire any more.
func (c *Clock) Stop() { c.once.Do(func() { close(c.stop) }) }

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
		if t := a.rd.Load(); t > 0 && now >= t && a.rd.CompareAndSwap(t, fired) {
			_ = a.nc.SetReadDeadline(longAgo)
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
	left func()       // runs when the client has left, bound once

	parked atomic.Int64 // the clock's ms since when the connection waits without having asked whether the stream has ended; 0: it does not
}

const (
	lookEvery = 1000 // ms
	looking   = -1
	told      = -2
)

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
	if t := a.parked.Load(); t > 0 && now-t >= lookEvery && a.parked.CompareAndSwap(t, 0) && atEnd(a.nc) {
		_ = a.nc.SetReadDeadline(longAgo)
	}
	t := a.busy.Load()
	if t <= 0 || now-t < lookEvery || !a.busy.CompareAndSwap(t, looking) {
		return
	}
	if peerEnded(a.nc) {
		a.left()
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
	return a.rd.Swap(0) == fired
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

package main

import (
	"sync/atomic"
	"time"
)

// busyFor is how long a node counts as busy after a request.
const busyFor = time.Second

// bustle tells whether anybody would feel it if the node were slow.
type bustle struct {
	requests func() uint64 // so far
	inUse    func() bool   // some are under way
	began    time.Time     // what the times below count from, for the wall clock may be set

	seen           atomic.Uint64 // requests when it was asked the last time
	asked, changed atomic.Int64  // when that was, and when there were new ones, in nanoseconds
}

// busy tells whether requests are under way, or came since it was asked the last time, not long ago, or within busyFor.
func (b *bustle) busy() bool { return b.busyAt(int64(time.Since(b.began))) }

func (b *bustle) busyAt(now int64) bool {
	n := b.requests()
	if last := b.asked.Swap(now); b.seen.Swap(n) != n && now-last < int64(busyFor) {
		b.changed.Store(now)
	}
	return now-b.changed.Load() < int64(busyFor) || b.inUse()
}

// busy tells whether the node proxies. Before it is ready nothing matters more than the log.
func (n *node) busy() bool { return n.upToDate.Load() != nil && n.bustle.busy() }

// turns makes a goroutine that works on a large change leave most of the time to the requests of a busy node.
type turns struct {
	busy          func() bool
	began, rested time.Time
}

// The rhythm of turns. What has gone on for very long keeps other changes waiting: it gets a third of the time.
const (
	turnFor   = 200 * time.Microsecond
	turnPause = time.Millisecond
	longTurns = 10 * time.Second
	longTurn  = 500 * time.Microsecond
	turnsEnd  = 50 * time.Millisecond // without a call: what comes then is another change
)

// yield is called every few dozen microseconds of work.
func (t *turns) yield() {
	if d := t.pause(time.Now()); d > 0 {
		time.Sleep(d)
		t.rested = time.Now()
	}
}

func (t *turns) pause(now time.Time) time.Duration {
	since := now.Sub(t.rested)
	switch {
	case since > turnsEnd:
		t.began, t.rested = now, now
	case since < turnFor || since < longTurn && now.Sub(t.began) > longTurns:
	case t.busy():
		return turnPause
	default:
		t.rested = now
	}
	return 0
}

package balancer

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"concord/fsm/entity"
)

// ErrBusy is the answer, with status 503, when an upstream has as much to do as its circuit breaker allows.
var ErrBusy = errors.New("the upstream takes no more requests at the moment")

// breaker is what the circuit breaker knows of a peer. Closed is the state of a peer that works; one that fails is ejected for a while
// and then on trial: it gets a few requests, which decide.
type breaker struct {
	ejected atomic.Bool
	trial   atomic.Bool
	trials  atomic.Int32  // requests under way that decide
	row     atomic.Int32  // errors in a row; on trial: successes
	window  atomic.Uint64 // number of the window, requests and errors in it: 24, 20 and 20 bits

	// The pool's mu protects these. Times are milliseconds of the Set's clock.
	times       int // ejected in a row
	lasted      int64
	until       int64 // of the ejection
	closedSince int64
}

// The states as they are shown.
const (
	breakerClosed   = "closed"
	breakerOpen     = "open"
	breakerHalfOpen = "half-open"
)

func (b *breaker) state() string {
	switch {
	case b.ejected.Load():
		return breakerOpen
	case b.trial.Load():
		return breakerHalfOpen
	}
	return breakerClosed
}

// admits tells whether the peer may get another request. It is asked about many peers for one request, so it reserves nothing.
func (p *peer) admits(c *entity.CircuitBreaker) bool {
	return (c.MaxTargetRequests == 0 || p.conns.Load() < int64(c.MaxTargetRequests)) &&
		(!p.breaker.trial.Load() || p.breaker.trials.Load() < int32(c.HalfOpenRequests))
}

// enter begins a request to a peer that was usable a moment ago; false: it is not any more. onTrial is for leave and judge.
func (p *peer) enter(c *entity.CircuitBreaker) (ok, onTrial bool) {
	n := p.conns.Add(1)
	if c == nil {
		return true, false
	}
	if c.MaxTargetRequests > 0 && n > int64(c.MaxTargetRequests) {
		p.conns.Add(-1)
		return false, false
	}
	if !p.breaker.trial.Load() {
		return true, false
	}
	if p.breaker.trials.Add(1) > int32(c.HalfOpenRequests) {
		p.leave(true)
		return false, false
	}
	return true, true
}

func (p *peer) leave(onTrial bool) {
	p.conns.Add(-1)
	if onTrial {
		p.breaker.trials.Add(-1)
	}
}

// judge counts what became of a request.
func (p *Pool) judge(pe *peer, c *entity.CircuitBreaker, onTrial, failed bool) {
	b := &pe.breaker
	if c == nil || b.ejected.Load() || b.trial.Load() != onTrial { // it began in another state, which it says nothing about
		return
	}
	switch {
	case onTrial && failed:
		p.eject(pe, "failed on trial")
		return
	case onTrial:
		if int(b.row.Add(1)) >= c.HalfOpenSuccesses {
			p.readmit(pe)
		}
		return
	case !failed:
		if b.row.Load() != 0 {
			b.row.Store(0)
		}
	case c.ConsecutiveErrors > 0 && int(b.row.Add(1)) >= c.ConsecutiveErrors:
		p.eject(pe, "consecutive errors")
		return
	}
	if c.ErrorRate > 0 {
		requests, errs := b.note(p.set.millis()/max(1, inSeconds(c.Window).Milliseconds()), failed)
		if failed && requests >= c.MinRequests && float64(errs)*100 >= c.ErrorRate*float64(requests) {
			p.eject(pe, "error rate")
		}
	}
}

// most is how many requests a window counts: what comes later changes a rate no more.
const most = 1<<20 - 1

// note counts a request in the window with that number and returns the counts.
func (b *breaker) note(window int64, failed bool) (requests, errs int) {
	number := uint64(window) & (1<<24 - 1) << 40
	for {
		old := b.window.Load()
		next := old
		if old>>40<<40 != number {
			next = number
		}
		if next>>20&most < most {
			next += 1 << 20
			if failed {
				next++
			}
		}
		if b.window.CompareAndSwap(old, next) {
			return int(next >> 20 & most), int(next & most)
		}
	}
}

// eject takes a peer out for a while, unless too many are out already. The first may always go, so that the circuit of an upstream with one
// target opens too.
func (p *Pool) eject(pe *peer, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	plan := p.plan.Load()
	c, b := plan.breaker, &pe.breaker
	if c == nil || p.peers[pe.key] != pe || b.ejected.Load() {
		return
	}
	others := 0
	for _, m := range plan.all {
		if m.peer != pe && (m.peer.breaker.ejected.Load() || m.peer.breaker.trial.Load()) {
			others++
		}
	}
	b.row.Store(0)
	b.window.Store(0)
	allowed := int(c.MaxEjectionPercent * float64(len(plan.all)) / 100)
	if c.MaxEjectionPercent > 0 {
		allowed = max(1, allowed)
	}
	if others >= allowed && !b.trial.Load() {
		return
	}
	now := p.set.millis()
	if !b.trial.Load() && now-b.closedSince > b.lasted {
		b.times = 0 // it has worked for as long as it was out
	}
	b.lasted = min(inSeconds(c.BaseEjectionTime).Milliseconds()<<min(b.times, 16), inSeconds(c.MaxEjectionTime).Milliseconds())
	b.times++
	b.until = now + b.lasted
	b.ejected.Store(true)
	b.trial.Store(false)
	p.ejections.Add(1)
	p.tell(pe, breakerOpen, why)
	time.AfterFunc(time.Duration(b.lasted)*time.Millisecond, func() { p.try(pe) })
	p.rebuild(plan.config)
}

// try puts a peer on trial whose ejection is over.
func (p *Pool) try(pe *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &pe.breaker
	if p.ctx.Err() != nil || p.peers[pe.key] != pe || !b.ejected.Load() || p.set.millis() < b.until {
		return
	}
	b.row.Store(0)
	b.trial.Store(true)
	b.ejected.Store(false)
	p.tell(pe, breakerHalfOpen, "its time is over")
	p.rebuild(p.plan.Load().config)
}

// readmit ends a trial well.
func (p *Pool) readmit(pe *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &pe.breaker
	if !b.trial.Load() {
		return
	}
	b.row.Store(0)
	b.closedSince = p.set.millis()
	p.warmUp(pe)
	b.trial.Store(false)
	p.tell(pe, breakerClosed, "succeeded on trial")
}

// close ends what the breaker has decided about a peer, because nobody watches it any more or an operator knows better. The caller holds the
// lock.
func (b *breaker) close() (was bool) {
	was = b.ejected.Load() || b.trial.Load()
	if was {
		b.row.Store(0)
		b.window.Store(0)
		b.times = 0
		b.ejected.Store(false)
		b.trial.Store(false)
	}
	return was
}

func (p *Pool) tell(pe *peer, state, why string) {
	level := p.set.o.Log.Info
	if state == breakerOpen {
		level = p.set.o.Log.Warn
	}
	level("circuit of a target changed", "upstream", p.plan.Load().row.Name, "target", pe.key.host, "address", pe.key.addr.String(),
		"state", state, "reason", why, "seconds", float64(pe.breaker.lasted)/1000)
}

// fails tells whether a status is an error for the circuit breaker.
func fails(c *entity.CircuitBreaker, status int) bool {
	return c != nil && slices.Contains(c.HTTPStatuses, status)
}

// BreakerStats are of the circuit breaker of one upstream.
type BreakerStats struct {
	Upstream  string // its name
	Requests  int64  // under way; counted only with max_requests
	Pending   int64  // connections being made; counted only with a limit of them
	Ejected   int    // targets' addresses that get no requests
	Ejections uint64 // since the start
	Rejected  uint64 // requests that one of the limits refused, since the start
}

// Breakers are the circuit breakers of the upstreams that have one, by name.
func (s *Set) Breakers() []BreakerStats {
	var list []BreakerStats
	for _, p := range *s.byName.Load() {
		if plan := p.plan.Load(); plan.breaker != nil {
			list = append(list, p.breakerStats(plan))
		}
	}
	slices.SortFunc(list, func(a, b BreakerStats) int {
		if a.Upstream < b.Upstream {
			return -1
		}
		return 1
	})
	return list
}

func (p *Pool) breakerStats(plan *plan) BreakerStats {
	s := BreakerStats{
		Upstream: plan.row.Name, Requests: p.active.Load(), Pending: p.pending.Load(), Ejections: p.ejections.Load(), Rejected: p.rejected.Load(),
	}
	for _, m := range plan.all {
		if m.peer.breaker.ejected.Load() {
			s.Ejected++
		}
	}
	return s
}

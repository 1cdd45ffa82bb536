package service

import "time"

// The rhythm of large changes: after so much work so long a pause. A small change is over before it begins.
const (
	freeFor  = 10 * time.Millisecond
	workFor  = 100 * time.Microsecond
	pauseFor = time.Millisecond

	// stepRest is the longest pause after a step of the whole cluster. Where a step takes longer, it waits for disks and not for processors.
	stepRest = 6 * time.Millisecond

	gentleFor = time.Minute // then the pauses are shorter, so that what is larger is done within bulkTimeout
)

// Pace keeps the work of a goroutine on a large change from being felt by the requests that the node proxies: while there are any, it takes
// a tenth of one processor, in portions that are short beside a request's time. (A thread of low priority would not do: the collector waits
// for each thread before it lets any go on, for that one, too.) The zero value never rests.
type Pace struct {
	busy          func() bool
	began, rested time.Time
}

// NewPace is a Pace that rests while the node proxies; see Options.Busy.
func (s *Service) NewPace() *Pace { return &Pace{busy: s.o.Busy} }

// Rest is called every few dozen microseconds of work.
func (p *Pace) Rest() {
	if d := p.pause(time.Now()); d > 0 {
		time.Sleep(d)
		p.rested = time.Now()
	}
}

func (p *Pace) pause(now time.Time) time.Duration {
	switch {
	case p.began.IsZero():
		p.began, p.rested = now, now
	case now.Sub(p.rested) < workFor || now.Sub(p.began) < freeFor:
	case p.busy == nil || !p.busy():
		p.rested = now
	default:
		return p.shorten(now, pauseFor)
	}
	return 0
}

// RestAfter is called after a step that kept all nodes busy for so long: also where this one has no requests, others may.
func (p *Pace) RestAfter(step time.Duration) {
	if p.busy != nil {
		time.Sleep(p.shorten(time.Now(), min(2*step, stepRest)))
	}
}

// shorten is how long a pause may be, the later the less.
func (p *Pace) shorten(now time.Time, d time.Duration) time.Duration {
	if now.Sub(p.began) < gentleFor {
		return d
	}
	return d / 8
}

package service

import "time"

// The rhythm of large changes. A small one is over before it begins.
const (
	freeFor     = 10 * time.Millisecond
	pauseFor    = time.Millisecond // what Go sleeps when it is asked for less
	restPerWork = 16               // so a pause comes after some 60 µs of work

	// stepRest is the longest pause after a step of the whole cluster. Where a step takes longer, it waits for disks and not for processors.
	stepRest = 12 * time.Millisecond

	// gentleFor is how long a change may take before it hurries, so that what is larger is done within bulkTimeout, and what is not so large
	// within a minute also where the processors have much else to do.
	gentleFor = 45 * time.Second
	hurry     = 16 // times less rest
)

// Pace keeps the work of a goroutine on a large change from being felt by the requests that the node proxies: while there are any, it takes
// a sixteenth of one processor, in portions that are short beside a request's time. (A thread of low priority would not do: the collector
// waits for each thread before it lets any go on, for that one, too.) The zero value never rests.
type Pace struct {
	busy  func() bool
	began time.Time
	since time.Time     // when it went on with the work
	owed  time.Duration // rest for the work before that; negative after pauses that were longer than was due
}

// NewPace is a Pace that rests while the node proxies; see Options.Busy.
func (s *Service) NewPace() *Pace { return &Pace{busy: s.o.Busy} }

// Rest is called every few dozen microseconds of work.
func (p *Pace) Rest() {
	if now := time.Now(); p.due(now) {
		time.Sleep(pauseFor)
		p.goOn(time.Now())
	}
}

// due tells whether it is time for a pause, which begins now.
func (p *Pace) due(now time.Time) bool {
	if p.began.IsZero() {
		p.began, p.since = now, now
	}
	rest := time.Duration(restPerWork)
	owed := p.owed + now.Sub(p.since)*rest
	if now.Sub(p.began) > gentleFor {
		owed = p.owed + now.Sub(p.since)*rest/hurry
	}
	switch {
	case now.Sub(p.began) < freeFor:
		p.since = now
	case owed < pauseFor:
	case p.busy == nil || !p.busy():
		p.since, p.owed = now, 0
	default:
		p.since, p.owed = now, min(owed, 2*pauseFor) // what took so long was not all work
		return true
	}
	return false
}

// goOn ends a pause.
func (p *Pace) goOn(now time.Time) {
	p.owed = max(p.owed-now.Sub(p.since), -4*pauseFor)
	p.since = now
}

// RestAfter is called after a step that kept all nodes busy for so long: also where this one has no requests, others may.
func (p *Pace) RestAfter(step time.Duration) {
	if p.busy == nil {
		return
	}
	d := min(3*step, stepRest)
	switch {
	case time.Since(p.began) > gentleFor:
		d /= hurry
	case !p.busy():
		d /= 4
	}
	time.Sleep(d)
}

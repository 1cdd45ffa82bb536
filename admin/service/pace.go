package service

import "time"

// The rhythm of large changes: after so much work so long a pause. A small change is over before it begins.
const (
	freeFor  = 30 * time.Millisecond
	workFor  = 250 * time.Microsecond
	pauseFor = 2 * time.Millisecond

	gentleFor = time.Minute // then the pauses are shorter, so that what is larger is done within bulkTimeout
)

// Pace keeps the work of a goroutine on a large change from being felt by the requests that the node proxies: it takes a ninth of one
// processor, in portions that are short beside a request's time. A hundred thousand rows take half a minute so, of which the processors
// see six seconds. (A thread of low priority would not do: the collector waits for each thread before it lets any go on, for that one, too.)
type Pace struct {
	began, rested time.Time
}

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
	case now.Sub(p.began) < gentleFor:
		return pauseFor
	default:
		return pauseFor / 8
	}
	return 0
}

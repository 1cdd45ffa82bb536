package service

import (
	"testing"
	"time"
)

// share is which part of the time is work, if each step takes so long and each pause so much longer than it should.
func share(p *Pace, now time.Time, step, late, total time.Duration) (work float64, longest time.Duration) {
	began, worked := now, time.Duration(0)
	for at := time.Duration(0); now.Sub(began) < total; {
		now = now.Add(step)
		worked += step
		if at += step; p.due(now) {
			now = now.Add(pauseFor + late)
			p.goOn(now)
			longest, at = max(longest, at), 0
		}
	}
	return float64(worked) / float64(now.Sub(began)), longest
}

func TestPace(t *testing.T) {
	begin := time.Unix(1e9, 0)
	for _, c := range []struct {
		name       string
		busy       bool
		after      time.Duration // the change has taken so long
		step, late time.Duration
		work       float64
		longest    time.Duration
	}{
		{"busy", true, time.Second, 10 * time.Microsecond, 0, 1. / 17, 70 * time.Microsecond},
		{"pauses take longer", true, time.Second, 10 * time.Microsecond, time.Millisecond, 1. / 17, 140 * time.Microsecond},
		{"pauses take much longer", true, time.Second, 10 * time.Microsecond, 20 * time.Millisecond, 1. / 64, 330 * time.Microsecond},
		{"long steps", true, time.Second, 20 * time.Millisecond, 0, 20. / 21, 20 * time.Millisecond},
		{"after a while it hurries", true, gentleFor, 10 * time.Microsecond, 0, 1. / 2, 1100 * time.Microsecond},
		{"nobody is there", false, time.Second, 10 * time.Microsecond, 0, 1, 0},
	} {
		p := &Pace{busy: func() bool { return c.busy }}
		if p.due(begin) {
			t.Errorf("%s: rests before it works", c.name)
		}
		p.since = begin.Add(c.after)
		work, longest := share(p, p.since, c.step, c.late, time.Second)
		if work < 0.8*c.work || work > 1.2*c.work || longest > c.longest {
			t.Errorf("%s: works %.3f of the time, want %.3f; the longest portion is %v, want at most %v", c.name, work, c.work, longest, c.longest)
		}
	}
	p := &Pace{busy: func() bool { return true }}
	for after := range 10 {
		if p.due(begin.Add(time.Duration(after) * freeFor / 10)) {
			t.Errorf("a small change rests after %v", time.Duration(after)*freeFor/10)
		}
	}
}

func TestPaceOfNobody(t *testing.T) {
	p := (&Service{}).NewPace()
	for after := range 100 {
		if p.due(time.Unix(1e9+int64(after), 0)) {
			t.Fatalf("rests after %d s, although nobody says that the node is busy", after)
		}
	}
}

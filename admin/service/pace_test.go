package service

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	begin := time.Unix(1e9, 0)
	for after, want := range map[time.Duration]time.Duration{0: 0, freeFor / 2: 0, freeFor: pauseFor, gentleFor - 1: pauseFor, gentleFor: pauseFor / 8} {
		p := &Pace{}
		if d := p.pause(begin); d != 0 {
			t.Errorf("rests %v before it works", d)
		}
		if d := p.pause(begin.Add(after)); d != want {
			t.Errorf("after %v of work rests %v, want %v", after, d, want)
		}
		p.rested = begin.Add(after)
		if d := p.pause(begin.Add(after + workFor/2)); d != 0 {
			t.Errorf("after %v: rests %v although it just did", after, d)
		}
	}
}

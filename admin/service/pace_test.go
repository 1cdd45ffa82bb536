package service

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	begin := time.Unix(1e9, 0)
	for _, busy := range []bool{true, false} {
		for after, want := range map[time.Duration]time.Duration{0: 0, freeFor / 2: 0, freeFor: pauseFor, gentleFor - 1: pauseFor, gentleFor: pauseFor / 8} {
			p := &Pace{busy: func() bool { return busy }}
			if !busy {
				want = 0
			}
			if d := p.pause(begin); d != 0 {
				t.Errorf("rests %v before it works", d)
			}
			if d := p.pause(begin.Add(after)); d != want {
				t.Errorf("busy %v: after %v of work rests %v, want %v", busy, after, d, want)
			}
			p.rested = begin.Add(after)
			if d := p.pause(begin.Add(after + workFor/2)); d != 0 {
				t.Errorf("busy %v: after %v: rests %v although it just did", busy, after, d)
			}
		}
	}
}

func TestPaceOfNobody(t *testing.T) {
	p := (&Service{}).NewPace()
	for after := range time.Duration(100) {
		if d := p.pause(time.Unix(1e9, 0).Add(after * time.Second)); d != 0 {
			t.Fatalf("rests %v after %d s, although nobody says that the node is busy", d, after)
		}
	}
}

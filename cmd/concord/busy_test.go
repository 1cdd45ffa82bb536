package main

import (
	"testing"
	"time"
)

func TestBustle(t *testing.T) {
	var requests uint64 = 7
	inUse := false
	b := &bustle{requests: func() uint64 { return requests }, inUse: func() bool { return inUse }}
	now := int64(time.Hour)
	for _, c := range []struct {
		name  string
		after time.Duration
		more  uint64
		inUse bool
		want  bool
	}{
		{"those of long ago do not count", 0, 0, false, false},
		{"nobody came", time.Millisecond, 0, false, false},
		{"one came", time.Millisecond, 1, false, true},
		{"a moment ago", busyFor / 2, 0, false, true},
		{"not any more", busyFor / 2, 0, false, false},
		{"one takes long", time.Millisecond, 0, true, true},
		{"it is over", time.Millisecond, 0, false, false},
		{"some came, who knows when", time.Hour, 5, false, false},
		{"one came", busyFor / 2, 1, false, true},
	} {
		now += int64(c.after)
		requests += c.more
		inUse = c.inUse
		if got := b.busyAt(now); got != c.want {
			t.Errorf("%s: busy %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTurns(t *testing.T) {
	busy := true
	turns := &turns{busy: func() bool { return busy }}
	now := time.Unix(1e9, 0)
	step := func(name string, after, want time.Duration) {
		t.Helper()
		now = now.Add(after)
		if got := turns.pause(now); got != want {
			t.Errorf("%s: pauses %v, want %v", name, got, want)
		} else if got > 0 {
			now = now.Add(got)
			turns.rested = now
		}
	}
	step("a change begins", 0, 0)
	step("it has just begun", turnFor/2, 0)
	step("it goes on", turnFor, turnPause)
	step("after the pause", turnFor/2, 0)
	busy = false
	step("nobody is there", turnFor, 0)
	busy = true
	step("somebody came", turnFor, turnPause)
	for range longTurns / (turnsEnd / 2) {
		step("on and on", turnsEnd/2, turnPause)
	}
	step("others wait for it", turnFor, 0)
	step("others wait for it", longTurn-turnFor, turnPause)
	step("the next change", turnsEnd+1, 0)
	step("the next change goes on", turnFor, turnPause)
}

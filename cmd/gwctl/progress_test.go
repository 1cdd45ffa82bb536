package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// screen is a terminal that two goroutines may touch.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestProgress(t *testing.T) {
	var s screen
	p := newProgress(&s, "reading", time.Millisecond)
	wait := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !strings.Contains(s.String(), text); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in %q", text, s.String())
			}
		}
	}
	wait("reading, 0 s")
	p.say("%d read", 7)
	wait("7 read, 0 s")
	p.end()
	p.end()
	if !strings.HasSuffix(s.String(), "\r\x1b[K") {
		t.Errorf("the line is not wiped: %q", s.String())
	}
}

// What is quick shows nothing, and neither does what nobody looks at.
func TestProgressOfQuickWork(t *testing.T) {
	var s screen
	newProgress(&s, "reading", time.Hour).end()
	nobody := (&options{}).progress(newRoot(), "reading")
	nobody.say("x")
	nobody.end()
	if s.String() != "" {
		t.Errorf("written: %q", s.String())
	}
}

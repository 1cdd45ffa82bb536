package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// calmLines is how many lines with the same message are written in a second. What fails with every request must neither fill the disk
	// nor make requests wait for the log; each of them has its line in the access log.
	calmLines = 20
	// calmKinds bounds what is remembered, for messages that hold names.
	calmKinds = 1000
)

// calm is a handler that leaves out lines of a flood, and says how many. It lets everything through while debug messages are logged.
type calm struct {
	slog.Handler
	seen *seen
}

type seen struct {
	base  slog.Handler // without attributes
	mu    sync.Mutex
	kinds map[string]*kind // by message
}

type kind struct {
	second  int64
	written int
	leftOut int
}

func newCalm(next slog.Handler) *calm {
	return &calm{next, &seen{base: next, kinds: map[string]*kind{}}}
}

// Handle writes the line or counts it.
func (c *calm) Handle(ctx context.Context, r slog.Record) error {
	if !c.Enabled(ctx, slog.LevelDebug) && !c.pass(r) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

func (c *calm) pass(r slog.Record) bool {
	c.seen.mu.Lock()
	defer c.seen.mu.Unlock()
	k := c.seen.kinds[r.Message]
	if k == nil {
		if len(c.seen.kinds) >= calmKinds {
			clear(c.seen.kinds)
		}
		k = &kind{}
		c.seen.kinds[r.Message] = k
	}
	if s := r.Time.Unix(); s != k.second {
		k.second, k.written = s, 0
	}
	if k.written < calmLines {
		k.written++
		return true
	}
	if k.leftOut++; k.leftOut == 1 {
		time.AfterFunc(time.Second, func() { c.seen.tell(r.Level, r.Message, k) })
	}
	return false
}

func (s *seen) tell(level slog.Level, message string, k *kind) {
	s.mu.Lock()
	n := k.leftOut
	k.leftOut = 0
	s.mu.Unlock()
	r := slog.NewRecord(time.Now(), level, "lines were left out", 0)
	r.AddAttrs(slog.String("of", message), slog.Int("lines", n))
	_ = s.base.Handle(context.Background(), r)
}

// WithAttrs shares what was seen with the loggers made from this one.
func (c *calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calm{c.Handler.WithAttrs(attrs), c.seen}
}

// WithGroup does too.
func (c *calm) WithGroup(name string) slog.Handler { return &calm{c.Handler.WithGroup(name), c.seen} }

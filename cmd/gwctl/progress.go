package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// patience is how long something may take before people want to see that it goes on.
const patience = 400 * time.Millisecond

// progress is one line on a terminal about long work, written over again and wiped at the end. Elsewhere it writes nothing.
type progress struct {
	w     io.Writer // nil: nobody looks
	start time.Time
	stop  chan struct{}
	over  sync.WaitGroup

	mu   sync.Mutex
	text string
}

// progress begins long work, of which text tells.
func (o *options) progress(cmd *cobra.Command, text string) *progress {
	if w := cmd.ErrOrStderr(); isTerminal(w) {
		return newProgress(w, text, patience)
	}
	return &progress{}
}

func newProgress(w io.Writer, text string, pace time.Duration) *progress {
	p := &progress{w: w, start: time.Now(), stop: make(chan struct{}), text: text}
	p.over.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for shown := false; ; shown = true {
			select {
			case <-tick.C:
				p.mu.Lock()
				line := p.text
				p.mu.Unlock()
				fmt.Fprintf(w, "\r\x1b[K%s, %d s", line, int(time.Since(p.start).Seconds()))
			case <-p.stop:
				if shown {
					fmt.Fprint(w, "\r\x1b[K")
				}
				return
			}
		}
	})
	return p
}

// say tells how far the work is.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = fmt.Sprintf(format, args...)
}

// end wipes the line. It may be called again.
func (p *progress) end() {
	if p.w != nil {
		p.w = nil
		close(p.stop)
		p.over.Wait()
	}
}

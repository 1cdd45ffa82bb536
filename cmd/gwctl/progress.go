package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// patience is how long something may take before people want to see that it goes on.
const patience = 400 * time.Millisecond

// progress is one line on a terminal about long work, written over again and wiped at the end. Elsewhere it writes nothing.
type progress struct {
	w     io.Writer // nil: nobody looks
	next  time.Time
	shown bool
}

// progress begins long work.
func (o *options) progress(cmd *cobra.Command) *progress {
	p := &progress{next: time.Now().Add(patience)}
	if w := cmd.ErrOrStderr(); isTerminal(w) {
		p.w = w
	}
	return p
}

// say tells how far the work is.
func (p *progress) say(format string, args ...any) {
	if p.w == nil || time.Now().Before(p.next) {
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
	p.shown, p.next = true, time.Now().Add(patience/2)
}

// end wipes the line. It may be called again.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

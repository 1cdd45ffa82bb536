package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestCalm: of a flood of lines some are written, and how many are not; other lines are not touched.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		level := new(slog.LevelVar)
		log := newLogger(&out, level)
		lines := func(text string) int { return strings.Count(out.String(), text) }
		for i := range 3 * calmLines {
			log.With("host", i).Warn("upstream failed")
			log.Warn("something else", "n", i/calmLines)
			if i%calmLines == calmLines-1 {
				log.Error(fmt.Sprint("once ", i))
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := lines("msg=\"upstream failed\""); n != calmLines {
			t.Errorf("%d lines of a flood", n)
		}
		if n := lines(fmt.Sprintf("level=warn msg=\"lines were left out\" of=\"upstream failed\" lines=%d\n", 2*calmLines)); n != 1 {
			t.Errorf("what was left out is told %d times", n)
		}
		if n := lines("level=error msg=\"once"); n != 3 {
			t.Errorf("%d of 3 lines", n)
		}
		log.Warn("upstream failed", "host", "later")
		if lines("host=later") != 1 {
			t.Error("nothing is written any more")
		}
		level.Set(slog.LevelDebug)
		for range 2 * calmLines {
			log.Warn("debugged")
		}
		if n := lines("debugged"); n != 2*calmLines {
			t.Errorf("%d lines while debugging", n)
		}
		for i := range 2 * calmKinds {
			log.Error(fmt.Sprint("name ", i))
		}
		if c := log.Handler().(*calm); len(c.seen.kinds) > calmKinds {
			t.Errorf("%d messages are remembered", len(c.seen.kinds))
		}
	})
}

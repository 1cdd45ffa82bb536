package stream

import (
	"strings"
	"testing"
	"time"
)

// A wall clock that is set while sessions last must neither cut them nor keep them.
func TestMomentIsOfTheMonotonicClock(t *testing.T) {
	m := moment{since: time.Now()}
	m.touch()
	if until := m.last().Add(time.Minute); !strings.Contains(until.String(), " m=+") || m.last().Before(m.since) {
		t.Errorf("%v, touched after %v", until, m.since)
	}
}

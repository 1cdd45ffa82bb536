package ratelimit

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	const layout = time.DateTime
	for _, c := range []struct{ period, at, start, end string }{
		{"second", "2026-03-05 11:22:33", "2026-03-05 11:22:33", "2026-03-05 11:22:34"},
		{"minute", "2026-03-05 11:22:33", "2026-03-05 11:22:00", "2026-03-05 11:23:00"},
		{"minute", "2026-03-05 11:22:00", "2026-03-05 11:22:00", "2026-03-05 11:23:00"},
		{"hour", "2026-03-05 11:22:33", "2026-03-05 11:00:00", "2026-03-05 12:00:00"},
		{"day", "2026-03-05 23:59:59", "2026-03-05 00:00:00", "2026-03-06 00:00:00"},
		{"month", "2024-02-29 23:59:59", "2024-02-01 00:00:00", "2024-03-01 00:00:00"},
		{"month", "2026-12-31 00:00:00", "2026-12-01 00:00:00", "2027-01-01 00:00:00"},
		{"month", "2026-03-31 12:00:00", "2026-03-01 00:00:00", "2026-04-01 00:00:00"},
		{"year", "2024-12-31 23:59:59", "2024-01-01 00:00:00", "2025-01-01 00:00:00"},
		{"year", "2026-01-01 00:00:00", "2026-01-01 00:00:00", "2027-01-01 00:00:00"},
		{"minute", "1969-12-31 23:59:59", "1969-12-31 23:59:00", "1970-01-01 00:00:00"},
	} {
		at, err := time.Parse(layout, c.at)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for p := range Period(Periods) {
			if p.String() != c.period {
				continue
			}
			found = true
			start, end := p.Window(at.Unix())
			if s, e := time.Unix(start, 0).UTC().Format(layout), time.Unix(end, 0).UTC().Format(layout); s != c.start || e != c.end {
				t.Errorf("%s of %s: %s to %s, want %s to %s", c.period, c.at, s, e, c.start, c.end)
			}
		}
		if !found {
			t.Errorf("no period %s", c.period)
		}
	}
}

// FuzzWindow: windows of a period cover all times without gap or overlap.
func FuzzWindow(f *testing.F) {
	f.Add(int64(1700000000), uint8(0))
	f.Add(int64(-1), uint8(4))
	f.Add(int64(951782399), uint8(5))
	f.Fuzz(func(t *testing.T, at int64, period uint8) {
		at %= 1 << 37 // some 4,000 years either way
		p := Period(period % Periods)
		start, end := p.Window(at)
		if at < start || at >= end {
			t.Fatalf("%v of %d: from %d to %d", p, at, start, end)
		}
		if s, e := p.Window(start); s != start || e != end {
			t.Errorf("%v of %d: at its start it is from %d to %d, not to %d", p, at, s, e, end)
		}
		if s, e := p.Window(end - 1); s != start || e != end {
			t.Errorf("%v of %d: at its end it is from %d to %d", p, at, s, e)
		}
		if s, _ := p.Window(end); s != end {
			t.Errorf("%v of %d: the next one begins at %d, not %d", p, at, s, end)
		}
	})
}

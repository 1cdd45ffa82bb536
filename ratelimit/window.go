package ratelimit

import "time"

// Period is the length of a window. Windows are those of the calendar in UTC, as Kong counts: a minute begins at second 0, a
// month on its first day.
type Period uint8

// The periods, shortest first.
const (
	Second Period = iota
	Minute
	Hour
	Day
	Month
	Year
	Periods = 6 // how many there are
)

// String is the name that Kong's settings have for p.
func (p Period) String() string {
	return [Periods]string{"second", "minute", "hour", "day", "month", "year"}[p]
}

// Seconds is the length of p as Kong announces it to clients: every month has 30 days, every year 365.
func (p Period) Seconds() int64 {
	return [Periods]int64{1, 60, 3600, 86400, 30 * 86400, 365 * 86400}[p]
}

// Window is the window of p that contains the Unix time t: from start to just before end, in Unix seconds.
func (p Period) Window(t int64) (start, end int64) {
	if p < Month {
		n := p.Seconds()
		rest := t % n
		if rest < 0 {
			rest += n
		}
		return t - rest, t - rest + n
	}
	y, m, _ := time.Unix(t, 0).UTC().Date()
	months := time.Month(1)
	if p == Year {
		m, months = time.January, 12
	}
	return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(y, m+months, 1, 0, 0, 0, 0, time.UTC).Unix()
}

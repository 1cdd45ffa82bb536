// Package ratelimit decides which requests are within their limits and counts them, exactly, in Kong's calendar windows.
//
// It is arithmetic on keys, limits and times: it knows no HTTP, no plugins, no clock and no network. Local counts on one node.
// What counts for a whole cluster has the same Take and differs only in that it may fail; DESIGN.md says what it can rely on.
package ratelimit

import "time"

// Limit is how many requests one window admits.
type Limit struct {
	Period Period
	Max    int64 // at least 1
}

// Key names what is limited. It depends on the request and the configuration only, so that all nodes make the same one. Its
// texts may be gone after the call that it is passed to.
type Key struct {
	Scope string // whose limits these are
	Kind  byte   // what ID is, so that one kind of name (a header's value) cannot pose as another (an address)
	ID    string
}

// Usage is what is known of one window after a decision.
type Usage struct {
	Used  int64 // requests admitted, this one included
	Start int64 // of the window, Unix seconds
}

// Decision is the answer to one request.
type Decision struct {
	Admitted bool
	Usage    [Periods]Usage // for the limits that were asked about, in their order
}

// Take asks, at the time now, whether a request may pass, and counts it if so: in all windows of its limits or in none. Only
// one of them needs to be full to refuse it, and a refused request is counted nowhere. There are at most Periods limits, of
// different periods. The error, which a Local never returns, says that it is not known whether there is room: d is not
// changed then.
func (l *Local) Take(now time.Time, key Key, limits []Limit, d *Decision) error {
	t := now.Unix()
	id := l.secret.hash(key)
	l.shards[id.hi%shards].take(t, id, limits, d)
	return nil
}

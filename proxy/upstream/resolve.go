package upstream

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"concord/proxy/dns"
)

// names caches what the hosts of services stand for. One look-up per name runs at a time; while the resolver fails, the old answer is used;
// that a name cannot be resolved is remembered too.
type names struct {
	r      dns.Resolver
	policy dns.Policy
	most   int

	mu sync.RWMutex
	m  map[string]*name
}

type name struct {
	places   []netip.AddrPort // in turn, weighted; never changed once set. Port 0: the service's own
	err      error            // there are none
	until    time.Time        // fresh until
	keep     time.Time        // usable until, when the resolver fails
	last     string           // kind of the last answer
	failures int
	pending  *pending
}

type pending struct {
	done   chan struct{}
	places []netip.AddrPort
	err    error
}

func newNames(r dns.Resolver, policy dns.Policy, most int) *names {
	return &names{r: r, policy: policy, most: most, m: map[string]*name{}}
}

// lookup returns the places of host; the caller must not change them.
func (n *names) lookup(host string, wait time.Duration) ([]netip.AddrPort, error) {
	n.mu.RLock()
	e := n.m[host]
	if e != nil && time.Now().Before(e.until) {
		places, err := e.places, e.err
		n.mu.RUnlock()
		return places, err
	}
	n.mu.RUnlock()
	return n.resolve(strings.Clone(host), wait)
}

func (n *names) resolve(host string, wait time.Duration) ([]netip.AddrPort, error) {
	now := time.Now()
	n.mu.Lock()
	e := n.m[host]
	if e == nil {
		n.makeRoom()
		e = &name{}
		n.m[host] = e
	}
	p := e.pending
	if p == nil {
		p = &pending{done: make(chan struct{})}
		e.pending = p
		go n.ask(host, e, p)
	}
	// Refreshing happens in the background as long as there is an answer to go on with.
	if len(e.places) > 0 && now.Before(e.keep) {
		places := e.places
		n.mu.Unlock()
		return places, nil
	}
	n.mu.Unlock()
	if wait <= 0 {
		wait = 60 * time.Second
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-p.done:
		return p.places, p.err
	case <-t.C:
		return nil, context.DeadlineExceeded
	}
}

// makeRoom forgets a name when there are too many; any will do. n.mu is held.
func (n *names) makeRoom() {
	if len(n.m) < n.most {
		return
	}
	for host, e := range n.m {
		if e.pending == nil {
			delete(n.m, host)
			return
		}
	}
}

func (n *names) ask(host string, e *name, p *pending) {
	n.mu.RLock()
	last := e.last
	n.mu.RUnlock()
	a, err := n.policy.Lookup(context.Background(), n.r, host, 0, last, false)
	now := time.Now()
	n.mu.Lock()
	e.pending = nil
	switch {
	case err == nil:
		e.places, e.err, e.last, e.failures = inTurn(a.Records), nil, a.Kind, 0
		e.until, e.keep = now.Add(a.TTL), now.Add(a.TTL+n.policy.StaleTTL)
		p.places = e.places
	case len(e.places) > 0 && now.Before(e.keep) && !dns.NotFound(err): // that there is no such name is an answer
		e.until = now.Add(n.policy.ErrorTTL) // do not ask a failing resolver with every exchange
		p.places = e.places
	default:
		e.places, e.err, e.until = nil, err, now.Add(n.policy.Retry(err, e.failures))
		e.keep = e.until
		e.failures++
		p.err = err
	}
	n.mu.Unlock()
	close(p.done)
}

// maxTurns bounds how finely weights are followed.
const maxTurns = 64

// inTurn lists the places as often as their weights say, each at least once, evenly spread.
func inTurn(records []dns.Record) []netip.AddrPort {
	total := 0
	for _, r := range records {
		total += r.Weight
	}
	turns := 0
	share := make([]int, len(records))
	for i, r := range records {
		share[i] = max(1, r.Weight)
		if total > maxTurns {
			share[i] = max(1, r.Weight*maxTurns/total)
		}
		turns += share[i]
	}
	places := make([]netip.AddrPort, 0, turns)
	due := make([]int, len(records))
	for range turns {
		best := 0
		for i := range records {
			due[i] += share[i]
			if due[i] > due[best] {
				best = i
			}
		}
		due[best] -= turns
		places = append(places, records[best].Addr)
	}
	return places
}

// place is the n-th of places in turn, but not the one that has just failed as long as there is another. A place without a port is at port.
func place(places []netip.AddrPort, n, port int, failed netip.AddrPort) (at netip.AddrPort) {
	for k := range places {
		if at = places[(n+k)%len(places)]; at.Port() == 0 {
			at = netip.AddrPortFrom(at.Addr(), uint16(port))
		}
		if at != failed {
			break
		}
	}
	return at
}

// sweep forgets names that can no longer be used.
func (n *names) sweep(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for h, e := range n.m {
		if e.pending == nil && now.After(e.keep) {
			delete(n.m, h)
		}
	}
}

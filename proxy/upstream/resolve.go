package upstream

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Resolver turns names into addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

var errNoAddress = errors.New("the name has no address")

// names caches the resolver's answers. One look-up per name runs at a time; while the resolver fails, the old answer is
// used.
type names struct {
	r          Resolver
	ttl, stale time.Duration

	mu sync.RWMutex
	m  map[string]*name
}

type name struct {
	addrs   []netip.Addr // never changed once set
	until   time.Time    // fresh until
	keep    time.Time    // usable until, when the resolver fails
	pending *pending
}

type pending struct {
	done  chan struct{}
	addrs []netip.Addr
	err   error
}

func newNames(r Resolver, ttl, stale time.Duration) *names {
	return &names{r: r, ttl: ttl, stale: stale, m: map[string]*name{}}
}

// lookup returns the addresses of host; the caller must not change them.
func (n *names) lookup(host string, wait time.Duration) ([]netip.Addr, error) {
	n.mu.RLock()
	e := n.m[host]
	if e != nil && len(e.addrs) > 0 && time.Now().Before(e.until) {
		a := e.addrs
		n.mu.RUnlock()
		return a, nil
	}
	n.mu.RUnlock()
	return n.resolve(strings.Clone(host), wait)
}

func (n *names) resolve(host string, wait time.Duration) ([]netip.Addr, error) {
	now := time.Now()
	n.mu.Lock()
	e := n.m[host]
	if e == nil {
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
	if len(e.addrs) > 0 && now.Before(e.keep) {
		a := e.addrs
		n.mu.Unlock()
		return a, nil
	}
	n.mu.Unlock()
	if wait <= 0 {
		wait = 60 * time.Second
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-p.done:
		return p.addrs, p.err
	case <-t.C:
		return nil, context.DeadlineExceeded
	}
}

func (n *names) ask(host string, e *name, p *pending) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	addrs, err := n.r.LookupNetIP(ctx, "ip", host)
	if err == nil && len(addrs) == 0 {
		err = errNoAddress
	}
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	// IPv4 first, as Kong's DNS order has A before AAAA.
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	if len(addrs) > 0 && addrs[0].Is4() {
		if i := slices.IndexFunc(addrs, netip.Addr.Is6); i > 0 {
			addrs = addrs[:i]
		}
	}
	now := time.Now()
	n.mu.Lock()
	e.pending = nil
	if err == nil {
		e.addrs, e.until, e.keep = addrs, now.Add(n.ttl), now.Add(n.ttl+n.stale)
	} else if len(e.addrs) > 0 && now.Before(e.keep) {
		e.until = now.Add(time.Second) // do not ask a failing resolver with every exchange
		addrs, err = e.addrs, nil
	}
	n.mu.Unlock()
	p.addrs, p.err = addrs, err
	close(p.done)
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

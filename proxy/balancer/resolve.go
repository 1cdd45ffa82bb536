package balancer

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"concord/fsm/entity"
)

// Resolver answers questions about names. The time says how long an answer holds, 0 that nobody knows. An error that is a
// *net.DNSError with IsNotFound says that there is no such name or record.
type Resolver interface {
	Addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)
	Services(ctx context.Context, name string) ([]*net.SRV, time.Duration, error)
}

const (
	lookupTimeout = 10 * time.Second
	// minTTL and maxTTL bound how long an answer holds, whatever it says.
	minTTL = time.Second
	maxTTL = time.Hour
	// retryNotFound is how long it holds that there is no such name; other failures are tried again after a second, then two,
	// up to this.
	retryNotFound = 30 * time.Second
)

// answer is what a name stands for now.
type answer struct {
	records []record
	dns     string
	ttl     time.Duration
}

// follow keeps the addresses of a named target up to date.
func (p *Pool) follow(ctx context.Context, t *target, srv bool) {
	failures := 0
	var stale time.Time // until then the last answer serves while there is no other
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		a, err := p.set.lookup(ctx, t.host, t.port, srv)
		if ctx.Err() != nil {
			return
		}
		wait := a.ttl
		if err == nil {
			failures = 0
			stale = time.Now().Add(a.ttl + p.set.o.StaleTTL)
		} else {
			wait = min(time.Second<<min(failures, 5), retryNotFound)
			if notFound(err) {
				wait = retryNotFound
			}
			failures++
			if failures == 1 {
				p.set.o.Log.Warn("a target's name cannot be resolved", "upstream", p.id, "target", t.host, "error", err)
			}
			a = answer{dns: err.Error()}
		}
		p.resolved(ctx, t, a, err == nil || !time.Now().Before(stale))
		timer.Reset(wait)
	}
}

// resolved takes over an answer, unless it is a failure and the last answer still serves.
func (p *Pool) resolved(ctx context.Context, t *target, a answer, replace bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	was := t.fresh
	if was {
		t.fresh = false
		p.asked--
	}
	same := slices.Equal(t.records, a.records)
	if replace {
		t.records, t.dns = a.records, a.dns
	}
	if was || replace && !same {
		p.rebuild(p.plan.Load().config)
	}
}

func notFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

var errNoAddress = errors.New("the name has no address")

// lookup finds what a target stands for. Services are asked for when the upstream wants their names, when the target has no port of
// its own, and when it is called like one (RFC 2782); without an answer its addresses count.
func (s *Set) lookup(ctx context.Context, host string, port int, srv bool) (answer, error) {
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if (srv || port == entity.DefaultTargetPort || strings.HasPrefix(host, "_")) && host != "localhost" {
		if a, ok := s.services(ctx, host, port); ok {
			return a, nil
		}
	}
	addrs, ttl, err := s.addresses(ctx, host)
	if err != nil {
		return answer{}, err
	}
	a := answer{dns: kindOf(addrs[0]), ttl: s.hold(ttl)}
	for _, addr := range addrs {
		a.records = append(a.records, record{addr: netip.AddrPortFrom(addr, uint16(port))})
	}
	return a, nil
}

// services follows SRV records: those of the best priority, each with the addresses of its name.
func (s *Set) services(ctx context.Context, name string, port int) (answer, bool) {
	list, ttl, err := s.o.Resolver.Services(ctx, name)
	if err != nil || len(list) == 0 {
		return answer{}, false
	}
	best := slices.MinFunc(list, func(a, b *net.SRV) int { return int(a.Priority) - int(b.Priority) }).Priority
	a := answer{dns: "SRV", ttl: s.hold(ttl)}
	for _, srv := range list {
		if srv.Priority != best {
			continue
		}
		server := strings.TrimSuffix(srv.Target, ".")
		addrs := []netip.Addr{}
		if ip, err := netip.ParseAddr(server); err == nil {
			addrs = append(addrs, ip.Unmap())
		} else {
			var ttl time.Duration
			if addrs, ttl, err = s.addresses(ctx, server); err != nil {
				continue // the others may do
			}
			a.ttl = min(a.ttl, s.hold(ttl))
		}
		at := port
		if srv.Port != 0 {
			at = int(srv.Port)
		}
		for _, addr := range addrs {
			a.records = append(a.records, record{
				addr: netip.AddrPortFrom(addr, uint16(at)), name: server,
				weight: max(1, int(srv.Weight)/len(addrs)), // a weight of 0 is for seldom, not for never (RFC 2782)
			})
		}
	}
	slices.SortFunc(a.records, func(x, y record) int {
		return cmp.Or(x.addr.Compare(y.addr), cmp.Compare(x.name, y.name), x.weight-y.weight)
	})
	return a, len(a.records) > 0
}

// addresses is a sorted list, not empty: IPv4 addresses, or if there are none IPv6 (Kong's order has A only).
func (s *Set) addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	addrs, ttl, err := s.o.Resolver.Addresses(ctx, host)
	if err != nil {
		return nil, 0, err
	}
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		return cmp.Or(a.BitLen()-b.BitLen(), a.Compare(b))
	})
	addrs = slices.Compact(addrs)
	if len(addrs) > 0 && addrs[0].Is4() {
		if i := slices.IndexFunc(addrs, netip.Addr.Is6); i > 0 {
			addrs = addrs[:i]
		}
	}
	if len(addrs) == 0 {
		return nil, 0, errNoAddress
	}
	return addrs, ttl, nil
}

// hold is how long to use an answer.
func (s *Set) hold(ttl time.Duration) time.Duration {
	if ttl <= 0 {
		ttl = s.o.TTL
	}
	return min(max(ttl, minTTL), maxTTL)
}

func kindOf(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

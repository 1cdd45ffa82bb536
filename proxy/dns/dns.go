// Package dns finds out what the hosts of services and targets stand for: addresses, and ports and weights of SRV records.
//
// It asks and judges the answers; who keeps them, and for how long they serve when there is no newer one, is the business of packages
// balancer (targets) and upstream (services).
package dns

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Resolver answers questions about names. Addresses may be of one family, the preferred one that there is. The time says how long an answer holds, 0 that nobody knows. An error that is a
// *net.DNSError with IsNotFound says that there is no such name or record.
type Resolver interface {
	Addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)
	Services(ctx context.Context, name string) ([]*net.SRV, time.Duration, error)
}

// Policy says what is asked and how long answers are used. Zero values mean the defaults, which are Kong's; negative times mean none.
type Policy struct {
	// Order are the kinds of records to ask for, the first that there are win: LAST (the kind that was found last time), SRV, A, AAAA. Default
	// LAST, SRV, A. CNAMEs are followed in any case.
	Order       []string
	TTL         time.Duration // of answers that do not tell theirs, 5 s
	ValidTTL    time.Duration // instead of the answers' own; 0: theirs
	StaleTTL    time.Duration // how long an old answer serves while there is no new one, 1 h
	ErrorTTL    time.Duration // until a failing resolver is asked again, 1 s
	NotFoundTTL time.Duration // how long it holds that there is no such name, 30 s
}

// WithDefaults fills in what is not set.
func (p Policy) WithDefaults() Policy {
	if len(p.Order) == 0 {
		p.Order = []string{"LAST", "SRV", "A"}
	}
	p.TTL = cmp.Or(p.TTL, 5*time.Second)
	p.StaleTTL = cmp.Or(p.StaleTTL, time.Hour)
	p.ErrorTTL = cmp.Or(p.ErrorTTL, time.Second)
	p.NotFoundTTL = cmp.Or(p.NotFoundTTL, 30*time.Second)
	return p
}

// Record is one place that a name stands for.
type Record struct {
	Addr   netip.AddrPort // the port is the one asked with, unless the SRV record has its own
	Weight int            // of the SRV record; 0: there is none
	Name   string         // of the server, from the SRV record
}

// Answer is what a name stands for now: at least one record, sorted.
type Answer struct {
	Records []Record
	Kind    string // "A", "AAAA" or "SRV"
	TTL     time.Duration
}

const (
	// timeout bounds a look-up; services are only a part of it, because some resolvers never answer questions for them.
	timeout         = 10 * time.Second
	servicesTimeout = 5 * time.Second
	// minTTL and maxTTL bound how long an answer holds, whatever it says.
	minTTL = time.Second
	maxTTL = time.Hour
	// minRetry keeps a name that cannot be resolved from being asked for all the time.
	minRetry = 10 * time.Millisecond
)

var errNoAddress = errors.New("the name has no address")

// NotFound tells whether a look-up failed because there is no such name.
func NotFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

// Retry is how long a failure holds: failures is how many there were before it, in a row.
func (p *Policy) Retry(err error, failures int) time.Duration {
	hold := p.NotFoundTTL
	if !NotFound(err) {
		hold = min(max(p.ErrorTTL, minRetry)<<min(failures, 5), max(p.NotFoundTTL, p.ErrorTTL))
	}
	return max(hold, minRetry)
}

// Lookup asks r. last is the kind of the last answer, "" at first; services makes it ask for SRV records first, whatever the order. Names that
// begin with "_" are those of services (RFC 2782).
func (p *Policy) Lookup(ctx context.Context, r Resolver, host string, port int, last string, services bool) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	wanted := false
	if host != "localhost" {
		wanted = services || strings.HasPrefix(host, "_") || p.servicesFirst(last)
	}
	var failed error
	if wanted {
		a, err := p.services(ctx, r, host, port)
		if err == nil {
			return a, nil
		}
		failed = err
	}
	addrs, ttl, err := p.addresses(ctx, r, host)
	if err != nil {
		if !wanted && host != "localhost" && slices.Contains(p.Order, "SRV") {
			if a, err := p.services(ctx, r, host, port); err == nil {
				return a, nil
			}
		}
		// A name of services alone has no address, which says nothing about it while nobody answers for the services.
		if failed != nil && !NotFound(failed) && NotFound(err) && last != "A" && last != "AAAA" {
			err = failed
		}
		return Answer{}, err
	}
	a := Answer{Kind: kindOf(addrs[0]), TTL: p.hold(ttl)}
	for _, addr := range addrs {
		a.Records = append(a.Records, Record{Addr: netip.AddrPortFrom(addr, uint16(port))})
	}
	return a, nil
}

// servicesFirst tells whether SRV records come before addresses.
func (p *Policy) servicesFirst(last string) bool {
	for _, kind := range p.Order {
		if kind == "LAST" && last != "" {
			kind = last
		}
		switch kind {
		case "SRV":
			return true
		case "A", "AAAA":
			return false
		}
	}
	return false
}

// services follows SRV records: those of the best priority, each with the addresses of its name.
func (p *Policy) services(ctx context.Context, r Resolver, name string, port int) (Answer, error) {
	short, cancel := context.WithTimeout(ctx, servicesTimeout)
	defer cancel()
	list, ttl, err := r.Services(short, name)
	if err == nil && len(list) == 0 {
		err = &net.DNSError{Err: "the name has no services", Name: name, IsNotFound: true}
	}
	if err != nil {
		return Answer{}, err
	}
	best := slices.MinFunc(list, func(a, b *net.SRV) int { return int(a.Priority) - int(b.Priority) }).Priority
	a := Answer{Kind: "SRV", TTL: p.hold(ttl)}
	var failed error
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
			if addrs, ttl, err = p.addresses(ctx, r, server); err != nil {
				failed = err
				continue // the others may do
			}
			a.TTL = min(a.TTL, p.hold(ttl))
		}
		at := port
		if srv.Port != 0 {
			at = int(srv.Port)
		}
		for _, addr := range addrs {
			a.Records = append(a.Records, Record{
				Addr: netip.AddrPortFrom(addr, uint16(at)), Name: server,
				Weight: max(1, int(srv.Weight)/len(addrs)), // a weight of 0 is for seldom, not for never (RFC 2782)
			})
		}
	}
	slices.SortFunc(a.Records, func(x, y Record) int {
		return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Name, y.Name), x.Weight-y.Weight)
	})
	if len(a.Records) == 0 {
		return Answer{}, failed
	}
	return a, nil
}

// addresses is a sorted list, not empty, of one family: the one that comes first in the order, or if it has none the other.
func (p *Policy) addresses(ctx context.Context, r Resolver, host string) ([]netip.Addr, time.Duration, error) {
	addrs, ttl, err := r.Addresses(ctx, host)
	if err != nil {
		return nil, 0, err
	}
	sign := 1
	if p.SixFirst() {
		sign = -1
	}
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		return cmp.Or(sign*(a.BitLen()-b.BitLen()), a.Compare(b))
	})
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 {
		return nil, 0, errNoAddress
	}
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() != addrs[0].Is4() }); i > 0 {
		addrs = addrs[:i]
	}
	return addrs, ttl, nil
}

// SixFirst tells whether IPv6 addresses are preferred.
func (p *Policy) SixFirst() bool {
	six, four := slices.Index(p.Order, "AAAA"), slices.Index(p.Order, "A")
	return six >= 0 && (four < 0 || six < four)
}

// hold is how long to use an answer.
func (p *Policy) hold(ttl time.Duration) time.Duration {
	if p.ValidTTL > 0 {
		return p.ValidTTL
	}
	if ttl <= 0 {
		ttl = p.TTL
	}
	return min(max(ttl, minTTL), maxTTL)
}

func kindOf(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

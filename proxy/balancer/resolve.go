package balancer

import (
	"context"
	"slices"
	"time"

	"concord/fsm/entity"
	"concord/proxy/dns"
)

// follow keeps the addresses of a named target up to date.
func (p *Pool) follow(ctx context.Context, t *target, srv bool) {
	failures, last := 0, ""
	var stale time.Time // until then the last answer serves while there is no other
	timer := time.NewTimer(0)
	defer timer.Stop()
	policy := &p.set.o.DNS
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		a, err := p.set.lookup(ctx, t.host, t.port, last, srv)
		if ctx.Err() != nil {
			return
		}
		wait, kind := a.TTL, a.Kind
		if err == nil {
			failures, last = 0, a.Kind
			stale = time.Now().Add(a.TTL + policy.StaleTTL)
		} else {
			wait, kind = policy.Retry(err, failures), err.Error()
			failures++
			if failures == 1 {
				p.set.o.Log.Warn("a target's name cannot be resolved", "upstream", p.id, "target", t.host, "error", err)
			}
		}
		p.resolved(ctx, t, a.Records, kind, err == nil || dns.NotFound(err) || !time.Now().Before(stale))
		timer.Reset(wait)
	}
}

// resolved takes over an answer, unless it is a failure and the last answer still serves.
func (p *Pool) resolved(ctx context.Context, t *target, records []dns.Record, kind string, replace bool) {
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
	same := slices.Equal(t.records, records)
	if replace {
		t.records, t.dns = records, kind
	}
	if was || replace && !same {
		p.rebuild(p.plan.Load().config)
	}
}

// lookup finds what a target stands for. Services come first when the upstream wants their names and when the target has no port of its own.
func (s *Set) lookup(ctx context.Context, host string, port int, last string, srv bool) (dns.Answer, error) {
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	case <-ctx.Done():
		return dns.Answer{}, ctx.Err()
	}
	return s.o.DNS.Lookup(ctx, s.o.Resolver, host, port, last, srv || port == entity.DefaultTargetPort)
}

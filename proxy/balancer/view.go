package balancer

import (
	"net"
	"net/netip"
	"strconv"

	"concord/fsm/entity"
	"concord/proxy/dns"
)

// The views are what Kong's Admin API shows of an upstream's health, as values that encode to its JSON.

// The health of an address, a target or a pool.
const (
	Healthy   = "HEALTHY"
	Unhealthy = "UNHEALTHY"
	Off       = "HEALTHCHECKS_OFF"
	DNSError  = "DNS_ERROR" // the target has no address
)

// TargetHealth is what /upstreams/{u}/health adds to every target, by the target's id: "health" and "data". false: there is no such upstream.
func (s *Set) TargetHealth(upstreamID string) (map[string]map[string]any, bool) {
	p := s.pool(upstreamID)
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.plan.Load().config
	view := map[string]map[string]any{}
	for id, t := range p.targets {
		health := DNSError
		addresses := []any{}
		for _, r := range t.records {
			h := Off
			switch out := p.down(t, r); {
			case t.weight > 0 && out:
				h = Unhealthy
			case t.weight > 0 && c.watched():
				h = Healthy
			}
			if health != Healthy { // one healthy address is enough
				health = h
			}
			addresses = append(addresses, p.addressView(c, t, r, "health", h))
		}
		data := p.targetView(t)
		data["addresses"] = addresses
		view[id] = map[string]any{"health": health, "data": data}
	}
	return view, true
}

// PoolHealth is the "data" of /upstreams/{u}/health?balancer_health=1. false: there is no such upstream.
func (s *Set) PoolHealth(upstreamID string) (map[string]any, bool) {
	p := s.pool(upstreamID)
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	plan := p.plan.Load()
	hosts := []any{}
	total, unavailable := 0, 0
	for _, t := range p.sorted() {
		addresses := []any{}
		for _, r := range t.records {
			addresses = append(addresses, p.addressView(plan.config, t, r, "healthy", !p.down(t, r)))
		}
		sum, lost := p.weights(t)
		total, unavailable = total+sum, unavailable+lost
		data := p.targetView(t)
		data["addresses"] = addresses
		hosts = append(hosts, data)
	}
	health := Unhealthy
	if plan.healthy {
		health = Healthy
	}
	shown := health
	if !plan.watched() {
		shown = Off
	}
	details := map[string]any{"healthy": plan.healthy, "weight": weightView(total, unavailable), "hosts": hosts}
	if plan.breaker != nil {
		s := p.breakerStats(plan)
		details["circuit_breaker"] = map[string]any{
			"requests": s.Requests, "pending_connections": s.Pending, "ejected": s.Ejected, "ejections": s.Ejections, "rejected": s.Rejected,
		}
	}
	return map[string]any{"id": upstreamID, "health": shown, "balancer_health": health, "details": details}, true
}

// watched tells whether anybody looks how the targets are.
func (c *config) watched() bool { return c.checked || c.breaker != nil }

// addressView is one address. What the circuit breaker thinks of it is Concord's own.
func (p *Pool) addressView(c *config, t *target, r dns.Record, key string, health any) map[string]any {
	view := map[string]any{"ip": r.Addr.Addr().String(), "port": int(r.Addr.Port()), "weight": t.weightOf(r), key: health}
	if pe := p.peers[peerKey{t.host, r.Addr}]; pe != nil && c.breaker != nil {
		view["circuit"] = pe.breaker.state()
		if left := pe.breaker.until - p.set.millis(); pe.breaker.ejected.Load() {
			view["ejected_for"] = float64(max(left, 0)) / 1000 // seconds
		}
	}
	return view
}

func (p *Pool) targetView(t *target) map[string]any {
	return map[string]any{
		"host": t.host, "port": t.port, "dns": t.dns, "nodeWeight": t.weight, "weight": weightView(p.weights(t)),
	}
}

func weightView(total, unavailable int) map[string]any {
	return map[string]any{"total": total, "available": total - unavailable, "unavailable": unavailable}
}

func (p *Pool) weights(t *target) (total, unavailable int) {
	for _, r := range t.records {
		total += t.weightOf(r)
		if p.down(t, r) {
			unavailable += t.weightOf(r)
		}
	}
	return total, unavailable
}

func (p *Pool) down(t *target, r dns.Record) bool {
	pe := p.peers[peerKey{t.host, r.Addr}]
	return pe != nil && pe.out()
}

// ErrUnknown is SetHealth's. It has a method NotFound, by which the Admin API, which does not import this package, knows to
// answer 404.
var ErrUnknown error = unknownError{}

type unknownError struct{}

func (unknownError) Error() string  { return "no such upstream, target or address" }
func (unknownError) NotFound() bool { return true }

// SetHealth makes a target, or one of its addresses ("ip:port", "ip" for port 8000, "" for all of them), healthy or not until a check or
// another call says otherwise, also while there are no checks (Kong). It holds on this node. The error is ErrUnknown.
func (s *Set) SetHealth(upstreamID, targetID, address string, healthy bool) error {
	p := s.pool(upstreamID)
	if p == nil {
		return ErrUnknown
	}
	only, err := parseAddress(address)
	if err != nil {
		return err
	}
	p.mu.Lock()
	t := p.targets[targetID]
	var peers []*peer
	if t != nil {
		for _, r := range t.records {
			if pe := p.peers[peerKey{t.host, r.Addr}]; pe != nil && (address == "" || r.Addr == only) {
				peers = append(peers, pe)
			}
		}
	}
	p.mu.Unlock()
	switch {
	case t == nil:
		return ErrUnknown
	case len(peers) == 0 && address != "":
		return ErrUnknown
	}
	p.setHealth(healthy, byHand, peers...)
	return nil
}

func parseAddress(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = serverName(s), strconv.Itoa(entity.DefaultTargetPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, ErrUnknown
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, ErrUnknown
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

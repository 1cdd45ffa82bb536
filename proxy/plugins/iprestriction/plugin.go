// Package iprestriction lets clients through by their address.
//
// The address is the one the gateway has found (see trusted_ips), never what a client says.
package iprestriction

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the ip-restriction plugin.
func Plugin() plugin.Plugin {
	addresses := schema.IPOrCIDR("")
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "ip-restriction", Priority: 990, Protocols: []string{"http", "https", "tcp", "tls", "grpc", "grpcs"}, Streams: true,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "allow", Type: schema.Array, Elem: &addresses, Description: "Addresses and ranges that may pass; all others may not."},
				{Name: "deny", Type: schema.Array, Elem: &addresses, Description: "Addresses and ranges that may not pass, even if allowed."},
				{Name: "status", Type: schema.Number, Check: errorStatus, Description: "The status of refused requests. Unset: 403."},
				{Name: "message", Type: schema.String, Description: "The message to refused requests. Unset: it names the address."},
			}},
			Checks: []schema.Check{schema.AtLeastOneOf{"config.allow", "config.deny"}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			return newInstance(c)
		}),
	}
}

// errorStatus refuses what Kong accepts and then fails on, with 500 instead of each refusal.
func errorStatus(v any) string {
	if f, _ := v.(float64); f < 400 || f > 599 || f != math.Trunc(f) {
		return "must be the status of an error, an integer from 400 to 599"
	}
	return ""
}

type config struct {
	Allow   []string `json:"allow"`
	Deny    []string `json:"deny"`
	Status  int      `json:"status"`
	Message string   `json:"message"`
}

type instance struct {
	allow, deny ranges
	all         bool // no list of who may pass
	status      int
	message     string
}

func newInstance(c *config) (*instance, error) {
	i := &instance{all: len(c.Allow) == 0, status: c.Status, message: c.Message}
	if i.status == 0 {
		i.status = 403
	}
	var err error
	if i.allow, err = newRanges(c.Allow); err != nil {
		return nil, fmt.Errorf("config.allow: %w", err)
	}
	if i.deny, err = newRanges(c.Deny); err != nil {
		return nil, fmt.Errorf("config.deny: %w", err)
	}
	return i, nil
}

var noAddress = plugin.Refuse(403, "Cannot identify the client IP address, unix domain sockets are not supported.", "")

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	ip := x.ClientIP.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return noAddress
	case i.deny.has(ip) || !i.all && !i.allow.has(ip):
		message := i.message
		if message == "" {
			message = "IP address not allowed: " + ip.String()
		}
		return plugin.Refuse(i.status, message, "")
	}
	return nil
}

// StreamAccess implements plugin.StreamAccessor.
func (i *instance) StreamAccess(x *exchange.Exchange) error { return i.Access(x) }

// ranges are addresses, in order and apart from each other, so that one binary search finds an address in any number of them.
type ranges []span

type span struct{ first, last netip.Addr }

func newRanges(list []string) (ranges, error) {
	all := make(ranges, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, err
			}
			p = netip.PrefixFrom(ip, ip.BitLen())
		}
		all = append(all, spanOf(p))
	}
	slices.SortFunc(all, func(a, b span) int { return a.first.Compare(b.first) })
	merged := all[:0]
	for _, s := range all {
		if n := len(merged); n > 0 && s.first.Compare(merged[n-1].last) <= 0 {
			if s.last.Compare(merged[n-1].last) > 0 {
				merged[n-1].last = s.last
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged, nil
}

// spanOf is what a range covers. IPv4 addresses in IPv6 form are IPv4 addresses.
func spanOf(p netip.Prefix) span {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	last := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	end, _ := netip.AddrFromSlice(last)
	return span{p.Addr(), end}
}

func (r ranges) has(ip netip.Addr) bool {
	n, exact := slices.BinarySearchFunc(r, ip, func(s span, ip netip.Addr) int { return s.first.Compare(ip) })
	return exact || n > 0 && ip.Compare(r[n-1].last) <= 0
}

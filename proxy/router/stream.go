package router

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"concord/fsm/entity"
)

// Protocols is a set of the protocols of stream routes.
type Protocols uint8

// The protocols of stream routes.
const (
	TCP Protocols = 1 << iota
	TLS
	TLSPassthrough
	UDP
)

// StreamProtocols are those of a route or plugin row; 0: it is not for streams.
func StreamProtocols(names []string) (p Protocols) {
	for _, n := range names {
		switch n {
		case "tcp":
			p |= TCP
		case "tls":
			p |= TLS
		case "tls_passthrough":
			p |= TLSPassthrough
		case "udp":
			p |= UDP
		}
	}
	return p
}

// StreamQuery is what a stream route can match on.
type StreamQuery struct {
	Protocols   Protocols      // any of them must be the route's
	SNI         string         // of the ClientHello; counts for TLS and TLSPassthrough only (Kong)
	Source      netip.AddrPort // the client, not an IPv4 address in IPv6 form
	Destination netip.AddrPort // where it connected to, likewise
}

// StreamRoute is a compiled stream route. It is immutable once it is in a router; Slot and Service are numbers of the caller's.
type StreamRoute struct {
	Entity        *entity.Route
	Slot, Service uint32
	Protocols     Protocols

	sources, destinations []address
	rank                  uint16 // see Kong's stream_get_priority: SNI or both ends, then the sources, then the destinations
	narrow                int    // bits of the widest ranges: of equal ranks the narrower comes first
	entries               []*streamEntry
}

// address is one element of sources or destinations; port 0 is any, an invalid range too.
type address struct {
	in   netip.Prefix
	port uint16
}

// streamEntry is a route under one SNI or one port: what is ranked and found.
type streamEntry struct {
	route *StreamRoute
	only  Protocols // those of the route's that it stands for
	tree  streamTree
	key   string
}

// streamTree says where an entry is found.
type streamTree uint8

const (
	sniPlain    streamTree = iota
	sniLeading             // "*.example.com", reversed
	sniTrailing            // "example.*"
	byPort                 // key: the destination's port in two bytes, "" for any
	streamTrees
)

// CompileStream prepares a stream route for the router. The error names the field that cannot be used.
func CompileStream(r *entity.Route) (*StreamRoute, error) {
	c := &StreamRoute{Entity: r, Protocols: StreamProtocols(r.Protocols)}
	var err error
	var sourceBits, destinationBits uint16
	if c.sources, sourceBits, err = compileAddresses(r.Sources); err != nil {
		return nil, fmt.Errorf("sources: %w", err)
	}
	if c.destinations, destinationBits, err = compileAddresses(r.Destinations); err != nil {
		return nil, fmt.Errorf("destinations: %w", err)
	}
	c.rank = sourceBits<<4 | destinationBits
	if len(r.SNIs) > 0 || len(r.Sources) > 0 && len(r.Destinations) > 0 {
		c.rank |= 1 << 8
	}
	c.narrow = narrowness(c.sources) + narrowness(c.destinations)

	plain := c.Protocols
	if len(r.SNIs) > 0 {
		plain &^= TLS | TLSPassthrough
		for _, s := range r.SNIs {
			p := parseHostPattern(s)
			c.entries = append(c.entries, &streamEntry{c, c.Protocols &^ plain, streamTree(p.kind), p.key})
		}
	}
	if plain != 0 {
		for _, key := range portKeys(c.destinations) {
			c.entries = append(c.entries, &streamEntry{c, plain, byPort, key})
		}
	}
	return c, nil
}

// Weights of what an address says, in Kong's order: an IP address before a port before a range.
const (
	addressRange = 1
	addressPort  = 4
	addressIP    = 8
)

func compileAddresses(list []entity.IPPort) (out []address, bits uint16, err error) {
	for _, e := range list {
		var a address
		if e.Port != nil {
			a.port = uint16(*e.Port)
			bits |= addressPort
		}
		switch {
		case e.IP == "":
		case strings.Contains(e.IP, "/"):
			if a.in, err = netip.ParsePrefix(e.IP); err != nil {
				return nil, 0, err
			}
			if ip := a.in.Addr(); ip.Is4In6() && a.in.Bits() >= 96 {
				a.in = netip.PrefixFrom(ip.Unmap(), a.in.Bits()-96)
			}
			a.in = a.in.Masked()
			bits |= addressRange
		default:
			ip, err := netip.ParseAddr(e.IP)
			if err != nil {
				return nil, 0, err
			}
			ip = ip.Unmap()
			a.in = netip.PrefixFrom(ip, ip.BitLen())
			bits |= addressIP
		}
		out = append(out, a)
	}
	return out, bits, nil
}

// narrowness is how many bits the widest range of a list fixes.
func narrowness(list []address) int {
	least := -1
	for _, a := range list {
		if n := max(0, a.in.Bits()); least < 0 || n < least {
			least = n
		}
	}
	return max(0, least)
}

// portKeys are where to look for a route with these destinations.
func portKeys(list []address) []string {
	var keys []string
	for _, a := range list {
		if a.port == 0 {
			return []string{""}
		}
		if k := portKey(a.port); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if keys == nil {
		return []string{""}
	}
	return keys
}

func portKey(port uint16) string { return string([]byte{byte(port >> 8), byte(port)}) }

func matchAddress(list []address, at netip.AddrPort) bool {
	if len(list) == 0 {
		return true
	}
	for _, a := range list {
		if (a.port == 0 || a.port == at.Port()) && (!a.in.IsValid() || a.in.Contains(at.Addr())) {
			return true
		}
	}
	return false
}

func (e *streamEntry) matches(q *StreamQuery) bool {
	return e.only&q.Protocols != 0 && matchAddress(e.route.sources, q.Source) && matchAddress(e.route.destinations, q.Destination)
}

// compare orders entries best first. What Kong leaves open is decided so: the narrower range, the more exact name, the older route.
func (e *streamEntry) compare(o *streamEntry) int {
	a, b := e.route, o.route
	if c := cmp.Or(cmp.Compare(b.rank, a.rank), b.narrow-a.narrow, int(e.tree)-int(o.tree)); c != 0 {
		return c
	}
	if e.tree != byPort && len(e.key) != len(o.key) {
		return len(o.key) - len(e.key)
	}
	return cmp.Or(cmp.Compare(a.Entity.CreatedAt, b.Entity.CreatedAt), strings.Compare(a.Entity.ID, b.Entity.ID), strings.Compare(e.key, o.key))
}

// Streams is an immutable set of stream routes; a StreamEdit makes the next one.
type Streams struct {
	trees [streamTrees]*node[streamLeaf]
}

// streamLeaf is the entries of one key, best first.
type streamLeaf struct {
	own     *owner
	entries []*streamEntry
}

// Find returns the best route for q, nil when there is none.
func (s *Streams) Find(q *StreamQuery) *StreamRoute {
	var best *streamEntry
	take := func(l *streamLeaf) {
		if l == nil {
			return
		}
		for _, e := range l.entries {
			if best != nil && e.compare(best) >= 0 {
				return
			}
			if e.matches(q) {
				best = e
				return
			}
		}
	}
	if name := strings.TrimSuffix(q.SNI, "."); q.Protocols&(TLS|TLSPassthrough) != 0 && name != "" && len(name) <= maxHost {
		var buf, rev [maxHost]byte
		for i := range len(name) {
			c := lower(name[i])
			buf[i], rev[len(name)-1-i] = c, c
		}
		name = unsafe.String(&buf[0], len(name))
		take(s.trees[sniPlain].get(name))
		wildcards := func(t *node[streamLeaf], name string) {
			for l := (*streamLeaf)(nil); t != nil; {
				if l, t, name = t.step(name); name != "" {
					take(l)
				}
			}
		}
		wildcards(s.trees[sniLeading], unsafe.String(&rev[0], len(name)))
		wildcards(s.trees[sniTrailing], name)
	}
	port := portKey(q.Destination.Port())
	for l, t := (*streamLeaf)(nil), s.trees[byPort]; t != nil; {
		l, t, port = t.step(port)
		take(l)
	}
	if best == nil {
		return nil
	}
	return best.route
}

// StreamEdit collects changes and builds the next Streams. It is for one goroutine.
type StreamEdit struct {
	s   Streams
	own *owner
}

// Edit starts from s; s itself never changes.
func (s *Streams) Edit() *StreamEdit { return &StreamEdit{s: *s, own: new(owner)} }

// Streams returns the edited set. The StreamEdit may be used further for the one after it.
func (e *StreamEdit) Streams() *Streams {
	e.own = new(owner) // what was built so far is now shared
	s := e.s
	return &s
}

// Add puts in a route; the same StreamRoute must not be added twice.
func (e *StreamEdit) Add(r *StreamRoute) {
	for _, en := range r.entries {
		e.apply(en, func(l streamLeaf) (streamLeaf, bool) {
			l = l.owned(e.own)
			i, _ := slices.BinarySearchFunc(l.entries, en, (*streamEntry).compare)
			l.entries = slices.Insert(l.entries, i, en)
			return l, true
		})
	}
}

// Remove takes out a route added before, by the same pointer.
func (e *StreamEdit) Remove(r *StreamRoute) {
	for _, en := range r.entries {
		e.apply(en, func(l streamLeaf) (streamLeaf, bool) {
			l = l.owned(e.own)
			l.entries = slices.DeleteFunc(l.entries, func(x *streamEntry) bool { return x == en })
			return l, len(l.entries) > 0
		})
	}
}

func (e *StreamEdit) apply(en *streamEntry, f change[streamLeaf]) {
	t := &e.s.trees[en.tree]
	*t = (*t).update(e.own, en.key, f)
}

func (l streamLeaf) owned(o *owner) streamLeaf {
	if l.own != o {
		l.entries, l.own = slices.Clone(l.entries), o
	}
	return l
}

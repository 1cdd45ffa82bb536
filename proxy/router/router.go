// Package router finds the route of a request with Kong's matching rules and precedence (the documented order: the
// number of kinds of criteria first, then their weights, regex_priority, prefix length, age).
//
// A Router is immutable; an Edit makes the next one and shares with the old all that did not change. The package
// knows no services and no plugins, and does not check protocols: Kong does that after the match.
package router

import (
	"slices"
	"strings"
	"unsafe"

	"concord/fsm/entity"
	"concord/proxy/exchange"
)

// Query is what a route can match on.
type Query struct {
	Method string
	Host   string // as received, with port
	Path   string // normalised, no query
	Header *exchange.Header
	TLS    bool
	SNI    string
}

// Match is the winning route with the path that made it win.
type Match struct {
	candidate
	matched int // bytes of the path that the index compared
}

// Route is what was put in. Most requests do without: what they need of it is in the Match.
func (m Match) Route() *Route { return m.entry.route }

// Router is an immutable set of routes.
type Router struct {
	hosts   [3]*node[hostPaths] // by hostKind
	any     *node[leaf]         // routes without hosts
	entries int
}

// hostPaths are the path trees of one host pattern, without and with a port.
type hostPaths struct {
	own   *owner
	any   *node[leaf]
	ports []portPaths
}

type portPaths struct {
	port string
	tree *node[leaf]
}

// leaf is the entries of one host and one path prefix: the best, mostly the only one, and the others behind it, best first.
type leaf struct {
	best   candidate
	others []candidate
	own    *owner // of others
}

// candidate is an entry with what a request needs of it and of its route. A leaf is a cache line, so that a request among many
// routes waits for it alone, and not for entry and route as well, one after the other.
type candidate struct {
	*entry
	Entity        *entity.Route
	Slot, Service uint32
	Traits
	certain bool // entry.indexed
}

func (e *entry) candidate() candidate {
	r := e.route
	return candidate{e, r.Entity, r.Slot, r.Service, r.Traits, e.indexed}
}

// Len is the number of routes' paths held.
func (r *Router) Len() int { return r.entries }

// Find returns the best route for q. It allocates nothing.
func (r *Router) Find(q *Query) (Match, bool) {
	s := search{q: q}
	s.hosts(r)
	s.paths(r.any)
	if s.best.entry == nil {
		return Match{}, false
	}
	return s.best, true
}

type search struct {
	q    *Query
	best Match
}

func (s *search) hosts(r *Router) {
	if r.hosts == [3]*node[hostPaths]{} {
		return
	}
	name, port := splitPort(s.q.Host)
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxHost {
		return
	}
	var buf, rev [maxHost]byte
	for i := range len(name) {
		c := lower(name[i])
		buf[i] = c
		rev[len(name)-1-i] = c
	}
	name = unsafe.String(&buf[0], len(name))

	s.host(r.hosts[plainHost].get(name), port)
	if port == "" {
		port = defaultPort(s.q.TLS)
	}
	s.wildcards(r.hosts[leadingHost], unsafe.String(&rev[0], len(name)), port)
	s.wildcards(r.hosts[trailingHost], name, port)
}

// wildcards stand for one byte at least.
func (s *search) wildcards(t *node[hostPaths], name, port string) {
	for h := (*hostPaths)(nil); t != nil; {
		if h, t, name = t.step(name); name != "" {
			s.host(h, port)
		}
	}
}

func defaultPort(tls bool) string {
	if tls {
		return "443"
	}
	return "80"
}

func (s *search) host(h *hostPaths, port string) {
	if h == nil {
		return
	}
	if port != "" {
		for i := range h.ports {
			if h.ports[i].port == port {
				s.paths(h.ports[i].tree)
			}
		}
	}
	s.paths(h.any)
}

func (s *search) paths(t *node[leaf]) {
	rest := s.q.Path
	for l := (*leaf)(nil); t != nil; {
		if l, t, rest = t.step(rest); l == nil {
			continue
		}
		over := s.try(&l.best, len(rest))
		for i := 0; i < len(l.others) && !over; i++ {
			over = s.try(&l.others[i], len(rest))
		}
	}
}

// try tells whether what stands behind c in its leaf cannot win any more. more is how many bytes of the path the leaf leaves.
func (s *search) try(c *candidate, more int) (over bool) {
	if s.best.entry != nil && c.compare(s.best.entry) >= 0 {
		return true
	}
	if over = c.certain || c.matchRest(s.q); over {
		s.best = Match{*c, len(s.q.Path) - more}
	}
	return over
}

// Edit collects changes and builds the next Router. It is for one goroutine.
type Edit struct {
	r   Router
	own *owner
}

// Edit starts from r; r itself never changes.
func (r *Router) Edit() *Edit { return &Edit{r: *r, own: new(owner)} }

// Router returns the edited router. The Edit may be used further for the one after it.
func (e *Edit) Router() *Router {
	e.own = new(owner) // what was built so far is now shared
	r := e.r
	return &r
}

// Add puts in a route, which stays what it is; the same Route must not be added twice.
func (e *Edit) Add(rt *Route) { e.apply(rt, leafAdd, 1) }

// Remove takes out a route added before, by the same pointer.
func (e *Edit) Remove(rt *Route) { e.apply(rt, leafRemove, -1) }

func (e *Edit) apply(rt *Route, op func(leaf, *owner, *entry) (leaf, bool), n int) {
	for _, en := range rt.entries {
		e.r.entries += n
		set := func(t *node[leaf]) *node[leaf] {
			return t.update(e.own, en.prefix, func(l leaf) (leaf, bool) { return op(l, e.own, en) })
		}
		if len(rt.hosts) == 0 {
			e.r.any = set(e.r.any)
		}
		for i, h := range rt.hosts {
			if slices.Contains(rt.hosts[:i], h) {
				continue
			}
			e.r.hosts[h.kind] = e.r.hosts[h.kind].update(e.own, h.key, func(paths hostPaths) (hostPaths, bool) {
				return paths.set(e.own, h.port, set)
			})
		}
	}
}

func (h hostPaths) set(o *owner, port string, set func(*node[leaf]) *node[leaf]) (hostPaths, bool) {
	if port == "" {
		h.any = set(h.any)
		return h, h.any != nil || len(h.ports) > 0
	}
	if h.own != o {
		h.ports, h.own = slices.Clone(h.ports), o
	}
	i, found := slices.BinarySearchFunc(h.ports, port, func(p portPaths, x string) int { return strings.Compare(p.port, x) })
	if !found {
		h.ports = slices.Insert(h.ports, i, portPaths{port: port})
	}
	if h.ports[i].tree = set(h.ports[i].tree); h.ports[i].tree == nil {
		h.ports = slices.Delete(h.ports, i, i+1)
	}
	return h, h.any != nil || len(h.ports) > 0
}

func (l leaf) owned(o *owner) leaf {
	if l.own != o {
		l.others, l.own = slices.Clone(l.others), o
	}
	return l
}

func leafAdd(l leaf, o *owner, e *entry) (leaf, bool) {
	c := e.candidate()
	if l.best.entry == nil {
		l.best = c
		return l, true
	}
	if c.compare(l.best.entry) < 0 {
		c, l.best = l.best, c
	}
	l = l.owned(o)
	i, _ := slices.BinarySearchFunc(l.others, c.entry, func(c candidate, e *entry) int { return c.compare(e) })
	l.others = slices.Insert(l.others, i, c)
	return l, true
}

func leafRemove(l leaf, o *owner, e *entry) (leaf, bool) {
	i := slices.IndexFunc(l.others, func(c candidate) bool { return c.entry == e })
	if l.best.entry == e {
		if len(l.others) == 0 {
			return leaf{}, false
		}
		i = 0
		l.best = l.others[i]
	}
	if i >= 0 {
		l = l.owned(o)
		l.others = slices.Delete(l.others, i, i+1)
	}
	return l, l.best.entry != nil
}

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

// leaf is the entries of one host and one path prefix, best first.
type leaf struct {
	own     *owner
	entries []candidate
	only    [1]candidate // where entries begins its life, and mostly ends it
}

// candidate is an entry with what a request needs of it and of its route. A leaf with one is a cache line, so that a request among many
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
	w := walk[hostPaths]{r.hosts[leadingHost], unsafe.String(&rev[0], len(name))}
	for h, more := w.next(); h != nil; h, more = w.next() {
		if more > 0 {
			s.host(h, port)
		}
	}
	w = walk[hostPaths]{r.hosts[trailingHost], name}
	for h, more := w.next(); h != nil; h, more = w.next() {
		if more > 0 {
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
	w := walk[leaf]{t, s.q.Path}
	for l, more := w.next(); l != nil; l, more = w.next() {
		for i := range l.entries {
			c := &l.entries[i]
			if s.best.entry != nil && c.compare(s.best.entry) >= 0 {
				break
			}
			if c.certain || c.matchRest(s.q) {
				s.best = Match{*c, len(s.q.Path) - more}
				break
			}
		}
	}
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

func (e *Edit) apply(rt *Route, op func(*leaf, *owner, *entry) *leaf, n int) {
	for _, en := range rt.entries {
		e.r.entries += n
		set := func(t *node[leaf]) *node[leaf] {
			return t.update(e.own, en.prefix, func(l *leaf) *leaf { return op(l, e.own, en) })
		}
		if len(rt.hosts) == 0 {
			e.r.any = set(e.r.any)
		}
		for i, h := range rt.hosts {
			if slices.Contains(rt.hosts[:i], h) {
				continue
			}
			e.r.hosts[h.kind] = e.r.hosts[h.kind].update(e.own, h.key, func(old *hostPaths) *hostPaths {
				return old.set(e.own, h.port, set)
			})
		}
	}
}

func (h *hostPaths) set(o *owner, port string, set func(*node[leaf]) *node[leaf]) *hostPaths {
	if h == nil {
		h = &hostPaths{own: o}
	} else if h.own != o {
		h = &hostPaths{own: o, any: h.any, ports: slices.Clone(h.ports)}
	}
	if port == "" {
		h.any = set(h.any)
	} else {
		i, found := slices.BinarySearchFunc(h.ports, port, func(p portPaths, x string) int { return strings.Compare(p.port, x) })
		if !found {
			h.ports = slices.Insert(h.ports, i, portPaths{port: port})
		}
		if h.ports[i].tree = set(h.ports[i].tree); h.ports[i].tree == nil {
			h.ports = slices.Delete(h.ports, i, i+1)
		}
	}
	if h.any == nil && len(h.ports) == 0 {
		return nil
	}
	return h
}

func (l *leaf) owned(o *owner) *leaf {
	if l != nil && l.own == o {
		return l
	}
	c := &leaf{own: o}
	c.entries = c.only[:0]
	if l != nil {
		c.entries = append(c.entries, l.entries...)
	}
	return c
}

func leafAdd(l *leaf, o *owner, e *entry) *leaf {
	l = l.owned(o)
	i, _ := slices.BinarySearchFunc(l.entries, e, func(c candidate, e *entry) int { return c.compare(e) })
	l.entries = slices.Insert(l.entries, i, e.candidate())
	return l
}

func leafRemove(l *leaf, o *owner, e *entry) *leaf {
	if l == nil {
		return nil
	}
	i := slices.IndexFunc(l.entries, func(c candidate) bool { return c.entry == e })
	if i < 0 {
		return l
	}
	if len(l.entries) == 1 {
		return nil
	}
	l = l.owned(o)
	l.entries = slices.Delete(l.entries, i, i+1)
	return l
}

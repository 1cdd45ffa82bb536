package router

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"concord/fsm/entity"
	"concord/proxy/exchange"
)

// Weights of the kinds of criteria: Kong compares first how many kinds a route uses, then the sum of these.
const (
	weightHost   = 64
	weightHeader = 32
	weightPath   = 16
	weightMethod = 8
	weightSNI    = 4
)

// Finer weights inside one category.
const (
	subWildcardPort = 4 // a wildcard host with a port
	subPlainHosts   = 2 // hosts, none of them a wildcard
	subRegexPath    = 1
)

// Route is a compiled route. It is immutable once it is in a router; Slot and Service are numbers of the caller's.
type Route struct {
	Entity        *entity.Route
	Slot, Service uint32
	Traits

	hosts   []hostPattern
	headers []headerRule
	snis    []hostPattern
	entries []*entry
}

// Traits of a route that each of its requests asks for.
type Traits struct {
	StripPath, PreserveHost bool // the entity's
	Plain                   bool // of its protocols http is one, and grpc and grpcs are not: any request that matches may come
}

// headerRule is satisfied when any value of the header equals one of values, or matches re. Both ignore case.
type headerRule struct {
	name   string
	values []string
	re     *regexp.Regexp
}

// entry is a route with one of its paths: what is ranked and matched.
type entry struct {
	route    *Route
	rank     uint32 // number of kinds, weights, sub-weights, number of headers
	indexed  bool   // there is nothing that the index does not check
	priority int    // regex_priority, of regex paths only
	length   int    // of the prefix; 0 for a regex (Kong)
	prefix   string // literal path prefix; of a regex what every match begins with
	path     string // as configured
	re       *regexp.Regexp
}

// Compile prepares a route for the router. The error names the field that cannot be used.
func Compile(r *entity.Route) (*Route, error) {
	c := &Route{Entity: r, Traits: Traits{StripPath: r.StripPath, PreserveHost: r.PreserveHost}}
	c.Plain = slices.Contains(r.Protocols, "http") && !slices.Contains(r.Protocols, "grpc") && !slices.Contains(r.Protocols, "grpcs")
	kinds, weight, sub := uint32(0), uint32(0), uint32(0)
	use := func(w uint32) { kinds++; weight += w }

	if len(r.Hosts) > 0 {
		use(weightHost)
		sub |= subPlainHosts
		for _, h := range r.Hosts {
			p := parseHostPattern(h)
			if p.kind != plainHost {
				sub &^= subPlainHosts
				if p.port != "" {
					sub |= subWildcardPort
				}
			}
			c.hosts = append(c.hosts, p)
		}
	}
	if len(r.Headers) > 0 {
		use(weightHeader)
		for name, values := range r.Headers {
			rule := headerRule{name: name, values: values}
			if len(values) == 1 && strings.HasPrefix(values[0], "~*") {
				re, err := regexp.Compile("(?i)" + values[0][2:])
				if err != nil {
					return nil, fmt.Errorf("headers.%s: invalid regex %q: %w", name, values[0], err)
				}
				rule.re = re
			}
			c.headers = append(c.headers, rule)
		}
	}
	if len(r.Methods) > 0 {
		use(weightMethod)
	}
	if len(r.SNIs) > 0 {
		use(weightSNI)
		for _, s := range r.SNIs {
			c.snis = append(c.snis, parseHostPattern(s))
		}
	}
	paths := r.Paths
	if len(paths) > 0 {
		use(weightPath)
	} else {
		paths = []string{""}
	}
	if kinds == 0 {
		return nil, errors.New("no criteria: set one of hosts, headers, paths, methods, snis")
	}

	for _, p := range paths {
		e := &entry{route: c, path: p, prefix: p, length: len(p)}
		s := sub
		if pattern, ok := strings.CutPrefix(p, "~"); ok {
			free, err := regexp.Compile(pattern)
			if err == nil {
				e.re, err = regexp.Compile("^(?:" + pattern + ")")
			}
			if err != nil {
				return nil, fmt.Errorf("paths: invalid regex %q: %w", p, err)
			}
			e.prefix, _ = free.LiteralPrefix()
			e.length = 0
			e.priority = r.RegexPriority
			s |= subRegexPath
		}
		e.rank = kinds<<26 | weight<<19 | s<<16 | min(uint32(len(c.headers)), 1<<16-1)
		e.indexed = e.re == nil && len(r.Methods)+len(c.headers)+len(c.snis) == 0
		c.entries = append(c.entries, e)
	}
	return c, nil
}

// compare orders entries best first. It is total: no two entries of different routes are equal.
func (e *entry) compare(o *entry) int {
	if e.rank != o.rank {
		return cmp.Compare(o.rank, e.rank)
	}
	if e.priority != o.priority {
		return cmp.Compare(o.priority, e.priority)
	}
	if e.length != o.length {
		return cmp.Compare(o.length, e.length)
	}
	a, b := e.route.Entity, o.route.Entity
	if a.CreatedAt != b.CreatedAt {
		return cmp.Compare(a.CreatedAt, b.CreatedAt)
	}
	if c := strings.Compare(a.ID, b.ID); c != 0 {
		return c
	}
	return strings.Compare(e.path, o.path)
}

// matchRest checks what the index does not: regex, method, headers, SNI.
func (e *entry) matchRest(q *Query) bool {
	if e.indexed {
		return true
	}
	if e.re != nil && !e.re.MatchString(q.Path) {
		return false
	}
	r := e.route
	return matchMethod(r.Entity.Methods, q.Method) && matchHeaders(r.headers, q.Header) && matchSNI(r.snis, q)
}

// matchMethod compares exactly (RFC 9110 §9.1: methods are case-sensitive).
func matchMethod(methods []string, m string) bool {
	if len(methods) == 0 {
		return true
	}
	for _, x := range methods {
		if x == m {
			return true
		}
	}
	return false
}

func matchHeaders(rules []headerRule, h *exchange.Header) bool {
	for i := range rules {
		if !rules[i].match(h) {
			return false
		}
	}
	return true
}

func (r *headerRule) match(h *exchange.Header) bool {
	if h == nil {
		return false
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		if len(f.Name) != len(r.name) || !strings.EqualFold(f.Name, r.name) {
			continue
		}
		for _, v := range r.values {
			if strings.EqualFold(f.Value, v) {
				return true
			}
		}
		if r.re != nil && r.re.MatchString(f.Value) {
			return true
		}
	}
	return false
}

// matchSNI is always true on plain connections (Kong).
func matchSNI(snis []hostPattern, q *Query) bool {
	if len(snis) == 0 || !q.TLS {
		return true
	}
	for _, p := range snis {
		switch p.kind {
		case plainHost:
			if strings.EqualFold(p.key, q.SNI) {
				return true
			}
		case leadingHost:
			if hasSuffixReversed(q.SNI, p.key) {
				return true
			}
		case trailingHost:
			if n := len(p.key); len(q.SNI) > n && strings.EqualFold(q.SNI[:n], p.key) {
				return true
			}
		}
	}
	return false
}

// hasSuffixReversed reports whether s ends with the reverse of key, ignoring case, and is longer.
func hasSuffixReversed(s, key string) bool {
	if len(s) <= len(key) {
		return false
	}
	for i := range len(key) {
		if lower(s[len(s)-1-i]) != key[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

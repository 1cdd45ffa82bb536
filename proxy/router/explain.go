package router

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Check is one of a route's criteria, held against a request.
type Check struct {
	Criterion string // hosts, paths, methods, headers, snis
	OK        bool
	Why       string // what was compared
}

// Verdict is what became of a route with one of its paths. The checks are those of the criteria that the route has.
type Verdict struct {
	Route   *Route
	Path    string // as configured; "" when the route has no paths
	Matched bool
	Checks  []Check
	Lost    string // of one that matched: why another one was better; "" of the winner

	entry *entry
}

// Explain holds every route against q, the way Find decides but one after the other: it is for people, not for traffic. Verdicts are ordered:
// the winner first, then the others that matched, then those that did not, least wrong first; at most limit of these two kinds each.
func (r *Router) Explain(q *Query, limit int) []Verdict {
	var matched, near []Verdict
	byRank := func(a, b Verdict) int { return a.entry.compare(b.entry) }
	byFaults := func(a, b Verdict) int {
		return cmp.Or(cmp.Compare(a.faults(), b.faults()), cmp.Compare(commonPrefix(b.entry.prefix, q.Path), commonPrefix(a.entry.prefix, q.Path)), byRank(a, b))
	}
	keep := func(list []Verdict, v Verdict, order func(a, b Verdict) int) []Verdict {
		i, _ := slices.BinarySearchFunc(list, v, order)
		if i > limit {
			return list
		}
		list = slices.Insert(list, i, v)
		return list[:min(len(list), limit+1)]
	}
	seen := map[*entry]bool{}
	look := func(l *leaf) {
		for i := -1; i < len(l.others); i++ {
			e := l.best.entry
			if i >= 0 {
				e = l.others[i].entry
			}
			if seen[e] {
				continue // it stands under each of its hosts
			}
			seen[e] = true
			v := e.explain(q)
			if v.Matched {
				matched = keep(matched, v, byRank)
			} else {
				near = keep(near, v, byFaults)
			}
		}
	}
	for _, hosts := range r.hosts {
		hosts.each(func(h *hostPaths) {
			h.any.each(look)
			for _, p := range h.ports {
				p.tree.each(look)
			}
		})
	}
	r.any.each(look)
	for i := range matched {
		if i > 0 {
			matched[i].Lost = matched[0].entry.better(matched[i].entry)
		}
	}
	return append(matched, near[:min(len(near), limit)]...)
}

// each visits all values.
func (n *node[V]) each(f func(*V)) {
	if n == nil {
		return
	}
	if n.has {
		f(&n.val)
	}
	for i := range n.kids() {
		n.kids()[i].each(f)
	}
}

// faults is how many criteria fail.
func (v Verdict) faults() (n int) {
	for _, c := range v.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

func (e *entry) explain(q *Query) Verdict {
	r := e.route
	v := Verdict{Route: r, Path: e.path, Matched: true, entry: e}
	add := func(criterion string, ok bool, format string, args ...any) {
		v.Matched = v.Matched && ok
		v.Checks = append(v.Checks, Check{criterion, ok, fmt.Sprintf(format, args...)})
	}
	if len(r.hosts) > 0 {
		add("hosts", r.matchHost(q), "%q, wanted %s", q.Host, strings.Join(r.Entity.Hosts, ", "))
	}
	switch {
	case e.re != nil:
		add("paths", e.re.MatchString(q.Path), "%q, wanted what begins with the regex %s", q.Path, e.path[1:])
	case e.path != "":
		add("paths", strings.HasPrefix(q.Path, e.prefix), "%q, wanted the prefix %s", q.Path, e.prefix)
	}
	if list := r.Entity.Methods; len(list) > 0 {
		add("methods", matchMethod(list, q.Method), "%s, wanted %s", q.Method, strings.Join(list, ", "))
	}
	for _, h := range slices.SortedFunc(slices.Values(r.headers), func(a, b headerRule) int { return strings.Compare(a.name, b.name) }) {
		got := "absent"
		if q.Header != nil && q.Header.Get(h.name) != "" {
			got = fmt.Sprintf("%q", q.Header.Get(h.name))
		}
		add("headers", h.match(q.Header), "%s is %s, wanted %s", h.name, got, strings.Join(h.values, ", "))
	}
	switch {
	case len(r.snis) == 0:
	case !q.TLS:
		add("snis", true, "the connection is not TLS, where snis do not count")
	default:
		add("snis", matchSNI(r.snis, q), "%q, wanted %s", q.SNI, strings.Join(r.Entity.SNIs, ", "))
	}
	return v
}

// matchHost is what the index does with a route's hosts.
func (r *Route) matchHost(q *Query) bool {
	name, port := splitPort(q.Host)
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || len(name) > maxHost {
		return false
	}
	wild := port
	if wild == "" {
		wild = defaultPort(q.TLS)
	}
	return slices.ContainsFunc(r.hosts, func(p hostPattern) bool {
		switch p.kind {
		case plainHost:
			return p.key == name && (p.port == "" || p.port == port)
		case leadingHost:
			return (p.port == "" || p.port == wild) && hasSuffixReversed(name, p.key)
		}
		return (p.port == "" || p.port == wild) && len(name) > len(p.key) && strings.HasPrefix(name, p.key)
	})
}

// better tells why e goes before o, in the order in which compare decides.
func (e *entry) better(o *entry) string {
	type rule struct {
		a, b uint32
		why  string
	}
	for _, r := range []rule{
		{e.rank >> 26, o.rank >> 26, "the winner has more kinds of criteria (%d, this one %d)"},
		{e.rank >> 19 & 0x7f, o.rank >> 19 & 0x7f, "the winner's kinds of criteria weigh more: hosts, headers, paths, methods, snis in this order"},
		{e.rank >> 16 & subWildcardPort, o.rank >> 16 & subWildcardPort, "the winner's wildcard host has a port"},
		{e.rank >> 16 & subPlainHosts, o.rank >> 16 & subPlainHosts, "the winner's hosts are plain, without a wildcard"},
		{e.rank >> 16 & subRegexPath, o.rank >> 16 & subRegexPath, "the winner's path is a regex, which goes before a prefix"},
		{e.rank & 0xffff, o.rank & 0xffff, "the winner asks for more headers (%d, this one %d)"},
	} {
		if r.a != r.b {
			if strings.Contains(r.why, "%d") {
				return fmt.Sprintf(r.why, r.a, r.b)
			}
			return r.why
		}
	}
	switch a, b := e.route.Entity, o.route.Entity; {
	case e.priority != o.priority:
		return fmt.Sprintf("the winner has the higher regex_priority (%d, this one %d)", e.priority, o.priority)
	case e.length != o.length:
		return fmt.Sprintf("the winner's path is longer (%d bytes, this one %d)", e.length, o.length)
	case e.route == o.route:
		return "it is another path of the winner"
	case a.CreatedAt != b.CreatedAt:
		return "all else is equal, and the winner is older"
	}
	return "all else is equal, and the winner's id comes first"
}

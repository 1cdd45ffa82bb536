package router

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"concord/fsm/entity"
	"concord/proxy/exchange"
	"concord/test/harness"
)

// linear is the router as Kong's prose describes it: try all entries in order, each criterion by a plain rule.
func linear(routes []*Route, q *Query) (id, path string) {
	var all []*entry
	for _, r := range routes {
		all = append(all, r.entries...)
	}
	slices.SortFunc(all, (*entry).compare)
	for _, e := range all {
		r := e.route.Entity
		if linearHost(r.Hosts, q) && linearPath(e.path, q.Path) && linearHeaders(r.Headers, q.Header) &&
			(len(r.Methods) == 0 || slices.Contains(r.Methods, q.Method)) &&
			(len(r.SNIs) == 0 || !q.TLS || slices.Contains(r.SNIs, q.SNI)) {
			return r.ID, e.path
		}
	}
	return "", ""
}

func linearHost(hosts []string, q *Query) bool {
	if len(hosts) == 0 {
		return true
	}
	req := strings.ToLower(q.Host)
	name, _, hasPort := strings.Cut(req, ":")
	full := req
	if !hasPort {
		full = name + ":" + map[bool]string{true: "443", false: "80"}[q.TLS]
	}
	for _, h := range hosts {
		h = strings.ToLower(h)
		if !strings.Contains(h, "*") {
			if h == req || h == name {
				return true
			}
			continue
		}
		re := strings.ReplaceAll(regexp.QuoteMeta(h), `\*`, `.+`)
		if !strings.Contains(h, ":") {
			re += `(?::\d+)?`
		}
		if regexp.MustCompile("^" + re + "$").MatchString(full) {
			return true
		}
	}
	return false
}

func linearPath(path, req string) bool {
	if p, ok := strings.CutPrefix(path, "~"); ok {
		return regexp.MustCompile(`\A(?:` + p + `)`).MatchString(req)
	}
	return strings.HasPrefix(req, path)
}

func linearHeaders(want map[string][]string, h *exchange.Header) bool {
	for name, values := range want {
		ok := false
		for _, f := range h.Fields {
			ok = ok || strings.EqualFold(f.Name, name) && slices.Contains(values, strings.ToLower(f.Value))
		}
		if !ok {
			return false
		}
	}
	return true
}

var (
	someHosts = []string{"a.com", "b.a.com", "A.com", "a.com:80", "a.com:81", "*.a.com", "*.com", "*.a.com:80", "*.a.com:443", "a.*", "b.a.*", "a.*:81", "*.a.com:81"}
	somePaths = []string{"/", "/a", "/ab", "/abc", "/a/", "/a/b", "/b", "~/a", "~/a/?b", `~/[ab]+/c`, "~/ab?c", "~(?i)/A", "~/a|/b", "/a/b/c/d", "/bcd"}
	reqHosts  = []string{"", "a.com", "A.CoM", "b.a.com", "c.b.a.com", "a.com:80", "a.com:81", "b.a.com:81", "b.a.com:443", "a.org", "b.a.org:81", "com"}
	reqPaths  = []string{"/", "/a", "/ab", "/abc", "/abcd", "/a/b", "/a/b/c/d/e", "/b", "/b/c", "/A/b", "/aab/c", "/bcde", "/z", "*"}
)

func drawRoute(t *rapid.T, id int) *entity.Route {
	sub := func(name string, from []string, n int) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, n, rapid.ID[string]).Draw(t, name)
	}
	r := &entity.Route{ID: fmt.Sprintf("%04d", id), CreatedAt: float64(rapid.IntRange(0, 2).Draw(t, "created"))}
	r.Hosts = sub("hosts", someHosts, 2)
	r.Paths = sub("paths", somePaths, 3)
	r.Methods = sub("methods", []string{"GET", "POST"}, 1)
	r.SNIs = sub("snis", []string{"s.com", "t.com"}, 1)
	for _, h := range sub("headers", []string{"x-a", "x-b"}, 2) {
		header(h, sub("values", []string{"1", "2"}, 2)...)(r)
	}
	r.RegexPriority = rapid.IntRange(0, 1).Draw(t, "priority")
	if len(r.Hosts)+len(r.Paths)+len(r.Methods)+len(r.SNIs)+len(r.Headers) == 0 {
		r.Paths = []string{"/"}
	}
	return r
}

func drawQuery(t *rapid.T) *Query {
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	q := &Query{
		Method: pick("method", "GET", "POST", "PUT"),
		Host:   pick("host", reqHosts...),
		Path:   pick("path", reqPaths...),
		TLS:    rapid.Bool().Draw(t, "tls"),
		Header: &exchange.Header{},
	}
	if q.TLS {
		q.SNI = pick("sni", "", "s.com", "t.com")
	}
	for range rapid.IntRange(0, 2).Draw(t, "n") {
		q.Header.Fields = append(q.Header.Fields, exchange.Field{Name: pick("name", "X-A", "x-b"), Value: pick("value", "1", "2", "3")})
	}
	return q
}

// The index finds what a linear search finds, after any sequence of additions and removals, and the incremental
// router is the same structure as one built at once.
func TestIndexEqualsLinearAndIncrementalEqualsFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &Router{}
		edit := r.Edit()
		var live []*Route
		var versions []*Router
		var lives [][]*Route
		for i := range rapid.IntRange(1, 25).Draw(t, "steps") {
			if len(live) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				k := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				edit.Remove(live[k])
				live = slices.Delete(slices.Clone(live), k, k+1)
			} else {
				c, err := Compile(drawRoute(t, i))
				if err != nil {
					t.Fatal(err)
				}
				edit.Add(c)
				live = append(slices.Clone(live), c)
			}
			if rapid.Bool().Draw(t, "publish") {
				versions, lives = append(versions, edit.Router()), append(lives, live)
			}
		}
		versions, lives = append(versions, edit.Router()), append(lives, live)

		for v := range versions { // old versions are still what they were
			full := new(Router).Edit()
			for _, c := range lives[v] {
				full.Add(c)
			}
			if !reflect.DeepEqual(dump(versions[v]), dump(full.Router())) {
				t.Fatalf("version %d differs from a full build:\n%v\n%v", v, dump(versions[v]), dump(full.Router()))
			}
			for range 5 {
				q := drawQuery(t)
				id, path := linear(lives[v], q)
				m, ok := versions[v].Find(q)
				if ok != (id != "") || ok && (m.Entity.ID != id || m.entry.path != path) {
					t.Fatalf("%+v: indexed %+v %t, linear %s %s", q, m.entry, ok, id, path)
				}
				verdicts := versions[v].Explain(q, 100)
				if explained := len(verdicts) > 0 && verdicts[0].Matched; explained != ok || ok && verdicts[0].entry != m.entry || len(verdicts) != versions[v].Len() {
					t.Fatalf("%+v: indexed %+v %t, explained %+v", q, m.entry, ok, verdicts)
				}
			}
		}
	})
}

// dump lists the structure without ownership marks.
func dump(r *Router) []string {
	var out []string
	var paths func(prefix string, n *node[leaf])
	paths = func(prefix string, n *node[leaf]) {
		if n == nil {
			return
		}
		s := prefix + "|" + n.label() + "[" + n.firsts() + "]"
		if n.has {
			for _, e := range append([]candidate{n.val.best}, n.val.others...) {
				s += " " + e.route.Entity.ID + e.path
			}
		}
		out = append(out, s)
		for i := range n.kids() {
			paths(prefix+"|"+n.label(), &n.kids()[i])
		}
	}
	var names func(prefix string, n *node[hostPaths])
	names = func(prefix string, n *node[hostPaths]) {
		if n == nil {
			return
		}
		s := prefix + "." + n.label()
		out = append(out, s+"["+n.firsts()+"]")
		if n.has {
			paths(s+" any", n.val.any)
			for _, p := range n.val.ports {
				paths(s+" "+p.port, p.tree)
			}
		}
		for i := range n.kids() {
			names(s, &n.kids()[i])
		}
	}
	for i := range r.hosts {
		names(fmt.Sprint(i), r.hosts[i])
	}
	paths("none", r.any)
	return append(out, fmt.Sprint(r.entries))
}

func manyRoutes(n int) []*entity.Route {
	rs := make([]*entity.Route, n)
	for i := range rs {
		rs[i] = rt(fmt.Sprintf("%08d", i), paths(fmt.Sprintf("/api/v%d/resource%d", i%10, i)))
		if i%4 == 0 {
			rs[i].Hosts = []string{fmt.Sprintf("host%d.example.com", i)}
		}
	}
	return rs
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rs := manyRoutes(n)
			r := build(b, rs...)
			qs := make([]*Query, 1024)
			for i := range qs {
				x := rs[(i*7919)%n]
				h := "other.example.com"
				if len(x.Hosts) > 0 {
					h = x.Hosts[0]
				}
				qs[i] = req(h, x.Paths[0]+"/more", "Accept", "*/*")
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, ok := r.Find(qs[i&1023]); !ok {
					b.Fatal("not found")
				}
				i++
			}
		})
	}
}

func BenchmarkChangeOneOf100000(b *testing.B) {
	rs := manyRoutes(100_000)
	r := build(b, rs...)
	one, err := Compile(rt("one", hosts("host5000.example.com"), paths("/api/v3/resource5")))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		e := r.Edit()
		e.Add(one)
		r = e.Router()
		e = r.Edit()
		e.Remove(one)
		r = e.Router()
	}
	_ = r
}

func BenchmarkBuild100000(b *testing.B) {
	rs := manyRoutes(100_000)
	b.ReportAllocs()
	for b.Loop() {
		build(b, rs...)
	}
}

func TestFindAllocatesNothing(t *testing.T) {
	r := build(t, rt("a", hosts("*.example.com", "b.com"), paths("/a", "~/b/[0-9]+"), methods("GET"), header("x-a", "1")))
	for _, q := range []*Query{req("x.EXAMPLE.com:80", "/a/b", "X-A", "1"), req("b.com", "/b/12", "X-A", "1"), req("b.com", "/zz")} {
		harness.NoAllocs(t, q.Host+q.Path, func() { r.Find(q) })
	}
}

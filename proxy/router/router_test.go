package router

import (
	"fmt"
	"testing"
	"unsafe"

	"concord/fsm/entity"
	"concord/proxy/exchange"
)

// rt is a short way to write a route.
func rt(id string, set ...func(*entity.Route)) *entity.Route {
	r := &entity.Route{ID: id, Protocols: []string{"http", "https"}, StripPath: true}
	for _, f := range set {
		f(r)
	}
	return r
}

type opt = func(*entity.Route)

func hosts(v ...string) opt   { return func(r *entity.Route) { r.Hosts = v } }
func paths(v ...string) opt   { return func(r *entity.Route) { r.Paths = v } }
func methods(v ...string) opt { return func(r *entity.Route) { r.Methods = v } }
func snis(v ...string) opt    { return func(r *entity.Route) { r.SNIs = v } }
func created(t float64) opt   { return func(r *entity.Route) { r.CreatedAt = t } }
func priority(p int) opt      { return func(r *entity.Route) { r.RegexPriority = p } }
func header(name string, v ...string) opt {
	return func(r *entity.Route) {
		if r.Headers == nil {
			r.Headers = map[string][]string{}
		}
		r.Headers[name] = v
	}
}

// TestSizes: what a look-up waits for are cache lines.
func TestSizes(t *testing.T) {
	var n node[leaf]
	if at, size := unsafe.Offsetof(n.val), unsafe.Sizeof(n); at != 64 || size != 128 {
		t.Errorf("a node has %d bytes, its leaf begins at %d", size, at)
	}
}

func build(t testing.TB, routes ...*entity.Route) *Router {
	t.Helper()
	e := new(Router).Edit()
	for _, r := range routes {
		c, err := Compile(r)
		if err != nil {
			t.Fatalf("route %s: %v", r.ID, err)
		}
		e.Add(c)
	}
	return e.Router()
}

// req is a request: "GET host/path" with optional headers.
func req(host, path string, h ...string) *Query {
	q := &Query{Method: "GET", Host: host, Path: path, Header: &exchange.Header{}}
	for i := 0; i < len(h); i += 2 {
		q.Header.Fields = append(q.Header.Fields, exchange.Field{Name: h[i], Value: h[i+1]})
	}
	return q
}

func with(q *Query, f func(*Query)) *Query { f(q); return q }

func TestFind(t *testing.T) {
	tls := func(sni string) func(*Query) { return func(q *Query) { q.TLS, q.SNI = true, sni } }
	method := func(m string) func(*Query) { return func(q *Query) { q.Method = m } }
	type routes = []*entity.Route
	for _, c := range []struct {
		name   string
		routes routes
		q      *Query
		want   string // id of the winner, "" for none
	}{
		// Kong's precedence vectors.
		{"host beats path", routes{rt("path", paths("/a")), rt("host", hosts("example.com"))}, req("example.com", "/a"), "host"},
		{"wildcard host beats path", routes{rt("path", paths("/a")), rt("wild", hosts("*.example.com"))}, req("x.example.com", "/a"), "wild"},
		{"header beats path", routes{rt("path", paths("/a")), rt("header", header("x-a", "1"))}, req("h", "/a", "x-a", "1"), "header"},
		{"path beats method", routes{rt("method", methods("GET")), rt("path", paths("/a"))}, req("h", "/a"), "path"},
		{"two kinds beat a longer path", routes{rt("long", paths("/a/b/c")), rt("both", hosts("e.com"), paths("/"))}, req("e.com", "/a/b/c"), "both"},
		{"regex beats prefixes", routes{rt("a", paths("/a")), rt("ab", paths("/a/b")), rt("re", paths("~/a/b"))}, req("h", "/a/b/c"), "re"},
		{"regex_priority", routes{rt("1", paths("~/a"), priority(1)), rt("5", paths("~/a"), priority(5))}, req("h", "/a"), "5"},
		{"regex_priority is for regexes only", routes{rt("young", paths("/a"), priority(9), created(2)), rt("old", paths("/a"), created(1))}, req("h", "/a"), "old"},
		{"older first", routes{rt("9", paths("/a"), created(9)), rt("1", paths("/a"), created(1))}, req("h", "/a"), "1"},
		{"same age: id", routes{rt("b", paths("/a")), rt("a", paths("/a"))}, req("h", "/a"), "a"},
		{"two headers beat one", routes{rt("one", header("x-a", "1")), rt("two", header("x-a", "1"), header("x-b", "2"))}, req("h", "/", "x-a", "1", "x-b", "2"), "two"},
		{"wildcard does not match the bare domain", routes{rt("w", hosts("*.example.com"))}, req("example.com", "/"), ""},
		{"wildcard matches several labels", routes{rt("w", hosts("*.example.com"))}, req("a.b.example.com", "/"), "w"},
		{"prefix ignores segments", routes{rt("rou", paths("/rou"))}, req("h", "/route"), "rou"},
		{"regex with capture", routes{rt("u", paths(`~/u/(?<id>\d+)`))}, req("h", "/u/12/x"), "u"},
		{"sni is not checked on plain http", routes{rt("s", snis("a.com"), paths("/"))}, req("h", "/"), "s"},
		{"sni differs", routes{rt("s", snis("a.com"), paths("/"))}, with(req("h", "/"), tls("b.com")), ""},
		{"header regex ignores case", routes{rt("v", header("x-a", "~*^v[0-9]+$"))}, req("h", "/", "x-a", "V12"), "v"},
		{"GET does not match HEAD", routes{rt("m", methods("GET"))}, with(req("h", "/"), method("HEAD")), ""},

		// Hosts.
		{"host ignores case, port and trailing dot", routes{rt("h", hosts("api.example.com"))}, req("API.Example.COM.:8000", "/"), "h"},
		{"configured host in capitals", routes{rt("h", hosts("API.example.com"))}, req("api.example.com", "/"), "h"},
		{"host with port needs the port", routes{rt("h", hosts("e.com:8080"))}, req("e.com", "/"), ""},
		{"host with port", routes{rt("h", hosts("e.com:8080"))}, req("e.com:8080", "/"), "h"},
		{"plain host with the default port needs it spelled out", routes{rt("h", hosts("e.com:80"))}, req("e.com", "/"), ""},
		{"wildcard with the default port does not", routes{rt("h", hosts("*.e.com:80"))}, req("a.e.com", "/"), "h"},
		{"wildcard with the https port", routes{rt("h", hosts("*.e.com:443"))}, with(req("a.e.com", "/"), tls("")), "h"},
		{"wildcard with another port", routes{rt("h", hosts("*.e.com:81"))}, req("a.e.com", "/"), ""},
		{"wildcard with port beats wildcard", routes{rt("w", hosts("*.e.com")), rt("p", hosts("*.e.com:81"))}, req("a.e.com:81", "/"), "p"},
		{"plain beats wildcard", routes{rt("w", hosts("*.e.com")), rt("p", hosts("a.e.com"))}, req("a.e.com", "/"), "p"},
		{"trailing wildcard", routes{rt("w", hosts("example.*"))}, req("example.co.uk:8000", "/"), "w"},
		{"trailing wildcard needs something", routes{rt("w", hosts("example.*"))}, req("example.", "/"), ""},
		{"one of several hosts", routes{rt("w", hosts("a.com", "b.com"))}, req("b.com", "/"), "w"},
		{"one plain and one wildcard host count as wildcard", routes{rt("a", hosts("x.com", "*.y.com")), rt("b", hosts("x.com"))}, req("x.com", "/"), "b"},
		{"IPv6 literal", routes{rt("h", hosts("[::1]"))}, req("[::1]:8000", "/"), "h"},
		{"no host in the request", routes{rt("h", hosts("a.com"))}, req("", "/"), ""},
		{"a host too long for DNS", routes{rt("h", hosts("*.com")), rt("p", paths("/"))}, req(fmt.Sprintf("%0300d.com", 0), "/"), "p"},
		{"host not a host", routes{rt("h", hosts("a.com")), rt("p", paths("/"))}, req("bad host", "/"), "p"},

		// Paths.
		{"path is case-sensitive", routes{rt("p", paths("/a"))}, req("h", "/A"), ""},
		{"longest prefix", routes{rt("a", paths("/a")), rt("ab", paths("/a/b"))}, req("h", "/a/bc"), "ab"},
		{"regex is anchored at the start", routes{rt("p", paths("~/b"))}, req("h", "/a/b"), ""},
		{"regex is not anchored at the end", routes{rt("p", paths("~/a$|/b"))}, req("h", "/bc"), "p"},
		{"a newline is not matched by a dot", routes{rt("p", paths("~/a.c$"))}, req("h", "/a\nc"), ""},
		{"regex whose literal prefix is shared", routes{rt("p", paths(`~/api/v\d/x`)), rt("q", paths(`~/api/w\d`))}, req("h", "/api/w1"), "q"},
		{"case-insensitive regex", routes{rt("p", paths(`~(?i)/API/x`))}, req("h", "/api/X"), "p"},
		{"second path of a route", routes{rt("p", paths("/x", "/y"))}, req("h", "/y/z"), "p"},
		{"each path ranks alone", routes{rt("p", paths("/", "/very/long")), rt("q", paths("/mid"))}, req("h", "/mid"), "q"},

		// Methods, headers, SNI.
		{"method is case-sensitive", routes{rt("m", methods("GET"))}, with(req("h", "/"), method("get")), ""},
		{"override header is no method", routes{rt("m", methods("DELETE"))}, req("h", "/", "X-HTTP-Method-Override", "DELETE"), ""},
		{"header value ignores case", routes{rt("v", header("X-Env", "Prod"))}, req("h", "/", "x-env", "pROD"), "v"},
		{"any of the header's values", routes{rt("v", header("x-env", "a", "b"))}, req("h", "/", "x-env", "z", "X-Env", "b"), "v"},
		{"~* is literal beside other values", routes{rt("v", header("x-env", "~*.", "b"))}, req("h", "/", "x-env", "q"), ""},
		{"every header must match", routes{rt("v", header("x-a", "1"), header("x-b", "1"))}, req("h", "/", "x-a", "1"), ""},
		{"sni", routes{rt("s", snis("a.com."))}, with(req("h", "/"), tls("A.com")), "s"},
		{"sni wildcard", routes{rt("s", snis("*.a.com"))}, with(req("h", "/"), tls("x.a.com")), "s"},
		{"sni trailing wildcard", routes{rt("s", snis("a.*"))}, with(req("h", "/"), tls("a.org")), "s"},
		{"tls without sni", routes{rt("s", snis("a.com"))}, with(req("h", "/"), tls("")), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, ok := build(t, c.routes...).Find(c.q)
			got := ""
			if ok {
				got = m.Entity.ID
			}
			if got != c.want {
				t.Errorf("winner %q, want %q", got, c.want)
			}
		})
	}
}

// The same route wins with 1 route and with 150 (a past fault of other gateways: linear and indexed look-ups differed).
func TestHostCaseInAllSizes(t *testing.T) {
	for _, n := range []int{1, 150} {
		var rs []*entity.Route
		for i := range n {
			rs = append(rs, rt(fmt.Sprint(i), hosts(fmt.Sprintf("h%d.example.com", i))))
		}
		m, ok := build(t, rs...).Find(req("H0.EXAMPLE.com.:99", "/"))
		if !ok || m.Entity.ID != "0" {
			t.Errorf("%d routes: not found", n)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		r    *entity.Route
		want string
	}{
		{"nothing to match on", rt("x"), "no criteria: set one of hosts, headers, paths, methods, snis"},
		{"regex", rt("x", paths("~/(")), "paths: invalid regex \"~/(\": error parsing regexp: missing closing ): `/(`"},
		{"regex that closes our group", rt("x", paths("~/a)|(?:b")), "paths: invalid regex \"~/a)|(?:b\": error parsing regexp: unexpected ): `/a)|(?:b`"},
		{"header regex", rt("x", header("a", "~*(")), "headers.a: invalid regex \"~*(\": error parsing regexp: missing closing ): `(?i)(`"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Compile(c.r)
			if err == nil || err.Error() != c.want {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestCaptures(t *testing.T) {
	r := build(t, rt("u", paths(`~/u/(?<id>\d+)/(\w+)`)))
	m, _ := r.Find(req("h", "/u/12/x/y"))
	if got := m.Prefix("/u/12/x/y"); got != "/u/12/x" {
		t.Errorf("prefix %q", got)
	}
	got := fmt.Sprint(m.AppendCaptures(nil, "/u/12/x/y"))
	if want := "[1 12 id 12 2 x]"; got != want {
		t.Errorf("captures %s, want %s", got, want)
	}
}

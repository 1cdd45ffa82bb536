package cors

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

// answer runs a request through an instance and shows what the client gets, "proxied" or the status first, then the headers.
func answer(t testing.TB, i plugin.Instance, x *exchange.Exchange, upstream ...string) string {
	t.Helper()
	list := []string{"proxied"}
	for _, f := range upstream {
		name, value, _ := strings.Cut(f, ": ")
		x.Response.Header.Add(name, value)
	}
	if e := plugintest.Access(t, x, i); e != nil {
		if e.Status != 200 || e.Body != nil || len(e.Header) != 0 {
			t.Errorf("answer %+v", e)
		}
		list[0] = "200"
		x.Response.Header.Reset() // as the gateway does
	}
	if err := i.(plugin.HeaderFilter).HeaderFilter(x); err != nil {
		t.Fatal(err)
	}
	for _, f := range x.Response.Header.Fields {
		list = append(list, strings.TrimPrefix(f.Name, "Access-Control-")+": "+f.Value)
	}
	return strings.Join(list, " | ")
}

const allMethods = "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS,TRACE,CONNECT"

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	two := schema.Record{"origins": []any{"http://a.com", "http://b.com"}, "credentials": true, "exposed_headers": []any{"X-Auth"},
		"headers": []any{"Accept", "X-A"}, "methods": []any{"GET", "POST"}, "max_age": 3600.0}
	star := schema.Record{"origins": []any{"*"}, "credentials": true, "exposed_headers": []any{"X-Auth"}}
	one := schema.Record{"origins": []any{"http://one.com"}, "credentials": true, "exposed_headers": []any{"X-Auth"}}
	regex := schema.Record{"origins": []any{`^https?://.*\.foo\.com$`}, "credentials": true, "exposed_headers": []any{"X-Auth"}}
	preflight := func(origin string, more ...string) []string {
		return append([]string{"OPTIONS", "Origin: " + origin, "Access-Control-Request-Method: GET"}, more...)
	}
	for _, c := range []struct {
		name    string
		config  schema.Record
		request []string
		want    string
	}{
		{"3-086", nil, []string{"GET", "Origin: http://a.com"}, "proxied | Allow-Origin: *"},
		{"3-087", nil, []string{"OPTIONS", "Origin: http://a.com", "Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: X-A"},
			"200 | Allow-Origin: * | Allow-Headers: X-A | Allow-Methods: " + allMethods},
		{"3-088", nil, []string{"OPTIONS", "Origin: http://a.com"}, "proxied | Allow-Origin: *"},
		{"3-089", two, []string{"GET", "Origin: http://b.com"}, "proxied | Vary: Origin | Allow-Origin: http://b.com | Allow-Credentials: true | Expose-Headers: X-Auth"},
		{"3-090", two, []string{"GET", "Origin: http://c.com"}, "proxied | Vary: Origin | Allow-Credentials: true | Expose-Headers: X-Auth"},
		{"3-091", two, []string{"GET"}, "proxied | Vary: Origin | Allow-Credentials: true | Expose-Headers: X-Auth"},
		{"3-092", two, preflight("http://a.com"), "200 | Vary: Origin | Allow-Origin: http://a.com | Allow-Credentials: true | Allow-Headers: Accept,X-A | Allow-Methods: GET,POST | Max-Age: 3600"},
		{"3-093", two, preflight("http://c.com"), "200 | Vary: Origin | Allow-Credentials: true | Allow-Headers: Accept,X-A | Allow-Methods: GET,POST | Max-Age: 3600"},
		{"3-094", star, []string{"GET", "Origin: http://z.com"}, "proxied | Vary: Origin | Allow-Origin: http://z.com | Allow-Credentials: true | Expose-Headers: X-Auth"},
		{"3-095", schema.Record{"preflight_continue": true}, preflight("http://z.com"), "proxied"},
		{"3-096", one, []string{"GET", "Origin: http://z.com"}, "proxied | Vary: Origin | Allow-Origin: http://one.com | Allow-Credentials: true | Expose-Headers: X-Auth"},
		{"3-097", regex, []string{"GET", "Origin: http://x.foo.com"}, "proxied | Vary: Origin | Allow-Origin: http://x.foo.com | Allow-Credentials: true | Expose-Headers: X-Auth"},

		{"default, no Origin", nil, []string{"GET"}, "proxied | Allow-Origin: *"},
		{"no Origin is no preflight", nil, []string{"OPTIONS", "Access-Control-Request-Method: GET"}, "proxied | Allow-Origin: *"},
		{"an empty Origin is none", star, preflight(""), "proxied | Allow-Origin: * | Expose-Headers: X-Auth"},
		{"another method is no preflight", nil, []string{"POST", "Origin: http://a.com", "Access-Control-Request-Method: GET"}, "proxied | Allow-Origin: *"},
		{"preflight without asked headers", nil, preflight("http://a.com"), "200 | Allow-Origin: * | Allow-Methods: " + allMethods},
		{"configured headers, not the asked ones", schema.Record{"headers": []any{"A", "B"}}, preflight("http://a.com", "Access-Control-Request-Headers: C"),
			"200 | Allow-Origin: * | Allow-Headers: A,B | Allow-Methods: " + allMethods},
		{"no methods configured", schema.Record{"methods": nil, "max_age": 0.5}, preflight("http://a.com"), "200 | Allow-Origin: * | Allow-Methods: " + allMethods + " | Max-Age: 0.5"},
		{"star with credentials, preflight", star, preflight("http://z.com"), "200 | Vary: Origin | Allow-Origin: http://z.com | Allow-Credentials: true | Allow-Methods: " + allMethods},
		{"star with credentials, no Origin", star, []string{"GET"}, "proxied | Allow-Origin: * | Expose-Headers: X-Auth"},
		{"star among others", schema.Record{"origins": []any{"http://a.com", "*"}}, []string{"GET", "Origin: http://z.com"}, "proxied | Vary: Origin | Allow-Origin: *"},
		{"star among others, no Origin", schema.Record{"origins": []any{"http://a.com", "*"}}, []string{"GET"}, "proxied | Vary: Origin"},
		{"star among others, credentials", schema.Record{"origins": []any{"http://a.com", "*"}, "credentials": true}, []string{"GET", "Origin: http://z.com"},
			"proxied | Vary: Origin | Allow-Origin: http://z.com | Allow-Credentials: true"},
		{"preflight_continue does not concern others", schema.Record{"preflight_continue": true}, []string{"GET", "Origin: http://z.com"}, "proxied | Allow-Origin: *"},
		{"private network", schema.Record{"private_network": true}, preflight("http://a.com", "Access-Control-Request-Private-Network: true"),
			"200 | Allow-Origin: * | Allow-Methods: " + allMethods + " | Allow-Private-Network: true"},
		{"private network, not asked", schema.Record{"private_network": true}, preflight("http://a.com"), "200 | Allow-Origin: * | Allow-Methods: " + allMethods},
		{"private network, not allowed", nil, preflight("http://a.com", "Access-Control-Request-Private-Network: true"), "200 | Allow-Origin: * | Allow-Methods: " + allMethods},
	} {
		i := g.Build(Plugin(), c.config)
		if got := answer(t, i, plugintest.Request(c.request[0], "/", c.request[1:]...)); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// TestUpstreamHeaders: what the upstream says of origins does not stand, what it varies by does.
func TestUpstreamHeaders(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"origins": []any{"http://a.com", "http://b.com"}})
	for origin, want := range map[string]string{
		"http://a.com": "proxied | Allow-Origin: http://a.com | Vary: Accept | Vary: Origin",
		"http://c.com": "proxied | Vary: Accept | Vary: Origin",
	} {
		got := answer(t, i, plugintest.Request("GET", "/", "Origin: "+origin), "Access-Control-Allow-Origin: *", "Vary: Accept")
		if got != want {
			t.Errorf("%s: %s, want %s", origin, got, want)
		}
	}
}

// TestOrigins: which origins a list lets in (attacks H11).
func TestOrigins(t *testing.T) {
	for _, c := range []struct {
		name     string
		entries  []string
		yes, no  []string
		normally map[string]string
	}{
		{"plain", []string{"http://a.com", "https://b.com:8443", "null-ish"},
			[]string{"http://a.com", "https://b.com:8443"},
			[]string{"https://a.com", "http://a.com:8080", "https://b.com", "http://a.com.attacker", "http://xa.com", "http://a.com@evil.com", "http://a.com/", "a.com", "null", "http://A.com", "http://a.com, http://a.com"}, nil},
		{"default ports do not count", []string{"http://a.com:80", "https://b.com", "x"},
			[]string{"http://a.com", "http://a.com:80", "https://b.com:443", "https://b.com"},
			[]string{"http://a.com:443", "https://b.com:80", "https://a.com", "http://a.com:"},
			map[string]string{"http://a.com:80": "http://a.com", "https://b.com:443": "https://b.com"}},
		{"a slash too many", []string{"http://a.com/", "x"}, []string{"http://a.com"}, []string{"http://a.com/"}, nil},
		{"null only if it is listed", []string{"null", "x"}, []string{"null"}, []string{"NULL", "http://null"}, nil},
		{"regex over the origin", []string{`https?://(.+\.)?example\.com`},
			[]string{"http://example.com", "https://x.example.com", "http://example.com:80"},
			[]string{"https://example.com.attacker", "https://evilexample.com", "https://example.com:8080", "xhttps://example.com", "null", "https://exampleXcom",
				"https://evil.com/.example.com", "https://evil.com?.example.com", "https://evil.com#.example.com", "https://evil.com\\.example.com", "https://u@x.example.com"}, nil},
		{"regex over the host", []string{`(.*\.)?example\.(com|org)`},
			[]string{"http://example.com:8080", "https://x.example.org"},
			[]string{"https://example.com.attacker", "https://evilexample.com", "https://evil.com:443/.example.com", "https://evil.com/x.example.com"}, nil},
		{"anchors of the user's own", []string{`^https://a\.com$`, `^http://[^.]+\.b\.com`, `http://c\.com$`},
			[]string{"https://a.com", "http://x.b.com", "http://c.com"},
			[]string{"https://a.com.evil", "http://x.b.com.evil", "xhttp://c.com"}, nil},
		{"alternatives are anchored, each of them", []string{`http://a\.com|http://b\.com`}, []string{"http://a.com", "http://b.com"},
			[]string{"http://a.com.evil", "http://evil/http://b.com"}, nil},
		{"IPv6", []string{"http://.*", "x"}, []string{"http://[::1]:3000", "http://127.0.0.1"}, []string{"http://::1", "http://"}, nil},
	} {
		l, err := newList(c.entries)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range c.yes {
			want := o
			switch {
			case c.normally[o] != "":
				want = c.normally[o]
			case o == "http://example.com:80":
				want = "http://example.com"
			}
			if got, ok := l.match(o); !ok || got != want {
				t.Errorf("%s: %q: %q %v, want %q", c.name, o, got, ok, want)
			}
		}
		for _, o := range c.no {
			if got, ok := l.match(o); ok {
				t.Errorf("%s: %q is allowed as %q", c.name, o, got)
			}
		}
	}
}

func TestValidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		want   string
	}{
		{"defaults", schema.Record{}, ""},
		{"bad regex", schema.Record{"origins": []any{"(("}}, "schema violation (config.origins: {\n  \"'((' is not a valid regex\"\n})"},
		{"bad regex behind a good one", schema.Record{"origins": []any{"*", "(("}}, "schema violation (config.origins: {\n  [2] = \"'((' is not a valid regex\"\n})"},
		{"method", schema.Record{"methods": []any{"get"}}, "schema violation (config.methods: {\n  \"expected one of: GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS, TRACE, CONNECT\"\n})"},
		{"credentials null", schema.Record{"credentials": nil}, "schema violation (config.credentials: required field missing)"},
		{"all", schema.Record{"origins": []any{"*", "http://a.com", `.*\.b\.com`}, "headers": []any{"A"}, "exposed_headers": []any{"B"}, "methods": []any{"GET"},
			"max_age": 1.0, "credentials": true, "private_network": true, "preflight_continue": true}, ""},
	} {
		rec, errs := plugintest.Validate(Plugin(), c.config)
		got := ""
		if errs != nil {
			got = errs.Message()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if c.name == "defaults" {
			want := schema.Record{"origins": nil, "headers": nil, "exposed_headers": nil, "max_age": nil, "credentials": false, "private_network": false, "preflight_continue": false,
				"methods": []any{"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT"}}
			if diff := cmp.Diff(want, rec["config"]); diff != "" {
				t.Error(diff)
			}
		}
	}
}

// FuzzNormalize: what has a normal form keeps it, and its host is part of it.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"http://a.com", "http://a.com:80", "https://[::1]:443", "null", "http://u@h", "://", "http://a:", "https://[::443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, origin string) {
		normal, host := normalize(origin)
		if normal == "" {
			return
		}
		again, host2 := normalize(normal)
		if strings.Contains(origin, "://") && (strings.ContainsAny(host, "@/?#") || !strings.HasPrefix(origin, normal)) || host2 != host || again != normal {
			t.Errorf("%q: %q with host %q, again %q with %q", origin, normal, host, again, host2)
		}
	})
}

func BenchmarkCORS(b *testing.B) {
	g := plugintest.New(b)
	for name, config := range map[string]schema.Record{
		"all":   {},
		"list":  {"origins": []any{"http://a.com", "http://b.com"}, "credentials": true},
		"regex": {"origins": []any{`https?://.*\.foo\.com`}, "credentials": true},
	} {
		for _, method := range []string{"GET", "OPTIONS"} {
			b.Run(name+"/"+method, func(b *testing.B) {
				i := g.Build(Plugin(), config)
				x := plugintest.Request(method, "/", "Host: h", "User-Agent: u", "Origin: http://x.foo.com", "Access-Control-Request-Method: GET")
				b.ReportAllocs()
				for b.Loop() {
					x.Response.Header.Reset()
					x.Leave(state, nil)
					_ = i.(plugin.Accessor).Access(x)
					_ = i.(plugin.HeaderFilter).HeaderFilter(x)
				}
			})
		}
	}
}

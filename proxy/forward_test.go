package proxy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/proxy"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

func TestRequestHeaders(t *testing.T) {
	g := start(t, nil)
	ph := fx.Route("ph", "svc", "/ph")
	ph.PreserveHost = true
	keep := fx.Route("keep", "svc", "/keep")
	keep.StripPath = false
	g.put(fx.Route("x", "svc", "/x"), ph, keep, fx.Route("re", "svc", `~/re/(?<id>\d+)`))
	port := g.addr[strings.LastIndexByte(g.addr, ':')+1:]
	up := fmt.Sprintf("%s:%d", g.echo.host, g.echo.port)

	for _, c := range []struct {
		name string
		req  []string
		line string
		want map[string]string
	}{
		{"plain", []string{"GET /x/foo?a=1&b=2 HTTP/1.1", "Host: 127.0.0.1:8000"}, "GET /foo?a=1&b=2 HTTP/1.1", map[string]string{
			"Host": up, "Connection": "keep-alive", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http",
			"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Port": port, "X-Forwarded-Path": "/x/foo", "X-Forwarded-Prefix": "/x",
			"X-Real-IP": "127.0.0.1", "Via": "1.1 concord/1.2.3", "X-Kong-Request-Id": "ID",
		}},
		{"an untrusted client's own", []string{
			"GET /x/foo HTTP/1.1", "Host: my.host:99", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil",
			"X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil", "X-Forwarded-Path: /evil", "X_Forwarded_Host: evil", "X-Real-IP: 9.9.9.9", "Via: 1.1 c",
			`Forwarded: for="evil"`, "Connection: keep-alive, X-Drop", "X-Drop: 1", "TE: trailers", "X-Consumer-Username: spoof", "X-Request-Id: abc",
			"X-Kong-Request-Id: mine", "Proxy: http://evil", "Proxy-Connection: close", "Keep-Alive: 5",
		}, "GET /foo HTTP/1.1", map[string]string{
			"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "my.host", "X_Forwarded_Host": "",
			"X-Forwarded-Port": port, "X-Forwarded-Prefix": "/x", "X-Forwarded-Path": "/x/foo", "X-Real-IP": "127.0.0.1", "Via": "1.1 c, 1.1 concord/1.2.3",
			"Forwarded": "", "X-Drop": "", "TE": "trailers", "X-Consumer-Username": "", "X-Request-Id": "abc", "X-Kong-Request-Id": "ID",
			"Proxy": "", "Proxy-Connection": "", "Keep-Alive": "",
		}},
		{"several X-Forwarded-For", []string{"GET /x HTTP/1.1", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2, 3.3.3.3"}, "GET / HTTP/1.1",
			map[string]string{"X-Forwarded-For": "1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1"}},
		{"Connection names what the gateway sets", []string{"GET /x HTTP/1.1", "Connection: X-Forwarded-For, x-real-ip,\tVia, Authorization", "Authorization: a", "X-Forwarded-For: 1.1.1.1"},
			"GET / HTTP/1.1", map[string]string{"X-Forwarded-For": "1.1.1.1, 127.0.0.1", "X-Real-IP": "127.0.0.1", "Via": "1.1 concord/1.2.3", "Authorization": "a"}},
		{"preserve_host", []string{"GET /ph HTTP/1.1", "Host: orig.com:81"}, "GET / HTTP/1.1", map[string]string{"Host": "orig.com:81", "X-Forwarded-Host": "orig.com"}},
		{"no strip_path", []string{"GET /keep/foo HTTP/1.1"}, "GET /keep/foo HTTP/1.1", map[string]string{"X-Forwarded-Prefix": ""}},
		{"regex prefix", []string{"GET /re/12/z HTTP/1.1"}, "GET /z HTTP/1.1", map[string]string{"X-Forwarded-Prefix": "/re/12"}},
		{"HTTP/1.0", []string{"GET /x HTTP/1.0"}, "GET / HTTP/1.1", map[string]string{"Via": "1.0 concord/1.2.3"}},
		{"bare question mark", []string{"GET /x? HTTP/1.1"}, "GET /? HTTP/1.1", nil},
		{"the path is routed as it is sent", []string{"GET /y/..//x/./a%20b/%7Ec HTTP/1.1"}, "GET /a%20b/~c HTTP/1.1", map[string]string{"X-Forwarded-Path": "/y/..//x/./a%20b/%7Ec"}},
		{"double encoding is not decoded twice", []string{"GET /x/%252e%252e/y HTTP/1.1"}, "GET /%252e%252e/y HTTP/1.1", nil},
		{"prefix without border", []string{"GET /x../admin HTTP/1.1"}, "GET /admin HTTP/1.1", nil},
		{"an IPv6 host", []string{"GET /x HTTP/1.1", "Host: [::1]:8000"}, "GET / HTTP/1.1", map[string]string{"X-Forwarded-Host": "[::1]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := g.do(c.req...)
			if a.StatusCode != 200 || a.requestLine() != c.line {
				t.Errorf("status %d, upstream saw %q, want %q", a.StatusCode, a.requestLine(), c.line)
			}
			for name, want := range c.want {
				if got := masked(a.saw(name)); got != want {
					t.Errorf("upstream saw %s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

// Clients cannot forge an identity on any route, whatever the spelling; what a plugin sets arrives whatever Connection says.
func TestIdentityHeaders(t *testing.T) {
	names := []string{"X-Consumer-ID", "X-Consumer-Username", "X-Consumer-Custom-ID", "X-Consumer-Groups", "X-Credential-Identifier", "X-Credential-Username",
		"X-Authenticated-Userid", "X-Authenticated-Scope", "X-Authenticated-Groups", "X-Anonymous-Consumer", "X-Userinfo", "X-Access-Token", "X-ID-Token"}
	g := start(t, nil, hooked("auth", 1000, func(plugin.Config) hook {
		return hook{access: func(x *exchange.Exchange) error {
			if n := len(x.Request.Header.Get("X-Consumer-ID")); n != 0 {
				t.Error("a plugin saw the client's X-Consumer-ID")
			}
			x.Request.Header.Set("X-Consumer-ID", "real")
			return nil
		}}
	}))
	g.put(fx.Route("open", "svc", "/open"), fx.Route("auth", "svc", "/auth"), fx.Plugin("p", "auth", "{}", "auth", "", ""))
	for _, path := range []string{"/open", "/auth"} {
		lines := []string{"GET " + path + " HTTP/1.1", "Connection: close, X-Consumer-ID,\tx-consumer-id , X-Consumer-Username"}
		for _, n := range names {
			lines = append(lines, n+": forged", strings.ToLower(n)+": forged", strings.ReplaceAll(n, "-", "_")+": forged", "X_"+n[2:]+": forged")
		}
		a := g.do(lines...)
		if strings.Contains(a.body, "forged") {
			t.Errorf("%s: %s", path, a.body)
		}
		if got := a.saw("X-Consumer-ID"); path == "/auth" && got != "real" {
			t.Errorf("the plugin's X-Consumer-ID is %q", got)
		}
	}
}

func TestTrustedClient(t *testing.T) {
	g := start(t, func(o *proxy.Options) { o.TrustedIPs = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	only := fx.Route("tls", "svc", "/tls")
	only.Protocols = []string{"https"}
	g.put(fx.Route("y", "svc", "/y"), only)
	a := g.get("/y/foo", "Host: my.host:99", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: fh", "X-Forwarded-Port: 1",
		"X-Forwarded-Prefix: /fp", "X-Forwarded-Path: /fpath", "X-Real-IP: 9.9.9.9", "Forwarded: for=1.2.3.4")
	for name, want := range map[string]string{
		"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "fh", "X-Forwarded-Port": "1",
		"X-Forwarded-Path": "/fpath", "X-Forwarded-Prefix": "/fp", "X-Real-IP": "9.9.9.9", "Forwarded": "for=1.2.3.4",
	} {
		if got := a.saw(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a := g.get("/tls", "X-Forwarded-Proto: https"); a.StatusCode != 200 {
		t.Errorf("https at the trusted proxy: %d", a.StatusCode)
	}
}

// A request of HTTP/1.0 may have no Host to preserve; that to the upstream, of HTTP/1.1, must have one.
func TestPreserveNoHost(t *testing.T) {
	g := start(t, nil)
	r := fx.Route("ph", "svc", "/ph")
	r.PreserveHost = true
	g.put(r)
	x := &exchange.Exchange{Start: time.Now()}
	x.Request = exchange.Request{Method: "GET", Target: "/ph", Path: "/ph", Scheme: "http", Major: 1}
	g.h.Serve(x)
	if want := fmt.Sprintf("%s:%d", g.echo.host, g.echo.port); x.Upstream.HostHeader != want || x.Response.Status != 200 {
		t.Errorf("Host %q, want %q; status %d", x.Upstream.HostHeader, want, x.Response.Status)
	}
	g.h.Finish(x)
}

func TestProtocolCheck(t *testing.T) {
	g := start(t, nil)
	route := func(name string, status int, protocols ...string) *entity.Route {
		r := fx.Route(name, "svc", "/"+name)
		r.Protocols, r.HTTPSRedirectStatusCode = protocols, status
		return r
	}
	g.put(route("tls", 426, "https"), route("redir", 301, "https"), route("r307", 307, "https"), route("both", 426, "http", "https"), route("grpc", 426, "grpc"))
	for _, c := range []struct {
		path                string
		status              int
		body, header, value string
	}{
		{"/tls", 426, `{"message":"Please use HTTPS protocol"}`, "Upgrade", "TLS/1.2, HTTP/1.1"},
		{"/redir/a?b=1", 301, "", "Location", "https://foo.com/redir/a?b=1"},
		{"/r307/a", 307, "", "Location", "https://foo.com/r307/a"},
		{"/grpc/a", 415, `{"message":"Non-gRPC request matched gRPC route"}`, "Content-Type", "application/json; charset=utf-8"},
	} {
		a := g.get(c.path, "Host: foo.com:8000", "X-Forwarded-Proto: https") // from nobody trusted
		if a.StatusCode != c.status || a.body != c.body || a.Header.Get(c.header) != c.value {
			t.Errorf("%s: %d %q %s: %q", c.path, a.StatusCode, a.body, c.header, a.Header.Get(c.header))
		}
	}
	options := route("options", 301, "https")
	options.Paths, options.Methods = nil, []string{"OPTIONS"}
	g.put(options)
	if a := g.do("OPTIONS * HTTP/1.1"); a.StatusCode != 426 || a.Header.Get("Location") != "" { // there is no URL to go to
		t.Errorf("OPTIONS *: %d, Location %q", a.StatusCode, a.Header.Get("Location"))
	}
	if a := g.get("/both"); a.StatusCode != 200 {
		t.Errorf("both: %d", a.StatusCode)
	}
	if a := g.get("/grpc/a", "Content-Type: application/grpc"); a.StatusCode != 426 || a.body != `{"message":"Please use HTTP2 protocol"}` || a.Header.Get("Upgrade") != "HTTP/2" {
		t.Errorf("grpc over HTTP/1.1: %d %q", a.StatusCode, a.body)
	}
}

// Route / is open, /admin needs a key: the plugins that run are those of the path the upstream sees.
func TestPathTricks(t *testing.T) {
	g := start(t, nil, hooked("auth", 1000, func(plugin.Config) hook {
		return hook{access: func(*exchange.Exchange) error { return &plugin.Exit{Status: 401, Body: "no"} }}
	}))
	open, admin := fx.Route("open", "svc", "/"), fx.Route("admin", "svc", "/admin")
	open.StripPath, admin.StripPath = false, false
	g.put(open, admin, fx.Plugin("p", "auth", "{}", "admin", "", ""))
	for target, want := range map[string]string{
		"/%61dmin": "401", "//admin": "401", "/./admin": "401", "/x/../admin": "401", "/admin/.": "401", "/admin;x": "401", "/%2e%2e/admin": "401",
		"/admin?..": "401", "/x/%2E%2E/admin": "401", "http://gw/admin": "401",
		"/admin%00": "400", "/%zz": "400", "/admin#x": "400",
		"/admin%2f": "401", "/admin%5c": "401", "/admin%23": "401", "/admin%3b": "401", "/admin%2fx": "401", "/admin%3fx": "401",
		"/x%2f..%2fadmin": "400", "/x/..%2fadmin": "400", "/..%5cadmin": "400", "/x/..;/admin": "400", "/x/..%3bx/admin": "400", "/x/.;/a": "400", "/x%2f..": "400", "/x/%2e%2e%2fadmin": "400",
		"/%2fadmin": "400", "/%5cadmin": "400", "/;x/admin": "400", "/%3bx/admin": "400",
		"/x%2fadmin": "200 /x%2Fadmin", "/x/a%23b": "200 /x/a%23b", "/x;v=1/b": "200 /x;v=1/b", "/projects/a%2fb/c": "200 /projects/a%2Fb/c", "/@s%2fname": "200 /@s%2Fname",
		"/to/https%3a%2f%2fa.com%2f": "200 /to/https%3A%2F%2Fa.com%2F", "/x/c%23": "200 /x/c%23",
		"/ADMIN": "200 /ADMIN", "/%252e%252e/admin": "200 /%252e%252e/admin", "/%c0%ae%c0%ae/admin": "200 /%C0%AE%C0%AE/admin",
	} {
		a := g.get(target)
		got := fmt.Sprint(a.StatusCode)
		if a.StatusCode == 200 {
			got += " " + strings.Fields(a.requestLine())[1]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

// The three ways to treat paths with two readings.
func TestPathEscapes(t *testing.T) {
	for _, c := range []struct {
		mode proxy.PathEscapes
		want string // the statuses of: a/b escaped, a/b under another route when decoded, dots, parameters, NUL
	}{
		{proxy.CheckPathEscapes, "[200 400 400 200 400]"},
		{proxy.RefusePathEscapes, "[400 400 400 200 400]"},
		{proxy.PassPathEscapes, "[200 200 200 200 400]"},
	} {
		g := start(t, func(o *proxy.Options) { o.PathEscapes = c.mode })
		g.put(fx.Route("open", "svc", "/"), fx.Route("admin", "svc", "/x/admin"))
		var got []int
		for _, p := range []string{"/x/a%2fb", "/x%2fadmin", "/x%2f..%2fadmin", "/x;v=1/b", "/x%00"} {
			got = append(got, g.get(p).StatusCode)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("mode %d: %v, want %s", c.mode, got, c.want)
		}
	}
}

// A path that no route matches when it is decoded belongs to none: the routes are a list of what is allowed.
func TestPathEscapesWithoutFallback(t *testing.T) {
	g := start(t, nil)
	r := fx.Route("item", "svc", "~/items/[^/]+$")
	r.StripPath = false
	g.put(r)
	for path, want := range map[string]int{"/items/a": 200, "/items/a/b": 404, "/items/a%2fb": 400, "/items/a%40b": 200} {
		if got := g.get(path).StatusCode; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

// A gateway that is its own upstream stops by itself.
func TestLoop(t *testing.T) {
	g := start(t, nil)
	var port int
	if _, err := fmt.Sscanf(g.addr, "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	g.put(fx.Service("self", "127.0.0.1", port), fx.Route("r", "self", "/"))
	a := g.get("/")
	if a.StatusCode != 508 || !strings.Contains(a.body, "Loop detected") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if n := g.h.Stats().Loops.Load(); n != 1 {
		t.Errorf("%d loops counted", n)
	}
}

package proxy_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"concord/proxy"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/test/harness"
)

const jsonNoRoute = "{\n  \"message\":\"no Route matched with those values\",\n  \"request_id\":\"ID\"\n}"

func TestErrorBodies(t *testing.T) {
	g := start(t, nil)
	deadPort := int(harness.Refused(t).Port())
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow := fx.Service("slow", "127.0.0.1", silent.Addr().(*net.TCPAddr).Port)
	slow.ReadTimeout = 50
	one := 1
	slow.Retries = &one
	g.put(
		fx.Service("dead", "127.0.0.1", deadPort), fx.Route("dead", "dead", "/dead"),
		fx.Service("nodns", "does-not-exist.invalid", 80), fx.Route("nodns", "nodns", "/nodns"),
		slow, fx.Route("slow", "slow", "/slow"), fx.Route("nosvc", "", "/nosvc"),
	)
	plain := "An invalid response was received from the upstream server\nrequest_id: ID\n"
	for _, c := range []struct {
		name, path, header string
		status             int
		contentType, body  string
	}{
		{"no route", "/none", "", 404, "application/json", jsonNoRoute},
		{"JSON asked for", "/none", "Accept: application/json", 404, "application/json", jsonNoRoute},
		{"anything", "/none", "Accept: */*", 404, "application/json", jsonNoRoute},
		{"unknown type", "/none", "Accept: image/png", 404, "application/json", jsonNoRoute},
		{"plain", "/none", "Accept: text/plain", 404, "text/plain", "no Route matched with those values\nrequest_id: ID\n"},
		{"text/*", "/none", "Accept: text/*", 404, "text/plain", "no Route matched with those values\nrequest_id: ID\n"},
		{"XML", "/none", "Accept: application/xml", 404, "application/xml", "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<error>\n  <message>no Route matched with those values</message>\n  <requestid>ID</requestid>\n</error>\n"},
		{"HTML", "/none", "Accept: text/html", 404, "text/html", "<!doctype html>\n<html>\n  <head>\n    <meta charset=\"utf-8\">\n    <title>Error</title>\n  </head>\n  <body>\n    <h1>Error</h1>\n    <p>no Route matched with those values.</p>\n    <p>request_id: ID</p>\n  </body>\n</html>\n"},
		{"the highest quality", "/none", "Accept: text/html;q=0.5, text/plain;q=0.9, */*;q=0.1", 404, "text/plain", "no Route matched with those values\nrequest_id: ID\n"},
		{"the first of equals", "/none", "Accept: application/xml, text/html", 404, "application/xml", ""},
		{"no service", "/nosvc", "", 503, "application/json", "{\n  \"message\":\"no Service found with those values\",\n  \"request_id\":\"ID\"\n}"},
		{"refused", "/dead", "", 502, "text/plain", plain},
		{"refused, JSON", "/dead", "Accept: application/json", 502, "application/json", ""},
		{"refused, by the request's type", "/dead", "Content-Type: application/json; charset=utf-8", 502, "application/json", ""},
		{"unresolvable", "/nodns", "", 503, "application/json", "{\n  \"message\":\"name resolution failed\",\n  \"request_id\":\"ID\"\n}"},
		{"timeout", "/slow", "", 504, "text/plain", "The upstream server is timing out\nrequest_id: ID\n"},
		{"gRPC", "/none", "Content-Type: application/grpc", 404, "application/grpc", ""},
		{"not HTTP", "no-slash", "", 400, "text/plain", "Bad request\nrequest_id: ID\n"},
		{"head too large", "/", "X: " + strings.Repeat("a", 70000), 431, "text/plain", "Request header or cookie too large\nrequest_id: ID\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h []string
			if c.header != "" {
				h = append(h, c.header)
			}
			a := g.get(c.path, h...)
			want := c.contentType
			if want != "application/grpc" {
				want += "; charset=utf-8"
			}
			if a.StatusCode != c.status || a.Header.Get("Content-Type") != want || c.body != "" && masked(a.body) != c.body {
				t.Errorf("%d %s %q", a.StatusCode, a.Header.Get("Content-Type"), a.body)
			}
			if a.Header.Get("Server") != "concord/1.2.3" || a.Header.Get("Via") != "" || a.Header.Get("X-Kong-Response-Latency") == "" ||
				len(a.Header.Get("X-Kong-Request-Id")) != 32 {
				t.Errorf("head %v", a.Header)
			}
			if c.contentType == "application/grpc" && (a.Header.Get("grpc-status") != "5" || a.Header.Get("grpc-message") != "no Route matched with those values" || a.body != "") {
				t.Errorf("%v %q", a.Header, a.body)
			}
		})
	}
	if a := g.do("HEAD /none HTTP/1.1"); a.StatusCode != 404 || a.body != "" || a.ContentLength != int64(len(jsonNoRoute)-2+32) {
		t.Errorf("HEAD: %d, length %d", a.StatusCode, a.ContentLength)
	}
}

func TestResponseHeaders(t *testing.T) {
	for _, c := range []struct {
		name    string
		headers []string
		up      string
		want    map[string]string // "*": there
	}{
		{"default", nil, "", map[string]string{"Via": "1.1 concord/1.2.3", "Server": "concord/1.2.3", "X-Kong-Upstream-Latency": "*", "X-Kong-Proxy-Latency": "*",
			"X-Kong-Response-Latency": "", "X-Kong-Request-Id": "*", "X-Kong-Upstream-Status": ""}},
		{"the upstream's own", nil, "Server: echo 1\r\nVia: 1.0 a\r\nVia: 1.1 up\r\nX-Kong-Proxy-Latency: 99999999\r\nConnection: X-Hop\r\nX-Hop: 1\r\n",
			map[string]string{"Via": "1.0 a, 1.1 up, 1.1 concord/1.2.3", "Server": "echo 1", "X-Hop": ""}},
		{"off", []string{"off"}, "", map[string]string{"Via": "", "Server": "", "X-Kong-Upstream-Latency": "", "X-Kong-Proxy-Latency": "", "X-Kong-Request-Id": ""}},
		{"some", []string{"X-Kong-Upstream-Status", "via"}, "", map[string]string{"Via": "1.1 concord/1.2.3", "Server": "", "X-Kong-Upstream-Status": "200", "X-Kong-Proxy-Latency": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, func(o *proxy.Options) { o.Headers = c.headers })
			g.echo.head = c.up
			g.put(fx.Route("x", "svc", "/x"))
			a := g.get("/x")
			for name, want := range c.want {
				if got := a.Header.Get(name); got != want && (want != "*" || got == "") {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if v := a.Header.Get("X-Kong-Proxy-Latency"); len(v) > 4 {
				t.Errorf("the upstream's latency %q was kept", v)
			}
		})
	}
}

func TestExits(t *testing.T) {
	exits := map[string]error{
		"string": &plugin.Exit{Status: 403, Body: `say "no"`, Header: []exchange.Field{{Name: "X-Why", Value: "rule"}}},
		"object": &plugin.Exit{Status: 429, Body: map[string]any{"a": "<b>"}},
		"bytes":  &plugin.Exit{Status: 200, Body: []byte("raw"), Header: []exchange.Field{{Name: "Content-Type", Value: "text/x"}}},
		"none":   &plugin.Exit{Status: 204},
		"tmpl":   &plugin.Exit{Status: 401, Templated: true, Body: "Unauthorized"},
		"empty":  &plugin.Exit{Status: 429, Templated: true},
		"error":  net.ErrClosed,
	}
	g := start(t, nil,
		hooked("exit", 1000, func(c plugin.Config) hook {
			return hook{access: func(*exchange.Exchange) error {
				switch name := c.Record["name"].(string); name {
				case "panic":
					panic("boom")
				default:
					return exits[name]
				}
			}}
		}),
		hooked("after", 10, func(plugin.Config) hook {
			return hook{
				access: func(*exchange.Exchange) error { t.Error("access ran behind an exit"); return nil },
				head:   func(x *exchange.Exchange) error { x.Response.Header.Set("X-After", "1"); return nil },
			}
		}))
	g.put(fx.Plugin("after", "after", "{}", "", "", ""))
	for _, c := range []struct {
		name        string
		status      int
		contentType string
		body        string
	}{
		{"string", 403, "application/json; charset=utf-8", `{"message":"say \"no\""}`},
		{"object", 429, "application/json; charset=utf-8", `{"a":"<b>"}`},
		{"bytes", 200, "text/x", "raw"},
		{"none", 204, "", ""},
		{"tmpl", 401, "application/json; charset=utf-8", "{\n  \"message\":\"Unauthorized\",\n  \"request_id\":\"ID\"\n}"},
		{"empty", 429, "application/json; charset=utf-8", "{\n  \"message\":\"Too many requests\",\n  \"request_id\":\"ID\"\n}"},
		{"error", 500, "application/json; charset=utf-8", `{"message":"An unexpected error occurred"}`},
		{"panic", 500, "application/json; charset=utf-8", `{"message":"An unexpected error occurred"}`},
	} {
		g.put(fx.Route(c.name, "svc", "/"+c.name), fx.Plugin("p"+c.name, "exit", `{"name":"`+c.name+`"}`, c.name, "", ""))
		a := g.get("/" + c.name)
		if a.StatusCode != c.status || a.Header.Get("Content-Type") != c.contentType || masked(a.body) != c.body {
			t.Errorf("%s: %d %s %q", c.name, a.StatusCode, a.Header.Get("Content-Type"), a.body)
		}
		if a.Header.Get("X-After") != "1" {
			t.Errorf("%s: later phases of the plugins behind did not run", c.name)
		}
	}
	if a := g.get("/string"); a.Header.Get("X-Why") != "rule" {
		t.Errorf("%v", a.Header)
	}
	deadline := time.Now().Add(60 * time.Second)
	for g.h.Stats().Panics.Load() != 1 || g.h.Stats().PluginErrors.Load() != 2 {
		if time.Now().After(deadline) {
			t.Fatalf("%d panics, %d errors", g.h.Stats().Panics.Load(), g.h.Stats().PluginErrors.Load())
		}
	}
}

func TestHeaderAndBodyFilters(t *testing.T) {
	g := start(t, nil, hooked("shout", 10, func(c plugin.Config) hook {
		return hook{
			head: func(x *exchange.Exchange) error {
				if c.Record["fail"] == true {
					return net.ErrClosed
				}
				x.Response.Header.Set("X-Filtered", "1")
				return nil
			},
			body: func(_ *exchange.Exchange, b []byte, last bool) ([]byte, error) {
				b = []byte(strings.ToUpper(string(b)))
				if last {
					b = append(b, "THE END"...)
				}
				return b, nil
			},
		}
	}))
	g.put(fx.Route("x", "svc", "/x"), fx.Plugin("p", "shout", "{}", "x", "", ""),
		fx.Route("y", "svc", "/y"), fx.Plugin("q", "shout", `{"fail":true}`, "y", "", ""))
	a := g.get("/x/abc")
	if a.requestLine() != "GET /ABC HTTP/1.1" || !strings.HasSuffix(a.body, "THE END") || a.Header.Get("X-Filtered") != "1" || a.Header.Get("Content-Length") != "" {
		t.Errorf("%v %q", a.Header, a.body)
	}
	if a := g.get("/y"); a.StatusCode != 500 || a.body != `{"MESSAGE":"AN UNEXPECTED ERROR OCCURRED"}THE END` || a.Header.Get("X-Kong-Upstream-Latency") != "" {
		t.Errorf("%d %v %q", a.StatusCode, a.Header, a.body)
	}
	if a := g.do("HEAD /x HTTP/1.1"); a.StatusCode != 200 || a.body != "" {
		t.Errorf("HEAD: %d %q", a.StatusCode, a.body)
	}
}

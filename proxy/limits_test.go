package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"concord/proxy"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

func TestErrorTemplates(t *testing.T) {
	g := start(t, func(o *proxy.Options) {
		o.ErrorTemplates = map[string]string{
			"text/html": "<p w='100%%'>%s</p><i>%s</i>", "application/json": `{"error":"%s","id":"%s"}`, "text/plain": "%s|%s",
		}
	}, hooked("say", 1, func(plugin.Config) hook {
		return hook{access: func(*exchange.Exchange) error { return plugin.Refuse(403, `<a "b">`, "") }}
	}))
	g.put(fx.Route("x", "svc", "/x"), fx.Plugin("p", "say", "{}", "x", "", ""))
	for accept, want := range map[string]string{
		"text/html":        "<p w='100%'>&lt;a &#34;b&#34;&gt;</p><i>ID</i>",
		"application/json": `{"error":"<a \"b\">","id":"ID"}`,
		"text/plain":       `<a "b">|ID`,
		"application/xml":  "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<error>\n  <message>&lt;a &#34;b&#34;&gt;</message>\n  <requestid>ID</requestid>\n</error>\n",
	} {
		a := g.get("/x", "Accept: "+accept)
		if masked(a.body) != want || a.StatusCode != 403 || a.Header.Get("Content-Type") != accept+"; charset=utf-8" {
			t.Errorf("%s: %d %v %q", accept, a.StatusCode, a.Header, a.body)
		}
	}
}

func TestDebugHeader(t *testing.T) {
	for _, on := range []bool{true, false} {
		g := start(t, func(o *proxy.Options) { o.AllowDebugHeader = on })
		r := fx.Route("x", "svc", "/x")
		r.Name = "my-route"
		g.put(r)
		all := func(a answer) string {
			return strings.Join([]string{a.Header.Get("Kong-Route-Id"), a.Header.Get("Kong-Route-Name"), a.Header.Get("Kong-Service-Id"), a.Header.Get("Kong-Service-Name")}, " ")
		}
		asked := "   "
		if on {
			asked = fmt.Sprintf("%s my-route %s svc", r.ID, r.Service.ID)
		}
		for header, want := range map[string]string{"Kong-Debug: 1": asked, "Kong-Debug: 0": "   ", "X: y": "   "} {
			if got := all(g.get("/x", header)); got != want {
				t.Errorf("allowed %v, %s: %q, want %q", on, header, got, want)
			}
		}
		if got := all(g.get("/none", "Kong-Debug: 1")); got != "   " {
			t.Errorf("no route: %q", got)
		}
	}
}

func TestMaxBody(t *testing.T) {
	g := start(t, func(o *proxy.Options) { o.MaxBody = 10 })
	g.readsAll()
	g.put(fx.Route("x", "svc", "/x"))
	for _, c := range []struct {
		name, framing, body string
		status              int
	}{
		{"equal", "Content-Length: 10", "0123456789", 200},
		{"above", "Content-Length: 11", "0123456789a", 413},
		{"far above, not sent", "Content-Length: 1000000000", "", 413},
		{"chunked, above", "Transfer-Encoding: chunked", "6\r\n012345\r\n5\r\n6789a\r\n0\r\n\r\n", 413},
	} {
		a := g.do("POST /x HTTP/1.1", c.framing, "Host: gw", "", c.body)
		if a.StatusCode != c.status || c.status == 413 && !strings.HasPrefix(a.body, "Payload too large\n") {
			t.Errorf("%s: %d %q", c.name, a.StatusCode, a.body)
		}
	}
}

func TestMaxInFlight(t *testing.T) {
	release := make(chan struct{})
	running := make(chan struct{}, 8)
	g := start(t, func(o *proxy.Options) { o.MaxInFlight = 2 }, hooked("wait", 1, func(plugin.Config) hook {
		return hook{access: func(x *exchange.Exchange) error {
			if x.Request.Header.Has("X-Wait") {
				running <- struct{}{}
				<-release
			}
			return nil
		}}
	}))
	g.put(fx.Route("x", "svc", "/x"), fx.Plugin("p", "wait", "{}", "x", "", ""))
	done := make(chan int, 2)
	for range 2 {
		go func() { done <- g.get("/x", "X-Wait: 1").StatusCode }()
		<-running
	}
	if a := g.get("/x"); a.StatusCode != 503 || !strings.Contains(a.body, "Too many requests are running") || g.h.Stats().Overloads.Load() != 1 {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
	close(release)
	for range 2 {
		if s := <-done; s != 200 {
			t.Error(s)
		}
	}
	for deadline := time.Now().Add(60 * time.Second); g.get("/x").StatusCode != 200; { // Finish comes behind the answer
		if time.Now().After(deadline) {
			t.Fatal("still full")
		}
	}
}

// TestPanics: a plugin that panics, in whatever phase, costs its own request and no other.
func TestPanics(t *testing.T) {
	g := start(t, nil, func() []plugin.Plugin {
		boom := func(c plugin.Config, phase string) {
			if c.Record["in"] == phase {
				panic("boom")
			}
		}
		h := hooked("boom", 1, func(c plugin.Config) hook {
			return hook{
				access: func(*exchange.Exchange) error { boom(c, "access"); return nil },
				head:   func(*exchange.Exchange) error { boom(c, "head"); return nil },
				body:   func(_ *exchange.Exchange, b []byte, _ bool) ([]byte, error) { boom(c, "body"); return b, nil },
				log:    func(*exchange.Exchange) { boom(c, "log") },
			}
		})
		return []plugin.Plugin{h}
	}()...)
	for i, c := range []struct {
		phase  string
		status int
		whole  bool
	}{{"access", 500, true}, {"head", 500, true}, {"body", 200, false}, {"log", 200, true}} {
		g.put(fx.Route(c.phase, "svc", "/"+c.phase), fx.Plugin("p"+c.phase, "boom", `{"in":"`+c.phase+`"}`, c.phase, "", ""))
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: a\r\n\r\nGET /other HTTP/1.1\r\nHost: a\r\n\r\n", c.phase)
		br := bufio.NewReader(conn)
		r, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.phase, err)
		}
		body, err := io.ReadAll(r.Body)
		if r.StatusCode != c.status || (err == nil) != c.whole || c.status == 500 && string(body) != `{"message":"An unexpected error occurred"}` {
			t.Errorf("%s: %d %q %v", c.phase, r.StatusCode, body, err)
		}
		if c.whole { // the connection goes on
			if next, err := http.ReadResponse(br, nil); err != nil || next.StatusCode != 404 {
				t.Errorf("%s: the next request: %v %v", c.phase, next, err)
			}
		}
		for deadline := time.Now().Add(60 * time.Second); g.h.Stats().Panics.Load() != uint64(i+1); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d panics counted, want %d", c.phase, g.h.Stats().Panics.Load(), i+1)
			}
		}
	}
}

// panicky is a request body wrapped by a plugin.
type panicky struct{ exchange.Body }

func (panicky) Next() ([]byte, error) { panic("boom") }

func TestPanicInRequestBody(t *testing.T) {
	g := start(t, nil, hooked("boom", 1, func(plugin.Config) hook {
		return hook{access: func(x *exchange.Exchange) error { x.Request.Body = panicky{x.Request.Body}; return nil }}
	}))
	g.readsAll()
	g.put(fx.Route("x", "svc", "/x"), fx.Plugin("p", "boom", "{}", "x", "", ""), fx.Route("y", "svc", "/y"))
	a := g.do("POST /x HTTP/1.1", "Transfer-Encoding: chunked", "Host: gw", "", "1", "a", "0", "", "")
	if a.StatusCode != 500 || a.body != `{"message":"An unexpected error occurred"}` || g.h.Stats().Panics.Load() != 1 {
		t.Errorf("%d %q, %d counted", a.StatusCode, a.body, g.h.Stats().Panics.Load())
	}
	if a := g.get("/y"); a.StatusCode != 200 {
		t.Error(a.StatusCode)
	}
}

// readsAll gives the service an upstream that answers once it has the whole request. The echo answers a head at once, which may be faster than
// what goes wrong with the body behind it.
func (g *gateway) readsAll() {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	g.Cleanup(s.Close)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	g.put(fx.Service("svc", at.Addr().String(), int(at.Port())))
}

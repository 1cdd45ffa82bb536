package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/test/harness"
)

// TestLimits: the settings for clients' limits, error templates and the debug header, as a user sets them.
func TestLimits(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	template := filepath.Join(t.TempDir(), "e.json")
	if err := os.WriteFile(template, []byte(`{"oops":"%s","id":"%s"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := harness.NewNode(t, "solo", "KONG_NGINX_PROXY_CLIENT_MAX_BODY_SIZE=1k", "KONG_NGINX_HTTP_LARGE_CLIENT_HEADER_BUFFERS=2 1k", "KONG_ERROR_TEMPLATE_JSON="+template,
		"KONG_ALLOW_DEBUG_HEADER=on", "CONCORD_PATH_ESCAPES=pass", "KONG_NGINX_HTTP_KEEPALIVE_REQUESTS=3", "KONG_NGINX_EVENTS_WORKER_CONNECTIONS=30")
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "s", "url", up.URL), 201)
	last := expect(t, "route", n.Form("POST", "/services/s/routes", "paths[]", "/x", "name", "r"), 201)
	n.Get("/", "X-Min-Config-Index", last.Index())
	post := func(body string, header ...string) harness.Answer {
		t.Helper()
		a, err := harness.Do("POST", "http://"+n.Proxy+"/x", "text/plain", body, header...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := post(strings.Repeat("a", 1024)); a.Status != 200 {
		t.Errorf("1 KiB: %d", a.Status)
	}
	if a := post(strings.Repeat("a", 1025), "Accept", "application/json"); a.Status != 413 || !strings.HasPrefix(a.Body, `{"oops":"Payload too large","id":"`) {
		t.Errorf("over 1 KiB: %d %s", a.Status, a.Body)
	}
	for name, v := range map[string]struct {
		send, codes string
	}{
		"chunked body":       {"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + strings.Repeat("a", 4096) + "\r\n0\r\n\r\n", "413"},
		"target":             {"GET /x?" + strings.Repeat("a", 1100) + " HTTP/1.1\r\nHost: a\r\n\r\n", "414"},
		"head":               {"GET /x HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 2100) + "\r\n\r\n", "431"},
		"requests":           {strings.Repeat("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 5), "200 200 200"},
		"escapes as in Kong": {"GET /x%2f..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
	} {
		codes, text := raw(t, n.Proxy, v.send)
		if got := strings.Trim(fmt.Sprint(codes), "[]"); got != v.codes {
			t.Errorf("%s: %s, want %s: %.300q", name, got, v.codes, text)
		}
	}
	if a := n.Get("/x", "Kong-Debug", "1"); a.Header.Get("Kong-Route-Name") != "r" || a.Header.Get("Kong-Service-Name") != "s" || a.Header.Get("Kong-Route-Id") == "" || a.Header.Get("Kong-Service-Id") == "" {
		t.Errorf("%v", a.Header)
	}
	// Thirty connections are taken, the next are closed, and there is room again when they are gone.
	var conns []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", n.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	var closed atomic.Int32
	for _, c := range conns {
		go func() {
			if _, err := c.Read(make([]byte, 1)); err == io.EOF || err != nil && strings.Contains(err.Error(), "reset") {
				closed.Add(1)
			}
		}()
	}
	for deadline := time.Now().Add(60 * time.Second); closed.Load() < 10; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 40 connections were closed, want at least 10", closed.Load())
		}
	}
	if n := closed.Load(); n > 20 { // the client of this test keeps some of its own
		t.Errorf("%d of 40 connections were closed", n)
	}
	for _, c := range conns {
		c.Close()
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if a, err := harness.Do("GET", "http://"+n.Proxy+"/x", "", ""); err == nil && a.Status == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(a.Status, err)
		}
	}
}

// TestClientsLeaveFiles: requests to an upstream that does not answer take the files of the process, but not the last ones: the Admin API answers and
// writes. What the node lacks is 503 and says nothing of the target's health, and it serves again when the clients have gone.
func TestClientsLeaveFiles(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-release
		}
	}))
	t.Cleanup(up.Close)
	answer := sync.OnceFunc(func() { close(release) })
	t.Cleanup(answer)
	n := harness.NewNode(t, "solo")
	n.Files = 256
	n.Start()
	expect(t, "upstream", n.JSON("POST", "/upstreams", `{"name":"app.up","healthchecks":{"passive":{"unhealthy":{"tcp_failures":1,"timeouts":1}}}}`), 201)
	expect(t, "target", n.Form("POST", "/upstreams/app.up/targets", "target", strings.TrimPrefix(up.URL, "http://")), 201)
	expect(t, "service", n.Form("POST", "/services", "name", "s", "url", "http://app.up", "read_timeout", "600000"), 201)
	last := expect(t, "route", n.Form("POST", "/services/s/routes", "paths[]", "/"), 201)
	n.Get("/", "X-Min-Config-Index", last.Index())

	var refused, closed atomic.Int32
	var clients sync.WaitGroup
	var conns []net.Conn
	for range 300 {
		c, err := net.Dial("tcp", n.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		clients.Go(func() {
			fmt.Fprint(c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
			b := make([]byte, 4096)
			switch k, err := c.Read(b); {
			case strings.HasPrefix(string(b[:k]), "HTTP/1.1 503 "):
				refused.Add(1)
			case err != nil && !errors.Is(err, net.ErrClosed):
				closed.Add(1)
			}
		})
	}
	for deadline := time.Now().Add(60 * time.Second); refused.Load()+closed.Load() < 100; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("of 300 clients %d were refused and %d closed", refused.Load(), closed.Load())
		}
	}
	for i := range 10 {
		last = expect(t, "a service meanwhile", n.Form("POST", "/services", "name", fmt.Sprint("s", i), "url", up.URL), 201)
	}
	a := expect(t, "health", n.JSON("GET", "/upstreams/app.up/health", "", "X-Min-Config-Index", last.Index()), 200)
	if !strings.Contains(a.Body, `"HEALTHY"`) || strings.Contains(a.Body, `"UNHEALTHY"`) {
		t.Errorf("health: %s", a.Body)
	}
	answer()
	for _, c := range conns {
		c.Close()
	}
	clients.Wait()
	for _, addr := range []string{n.Admin, n.Status} { // whose clients leave the proxy its files
		for range 300 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = c.Write([]byte("G"))
		}
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if a, err := harness.Do("GET", "http://"+n.Proxy+"/", "", ""); err == nil && a.Status == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(a.Status, err)
		}
	}
}

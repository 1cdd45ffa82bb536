package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/test/harness"
)

// TestCircuitBreaker: a target that answers with errors is taken out, tried with single requests and taken back; what is above the limit of
// requests is refused at once.
func TestCircuitBreaker(t *testing.T) {
	t.Parallel()
	b := balance(t, 1, `{"name":"app.up","circuit_breaker":{"consecutive_errors":3,"base_ejection_time":0.5,"max_ejection_time":0.5,"max_target_requests":10}}`)
	var sick atomic.Bool
	var served, errs atomic.Int64
	hold := make(chan struct{})
	target := func(f http.HandlerFunc) string {
		s := httptest.NewServer(f)
		t.Cleanup(s.Close)
		addr := s.Listener.Addr().String()
		b.write("POST", "/upstreams/app.up/targets", `{"target":"`+addr+`"}`, 201)
		return addr
	}
	bad := target(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path == "/hold" {
			<-hold
		}
		if sick.Load() {
			errs.Add(1)
			w.WriteHeader(503)
		}
	})
	get := func(path string) int {
		t.Helper()
		a := b.Nodes[0].Get("/app"+path, "X-Min-Config-Index", b.index)
		return a.Status
	}
	circuit := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health", "")
			if strings.Contains(a.Body, `"circuit":"`+want+`"`) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the circuit is not %s: %s", want, a.Body)
			}
		}
	}
	good := target(func(http.ResponseWriter, *http.Request) {})
	sick.Store(true)
	for range 60 {
		get("")
	}
	if n := errs.Load(); n < 3 || n > 6 { // a trial may have come already
		t.Errorf("%d requests went to the sick target", n)
	}
	circuit("open")
	if a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health?balancer_health=1", ""); !strings.Contains(a.Body, `"ejected":1`) {
		t.Errorf("pool: %s", a.Body)
	}
	sick.Store(false)
	circuit("half-open")
	for served.Store(0); served.Load() == 0; {
		if s := get(""); s != 200 {
			t.Fatal(s)
		}
	}
	if a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health", ""); strings.Contains(a.Body, `"half-open"`) || strings.Contains(a.Body, `"open"`) {
		t.Errorf("after a good request: %s", a.Body)
	}
	b.write("DELETE", "/upstreams/app.up/targets/"+good, "", 204)
	var busy, fine sync.WaitGroup
	var refused, done atomic.Int64
	count := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); refused.Load() < want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d requests are refused", refused.Load(), want)
			}
		}
	}
	for range 30 {
		busy.Go(func() {
			a, err := harness.Do("GET", "http://"+b.Nodes[0].Proxy+"/app/hold", "", "", "X-Min-Config-Index", b.index)
			switch {
			case err == nil && a.Status == 200:
				done.Add(1)
			case err == nil && a.Status == 503 && strings.Contains(a.Body, "takes no more requests"):
				refused.Add(1)
			default:
				t.Errorf("%d %s %v", a.Status, a.Body, err)
			}
		})
	}
	fine.Go(func() { defer close(hold); count(20) })
	fine.Wait()
	busy.Wait()
	if done.Load() != 10 || refused.Load() != 20 {
		t.Errorf("%s: %d served, %d refused", bad, done.Load(), refused.Load())
	}
	if a, err := harness.Do("GET", "http://"+b.Nodes[0].Status+"/metrics", "", ""); err == nil && a.Status == 200 && !strings.Contains(a.Body, `concord_upstream_rejected_total{upstream="app.up"} 20`) {
		t.Error("the metrics do not tell of the refused requests")
	}
}

// TestNoSecondBody: a request with side effects whose body was begun is not sent again, whatever retries allow; one without is, and elsewhere.
func TestNoSecondBody(t *testing.T) {
	t.Parallel()
	b := balance(t, 1, `{"name":"app.up"}`)
	var mu sync.Mutex
	got := map[string][]string{} // request lines by target
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // reads the head and a byte of the body, and hangs up
					defer c.Close()
					br := bufio.NewReader(c)
					line, _ := br.ReadString('\n')
					mu.Lock()
					got[c.LocalAddr().String()] = append(got[c.LocalAddr().String()], strings.TrimSpace(line))
					mu.Unlock()
					for {
						if h, err := br.ReadString('\n'); err != nil || h == "\r\n" {
							break
						}
					}
					if !strings.HasPrefix(line, "DELETE ") {
						_, _ = br.ReadByte()
					}
				}()
			}
		}()
		b.write("POST", "/upstreams/app.up/targets", `{"target":"`+l.Addr().String()+`"}`, 201)
	}
	b.write("PATCH", "/services/app", `{"retries":1}`, 200)
	for _, tt := range []struct {
		method  string
		body    string
		arrives int
	}{{"POST", "side effect", 1}, {"PATCH", "side effect", 1}, {"PUT", strings.Repeat("x", 1<<20), 1}, {"DELETE", "", 2}} {
		t.Run(tt.method, func(t *testing.T) {
			mu.Lock()
			clear(got)
			mu.Unlock()
			a, err := harness.Do(tt.method, "http://"+b.Nodes[0].Proxy+"/app", "text/plain", tt.body, "X-Min-Config-Index", b.index)
			if err != nil || a.Status != 502 {
				t.Errorf("%d %s %v", a.Status, a.Body, err)
			}
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for addr, list := range got {
				if n += len(list); len(list) != 1 {
					t.Errorf("%s got %v", addr, list)
				}
			}
			if n != tt.arrives {
				t.Errorf("arrived %d times: %v", n, fmt.Sprint(got))
			}
		})
	}
}

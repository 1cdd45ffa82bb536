package balancer

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"concord/test/harness"
)

// server answers every connection with a text; "" closes it, "wait" reads until the other side does.
func server(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				switch answer {
				case "":
				case "wait":
					_, _ = io.Copy(io.Discard, c)
				default:
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						_, _ = c.Write([]byte(answer))
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// grpcServer is a gRPC server with a health service, if there is one.
func grpcServer(t *testing.T, checks *health.Server, o ...grpc.ServerOption) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(o...)
	if checks != nil {
		healthpb.RegisterHealthServer(s, checks)
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return ln.Addr().String()
}

// FuzzServing: whatever a server answers, reading it ends.
func FuzzServing(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 3, 18, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if serving(b) && (len(b) < 7 || b[0] != 0) {
			t.Errorf("%x", b)
		}
	})
}

func TestProbe(t *testing.T) {
	status := func(n int) string {
		return server(t, fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", n))
	}
	var seen atomic.Pointer[http.Request]
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen.Store(r) })
	plain := httptest.NewServer(h)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(h)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	closed := harness.Refused(t).String()
	pair := secure.TLS.Certificates[0]
	mutual := httptest.NewUnstartedServer(h)
	mutual.Config.ErrorLog = log.New(io.Discard, "", 0)
	mutual.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	mutual.StartTLS()
	defer mutual.Close()
	checks := health.NewServer()
	checks.SetServingStatus("good.Service", healthpb.HealthCheckResponse_SERVING)
	checks.SetServingStatus("bad.Service", healthpb.HealthCheckResponse_NOT_SERVING)
	up, upTLS := grpcServer(t, checks), grpcServer(t, checks, grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	host := func(s *httptest.Server) string { return s.Listener.Addr().String() }

	for _, tt := range []struct {
		name, active, addr string
		want               outcome
	}{
		{"200", `{}`, status(200), success},
		{"302", `{}`, status(302), success},
		{"201 is in no list", `{}`, status(201), nothing},
		{"404", `{}`, status(404), httpFailure},
		{"own lists", `{"healthy":{"http_statuses":[418]},"unhealthy":{"http_statuses":[200]}}`, status(200), httpFailure},
		{"own lists, healthy", `{"healthy":{"http_statuses":[418]}}`, status(418), success},
		{"nonsense", `{}`, server(t, "what?\r\n\r\n"), httpFailure},
		{"closed before the answer", `{}`, server(t, ""), tcpFailure},
		{"refused", `{}`, closed, tcpFailure},
		{"silent", `{"timeout":0.05}`, server(t, "wait"), timeout},
		{"tcp", `{"type":"tcp"}`, server(t, ""), success},
		{"tcp, refused", `{"type":"tcp"}`, closed, tcpFailure},
		{"grpc, serving", `{"type":"grpc"}`, up, success},
		{"grpc, a service that serves", `{"type":"grpc","http_path":"/good.Service"}`, up, success},
		{"grpc, a service that does not", `{"type":"grpc","http_path":"/bad.Service"}`, up, httpFailure},
		{"grpc, unknown service", `{"type":"grpc","http_path":"/no.Service"}`, up, httpFailure},
		{"grpc without health service", `{"type":"grpc"}`, grpcServer(t, nil), success},
		{"grpc, closed", `{"type":"grpc"}`, server(t, ""), tcpFailure},
		{"grpc, silent", `{"type":"grpc","timeout":0.05}`, server(t, "wait"), timeout},
		{"grpc, HTTP/1.1", `{"type":"grpc"}`, host(plain), tcpFailure},
		{"grpc, refused", `{"type":"grpc"}`, closed, tcpFailure},
		{"grpcs", `{"type":"grpcs","https_sni":"example.com","http_path":"/good.Service"}`, upTLS, success},
		{"grpcs, not h2", `{"type":"grpcs","https_sni":"example.com"}`, host(secure), tcpFailure},
		{"client certificate", `{"type":"https","https_sni":"example.com"}`, host(mutual), success},
		{"grpcs without TLS", `{"type":"grpcs"}`, host(plain), tcpFailure},
		{"https", `{"type":"https","https_sni":"example.com"}`, host(secure), success},
		{"https, wrong name", `{"type":"https","https_sni":"example.org"}`, host(secure), tcpFailure},
		{"https, not verified", `{"type":"https","https_sni":"example.org","https_verify_certificate":false}`, host(secure), success},
		{"https, silent", `{"type":"https","timeout":0.05}`, server(t, "wait"), timeout},
		{"forbidden", `{}`, "127.0.0.1:1", tcpFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSet(t, Options{Roots: roots, Guard: func(a netip.AddrPort) error {
				if a.Port() == 1 {
					return errors.New("own port")
				}
				return nil
			}})
			ch := change(t, `{"healthchecks":{"active":`+tt.active+`}}`, tt.addr)
			if !strings.Contains(tt.active, "timeout") {
				ch[0].Upstream.Healthchecks.Active.Timeout = 60 // a second is short on a busy machine
			}
			if tt.name == "client certificate" {
				ch[0].ClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			s.Update(true, ch)
			p := s.Pool("up")
			pe := p.plan.Load().live[0].peer
			if got := p.probe(t.Context(), p.plan.Load().config, pe); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}

	for _, tt := range []struct{ name, settings, host string }{
		{"name of the target", `{}`, "a.test"},
		{"host_header", `{"host_header":"b.test:99"}`, "b.test:99"},
		{"Host among the headers", `{"host_header":"b.test","healthchecks":{"active":{"headers":{"host":["c.test"]}}}}`, "c.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen.Store(nil)
			s := newSet(t, Options{Resolver: &book{hosts: map[string]page{"a.test": {addrs: addrs("127.0.0.1")}}}})
			_, port, _ := net.SplitHostPort(host(plain))
			c := change(t, tt.settings, "a.test:"+port)
			a := &c[0].Upstream.Healthchecks.Active
			a.HTTPPath, a.Timeout = "/health%20y;a", 60
			if a.Headers == nil {
				a.Headers = map[string][]string{}
			}
			a.Headers["X-Two"] = []string{"1", "2\r\nX-Evil: 1"}
			s.Update(true, c)
			p := s.Pool("up")
			eventually(t, func() bool { return len(p.plan.Load().live) == 1 })
			if got := p.probe(t.Context(), p.plan.Load().config, p.plan.Load().live[0].peer); got != success {
				t.Fatalf("got %v", got)
			}
			r := seen.Load()
			if r.Host != tt.host || r.RequestURI != "/health%20y;a" || len(r.Header["X-Two"]) != 2 || r.Header["X-Evil"] != nil || r.UserAgent() != "" {
				t.Errorf("asked %s %s with %v", r.Host, r.RequestURI, r.Header)
			}
		})
	}
}

// TestActive: targets go down and come back by probes alone.
func TestActive(t *testing.T) {
	var sick atomic.Bool
	var probes atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		probes.Add(1)
		if sick.Load() {
			w.WriteHeader(500)
		}
	}))
	defer web.Close()
	addr := web.Listener.Addr().String()
	s := New(Options{Resolver: &book{}, SlowStart: -1})
	settings := `{"healthchecks":{"active":{"healthy":{"interval":0.01,"successes":2},"unhealthy":{"interval":0.01,"http_failures":3}}}}`
	s.Update(true, change(t, settings, addr, "127.0.0.1:1 0"))
	p := s.Pool("up")
	eventually(t, func() bool { return probes.Load() > 5 })
	if len(p.plan.Load().live) != 1 {
		t.Fatal("down without a reason")
	}
	sick.Store(true)
	eventually(t, func() bool { return len(p.plan.Load().live) == 0 })
	if _, err := p.Dispatch(newExchange(), false); err != ErrNoPeer {
		t.Errorf("got %v", err)
	}
	sick.Store(false)
	eventually(t, func() bool { return len(p.plan.Load().live) == 1 })

	// Probes stop when they are switched off, and when the upstream is gone.
	s.Update(false, change(t, `{}`, addr))
	quiet := func(why string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; { // a probe that was under way may still arrive
			before := probes.Load()
			time.Sleep(100 * time.Millisecond)
			n := probes.Load() - before
			if n == 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %d probes", why, n)
			}
		}
	}
	quiet("switched off")
	s.Update(false, change(t, settings, addr))
	before := probes.Load()
	eventually(t, func() bool { return probes.Load() > before })
	s.Update(true, nil)
	quiet("gone")
	s.Close()
}

// TestProbesEnd: closing does not wait for a silent peer's timeout, and nothing is left running.
func TestProbesEnd(t *testing.T) {
	asked := make(chan struct{}, 100)
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer web.Close()
	before := goleak.IgnoreCurrent()
	s := New(Options{Resolver: &book{hosts: map[string]page{"slow.test": {delay: time.Hour}}}})
	s.Update(true, change(t, `{"healthchecks":{"active":{"timeout":600,"healthy":{"interval":0.01}}}}`, web.Listener.Addr().String(), "slow.test:80"))
	<-asked
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("Close hangs")
	}
	if !strings.Contains(fmt.Sprint(s.Pool("up").ctx.Err()), "canceled") {
		t.Error("the pool lives on")
	}
	if err := harness.Leaks(before); err != nil {
		t.Error(err)
	}
}

// TestProbeLoad: no more probes at once than concurrency says.
func TestProbeLoad(t *testing.T) {
	var now, most, all atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(5 * time.Millisecond)
		all.Add(1)
	}))
	defer web.Close()
	_, port, _ := net.SplitHostPort(web.Listener.Addr().String())
	r := &book{hosts: map[string]page{}}
	var targets []string
	for i := range 20 {
		name := fmt.Sprintf("t%d.test", i)
		r.hosts[name] = page{addrs: addrs("127.0.0.1")}
		targets = append(targets, name+":"+port)
	}
	s := newSet(t, Options{Resolver: r})
	s.Update(true, change(t, `{"healthchecks":{"active":{"timeout":60,"concurrency":3,"healthy":{"interval":0.02}}}}`, targets...))
	eventually(t, func() bool { return all.Load() > 100 && most.Load() >= 3 })
	if most.Load() != 3 {
		t.Errorf("%d probes at once", most.Load())
	}
}

package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"concord/proxy/dns"
	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

// server answers each request with what f returns; "" closes the connection.
type server struct {
	ln    net.Listener
	conns atomic.Int32
	reqs  atomic.Int32
	ended atomic.Int32 // connections that it has closed
	f     func(n int32, r *http.Request) string
}

func newServer(t *testing.T, ln net.Listener, f func(n int32, r *http.Request) string) *server {
	t.Helper()
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{ln: ln, f: f}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{} // nil: it is over
	wg.Add(1)                   // whoever accepts counts, too: one more may come in the moment of the end
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			mu.Lock()
			if open == nil {
				_ = c.Close()
			} else {
				open[c] = true
			}
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer s.ended.Add(1)
				defer c.Close()
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					b, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					r.Body = io.NopCloser(strings.NewReader(string(b)))
					answer := s.f(s.reqs.Add(1), r)
					if answer == "" {
						return
					}
					if _, err := io.WriteString(c, answer); err != nil || strings.Contains(answer, "Connection: close") {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		open = nil
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *server) port() int { return s.ln.Addr().(*net.TCPAddr).Port }

func reply(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func okay(int32, *http.Request) string { return reply("ok") }

func newTransport(t *testing.T, o Options) *Transport {
	tr := New(o)
	t.Cleanup(tr.Close)
	return tr
}

func request(method, host string, port int) *exchange.Exchange {
	x := &exchange.Exchange{}
	x.Request.Method, x.Request.Path = method, "/"
	x.Upstream = exchange.Upstream{Scheme: "http", Host: host, Port: port, HostHeader: host, Path: "/",
		ConnectTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	return x
}

// do runs one exchange and returns the body.
func do(tr *Transport, x *exchange.Exchange) (string, error) {
	defer tr.Release(x)
	if err := tr.RoundTrip(x); err != nil {
		return "", err
	}
	b, err := x.Response.Buffer(1 << 20)
	return string(b), err
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func mustDo(t *testing.T, tr *Transport, x *exchange.Exchange, want string) {
	t.Helper()
	if got, err := do(tr, x); err != nil || got != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func kind(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func TestReuse(t *testing.T) {
	tests := []struct {
		name   string
		answer func(int32, *http.Request) string
		opts   Options
		conns  int32 // used by four requests
	}{
		{"kept", okay, Options{}, 1},
		{"chunked", func(int32, *http.Request) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
		}, Options{}, 1},
		{"closed by the upstream", func(int32, *http.Request) string {
			return "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
		}, Options{}, 4},
		{"said to be closed", func(int32, *http.Request) string {
			return "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok"
		}, Options{}, 4},
		{"HTTP/1.0", func(int32, *http.Request) string { return "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" }, Options{}, 4},
		{"HTTP/1.0 kept", func(int32, *http.Request) string {
			return "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
		}, Options{}, 1},
		{"at most two requests", okay, Options{MaxRequests: 2}, 2},
		{"surplus bytes", func(int32, *http.Request) string { return reply("ok") + "!" }, Options{}, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, nil, tt.answer)
			tr := newTransport(t, tt.opts)
			for range 4 {
				mustDo(t, tr, request("GET", "127.0.0.1", s.port()), "ok")
			}
			if n := s.conns.Load(); n != tt.conns {
				t.Errorf("%d connections, want %d", n, tt.conns)
			}
		})
	}
}

func TestPoolLimits(t *testing.T) {
	s := newServer(t, nil, okay)
	tr := newTransport(t, Options{MaxIdle: 2, IdleTimeout: 200 * time.Millisecond})
	var xs []*exchange.Exchange
	for range 5 {
		x := request("GET", "127.0.0.1", s.port())
		if err := tr.RoundTrip(x); err != nil {
			t.Fatal(err)
		}
		xs = append(xs, x)
	}
	for _, x := range xs {
		_, _ = x.Response.Buffer(100)
		tr.Release(x)
	}
	idle := func() (n int) {
		tr.mu.RLock()
		defer tr.mu.RUnlock()
		for _, e := range tr.endpoints {
			e.mu.Lock()
			n += len(e.idle)
			e.mu.Unlock()
		}
		return n
	}
	if n := idle(); n > 2 {
		t.Errorf("%d connections kept", n)
	}
	for i := 0; ; i++ {
		tr.mu.RLock()
		left := len(tr.endpoints)
		tr.mu.RUnlock()
		if left == 0 {
			break
		}
		if i > 1000 {
			t.Fatalf("%d idle connections, %d endpoints are never given up", idle(), left)
		}
		time.Sleep(10 * time.Millisecond)
	}
	mustDo(t, tr, request("GET", "127.0.0.1", s.port()), "ok")
}

// TestStale: the upstream closes kept connections. That is noticed before or after writing, and never seen by the client. Where a body streams it
// must be noticed before: it cannot be sent twice.
// TestNoFiles: when the node has no file for one more connection, those that nobody uses are closed for it; without such it is 503, and no failure of the upstream.
func TestNoFiles(t *testing.T) {
	var lacks atomic.Int32 // so many dials find none
	clock := h1.NewClock()
	defer clock.Stop()
	tr := newTransport(t, Options{Clock: clock, Control: func(string, string, syscall.RawConn) error {
		if lacks.Add(-1) >= 0 {
			return syscall.EMFILE
		}
		return nil
	}})
	first, second := newServer(t, nil, okay), newServer(t, nil, okay)
	mustDo(t, tr, request("GET", "127.0.0.1", first.port()), "ok")
	start := clock.Millis()
	eventually(t, "the clock runs", func() bool { return clock.Millis() > start+200 })
	lacks.Store(1)
	mustDo(t, tr, request("GET", "127.0.0.1", second.port()), "ok")
	eventually(t, "the kept connection is closed", func() bool { return first.ended.Load() == 1 })
	lacks.Store(100)
	x := request("GET", "127.0.0.1", first.port())
	x.Upstream.Retries = 5
	if _, err := do(tr, x); kind(err) != Refused || x.Tries != 1 {
		t.Errorf("%d tries: %v", x.Tries, err)
	}
}

func TestStale(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		for _, method := range []string{"GET", "POST", "streaming PUT"} {
			t.Run(scheme+" "+method, func(t *testing.T) {
				var ln net.Listener
				if scheme == "https" {
					ln, _ = listenTLS(t, nil)
				}
				s := newServer(t, ln, func(n int32, r *http.Request) string {
					b, _ := io.ReadAll(r.Body)
					return strings.Replace(reply(r.Method+string(b)), "\r\n", "\r\nX-Connection: close\r\n", 1) // closes without saying so
				})
				tr := newTransport(t, Options{})
				for i := range int32(4) {
					verb, stream := strings.CutPrefix(method, "streaming ")
					x := request(verb, "127.0.0.1", s.port())
					x.Upstream.Scheme = scheme
					if stream {
						x.Request.Body, x.Request.Length = &slow{"hi", 0}, 2
					} else {
						x.Request.SetBody([]byte("hi"))
					}
					mustDo(t, tr, x, verb+"hi")
					eventually(t, "it is closed", func() bool { return s.ended.Load() == i+1 })
					time.Sleep(20 * time.Millisecond) // the end arrives
				}
				if n := s.reqs.Load(); n != 4 {
					t.Errorf("%d requests arrived", n)
				}
			})
		}
	}
}

func TestRetries(t *testing.T) {
	tests := []struct {
		name, method string
		retries      int
		answer       func(n int32, r *http.Request) string
		stream       bool
		want         Kind
		reqs         int32
	}{
		{name: "closed once", method: "GET", retries: 1, answer: second, reqs: 2},
		{name: "no retries", method: "GET", answer: second, want: Closed, reqs: 1},
		{name: "always closed", method: "GET", retries: 3, answer: never, want: Closed, reqs: 4},
		{name: "POST was sent", method: "POST", retries: 3, answer: second, want: Closed, reqs: 1},
		{name: "PUT is repeated", method: "PUT", retries: 3, answer: second, reqs: 2},
		{name: "streamed body is gone", method: "PUT", retries: 3, answer: second, stream: true, want: Closed, reqs: 1},
		{name: "timeout", method: "GET", retries: 1, answer: late, reqs: 2},
		{name: "invalid answer", method: "GET", retries: 3, answer: func(int32, *http.Request) string { return "nonsense\r\n\r\n" }, want: Invalid, reqs: 1},
		{name: "status is no error", method: "GET", retries: 3, answer: func(int32, *http.Request) string {
			return "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nok"
		}, reqs: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, nil, tt.answer)
			tr := newTransport(t, Options{})
			x := request(tt.method, "127.0.0.1", s.port())
			x.Upstream.Retries = tt.retries
			if tt.name == "timeout" {
				x.Upstream.ReadTimeout = 500 * time.Millisecond
			}
			causes := 0
			x.Upstream.Retry = func(x *exchange.Exchange, err error) error {
				causes++
				x.Upstream.ReadTimeout = time.Minute // only the first one is late
				return nil
			}
			if tt.stream {
				x.Request.Body, x.Request.Length = &slow{strings.Repeat("x", 3), 0}, 3
			} else {
				x.Request.SetBody([]byte("abc"))
			}
			got, err := do(tr, x)
			if kind(err) != tt.want || err == nil && got != "ok" {
				t.Errorf("got %q, %v", got, err)
			}
			eventually(t, "all requests have arrived", func() bool { return s.reqs.Load() >= tt.reqs })
			if n := s.reqs.Load(); n != tt.reqs || x.Tries != int(n) || causes != int(n)-1 {
				t.Errorf("%d requests, %d tries, Retry called %d times, want %d", n, x.Tries, causes, tt.reqs)
			}
			if x.Peer.Port() != uint16(s.port()) {
				t.Errorf("Peer is %v", x.Peer)
			}
		})
	}
}

func never(int32, *http.Request) string { return "" }
func second(n int32, _ *http.Request) string {
	if n == 1 {
		return ""
	}
	return reply("ok")
}
func late(n int32, _ *http.Request) string {
	if n == 1 {
		time.Sleep(time.Second)
	}
	return reply("ok")
}

// slow is a streamed body, a byte at a time.
type slow struct {
	s string
	d time.Duration
}

func (b *slow) Next() ([]byte, error) {
	if b.s == "" {
		return nil, io.EOF
	}
	time.Sleep(b.d)
	p := b.s[:1]
	b.s = b.s[1:]
	return []byte(p), nil
}
func (b *slow) Close() error { return nil }

func TestKinds(t *testing.T) {
	closed := int(harness.Refused(t).Port())
	mute, err := net.Listen("tcp", "127.0.0.1:0") // never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	over := make(chan struct{})
	silent := newServer(t, nil, func(int32, *http.Request) string { <-over; return "" })
	t.Cleanup(func() { close(over) })
	good := newServer(t, nil, okay)
	guard := func(a netip.AddrPort) error {
		if int(a.Port()) == good.port() {
			return errors.New("own port")
		}
		return nil
	}
	tests := []struct {
		name   string
		change func(*exchange.Exchange)
		kind   Kind
		status int
	}{
		{"refused", func(x *exchange.Exchange) { x.Upstream.Port = closed }, Connect, 502},
		{"guarded", func(x *exchange.Exchange) {}, Refused, 503},
		{"guarded in IPv6 clothes", func(x *exchange.Exchange) { x.Upstream.Host = "::ffff:127.0.0.1" }, Refused, 503},
		{"guarded by name", func(x *exchange.Exchange) { x.Upstream.Host = "good.example" }, Refused, 503},
		{"unknown name", func(x *exchange.Exchange) { x.Upstream.Host = "nowhere.example" }, Resolve, 503},
		{"silent", func(x *exchange.Exchange) {
			x.Upstream.Port, x.Upstream.ReadTimeout = silent.port(), 50*time.Millisecond
		}, Timeout, 504},
		{"not TLS", func(x *exchange.Exchange) { x.Upstream.Port, x.Upstream.Scheme = silent.port(), "https" }, Connect, 502},
		{"TLS handshake without answer", func(x *exchange.Exchange) {
			x.Upstream.Port, x.Upstream.Scheme = mute.Addr().(*net.TCPAddr).Port, "https"
			x.Upstream.ConnectTimeout = 100 * time.Millisecond
		}, Timeout, 504},
		{"body breaks off", func(x *exchange.Exchange) {
			x.Upstream.Port = silent.port()
			x.Request.Body, x.Request.Length = &slow{"ab", 0}, 5
		}, Request, 400},
		{"body too long", func(x *exchange.Exchange) {
			x.Upstream.Port = silent.port()
			x.Request.Body, x.Request.Length = &slow{"abcdef", 0}, 5
		}, Request, 400},
		{"line break", func(x *exchange.Exchange) {
			x.Upstream.Port = silent.port()
			x.Upstream.HostHeader = "a\r\nX: y"
		}, Canceled, 500},
	}
	tr := newTransport(t, Options{Guard: guard, Resolver: table{"good.example": {netip.MustParseAddr("127.0.0.1")}}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := request("GET", "127.0.0.1", good.port())
			tt.change(x)
			_, err := do(tr, x)
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind || e.Status() != tt.status {
				t.Errorf("got %v", err)
			}
		})
	}
	if good.conns.Load() != 0 {
		t.Error("a guarded address was dialled")
	}
}

// table is a resolver.
type table map[string][]netip.Addr

func (m table) Addresses(_ context.Context, host string) ([]netip.Addr, time.Duration, error) {
	if a, ok := m[host]; ok {
		return a, 0, nil
	}
	return nil, 0, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (m table) Services(context.Context, string) ([]*net.SRV, time.Duration, error) {
	return nil, 0, nil
}

// changing is a resolver whose answer is set from outside.
type changing struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	srv   []*net.SRV
	calls int
}

func (c *changing) Services(context.Context, string) ([]*net.SRV, time.Duration, error) {
	return c.srv, time.Second, nil
}

func (c *changing) Addresses(context.Context, string) ([]netip.Addr, time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return c.addrs, 0, c.err
}

func (c *changing) set(err error, addrs ...netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addrs, c.err = addrs, err
}

func TestNames(t *testing.T) {
	s := newServer(t, nil, okay)
	local, dead := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	r := &changing{}
	tr := newTransport(t, Options{Resolver: r, DNS: dns.Policy{ValidTTL: time.Hour, ErrorTTL: time.Hour}})
	x := func() *exchange.Exchange {
		x := request("GET", "name.example", s.port())
		x.Upstream.Retries = 1
		return x
	}
	expire := func() {
		tr.names.mu.Lock()
		defer tr.names.mu.Unlock()
		tr.names.m["name.example"].until = time.Time{}
	}
	asked := func(want int) { // in the background, as long as there is an answer
		t.Helper()
		eventually(t, "it is asked", func() bool {
			tr.names.mu.RLock()
			defer tr.names.mu.RUnlock()
			return tr.names.m["name.example"].pending == nil
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.calls != want {
			t.Errorf("%d look-ups, want %d", r.calls, want)
		}
	}
	r.set(errors.New("no network"))
	for range 3 {
		if _, err := do(tr, x()); kind(err) != Resolve {
			t.Fatal(err)
		}
	}
	asked(1) // a failure is remembered
	expire()
	// Whichever address comes first, the next try takes the other one.
	r.set(nil, dead, local)
	for range 4 {
		mustDo(t, tr, x(), "ok")
	}
	asked(2)
	r.set(nil, local)
	expire()
	mustDo(t, tr, x(), "ok")
	asked(3)
	// The old answer serves while the resolver fails.
	r.set(errors.New("no network"))
	expire()
	for range 3 {
		mustDo(t, tr, x(), "ok")
	}
	asked(4)
	// That there is no such name is an answer too.
	r.set(&net.DNSError{Err: "no such host", IsNotFound: true})
	expire()
	mustDo(t, tr, x(), "ok") // it is asked in the background
	asked(5)
	if _, err := do(tr, x()); kind(err) != Resolve {
		t.Errorf("gone, and %v", err)
	}
}

// TestServices: SRV records of a service's host tell ports, by weight; failures are remembered, and not for any number of names.
func TestServices(t *testing.T) {
	a, b := newServer(t, nil, okay), newServer(t, nil, okay)
	r := &changing{addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, srv: []*net.SRV{
		{Target: "s.test.", Port: uint16(a.port()), Weight: 30}, {Target: "s.test.", Port: uint16(b.port()), Weight: 10},
	}}
	tr := newTransport(t, Options{Resolver: r, DNS: dns.Policy{ValidTTL: time.Hour, ErrorTTL: time.Hour}, MaxNames: 5})
	for range 40 {
		mustDo(t, tr, request("GET", "web.test", 80), "ok")
	}
	if x, y := a.reqs.Load(), b.reqs.Load(); x != 30 || y != 10 {
		t.Errorf("%d and %d requests", x, y)
	}
	r.mu.Lock()
	r.srv, r.err, r.calls = nil, errors.New("no network"), 0
	r.mu.Unlock()
	for range 20 {
		if _, err := do(tr, request("GET", "broken.test", 80)); kind(err) != Resolve {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		_, _ = do(tr, request("GET", fmt.Sprint(i, ".test"), 80))
	}
	tr.names.mu.RLock()
	defer tr.names.mu.RUnlock()
	if r.calls != 21 || len(tr.names.m) > 5 {
		t.Errorf("%d questions, %d names remembered", r.calls, len(tr.names.m))
	}
}

// TestSeldomPlace: a place that hardly ever has its turn serves as soon as the others fail.
func TestSeldomPlace(t *testing.T) {
	s, dead := newServer(t, nil, okay), harness.Refused(t)
	r := &changing{addrs: []netip.Addr{dead.Addr()}, srv: []*net.SRV{
		{Target: "s.test.", Port: dead.Port(), Weight: 10000}, {Target: "s.test.", Port: uint16(s.port()), Weight: 1},
	}}
	tr := newTransport(t, Options{Resolver: r, DNS: dns.Policy{ValidTTL: time.Hour}})
	for range 20 {
		x := request("GET", "web.test", 80)
		x.Upstream.Retries = 1
		mustDo(t, tr, x, "ok")
		x.Upstream.Scheme = "tcp"
		nc, err := tr.Connect(x, "tcp")
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
}

// listenTLS listens with a certificate for service.example; names is told the server name of each client, if it is not nil.
func listenTLS(t *testing.T, names chan<- string) (net.Listener, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"service.example"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if names != nil {
				names <- h.ServerName
			}
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return ln, cert
}

func TestTLS(t *testing.T) {
	names := make(chan string, 10)
	ln, cert := listenTLS(t, names)
	s := newServer(t, ln, okay)
	tr := newTransport(t, Options{})
	x := func(host string, c *tls.Config) *exchange.Exchange {
		x := request("GET", "127.0.0.1", s.port())
		x.Upstream.Scheme, x.Upstream.HostHeader, x.Upstream.TLS = "https", host, c
		return x
	}
	for range 2 {
		mustDo(t, tr, x("service.example:8443", nil), "ok")
	}
	mustDo(t, tr, x("other.example", nil), "ok") // not verified by default, and another connection
	if n := s.conns.Load(); n != 2 || <-names != "service.example" || <-names != "other.example" {
		t.Errorf("%d connections", n)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	strict := &tls.Config{RootCAs: roots}
	mustDo(t, tr, x("service.example", strict), "ok")
	if _, err := do(tr, x("other.example", strict)); kind(err) != Connect {
		t.Errorf("got %v", err)
	}
}

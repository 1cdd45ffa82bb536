package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/listen"
	"concord/proxy/plugin"
	"concord/proxy/stream"
	"concord/proxy/upstream"
	"concord/test/harness"
)

// patience is how long anything may take on a slow machine.
const patience = 60 * time.Second

// gateway is a stream server with its data plane.
type gateway struct {
	*stream.Server
	t     *testing.T
	db    *fixture.DB
	log   lines
	addrs []string
}

// lines are the access log.
type lines struct {
	mu   sync.Mutex
	text string
}

func (l *lines) Append(line func([]byte) []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += string(line(nil))
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

// waitFor waits for a line with all of the words.
func (l *lines) waitFor(t *testing.T, words ...string) string {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	next:
		for line := range strings.Lines(l.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return line
		}
	}
	t.Fatalf("no line with %q in the access log:\n%s", words, l)
	return ""
}

// start serves the listeners with these rows.
func start(t *testing.T, listeners string, change func(*stream.Options), rows ...any) *gateway {
	t.Helper()
	g := &gateway{t: t, db: fixture.New(t)}
	g.db.Put(rows...)
	quiet := slog.New(slog.DiscardHandler)
	pools := balancer.New(balancer.Options{Log: quiet})
	compiler := dataplane.New(dataplane.Options{Store: g.db.Store, Plugins: []plugin.Plugin{doorkeeper()}, Log: quiet, Pools: pools})
	transport := upstream.New(upstream.Options{Guard: func(at netip.AddrPort) error {
		if at.Port() == forbidden {
			return fmt.Errorf("%s is forbidden", at)
		}
		return nil
	}})
	specs, err := listen.Parse(listeners)
	if err != nil {
		t.Fatal(err)
	}
	o := stream.Options{Specs: specs, Log: quiet, TLS: &tls.Config{GetCertificate: compiler.Certificate}}
	if change != nil {
		change(&o)
	}
	if g.Server, err = stream.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, a := range g.Addrs() {
		g.addrs = append(g.addrs, a.String())
	}
	served := make(chan error, 1)
	go func() {
		served <- g.Serve(stream.Gateway{
			Holder: compiler.Holder(), Upstreams: transport, Pools: pools, AccessLog: &g.log, JSON: true,
			TrustedIPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		})
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		g.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
		compiler.Close(context.Background())
		pools.Close()
		transport.Close()
	})
	return g
}

// forbidden is a port that the guard does not let through.
const forbidden = 1

// doorkeeper is a plugin that turns sessions away or breaks.
func doorkeeper() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{Name: "doorkeeper", Priority: 1000, Streams: true, Config: schema.Field{Fields: []schema.Field{{Name: "panic", Type: schema.Boolean}, {Name: "version", Type: schema.Integer}}}},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *keeper) (plugin.Instance, error) {
			return c, nil
		}),
	}
}

type keeper struct {
	Panic   bool `json:"panic"`
	Version int  `json:"version"` // of the PROXY header to send; 0: the session is turned away
}

func (k *keeper) StreamAccess(x *exchange.Exchange) error {
	if x.Upstream.ProxyProtocol = k.Version; k.Version != 0 {
		return nil
	}
	if k.Panic {
		panic("broken")
	}
	return &plugin.Exit{Status: 403}
}

func refusing(route, panics string) *entity.Plugin {
	p := fixture.Plugin("on "+route, "doorkeeper", `{"panic":`+panics+`}`, route, "", "")
	p.Protocols = []string{"tcp"}
	return p
}

func service(name, protocol, addr string) *entity.Service {
	at := netip.MustParseAddrPort(addr)
	s := fixture.Service(name, at.Addr().String(), int(at.Port()))
	s.Protocol = protocol
	return s
}

func route(name, service, protocol string, change func(*entity.Route)) *entity.Route {
	r := fixture.Route(name, service)
	r.Protocols, r.Paths = []string{protocol}, nil
	if change != nil {
		change(r)
	}
	return r
}

func anywhere(r *entity.Route)                   { r.Sources = []entity.IPPort{{IP: "127.0.0.0/8"}} }
func forSNI(names ...string) func(*entity.Route) { return func(r *entity.Route) { r.SNIs = names } }

// backend is a TCP server that handles every connection with f.
func backend(t *testing.T, f func(c net.Conn)) string {
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
				f(c)
			}()
		}
	}()
	return ln.Addr().String()
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c)
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
}

// says answers everybody with a word.
func says(word string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, word)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
}

// overTLS serves f under a certificate for a name.
func overTLS(t *testing.T, name string, f func(net.Conn)) func(net.Conn) {
	pair, _, _ := certificate(t, name)
	return func(c net.Conn) { f(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})) }
}

func certificate(t *testing.T, name string) (pair tls.Certificate, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = toPEM("CERTIFICATE", der), toPEM("PRIVATE KEY", raw)
	if pair, err = tls.X509KeyPair([]byte(cert), []byte(key)); err != nil {
		t.Fatal(err)
	}
	return pair, cert, key
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func dialTLS(t *testing.T, addr, sni string) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(dial(t, addr), &tls.Config{ServerName: sni, InsecureSkipVerify: true}) //nolint:gosec // the test looks at the certificate itself
	return c, c.Handshake()
}

// ask sends a text, ends it and returns the whole answer.
func ask(t *testing.T, c interface {
	io.ReadWriter
	CloseWrite() error
}, text string,
) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%q, then %v", b, err)
	}
	return string(b)
}

// refused demands that a connection ends without a byte.
func refused(t *testing.T, c net.Conn) {
	t.Helper()
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("got %q, want nothing", b)
	}
}

func TestTCP(t *testing.T) {
	g := start(t, "127.0.0.1:0", nil, service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", anywhere))
	c := dial(t, g.addrs[0])
	if got := ask(t, c, "hello"); got != "hello" {
		t.Errorf("got %q", got)
	}
	g.log.waitFor(t, `"protocol":"tcp"`, `"status":200`, `"bytes_sent":5,"bytes_received":5`, fixture.ID("r"))
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	c = dial(t, g.addrs[0])
	go func() {
		_, _ = c.Write(big)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
	g.log.waitFor(t, fmt.Sprintf(`"bytes_sent":%d,"bytes_received":%d`, len(big), len(big)))
}

// The upstream speaks first, and goes on after the client has ended its part.
func TestHalfClose(t *testing.T) {
	addr := backend(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready\n")
		all, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "%d bytes\n", len(all))
	})
	g := start(t, "127.0.0.1:0", nil, service("s", "tcp", addr), route("r", "s", "tcp", anywhere))
	c := dial(t, g.addrs[0])
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "220 ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	if got := ask(t, c, "12345"); got != "5 bytes\n" {
		t.Errorf("got %q", got)
	}
}

func TestTLS(t *testing.T) {
	_, cert, key := certificate(t, "a.example.com")
	row := &entity.Certificate{ID: fixture.ID("cert"), Cert: cert, Key: key}
	sni := &entity.SNI{ID: fixture.ID("sni"), Name: "a.example.com", Certificate: entity.Ref{ID: row.ID}}
	g := start(t, "127.0.0.1:0 ssl", nil, row, sni,
		service("plain", "tcp", backend(t, echo)), route("to plain", "plain", "tls", forSNI("a.example.com")),
		service("secure", "tls", backend(t, overTLS(t, "inner", says("secure")))), route("to secure", "secure", "tls", forSNI("*.example.com")),
		service("p", "tcp", backend(t, overTLS(t, "p.example.org", says("passed")))), route("to p", "p", "tls_passthrough", forSNI("p.example.org")),
		service("q", "tls_passthrough", backend(t, overTLS(t, "q", says("other")))), route("to q", "q", "tls_passthrough", forSNI("q.*")),
	)
	for _, c := range []struct{ sni, certificate, want string }{
		{"a.example.com", "a.example.com", "hello"},
		{"p.example.org", "p.example.org", "passed"},
		{"P.EXAMPLE.org", "p.example.org", "passed"},
		{"q.test", "q", "other"},
	} {
		t.Run(c.sni, func(t *testing.T) {
			tc, err := dialTLS(t, g.addrs[0], c.sni)
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.ConnectionState().PeerCertificates[0].Subject.CommonName; got != c.certificate {
				t.Errorf("certificate of %q, want %q", got, c.certificate)
			}
			if got := ask(t, tc, "hello"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	t.Run("unknown name", func(t *testing.T) {
		_, err := dialTLS(t, g.addrs[0], "z.test")
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("error %v", err)
		}
		g.log.waitFor(t, `"sni":"z.test"`, `"status":404`)
	})
	t.Run("no TLS", func(t *testing.T) {
		c := dial(t, g.addrs[0])
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		refused(t, c)
		g.log.waitFor(t, `"status":400`)
	})
	t.Run("fragments", func(t *testing.T) {
		tc := tls.Client(fragmented{dial(t, g.addrs[0])}, &tls.Config{ServerName: "p.example.org", InsecureSkipVerify: true}) //nolint:gosec // only what is said counts
		if got := ask(t, tc, "x"); got != "passed" {
			t.Errorf("got %q", got)
		}
	})
}

// fragmented sends every record in pieces of 20 bytes, the ClientHello too.
type fragmented struct{ net.Conn }

func (f fragmented) Write(b []byte) (int, error) {
	for i := 0; i < len(b); i += 20 {
		if n, err := f.Conn.Write(b[i:min(i+20, len(b))]); err != nil {
			return i + n, err
		}
		if i < 200 {
			time.Sleep(time.Millisecond) // for segments of their own
		}
	}
	return len(b), nil
}

func TestRefusals(t *testing.T) {
	addr := backend(t, says("secret"))
	at := func(port int) func(*entity.Route) {
		return func(r *entity.Route) { r.Sources = []entity.IPPort{{IP: fmt.Sprintf("127.0.0.%d", port)}} }
	}
	http := service("http", "http", addr)
	g := start(t, "127.0.0.1:0", nil, service("s", "tcp", addr), http,
		service("gone", "tcp", harness.Refused(t).String()), service("admin", "tcp", fmt.Sprintf("127.0.0.1:%d", forbidden)), service("udp", "udp", addr),
		route("kept", "s", "tcp", at(2)), refusing("kept", "false"),
		route("panics", "s", "tcp", at(3)), refusing("panics", "true"),
		route("gone", "gone", "tcp", at(4)), route("admin", "admin", "tcp", at(5)), route("http", "http", "tcp", at(6)), route("none", "", "tcp", at(7)),
		route("udp", "udp", "tcp", at(8)),
	)
	for _, c := range []struct {
		name   string
		from   int
		status int
	}{
		{"no route", 9, 404},
		{"a plugin says no", 2, 403},
		{"a plugin panics", 3, 500},
		{"nobody listens", 4, 502},
		{"the guard forbids it", 5, 502},
		{"the service speaks HTTP", 6, 404},
		{"no service", 7, 503},
		{"the service speaks UDP", 8, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := fmt.Sprintf("127.0.0.%d", c.from)
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
			nc, err := d.Dial("tcp", g.addrs[0])
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			refused(t, nc)
			g.log.waitFor(t, `"client_ip":"`+from+`"`, fmt.Sprintf(`"status":%d`, c.status))
		})
	}
}

func TestTargets(t *testing.T) {
	up := &entity.Upstream{
		ID: fixture.ID("up"), Name: "pool", Algorithm: "round-robin", Slots: 10000, HashOn: "none", HashFallback: "none",
		Healthchecks: entity.Healthchecks{Passive: entity.PassiveChecks{
			Healthy: entity.Successes{HTTPStatuses: []int{200}}, Unhealthy: entity.Failures{TCPFailures: 2},
		}},
	}
	target := func(name, addr string) *entity.Target {
		return &entity.Target{ID: fixture.ID(name), Target: addr, Upstream: entity.Ref{ID: up.ID}}
	}
	s := fixture.Service("s", "pool", 80)
	s.Protocol = "tcp"
	dead := harness.Refused(t).String()
	g := start(t, "127.0.0.1:0", nil, up, target("a", backend(t, says("a"))), target("b", backend(t, says("b"))), target("c", dead), s, route("r", "s", "tcp", anywhere))
	got := map[string]int{}
	for range 12 {
		got[ask(t, dial(t, g.addrs[0]), "")]++
	}
	if got["a"]+got["b"] != 12 || got["a"] < 4 || got["b"] < 4 {
		t.Errorf("answers %v, want all of them from a and b", got)
	}
}

func TestUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	s := service("s", "udp", server.LocalAddr().String())
	s.ReadTimeout = 4000 // long enough for all that follows on a slow machine
	var stats stream.Stats
	g := start(t, "0.0.0.0:0 udp", func(o *stream.Options) { o.MaxClients, o.Stats = 2, &stats }, s, route("r", "s", "udp", anywhere))
	port := netip.MustParseAddrPort(g.addrs[0]).Port()
	client := func(host string) *net.UDPConn {
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(host), port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UDPConn)
	}
	// The answer comes from the address that was asked: another one would not get through to a connected socket.
	one, two := client("127.0.0.1"), client("127.0.0.5")
	for i := range 3 {
		for name, c := range map[string]*net.UDPConn{"one": one, "two": two} {
			text := fmt.Sprintf("%s %d", name, i)
			if got := say(t, c, text, patience); got != "re: "+text {
				t.Errorf("%s got %q", name, got)
			}
		}
	}
	// A third client is turned away, until one of the two has been silent for long enough.
	three := client("127.0.0.1")
	_, _ = three.Write([]byte("x"))
	_ = three.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := three.Read(make([]byte, 10)); err == nil {
		t.Errorf("the third client got %d bytes", n)
	}
	refusals := func() uint64 { _, datagrams := stats.Refused(); return datagrams }
	for end := time.Now().Add(patience); refusals() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if connections, datagrams := stats.Refused(); connections != 0 || datagrams != 1 {
		t.Errorf("%d connections and %d datagrams refused", connections, datagrams)
	}
	g.log.waitFor(t, `"protocol":"udp"`, `"status":200`, `"bytes_received":15`, `"bytes_sent":27`)
	if got := say(t, three, "again", 500*time.Millisecond); got != "re: again" {
		t.Errorf("got %q", got)
	}
}

// Clients that nobody answers give way to others, and only they.
func TestUDPUnanswered(t *testing.T) {
	t.Parallel() // it mostly waits
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) != "nothing" {
				_, _ = server.WriteTo(buf[:n], from)
			}
		}
	}()
	var stats stream.Stats
	g := start(t, "127.0.0.1:0 udp", func(o *stream.Options) { o.MaxClients, o.Stats = 20, &stats }, service("s", "udp", server.LocalAddr().String()), route("r", "s", "udp", anywhere))
	client := func() *net.UDPConn {
		c, err := net.Dial("udp", g.addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UDPConn)
	}
	known := []*net.UDPConn{client(), client()}
	for _, c := range known {
		say(t, c, "hello", patience)
	}
	for range 40 { // 18 find a place
		_, _ = client().Write([]byte("nothing"))
	}
	for range 18 {
		if got := say(t, client(), "new", 100*time.Millisecond); got != "new" {
			t.Errorf("got %q", got)
		}
	}
	// All places are taken by those who were answered.
	late := client()
	_, _ = late.Write([]byte("late"))
	_ = late.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
	if n, err := late.Read(make([]byte, 10)); err == nil {
		t.Errorf("the last client got %d bytes", n)
	}
	for _, c := range known {
		_, _ = c.Write([]byte("still here"))
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 20)); err != nil || n != len("still here") {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	if _, open := stats.Counters(); open != 20 {
		t.Errorf("%d sessions", open)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Shutdown(ctx)
	if _, open := stats.Counters(); open != 0 {
		t.Errorf("%d sessions at the end", open)
	}
}

// say sends a datagram, again after each interval, until there is an answer.
func say(t *testing.T, c *net.UDPConn, text string, every time.Duration) string {
	t.Helper()
	buf := make([]byte, 65535)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(every))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	t.Fatal("no answer")
	return ""
}

func TestIdle(t *testing.T) {
	t.Parallel() // it mostly waits
	s := service("s", "tcp", backend(t, echo))
	s.ReadTimeout = 2000
	g := start(t, "127.0.0.1:0", nil, s, route("r", "s", "tcp", anywhere))
	c := dial(t, g.addrs[0])
	for range 4 { // longer than the limit in all
		time.Sleep(600 * time.Millisecond)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, c) // silence ends it
	g.log.waitFor(t, `"bytes_received":4`, `"status":200`)
}

func TestProxyProtocol(t *testing.T) {
	g := start(t, "127.0.0.1:0 proxy_protocol", nil, service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", func(r *entity.Route) {
		r.Sources = []entity.IPPort{{IP: "192.0.2.0/24"}}
	}))
	if got := ask(t, dial(t, g.addrs[0]), "PROXY TCP4 192.0.2.7 192.0.2.1 1000 443\r\nhello"); got != "hello" {
		t.Errorf("got %q", got)
	}
	g.log.waitFor(t, `"client_ip":"192.0.2.7"`, `"status":200`)
	c := dial(t, g.addrs[0])
	_, _ = io.WriteString(c, "hello, without a header\r\n")
	refused(t, c)
	g.log.waitFor(t, `"client_ip":"127.0.0.1"`, `"status":400`)
}

func TestProxyHeaderToUpstream(t *testing.T) {
	sent := &entity.Plugin{ID: fixture.ID("header"), Name: "doorkeeper", Config: []byte(`{"panic":false,"version":1}`), Enabled: true, Protocols: []string{"tcp"}}
	g := start(t, "127.0.0.1:0", nil, service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", anywhere), sent)
	c := dial(t, g.addrs[0])
	local := c.LocalAddr().(*net.TCPAddr)
	want := fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %s\r\nhello", local.Port, strings.TrimPrefix(g.addrs[0], "127.0.0.1:"))
	if got := ask(t, c, "hello"); got != want {
		t.Errorf("the upstream got %q, want %q", got, want)
	}
}

// A datagram that comes in again would make a session after the other.
func TestUDPLoop(t *testing.T) {
	for _, listener := range []string{"127.0.0.1:0 udp", "0.0.0.0:0 udp"} {
		s := fixture.Service("s", "127.0.0.1", 1)
		s.Protocol = "udp"
		var stats stream.Stats
		g := start(t, listener, func(o *stream.Options) { o.Stats = &stats }, s, route("r", "s", "udp", anywhere))
		at := netip.MustParseAddrPort(g.addrs[0])
		s.Port = int(at.Port())
		g.db.Put(s)
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port()).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent := uint64(0)
		for end := time.Now().Add(patience); !strings.Contains(g.log.String(), "listener of this gateway itself"); sent++ {
			_, _ = c.Write([]byte("x")) // again: the data plane may need a moment
			time.Sleep(20 * time.Millisecond)
			if time.Now().After(end) {
				t.Fatalf("no refusal: %s", &g.log)
			}
		}
		if n, _ := stats.Counters(); n > sent+50 {
			t.Errorf("%d sessions of %d datagrams", n, sent)
		}
	}
}

// Another server takes the sockets over, as in a change of the binary.
func TestInherited(t *testing.T) {
	rows := []any{service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", anywhere)}
	old := start(t, "127.0.0.1:0, 127.0.0.1:0 udp", nil, rows...)
	in := &listen.Inherited{}
	if err := old.Sockets(func(name string, fd int) error {
		copied, err := syscall.Dup(fd)
		in.Add(name, copied)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	next := start(t, "127.0.0.1:0, 127.0.0.1:0 udp", func(o *stream.Options) { o.Inherited = in }, rows...)
	if strings.Join(old.addrs, " ") != strings.Join(next.addrs, " ") {
		t.Fatalf("%v became %v", old.addrs, next.addrs)
	}
	old.Close()
	if got := ask(t, dial(t, next.addrs[0]), "hello"); got != "hello" {
		t.Errorf("got %q", got)
	}
	next.log.waitFor(t, `"status":200`)
}

// A server that others have taken over from lets go of its UDP sockets too: each reload leaves one behind.
func TestStopFreesUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	for _, clients := range []int{0, 1} {
		g := start(t, "127.0.0.1:0 udp", nil, service("s", "udp", server.LocalAddr().String()), route("r", "s", "udp", anywhere))
		if clients > 0 {
			c, err := net.Dial("udp", g.addrs[0])
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			say(t, c.(*net.UDPConn), "x", patience)
		}
		g.Stop()
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			if g.Sockets(func(string, int) error { return nil }) != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d clients: the socket is still open", clients)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	s, r := service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", anywhere)
	t.Run("a client that says nothing", func(t *testing.T) {
		g := start(t, "127.0.0.1:0 ssl", func(o *stream.Options) { o.HelloTimeout = 200 * time.Millisecond }, s, r)
		c := dial(t, g.addrs[0])
		_, _ = c.Write([]byte{22, 3, 1})
		refused(t, c)
		g.log.waitFor(t, `"status":400`)
	})
	t.Run("connections", func(t *testing.T) {
		// Two servers, as after a reload, share the limit.
		var stats stream.Stats
		limited := func(o *stream.Options) { o.MaxSessions, o.Stats = 2, &stats }
		g, before := start(t, "127.0.0.1:0", limited, s, r), start(t, "127.0.0.1:0", limited, s, r)
		first := dial(t, g.addrs[0])
		second := dial(t, before.addrs[0])
		for _, c := range []net.Conn{first, second} {
			_, _ = c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, dial(t, g.addrs[0]))
		refused(t, dial(t, before.addrs[0]))
		accepted, active := stats.Counters()
		if connections, datagrams := stats.Refused(); accepted != 2 || active != 2 || connections != 2 || datagrams != 0 {
			t.Errorf("%d accepted, %d active, %d connections and %d datagrams refused", accepted, active, connections, datagrams)
		}
		_ = first.Close()
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			c := dial(t, g.addrs[0])
			_, _ = c.Write([]byte("x"))
			if n, _ := c.Read(make([]byte, 1)); n == 1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("no room after a connection has ended")
			}
		}
	})
}

func TestShutdown(t *testing.T) {
	g := start(t, "127.0.0.1:0", nil, service("s", "tcp", backend(t, echo)), route("r", "s", "tcp", anywhere))
	c, cut := dial(t, g.addrs[0]), dial(t, g.addrs[0])
	for _, c := range []net.Conn{c, cut} {
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { g.Shutdown(ctx); close(done) }()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { // nobody comes in any more
		late, err := net.Dial("tcp", g.addrs[0])
		if err != nil {
			break
		}
		late.Close()
		if time.Now().After(end) {
			t.Fatal("still accepting")
		}
	}
	if got := ask(t, c, "still here"); got != "still here" {
		t.Errorf("got %q", got)
	}
	cancel()
	refused(t, cut)
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Shutdown does not return")
	}
}

func toPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

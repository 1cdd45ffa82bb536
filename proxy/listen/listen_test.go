package listen_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/listen"
	"concord/test/harness"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		value string
		want  []listen.Spec
		err   string
	}{
		{"off", nil, ""},
		{" off ", nil, ""},
		{"0.0.0.0:8000, 0.0.0.0:8443 http2 ssl", []listen.Spec{{Address: "0.0.0.0:8000"}, {Address: "0.0.0.0:8443", HTTP2: true, SSL: true}}, ""},
		{"[::]:8000 ipv6only=on", []listen.Spec{{Address: "[::]:8000", IPv6Only: "on"}}, ""},
		{"127.0.0.1:0 reuseport deferred bind backlog=16384 so_keepalive=off", []listen.Spec{{Address: "127.0.0.1:0", ReusePort: true, Deferred: true, Backlog: 16384, KeepAlive: "off"}}, ""},
		{":8000 so_keepalive=30m::10 proxy_protocol", []listen.Spec{{Address: ":8000", ProxyProtocol: true, KeepAlive: "30m::10"}}, ""},
		{":8000 so_keepalive=60:5s: ipv6only=off", []listen.Spec{{Address: ":8000", IPv6Only: "off", KeepAlive: "60:5s:"}}, ""},
		{"h:1 ssl http3, h:2 quic ssl", []listen.Spec{{Address: "h:1", SSL: true, HTTP3: true}, {Address: "h:2", SSL: true, HTTP3: true}}, ""},
		{"h:1 quic", nil, `"h:1 quic": http3 is for listeners with TLS: write h:1 ssl http3`},
		{"h:1 ssl http3 proxy_protocol", nil, `"h:1 ssl http3 proxy_protocol": http3 does not go with proxy_protocol, which is for TCP: QUIC would come without it; use two addresses`},
		{"", nil, `"": an address is missing; write host:port, or off`},
		{"1.2.3.4:80,", nil, `"": an address is missing; write host:port, or off`},
		{"8000", nil, `"8000": not an address: write host:port such as 0.0.0.0:8000 or [::]:8000, or off`},
		{"unix:/run/x.sock", nil, `"unix:/run/x.sock": a Unix socket is not supported; write host:port, for example 127.0.0.1:8000`},
		{"h:http", nil, `"h:http": port "http" is not a number between 0 and 65535`},
		{"h:99999", nil, `"h:99999": port "99999" is not a number between 0 and 65535`},
		{"h:1 tls", nil, `"h:1 tls": unknown flag "tls"; known: ssl, http2, http3, proxy_protocol, reuseport, deferred, bind, backlog=n, ipv6only=on|off, so_keepalive=on|off|idle:interval:count`},
		{"h:1 fastopen=3", nil, `"h:1 fastopen=3": unknown flag "fastopen=3"; known: ssl, http2, http3, proxy_protocol, reuseport, deferred, bind, backlog=n, ipv6only=on|off, so_keepalive=on|off|idle:interval:count`},
		{"h:1 backlog=no", nil, `"h:1 backlog=no": backlog: "no" is not a number from 1 to 1048576`},
		{"0.0.0.0:1 ipv6only=on", nil, `"0.0.0.0:1 ipv6only=on": ipv6only: the address is an IPv4 one`},
		{"h:1 so_keepalive=::", nil, `"h:1 so_keepalive=::": so_keepalive: "::" is not on, off, or idle:interval:count such as 30m::10`},
		{"h:1 so_keepalive=1ms::", nil, `"h:1 so_keepalive=1ms::": so_keepalive: "1ms::" is not on, off, or idle:interval:count such as 30m::10`},
		{"h:1 so_keepalive=::200", nil, `"h:1 so_keepalive=::200": so_keepalive: "::200" is not on, off, or idle:interval:count such as 30m::10`},
	} {
		got, err := listen.Parse(c.value)
		if d := cmp.Diff(c.want, got); d != "" || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%q: %v\n%s", c.value, err, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0.0.0.0:8000, 0.0.0.0:8443 http2 ssl")
	f.Add("[::1]:0 so_keepalive=1:2:3 backlog=1 proxy_protocol")
	f.Fuzz(func(t *testing.T, value string) {
		specs, err := listen.Parse(value)
		if err != nil {
			return
		}
		for _, s := range specs {
			again, err := listen.Parse(s.String())
			if err != nil || len(again) != 1 || again[0].Address != s.Address || again[0].SSL != s.SSL || again[0].HTTP2 != s.HTTP2 || again[0].ProxyProtocol != s.ProxyProtocol {
				t.Fatalf("%q: %q is not read again: %v %v", value, s, again, err)
			}
		}
	})
}

func TestDefaultCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ssl")
	first, err := listen.DefaultCertificate(dir, "gw.example.com")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "gw.example.com", "127.0.0.1", "::1"} {
		if err := first.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "default.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v: want 0600", err, info.Mode())
	}
	second, err := listen.DefaultCertificate(dir, "gw.example.com")
	if err != nil || !first.Leaf.Equal(second.Leaf) {
		t.Errorf("a second start made another certificate: %v", err)
	}
	for _, damage := range []func() error{
		func() error { return os.WriteFile(filepath.Join(dir, "default.crt"), []byte("nonsense"), 0o600) },
		func() error { return os.Remove(filepath.Join(dir, "default.crt")) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := listen.DefaultCertificate(dir, ""); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "default.crt")) {
			t.Errorf("%v", err)
		}
	}
}

// hello tells what it knows of the connection.
type hello struct{}

func (hello) Serve(x *exchange.Exchange) {
	x.Response.Status = 200
	x.Response.SetBody([]byte(x.Request.Scheme + " " + x.Conn.SNI + " " + x.Conn.Peer.Addr().String()))
}
func (hello) Finish(*exchange.Exchange) {}

func open(t *testing.T, set func(*listen.Options)) (*listen.Group, *h1.Server, []string) {
	t.Helper()
	cert, err := listen.DefaultCertificate(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	srv := h1.New(h1.Options{Handler: hello{}})
	specs, err := listen.Parse("127.0.0.1:0, 127.0.0.1:0 ssl http2")
	if err != nil {
		t.Fatal(err)
	}
	special := named(t, "a.example.com")
	choose := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		switch hello.ServerName {
		case "a.example.com":
			return &special, nil
		case "broken.example.com":
			return nil, errors.New("cannot be read")
		}
		return nil, nil
	}
	o := listen.Options{Specs: specs, Server: srv, TLS: listen.TLSConfig(listen.TLSOptions{Default: cert, Choose: choose}), Log: slog.New(slog.DiscardHandler)}
	if set != nil {
		set(&o)
	}
	g, err := listen.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve() }()
	t.Cleanup(func() {
		g.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("drain: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	var addrs []string
	for _, a := range g.Addrs() {
		addrs = append(addrs, a.String())
	}
	return g, srv, addrs
}

func named(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// get asks twice on one connection and returns the second answer.
func get(t *testing.T, nc net.Conn) string {
	t.Helper()
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(nc)
	body := ""
	for range 2 {
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		body = string(b)
	}
	return body
}

func dialTLS(t *testing.T, addr, sni string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: sni, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestPlainAndTLSOnBothPorts(t *testing.T) {
	_, _, addrs := open(t, nil)
	if got := get(t, dial(t, addrs[0])); got != "http  127.0.0.1" {
		t.Errorf("plain: %q", got)
	}
	for i, addr := range addrs { // TLS is understood on the plain port too
		c := dialTLS(t, addr, "a.example.com")
		if got := get(t, c); got != "https a.example.com 127.0.0.1" {
			t.Errorf("TLS: %q", got)
		}
		want := []string{"http/1.1", "h2"}[i] // the second listener has the flag http2
		if p := c.ConnectionState().NegotiatedProtocol; p != want {
			t.Errorf("listener %d: protocol %q, want %q", i, p, want)
		}
	}
}

// TestProtocols: what a client offers by ALPN (RFC 7301), with and without the flag http2.
func TestProtocols(t *testing.T) {
	_, _, addrs := open(t, nil)
	for _, tt := range []struct {
		name  string
		offer []string
		want  [2]string // "refused": no protocol in common (RFC 7301 §3.2)
	}{
		{"nothing", nil, [2]string{"", ""}},
		{"old", []string{"http/1.0"}, [2]string{"http/1.0", "http/1.0"}},
		{"both", []string{"http/1.0", "http/1.1"}, [2]string{"http/1.1", "http/1.1"}},
		{"one unknown", []string{"spdy/3", "http/1.1"}, [2]string{"http/1.1", "http/1.1"}},
		{"all unknown", []string{"spdy/3"}, [2]string{"refused", "refused"}},
		{"HTTP/2", []string{"http/1.0", "h2"}, [2]string{"http/1.0", "h2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i, addr := range addrs {
				got := "refused"
				if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: tt.offer}); err == nil {
					got = c.ConnectionState().NegotiatedProtocol
					_ = c.Close()
				}
				if got != tt.want[i] {
					t.Errorf("listener %d: %q, want %q", i, got, tt.want[i])
				}
			}
		})
	}
}

func TestCertificateBySNI(t *testing.T) {
	_, _, addrs := open(t, nil)
	for sni, want := range map[string]string{
		"a.example.com": "a.example.com", "other.org": "localhost", "": "localhost",
	} {
		if got := dialTLS(t, addrs[1], sni).ConnectionState().PeerCertificates[0].DNSNames[0]; got != want {
			t.Errorf("SNI %q: certificate of %s, want %s", sni, got, want)
		}
	}
	if c, err := tls.Dial("tcp", addrs[1], &tls.Config{InsecureSkipVerify: true, ServerName: "broken.example.com"}); err == nil {
		c.Close()
		t.Error("a name whose certificate cannot be used was served with another one")
	}
	if c := listen.TLSConfig(listen.TLSOptions{}); c.MinVersion != tls.VersionTLS12 {
		t.Errorf("TLS begins at %#x", c.MinVersion)
	}
}

func TestPlainRequestOnTLSPort(t *testing.T) {
	_, _, addrs := open(t, nil)
	c := dial(t, addrs[1])
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"+strings.Repeat("x", 100_000))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 400 || !strings.HasPrefix(string(body), "The plain HTTP request was sent to an HTTPS port") {
		t.Errorf("%v %d %q", err, res.StatusCode, body)
	}
	c = dial(t, addrs[1])
	_, _ = io.WriteString(c, "\x00\x01garbage")
	if b, _ := io.ReadAll(c); len(b) != 0 {
		t.Errorf("garbage is answered with %q", b)
	}
}

// gone checks that the other side closes soon.
func gone(t *testing.T, c net.Conn, what string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: the connection stays open (%v)", what, err)
	}
}

func TestPatience(t *testing.T) {
	g, _, addrs := open(t, func(o *listen.Options) {
		o.FirstByteTimeout, o.HandshakeTimeout = 30*time.Millisecond, 30*time.Millisecond
	})
	gone(t, dial(t, addrs[0]), "silent client")
	half := dial(t, addrs[1])
	_, _ = half.Write([]byte{0x16, 3, 1, 2, 0, 1})
	gone(t, half, "half a handshake")
	for end := time.Now().Add(60 * time.Second); g.Conns() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still counted", g.Conns())
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	_, _, addrs := open(t, func(o *listen.Options) { o.MaxConns = 2 })
	a, b := dial(t, addrs[0]), dial(t, addrs[0])
	get(t, a)
	get(t, b)
	gone(t, dial(t, addrs[0]), "one too many")
	_ = a.Close()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c := dial(t, addrs[0])
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the place of a closed connection is not free")
		}
	}
}

// TestSharedConnectionLimit: what a reload opens counts with what was open before.
func TestSharedConnectionLimit(t *testing.T) {
	var conns atomic.Int64
	limit := func(o *listen.Options) { o.MaxConns, o.Conns = 2, &conns }
	before, _, addrs := open(t, limit)
	get(t, dial(t, addrs[0]))
	_, _, addrs = open(t, limit)
	get(t, dial(t, addrs[0]))
	if n := before.Conns(); n != 2 {
		t.Errorf("%d connections are counted", n)
	}
	gone(t, dial(t, addrs[0]), "one too many")
}

func TestCloseEndsWaitingConnections(t *testing.T) {
	g, _, addrs := open(t, nil)
	silent, half := dial(t, addrs[0]), dial(t, addrs[1])
	_, _ = half.Write([]byte{0x16})
	for end := time.Now().Add(60 * time.Second); g.Conns() < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	time.Sleep(20 * time.Millisecond)
	g.Close()
	gone(t, silent, "silent client")
	gone(t, half, "half a handshake")
	if c, err := net.Dial("tcp", addrs[0]); err == nil {
		_ = c.Close()
		t.Error("still accepts")
	}
}

func TestOpenOpensAllOrNothing(t *testing.T) {
	_, _, addrs := open(t, nil)
	addr, err := harness.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, err = listen.Open(context.Background(), listen.Options{Specs: []listen.Spec{{Address: addr}, {Address: addrs[0]}}})
	if err == nil || !strings.Contains(err.Error(), addrs[0]) {
		t.Fatalf("%v", err)
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the first socket was left open: %v", err)
	}
	_ = again.Close()
}

func TestReusePort(t *testing.T) {
	specs, err := listen.Parse("127.0.0.1:0 reuseport deferred")
	if err != nil {
		t.Fatal(err)
	}
	a, err := specs[0].Listen(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	specs[0].Address = a.Addr().String()
	b, err := specs[0].Listen(context.Background(), nil)
	if err != nil {
		t.Fatalf("a second listener on the same port: %v", err)
	}
	_ = b.Close()
}

// returned tells when a server returns.
type returned struct {
	listen.ConnServer
	n *atomic.Int64
}

func (r returned) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	defer r.n.Add(1)
	r.ConnServer.ServeConn(nc, info)
}

// TestParkedCounts: a connection counts until it has ended, not until its server has returned.
func TestParkedCounts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections keep their goroutines")
	}
	var n atomic.Int64
	g, _, addrs := open(t, func(o *listen.Options) { o.Server = returned{o.Server, &n} })
	c := dial(t, addrs[0])
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
		t.Fatal(r, err)
	}
	for end := time.Now().Add(60 * time.Second); n.Load() != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it keeps its goroutine")
		}
	}
	if g.Conns() != 1 {
		t.Fatal(g.Conns())
	}
	_ = c.Close()
	for end := time.Now().Add(60 * time.Second); g.Conns() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it still counts")
		}
	}
}

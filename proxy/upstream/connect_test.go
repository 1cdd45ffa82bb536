package upstream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"concord/proxy/exchange"
	"concord/proxy/proxyproto"
)

// behindProxy is a listener whose connections begin with a PROXY header.
type behindProxy struct {
	net.Listener
	mu      sync.Mutex
	sources []netip.AddrPort
}

func (b *behindProxy) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	h, rest, err := proxyproto.Read(c, nil)
	if err != nil {
		_ = c.Close()
		return b.Accept()
	}
	b.mu.Lock()
	b.sources = append(b.sources, h.Source)
	b.mu.Unlock()
	return &rejoined{c, io.MultiReader(strings.NewReader(string(rest)), c)}, nil
}

type rejoined struct {
	net.Conn
	r io.Reader
}

func (r *rejoined) Read(p []byte) (int, error) { return r.r.Read(p) }

// A connection with a header is one client's alone.
func TestProxyHeader(t *testing.T) {
	for _, version := range []int{1, 2} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b := &behindProxy{Listener: ln}
		s := newServer(t, b, okay)
		tr := newTransport(t, Options{})
		for _, client := range []string{"192.0.2.1:1000", "192.0.2.2:2000"} {
			x := request("GET", "127.0.0.1", s.port())
			x.Conn = exchange.Conn{Peer: netip.MustParseAddrPort(client), Local: netip.MustParseAddrPort("192.0.2.9:80")}
			x.ClientIP, x.Upstream.ProxyProtocol = x.Conn.Peer.Addr(), version
			mustDo(t, tr, x, "ok")
		}
		x := request("GET", "127.0.0.1", s.port())
		x.Upstream.HTTP2, x.Upstream.ProxyProtocol = true, version
		if _, err := do(tr, x); kind(err) != Refused {
			t.Errorf("over HTTP/2: %v", err)
		}
		b.mu.Lock()
		if len(b.sources) != 2 || b.sources[0].String() != "192.0.2.1:1000" || b.sources[1].String() != "192.0.2.2:2000" {
			t.Errorf("version %d: connections of %v", version, b.sources)
		}
		b.mu.Unlock()
	}
}

func TestProxyHeaderPort(t *testing.T) {
	x := &exchange.Exchange{ClientIP: netip.MustParseAddr("203.0.113.5")}
	x.Conn = exchange.Conn{Peer: netip.MustParseAddrPort("192.0.2.1:1000"), Local: netip.MustParseAddrPort("192.0.2.9:80")}
	x.Upstream.ProxyProtocol = 1
	if got := string(proxyHeader(x)); got != "PROXY TCP4 203.0.113.5 192.0.2.9 0 80\r\n" {
		t.Errorf("from a header of a trusted proxy: %q", got)
	}
	x.Conn.Proxied = netip.MustParseAddrPort("203.0.113.5:7000")
	if got := string(proxyHeader(x)); got != "PROXY TCP4 203.0.113.5 192.0.2.9 7000 80\r\n" {
		t.Errorf("from the PROXY protocol: %q", got)
	}
}

func TestConnect(t *testing.T) {
	s := newServer(t, nil, okay)
	tr := newTransport(t, Options{})
	x := &exchange.Exchange{}
	x.Upstream.Host, x.Upstream.Port, x.Upstream.Retries = "127.0.0.1", 1, 1
	x.Upstream.Retry = func(x *exchange.Exchange, _ error) error { x.Upstream.Port = s.port(); return nil }
	nc, err := tr.Connect(x, "tcp")
	if err != nil || x.Tries != 2 || int(x.Peer.Port()) != s.port() {
		t.Fatalf("%v after %d tries, peer %s", err, x.Tries, x.Peer)
	}
	defer nc.Close()
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	x.Upstream.Port, x.Upstream.Retries = 1, 0
	if _, err := tr.Connect(x, "tcp"); kind(err) != Connect {
		t.Errorf("to a port where nobody listens: %v", err)
	}
}

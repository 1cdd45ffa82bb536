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
	"sync/atomic"
	"testing"
	"time"

	"concord/proxy"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// held is a gateway that awaits 16 bytes of request bodies, before an upstream that tells how it received them.
type held struct {
	*gateway
	access  chan struct{} // a request has come through the access phase
	began   chan struct{} // one to /x has arrived at the upstream
	arrived atomic.Int64  // how many of them
}

func startHeld(t *testing.T) *held {
	h := &held{access: make(chan struct{}, 8), began: make(chan struct{}, 8)}
	h.gateway = start(t, func(o *proxy.Options) { o.HeldBody = 16 }, hooked("told", 1, func(plugin.Config) hook {
		return hook{access: func(*exchange.Exchange) error { h.access <- struct{}{}; return nil }}
	}))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.arrived.Add(1)
		h.began <- struct{}{}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d%v %s%s%v", r.ContentLength, r.TransferEncoding, b, r.Trailer.Get("A"), err)
	}))
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	x, stream := fx.Route("x", "svc", "/x"), fx.Route("stream", "svc", "/stream")
	x.RequestBuffering = true
	h.put(fx.Service("svc", at.Addr().String(), int(at.Port())), x, stream,
		fx.Plugin("p", "told", "{}", "x", "", ""), fx.Plugin("q", "told", "{}", "stream", "", ""))
	return h
}

// begin sends the beginning of a request and returns when it is behind the access phase.
func (h *held) begin(text string) (net.Conn, *bufio.Reader) {
	h.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	h.send(c, text)
	<-h.access
	return c, bufio.NewReader(c)
}

func (h *held) send(c net.Conn, text string) {
	h.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		h.Fatal(err)
	}
}

func (h *held) end(r *bufio.Reader) (int, string) {
	h.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		h.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestHeldBody(t *testing.T) {
	h := startHeld(t)
	const length, chunked = "Content-Length: %d", "Transfer-Encoding: chunked"
	for _, c := range []struct {
		name, path, framing, first, rest string
		early                            bool // the upstream gets the request before the rest is sent
		want                             string
	}{
		{"short", "/x", fmt.Sprintf(length, 6), "abc", "def", false, "6[] abcdef<nil>"},
		{"as long as what is held", "/x", fmt.Sprintf(length, 16), "0123456789", "abcdef", false, "16[] 0123456789abcdef<nil>"},
		{"longer", "/x", fmt.Sprintf(length, 18), "0123456789abcdefg", "h", true, "18[] 0123456789abcdefgh<nil>"},
		{"longer, with little of it", "/x", fmt.Sprintf(length, 18), "0123", "456789abcdefgh", false, "18[] 0123456789abcdefgh<nil>"},
		{"chunked", "/x", chunked, "3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n", false, "6[] abcdef<nil>"},
		{"chunked, all at once", "/x", chunked, "3\r\nabc\r\n0\r\n\r\n", "", false, "3[] abc<nil>"},
		{"chunked, empty", "/x", chunked, "0\r\n\r\n", "", false, "0[] <nil>"},
		{"chunked, with trailers", "/x", chunked, "3\r\nabc\r\n", "3\r\ndef\r\n0\r\nA: b\r\n\r\n", false, "-1[chunked] abcdefb<nil>"},
		{"chunked, longer", "/x", chunked, "3\r\nabc\r\ne\r\ndefghijklmnopq\r\n", "1\r\nr\r\n0\r\n\r\n", true, "-1[chunked] abcdefghijklmnopqr<nil>"},
		{"the route wants it streamed", "/stream", fmt.Sprintf(length, 6), "abc", "def", true, "6[] abcdef<nil>"},
		{"chunked, the route wants it streamed", "/stream", chunked, "3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n", true, "-1[chunked] abcdef<nil>"},
	} {
		before := h.arrived.Load()
		conn, r := h.begin("POST " + c.path + " HTTP/1.1\r\nHost: gw\r\n" + c.framing + "\r\n\r\n" + c.first)
		if c.early {
			<-h.began
		} else if c.rest != "" && h.arrived.Load() != before {
			t.Errorf("%s: the upstream was asked before the body was there", c.name)
		}
		h.send(conn, c.rest)
		if status, body := h.end(r); status != 200 || body != c.want {
			t.Errorf("%s: %d %q, want %q", c.name, status, body, c.want)
		}
		if !c.early {
			<-h.began
		}
		conn.Close()
	}
}

// TestHeldBodyWithoutEnd: what never becomes a request reaches nobody.
func TestHeldBodyWithoutEnd(t *testing.T) {
	h := startHeld(t)
	for _, framing := range []string{"Content-Length: 10\r\n\r\nabc", "Content-Length: 1000\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"} {
		conn, r := h.begin("POST /x HTTP/1.1\r\nHost: gw\r\n" + framing)
		_ = conn.(*net.TCPConn).CloseWrite()
		if status, body := h.end(r); status != 400 {
			t.Errorf("%q: %d %q", framing, status, body)
		}
	}
	conn, r := h.begin("POST /x HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	h.send(conn, "no size\r\n")
	if status, body := h.end(r); status != 400 {
		t.Errorf("%d %q", status, body)
	}
	if n := h.arrived.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestHeldBodyContinue: a client that waits for 100 Continue gets it from the gateway.
func TestHeldBodyContinue(t *testing.T) {
	h := startHeld(t)
	for _, n := range []int{6, 40} {
		conn, r := h.begin(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: gw\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", n))
		if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		body := strings.Repeat("a", n)
		h.send(conn, body)
		if status, got := h.end(r); status != 200 || got != fmt.Sprintf("%d[] %s<nil>", n, body) {
			t.Errorf("%d %q", status, got)
		}
	}
}

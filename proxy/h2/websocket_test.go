package h2

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
)

// TestWebSocket: CONNECT with :protocol websocket is an upgrade for the handler and a tunnel for the client (RFC 8441).
func TestWebSocket(t *testing.T) {
	upstream, _ := listenFor(t, func(nc net.Conn) { // echoes, and says so at the end
		_, _ = io.Copy(nc, nc)
		_, _ = io.WriteString(nc, "bye")
	})
	h := &handlerFunc{serve: func(x *exchange.Exchange) {
		r, p := &x.Request, &x.Response
		key := r.Header.Get("sec-websocket-key")
		if r.Method != "GET" || r.Upgrade != "websocket" || r.Body != nil || key == "" || key == "mine" || r.Header.Count("sec-websocket-key") != 1 {
			t.Errorf("request %+v", r)
		}
		x.Upstream.ReadTimeout = 10 * time.Second
		switch r.Path {
		case "/refused":
			p.Status = 403
			p.SetBody([]byte("no"))
			return
		case "/wrong":
			key = "another"
		case "/silent":
			x.Upstream.ReadTimeout = 50 * time.Millisecond
		}
		nc, err := net.Dial("tcp", upstream)
		if err != nil {
			t.Error(err)
			return
		}
		x.Proxied = true
		p.Status, p.Tunnel = http.StatusSwitchingProtocols, &timedTunnel{nc.(*net.TCPConn), x.Upstream.ReadTimeout}
		p.Header.Add("Sec-WebSocket-Accept", accepts(key))
		p.Header.Add("Sec-WebSocket-Protocol", "chat")
	}}
	s, addr := startServer(t, Options{Handler: h})
	open := func(path string) *rawClient {
		c := dialRaw(t, addr).hello()
		c.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a.test", ":path", path,
			"sec-websocket-version", "13", "sec-websocket-key", "mine")
		return c
	}
	for _, tt := range []struct{ path, status, body string }{{"/refused", "403", "no"}, {"/wrong", "502", ""}} {
		c := open(tt.path)
		if a := c.await(1); a.status != tt.status || a.body != tt.body || a.header["sec-websocket-accept"] != "" {
			t.Errorf("%s: %+v", tt.path, a)
		}
	}
	c := open("/chat")
	var got strings.Builder
	until := func(want string) {
		t.Helper()
		for got.String() != want {
			f, err := c.next()
			if err != nil {
				t.Fatalf("%v after %d bytes", err, got.Len())
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if v, ok := f.Value(http2.SettingEnableConnectProtocol); !f.IsAck() && (!ok || v != 1) {
					t.Error("it is not offered")
				}
			case *http2.MetaHeadersFrame:
				if h := f.RegularFields(); f.PseudoValue("status") != "200" || len(h) < 1 || h[0].Value != "chat" {
					t.Errorf("head %v", f)
				}
			case *http2.DataFrame:
				got.Write(f.Data())
			}
		}
	}
	want := ""
	for _, message := range []string{"one", "two", strings.Repeat("x", 10_000)} { // each comes back before the next is sent
		c.data(1, false, message)
		want += message
		until(want)
	}
	c.data(1, true, "")
	until(want + "bye")
	if a := c.await(1); !a.end {
		t.Errorf("end: %+v", a)
	}
	// A client that resets ends the tunnel; one that says nothing for too long is cut.
	c = open("/chat")
	c.data(1, false, "a")
	got.Reset()
	until("a")
	c.do(c.fr.WriteRSTStream(1, http2.ErrCodeCancel))
	if a := open("/silent").await(1); !a.wasReset && !a.end {
		t.Errorf("silent: %+v", a)
	}
	waitFor(t, "a tunnel goes on", func() bool { served, finished := h.counts(); return served == finished })
	if n := s.Conns(); n == 0 {
		t.Error("the connections did not survive their tunnels")
	}
}

// timedTunnel is a connection whose reads time out, as h1's.
type timedTunnel struct {
	*net.TCPConn
	limit time.Duration
}

func (t *timedTunnel) Next() ([]byte, error) {
	_ = t.SetReadDeadline(time.Now().Add(t.limit))
	p := make([]byte, 1000)
	n, err := t.TCPConn.Read(p)
	return p[:n], err
}

func TestAccepts(t *testing.T) {
	if got := accepts("dGhlIHNhbXBsZSBub25jZQ=="); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455 §1.3
		t.Error(got)
	}
}

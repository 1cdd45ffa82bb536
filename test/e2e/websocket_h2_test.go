package e2e

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/test/harness"
)

// TestWebSocketOverHTTP2: Go's HTTP/2 client opens a WebSocket (RFC 8441) to an upstream that knows HTTP/1.1 only, through the gateway.
func TestWebSocketOverHTTP2(t *testing.T) {
	t.Parallel()
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
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				r, err := http.ReadRequest(br)
				if err != nil || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Version") != "13" {
					fmt.Fprint(c, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
					return
				}
				sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
				fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
				_, _ = io.Copy(c, br)
			}()
		}
	}()
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + " http2, " + n.ProxyTLS + " http2 ssl"}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "ws", "url", "http://"+l.Addr().String()), 201)
	last := expect(t, "route", n.JSON("POST", "/services/ws/routes", `{"paths":["/ws"]}`), 201)
	if a := n.Get("/none", "X-Min-Config-Index", last.Index()); a.Status != 404 {
		t.Fatal(a.Status, a.Body)
	}
	tr := extendedConnect(n)
	for _, url := range []string{"http://" + n.Proxy + "/ws", "https://" + n.ProxyTLS + "/ws"} {
		t.Run(url[:5], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			pr, pw := io.Pipe()
			r, err := http.NewRequestWithContext(ctx, http.MethodConnect, url, pr)
			if err != nil {
				t.Fatal(err)
			}
			r.Header[":protocol"] = []string{"websocket"}
			r.Header.Set("Sec-WebSocket-Version", "13")
			res, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != 200 {
				t.Fatal(res.Status)
			}
			for i := range 200 {
				message := make([]byte, 1+i*50)
				message[0] = byte(i)
				go func() { _, _ = pw.Write(message) }()
				back := make([]byte, len(message))
				if _, err := io.ReadFull(res.Body, back); err != nil || back[0] != byte(i) {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			pw.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("end: %q %v", rest, err)
			}
		})
	}
}

// extendedConnect is a client that may send ":protocol", which net/http's refuses as a header field.
//
//nolint:staticcheck // deprecated in favour of net/http's
func extendedConnect(n *harness.Node) http.RoundTripper {
	return &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, c *tls.Config) (net.Conn, error) {
		if addr == n.ProxyTLS {
			return (&tls.Dialer{Config: c}).DialContext(ctx, network, addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
}

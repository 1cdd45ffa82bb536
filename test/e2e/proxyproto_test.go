package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestProxyProtocol: the address in the header is the client's, for upstreams and plugins, if a trusted peer sent it.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	const v1 = "PROXY TCP4 192.0.2.9 192.0.2.1 1234 80\r\n"
	const v2 = "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x04\xd2\x00\x50"
	for name, c := range map[string]struct {
		trusted    string
		four, six  string // what the upstream sees
		restricted int
	}{
		"trusted":   {"127.0.0.0/8", "192.0.2.9", "2001:db8::9", 403},
		"untrusted": {"10.0.0.0/8", "127.0.0.1", "127.0.0.1", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := harness.NewNode(t, "solo")
			n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + " proxy_protocol, " + n.ProxyTLS + " ssl proxy_protocol", "CONCORD_TRUSTED_IPS=" + c.trusted,
				"CONCORD_REAL_IP_HEADER=proxy_protocol"}
			n.Start()
			n.Form("POST", "/services", "name", "echo", "url", harness.StartEcho(t).URL)
			n.Form("POST", "/services/echo/routes", "paths[]", "/")
			ask := func(addr, header string, secure bool, fields ...string) harness.Answer {
				t.Helper()
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(nc, header)
				if secure {
					nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
				}
				io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n"+strings.Join(append(fields, ""), "\r\n")+"\r\n")
				res, err := http.ReadResponse(bufio.NewReader(nc), nil)
				if err != nil {
					return harness.Answer{}
				}
				b, _ := io.ReadAll(res.Body)
				return harness.Answer{Status: res.StatusCode, Header: res.Header, Body: string(b)}
			}
			for _, r := range []struct {
				addr, header string
				secure       bool
				want         string
			}{{n.Proxy, v1, false, c.four}, {n.ProxyTLS, v1, true, c.four}, {n.Proxy, v2, false, c.six}, {n.Proxy, "PROXY UNKNOWN\r\n", false, "127.0.0.1"}} {
				a := ask(r.addr, r.header, r.secure)
				if a.Saw("X-Real-IP") != r.want || a.Saw("X-Forwarded-For") != r.want {
					t.Errorf("%q: %d, X-Real-IP %q, X-Forwarded-For %q, want %q", r.header, a.Status, a.Saw("X-Real-IP"), a.Saw("X-Forwarded-For"), r.want)
				}
			}
			if a := ask(n.Proxy, v1, false, "X-Forwarded-For: 9.9.9.9", "X-Real-IP: 9.9.9.9"); a.Saw("X-Forwarded-For") != "9.9.9.9, "+c.four || a.Saw("X-Real-IP") != c.four {
				t.Errorf("with headers of its own: %q, %q", a.Saw("X-Forwarded-For"), a.Saw("X-Real-IP"))
			}
			if a := ask(n.Proxy, "", false); a.Status != 0 {
				t.Errorf("without a header: %d", a.Status)
			}
			body, _ := json.Marshal(map[string]any{"name": "ip-restriction", "config": map[string]any{"deny": []string{"192.0.2.9"}}})
			if a := n.JSON("POST", "/plugins", string(body)); a.Status != 201 {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
			if a := ask(n.Proxy, v1, false); a.Status != c.restricted {
				t.Errorf("ip-restriction: %d, want %d", a.Status, c.restricted)
			}
		})
	}
}

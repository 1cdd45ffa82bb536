package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestClientCertificates: a route that demands client certificates of one CA, another one of another CA, a third without; every way to
// one of them over a connection made for another.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		gold, silver := issue(t, "gold CA", nil), issue(t, "silver CA", nil)
		bob, eve := issue(t, "bob", gold), issue(t, "eve", silver)
		ids := map[string]string{}
		for name, ca := range map[string]*identity{"gold": gold, "silver": silver} {
			ids[name], _ = write(t, pick(), "POST", "/ca_certificates", text(map[string]any{"cert": ca.pem}), 201).JSON()["id"].(string)
		}
		write(t, pick(), "POST", "/consumers", `{"username":"bob"}`, 201)
		write(t, pick(), "POST", "/services", text(map[string]any{"name": "s", "url": up.URL}), 201)
		route := func(name string, snis ...string) {
			write(t, pick(), "POST", "/services/s/routes", text(map[string]any{"name": name, "hosts": []string{name + ".example"}, "snis": snis, "protocols": []string{"https", "http"}}), 201)
		}
		route("open")
		route("gold", "gold.example")
		route("silver", "silver.example")
		write(t, pick(), "POST", "/routes/gold/plugins", text(map[string]any{"name": "mtls-auth", "config": map[string]any{"ca_certificates": []string{ids["gold"]}, "send_ca_dn": true}}), 201)
		last := write(t, pick(), "POST", "/routes/silver/plugins", text(map[string]any{"name": "mtls-auth", "config": map[string]any{
			"ca_certificates": []string{ids["silver"]}, "skip_consumer_lookup": true,
		}}), 201)

		caches := map[*identity]tls.ClientSessionCache{} // each client keeps its own sessions
		for _, own := range []*identity{nil, bob, eve} {
			caches[own] = tls.NewLRUClientSessionCache(16)
		}
		// ask sends a request for host over a new connection made for sni, by HTTP/1.1 or 2.
		ask := func(n *harness.Node, sni, host string, own *identity, version int) (int, string) {
			t.Helper()
			config := &tls.Config{InsecureSkipVerify: true, ServerName: sni, ClientSessionCache: caches[own]}
			if own != nil {
				config.Certificates = []tls.Certificate{{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}}
			}
			tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: version == 2}
			defer tr.CloseIdleConnections()
			r, err := http.NewRequest("GET", "https://"+n.ProxyTLS+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			r.Header.Set("X-Min-Config-Index", last.Index())
			r.Header.Set("X-Client-Cert-DN", "CN=forged")
			a, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(r)
			if err != nil {
				t.Fatalf("%s, %s: %v", sni, host, err)
			}
			defer a.Body.Close()
			body, _ := io.ReadAll(a.Body)
			if a.ProtoMajor != version {
				t.Errorf("HTTP/%d is spoken, not %d", a.ProtoMajor, version)
			}
			return a.StatusCode, string(body)
		}
		for _, c := range []struct {
			sni, host string
			own       *identity
			status    int
			says      string
		}{
			{"open.example", "open.example", nil, 200, ""},
			{"open.example", "open.example", bob, 200, ""},
			{"gold.example", "gold.example", bob, 200, `bob`},
			{"gold.example", "gold.example", nil, 401, "No required TLS certificate was sent"},
			{"silver.example", "silver.example", eve, 200, "CN=eve"},
			{"silver.example", "silver.example", bob, 401, "TLS certificate failed verification"},
			// P6 of the attacks: the connection was made under another rule.
			{"open.example", "gold.example", bob, 421, "Misdirected request"},
			{"open.example", "GOLD.example:443", bob, 421, "Misdirected request"},
			{"", "gold.example", bob, 421, "Misdirected request"},
			{"silver.example", "gold.example", eve, 421, "Misdirected request"},
			{"gold.example", "silver.example", bob, 421, "Misdirected request"},
			{"gold.example", "open.example", bob, 421, "Misdirected request"},
			{"open.example", "other.example", nil, 404, "no Route matched"},
		} {
			for _, version := range []int{1, 2} {
				n := pick()
				status, body := ask(n, c.sni, c.host, c.own, version)
				if status != c.status || !strings.Contains(body, c.says) || strings.Contains(body, "forged") {
					t.Errorf("HTTP/%d, SNI %q, Host %q on %s: %d %s, want %d", version, c.sni, c.host, n.Name, status, body, c.status)
				}
				if c.status == 421 && !strings.Contains(body, `"message"`) {
					t.Errorf("the answer is not Kong's: %s", body)
				}
			}
		}
		if a := pick().Get("/", "Host", "gold.example"); a.Status != 401 {
			t.Errorf("over plain HTTP: %d %s", a.Status, a.Body)
		}

		// A rule that comes while the connection is open: the client must make a new one.
		n := pick()
		c, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, ServerName: "late.example"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		in := bufio.NewReader(c)
		once := func() *http.Response {
			t.Helper()
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: late.example\r\nX-Min-Config-Index: %s\r\n\r\n", last.Index())
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
			r.Body.Close()
			return r
		}
		last = write(t, pick(), "POST", "/services/s/routes", `{"name":"late","hosts":["late.example"],"snis":["late.example"]}`, 201)
		if r := once(); r.StatusCode != 200 {
			t.Errorf("before the rule: %d", r.StatusCode)
		}
		last = write(t, pick(), "POST", "/routes/late/plugins", text(map[string]any{"name": "mtls-auth", "config": map[string]any{"ca_certificates": []string{ids["gold"]}}}), 201)
		if r := once(); r.StatusCode != 421 || !r.Close {
			t.Errorf("after the rule: %d, closed %v", r.StatusCode, r.Close)
		}
		if status, body := ask(n, "late.example", "late.example", bob, 1); status != 200 {
			t.Errorf("over a new connection: %d %s", status, body)
		}

		// Without its CA nobody passes, not even with a session that began before.
		last = write(t, pick(), "DELETE", "/ca_certificates/"+ids["gold"], "", 204)
		for _, version := range []int{1, 2} {
			if status, body := ask(pick(), "gold.example", "gold.example", bob, version); status != 401 {
				t.Errorf("without the CA: %d %s", status, body)
			}
		}
	})
}

// TestHTTP3ClientCertificates: the rules of client certificates hold over QUIC as over TCP, on a new connection for each request and on one that is
// resumed.
func TestHTTP3ClientCertificates(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + ", " + n.ProxyTLS + " http2 ssl quic"}
	n.Start()
	gold, silver := issue(t, "gold CA", nil), issue(t, "silver CA", nil)
	bob, eve := issue(t, "bob", gold), issue(t, "eve", silver)
	ca, _ := write(t, n, "POST", "/ca_certificates", text(map[string]any{"cert": gold.pem}), 201).JSON()["id"].(string)
	write(t, n, "POST", "/consumers", `{"username":"bob"}`, 201)
	write(t, n, "POST", "/services", text(map[string]any{"name": "s", "url": up.URL}), 201)
	write(t, n, "POST", "/services/s/routes", `{"name":"open","hosts":["open.example"]}`, 201)
	write(t, n, "POST", "/services/s/routes", `{"name":"gold","hosts":["gold.example"],"snis":["gold.example"],"protocols":["https"]}`, 201)
	last := write(t, n, "POST", "/routes/gold/plugins", text(map[string]any{"name": "mtls-auth", "config": map[string]any{"ca_certificates": []string{ca}}}), 201)
	caches := map[*identity]tls.ClientSessionCache{}
	for _, own := range []*identity{nil, bob, eve} {
		caches[own] = tls.NewLRUClientSessionCache(16)
	}
	for round := range 2 {
		for _, c := range []struct {
			sni, host string
			own       *identity
			status    int
			says      string
		}{
			{"open.example", "open.example", nil, 200, ""},
			{"gold.example", "gold.example", bob, 200, "bob"},
			{"gold.example", "gold.example", nil, 401, "No required TLS certificate was sent"},
			{"gold.example", "gold.example", eve, 401, "TLS certificate failed verification"},
			{"open.example", "gold.example", bob, 421, "Misdirected request"},
			{"open.example", "GOLD.example:443", bob, 421, "Misdirected request"},
			{"", "gold.example", bob, 421, "Misdirected request"},
			{"gold.example", "open.example", bob, 421, "Misdirected request"},
			{"open.example", "other.example", nil, 404, "no Route matched"},
		} {
			h3 := overHTTP3(t)
			h3.TLSClientConfig.ServerName, h3.TLSClientConfig.ClientSessionCache = c.sni, caches[c.own]
			if c.own != nil {
				h3.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{c.own.cert.Raw}, PrivateKey: c.own.key}}
			}
			r, err := http.NewRequest("GET", "https://"+n.ProxyTLS+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = c.host
			r.Header.Set("X-Min-Config-Index", last.Index())
			r.Header.Set("X-Client-Cert-DN", "CN=forged")
			a, err := h3.RoundTrip(r)
			if err != nil {
				t.Fatalf("%s, %s: %v", c.sni, c.host, err)
			}
			body, _ := io.ReadAll(a.Body)
			a.Body.Close()
			if a.ProtoMajor != 3 || a.StatusCode != c.status || !strings.Contains(string(body), c.says) || strings.Contains(string(body), "forged") {
				t.Errorf("round %d: HTTP/%d, SNI %q, Host %q: %d %s, want %d", round, a.ProtoMajor, c.sni, c.host, a.StatusCode, body, c.status)
			}
		}
	}
}

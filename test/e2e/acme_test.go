package e2e

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"concord/test/harness"
)

// acmeServer is Let's Encrypt's test server. It validates http-01 at a port of this host, whatever the name.
type acmeServer struct {
	url, pem string
	orders   atomic.Int64  // accepted
	open     chan struct{} // orders wait until it is closed
}

func startACME(t *testing.T, httpPort int) *acmeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names := &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if q := r.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = names.ActivateAndServe() }()
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	issuer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	front := wfe.New(quiet, store, va.New(quiet, httpPort, 0, false, ln.Addr().String(), store), issuer, nil, false, false, 1, 1)
	s := &acmeServer{open: make(chan struct{})}
	pages := front.Handler()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/order-plz" {
			<-s.open
		}
		rec := httptest.NewRecorder()
		pages.ServeHTTP(rec, r)
		if r.URL.Path == "/order-plz" && rec.Code == 201 {
			s.orders.Add(1)
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	t.Cleanup(func() { srv.Close(); _ = names.Shutdown() })
	s.url = srv.URL + "/dir"
	s.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	return s
}

// TestACME: clients ask three nodes for a name at once; there is one order, its challenge is answered by a node that need not be the
// one that ordered, and all nodes show the certificate.
func TestACME(t *testing.T) {
	t.Parallel()
	port := harness.FreePort(t)
	server := startACME(t, port)
	c := harness.StartCluster(t, 3, "CONCORD_LUA_SSL_TRUSTED_CERTIFICATE="+server.pem)
	_, last, _ := net.SplitHostPort(c.Nodes[2].Proxy)
	relay(t, port, "127.0.0.1:"+last)
	a := write(t, c.Any(), "POST", "/plugins", text(map[string]any{"name": "acme", "config": map[string]any{
		"account_email": "ops@shop.example", "api_uri": server.url, "tos_accepted": true, "cert_type": "ecc", "storage": "kong", "domains": []string{"*.shop.example"},
	}}), 201)
	for _, n := range c.Nodes {
		seen(t, n, "/", a.Index())
	}
	name := func(n *harness.Node, server string) string {
		conn, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, ServerName: server})
		if err != nil {
			t.Errorf("handshake: %v", err)
			return ""
		}
		defer conn.Close()
		if names := conn.ConnectionState().PeerCertificates[0].DNSNames; len(names) > 0 {
			return names[0]
		}
		return ""
	}
	var clients sync.WaitGroup
	for i := range 12 {
		clients.Go(func() {
			if got := name(c.Nodes[i%3], "a.shop.example"); got != "localhost" {
				t.Errorf("before the certificate is there, that of %s is shown", got)
			}
			name(c.Nodes[i%3], "other.example")
		})
	}
	clients.Wait()
	close(server.open)
	deadline := time.Now().Add(60 * time.Second)
	for _, n := range c.Nodes {
		for name(n, "a.shop.example") != "a.shop.example" {
			if time.Now().After(deadline) {
				t.Fatalf("%s shows no certificate; orders: %d", n.Name, server.orders.Load())
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if got := server.orders.Load(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
	if got := name(c.Any(), "other.example"); got != "localhost" {
		t.Errorf("a certificate of %s for a name that is not allowed", got)
	}
	if a := c.Any().Get("/.well-known/acme-challenge/x", "Host", "a.shop.example"); a.Status != 404 || a.Body != "Not found\n" {
		t.Errorf("an unknown challenge: %d %q", a.Status, a.Body)
	}
	for _, n := range c.Nodes { // what is left: an account and a certificate
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			a, err := harness.Do("GET", "http://"+n.Admin+"/acme_storage", "", "")
			if err != nil {
				t.Fatal(err)
			}
			if rows := strings.Count(a.Body, `"key":`); rows == 2 && strings.Contains(a.Body, "cert:a.shop.example") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("rows on %s: %s", n.Name, a.Body)
			}
		}
	}
	for _, n := range c.Nodes {
		n.Stop()
		n.Start()
		if got := name(n, "a.shop.example"); got != "a.shop.example" {
			t.Errorf("after a restart %s shows the certificate of %s", n.Name, got)
		}
	}
}

// relay passes connections on, so that the validation's port can be known before the node's.
func relay(t *testing.T, port int, to string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				up, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer up.Close()
				go func() { _, _ = io.Copy(up, from) }()
				_, _ = io.Copy(from, up)
			}()
		}
	}()
}

// TestACMEOperator: the endpoints that Kong's plugin has for operators: the sanity check, an order, the list, renewal.
func TestACMEOperator(t *testing.T) {
	t.Parallel()
	port := harness.FreePort(t)
	server := startACME(t, port)
	close(server.open)
	n := harness.NewNode(t, "solo", "CONCORD_LUA_SSL_TRUSTED_CERTIFICATE="+server.pem)
	n.Env = append(n.Env, "HTTP_PROXY=http://"+n.Proxy, "NO_PROXY=127.0.0.1") // so that names need no resolver
	n.Start()
	relay(t, port, n.Proxy)
	is := func(method, path, body string, status int, says string) harness.Answer {
		t.Helper()
		a, err := harness.Do(method, "http://"+n.Admin+path, "application/json", body)
		if err != nil || a.Status != status || !strings.Contains(a.Body, says) {
			t.Fatalf("%s %s %s: %d %s %v, want %d with %q", method, path, body, a.Status, a.Body, err, status, says)
		}
		return a
	}
	is("POST", "/acme", `{"host":"a.shop.example"}`, 404, "not configured")
	is("PATCH", "/acme", "", 404, "not configured")
	is("GET", "/acme/certificates", "", 404, "not configured")
	a := write(t, n, "POST", "/plugins", text(map[string]any{"name": "acme", "config": map[string]any{
		"account_email": "ops@shop.example", "api_uri": server.url, "tos_accepted": true, "cert_type": "ecc", "domains": []string{"*.shop.example"},
	}}), 201)
	seen(t, n, "/", a.Index())
	is("POST", "/acme", `{}`, 400, "host must be provided")
	is("POST", "/acme", `{"host":"a.shop.example:80"}`, 400, "host must be provided")
	is("POST", "/acme", `{"host":"other.example"}`, 500, "not among the domains")
	is("POST", "/acme", `{"host":"other.example","test_http_challenge_flow":true}`, 400, "problem found running sanity check for other.example")
	is("POST", "/acme", `{"host":"a.shop.example","test_http_challenge_flow":true}`, 200, "sanity test for host a.shop.example passed")
	is("GET", "/acme/certificates", "", 200, `{"data":[]}`)
	is("GET", "/acme/certificates/a.shop.example", "", 404, "not found")
	for range 2 {
		is("POST", "/acme", `{"host":"a.shop.example"}`, 201, "certificate for host a.shop.example is created")
	}
	if got := server.orders.Load(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
	is("PATCH", "/acme", "", 202, "Renewal process started successfully")
	for _, path := range []string{"/acme/certificates", "/acme/certificates/a.shop.example"} {
		a := is("GET", path, "", 200, `"host":"a.shop.example"`)
		if strings.Contains(a.Body, "PRIVATE") || !strings.Contains(a.Body, `"valid":true`) || !strings.Contains(a.Body, `"pubkey_type":"id-ecPublicKey"`) || !strings.Contains(a.Body, `"issuer_cn":"Pebble`) {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
	conn, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, ServerName: "a.shop.example"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if names := conn.ConnectionState().PeerCertificates[0].DNSNames; len(names) != 1 || names[0] != "a.shop.example" {
		t.Errorf("the certificate of %v is shown", names)
	}
	is("POST", "/routes", `{"paths":["/"],"hosts":["b.shop.example"]}`, 201, "") // a route does not come before challenges
	is("DELETE", "/plugins/"+a.JSON()["id"].(string), "", 204, "")
}

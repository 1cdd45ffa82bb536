package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/test/harness"
)

// identity is a certificate with its key.
type identity struct {
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
	pem, keyP string
}

// issue makes a certificate of the given common name, which is also its only DNS name; by nil signs itself.
func issue(t *testing.T, name string, by *identity) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{name}, BasicConstraintsValid: true, IsCA: by == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{
		cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
	}
}

// body is the JSON of a certificate entity.
func (i *identity) body(snis ...string) string {
	m := map[string]any{"cert": i.pem, "key": i.keyP}
	if len(snis) > 0 {
		m["snis"] = snis
	}
	b, _ := json.Marshal(m)
	return string(b)
}

// write sends JSON to the Admin API, which must answer with the status.
func write(t *testing.T, n *harness.Node, method, path, body string, status int) harness.Answer {
	t.Helper()
	a := n.JSON(method, path, body)
	if a.Status != status {
		t.Fatalf("%s %s: %d %s", method, path, a.Status, a.Body)
	}
	return a
}

// text turns a value into JSON.
func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// seen sends a request through a node, which must have caught up with index, and returns the answer.
func seen(t *testing.T, n *harness.Node, path, index string) harness.Answer {
	t.Helper()
	return n.Get(path, "X-Min-Config-Index", index)
}

// shown is the common name of the certificate that a node shows for a server name.
func shown(t *testing.T, n *harness.Node, server string) string {
	t.Helper()
	c, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, ServerName: server})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// TestCertificates: every node shows what was written to any of them; a broken one is refused; a rotation under load is
// not noticed by clients.
func TestCertificates(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		write(t, pick(), "POST", "/services", text(map[string]any{"name": "s", "url": up.URL}), 201)
		write(t, pick(), "POST", "/services/s/routes", `{"name":"all","paths":["/all"]}`, 201)
		write(t, pick(), "POST", "/services/s/routes", `{"name":"by-sni","protocols":["https"],"snis":["a.example.com"],"paths":["/sni"]}`, 201)
		first := write(t, pick(), "POST", "/certificates", issue(t, "exact", nil).body("a.example.com"), 201)
		id, _ := first.JSON()["id"].(string)
		write(t, pick(), "POST", "/certificates", issue(t, "suffix", nil).body("*.example.com", "*.example.org"), 201)
		prefix := issue(t, "prefix", nil)
		last := pick().Multipart("POST", "/certificates", "cert@", prefix.pem, "key@", prefix.keyP, "snis[]", "a.*")
		if last.Status != 201 {
			t.Fatalf("from files: %d %s", last.Status, last.Body)
		}
		for range 6 {
			n := pick()
			seen(t, n, "/all", last.Index())
			for server, want := range map[string]string{
				"a.example.com": "exact", "b.example.com": "suffix", "x.example.org": "suffix", "a.net": "prefix", "other.net": "localhost",
			} {
				if got := shown(t, n, server); got != want {
					t.Errorf("%s shows %q for %s, want %q", n.Name, got, server, want)
				}
			}
		}
		for server, want := range map[string]int{"a.example.com": 200, "b.example.com": 404} {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: server}}
			r, err := (&http.Client{Transport: tr, Timeout: 60 * time.Second}).Get("https://" + pick().ProxyTLS + "/sni")
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			tr.CloseIdleConnections()
			if r.StatusCode != want {
				t.Errorf("a route for an SNI answers %d to %s, want %d", r.StatusCode, server, want)
			}
		}
		stranger := issue(t, "stranger", nil)
		stranger.keyP = issue(t, "another", nil).keyP
		write(t, pick(), "POST", "/certificates", stranger.body(), 400)

		// Clients with open connections and new ones, while the certificate changes.
		n := pick()
		var failed, done atomic.Int64
		stop := make(chan struct{})
		var clients sync.WaitGroup
		for i := range 4 {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "a.example.com"}, DisableKeepAlives: i == 0}
			c := &http.Client{Transport: tr, Timeout: 60 * time.Second}
			clients.Go(func() {
				defer tr.CloseIdleConnections()
				for {
					select {
					case <-stop:
						return
					default:
					}
					r, err := c.Get("https://" + n.ProxyTLS + "/all")
					if err == nil {
						_, err = io.Copy(io.Discard, r.Body)
						r.Body.Close()
					}
					if done.Add(1); err != nil || r.StatusCode != 200 {
						failed.Add(1)
					}
				}
			})
		}
		for i := range 5 {
			name := fmt.Sprintf("rotated %d", i)
			a := write(t, pick(), "PATCH", "/certificates/"+id, issue(t, name, nil).body(), 200)
			seen(t, n, "/all", a.Index())
			if got := shown(t, n, "a.example.com"); got != name {
				t.Errorf("after rotation %q is shown, want %q", got, name)
			}
		}
		for end := time.Now().Add(60 * time.Second); done.Load() < 20 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		close(stop)
		clients.Wait()
		if failed.Load() > 0 || done.Load() < 20 {
			t.Errorf("%d of %d requests failed while the certificate was rotated", failed.Load(), done.Load())
		}

		gone := write(t, pick(), "DELETE", "/certificates/"+id, "", 204)
		n = pick()
		seen(t, n, "/all", gone.Index())
		if got := shown(t, n, "a.example.com"); got != "suffix" {
			t.Errorf("without its certificate a.example.com is shown %q", got)
		}
	})
}

// TestUpstreamTLS: an upstream that demands a client certificate, and one whose certificate is of a private CA.
func TestUpstreamTLS(t *testing.T) {
	t.Parallel()
	ca := issue(t, "private CA", nil)
	server, client := issue(t, "localhost", ca), issue(t, "the gateway", ca)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Client", r.TLS.PeerCertificates[0].Subject.CommonName)
		w.Header().Set("X-Connection", r.RemoteAddr)
	}))
	up.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.cert.Raw}, PrivateKey: server.key}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}
	up.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the test
	up.StartTLS()
	t.Cleanup(up.Close) // the parallel parts outlive this function
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		write(t, pick(), "POST", "/services", text(map[string]any{"name": "s", "url": up.URL, "retries": 0}), 201)
		last := write(t, pick(), "POST", "/services/s/routes", `{"paths":["/"]}`, 201)
		expect := func(what string, status int) harness.Answer {
			t.Helper()
			a := seen(t, pick(), "/", last.Index())
			if a.Status != status {
				t.Errorf("%s: %d %s, want %d", what, a.Status, a.Body, status)
			}
			return a
		}
		patch := func(v map[string]any) { last = write(t, pick(), "PATCH", "/services/s", text(v), 200) }
		expect("without a client certificate", 502)

		cert, _ := write(t, pick(), "POST", "/certificates", client.body(), 201).JSON()["id"].(string)
		patch(map[string]any{"client_certificate": map[string]any{"id": cert}})
		if a := expect("with it", 200); a.Header.Get("X-Client") != "the gateway" {
			t.Errorf("the upstream saw %q", a.Header.Get("X-Client"))
		}
		patch(map[string]any{"tls_verify": true})
		expect("verified by the system's CAs", 502)

		authority, _ := write(t, pick(), "POST", "/ca_certificates", text(map[string]any{"cert": ca.pem}), 201).JSON()["id"].(string)
		patch(map[string]any{"ca_certificates": []string{authority}})
		expect("verified by the private CA, but by the address", 502)
		patch(map[string]any{"host": "localhost"})
		expect("verified", 200)
		n := pick()
		one, two := seen(t, n, "/", last.Index()), seen(t, n, "/", last.Index())
		if c := one.Header.Get("X-Connection"); c == "" || c != two.Header.Get("X-Connection") {
			t.Errorf("connections are not reused: %q, then %q", c, two.Header.Get("X-Connection"))
		}
		patch(map[string]any{"tls_verify": false, "host": "127.0.0.1"})
		expect("not verified", 200)
		if a := pick().JSON("DELETE", "/certificates/"+cert, ""); a.Status != 400 {
			t.Errorf("a certificate in use was deleted: %d %s", a.Status, a.Body)
		}
	})
}

// TestTLSSettings: what kong.conf says about TLS, and that sessions with upstreams are resumed.
func TestTLSSettings(t *testing.T) {
	t.Parallel()
	ca := issue(t, "private CA", nil)
	server, client, own := issue(t, "localhost", ca), issue(t, "the node", ca), issue(t, "of the settings", nil)
	var resumed atomic.Int64
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			resumed.Add(1)
		}
		if list := r.TLS.PeerCertificates; len(list) > 0 {
			w.Header().Set("X-Client", list[0].Subject.CommonName)
		}
	}))
	up.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.cert.Raw}, PrivateKey: server.key}}, ClientAuth: tls.RequestClientCert,
	}
	up.StartTLS()
	t.Cleanup(up.Close)
	n := harness.NewNode(t, "solo", "CONCORD_CLIENT_SSL=on", "CONCORD_CLIENT_SSL_CERT="+client.pem, "CONCORD_CLIENT_SSL_CERT_KEY="+client.keyP,
		"CONCORD_LUA_SSL_TRUSTED_CERTIFICATE=system, "+ca.pem, "CONCORD_SSL_CIPHER_SUITE=modern", "CONCORD_SSL_CERT="+own.pem, "CONCORD_SSL_CERT_KEY="+own.keyP,
		"CONCORD_UPSTREAM_KEEPALIVE_POOL_SIZE=0")
	n.Start()
	_, port, _ := strings.Cut(up.Listener.Addr().String(), ":")
	write(t, n, "POST", "/services", text(map[string]any{"name": "s", "url": "https://localhost:" + port, "tls_verify": true}), 201)
	last := write(t, n, "POST", "/services/s/routes", `{"paths":["/"]}`, 201)
	for range 3 {
		if a := seen(t, n, "/", last.Index()); a.Status != 200 || a.Header.Get("X-Client") != "the node" {
			t.Errorf("%d %s, the upstream saw %q", a.Status, a.Body, a.Header.Get("X-Client"))
		}
	}
	if resumed.Load() == 0 {
		t.Error("no TLS session was resumed")
	}
	if got := shown(t, n, "any.org"); got != "of the settings" {
		t.Errorf("shown %q", got)
	}
	if c, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("TLS 1.2 is spoken with ssl_cipher_suite = modern")
	}
}

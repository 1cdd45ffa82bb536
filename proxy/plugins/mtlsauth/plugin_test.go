package mtlsauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/proxy/plugins/mtlsauth"
)

// signer is a certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate; by nil signs itself.
func issue(t testing.TB, by *signer, change func(*x509.Certificate)) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	change(template)
	parent := &signer{template, key}
	if by != nil {
		parent = by
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{cert, key}
}

func authority(t testing.TB, name string, by *signer) *signer {
	return issue(t, by, func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.KeyUsage = name, true, x509.KeyUsageCertSign
	})
}

func client(t testing.TB, name string, by *signer) *signer {
	return issue(t, by, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: name, Organization: []string{"Shop, Inc."}}
	})
}

type bench struct {
	*plugintest.Gateway
	root, other, middle *signer
	rootID, middleID    string
}

func newBench(t testing.TB) *bench {
	b := &bench{Gateway: plugintest.New(t), root: authority(t, "root", nil), other: authority(t, "root", nil)}
	b.middle = authority(t, "middle", b.root)
	b.rootID, b.middleID = b.ca(b.root, ""), b.ca(b.middle, "")
	b.Consumer("bob")
	b.Consumer("anon")
	return b
}

func (b *bench) ca(s *signer, id string) string {
	rec := schema.Record{"cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})), "cert_digest": s.cert.SerialNumber.String()}
	if id != "" {
		rec["id"] = id
	}
	return b.Put("ca_certificates", rec)
}

// request is one over a connection whose client showed the chain when it was asked.
func request(chain ...*signer) *exchange.Exchange {
	x := plugintest.Request("GET", "/")
	x.Conn.TLS, x.Conn.CertificateAsked = &tls.ConnectionState{}, true
	for _, c := range chain {
		x.Conn.TLS.PeerCertificates = append(x.Conn.TLS.PeerCertificates, c.cert)
	}
	return x
}

func access(t testing.TB, i plugin.Instance, x *exchange.Exchange) (int, string) {
	t.Helper()
	e := plugintest.Access(t, x, i)
	if e == nil {
		return 200, ""
	}
	text, _ := e.Body.(string)
	return e.Status, text
}

func TestVerification(t *testing.T) {
	b := newBench(t)
	bob := client(t, "bob", b.root)
	low := client(t, "bob", b.middle)
	changed := func(by *signer, change func(*x509.Certificate)) *signer {
		return issue(t, by, func(c *x509.Certificate) { c.Subject.CommonName = "bob"; change(c) })
	}
	plain, old := plugintest.Request("GET", "/"), request(bob)
	old.Conn.CertificateAsked = false
	const failed = "TLS certificate failed verification"
	for _, c := range []struct {
		name   string
		config schema.Record
		x      *exchange.Exchange
		status int
		text   string
	}{
		{"good", nil, request(bob), 200, ""},
		{"none", nil, request(), 401, "No required TLS certificate was sent"},
		{"plain HTTP", nil, plain, 401, "No required TLS certificate was sent"},
		{"the client was not asked", nil, old, 421, "Misdirected request"},
		{"of another CA of the same name", nil, request(client(t, "bob", b.other)), 401, failed},
		{"self-signed", nil, request(client(t, "bob", nil)), 401, failed},
		{"with the CA behind it", nil, request(client(t, "bob", b.other), b.other), 401, failed},
		{"expired", nil, request(changed(b.root, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), 401, failed},
		{"not yet valid", nil, request(changed(b.root, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })), 401, failed},
		{"for servers only", nil, request(changed(b.root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), 401, failed},
		{"for clients", nil, request(changed(b.root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), 200, ""},
		{"issued by a client", nil, request(client(t, "bob", bob), bob), 401, failed},
		{"intermediate sent", nil, request(low, b.middle), 200, ""},
		{"intermediate not sent", nil, request(low), 401, failed},
		{"intermediate configured", schema.Record{"ca_certificates": []any{b.rootID, b.middleID}}, request(low), 200, ""},
		{"intermediate alone", schema.Record{"ca_certificates": []any{b.middleID}}, request(low), 401, failed},
		{"intermediate alone, partial chains", schema.Record{"ca_certificates": []any{b.middleID}, "allow_partial_chain": true}, request(low), 200, ""},
		{"beside the intermediate, partial chains", schema.Record{"ca_certificates": []any{b.middleID}, "allow_partial_chain": true}, request(bob), 401, failed},
		{"a CA that is not there", schema.Record{"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000009"}}, request(bob), 401, failed},
		{"one of two CAs is not there", schema.Record{"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000009", b.rootID}}, request(bob), 200, ""},
		{"no consumer", nil, request(client(t, "carl", b.root)), 401, "Unauthorized"},
		{"anonymous, none", schema.Record{"anonymous": "anon"}, request(), 200, ""},
		{"anonymous, plain HTTP", schema.Record{"anonymous": "anon"}, plugintest.Request("GET", "/"), 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := schema.Record{"ca_certificates": []any{b.rootID}}
			for k, v := range c.config {
				config[k] = v
			}
			i := b.Build(mtlsauth.Plugin(), config)
			for range 2 { // the second time it is remembered
				c.x.Credential = nil
				if status, text := access(t, i, c.x); status != c.status || text != c.text {
					t.Errorf("%d %q, want %d %q", status, text, c.status, c.text)
				}
			}
		})
	}
}

// What is remembered ends with the trust in the CA.
func TestCARemoved(t *testing.T) {
	b := newBench(t)
	i := b.Build(mtlsauth.Plugin(), schema.Record{"ca_certificates": []any{b.rootID}})
	bob, stranger := client(t, "bob", b.root), client(t, "bob", b.other)
	expect := func(what string, chain *signer, want int) {
		t.Helper()
		if status, _ := access(t, i, request(chain)); status != want {
			t.Errorf("%s: %d, want %d", what, status, want)
		}
	}
	expect("trusted", bob, 200)
	b.Delete("ca_certificates", b.rootID)
	expect("the CA is gone", bob, 401)
	if !strings.Contains(b.Logs.String(), b.rootID) {
		t.Error("the log does not name the CA that is gone")
	}
	b.ca(b.root, b.rootID)
	expect("it is back", bob, 200)
	b.ca(b.other, b.rootID)
	expect("it is another one", bob, 401)
	expect("the other one's", stranger, 200)
}

func TestConsumers(t *testing.T) {
	b := newBench(t)
	b.Consumer("dns.example.com")
	b.Consumer("mail@example.com")
	named := issue(t, b.root, func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.EmailAddresses, c.IPAddresses = "bob", []string{"dns.example.com"}, []string{"mail@example.com"}, []net.IP{net.IPv4(10, 0, 0, 1)}
	})
	evil := issue(t, b.root, func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames = "x\r\nX-Consumer-Username: admin", nil
	})
	for _, c := range []struct {
		name    string
		config  schema.Record
		client  *signer
		want    string // username
		headers map[string]string
	}{
		{"by name", nil, client(t, "bob", b.root), "bob", map[string]string{"X-Credential-Identifier": "bob", "X-Consumer-Custom-ID": "c-bob", "X-Client-Cert-DN": ""}},
		{"by custom id", nil, client(t, "c-bob", b.root), "bob", nil},
		{"by name only", schema.Record{"consumer_by": []any{"username"}, "default_consumer": "anon"}, client(t, "c-bob", b.root), "anon", nil},
		{"alternative names first", nil, named, "dns.example.com", nil},
		{"default", schema.Record{"default_consumer": "bob"}, client(t, "carl", b.root), "bob", nil},
		{"default that is not there", schema.Record{"default_consumer": "carl", "anonymous": "anon"}, client(t, "carl", b.root), "anon", map[string]string{"X-Anonymous-Consumer": "true"}},
		{"without consumer", schema.Record{"skip_consumer_lookup": true}, named, "", map[string]string{
			"X-Client-Cert-DN": "CN=bob", "X-Client-Cert-SAN": "DNS:dns.example.com, email:mail@example.com, IP:10.0.0.1", "group": "bob",
		}},
		{"without consumer, group by name", schema.Record{"skip_consumer_lookup": true, "authenticated_group_by": "DN"}, client(t, "bob", b.root), "", map[string]string{
			"X-Client-Cert-DN": `CN=bob,O=Shop\, Inc.`, "group": `CN=bob,O=Shop\, Inc.`,
		}},
		{"no way into headers", schema.Record{"skip_consumer_lookup": true}, evil, "", map[string]string{"X-Client-Cert-DN": `CN=x\0D\0AX-Consumer-Username: admin`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := schema.Record{"ca_certificates": []any{b.rootID}}
			for k, v := range c.config {
				config[k] = v
			}
			x := request(c.client)
			if status, text := access(t, b.Build(mtlsauth.Plugin(), config), x); status != 200 {
				t.Fatalf("%d %s", status, text)
			}
			got := ""
			if x.Consumer != nil {
				got = x.Consumer.Username
			}
			if got != c.want || x.Request.Header.Get("X-Consumer-Username") != c.want {
				t.Errorf("consumer %q, want %q", got, c.want)
			}
			for name, want := range c.headers {
				got := x.Request.Header.Get(name)
				if name == "group" {
					got = strings.Join(x.Groups, ",")
				}
				if got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestRefusedSettings(t *testing.T) {
	for name, config := range map[string]schema.Record{
		"ca_certificates: required field missing": {},
		"ca_certificates: length must be":         {"ca_certificates": []any{}},
		"expected a valid UUID":                   {"ca_certificates": []any{"x"}},
		"does not check whether certificates":     {"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000009"}, "revocation_check_mode": "STRICT"},
		"consumer_by":                             {"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000009"}, "consumer_by": []any{"id"}},
	} {
		if _, errs := plugintest.Validate(mtlsauth.Plugin(), config); errs == nil || !strings.Contains(errs.Message(), name) {
			t.Errorf("%v: got %v, want %q", config, errs, name)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := newBench(t)
	i := b.Build(mtlsauth.Plugin(), schema.Record{"ca_certificates": []any{b.rootID}})
	bob := client(t, "bob", b.root)
	var users sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, text := access(t, i, request(bob)); status != 200 {
					t.Errorf("%d %s", status, text)
					return
				}
			}
		})
	}
	for range 200 {
		b.ca(b.root, b.rootID)
	}
	close(stop)
	users.Wait()
}

func BenchmarkAccess(b *testing.B) {
	w := newBench(b)
	i := w.Build(mtlsauth.Plugin(), schema.Record{"ca_certificates": []any{w.rootID}})
	x := request(client(b, "bob", w.root))
	b.ReportAllocs()
	for b.Loop() {
		x.Request.Header.Reset()
		if e := i.(plugin.Accessor).Access(x); e != nil {
			b.Fatal(e)
		}
	}
}

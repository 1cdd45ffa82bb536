package dataplane_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/dataplane"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/router"
)

// issuer signs certificates; nil signs itself.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (i *issuer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}))
}

func (i *issuer) keyPEM(t testing.TB) string {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func newKey(t testing.TB, kind string) crypto.Signer {
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i *issuer) issue(t testing.TB, name string, ca bool, kind string) *issuer {
	t.Helper()
	key := newKey(t, kind)
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign
		template.ExtKeyUsage = nil
	} else {
		template.DNSNames = []string{name}
	}
	by := i
	if by == nil {
		by = &issuer{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert, key}
}

func (i *issuer) entity(t testing.TB, id string) *entity.Certificate {
	return &entity.Certificate{ID: fx.ID(id), Cert: i.pem(), Key: i.keyPEM(t)}
}

func (i *issuer) ca(id string) *entity.CACertificate {
	sum := sha256.Sum256(i.cert.Raw)
	return &entity.CACertificate{ID: fx.ID(id), Cert: i.pem(), CertDigest: hex.EncodeToString(sum[:])}
}

func sni(name, cert string) *entity.SNI {
	return &entity.SNI{ID: fx.ID("sni " + name), Name: name, Certificate: *fx.Ref(cert)}
}

func selfSigned(t testing.TB, name string) *issuer {
	return (*issuer)(nil).issue(t, name, false, "ecdsa")
}

// shown is the common name of the certificate a client would get, "" for the default.
func shown(t testing.TB, c *dataplane.Compiler, server string) string {
	t.Helper()
	got, err := c.Certificate(&tls.ClientHelloInfo{ServerName: server})
	if err != nil {
		t.Fatal(err)
	}
	if got == nil {
		return ""
	}
	return got.Leaf.Subject.CommonName
}

func TestCertificateBySNI(t *testing.T) {
	db := fx.New(t)
	c := compiler(t, db, &probe{})
	full := c.Stats().Compilations
	check := func(want map[string]string) {
		t.Helper()
		for server, name := range want {
			if got := shown(t, c, server); got != name {
				t.Errorf("%q: shown %q, want %q", server, got, name)
			}
		}
	}
	check(map[string]string{"a.example.com": "", "": ""})
	wait(t, c, db.Put(
		selfSigned(t, "exact").entity(t, "c1"), selfSigned(t, "suffix").entity(t, "c2"), selfSigned(t, "prefix").entity(t, "c3"),
		sni("a.example.com", "c1"), sni("*.example.com", "c2"), sni("a.*", "c3"), sni("single.example.*", "c3"),
	))
	check(map[string]string{
		"a.example.com": "exact", "A.Example.COM": "exact", "b.example.com": "suffix", "x.b.example.com": "", "example.com": "",
		"a.org": "prefix", "single.example.net": "prefix", "single.example.com": "suffix", "": "", "org": "",
	})
	wait(t, c, db.Put(selfSigned(t, "all").entity(t, "c4"), sni("*", "c4")))
	check(map[string]string{"a.example.com": "exact", "x.b.example.com": "all", "": "all", "org": "all"})

	// A name passes from one SNI to another in one commit; a certificate is replaced; another goes with its SNIs.
	one, two := sni("a.example.com", "c1"), sni("*.example.com", "c2")
	one.Name, two.Name = "free.example.com", one.Name
	wait(t, c, db.Put(one, two, selfSigned(t, "all, renewed").entity(t, "c4")))
	check(map[string]string{"a.example.com": "suffix", "free.example.com": "exact", "b.example.com": "all, renewed", "": "all, renewed"})
	wait(t, c, db.Delete(&entity.Certificate{ID: fx.ID("c4")}, sni("*", "c4"), one))
	check(map[string]string{"a.example.com": "suffix", "free.example.com": "", "b.example.com": "", "": "", "a.org": "prefix"})
	if got := c.Stats().Compilations; got != full {
		t.Errorf("certificates made the router be compiled %d times", got-full)
	}
	again := compiler(t, db, &probe{})
	if got := shown(t, again, "a.org") + shown(t, again, "a.example.com"); got != "prefixsuffix" {
		t.Errorf("a fresh start shows %q", got)
	}
}

// Handshakes go on while certificates change, and see each change whole.
func TestCertificateWhileChanging(t *testing.T) {
	db := fx.New(t)
	c := compiler(t, db, &probe{})
	versions := []*entity.Certificate{selfSigned(t, "even").entity(t, "c"), selfSigned(t, "odd").entity(t, "c")}
	wait(t, c, db.Put(versions[0], sni("a.org", "c")))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := c.Certificate(&tls.ClientHelloInfo{ServerName: "a.org"}); err != nil || got == nil {
					t.Errorf("got %v %v", got, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		wait(t, c, db.Put(versions[i%2], sni("b"+strings.Repeat("b", i%7)+".org", "c")))
		if got, want := shown(t, c, "a.org"), []string{"even", "odd"}[i%2]; got != want {
			t.Errorf("change %d: shown %q, want %q", i, got, want)
		}
	}
	close(stop)
	clients.Wait()
}

// The client's abilities decide between the two certificates of a pair.
func TestCertificatePair(t *testing.T) {
	db := fx.New(t)
	c := compiler(t, db, &probe{})
	main, alt := (*issuer)(nil).issue(t, "rsa", false, "rsa"), selfSigned(t, "ecdsa")
	e := main.entity(t, "c")
	e.CertAlt, e.KeyAlt = alt.pem(), alt.keyPEM(t)
	wait(t, c, db.Put(e, sni("*", "c")))
	hello := func(suite uint16, schemes ...tls.SignatureScheme) *tls.ClientHelloInfo {
		return &tls.ClientHelloInfo{
			ServerName: "other.org", SupportedVersions: []uint16{tls.VersionTLS12}, CipherSuites: []uint16{suite}, SignatureSchemes: schemes,
			SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0},
		}
	}
	for want, h := range map[string]*tls.ClientHelloInfo{
		"ecdsa": hello(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256),
		"rsa":   hello(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.PSSWithSHA256),
	} {
		got, err := c.Certificate(h)
		if err != nil || got.Leaf.Subject.CommonName != want {
			t.Errorf("want the %s certificate, got %v %v", want, got.Leaf.Subject, err)
		}
	}
}

func TestDryBuildCertificate(t *testing.T) {
	c := compiler(t, fx.New(t), &probe{})
	good, other := selfSigned(t, "a").entity(t, "c"), selfSigned(t, "b").entity(t, "c")
	try := func(change func(*entity.Certificate)) string {
		e := *good
		change(&e)
		if err := c.DryBuild(context.Background(), []state.Change{{New: &e}}); err != nil {
			return err.Error()
		}
		return ""
	}
	for want, change := range map[string]func(*entity.Certificate){
		"":                         func(*entity.Certificate) {},
		"cert: cannot be used":     func(e *entity.Certificate) { e.Key = other.Key },
		"cert_alt: cannot be used": func(e *entity.Certificate) { e.CertAlt, e.KeyAlt = "x", e.Key },
	} {
		if got := try(change); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestCertificateInVault: a certificate that is kept in files is shown, a renewed one is taken after a while, a broken one is not; a missing one is said.
func TestCertificateInVault(t *testing.T) {
	dir := t.TempDir()
	keep := func(i *issuer) {
		for name, content := range map[string]string{"crt": i.pem(), "key": i.keyPEM(t)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		db := fx.New(t)
		c := compiler(t, db, &probe{})
		wait(t, c, db.Put(
			&entity.Vault{ID: fx.ID("v"), Prefix: "files", Name: "file", Config: json.RawMessage(`{"directory":"` + dir + `"}`)},
			&entity.Certificate{ID: fx.ID("c"), Cert: "{vault://files/crt}", Key: "{vault://files/key}"}, sni("a.org", "c"),
		))
		if got, err := c.Certificate(&tls.ClientHelloInfo{ServerName: "a.org"}); err == nil || !strings.Contains(err.Error(), "{vault://files/") {
			t.Errorf("without the files: %v %v", got, err)
		}
		keep(selfSigned(t, "first"))
		time.Sleep(time.Minute)
		if got := shown(t, c, "a.org"); got != "first" {
			t.Errorf("shown %q", got)
		}
		keep(selfSigned(t, "second"))
		if got := shown(t, c, "a.org"); got != "first" {
			t.Errorf("asked again at once: %q", got)
		}
		time.Sleep(time.Minute)
		if got := shown(t, c, "a.org"); got != "second" {
			t.Errorf("a renewed certificate is not taken: %q", got)
		}
		if err := os.WriteFile(filepath.Join(dir, "key"), []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := shown(t, c, "a.org"); got != "second" {
			t.Errorf("a broken one replaced a good one: %q", got)
		}
	})
}

// config is the client configuration of the service behind /.
func config(t testing.TB, s *dataplane.Snapshot, path string) *tls.Config {
	t.Helper()
	target, ok := s.Find(&router.Query{Method: "GET", Path: path})
	if !ok || target.Service == nil {
		t.Fatalf("%s has no service", path)
	}
	return target.Service.Upstream.TLS
}

// handshake shakes hands with a server and returns the name in the certificate the client showed.
func handshake(t testing.TB, client *tls.Config, name string, chain ...*issuer) (string, error) {
	t.Helper()
	own := tls.Certificate{PrivateKey: chain[0].key}
	for _, c := range chain {
		own.Certificate = append(own.Certificate, c.cert.Raw)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client = client.Clone()
	client.ServerName = name
	got := make(chan string, 1)
	go func() {
		peer := ""
		defer func() { got <- peer }()
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
		s := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true})
		if s.Handshake() == nil {
			if list := s.ConnectionState().PeerCertificates; len(list) > 0 {
				peer = list[0].Subject.CommonName
			}
		}
	}()
	nc, err := net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	err = tls.Client(nc, client).Handshake()
	nc.Close()
	return <-got, err
}

func TestServiceTLS(t *testing.T) {
	node := selfSigned(t, "node")
	pair, err := tls.X509KeyPair([]byte(node.pem()), []byte(node.keyPEM(t)))
	if err != nil {
		t.Fatal(err)
	}
	bundle := (*issuer)(nil).issue(t, "bundle", true, "ecdsa")
	roots := x509.NewCertPool()
	roots.AddCert(bundle.cert)
	db := fx.New(t)
	c := dataplane.New(dataplane.Options{Store: db.Store, Log: quiet(), Roots: roots, ClientCertificate: &pair})
	t.Cleanup(func() { c.Close(context.Background()) })

	root := (*issuer)(nil).issue(t, "root", true, "ecdsa")
	middle := root.issue(t, "middle", true, "ecdsa")
	lower := middle.issue(t, "lower", true, "ecdsa")
	leaf0, leaf1, leaf2 := root.issue(t, "up.org", false, "ecdsa"), middle.issue(t, "up.org", false, "ecdsa"), lower.issue(t, "up.org", false, "ecdsa")
	trusted := bundle.issue(t, "up.org", false, "ecdsa")

	yes := true
	svc, twin := fx.Service("s", "up.org", 443), fx.Service("s2", "up.org", 443)
	svc.Protocol, twin.Protocol = "https", "https"
	up := &entity.Upstream{ID: fx.ID("u"), Name: "up.org", ClientCertificate: fx.Ref("of upstream")}
	type result struct {
		Client string
		OK     [4]bool // of chains without, with one, with two intermediates, of the bundle
	}
	look := func(index uint64) (r result, config0 *tls.Config) {
		t.Helper()
		conf := config(t, wait(t, c, index), "/s")
		for i, chain := range [][]*issuer{{leaf0}, {leaf1, middle}, {leaf2, lower, middle}, {trusted}} {
			client, err := handshake(t, conf, "up.org", chain...)
			if r.OK[i] = err == nil; r.OK[i] {
				r.Client = client
			}
		}
		if _, err := handshake(t, conf, "other.org", leaf0); r.OK[0] && svc.TLSVerify == &yes && err == nil {
			t.Error("a certificate for another name was accepted")
		}
		return r, conf
	}
	any4 := [4]bool{true, true, true, true}
	db.Put(fx.Route("r", "s", "/s"), fx.Route("r2", "s2", "/t"))
	steps := []struct {
		name string
		rows []any
		edit func()
		want result
	}{
		{"nothing said", nil, func() {}, result{"node", any4}},
		{"the upstream's certificate", []any{selfSigned(t, "upstream").entity(t, "of upstream"), up}, func() {}, result{"upstream", any4}},
		{"the service's certificate", []any{selfSigned(t, "service").entity(t, "of service")}, func() { svc.ClientCertificate = fx.Ref("of service") }, result{"service", any4}},
		{"verified by the bundle", nil, func() { svc.TLSVerify = &yes }, result{"service", [4]bool{false, false, false, true}}},
		{"verified by its own CA", []any{root.ca("root")}, func() { svc.CACertificates = []string{fx.ID("root")} }, result{"service", [4]bool{true, true, false, false}}},
		{"depth 0", nil, func() { svc.TLSVerifyDepth = new(int) }, result{"service", [4]bool{true, false, false, false}}},
		{"depth 2", nil, func() { svc.TLSVerifyDepth = new(2) }, result{"service", [4]bool{true, true, true, false}}},
		{"a CA that is not there", nil, func() { svc.CACertificates = []string{fx.ID("none")} }, result{"", [4]bool{}}},
	}
	for _, s := range steps {
		s.edit()
		got, conf := look(db.Put(append(s.rows, svc)...))
		if d := cmp.Diff(s.want, got); d != "" {
			t.Errorf("%s: %s", s.name, d)
		}
		edited := *svc
		edited.Tags = []string{"x"}
		if _, again := look(db.Put(&edited)); again != conf {
			t.Errorf("%s: an edit that has nothing to do with TLS costs the connections", s.name)
		}
	}

	// What a service depends on changes without the service.
	svc.TLSVerify, svc.CACertificates, svc.TLSVerifyDepth, svc.ClientCertificate = nil, nil, nil, nil
	s := wait(t, c, db.Put(svc, twin))
	if config(t, s, "/s") != config(t, s, "/t") {
		t.Error("services with equal TLS do not share connections")
	}
	if got, _ := look(db.Put(selfSigned(t, "renewed").entity(t, "of upstream"))); got.Client != "renewed" {
		t.Errorf("after renewal the upstream saw %q", got.Client)
	}
	up.Name = "elsewhere.org"
	if got, _ := look(db.Put(up)); got.Client != "node" {
		t.Errorf("an upstream of another name gave its certificate: %q", got.Client)
	}
	svc.TLSVerify, svc.CACertificates = &yes, []string{fx.ID("root")}
	look(db.Put(svc))
	if got, _ := look(db.Delete(root.ca("root"))); got.OK != [4]bool{} {
		t.Errorf("without its CA: %v", got.OK)
	}
	if got, _ := look(db.Put(root.ca("root"))); !got.OK[0] {
		t.Error("with its CA again, the upstream is not trusted")
	}
	svc.Protocol, svc.TLSVerify, svc.CACertificates = "http", nil, nil
	if config(t, wait(t, c, db.Put(svc)), "/s") != nil {
		t.Error("a service without TLS has a TLS configuration")
	}
}

package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func credentials(t *testing.T, ca *CA, cluster, node string, at time.Time, life time.Duration) *Credentials {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.Request()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(csr, cluster, node, at, life)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCredentials(cluster, node, key, der, ca.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestVerify(t *testing.T) {
	cluster, other, node := uuid.NewString(), uuid.NewString(), uuid.NewString()
	ca, ca2 := newCA(t, cluster), newCA(t, cluster)
	now, week := time.Now(), 7*24*time.Hour
	me := credentials(t, ca, cluster, uuid.NewString(), now, week)
	good := credentials(t, ca, cluster, node, now, week)
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		at    time.Time
		err   string
	}{
		{"a node of the cluster", []*x509.Certificate{good.Leaf}, now, ""},
		{"a clock an hour behind", []*x509.Certificate{good.Leaf}, now.Add(-59 * time.Minute), ""},
		{"nothing", nil, now, "no certificate"},
		{"another CA of the same name", []*x509.Certificate{credentials(t, ca2, cluster, node, now, week).Leaf}, now, "unknown authority"},
		{"another cluster", []*x509.Certificate{credentials(t, ca, other, node, now, week).Leaf}, now, other},
		{"expired", []*x509.Certificate{good.Leaf}, now.Add(week + time.Second), "expired"},
		{"not yet valid", []*x509.Certificate{good.Leaf}, now.Add(-2 * time.Hour), "not yet valid"},
		{"the CA itself", []*x509.Certificate{ca.cert}, now, ""},
	} {
		id, err := me.Verify(tt.chain, tt.at)
		switch {
		case tt.name == "the CA itself":
			if err == nil {
				t.Errorf("%s: taken for node %s", tt.name, id)
			}
		case tt.err == "" && (err != nil || id != node):
			t.Errorf("%s: %s, %v", tt.name, id, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: %s, %v, want %q", tt.name, id, err, tt.err)
		}
	}
	if until := good.RenewAt().Sub(now); until < week*2/3-time.Minute || until > week*2/3+time.Minute {
		t.Errorf("renewed after %s of %s", until, week)
	}
}

func TestFiles(t *testing.T) {
	cluster, node := uuid.NewString(), uuid.NewString()
	ca := newCA(t, cluster)
	c := credentials(t, ca, cluster, node, time.Now(), time.Hour)
	dir := t.TempDir()
	if _, err := Load(dir, cluster, node); !os.IsNotExist(err) {
		t.Errorf("nothing there: %v", err)
	}
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, cluster, node)
	if err != nil || !got.Leaf.Equal(c.Leaf) || !got.CA.Equal(c.CA) {
		t.Fatalf("loaded %+v, %v", got, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	if _, err := Load(dir, cluster, uuid.NewString()); err == nil || !strings.Contains(err.Error(), node) {
		t.Errorf("another node's certificate: %v", err)
	}
	other := credentials(t, ca, cluster, node, time.Now(), time.Hour)
	if err := WriteFile(filepath.Join(dir, certFile), certPEM(other.Leaf.Raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, cluster, node); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("certificate of another key: %v", err)
	}
	if err := WriteFile(filepath.Join(dir, caFile), []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, cluster, node); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, caFile)) {
		t.Errorf("a damaged CA: %v", err)
	}
	again, err := ParseCA(ca.CertificatePEM(), must(ca.KeyPEM()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify([]*x509.Certificate{credentials(t, again, cluster, node, time.Now(), time.Hour).Leaf}, time.Now()); err != nil {
		t.Errorf("a CA that was written and read: %v", err)
	}
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

func TestToken(t *testing.T) {
	cluster := uuid.NewString()
	ca := newCA(t, cluster)
	tok, err := NewToken(cluster, ca.cert)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseToken(" " + tok.Text() + "\n")
	if err != nil || back.Text() != tok.Text() {
		t.Fatalf("%v, %v", back, err)
	}
	if s := tok.String(); strings.Contains(s, strings.Split(tok.Text(), ".")[4]) {
		t.Errorf("%s shows the secret", s)
	}
	node := credentials(t, ca, cluster, uuid.NewString(), time.Now(), time.Hour)
	if err := tok.VerifyServer([]*x509.Certificate{node.Leaf, ca.cert}, time.Now()); err != nil {
		t.Error(err)
	}
	ca2 := newCA(t, cluster)
	for name, chain := range map[string][]*x509.Certificate{
		"no CA": {node.Leaf}, "nothing": nil, "another CA": {node.Leaf, ca2.cert},
		"the right CA behind a foreign leaf": {credentials(t, ca2, cluster, uuid.NewString(), time.Now(), time.Hour).Leaf, ca.cert},
	} {
		if err := tok.VerifyServer(chain, time.Now()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestProof: a proof holds for one message on one connection.
func TestProof(t *testing.T) {
	cluster := uuid.NewString()
	ca := newCA(t, cluster)
	tok, err := NewToken(cluster, ca.cert)
	if err != nil {
		t.Fatal(err)
	}
	server := credentials(t, ca, cluster, uuid.NewString(), time.Now(), time.Hour)
	connect := func() (client, srv tls.ConnectionState) {
		a, b := net.Pipe()
		sc := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{server.TLS()}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
		cc := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
		done := make(chan error, 1)
		go func() { done <- sc.HandshakeContext(context.Background()) }()
		if err := cc.HandshakeContext(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return cc.ConnectionState(), sc.ConnectionState()
	}
	c1, s1 := connect()
	_, s2 := connect()
	msg := []byte("message")
	proof, err := Proof(tok.ProofKey(), c1, msg)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckProof(tok.ProofKey(), proof, s1, msg); err != nil {
		t.Error(err)
	}
	tok2, _ := NewToken(cluster, ca.cert)
	for name, err := range map[string]error{
		"another connection": CheckProof(tok.ProofKey(), proof, s2, msg), "another message": CheckProof(tok.ProofKey(), proof, s1, []byte("massage")),
		"another secret": CheckProof(tok2.ProofKey(), proof, s1, msg), "nothing": CheckProof(tok.ProofKey(), nil, s1, msg),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	ca, err := NewCA(uuid.NewString(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	tok, err := NewToken(uuid.NewString(), ca.cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Add("CJT1....")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		back, err := ParseToken(tok.Text())
		if err != nil || back.Text() != tok.Text() || len(back.secret) != secretSize {
			t.Errorf("%q: %v, %v", s, back, err)
		}
	})
}

package e2e

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"concord/test/harness"
)

// TestSessionsAcrossNodes: a client that shook hands with one node resumes its session on the others, before and after a restart.
func TestSessionsAcrossNodes(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 3)
	last := write(t, c.Any(), "POST", "/certificates", issue(t, "a.example.com", nil).body("a.example.com"), 201)
	for _, n := range c.Nodes {
		seen(t, n, "/", last.Index())
	}
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		config := &tls.Config{
			InsecureSkipVerify: true, ServerName: "a.example.com", MinVersion: version, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		}
		resumed := func(n *harness.Node) bool {
			t.Helper()
			tr := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
			r, err := (&http.Client{Transport: tr, Timeout: 30 * time.Second}).Get("https://" + n.ProxyTLS + "/")
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			return r.TLS.DidResume
		}
		for end := time.Now().Add(time.Minute); ; { // the leader makes the keys a little after the first node has started
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			if resumed(c.Nodes[0]) {
				t.Errorf("%s: a session was resumed that never was", name)
			}
			if resumed(c.Nodes[1]) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: not resumed on another node", name)
			}
		}
		for _, n := range []*harness.Node{c.Nodes[2], c.Nodes[0]} {
			if !resumed(n) {
				t.Errorf("%s: not resumed on %s", name, n.Name)
			}
		}
		n := c.Nodes[2]
		n.Stop()
		n.Start()
		if !resumed(n) {
			t.Errorf("%s: not resumed after a restart", name)
		}
	}
}

// TestCertificateFileReload: a renewed file is shown after a reload; one that is broken leaves the old one in place.
func TestCertificateFileReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "own.crt"), filepath.Join(dir, "own.key")
	put := func(cert, key string) {
		t.Helper()
		for name, text := range map[string]string{certFile: cert, keyFile: key} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, second := issue(t, "first", nil), issue(t, "second", nil)
	put(first.pem, first.keyP)
	n := harness.NewNode(t, "solo", "CONCORD_SSL_CERT="+certFile, "CONCORD_SSL_CERT_KEY="+keyFile, "CONCORD_SSL_CIPHER_SUITE=custom",
		"CONCORD_SSL_CIPHERS=ECDHE-ECDSA-CHACHA20-POLY1305")
	n.Start()
	expect := func(want string) {
		t.Helper()
		deadline := time.Now().Add(60 * time.Second)
		for shown(t, n, "any.org") != want {
			if time.Now().After(deadline) {
				t.Fatalf("shown %q, want %q", shown(t, n, "any.org"), want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	expect("first")
	put(second.pem, first.keyP)
	n.Signal(syscall.SIGHUP)
	waitFor(t, n.LogFile, "nothing was changed")
	expect("first")
	put(second.pem, second.keyP)
	n.Signal(syscall.SIGHUP)
	expect("second")

	old, err := tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if got := old.ConnectionState().CipherSuite; got != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
		t.Errorf("cipher suite %s is spoken", tls.CipherSuiteName(got))
	}
}

// waitFor waits until a log file holds a text.
func waitFor(t *testing.T, file, text string) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q is not in %s", text, file)
		}
	}
}

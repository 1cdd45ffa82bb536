package cluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestJoinRefused: tokens that are used up, expired, pinned to another CA or of another cluster, and nodes that hold
// data, are refused, each with its reason; a refused node goes on as it was.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	a, b, d := harness.NewNode(t, "a"), harness.NewNode(t, "b"), harness.NewNode(t, "d")
	for _, n := range []*harness.Node{a, b, d} {
		n.Start()
	}
	token := func(args ...string) string {
		t.Helper()
		out, err := a.Gwctl(append([]string{"cluster", "token"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(out, "CJT1.") || strings.ContainsAny(out, " \n") {
			t.Fatalf("the verb must print just the token, got %q", out)
		}
		return out
	}
	refused := func(what string, n *harness.Node, tok string, words ...string) {
		t.Helper()
		out, err := n.Gwctl("cluster", "join", a.ClusterAddr, "--token", tok)
		if err == nil {
			t.Fatalf("%s: joined: %s", what, out)
		}
		for _, w := range words {
			if !strings.Contains(strings.ToLower(err.Error()), w) {
				t.Errorf("%s: %q does not say %q", what, err, w)
			}
		}
	}
	expired := token("--ttl", "1s")
	time.Sleep(1500 * time.Millisecond)
	refused("expired", d, expired, "expired")

	good := token()
	parts := strings.Split(good, ".")
	swap := func(i int, s string) string {
		p := append([]string(nil), parts...)
		p[i] = s
		return strings.Join(p, ".")
	}
	pin := []byte(parts[2])
	pin[0] ^= 1
	if pin[0] == parts[2][0] || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", rune(pin[0])) {
		pin[0] = 'a'
		if parts[2][0] == 'a' {
			pin[0] = 'b'
		}
	}
	refused("wrong pin", d, swap(2, string(pin)), "pin")
	refused("wrong secret", d, swap(4, parts[4][1:]+"a"))
	refused("garbage", d, "CJT1.nonsense", "token")
	if _, err := b.Gwctl("cluster", "join", a.ClusterAddr, "--token", good); err != nil {
		t.Fatal(err)
	}
	refused("used twice", d, good, "used")

	if r := d.JSON("POST", "/consumers", `{"username":"mine"}`); r.Status != 201 {
		t.Fatal(r.Status, r.Body)
	}
	fresh := token()
	refused("holds data", d, fresh, "data", "--discard-local-data")
	if r := d.JSON("GET", "/consumers/mine", ""); r.Status != 200 {
		t.Errorf("a refused join lost data: %d %s", r.Status, r.Body)
	}
	if _, err := d.Gwctl("cluster", "join", a.ClusterAddr, "--token", fresh, "--discard-local-data"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		s, err := d.ClusterStatus()
		if err == nil && len(s.Nodes) == 3 && s.Healthy && s.FailureTolerance == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not a cluster of three: %v %+v", err, s)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if r := d.JSON("GET", "/consumers/mine", ""); r.Status != 404 {
		t.Errorf("discarded data is still there: %d", r.Status)
	}
	if r := d.JSON("POST", "/consumers", `{"username":"ours"}`); r.Status != 201 {
		t.Fatal(r.Status, r.Body)
	}
}

// TestClusterPort: whoever has no certificate of the cluster gets nothing from the cluster port.
func TestClusterPort(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 2)
	addr := c.Nodes[0].ClusterAddr
	read := func(conn net.Conn) []byte {
		conn.SetReadDeadline(time.Now().Add(15 * time.Second))
		var got bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				return got.Bytes()
			}
		}
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := read(conn); bytes.Contains(got, []byte("HTTP")) {
		t.Errorf("plain TCP got %q", got)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	foreign := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, proto := range []string{"concord-raft/1", "h2", "http/1.1"} {
		for what, certs := range map[string][]tls.Certificate{"no certificate": nil, "foreign certificate": {foreign}} {
			tc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, Certificates: certs})
			if err != nil {
				continue // refused in the handshake
			}
			fmt.Fprintf(tc, "GET /peer/status HTTP/1.1\r\nHost: x\r\n\r\n")
			got := read(tc)
			tc.Close()
			if bytes.Contains(got, []byte("HTTP/1.1 2")) || (proto == "concord-raft/1" && len(got) > 0) {
				t.Errorf("%s over %s got %q", what, proto, got)
			}
		}
	}
	if r := c.Any().JSON("POST", "/consumers", `{"username":"still"}`); r.Status != 201 {
		t.Errorf("the cluster suffers: %d %s", r.Status, r.Body)
	}
}

// keyPair makes a certificate and its private key in PEM form; line is a part of the key's text that has to stay secret.
func keyPair(t *testing.T) (cert, private, line string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	private = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return cert, private, strings.Split(private, "\n")[1] // the scalar stands in the first line of base64
}

// TestNoSecretInClear plants secrets through the Admin API, proxies with them, forces snapshots by restarts, and then
// reads every byte below every prefix and every log.
func TestNoSecretInClear(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	protect(t, c.Nodes[0], up.URL)
	var secrets []string
	plant := func(kind, path, body string) {
		t.Helper()
		s := fmt.Sprintf("planted-%s-%d-secret", kind, len(secrets))
		r := c.Any().JSON("POST", path, fmt.Sprintf(body, s))
		if r.Status != 201 {
			t.Fatalf("%s: %d %s", path, r.Status, r.Body)
		}
		secrets = append(secrets, s)
	}
	for i := range 20 {
		plant("jwt", "/consumers/kim/jwt", `{"secret":"%s"}`)
		plant("key", "/consumers/kim/key-auth", `{"key":"%s"}`)
		plant("basic", "/consumers/kim/basic-auth", fmt.Sprintf(`{"username":"u%d","password":"%%s"}`, i))
	}
	cert, key, line := keyPair(t)
	body, _ := json.Marshal(map[string]any{"cert": cert, "key": key, "snis": []string{"planted.example.com"}})
	if r := c.Any().JSON("POST", "/certificates", string(body)); r.Status != 201 {
		t.Fatalf("certificate: %d %s", r.Status, r.Body)
	}
	if r := c.Any().JSON("POST", "/certificates", strings.Replace(string(body), "planted.", "not a name.", 1)); r.Status != 400 {
		t.Fatalf("bad certificate: %d %s", r.Status, r.Body)
	}
	secrets = append(secrets, line)
	for _, n := range c.Nodes {
		n.Get("/p", "apikey", secrets[1])
		n.Get("/p?apikey=" + secrets[1])
		n.JSON("POST", "/consumers/kim/key-auth", `{"key":"`+secrets[1]+`"}`) // a conflict names the key only to who sent it
		n.JSON("POST", "/consumers/kim/basic-auth", `{"username":"x","password":"`+secrets[2]+`","unknown":1}`)
	}
	for _, n := range c.Nodes {
		if code := n.Stop(); code != 0 {
			t.Errorf("%s: exit code %d", n.Name, code)
		}
	}
	files := 0
	for _, n := range c.Nodes {
		check := func(path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files++
			for _, s := range secrets {
				if bytes.Contains(b, []byte(s)) {
					t.Fatalf("%s holds %s", path, s)
				}
			}
		}
		check(n.LogFile)
		err := filepath.WalkDir(n.Prefix, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if d.Type().IsRegular() {
				check(path)
				if strings.HasSuffix(path, ".key") || strings.Contains(path, "/keys/") {
					if info.Mode().Perm() != 0o600 {
						t.Errorf("%s has mode %v", path, info.Mode())
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 9 {
		t.Fatalf("only %d files read", files)
	}
}

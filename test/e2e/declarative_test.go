package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// selfMade is a certificate that may sign, and its key, in PEM.
func selfMade(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// everything is a file with each entity that deck 1.4 knows and each plugin that the node has. Passwords are left out: as with
// Kong, a dump holds their digests, which deck sends back as if they were clear.
func everything(t testing.TB, n *harness.Node) string {
	t.Helper()
	cert, key := selfMade(t)
	ca, _ := selfMade(t)
	type list = []any
	type rec = map[string]any
	needed := map[string]rec{ // settings without which a plugin means nothing
		"acl": {"allow": list{"gold"}}, "ip-restriction": {"allow": list{"::1"}}, "rate-limiting": {"minute": 5},
		"response-ratelimiting": {"limits": rec{"video": rec{"minute": 5}}}, "redirect": {"location": "http://a.example"},
		"http-log": {"http_endpoint": "http://127.0.0.1:1"}, "tcp-log": {"host": "127.0.0.1", "port": 1}, "udp-log": {"host": "127.0.0.1", "port": 1},
		"file-log": {"path": "/dev/null"}, "opentelemetry": {"traces_endpoint": "http://127.0.0.1:1"}, "zipkin": {"http_endpoint": "http://127.0.0.1:1"},
		"ldap-auth": {"ldap_host": "127.0.0.1", "base_dn": "dc=x", "attribute": "cn"}, "oauth2": {"scopes": list{"a"}, "enable_client_credentials": true},
		"proxy-cache": {"strategy": "memory"}, "mtls-auth": {"ca_certificates": list{"5a7b3dfc-1c6c-4b43-9c3c-5c3a5e3f1a02"}},
	}
	var root struct {
		Plugins struct {
			Available map[string]any `json:"available_on_server"`
		}
	}
	if err := json.Unmarshal([]byte(n.JSON("GET", "/", "").Body), &root); err != nil || len(root.Plugins.Available) == 0 {
		t.Fatalf("GET /: %v", err)
	}
	services := list{rec{"name": "main", "host": "main.upstream", "tags": list{"a", "b"}, "routes": list{
		rec{"name": "get", "paths": list{"/get", `~/id/\d+$`}, "methods": list{"GET"}, "plugins": list{rec{"name": "correlation-id", "config": rec{"header_name": "X-Id"}}}},
		rec{"name": "host", "hosts": list{"*.example"}, "headers": rec{"x-env": list{"prod"}}, "strip_path": false}}}}
	for name := range root.Plugins.Available {
		if name == "acme" { // belongs to nothing, see below
			continue
		}
		plugin := rec{"name": name}
		if needed[name] != nil {
			plugin["config"] = needed[name]
		}
		services = append(services, rec{"name": "with-" + name, "host": "127.0.0.1", "plugins": list{plugin}})
	}
	doc := rec{
		"_format_version": "1.1", "services": services,
		"consumers": list{rec{"username": "bob", "custom_id": "b", "keyauth_credentials": list{rec{"key": "bobs"}}, "acls": list{rec{"group": "gold"}},
			"jwt_secrets": list{rec{"key": "iss", "algorithm": "HS256", "secret": "0123456789abcdef0123456789abcdef"}}, "hmacauth_credentials": list{rec{"username": "bob", "secret": "hmac"}},
			"oauth2_credentials": list{rec{"name": "app", "client_id": "cid", "client_secret": "csec", "redirect_uris": list{"https://app.example"}}},
			"plugins":            list{rec{"name": "request-size-limiting"}}}},
		"upstreams":       list{rec{"name": "main.upstream", "targets": list{rec{"target": "127.0.0.1:1", "weight": 10}, rec{"target": "127.0.0.2:1"}}}},
		"certificates":    list{rec{"id": "5a7b3dfc-1c6c-4b43-9c3c-5c3a5e3f1a01", "cert": cert, "key": key, "snis": list{rec{"name": "a.example"}, rec{"name": "b.example"}}}},
		"ca_certificates": list{rec{"id": "5a7b3dfc-1c6c-4b43-9c3c-5c3a5e3f1a02", "cert": ca}},
		"plugins": list{rec{"name": "request-termination", "enabled": false},
			rec{"name": "acme", "enabled": false, "config": rec{"account_email": "a@a.example", "tos_accepted": true, "domains": list{"a.example"}}}},
	}
	text, err := json.Marshal(doc) // is YAML too
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDeck: Debian's decK, unchanged, takes a file with everything through sync, dump, reset and sync; the dumps are equal.
func TestDeck(t *testing.T) {
	if _, err := exec.LookPath("deck"); err != nil {
		t.Skip("deck is not installed: apt-get install deck")
	}
	t.Parallel()
	c := harness.StartCluster(t, 3)
	deck := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "deck", append([]string{"--kong-addr", "http://" + c.Any().Admin}, args...)...)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("deck %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	dir := t.TempDir()
	dump := func(name string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		deck("dump", "-o", path)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	deck("ping")
	deck("sync", "-s", everything(t, c.Nodes[0]))
	first := dump("first.yaml")
	deck("reset", "-f")
	if out := c.Any().JSON("GET", "/services", "").Body; !strings.Contains(out, `"data":[]`) {
		t.Fatalf("after the reset: %s", out)
	}
	deck("sync", "-s", filepath.Join(dir, "first.yaml"))
	if second := dump("second.yaml"); second != first {
		t.Errorf("the dumps differ:\n%s\n--- and ---\n%s", first, second)
	}
	if out := deck("diff", "-s", filepath.Join(dir, "second.yaml")); !strings.Contains(out, "Created: 0") || !strings.Contains(out, "Updated: 0") || !strings.Contains(out, "Deleted: 0") {
		t.Errorf("diff of the dump:\n%s", out)
	}
	// gwctl takes decK's dump and sees the same; decK takes gwctl's.
	n := c.Any()
	out, err := n.Gwctl("config", "diff", filepath.Join(dir, "second.yaml"))
	if err != nil || !strings.Contains(out, "To create: 0\n  To update: 0\n  To delete: 0") {
		t.Errorf("gwctl config diff of deck's dump: %v\n%s", err, out)
	}
}

// TestConfigVerbs: what gwctl and concord write, they read, on any node, and nothing differs afterwards.
func TestConfigVerbs(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 3)
	dir := t.TempDir()
	gwctl := func(args ...string) string {
		t.Helper()
		out, err := c.Any().Gwctl(append([]string{"config"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	has := func(what, out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s lacks %q:\n%s", what, w, out)
			}
		}
	}
	path := everything(t, c.Nodes[0])
	extra := filepath.Join(dir, "more.yaml")
	text := "_format_version: '1.1'\nconsumers:\n- username: ann\n  basicauth_credentials:\n  - username: ann\n    password: clear\n  keyauth_credentials:\n  - key: k\n"
	if err := os.WriteFile(extra, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	has("validate", gwctl("validate", path), "is valid")
	has("sync", gwctl("sync", "-s", path, extra), "creating consumer ann", "creating service main", "Updated: 0", "Deleted: 0")
	has("the second sync", gwctl("sync", path, extra), "Created: 0", "Updated: 0", "Deleted: 0")
	file := filepath.Join(dir, "dump.yaml")
	gwctl("dump", "-o", file)
	if _, err := c.Any().Gwctl("config", "dump", "-o", file); err == nil {
		t.Error("a file was overwritten")
	}
	has("diff of the dump", gwctl("diff", file, "--non-zero-exit-code"), "To create: 0", "To update: 0", "To delete: 0")
	before := gwctl("dump", "--format", "json")
	gwctl("reset", "--force")
	has("the emptied node", gwctl("dump"), `_format_version: "3.0"`)
	gwctl("sync", file)
	if after := gwctl("dump", "--format", "json"); without(t, after) != without(t, before) {
		t.Errorf("dump, reset and sync changed the configuration:\n%s\n--- and ---\n%s", before, after)
	}
	// A part with a tag leaves the rest alone.
	part := filepath.Join(dir, "part.yaml")
	if err := os.WriteFile(part, []byte("_format_version: '3.0'\nservices:\n- {name: team, host: ${{ env \"DECK_HOST\" }}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Any().Gwctl("config", "sync", part, "--select-tag", "team-a"); err == nil || !strings.Contains(err.Error(), "DECK_HOST is not set") {
		t.Errorf("a missing variable: %v %s", err, out)
	}
	if err := os.WriteFile(part, []byte("_format_version: '3.0'\nservices:\n- {name: team, host: h}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	has("sync of a part", gwctl("sync", part, "--select-tag", "team-a"), "creating service team", "Created: 1", "Deleted: 0")
	if out, err := c.Any().Gwctl("config", "diff", path, "--non-zero-exit-code"); err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "deleting service team") {
		t.Errorf("diff with differences: %v %s", err, out)
	}
	has("reset of a part", gwctl("reset", "--select-tag", "team-a", "--yes"), "deleting service team", "Deleted: 1")
	// A second gateway takes over the first, over its Admin API and from a file.
	other := harness.NewNode(t, "other")
	other.Start()
	live := "http://" + c.Any().Admin
	out, err := other.Gwctl("config", "import", "--from", live)
	if err != nil {
		t.Fatal(err)
	}
	has("import of a live node", out, "Rewritten: 0", "Refused: 0")
	out, err = other.Gwctl("config", "diff", file)
	if err != nil {
		t.Fatal(err)
	}
	has("diff after the import", out, "To create: 0", "To delete: 0")
	old := filepath.Join(dir, "old.yaml")
	if err := os.WriteFile(old, []byte(`
_format_version: "1.1"
rbac_roles: [{name: boss}]
services:
- name: old
  host: h
  routes:
  - {name: regex, paths: ['/v\d+']}
  - {name: broken, paths: ['no']}
  plugins:
  - {name: no-such-plugin}
  - {name: key-auth, config: {old_setting: 1}}
consumers:
- username: lost
  basicauth_credentials: [{username: lost, password: 52544aa6601b0b2a3c7f741292b54e578c2fcb85}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = other.Gwctl("config", "import", "--from", old)
	if err == nil {
		t.Fatal("nothing was refused")
	}
	for _, want := range []string{"4 objects were refused", "rbac_roles", "no-such-plugin", "regular expression: ~/v", "without config.old_setting", "digest", "Carried: 2", "Rewritten: 2"} {
		has("the report", err.Error(), want)
	}
	if got := other.JSON("GET", "/routes/regex", "").JSON(); fmt.Sprint(got["paths"]) != `[~/v\d+]` {
		t.Errorf("the imported route: %v", got)
	}
}

// without is a dump without what is made anew, so that two can be compared.
func without(t testing.TB, text string) string {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	var strip func(any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range []string{"id", "created_at", "updated_at"} {
				delete(v, k)
			}
			for _, e := range v {
				strip(e)
			}
		case []any:
			for _, e := range v {
				strip(e)
			}
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	strip(doc)
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

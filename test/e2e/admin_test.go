package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestAdminAttacks is what is tried against the Admin API, on two nodes: M1 to M10.
func TestAdminAttacks(t *testing.T) {
	c := harness.StartCluster(t, 2)
	leader := c.Leader(30e9)
	if leader == nil {
		t.Fatal("no leader")
	}
	other := c.Nodes[0]
	if other == leader {
		other = c.Nodes[1]
	}
	token := func(body string) string {
		t.Helper()
		a := leader.JSON("POST", "/admin/tokens", body)
		text, _ := a.JSON()["token"].(string)
		if a.Status != 201 {
			t.Fatalf("token: %d %s", a.Status, a.Body)
		}
		return text
	}
	const header = "Kong-Admin-Token"
	want := func(n *harness.Node, status int, method, path, body string, headers ...string) harness.Answer {
		t.Helper()
		a := n.JSON(method, path, body, headers...)
		if a.Status != status {
			t.Errorf("%s %s: %d, want %d: %s", method, path, a.Status, status, a.Body)
		}
		return a
	}
	reader, ops := token(`{"name":"reader","role":"read-only"}`), token(`{"name":"ops","role":"admin"}`)
	team, brief := token(`{"name":"team","role":"admin","tags":["a"]}`), token(`{"name":"brief","role":"admin","ttl":1}`)
	want(leader, 201, "POST", "/services", `{"name":"theirs","host":"h","tags":["b"]}`)
	want(leader, 201, "POST", "/consumers", `{"username":"u"}`)
	want(leader, 201, "POST", "/consumers/u/jwt", `{"key":"k","secret":"planted-secret-0123456789012345678"}`)

	t.Run("M1", func(t *testing.T) {
		for _, bad := range []string{"gwat_", "gwat_" + strings.Repeat("a", 64), "x"} {
			if a := want(other, 401, "GET", "/services", "", header, bad); a.Header.Get("WWW-Authenticate") == "" {
				t.Error("no challenge")
			}
		}
		want(other, 403, "POST", "/services", `{"host":"h"}`, header, reader)
		want(other, 200, "GET", "/services", "", "Authorization", "Bearer "+reader)
		gone := token(`{"name":"gone","role":"super"}`)
		want(other, 200, "GET", "/services", "", header, gone)
		want(leader, 204, "DELETE", "/admin/tokens/gone", "")
		want(other, 401, "GET", "/services", "", header, gone)
	})
	t.Run("M2", func(t *testing.T) {
		scoped := token(`{"name":"scoped","role":"admin","entities":["services"]}`)
		for _, path := range []string{"/consumers", "/Consumers", "/services/../consumers", "/services/%2e%2e/consumers", "//consumers", "/%63onsumers", "/consumers/u/", "/services/theirs/..%2f..%2fconsumers"} {
			if a := other.JSON("GET", path, "", header, scoped); a.Status == 200 || strings.Contains(a.Body, `"username"`) {
				t.Errorf("GET %s: %d %s", path, a.Status, a.Body)
			}
		}
	})
	t.Run("M3", func(t *testing.T) {
		want(other, 403, "POST", "/services/theirs/plugins", `{"name":"jwt"}`, header, team)
		want(other, 403, "POST", "/services/theirs/routes", `{"paths":["/x"]}`, header, team)
		want(other, 403, "POST", "/config?mode=merge", `{"_format_version":"3.0","plugins":[{"name":"jwt"}]}`, header, team)
		want(other, 403, "POST", "/config", `{"_format_version":"3.0"}`, header, reader)
		want(other, 403, "POST", "/apis", `{"name":"x","upstream_url":"http://h","request_path":"/x"}`, header, reader)
		if a := want(other, 200, "GET", "/tags/b", "", header, team); strings.Contains(a.Body, "services") {
			t.Errorf("tags: %s", a.Body)
		}
	})
	t.Run("M4", func(t *testing.T) {
		want(other, 403, "GET", "/services", "", "Host", "evil.example:8001")
		want(other, 403, "POST", "/services", `{"host":"h"}`, "Origin", "http://evil.example")
		if a, err := harness.Do("POST", "http://"+other.Admin+"/services", "text/plain", `{"host":"h"}`); err != nil || a.Status != 415 {
			t.Errorf("text/plain: %v %d", err, a.Status)
		}
	})
	t.Run("M5", func(t *testing.T) {
		for _, c := range []struct{ listen, why string }{{"0.0.0.0:0", "add ssl"}, {"0.0.0.0:0 ssl", "no admin token"}} {
			n := harness.NewNode(t, "open", "CONCORD_ADMIN_LISTEN="+c.listen)
			if err := n.StartProcess(); err != nil {
				t.Fatal(err)
			}
			if code := n.WaitExit(30e9); code == 0 || !strings.Contains(n.Log(), c.why) {
				t.Errorf("admin_listen %s: exit code %d: %s", c.listen, code, n.Log())
			}
		}
	})
	t.Run("M6", func(t *testing.T) {
		for i, url := range []string{"http://" + other.Admin, "https://" + other.ClusterAddr} {
			name := fmt.Sprintf("loop%d", i)
			want(other, 201, "POST", "/services", `{"name":"`+name+`","url":"`+url+`","retries":0}`)
			want(other, 201, "POST", "/services/"+name+"/routes", `{"paths":["/`+name+`"]}`)
			if a := other.Get("/" + name + "/"); a.Status < 500 || strings.Contains(a.Body, "tagline") {
				t.Errorf("%s is reached through the proxy: %d %s", url, a.Status, a.Body)
			}
		}
		want(other, 400, "POST", "/services", `{"url":"file:///etc/passwd"}`)
		want(other, 400, "POST", "/services", `{"url":"unix:/run/x"}`)
	})
	t.Run("M7", func(t *testing.T) {
		for _, path := range []string{"/consumers/u/jwt", "/consumers/u/jwt/k", "/jwts", "/config", "/tags", "/admin/tokens", "/admin/audit"} {
			a := other.JSON("GET", path, "", header, reader)
			if strings.Contains(a.Body, "planted-secret") {
				t.Errorf("GET %s as reader: %s", path, a.Body)
			}
		}
		if a := want(other, 200, "GET", "/consumers/u/jwt/k", "", header, ops); !strings.Contains(a.Body, "planted-secret") {
			t.Errorf("as admin: %s", a.Body)
		}
		for _, path := range []string{"/admin/tokens", "/admin/audit", "/status", "/"} {
			if a := want(other, 200, "GET", path, ""); strings.Contains(a.Body, "planted-secret") || strings.Contains(a.Body, "gwat_") {
				t.Errorf("GET %s: %s", path, a.Body)
			}
		}
		for _, n := range c.Nodes {
			if strings.Contains(n.Log(), "gwat_") || strings.Contains(n.Log(), "planted-secret") {
				t.Error("a secret is in a log")
			}
		}
	})
	t.Run("M8", func(t *testing.T) {
		want(other, 400, "POST", "/services", `{"host":"h","role":"super"}`)
		want(other, 400, "POST", "/consumers/u/jwt", `{"ws_id":"x"}`)
		want(other, 400, "POST", "/admin/tokens", `{"name":"x","role":"admin","hash":"0"}`)
		a := want(other, 201, "POST", "/consumers", `{"username":"v"}`)
		b := want(other, 201, "POST", "/consumers/u/key-auth", fmt.Sprintf(`{"key":"kk","consumer":{"id":%q}}`, a.JSON()["id"]))
		if owner := b.JSON()["consumer"].(map[string]any)["id"]; owner == a.JSON()["id"] {
			t.Error("the body overrode whose credential the path says it is")
		}
	})
	t.Run("M9", func(t *testing.T) {
		for _, plugin := range []string{"pre-function", "post-function", "no-such-plugin"} {
			want(other, 400, "POST", "/plugins", `{"name":"`+plugin+`","config":{"access":["os.exit()"]}}`)
		}
		a := want(other, 201, "POST", "/services", `{"name":"quote","host":"h","tags":["\"${x}`+"`"+`{{7*7}}"]}`)
		if tags := fmt.Sprint(a.JSON()["tags"]); tags != `["${x}`+"`"+`{{7*7}}]` {
			t.Errorf("tags %s", tags)
		}
	})
	t.Run("M10", func(t *testing.T) {
		id := leader.JSON("GET", "/admin/tokens/ops", "").JSON()["id"].(string)
		for _, h := range [][]string{{"X-Forwarded-For", "127.0.0.1"}, {"X-Concord-Actor", id}, {"Actor", `{"token":"` + id + `"}`}, {"X-Consumer-Username", "ops"}} {
			want(other, 403, "POST", "/services", `{"host":"h"}`, append(h, header, reader)...)
		}
		want(other, 403, "POST", "/services", `{"host":"h","actor":{"token":"`+id+`"}}`, header, reader)
		want(leader, http.StatusNoContent, "DELETE", "/admin/tokens/ops", "")
		want(other, 401, "POST", "/services", `{"host":"h"}`, header, ops)
		status := 0
		for end := time.Now().Add(60 * time.Second); status != 401 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			status = other.JSON("GET", "/services", "", header, brief).Status
		}
		if status != 401 {
			t.Errorf("a token outlives its ttl: %d", status)
		}
	})
	if out, err := other.Gwctl("audit", "verify"); err != nil || !strings.Contains(out, "are intact") {
		t.Errorf("audit verify: %v %s", err, out)
	}
	out, err := other.Gwctl("audit", "tail", "-n", "1000")
	for _, want := range []string{"create: join token for 1 voter", "join: node n2 ", "promote: node n2 ", "created admin_tokens", "deleted admin_tokens"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("audit tail: %v, no %q in\n%s", err, want, out)
		}
	}
	a, b := leader.JSON("GET", "/admin/audit", ""), other.JSON("GET", "/admin/audit", "")
	if a.Body != b.Body || !strings.Contains(a.Body, `"name":"ops"`) && !strings.Contains(a.Body, `"verb":"delete"`) {
		t.Error("the nodes' audit logs differ")
	}
}

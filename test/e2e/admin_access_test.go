package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// outside is the Admin API of a node that other machines can reach, over TLS.
type outside struct {
	t    *testing.T
	base string
	http http.Client
}

// newOutside is a client at an address of loopback.
func newOutside(t *testing.T, addr, client string) *outside {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: dialer.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &outside{t: t, base: "https://" + addr, http: http.Client{Transport: tr, Timeout: 30 * time.Second}}
}

// call sends a request with a token: "" none, beginning with "kong " as Kong-Admin-Token, else as Authorization: Bearer.
func (o *outside) call(token, method, path, body string) (status int, header http.Header, text string) {
	o.t.Helper()
	req, err := http.NewRequestWithContext(o.t.Context(), method, o.base+path, strings.NewReader(body))
	if err != nil {
		o.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if t, ok := strings.CutPrefix(token, "kong "); ok {
		req.Header.Set("Kong-Admin-Token", t)
	} else if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := o.http.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

// want calls and compares the status.
func (o *outside) want(status int, token, method, path, body string) string {
	o.t.Helper()
	got, _, text := o.call(token, method, path, body)
	if got != status {
		o.t.Errorf("%s %s: %d, want %d: %s", method, path, got, status, text)
	}
	return text
}

// TestAdminAccess: an Admin API that other machines can reach, from its refusal to start without credentials to what each role may do, through every door.
func TestAdminAccess(t *testing.T) {
	t.Parallel()
	exposed := fmt.Sprintf("0.0.0.0:%d", harness.FreePort(t))
	n := harness.NewNode(t, "n")
	start := func(env ...string) {
		t.Helper()
		n.Env = env
		if err := n.StartProcess(); err != nil {
			t.Fatal(err)
		}
	}
	// Without a token it does not start, and says so in one line; nor without TLS, whatever there is.
	start("CONCORD_ADMIN_LISTEN=" + exposed + " ssl")
	if code := n.WaitExit(30 * time.Second); code == 0 || !regexp.MustCompile(`(?m)^.*admin_listen: .*there is no admin token: .*gwctl token create.*$`).MatchString(n.Log()) {
		t.Fatalf("exit code %d:\n%s", code, n.Log())
	}
	start() // on loopback, to make the first one
	n.WaitReady(30 * time.Second)
	root, err := n.Gwctl("token", "create", "--name", "root", "--role", "super")
	if err != nil {
		t.Fatal(err)
	}
	n.Stop()
	start("CONCORD_ADMIN_LISTEN=" + exposed)
	if code := n.WaitExit(30 * time.Second); code == 0 || !strings.Contains(n.Log(), "add ssl") {
		t.Fatalf("without TLS: exit code %d:\n%s", code, n.Log())
	}
	start("CONCORD_ADMIN_LISTEN="+exposed+" http2 ssl", "CONCORD_ADMIN_REQUIRE_TOKEN=on")
	n.WaitReady(30 * time.Second)
	addr := strings.Replace(exposed, "0.0.0.0", "127.0.0.1", 1)
	api := newOutside(t, addr, "127.0.0.1")

	token := func(body string) string {
		t.Helper()
		var made struct{ Token string }
		if err := json.Unmarshal([]byte(api.want(201, root, "POST", "/admin/tokens", body)), &made); err != nil {
			t.Fatal(err)
		}
		return made.Token
	}
	reader, admin := token(`{"name":"reader","role":"read-only"}`), token(`{"name":"admin","role":"admin"}`)
	scoped := token(`{"name":"scoped","role":"admin","entities":["services"]}`)
	team := token(`{"name":"team","role":"admin","tags":["a"]}`)
	brief := token(`{"name":"brief","role":"admin","ttl":1}`)
	const secret = "planted-secret-0123456789012345678"
	api.want(201, root, "POST", "/services", `{"name":"s","host":"h"}`)
	api.want(201, root, "POST", "/consumers", `{"username":"u"}`)
	api.want(201, root, "POST", "/consumers/u/jwt", `{"key":"k","secret":"`+secret+`"}`)

	t.Run("nobody", func(t *testing.T) { // not even on this machine, as admin_require_token says
		for _, c := range [][2]string{{"GET", "/"}, {"GET", "/services"}, {"POST", "/services"}, {"GET", "/config"}, {"GET", "/admin/audit"}, {"GET", "/none"}, {"POST", configService + "List"}, {"POST", "/admin/tokens"}} {
			body := ""
			if c[0] == "POST" {
				body = `{}`
			}
			if c[1] == "/admin/tokens" {
				body = `{"name":"x","role":"super"}`
			}
			if got, _, text := api.call("", c[0], c[1], body); got != 401 {
				t.Errorf("%s %s: %d %s", c[0], c[1], got, text)
			}
		}
		if got, h, _ := api.call("", "GET", "/services", ""); got != 401 || h.Get("WWW-Authenticate") == "" {
			t.Errorf("no challenge: %d %v", got, h)
		}
	})
	t.Run("both headers", func(t *testing.T) {
		for _, tok := range []string{root, "kong " + root, reader, "kong " + reader} {
			api.want(200, tok, "GET", "/services/s", "")
		}
	})
	apply := func(kind, entity string) string {
		return `{"wanted":[{"kind":"` + kind + `","entity":` + entity + `}]}`
	}
	t.Run("read-only", func(t *testing.T) {
		for _, c := range [][3]string{
			{"POST", "/services", `{"host":"h"}`}, {"PUT", "/services/s", `{"host":"h"}`}, {"PATCH", "/services/s", `{"host":"x"}`}, {"DELETE", "/services/s", ""},
			{"POST", "/services/s/routes", `{"paths":["/x"]}`}, {"POST", "/config", `{"_format_version":"3.0","services":[]}`}, {"POST", "/apis", `{"name":"x","upstream_url":"http://h","request_path":"/x"}`},
			{"POST", "/admin/tokens", `{"name":"y","role":"super"}`}, {"POST", "/cluster/tokens", `{}`}, {"POST", "/cluster/leave", ""}, {"PUT", "/debug/node/log-level/debug", ""},
			{"GET", "/admin/tokens", ""}, {"GET", "/admin/audit", ""},
			{"POST", configService + "Mutate", `{"verb":"VERB_CREATE","target":{"kind":"services"},"entity":{"service":{"host":"h"}}}`},
			{"POST", configService + "Apply", apply("services", `{"service":{"name":"x","host":"h"}}`)},
			{"POST", "/concord.admin.v1.ClusterService/CreateToken", `{}`},
		} {
			api.want(403, reader, c[0], c[1], c[2])
		}
		api.want(200, reader, "GET", "/services", "")
	})
	t.Run("one kind of entity", func(t *testing.T) {
		api.want(201, scoped, "POST", "/services", `{"name":"own","host":"h"}`)
		api.want(200, scoped, "PATCH", "/services/own", `{"port":81}`)
		api.want(201, scoped, "POST", "/config?mode=merge", `{"_format_version":"3.0","services":[{"name":"own","host":"i"}]}`)
		api.want(200, scoped, "POST", configService+"Apply", apply("services", `{"service":{"name":"own","host":"j"}}`))
		for _, c := range [][3]string{
			{"POST", "/routes", `{"paths":["/x"]}`}, {"GET", "/routes", ""}, {"POST", "/services/own/routes", `{"paths":["/x"]}`}, {"PUT", "/services/own/routes/r", `{"paths":["/x"]}`},
			{"GET", "/services/own/routes", ""}, {"POST", "/services/own/plugins", `{"name":"cors"}`}, {"GET", "/consumers/u", ""}, {"GET", "/consumers/u/jwt", ""}, {"GET", "/jwts", ""},
			{"POST", "/config?mode=merge", `{"_format_version":"3.0","services":[{"name":"own","host":"i","routes":[{"name":"r","paths":["/x"]}]}]}`},
			{"POST", configService + "Apply", apply("routes", `{"route":{"name":"r","paths":["/x"]}}`)},
			{"POST", configService + "List", `{"target":{"kind":"routes"}}`},
			{"POST", "/apis", `{"name":"x","upstream_url":"http://h","request_path":"/x"}`},
		} {
			api.want(403, scoped, c[0], c[1], c[2])
		}
		if text := api.want(200, scoped, "GET", "/config", ""); strings.Contains(text, "consumers") {
			t.Errorf("GET /config tells of what is out of reach: %s", text)
		}
		if text := api.want(404, root, "GET", "/routes/r", ""); text == "" {
			t.Error("a refused transaction made a route")
		}
	})
	t.Run("tag", func(t *testing.T) {
		api.want(201, team, "POST", "/services", `{"name":"mine","host":"h"}`)
		api.want(201, team, "POST", "/services/mine/routes", `{"name":"r1","paths":["/mine"]}`)
		for _, c := range [][3]string{
			{"GET", "/services/s", ""}, {"PATCH", "/services/s", `{"host":"x"}`}, {"DELETE", "/services/s", ""}, {"POST", "/services/s/routes", `{"paths":["/x"]}`},
			{"POST", "/routes", `{"paths":["/x"],"service":{"name":"s"}}`}, {"PATCH", "/routes/r1", `{"service":{"name":"s"}}`}, {"POST", "/plugins", `{"name":"cors"}`},
			{"POST", "/config?mode=merge", `{"_format_version":"3.0","services":[{"name":"s","host":"x"}]}`},
			{"POST", configService + "Apply", apply("plugins", `{"plugin":{"name":"cors"}}`)},
		} {
			api.want(403, team, c[0], c[1], c[2])
		}
	})
	t.Run("secrets", func(t *testing.T) {
		for _, c := range [][3]string{
			{"GET", "/consumers/u/jwt/k", ""}, {"GET", "/consumers/u/jwt", ""}, {"GET", "/jwts", ""}, {"GET", "/config", ""},
			{"POST", configService + "List", `{"target":{"kind":"jwt_secrets"}}`}, {"POST", configService + "Get", `{"target":{"kind":"jwt_secrets","ref":"k"}}`},
		} {
			if text := api.want(200, reader, c[0], c[1], c[2]); strings.Contains(text, secret) {
				t.Errorf("%s tells a read-only token the secret: %s", c[1], text)
			}
			if text := api.want(200, admin, c[0], c[1], c[2]); !strings.Contains(text, secret) {
				t.Errorf("%s does not tell an admin the secret: %s", c[1], text)
			}
		}
		if strings.Contains(n.Log(), secret) || strings.Contains(n.Log(), "gwat_") {
			t.Error("a secret is in the log")
		}
	})
	t.Run("expired", func(t *testing.T) {
		status := 0
		for end := time.Now().Add(30 * time.Second); status != 401 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			status, _, _ = api.call(brief, "GET", "/services", "")
		}
		if status != 401 {
			t.Errorf("a token outlives its ttl: %d", status)
		}
		text := ""
		for end := time.Now().Add(30 * time.Second); !strings.Contains(text, `"verb":"expire"`) && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			text = api.want(200, root, "GET", "/admin/audit", "")
		}
		if !strings.Contains(text, `"name":"cluster"`) || !strings.Contains(text, `"verb":"expire"`) {
			t.Errorf("that a token expired is not in the audit log: %s", text)
		}
	})
	t.Run("guessing", func(t *testing.T) {
		guesser := newOutside(t, addr, "127.0.0.2")
		before := auditSeq(t, api.want(200, root, "GET", "/admin/audit", ""))
		limited := 0
		for range 60 { // ten at once, then one in five seconds
			got, h, text := guesser.call("gwat_"+strings.Repeat("a", 64), "GET", "/services", "")
			switch {
			case got == 429 && h.Get("Retry-After") != "":
				limited++
			case got != 401:
				t.Fatalf("%d %s", got, text)
			}
			if limited == 3 {
				break
			}
		}
		if limited != 3 {
			t.Fatalf("%d of 60 wrong tokens were answered 429", limited)
		}
		m := metrics(t, n)
		if m["concord_admin_credentials_refused_total"] < 10 || m["concord_admin_credentials_limited_total"] < 3 {
			t.Errorf("metrics: %v refused, %v limited", m["concord_admin_credentials_refused_total"], m["concord_admin_credentials_limited_total"])
		}
		// Others are not limited with it.
		if after := auditSeq(t, api.want(200, root, "GET", "/admin/audit", "")); after != before {
			t.Errorf("the audit log went from %v to %v while tokens were guessed", before, after)
		}
	})
}

// auditSeq is the number of the newest record.
func auditSeq(t *testing.T, text string) float64 {
	t.Helper()
	var page struct{ Head struct{ Seq float64 } }
	if err := json.Unmarshal([]byte(text), &page); err != nil || page.Head.Seq == 0 {
		t.Fatalf("audit log: %v %s", err, text)
	}
	return page.Head.Seq
}

// metrics are the samples without labels of GET /metrics.
func metrics(t *testing.T, n *harness.Node) map[string]float64 {
	t.Helper()
	a, err := harness.Do("GET", "http://"+n.Status+"/metrics", "", "")
	if err != nil || a.Status != 200 {
		t.Fatalf("metrics: %v %d", err, a.Status)
	}
	all := map[string]float64{}
	for line := range strings.Lines(a.Body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				all[name] = v
			}
		}
	}
	return all
}

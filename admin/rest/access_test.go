package rest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"concord/admin/auth"
	"concord/admin/rest"
	"concord/admin/service"
)

// client sends requests with a token from an address.
type client struct {
	t     *testing.T
	api   http.Handler
	token string
	from  string
}

// do returns status and body of "METHOD path [json]".
func (c client) do(request string, header ...string) (int, string) {
	c.t.Helper()
	resp := c.send(request, header...)
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (c client) send(request string, header ...string) *http.Response {
	c.t.Helper()
	words := strings.SplitN(request, " ", 3)
	var body io.Reader
	if len(words) == 3 {
		body = strings.NewReader(words[2])
	}
	r := httptest.NewRequest(words[0], "http://localhost"+words[1], body)
	r.RemoteAddr = "127.0.0.1:40000"
	if c.from != "" {
		r.RemoteAddr = c.from
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Kong-Admin-Token", c.token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	c.api.ServeHTTP(w, r)
	return w.Result()
}

// must is a request that succeeds; it returns the member of the answer.
func (c client) must(request, member string) string {
	c.t.Helper()
	status, body := c.do(request)
	if status/100 != 2 {
		c.t.Fatalf("%s: %d %s", request, status, body)
	}
	var rec map[string]any
	_ = json.Unmarshal([]byte(body), &rec)
	text, _ := rec[member].(string)
	return text
}

// as is the same gateway with the token made by body.
func (c client) as(body string) client {
	c.t.Helper()
	c.token = c.must("POST /admin/tokens "+body, "token")
	if !strings.HasPrefix(c.token, "gwat_") || len(c.token) != 69 {
		c.t.Fatalf("token %q", c.token)
	}
	return c
}

// wants checks statuses of requests.
func (c client) wants(list map[int][]string) {
	c.t.Helper()
	for _, want := range slices.Sorted(maps.Keys(list)) { // what is made comes first
		for _, r := range list[want] {
			if status, body := c.do(r); status != want {
				c.t.Errorf("%s: %d, want %d: %s", r, status, want, body)
			}
		}
	}
}

func newClient(t *testing.T, g *gateway) client { return client{t: t, api: g.api} }

func TestRoles(t *testing.T) {
	local := newClient(t, newGateway())
	local.must(`POST /services {"name":"s","host":"h"}`, "")
	local.must(`POST /consumers {"username":"c"}`, "")
	local.must(`POST /consumers/c/jwt {"key":"k","secret":"0123456789012345678901234567890123"}`, "")

	super := local.as(`{"name":"super","role":"super"}`)
	admin := super.as(`{"name":"admin","role":"admin"}`)
	reader := super.as(`{"name":"reader","role":"read-only"}`)

	admin.wants(map[int][]string{
		200: {"GET /services/s", `PATCH /services/s {"retries":3}`, "GET /", "GET /cluster/status"},
		201: {`POST /services/s/plugins {"name":"jwt"}`},
		403: {"GET /admin/tokens", `POST /admin/tokens {"name":"x","role":"super"}`, "DELETE /admin/tokens/reader", "GET /admin/tokens/reader",
			"POST /cluster/tokens {}", `POST /cluster/leader {}`, "DELETE /cluster/nodes/n", `POST /cluster/join {}`, `POST /cluster/leave {}`},
	})
	reader.wants(map[int][]string{
		200: {"GET /", "GET /services", "GET /services/s/plugins", "GET /tags", "GET /schemas/services", "GET /status", `POST /schemas/services/validate {"host":"h"}`, `POST /debug/route {"url":"http://h/"}`},
		403: {`POST /services {"host":"h"}`, `PATCH /services/s {"retries":1}`, `PUT /services/s {"host":"h"}`, "DELETE /services/s", `POST /services/s/plugins {"name":"acl"}`,
			"DELETE /services/absent", `POST /consumers/c/jwt {}`, "GET /admin/tokens", "DELETE /cache", `POST /apis {"name":"a","upstream_url":"http://h","request_path":"/a"}`},
	})
	if _, body := reader.do("GET /consumers/c/jwt"); strings.Contains(body, "012345") || !strings.Contains(body, `"secret":null`) {
		t.Errorf("read-only token sees: %s", body)
	}
	if _, body := admin.do("GET /consumers/c/jwt"); !strings.Contains(body, "012345") {
		t.Errorf("admin does not see: %s", body)
	}
	if status, body := super.do("GET /admin/tokens"); status != 200 || strings.Contains(body, "hash") || strings.Contains(body, "gwat_") || !strings.Contains(body, `"last_used_at":1`) {
		t.Errorf("list of tokens: %d %s", status, body)
	}
	super.wants(map[int][]string{
		204: {"DELETE /admin/tokens/reader"},
		404: {"DELETE /admin/tokens/absent"},
		400: {`POST /admin/tokens {"name":"x","role":"king"}`, `POST /admin/tokens {"name":"x","role":"super","tags":["a"]}`, `POST /admin/tokens {"name":"x","role":"admin","tags":[]}`,
			`POST /admin/tokens {"name":"x","role":"admin","entities":["nonsense"]}`, `POST /admin/tokens {"name":"x","role":"admin","hash":"00"}`, `POST /admin/tokens {"role":"admin"}`,
			`POST /admin/tokens {"name":"a b","role":"admin"}`, `POST /admin/tokens {"name":"x","role":"admin","id":"11111111-1111-4111-8111-111111111111"}`, `POST /admin/tokens []`},
		409: {`POST /admin/tokens {"name":"admin","role":"admin"}`},
	})
	reader.wants(map[int][]string{401: {"GET /", "GET /services", "GET /nonsense"}})
}

// Every endpoint that changes something refuses a token that may only read, before it looks at anything else.
func TestReadOnlyEverywhere(t *testing.T) {
	local := newClient(t, newGateway())
	reader := local.as(`{"name":"r","role":"read-only"}`)
	var list struct{ Data []string }
	_, body := local.do("GET /endpoints")
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	harmless := map[string]bool{"POST /schemas/x/validate": true, "POST /schemas/plugins/validate": true, "POST /schemas/vaults/validate": true,
		"POST /debug/route": true, // asks
		"POST /config":      true} // an empty document is refused before; TestConfigScope has one
	tried := 0
	for _, path := range list.Data {
		for i := strings.IndexByte(path, '{'); i >= 0; i = strings.IndexByte(path, '{') {
			path = path[:i] + "x" + path[i+strings.IndexByte(path[i:], '}')+1:]
		}
		for method := range strings.SplitSeq(reader.send("OPTIONS "+path).Header.Get("Allow"), ", ") {
			if method == "GET" || method == "HEAD" || method == "OPTIONS" || harmless[method+" "+path] || strings.Contains(path, "/filter-chains") { // which nobody may
				continue
			}
			tried++
			status, body := reader.do(method + " " + path + " {}")
			if strings.HasPrefix(path, "/apis") && (status == 400 || status == 404) {
				continue // the old form is looked at first; TestRoles has one that is whole
			}
			if status != 403 && status != 404 || status == 404 && !strings.HasPrefix(path, "/upstreams/") {
				t.Errorf("%s %s: %d %s", method, path, status, body)
			}
		}
	}
	if tried < 100 {
		t.Errorf("only %d endpoints were tried", tried)
	}
}

// A token for one team's tag cannot see, change, refer to, hide behind or delete along what belongs to others.
func TestTagScope(t *testing.T) {
	local := newClient(t, newGateway())
	theirs := local.must(`POST /services {"name":"theirs","host":"h","tags":["team-b"]}`, "id")
	local.must(`POST /services {"name":"both","host":"h","tags":["team-a","team-b"]}`, "id")
	local.must(`POST /services/both/plugins {"name":"acl","config":{"allow":["x"]},"tags":["team-b"]}`, "id")
	local.must(`POST /consumers {"username":"bob","tags":["team-b"]}`, "")
	a := local.as(`{"name":"a","role":"admin","tags":["team-a"]}`)

	_, body := a.do(`POST /services {"name":"mine","host":"h","tags":["x"]}`)
	if !strings.Contains(body, `"tags":["x","team-a"]`) {
		t.Errorf("the tag is not forced: %s", body)
	}
	if _, body := a.do(`PATCH /services/mine {"tags":["y"]}`); !strings.Contains(body, `"tags":["y","team-a"]`) {
		t.Errorf("the tag was taken off: %s", body)
	}
	a.wants(map[int][]string{
		200: {"GET /services/mine", "GET /services/both", "GET /services/mine/routes", `PATCH /services/mine {"retries":1}`, `PUT /services/second {"host":"h"}`},
		201: {`POST /services/mine/routes {"name":"r","paths":["/a"]}`, `POST /routes/r/plugins {"name":"acl","config":{"allow":["x"]}}`, `POST /consumers {"username":"anna"}`,
			`POST /consumers/anna/key-auth {"key":"k"}`},
		403: {
			"GET /services/theirs", "GET /services/" + theirs, "GET /services/theirs/routes", `PATCH /services/theirs {"retries":1}`, "DELETE /services/theirs",
			`PUT /services/theirs {"host":"evil"}`, `POST /services/theirs/plugins {"name":"acl","config":{"allow":["x"]}}`, `POST /plugins {"name":"acl","config":{"allow":["x"]},"service":{"id":"` + theirs + `"}}`,
			`POST /routes {"paths":["/b"],"service":{"name":"theirs"}}`, `PATCH /routes/r {"service":{"id":"` + theirs + `"}}`, `POST /consumers/bob/key-auth {"key":"z"}`,
			`POST /plugins {"name":"acl","config":{"allow":["x"]}}`, // a plugin for all
			"DELETE /services/both",                                 // would take another team's plugin along
			`POST /consumers/anna/plugins {"name":"rate-limiting","config":{"minute":1},"service":{"id":"` + theirs + `"}}`,
			"GET /admin/tokens", `POST /cluster/tokens {}`, "DELETE /cache", `POST /debug/route {"url":"http://h/"}`,
		},
	})
	for path, want := range map[string]int{"/services": 3, "/services?tags=team-b": 1, "/services?tags=team-b/team-a": 3, "/services?size=1": 1, "/plugins": 1, "/tags/team-b": 1, "/consumers": 1} {
		var page struct{ Data []any }
		_, body := a.do("GET " + path)
		if err := json.Unmarshal([]byte(body), &page); err != nil || len(page.Data) != want {
			t.Errorf("GET %s: %d rows, want %d: %s", path, len(page.Data), want, body)
		}
	}
	if _, body := a.do(`POST /services {"name":"theirs","host":"h"}`); strings.Contains(body, theirs) {
		t.Errorf("the refusal speaks of what is out of reach: %s", body)
	}
	a.wants(map[int][]string{204: {"DELETE /routes/r", "DELETE /services/mine"}})
	two := local.as(`{"name":"two","role":"read-only","tags":["team-a","team-b"],"entities":["services"]}`)
	two.wants(map[int][]string{200: {"GET /services/theirs", "GET /services/both"}, 403: {"GET /consumers", "GET /plugins", "GET /services/both/plugins"}})
}

// Who may be put into which group, and who is seen there: both ends must be within reach.
func TestGroupScope(t *testing.T) {
	local := newClient(t, newGateway())
	for _, team := range []string{"a", "b"} {
		local.must(`POST /consumer_groups {"name":"group-`+team+`","tags":["team-`+team+`"]}`, "")
		local.must(`POST /consumers {"username":"user-`+team+`","tags":["team-`+team+`"]}`, "")
	}
	local.must(`POST /consumer_groups/group-a/consumers {"consumer":"user-b"}`, "")
	local.must(`POST /consumer_groups/group-b/consumers {"consumer":"user-b"}`, "")
	a := local.as(`{"name":"a","role":"admin","tags":["team-a"]}`)
	a.wants(map[int][]string{
		200: {"GET /consumer_groups/group-a", "GET /consumers/user-a/consumer_groups"},
		201: {`POST /consumer_groups/group-a/consumers {"consumer":"user-a"}`, `POST /consumer_groups/group-a/plugins {"name":"request-termination"}`},
		403: {
			"GET /consumer_groups/group-b", "GET /consumer_groups/group-b/consumers", "GET /consumers/user-b/consumer_groups", `POST /consumer_groups/group-b/consumers {"consumer":"user-a"}`,
			`POST /consumer_groups/group-a/consumers {"consumer":"user-b"}`, `POST /consumers/user-a/consumer_groups {"group":"group-b"}`, `POST /consumers/user-a/consumer_groups {"group":["group-a","group-b"]}`,
			`POST /plugins {"name":"request-termination","consumer_group":{"name":"group-b"}}`, "DELETE /consumer_groups/group-b/consumers", "DELETE /consumer_groups/group-b",
		},
	})
	if _, body := a.do("GET /consumer_groups/group-a"); strings.Contains(body, "user-b") || !strings.Contains(body, "user-a") {
		t.Errorf("the group as team a sees it: %s", body)
	}
	a.wants(map[int][]string{204: {"DELETE /consumer_groups/group-a/consumers"}})
	if _, body := local.do("GET /consumers/user-b/consumer_groups"); strings.Count(body, `"name"`) != 1 {
		t.Errorf("groups of user-b: %s", body)
	}
	groups := local.as(`{"name":"g","role":"admin","entities":["consumer_groups"]}`)
	groups.wants(map[int][]string{
		200: {"GET /consumer_groups", "GET /consumer_groups/group-a?list_consumers=false", `PATCH /consumer_groups/group-a {"tags":["team-a","x"]}`},
		403: {"GET /consumer_groups/group-a", "GET /consumer_groups/group-b/consumers", `POST /consumer_groups/group-a/consumers {"consumer":"user-a"}`, "DELETE /consumer_groups/group-b/consumers"},
	})
	reader := local.as(`{"name":"r","role":"read-only"}`)
	reader.wants(map[int][]string{200: {"GET /consumer_groups/group-a", "GET /consumer_groups/group-b/consumers"}, 403: {"DELETE /consumer_groups/group-b/consumers/user-b"}})
}

// The whole configuration passes the same door row by row.
func TestConfigScope(t *testing.T) {
	local := newClient(t, newGateway())
	theirs := local.must(`POST /services {"name":"theirs","host":"h","tags":["team-b"]}`, "id")
	local.must(`POST /consumers {"username":"bob","tags":["team-b"]}`, "")
	local.must(`POST /consumers/bob/jwt {"key":"k","secret":"0123456789012345678901234567890123","tags":["team-b"]}`, "")
	super := local.as(`{"name":"super","role":"super"}`)
	admin := local.as(`{"name":"admin","role":"admin"}`)
	reader := local.as(`{"name":"reader","role":"read-only"}`)
	a := local.as(`{"name":"a","role":"admin","tags":["team-a"]}`)
	a.wants(map[int][]string{
		201: {`POST /config {"_format_version":"3.0","services":[{"name":"mine","host":"h","routes":[{"name":"r","paths":["/x"]}],"plugins":[{"name":"acl","config":{"allow":["x"]}}]}]}`},
		400: {`POST /config {"_format_version":"3.0","services":[{"name":"theirs","host":"evil"}]}`}, // the name is taken
		403: {
			`POST /config?mode=merge {"_format_version":"3.0","services":[{"id":"` + theirs + `","name":"theirs","host":"evil"}]}`,
			`POST /config?mode=merge {"_format_version":"3.0","routes":[{"name":"q","paths":["/q"],"service":"theirs"}]}`,
			`POST /config?mode=merge {"_format_version":"3.0","plugins":[{"name":"acl","config":{"allow":["x"]}}]}`,
			`POST /config?mode=merge&dry_run=1&diff=1 {"_format_version":"3.0","services":[{"name":"theirs","host":"evil"}]}`,
		},
	})
	local.wants(map[int][]string{200: {"GET /services/theirs", "GET /consumers/bob", "GET /services/mine", "GET /routes/r"}})
	_, dump := a.do("GET /config")
	if !strings.Contains(dump, "mine") || strings.Contains(dump, "theirs") || strings.Contains(dump, "bob") {
		t.Errorf("dump: %s", dump)
	}
	if _, dump := reader.do("GET /config"); !strings.Contains(dump, "theirs") || strings.Contains(dump, "012345") {
		t.Errorf("dump for a reader: %s", dump)
	}
	reader.wants(map[int][]string{403: {`POST /config {"_format_version":"3.0"}`, `POST /config?mode=merge {"_format_version":"3.0"}`}, 200: {`POST /config?dry_run=1 {"_format_version":"3.0"}`}})
	admin.wants(map[int][]string{201: {`POST /config {"_format_version":"3.0"}`}})
	super.wants(map[int][]string{200: {"GET /admin/tokens/super"}, 404: {"GET /services/theirs"}}) // tokens are no configuration
}

func TestEntityScope(t *testing.T) {
	local := newClient(t, newGateway())
	local.must(`POST /services {"name":"s","host":"h"}`, "")
	local.must(`POST /consumers {"username":"c"}`, "")
	local.must(`POST /services/s/plugins {"name":"jwt"}`, "")
	c := local.as(`{"name":"c","role":"admin","entities":["consumers","keyauth_credentials"]}`)
	c.wants(map[int][]string{
		200: {"GET /consumers/c", `PATCH /consumers/c {"custom_id":"1"}`},
		201: {`POST /consumers/c/key-auth {"key":"k"}`},
		403: {"GET /services", "GET /services/s", `POST /consumers/c/jwt {}`, `POST /consumers/c/plugins {"name":"acl"}`, "GET /consumers/c/jwt", `POST /services {"host":"h"}`},
	})
	s := local.as(`{"name":"s","role":"admin","entities":["services"]}`)
	s.wants(map[int][]string{403: {"DELETE /services/s"}}) // its plugin would go with it
}

// The path decides which handler runs; the handler, not the path, decides what is authorised.
func TestPathTricks(t *testing.T) {
	local := newClient(t, newGateway())
	local.must(`POST /consumers {"username":"c"}`, "")
	c := local.as(`{"name":"c","role":"read-only","entities":["services"]}`)
	for _, path := range []string{"/consumers", "/consumers/", "/services/../consumers", "/services/%2e%2e/consumers", "//consumers", "/Consumers", "/%63onsumers", "/consumers/c", "/consumers;x",
		"/consumers%2fc", "/services/..%2fconsumers", "/./consumers", "/services/x/../../consumers", "/consumers%00"} {
		status, body := c.do("GET " + path)
		if status == 200 || strings.Contains(body, `"username"`) {
			t.Errorf("GET %s: %d %s", path, status, body)
		}
	}
}

func TestCredentials(t *testing.T) {
	g := newGateway()
	local := newClient(t, g)
	tok := local.as(`{"name":"t","role":"super"}`).token
	for _, c := range []struct {
		name   string
		header []string
		from   string
		want   int
	}{
		{"none on this machine", nil, "", 200},
		{"none over IPv6 loopback", nil, "[::1]:9", 200},
		{"none from elsewhere", nil, "10.0.0.9:9", 401},
		{"none from elsewhere that claims to be here", []string{"X-Forwarded-For", "127.0.0.1", "X-Real-IP", "127.0.0.1", "Forwarded", "for=127.0.0.1"}, "10.0.0.9:9", 401},
		{"bearer", []string{"Authorization", "Bearer " + tok}, "10.0.0.9:9", 200},
		{"bearer in another case", []string{"Authorization", "bearer " + tok}, "10.0.0.9:9", 200},
		{"Kong's header", []string{"Kong-Admin-Token", tok}, "10.0.0.9:9", 200},
		{"both", []string{"Kong-Admin-Token", tok, "Authorization", "Bearer " + tok}, "10.0.0.9:9", 200},
		{"two that differ", []string{"Kong-Admin-Token", tok, "Authorization", "Bearer x"}, "10.0.1.1:9", 401},
		{"a wrong one on this machine", []string{"Kong-Admin-Token", "gwat_x"}, "", 401},
		{"empty", []string{"Kong-Admin-Token", ""}, "10.0.1.2:9", 401},
		{"another scheme", []string{"Authorization", "Basic " + tok}, "10.0.1.3:9", 401},
		{"cut", []string{"Kong-Admin-Token", tok[:len(tok)-1]}, "10.0.1.4:9", 401},
		{"last letter changed", []string{"Kong-Admin-Token", tok[:len(tok)-1] + string(tok[len(tok)-1]^1)}, "10.0.1.5:9", 401},
		{"in upper case", []string{"Kong-Admin-Token", strings.ToUpper(tok)}, "10.0.1.6:9", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, path := range []string{"/services", "/"} {
				resp := client{t: t, api: g.api, from: c.from}.send("GET "+path, c.header...)
				if resp.StatusCode != c.want {
					t.Errorf("%s: status %d, want %d", path, resp.StatusCode, c.want)
				}
				if c.want == 401 && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer ") {
					t.Errorf("%s: no challenge: %v", path, resp.Header)
				}
			}
		})
	}
}

// TestNoTokensYet: as long as there is no admin token, what cannot be one is passed over, as Kong does without RBAC.
func TestNoTokensYet(t *testing.T) {
	g := newGateway()
	for _, c := range []struct {
		name   string
		header []string
		from   string
		want   int
	}{
		{"Kong's header", []string{"Kong-Admin-Token", "kong"}, "", 200},
		{"an empty one", []string{"Kong-Admin-Token", ""}, "", 200},
		{"basic", []string{"Authorization", "Basic a29uZzprb25n"}, "", 200},
		{"what may be a token", []string{"Kong-Admin-Token", "gwat_x"}, "", 401},
		{"what may be a bearer", []string{"Authorization", "Bearer gwat_" + strings.Repeat("a", 64)}, "", 401},
		{"from elsewhere", []string{"Kong-Admin-Token", "kong"}, "10.0.0.9:9", 401},
	} {
		for range 20 { // more than an address may get wrong
			resp := client{t: t, api: g.api, from: c.from}.send("GET /services", c.header...)
			if resp.StatusCode != c.want && (c.want != 401 || resp.StatusCode != 429) {
				t.Fatalf("%s: status %d, want %d", c.name, resp.StatusCode, c.want)
			}
			if c.want == 401 {
				break
			}
		}
	}
	newClient(t, g).as(`{"name":"t","role":"super"}`)
	if resp := (client{t: t, api: g.api}).send("GET /services", "Kong-Admin-Token", "kong"); resp.StatusCode != 401 {
		t.Errorf("beside a token: status %d", resp.StatusCode)
	}
}

func TestWrongTokensAreLimited(t *testing.T) {
	g := newGateway()
	local := newClient(t, g)
	good := local.as(`{"name":"t","role":"super"}`)
	good.from = "10.0.0.7:1"
	bad := client{t: t, api: g.api, token: "gwat_" + strings.Repeat("a", 64), from: "10.0.0.7:2"}
	limited := false
	for range 30 {
		if resp := bad.send("GET /"); resp.StatusCode == 429 {
			limited = resp.Header.Get("Retry-After") != ""
		}
	}
	if !limited {
		t.Error("guessing goes on for ever")
	}
	if status, _ := good.do("GET /"); status != 429 {
		t.Errorf("a limited address was let in: %d", status)
	}
	good.from = "10.0.0.8:1"
	good.wants(map[int][]string{200: {"GET /"}})
	local.wants(map[int][]string{200: {"GET /"}})
}

// With RequireToken programs on this machine may make the first token and nothing else.
func TestRequireToken(t *testing.T) {
	g := newGateway()
	svc := service.New(service.Options{Log: g.log, Machine: g.log.Machine, RequireToken: true})
	local := client{t: t, api: rest.New(rest.Options{Service: svc, Guard: auth.NewGuard(auth.GuardOptions{}), Door: auth.NewDoor(auth.DoorOptions{Tokens: svc}), Cluster: &fakeCluster{}})}
	local.wants(map[int][]string{401: {"GET /", "GET /services", `POST /services {"host":"h"}`, `POST /cluster/tokens {}`}})
	far := local
	far.from = "10.0.0.7:1"
	far.wants(map[int][]string{401: {`POST /admin/tokens {"name":"x","role":"super"}`}})
	super := local.as(`{"name":"first","role":"super"}`)
	local.wants(map[int][]string{401: {`POST /admin/tokens {"name":"x","role":"super"}`, "GET /admin/tokens", "GET /services"}})
	super.wants(map[int][]string{200: {"GET /", "GET /services"}})
}

// Every change is in the audit log once, under the name of the token that made it, and only those who may read it do.
func TestAuditLog(t *testing.T) {
	local := newClient(t, newGateway())
	super := local.as(`{"name":"super","role":"super"}`)
	admin := super.as(`{"name":"admin","role":"admin"}`)
	siem := super.as(`{"name":"siem","role":"read-only","entities":["audit"]}`)
	admin.from = "10.1.2.3:4"
	admin.must(`POST /services {"name":"s","host":"h"}`, "")
	admin.must(`POST /services/s/plugins {"name":"jwt"}`, "")
	admin.must("DELETE /services/s", "") // and its plugin
	admin.wants(map[int][]string{400: {`POST /services {"name":"x"}`}, 403: {"GET /admin/audit"}})
	siem.wants(map[int][]string{403: {"GET /services", `POST /services {"host":"h"}`}, 400: {"GET /admin/audit?after=x", "GET /admin/audit?size=100000"}})
	admin.must(`POST /config {"_format_version":"3.0","consumers":[{"username":"u"}]}`, "")
	var page struct {
		Data []struct {
			Name, From, Verb, Prev, Hash string
			Changes                      []struct{ Entity, Before, After string }
		}
		Head struct{ Seq, First float64 }
	}
	_, body := siem.do("GET /admin/audit?after=3")
	if err := json.Unmarshal([]byte(body), &page); err != nil || len(page.Data) != 4 || page.Head.Seq != 7 || page.Head.First != 1 {
		t.Fatalf("%v %s", err, body)
	}
	for i, want := range []string{"create services", "create plugins", "delete services plugins", "apply consumers"} {
		r := page.Data[i]
		got := r.Verb
		for _, c := range r.Changes {
			got += " " + c.Entity
		}
		if got != want || r.Name != "admin" || r.From != "10.1.2.3" || i > 0 && r.Prev != page.Data[i-1].Hash {
			t.Errorf("record %d: %q by %s from %s, want %q", i, got, r.Name, r.From, want)
		}
	}
}

// Of writers that read the same version one wins; the others are told to read again.
func TestIfMatch(t *testing.T) {
	local := newClient(t, newGateway())
	created := local.send(`POST /services {"name":"s","host":"h"}`).Header.Get("ETag")
	if read := local.send("GET /services/s").Header.Get("ETag"); read == "" || read != created {
		t.Fatalf("ETag %q after the write, %q when read", created, read)
	}
	if status, _ := local.do("GET /services/s", "If-None-Match", `"0", W/`+created); status != 304 {
		t.Errorf("unchanged: %d", status)
	}
	var wg sync.WaitGroup
	var won, lost atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			switch status, body := local.do(fmt.Sprintf(`PATCH /services/s {"retries":%d}`, i+10), "If-Match", created); status {
			case 200:
				won.Add(1)
			case 412:
				lost.Add(1)
			default:
				t.Errorf("%d %s", status, body)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 7 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
	if status, _ := local.do("GET /services/s", "If-None-Match", created); status != 200 {
		t.Errorf("changed: %d", status)
	}
	if status, _ := local.do("DELETE /services/s", "If-Match", local.send("GET /services/s").Header.Get("ETag")); status != 204 {
		t.Errorf("delete: %d", status)
	}
}

func TestConsistency(t *testing.T) {
	g := newGateway()
	local := newClient(t, g)
	local.wants(map[int][]string{200: {"GET /services", "GET /services?consistency=local", "GET /services?consistency=leader", "GET /services?consistency=linearizable"}})
	g.log.NoLeader = true
	local.wants(map[int][]string{200: {"GET /services", "GET /services?consistency=local"}, 503: {"GET /services?consistency=leader", "GET /services?consistency=linearizable"}})
}

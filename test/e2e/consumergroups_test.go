package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"concord/test/harness"
)

// TestConsumerGroups: what is configured for a group runs for its members and for nobody else, from the answer of the write on, and
// gives way to what is more specific.
func TestConsumerGroups(t *testing.T) {
	echo := harness.StartEcho(t)
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		index := ""
		write := func(method, path, body string, status int) harness.Answer {
			t.Helper()
			a := pick().JSON(method, path, body)
			expect(t, method+" "+path, a, status)
			index = a.Index()
			return a
		}
		// runs tells by the answer which configuration of request-termination ran: "" is none.
		runs := func(what, path, key, want string) {
			t.Helper()
			a := pick().Get(path, "apikey", key, "X-Min-Config-Index", index)
			got, _ := a.JSON()["message"].(string)
			if want == "" && a.Status == 200 || got == want {
				return
			}
			t.Errorf("%s: %d %q, want %q", what, a.Status, got, want)
		}
		says := func(text string) string {
			return `"name":"request-termination","config":{"status_code":418,"message":"` + text + `"}`
		}
		write("POST", "/services", `{"name":"s","url":"`+echo.URL+`"}`, 201)
		write("POST", "/services/s/routes", `{"name":"r","paths":["/r"]}`, 201)
		write("POST", "/services/s/routes", `{"name":"q","paths":["/q"]}`, 201)
		write("POST", "/plugins", `{"name":"key-auth"}`, 201)
		for _, name := range []string{"ann", "bob"} {
			write("POST", "/consumers", `{"username":"`+name+`"}`, 201)
			write("POST", "/consumers/"+name+"/key-auth", `{"key":"`+name+`"}`, 201)
		}
		for _, name := range []string{"gold", "silver"} {
			write("POST", "/consumer_groups", `{"name":"`+name+`"}`, 201)
		}
		write("POST", "/consumer_groups/silver/plugins", `{`+says("silver")+`}`, 201)
		runs("nobody is a member", "/r", "bob", "")
		write("POST", "/consumer_groups/silver/consumers", `{"consumer":"bob"}`, 201)
		runs("a member", "/r", "bob", "silver")
		runs("not a member", "/r", "ann", "")
		write("POST", "/consumers/bob/consumer_groups", `{"group":"gold"}`, 201)
		runs("the other group has no plugin", "/r", "bob", "silver")
		write("POST", "/consumer_groups/gold/plugins", `{`+says("gold")+`}`, 201)
		runs("the first by name", "/r", "bob", "gold")

		// From the least to the most specific, each in front of all before it.
		write("POST", "/plugins", `{`+says("global")+`}`, 201)
		runs("global, for others", "/r", "ann", "global")
		write("POST", "/services/s/plugins", `{`+says("service")+`}`, 201)
		write("POST", "/routes/r/plugins", `{`+says("route")+`}`, 201)
		runs("a group before a route", "/r", "bob", "gold")
		runs("a route before a service", "/r", "ann", "route")
		write("POST", "/consumers/bob/plugins", `{`+says("consumer")+`}`, 201)
		runs("a consumer before its group", "/r", "bob", "consumer")
		write("POST", "/routes/r/plugins", `{`+says("route and service")+`,"service":{"name":"s"}}`, 201)
		runs("route and service before a consumer", "/r", "bob", "route and service")
		write("POST", "/services/s/plugins", `{`+says("group and service")+`,"consumer_group":{"name":"gold"}}`, 201)
		runs("group and service", "/r", "bob", "group and service")
		runs("group and service on another route", "/q", "bob", "group and service")
		write("POST", "/routes/r/plugins", `{`+says("group and route")+`,"consumer_group":{"name":"silver"}}`, 201)
		runs("group and route, of any group", "/r", "bob", "group and route")
		write("POST", "/services/s/plugins", `{`+says("consumer and service")+`,"consumer":{"username":"bob"}}`, 201)
		runs("consumer and service", "/r", "bob", "consumer and service")
		write("POST", "/routes/r/plugins", `{`+says("consumer and route")+`,"consumer":{"username":"bob"}}`, 201)
		runs("consumer and route", "/r", "bob", "consumer and route")
		write("POST", "/routes/r/plugins", `{`+says("group, route and service")+`,"service":{"name":"s"},"consumer_group":{"name":"gold"}}`, 201)
		runs("group, route and service", "/r", "bob", "group, route and service")
		write("POST", "/routes/r/plugins", `{`+says("all")+`,"service":{"name":"s"},"consumer":{"username":"bob"}}`, 201)
		runs("consumer, route and service", "/r", "bob", "all")

		// Who leaves is rid of it at once.
		write("POST", "/consumer_groups/gold/consumers", `{"consumer":"ann"}`, 201)
		runs("a new member", "/r", "ann", "group, route and service")
		write("DELETE", "/consumer_groups/gold/consumers/ann", "", 204)
		runs("who left", "/r", "ann", "route and service")
		write("DELETE", "/consumer_groups/gold", "", 204)
		write("PATCH", "/consumer_groups/silver", `{"name":"bronze"}`, 200)
		runs("a group was deleted, another renamed", "/q", "bob", "consumer and service")

		// A limit of a group counts for each of its members.
		write("POST", "/config", `{"_format_version":"3.0","services":[{"name":"s","url":"`+echo.URL+`","routes":[{"name":"r","paths":["/r"]}]}],"plugins":[{"name":"key-auth"}],
			"consumer_groups":[{"name":"gold","plugins":[{"name":"rate-limiting","config":{"year":1,"policy":"local"}}]}],
			"consumers":[{"username":"ann","keyauth_credentials":[{"key":"ann"}]},{"username":"bob","keyauth_credentials":[{"key":"bob"}],"groups":[{"name":"gold"}]},
				{"username":"carl","keyauth_credentials":[{"key":"carl"}],"groups":["gold"]}]}`, 201)
		n := pick()
		for _, c := range []struct {
			key  string
			want int
		}{{"bob", 200}, {"bob", 429}, {"carl", 200}, {"carl", 429}, {"ann", 200}, {"ann", 200}} {
			expect(t, "a request of "+c.key, n.Get("/r", "apikey", c.key, "X-Min-Config-Index", index), c.want)
		}
	})
}

// TestConsumerGroupFiles: groups go through files of gwctl and back, and from one gateway to another.
func TestConsumerGroupFiles(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "groups")
	n.Start()
	gwctl := func(n *harness.Node, args ...string) string {
		t.Helper()
		out, err := n.Gwctl(args...)
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
	dir := t.TempDir()
	file := filepath.Join(dir, "groups.yaml")
	if err := os.WriteFile(file, []byte(`_format_version: "3.0"
consumer_groups:
- name: gold
  tags: [paying]
  plugins:
  - name: rate-limiting
    config: {minute: 5, policy: local}
- name: silver
services:
- name: s
  host: h
consumers:
- username: bob
  groups: [{name: gold}, {name: silver}]
- username: ann
plugins:
- name: request-termination
  service: s
  consumer_group: silver
`), 0o600); err != nil {
		t.Fatal(err)
	}
	has("sync", gwctl(n, "config", "sync", file), "creating consumer-group gold", "creating consumer-group-consumer bob in silver", "Created: 9")
	has("the second sync", gwctl(n, "config", "sync", file), "Created: 0\n  Updated: 0\n  Deleted: 0")
	dump := filepath.Join(dir, "dump.yaml")
	gwctl(n, "config", "dump", "-o", dump)
	text, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	has("the dump", string(text), "  - groups:\n      - name: gold\n      - name: silver\n    username: bob\n", "    consumer_group: silver\n", "consumer_groups:\n  - name: gold\n    plugins:\n")
	has("diff of the dump", gwctl(n, "config", "diff", dump), "To create: 0\n  To update: 0\n  To delete: 0")

	has("get", gwctl(n, "get", "consumer-group", "gold"), "gold", "paying")
	has("list under a group", gwctl(n, "list", "consumers", "--consumer-group", "gold"), "bob")
	gwctl(n, "create", "consumer-group", "name=bronze")
	has("a member", gwctl(n, "create", "consumer", "consumer=ann", "--consumer-group", "bronze"), "ann")
	gwctl(n, "delete", "consumer", "ann", "--consumer-group", "bronze", "--yes")
	expect(t, "she is only out of the group", n.JSON("GET", "/consumers/ann", ""), 200)
	gwctl(n, "delete", "consumer-group", "bronze", "--yes")

	other := harness.NewNode(t, "other")
	other.Start()
	has("import of a live gateway", gwctl(other, "config", "import", "--from", "http://"+n.Admin), "Carried: 9", "Rewritten: 0", "Refused: 0")
	has("diff after the import", gwctl(other, "config", "diff", dump), "To create: 0\n  To update: 0\n  To delete: 0")
	gwctl(other, "config", "reset", "--force")
	has("import of a file", gwctl(other, "config", "import", "--from", file), "Carried: 9", "Rewritten: 0", "Refused: 0")
	has("diff after that", gwctl(other, "config", "diff", dump), "To create: 0\n  To update: 0\n  To delete: 0")
	expect(t, "who is in a group", other.JSON("GET", "/consumer_groups/silver/consumers/bob", ""), 200)
}

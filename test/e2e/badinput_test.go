package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestBadInput sends bodies that are no entity, byte by byte as they are, to every collection, to what is nested and to the documents of a real node:
// each is refused with a reason, none by a fault of the server, nothing is stored, and the node goes on.
func TestBadInput(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "n1")
	n.Start()
	for path, body := range map[string]string{"/consumers": `{"username":"bob"}`, "/services": `{"name":"s","host":"h"}`, "/upstreams": `{"name":"u"}`} {
		expect(t, path, n.JSON("POST", path, body), 201)
	}
	expect(t, "a route", n.JSON("POST", "/services/s/routes", `{"name":"r","paths":["/r"]}`), 201)
	const (
		asJSON = "application/json"
		asForm = "application/x-www-form-urlencoded"
		asYAML = "application/yaml"
	)
	deep := func(open, inner, end string) string {
		return strings.Repeat(open, 10_000) + inner + strings.Repeat(end, 10_000)
	}
	huge := strings.Repeat("x", 10<<20)
	type input struct{ name, kind, body string }
	small := []input{
		{"an array", asJSON, `[{"name":"x"}]`}, {"an array of arrays", asJSON, `[[[]]]`}, {"a string", asJSON, `"x"`}, {"a number", asJSON, "1"}, {"true", asJSON, "true"}, {"null", asJSON, "null"},
		{"truncated", asJSON, `{"name":"x`}, {"two objects", asJSON, `{}{"name":"x"}`}, {"broken UTF-8", asJSON, "{\"name\":\"\xc3\x28\"}"}, {"broken UTF-8 in a key", asJSON, "{\"\xff\":1}"},
		{"half a surrogate", asJSON, `{"tags":["\ud800"]}`}, {"a zero byte", asJSON, "{\"name\":\"\x00\"}"}, {"an escaped zero byte", asJSON, `{"name":"\u0000","unknown":1}`},
		{"a number too large", asJSON, `{"created_at":1e999}`}, {"a sealed value", asJSON, `{"name":{"$sealed":"x"},"unknown":1}`}, {"nested deeply", asJSON, deep(`{"a":`, "1", "}")}, {"arrays nested deeply", asJSON, deep(`[`, "", "]")},
		{"deep in a field", asJSON, `{"name":` + deep("[", "", "]") + "}"}, {"form: broken UTF-8", asForm, "name=%ff%fe"}, {"form: broken escape", asForm, "%zz=%zz"}, {"form: both a value and a record", asForm, "config=1&config.a=2"},
		{"form: very many", asForm, strings.Repeat("a=1&", 2000)}, {"form: deep", asForm, "a" + strings.Repeat(".b", 5000) + "=1"}, {"multipart without a boundary", "multipart/form-data", "--X\r\n\r\nx\r\n--X--"},
		{"multipart with another boundary", "multipart/form-data; boundary=Y", "--X\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nx\r\n--X--"},
		{"multipart cut off", "multipart/form-data; boundary=X", "--X\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nx"}, {"multipart without a name", "multipart/form-data; boundary=X", "--X\r\n\r\nx\r\n--X--\r\n"},
		{"text", "text/plain", `{"name":"x"}`}, {"YAML for an entity", "text/yaml", "name: x"}, {"XML", "application/xml", "<a/>"}, {"no media type", ";;;", `{"name":"x"}`}, {"unknown fields", asJSON, `{"nope":1,"neither":{"a":[1]}}`},
	}
	large := []input{{"a string of 10 MiB", asJSON, `{"name":"` + huge + `"}`}, {"a key of 10 MiB", asJSON, `{"` + huge + `":1}`}, {"a form of 10 MiB", asForm, "name=" + huge}}
	paths := []string{"/config", "/apis", "/apis/none/plugins", "/services/s/routes", "/services/s/plugins", "/routes/r/plugins", "/upstreams/u/targets", "/consumers/bob/plugins", "/consumer_groups/none/consumers"}
	for _, c := range []string{"acls", "key-auth", "basic-auth", "jwt", "hmac-auth", "oauth2"} {
		paths = append(paths, "/consumers/bob/"+c)
	}
	for _, c := range []string{"services", "routes", "consumers", "consumer_groups", "plugins", "upstreams", "certificates", "snis", "ca_certificates", "vaults", "keys", "key-sets",
		"acls", "key-auths", "basic-auths", "jwts", "hmac-auths", "oauth2", "oauth2_tokens", "sessions", "admin_tokens"} {
		paths = append(paths, "/"+c)
	}
	before := n.JSON("GET", "/config", "").Body
	sent := 0
	refused := func(method, path string, in input) {
		t.Helper()
		sent++
		a, err := harness.Do(method, "http://"+n.Admin+path, in.kind, in.body)
		var reason map[string]any
		if err != nil || a.Status < 400 || a.Status >= 500 || json.Unmarshal([]byte(a.Body), &reason) != nil || len(reason) == 0 {
			t.Errorf("%s %s, %s: %d %v %.200s", method, path, in.name, a.Status, err, a.Body)
		}
	}
	for i, path := range paths {
		for _, in := range small {
			refused("POST", path, in)
		}
		if i%8 == 0 || path == "/config" {
			for _, in := range large {
				refused("POST", path, in)
			}
		}
	}
	for _, path := range []string{"/services/s", "/routes/r", "/consumers/bob", "/upstreams/u"} {
		for _, in := range small {
			refused("PATCH", path, in)
			refused("PUT", path, in)
		}
	}
	for _, in := range []input{
		{"YAML that is none", asYAML, "a: [\n"}, {"a YAML list", asYAML, "- a\n"}, {"YAML nested deeply", asYAML, deep("[", "", "]")}, {"a YAML cycle", asYAML, "a: &a\n  b: *a\n"}, {"a YAML key that is a list", asYAML, "? [a]\n: 1\n"},
		{"YAML that is not UTF-8", asYAML, "a: \xff\n"}, {"two documents", asYAML, "a: 1\n---\nb: 1\n"}, {"no version", asYAML, "services: []\n"}, {"a record for a list", asJSON, `{"_format_version":"3.0","services":{"a":1}}`},
		{"unknown entities", asJSON, `{"_format_version":"3.0","nope":[]}`}, {"a reference to nothing", asJSON, `{"_format_version":"3.0","routes":[{"paths":["/"],"service":"none"}]}`},
	} {
		refused("POST", "/config", in)
		refused("POST", "/config?mode=merge", in)
	}
	for _, path := range paths[15:] { // the collections
		for _, query := range []string{"?tags=", "?tags=a,,b", "?size=0", "?size=x", "?offset=x", "?tags=%ff"} {
			refused("GET", path+query, input{name: "a query"})
		}
	}
	cutOff(t, n.Admin)
	if after := n.JSON("GET", "/config", "").Body; after != before { // not the index: the node has writes of its own
		t.Errorf("something was stored:\n%s\n--- before ---\n%s", after, before)
	}
	t.Logf("%d wrong requests", sent)
}

// cutOff sends bodies that end before their length, or never begin.
func cutOff(t *testing.T, addr string) {
	t.Helper()
	for _, head := range []string{"Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /services HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%s\r\n5\r\n{\"nam", addr, head)
		c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			if _, err := io.Copy(io.Discard, a.Body); err != nil || a.StatusCode < 400 || a.StatusCode >= 500 {
				t.Errorf("a body that is cut off (%s): %d %v", strings.TrimSpace(head), a.StatusCode, err)
			}
			a.Body.Close()
		}
		c.Close()
	}
}

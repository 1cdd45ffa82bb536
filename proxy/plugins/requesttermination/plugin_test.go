package requesttermination

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	typed := func(v string) []exchange.Field { return []exchange.Field{{Name: "Content-Type", Value: v}} }
	for _, c := range []struct {
		name   string
		config schema.Record
		want   *plugin.Exit
	}{
		{"defaults", schema.Record{}, &plugin.Exit{Status: 503, Body: "Service unavailable"}},
		{"message", schema.Record{"status_code": 418.0, "message": "tea"}, &plugin.Exit{Status: 418, Body: "tea"}},
		{"status with a default message", schema.Record{"status_code": 404.0}, &plugin.Exit{Status: 404, Body: "Not found"}},
		{"502", schema.Record{"status_code": 502.0}, &plugin.Exit{Status: 502, Body: "Bad Gateway"}},
		{"status without a default message", schema.Record{"status_code": 201.0}, &plugin.Exit{Status: 201}},
		{"body", schema.Record{"status_code": 200.0, "body": "<p>hi", "content_type": "text/html"}, &plugin.Exit{Status: 200, Body: []byte("<p>hi"), Header: typed("text/html")}},
		{"1xx", schema.Record{"status_code": 100.0}, &plugin.Exit{Status: 500, Body: "An unexpected error occurred"}},
		{"1xx with a message", schema.Record{"status_code": 199.0, "message": "tea"}, &plugin.Exit{Status: 500, Body: "tea"}},
		{"body without a type", schema.Record{"body": "x"}, &plugin.Exit{Status: 503, Body: []byte("x")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, plugintest.Access(t, plugintest.Request("GET", "/"), g.Build(Plugin(), c.config))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTrigger(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"trigger": "X-Stop"})
	for _, c := range []struct {
		name string
		x    *exchange.Exchange
		want bool
	}{
		{"absent", plugintest.Request("GET", "/?a=1", "X-Other: 1"), false},
		{"header", plugintest.Request("GET", "/", "x-stop: 1"), true},
		{"empty header", plugintest.Request("GET", "/", "x-stop:"), true},
		{"query", plugintest.Request("GET", "/?X-Stop=1"), true},
		{"bare query", plugintest.Request("GET", "/?a&X-Stop"), true},
		{"query in another case", plugintest.Request("GET", "/?x-stop=1"), false},
	} {
		if e := plugintest.Access(t, c.x, i); (e != nil) != c.want {
			t.Errorf("%s: %v", c.name, e)
		}
	}
}

func TestEcho(t *testing.T) {
	g := plugintest.New(t)
	x := plugintest.Request("POST", "/a/b?q=1&q=2&r", "Host: example.test:8000", "Content-Type: application/json", "X-A: 1", "x-a: 2")
	x.Request.Host = "example.test:8000"
	x.Conn.Local = netip.MustParseAddrPort("127.0.0.1:8000")
	x.Captures = []string{"id", "42"}
	x.Route, x.Service = &entity.Route{ID: "r1"}, &entity.Service{ID: "s1"}
	plugintest.Body(x, -1, `{"a":`, `1}`)
	e := plugintest.Access(t, x, g.Build(Plugin(), schema.Record{"echo": true, "status_code": 200.0, "message": "hi", "trigger": "r"}))
	raw, err := json.Marshal(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got["matched_route"].(map[string]any)["id"] != "r1" || got["matched_service"].(map[string]any)["id"] != "s1" {
		t.Error(string(raw))
	}
	delete(got, "matched_route")
	delete(got, "matched_service")
	want := map[string]any{
		"message": "hi",
		"kong":    map[string]any{"node_id": g.Env.NodeID(), "worker_pid": float64(os.Getpid()), "hostname": "test"},
		"request": map[string]any{
			"scheme": "http", "host": "example.test", "port": 8000.0, "method": "POST", "path": "/a/b",
			"headers": map[string]any{"host": "example.test:8000", "content-type": "application/json", "x-a": []any{"1", "2"}},
			"query":   map[string]any{"q": []any{"1", "2"}, "r": ""},
			"body":    map[string]any{"a": 1.0}, "raw_body": `{"a":1}`, "uri_captures": map[string]any{"named": map[string]any{"id": "42"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" || e.Status != 200 {
		t.Error(diff)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		want   string
	}{
		{"message and body", schema.Record{"message": "a", "body": "b"}, "message cannot be used with content_type or body"},
		{"message and type", schema.Record{"message": "a", "content_type": "b"}, "message cannot be used with content_type or body"},
		{"type without body", schema.Record{"content_type": "b"}, "content_type requires a body"},
		{"echo and body", schema.Record{"echo": true, "body": "b"}, "echo cannot be used with content_type and body"},
		{"status", schema.Record{"status_code": 600.0}, "value should be between 100 and 599"},
		{"trigger", schema.Record{"trigger": "a b"}, "bad header name 'a b'"},
		{"fine", schema.Record{"echo": true, "message": "a", "trigger": "x-t"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs := plugintest.Validate(Plugin(), c.config)
			if got := errs.Message(); (errs == nil) != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func BenchmarkAccess(b *testing.B) {
	g := plugintest.New(b)
	i := g.Build(Plugin(), schema.Record{"trigger": "x-stop"}).(plugin.Accessor)
	x := plugintest.Request("GET", "/?a=1", "Accept: */*")
	b.ReportAllocs()
	for b.Loop() {
		if err := i.Access(x); err != nil {
			b.Fatal(err)
		}
	}
}

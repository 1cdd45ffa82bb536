package rest_test

import (
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// valid is a body that creates one entity of each collection, given what it may refer to and a value for what must be unique.
func valid(entity string, refs map[string]any, name string) map[string]any {
	owner := refs["consumers"]
	return map[string]map[string]any{
		"services":              {"host": "h.example", "name": name},
		"routes":                {"paths": []any{"/"}, "name": name},
		"consumers":             {"username": name},
		"plugins":               {"name": "correlation-id"},
		"jwt_secrets":           {"consumer": owner, "key": name},
		"keyauth_credentials":   {"consumer": owner, "key": name},
		"basicauth_credentials": {"consumer": owner, "username": name, "password": "p"},
		"acls":                  {"consumer": owner, "group": name},
		"upstreams":             {"name": name},
		"certificates":          {"cert": material["cert"], "key": material["key"]},
		"snis":                  {"name": name, "certificate": refs["certificates"]},
		"ca_certificates":       {"cert": material[map[string]string{"swept": "ca", "fresh": "ca2"}[name]]},
		"vaults":                {"prefix": name, "name": "env"},
		"keys":                  {"kid": name, "jwk": "{vault://env/jwk}"},
		"key_sets":              {"name": name},
		"hmacauth_credentials":  {"consumer": owner, "username": name},
		"oauth2_credentials":    {"consumer": owner, "name": name},
		"oauth2_tokens":         {"credential": refs["oauth2_credentials"], "expires_in": 5},
		"sessions":              {"session_id": name},
		"acme_storage":          {"key": name, "value": "v"},
		"consumer_groups":       {"name": name},
		"targets":               {"target": name + ".example:80"},
	}[entity]
}

// material are the keys and certificates of the transcripts.
var material = func() map[string]string {
	m := map[string]string{}
	ar, err := txtar.ParseFile("../../test/conformance/certificates.txtar")
	if err != nil {
		panic(err)
	}
	for _, f := range ar.Files {
		if name, ok := strings.CutPrefix(f.Name, "let "); ok {
			m[name] = string(f.Data)
		}
	}
	return m
}()

// wrong lists values that no field of the type accepts.
func wrong(f schema.Field) []any {
	obj, deep := map[string]any{"a": 1.0}, map[string]any{"a": map[string]any{"b": []any{map[string]any{}}}}
	switch f.Type {
	case schema.String:
		return []any{7.0, -0.5, true, false, obj, []any{"x"}, []any{}, []any{nil}, map[string]any{}, map[string]any{"$sealed": "x"}, deep}
	case schema.Integer, schema.Number:
		return []any{"x", "1", 1.5, 1e300, true, false, obj, []any{1.0}, []any{}, map[string]any{}, deep}
	case schema.Boolean:
		return []any{"x", "true", 1.0, 0.0, obj, []any{true}, []any{}, map[string]any{}, deep}
	case schema.Array, schema.Set:
		return []any{"x", 5.0, -1.0, 1e300, true, false, obj, deep, []any{map[string]any{"a": deep}}, []any{[]any{}}, map[string]any{"$sealed": "x"}}
	case schema.Map, schema.RecordT:
		return []any{"x", 5.0, -1.0, true, false, []any{1.0}, []any{nil}, map[string]any{"$sealed": "x"}}
	case schema.Foreign:
		return []any{"x", 5.0, []any{1.0}, map[string]any{"id": "x"}, map[string]any{"id": 5.0}, map[string]any{"name": "no such"},
			map[string]any{"id": "11111111-1111-4111-8111-111111111119"}}
	}
	return nil
}

// refusedValues are of the right type.
var refusedValues = map[string][]any{
	"targets.target": {"", " ", "a b", "http://h", "h:99999", "h:-1", "h:x", "a/b"},
	"targets.weight": {-1.0, 65536.0, 1e15},
}

// TestWrongInput sends every field of every collection values of the wrong type, by POST, PUT and PATCH: each is refused with
// the field's name and a reason, and nothing reaches the log.
func TestWrongInput(t *testing.T) {
	g := newGateway()
	refs := map[string]any{}
	for _, name := range []string{"consumers", "certificates", "oauth2_credentials", "upstreams"} {
		def, _ := entity.Lookup(name)
		refs[name] = map[string]any{"id": created(t, g, "/"+def.CollectionName(), valid(name, refs, "owner"))}
	}
	for _, d := range g.service.Entities() {
		if d.Endpoints == entity.NoEndpoints {
			continue
		}
		name, base, parent := d.Schema.Name, "/"+d.CollectionName(), ""
		if d.Endpoints == entity.NestedEndpoints {
			base, parent = "/upstreams/"+refs["upstreams"].(map[string]any)["id"].(string)+base, "upstream"
		}
		body, fresh := valid(name, refs, "swept"), valid(name, refs, "fresh")
		if body == nil {
			t.Fatalf("no valid body for %s: add one", name)
		}
		item := base + "/" + created(t, g, base, body)
		nested := "" // the collection under a consumer
		if _, ok := d.Schema.Field("consumer"); ok && name != "plugins" {
			nested = "/consumers/" + refs["consumers"].(map[string]any)["id"].(string) + "/" + cmp.Or(d.Nested, d.CollectionName())
		}
		before, swept := g.service.Index(), 0
		refused := func(method, path, field string, body map[string]any) {
			t.Helper()
			swept++
			raw, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			resp := g.request(method, path, "application/json", string(raw))
			answer, _ := io.ReadAll(resp.Body)
			var e struct {
				Message string
				Fields  map[string]any
				Options map[string]any
			}
			_ = json.Unmarshal(answer, &e)
			_, inFields := e.Fields[field]
			_, inOptions := e.Options[field]
			if resp.StatusCode < 400 || resp.StatusCode >= 500 || e.Message == "" || !inFields && !inOptions {
				t.Errorf("%s %s %s: %d %s", method, path, raw, resp.StatusCode, answer)
			}
		}
		for _, f := range append(d.Schema.Fields, schema.Field{Name: "ttl", Type: schema.Integer}, schema.Field{Name: "unheard_of", Type: schema.String}) {
			if f.AutoKind == schema.AutoTouch || f.Name == parent || f.Auto && f.Type == schema.Number {
				continue // never taken from the client, or any number is
			}
			for _, v := range append(wrong(f), refusedValues[name+"."+f.Name]...) {
				changed := maps.Clone(fresh)
				changed[f.Name] = v
				refused("POST", base, f.Name, changed)
				if nested != "" && f.Name != "consumer" {
					refused("POST", nested, f.Name, changed)
				}
				if f.Name != "id" { // of PUT and PATCH the URL's counts
					refused("PATCH", item, f.Name, map[string]any{f.Name: v})
					refused("PUT", item, f.Name, changed)
					if !d.PutUpdates { // it makes none
						refused("PUT", base+"/5a7b3dfc-1c6c-4b43-9c3c-5c3a5e3f1aff", f.Name, changed)
					}
				}
			}
			if f.Required && !f.Auto {
				refused("PATCH", item, f.Name, map[string]any{f.Name: nil})
			}
		}
		if now := g.service.Index(); now != before {
			t.Errorf("%s: %d entries were written", name, now-before)
		}
		if swept < 200 {
			t.Errorf("%s: only %d requests were swept", name, swept)
		}
	}
}

// TestWrongDeclarations sends the wrong values in whole configurations: each is refused with its kind and the field's name.
func TestWrongDeclarations(t *testing.T) {
	g := newGateway()
	before, swept := g.service.Index(), 0
	for _, d := range g.service.Entities() {
		name := d.Schema.Name
		body := valid(name, map[string]any{}, "fresh")
		if body == nil || d.Endpoints != entity.AllEndpoints || d.Runtime {
			continue
		}
		for _, f := range d.Schema.Fields {
			if f.AutoKind == schema.AutoTouch || f.Type == schema.Foreign {
				continue
			}
			for _, v := range wrong(f) {
				swept++
				changed := maps.Clone(body)
				changed[f.Name] = v
				raw, err := json.Marshal(map[string]any{"_format_version": "3.0", name: []any{changed}})
				if err != nil {
					t.Fatal(err)
				}
				resp := g.request("POST", "/config", "application/json", string(raw))
				answer, _ := io.ReadAll(resp.Body)
				var e struct {
					Message string
					Fields  map[string]json.RawMessage
				}
				_ = json.Unmarshal(answer, &e)
				if resp.StatusCode != http.StatusBadRequest || e.Message == "" || !strings.Contains(string(e.Fields[name]), `"`+f.Name+`"`) {
					t.Errorf("%s: %d %s", raw, resp.StatusCode, answer)
				}
			}
		}
	}
	if now := g.service.Index(); now != before {
		t.Errorf("%d entries were written", now-before)
	}
	if swept < 200 {
		t.Errorf("only %d requests were swept", swept)
	}
}

// TestWrongAPIs sends wrong values to the collection of Kong before 1.0, whose errors are flat.
func TestWrongAPIs(t *testing.T) {
	g := newGateway()
	obj := map[string]any{"a": 1.0}
	values := map[string][]any{
		"text":   wrong(schema.Field{Type: schema.String}),
		"truth":  {"x", "", 1.0, 0.0, obj, []any{true}, []any{}, map[string]any{}, nil},
		"list":   {5.0, -1.0, 1e300, true, false, obj, []any{1.0}, []any{obj}, []any{nil}, map[string]any{}},
		"number": {"x", "1.5", 1.5, -1.0, 1e300, true, false, obj, []any{1.0}, []any{}, map[string]any{}},
	}
	swept := 0
	for _, shape := range []struct {
		path   string
		valid  map[string]any
		fields map[string]string
	}{
		{"old", map[string]any{"name": "old", "upstream_url": "http://h", "request_path": "/old"},
			map[string]string{"name": "text", "upstream_url": "text", "request_host": "text", "request_path": "text", "strip_request_path": "truth", "preserve_host": "truth", "unheard_of": "text"}},
		{"new", map[string]any{"name": "new", "upstream_url": "http://h", "uris": "/new"},
			map[string]string{"name": "text", "upstream_url": "text", "hosts": "list", "uris": "list", "methods": "list", "strip_uri": "truth", "https_only": "truth", "http_if_terminated": "truth",
				"preserve_host": "truth", "retries": "number", "upstream_connect_timeout": "number", "upstream_send_timeout": "number", "upstream_read_timeout": "number", "unheard_of": "text"}},
	} {
		created(t, g, "/apis", shape.valid)
		before := g.service.Index()
		for field, kind := range shape.fields {
			for _, v := range values[kind] {
				changed := maps.Clone(shape.valid)
				changed["name"] = "fresh"
				changed[field] = v
				for _, call := range []struct {
					method, path string
					body         map[string]any
				}{{"POST", "/apis", changed}, {"PUT", "/apis", changed}, {"PATCH", "/apis/" + shape.path, map[string]any{field: v}}} {
					swept++
					raw, err := json.Marshal(call.body)
					if err != nil {
						t.Fatal(err)
					}
					resp := g.request(call.method, call.path, "application/json", string(raw))
					answer, _ := io.ReadAll(resp.Body)
					var e map[string]any
					if _ = json.Unmarshal(answer, &e); resp.StatusCode != http.StatusBadRequest || e[field] == nil {
						t.Errorf("%s %s %s: %d %s", call.method, call.path, raw, resp.StatusCode, answer)
					}
				}
			}
		}
		if now := g.service.Index(); now != before {
			t.Errorf("%d entries were written", now-before)
		}
	}
	if swept < 200 {
		t.Errorf("only %d requests were swept", swept)
	}
}

// TestWrongMembers sends what names no consumer or no group to the collections that no schema describes.
func TestWrongMembers(t *testing.T) {
	g := newGateway()
	created(t, g, "/consumers", map[string]any{"username": "bob"})
	created(t, g, "/consumer_groups", map[string]any{"name": "gold"})
	before := g.service.Index()
	values := append(wrong(schema.Field{Type: schema.String}), wrong(schema.Field{Type: schema.Foreign})...)
	many := slices.Repeat([]any{"bob"}, 100_000)
	values = append(values, []any{"bob", "bob"}, []any{"gold", "gold"}, many, nil, "", []any{}, []any{"bob", 5.0}, []any{"gold", ""}, []any{nil}, strings.Repeat("x", 1<<16), "\u0000", "../bob", "bob/", "{vault://env/x}")
	for path, param := range map[string]string{"/consumer_groups/gold/consumers": "consumer", "/consumers/bob/consumer_groups": "group", "/consumer_groups/none/consumers": "consumer"} {
		for _, v := range values {
			for _, body := range []map[string]any{{param: v}, {param: "bob", "extra": v}, {"tags": v}} {
				raw, err := json.Marshal(body)
				if err != nil {
					t.Fatal(err)
				}
				resp := g.request("POST", path, "application/json", string(raw))
				var e struct{ Message string }
				if json.NewDecoder(resp.Body).Decode(&e) != nil || resp.StatusCode < 400 || resp.StatusCode >= 500 || e.Message == "" {
					t.Errorf("POST %s %.100s: %d %s", path, raw, resp.StatusCode, e.Message)
				}
			}
		}
	}
	if now := g.service.Index(); now != before {
		t.Errorf("%d entries were written", now-before)
	}
}

// TestGarbage sends bodies that are no entity to every collection.
func TestGarbage(t *testing.T) {
	g := newGateway()
	before := g.service.Index()
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	for _, d := range g.service.Entities() {
		for _, c := range [][2]string{
			{"application/json", "{"}, {"application/json", "[]"}, {"application/json", "\xff"}, {"application/json", `{"name":"` + "\xff" + `"}`},
			{"application/json", deep}, {"application/json", `{"tags":"\ud800"}`}, {"application/json", `{"name":1e999}`},
			{"application/x-www-form-urlencoded", "name=%ff"}, {"application/x-www-form-urlencoded", "a[=1&]=2&[]=3&..=4"},
			{"application/x-www-form-urlencoded", "tags[x][y][z]=1&name[]=1&name[]=2"}, {"multipart/form-data; boundary=X", "--X\r\n\r\n\r\n--X--"},
			{"application/x-www-form-urlencoded", strings.Repeat("a=1&", 1001)}, {"text/plain", `{"host":"h"}`}, {"application/yaml", "host: h"},
		} {
			resp := g.request("POST", "/"+d.CollectionName(), c[0], c[1])
			if resp.StatusCode < 400 || resp.StatusCode >= 500 {
				answer, _ := io.ReadAll(resp.Body)
				t.Errorf("%s %s %.60q: %d %s", d.Schema.Name, c[0], c[1], resp.StatusCode, answer)
			}
		}
	}
	if n := g.service.Index() - before; n != 0 {
		t.Errorf("%d entries were written", n)
	}
}

func TestLimits(t *testing.T) {
	g := newGateway()
	big := `{"host":"h","name":"` + strings.Repeat("x", 10<<20) + `"}`
	if resp := g.request("POST", "/services", "application/json", big); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body over 10 MiB: %d", resp.StatusCode)
	}
	if resp := g.request("GET", "/services?"+strings.Repeat("a=1&", 1001), "", ""); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("over 1000 query arguments: %d", resp.StatusCode)
	}
}

func created(t *testing.T, g *gateway, path string, body map[string]any) string {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp := g.request("POST", path, "application/json", string(raw))
	answer, _ := io.ReadAll(resp.Body)
	var rec struct{ ID string }
	if resp.StatusCode != http.StatusCreated || json.Unmarshal(answer, &rec) != nil {
		t.Fatalf("POST %s %s: %d %s", path, raw, resp.StatusCode, answer)
	}
	return rec.ID
}

func fuzzBody(contentType string) func(*testing.T, string) {
	g := newGateway()
	return func(t *testing.T, body string) {
		resp := g.request("POST", "/routes", contentType, body)
		if resp.StatusCode >= 500 {
			answer, _ := io.ReadAll(resp.Body)
			t.Fatalf("%d %s", resp.StatusCode, answer)
		}
	}
}

// FuzzRouteForm and FuzzPluginJSON: no body is answered with a server error.
func FuzzRouteForm(f *testing.F) {
	f.Add("paths[]=/a&hosts=x,y&headers[x][]=1&service.id=1")
	f.Add("sources[1].ip=1.2.3.4&protocols=tcp&sources[].port=9")
	f.Fuzz(fuzzBody("application/x-www-form-urlencoded"))
}

func FuzzPluginJSON(f *testing.F) {
	f.Add(`{"name":"jwt","config":{"claims_to_verify":["exp"],"maximum_expiration":3}}`)
	f.Add(`{"name":"acl","config":{"allow":[]},"consumer":{"username":"x"}}`)
	g := newGateway()
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/plugins", "/schemas/plugins/validate"} {
			if resp := g.request("POST", path, "application/json", body); resp.StatusCode >= 500 {
				answer, _ := io.ReadAll(resp.Body)
				t.Fatalf("%s: %d %s", path, resp.StatusCode, answer)
			}
		}
	})
}

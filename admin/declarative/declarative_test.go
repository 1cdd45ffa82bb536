package declarative

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

func layout() *Layout { return NewLayout(entity.All()) }

func TestReadForms(t *testing.T) {
	want := schema.Record{"a": float64(1), "b": []any{"x", nil, true, 1.5}, "c": schema.Record{"d": "2020-01-01"}}
	for name, text := range map[string]string{
		"JSON":          `{"a":1,"b":["x",null,true,1.5],"c":{"d":"2020-01-01"}}`,
		"YAML":          "a: 1\nb: [x, ~, true, 1.5]\nc:\n  d: 2020-01-01\n",
		"flow YAML":     "{a: 1, b: [x, null, true, 1.5], c: {d: '2020-01-01'}}",
		"alias":         "a: 1\nb: &l [x, ~, true, 1.5]\nc: {d: 2020-01-01}\n",
		"merge key":     "a: 1\nb: [x, ~, true, 1.5]\nc:\n  <<: {d: 2020-01-01}\n",
		"own key first": "a: 1\nb: [x, ~, true, 1.5]\nc:\n  <<: [{d: other}]\n  d: 2020-01-01\n",
	} {
		got, err := Read([]byte(text))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

// TestBooleansOfOldYAML: what Kong and decK take for booleans is one, unless it is in quotes, as it is when written here.
func TestBooleansOfOldYAML(t *testing.T) {
	for text, want := range map[string]any{
		"a: yes": true, "a: On": true, "a: OFF": false, "a: no": false, "{a: No}": false, "{a: [on]}": []any{true},
		"a: 'yes'": "yes", `a: "no"`: "no", "a: !!str on": "on", "a: y": "y", "a: |-\n  off": "off", `{"a": "on"}`: "on",
	} {
		got, err := Read([]byte(text))
		if diff := cmp.Diff(schema.Record{"a": want}, got); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", text, err, diff)
		}
	}
	for _, word := range []string{"yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"} {
		text, err := Marshal(schema.Record{"services": []any{schema.Record{"name": word, "tags": []any{word}}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(text)
		if diff := cmp.Diff([]any{schema.Record{"name": word, "tags": []any{word}}}, got["services"]); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", text, err, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 10), ","))
	}
	for name, c := range map[string]struct{ text, want string }{
		"bomb":        {bomb, "more than 4194304 values"},
		"cycle":       {"a: &a\n  b: *a\n", "nested deeper"},
		"deep YAML":   {strings.Repeat("[", 200) + strings.Repeat("]", 200), "nested deeper"},
		"deep JSON":   {`{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}", "nested deeper"},
		"broken":      {"a: [", "invalid YAML"},
		"broken JSON": {`{"a": `, "invalid JSON"},
		"two":         {"a: 1\n---\nb: 1\n", "more than one document"},
		"twice":       {"a: 1\na: 2\n", `key "a" is there twice`},
		"list":        {"- a\n", "expected an object"},
		"empty":       {"# nothing", "the document is empty"},
		"key":         {"? [a]\n: 1\n", "a key must be text"},
		"infinite":    {"a: .inf\n", "no number"},
		"merge":       {"a:\n  <<: 1\n", "must be a mapping"},
		"not UTF-8":   {"a: \xff\n", "not UTF-8"},
		"many values": {`{"a":[` + strings.Repeat("0,", MaxValues) + "0]}", "more than 4194304 values"},
		"many lines":  {strings.Repeat("- a\n", MaxLines+1), "more than 2097152 lines"},
		"one line":    {strings.Repeat("- ", 2*MaxLines+1), "more than 2097152 lines"},
		"large":       {strings.Repeat("#", MaxBytes+1), "larger than"},
	} {
		if _, err := Read([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func rows(t *testing.T, text string) (*Document, schema.Errors) {
	t.Helper()
	tree, err := Read([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return layout().Rows(tree)
}

func TestRows(t *testing.T) {
	doc, errs := rows(t, `
_format_version: "2.1"
_transform: false
_comment: all of it
_ignore: [anything]
_info:
  select_tags: [team-a]
  defaults:
    service: {retries: 1}
_plugin_configs:
  strict: {minute: 5, policy: local}
workspaces: [{name: default}]
services:
- name: s
  _comment: a service
  routes:
  - paths: [/plain, '/re/\d+$', '~/marked$']
    plugins:
    - name: rate-limiting
      _config: strict
      config: {minute: 7}
- name: t
  retries: 9
consumers:
- username: bob
  keyauth_credentials: [{key: k}]
  oauth2_credentials: []
certificates:
- cert: c
  key: k
  snis: [a.example, {name: b.example}]
plugins:
- name: acl
  service: s
  consumer: {username: bob}
`)
	if errs != nil {
		t.Fatal(errs)
	}
	rec := func(kv ...any) schema.Record {
		r := schema.Record{}
		for i := 0; i < len(kv); i += 2 {
			r[kv[i].(string)] = kv[i+1]
		}
		return r
	}
	want := &Document{Version: "2.1", SelectTags: []string{"team-a"}, Rows: []Row{
		{Entity: "services", Body: rec("name", "s", "retries", 1.), Parent: -1, List: "services"},
		{Entity: "routes", Body: rec("paths", []any{"/plain", `~/re/\d+$`, "~/marked$"}), Parent: 0, Field: "service", List: "routes"},
		{Entity: "plugins", Body: rec("name", "rate-limiting", "config", rec("minute", 7., "policy", "local")), Parent: 1, Field: "route", List: "plugins"},
		{Entity: "services", Body: rec("name", "t", "retries", 9.), Parent: -1, List: "services", Pos: 1},
		{Entity: "consumers", Body: rec("username", "bob"), Parent: -1, List: "consumers"},
		{Entity: "keyauth_credentials", Body: rec("key", "k"), Parent: 4, Field: "consumer", List: "keyauth_credentials"},
		{Entity: "plugins", Body: rec("name", "acl", "service", "s", "consumer", rec("username", "bob")), Parent: -1, List: "plugins"},
		{Entity: "certificates", Body: rec("cert", "c", "key", "k"), Parent: -1, List: "certificates"},
		{Entity: "snis", Body: rec("name", "a.example"), Parent: 7, Field: "certificate", List: "snis"},
		{Entity: "snis", Body: rec("name", "b.example"), Parent: 7, Field: "certificate", List: "snis", Pos: 1},
	}}
	if diff := cmp.Diff(want, doc); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Who is in which group may be said at either end, and in a list of its own (decK, Kong's exports).
func TestRowsOfGroups(t *testing.T) {
	doc, errs := rows(t, `
_format_version: "3.0"
consumer_groups:
- name: gold
  consumers: [{custom_id: c9}, ann]
  plugins: [{name: rate-limiting}]
consumers:
- username: bob
  groups:
  - {name: gold, id: g1, tags: [x]}
  - {id: g2}
consumer_group_consumers:
- {consumer: carl, consumer_group: gold}
`)
	if errs != nil {
		t.Fatal(errs)
	}
	const join = entity.ConsumerGroupConsumers
	want := []Row{
		{Entity: "consumers", Body: schema.Record{"username": "bob"}, Parent: -1, List: "consumers"},
		{Entity: join, Body: schema.Record{"consumer_group": schema.Record{"name": "gold"}}, Parent: 0, Field: "consumer", List: "groups"},
		{Entity: join, Body: schema.Record{"consumer_group": schema.Record{"id": "g2"}}, Parent: 0, Field: "consumer", List: "groups", Pos: 1},
		{Entity: "consumer_groups", Body: schema.Record{"name": "gold"}, Parent: -1, List: "consumer_groups"},
		{Entity: "plugins", Body: schema.Record{"name": "rate-limiting"}, Parent: 3, Field: "consumer_group", List: "plugins"},
		{Entity: join, Body: schema.Record{"consumer": schema.Record{"custom_id": "c9"}}, Parent: 3, Field: "consumer_group", List: "consumers"},
		{Entity: join, Body: schema.Record{"consumer": "ann"}, Parent: 3, Field: "consumer_group", List: "consumers", Pos: 1},
		{Entity: join, Body: schema.Record{"consumer": "carl", "consumer_group": "gold"}, Parent: -1, List: join},
	}
	if diff := cmp.Diff(want, doc.Rows); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFormErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no version", "services: []", `{_format_version="required field missing"}`},
		{"other version", "_format_version: '9'", `{_format_version="expected one of: 1.1, 2.1, 3.0"}`},
		{"version as a number", "_format_version: 3.0", `{_format_version="expected a string"}`},
		{"unknown key", "_format_version: '3.0'\nfoo: 1", `{foo="unknown field"}`},
		{"unknown underscore", "_format_version: '3.0'\n_konnect: {}", `{_konnect="unknown field"}`},
		{"not a list", "_format_version: '3.0'\nservices: {a: 1}", `{services="expected an array"}`},
		{"empty record for a list", "_format_version: '3.0'\nservices: {}", ""},
		{"not a record", "_format_version: '3.0'\nservices: [{name: a}, x]", `{services={[2]="expected a record"}}`},
		{"nested", "_format_version: '3.0'\nservices: [{name: a, routes: [{service: b}]}]", `{services={{routes={{service="unknown field"}}}}}`},
		{"nested under no id", "_format_version: '3.0'\nservices: [{id: {a: 1, b: 2}, routes: [{service: {a: 1, b: 2}}]}]", `{services={{routes={{service="unknown field"}}}}}`},
		{"comment", "_format_version: '3.0'\nservices: [{_comment: 1}]", `{services={{_comment="expected a string"}}}`},
		{"transform", "_format_version: '3.0'\n_transform: 1", `{_transform="expected a boolean"}`},
		{"plugin config", "_format_version: '3.0'\nplugins: [{_config: x}]", `{plugins={{_config="_plugin_configs has no \"x\""}}}`},
		{"groups of a consumer", "_format_version: '3.0'\nconsumers: [{username: a, groups: gold}]", `{consumers={{groups="expected an array"}}}`},
		{"a group that is none", "_format_version: '3.0'\nconsumers: [{username: a, groups: [gold, {tags: [x]}, 5]}]", `{consumers={{groups={[2]="expected a name or an id",[3]="expected a name or an id"}}}}`},
		{"internal tables", "_format_version: '3.0'\ncluster_nodes: []", `{cluster_nodes="unknown field"}`},
	} {
		_, errs := rows(t, c.text)
		got := strings.TrimPrefix(Message(errs), "declarative config is invalid: ")
		if errs == nil {
			got = ""
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestFlatErrors: what the document itself does wrong in an entity is told with that entity, and only the rest stays where it was.
func TestFlatErrors(t *testing.T) {
	const id = "0855b320-0dd2-547d-891d-601e9b38647f"
	doc, form := rows(t, `_format_version: '3.0'
odd: 1
consumers: [x, {username: u, id: `+id+`, tags: [1], keyauth_credentials: [{key: k}], _comment: 1}]
services: [{name: s, _ignore: 1, host: h, routes: [y, {name: r, id: nope, _comment: 2}]}, {name: s, host: h}]`)
	twice := "uniqueness violation: 'services' entity with name set to 's' already declared"
	errs := map[int]schema.Errors{}
	for i, r := range doc.Rows {
		if r.Entity == "keyauth_credentials" {
			errs[i] = schema.Errors{"key": "bad"}
		}
		if r.Entity == "services" && r.Pos == 1 {
			errs[i] = schema.EntityError(twice)
		}
	}
	flat, rest := layout().Flat(doc, errs, form, func(i int) schema.Record { return doc.Rows[i].Body })
	if diff := cmp.Diff(schema.Errors{"odd": "unknown field", "consumers": []any{"expected a record"}}, rest); diff != "" {
		t.Error(diff)
	}
	text := "expected a string"
	want := []FlatError{
		{Type: "consumer", ID: id, Entity: schema.Record{"username": "u", "id": id, "tags": []any{1.0}}, Errors: []Problem{{"field", "_comment", text}}},
		{Type: "keyauth_credential", Entity: schema.Record{"key": "k", "consumer": schema.Record{"id": id}}, Errors: []Problem{{"field", "key", "bad"}}},
		{Type: "service", Name: "s", Entity: schema.Record{"name": "s", "host": "h"}, Errors: []Problem{{"field", "_ignore", "expected an array"}, {"field", "routes.1", "expected a record"}}},
		{Type: "route", Name: "r", Entity: schema.Record{"name": "r", "id": "nope"}, Errors: []Problem{{"field", "_comment", text}}},
		{Type: "service", Name: "s", Entity: schema.Record{"name": "s", "host": "h"}, Errors: []Problem{{"entity", "", twice}}},
	}
	byText := cmpopts.SortSlices(func(a, b FlatError) bool { return fmt.Sprint(a) < fmt.Sprint(b) })
	if diff := cmp.Diff(want, flat, byText); diff != "" {
		t.Error(diff)
	}
	if tree := doc.Tree(errs); fmt.Sprint(tree["services"]) != "[<nil> "+twice+"]" {
		t.Error(tree)
	}
}

func TestErrorShapes(t *testing.T) {
	doc, _ := rows(t, "_format_version: '3.0'\nservices: [{name: a}, {name: b, id: x, tags: [t], routes: [{name: r}, {name: q}]}]")
	errs := map[int]schema.Errors{
		1: {"host": "required field missing"},
		3: {schema.EntityKey: []any{"must set one of"}, "paths": []any{nil, "bad"}, "a": schema.Errors{"b": "deep"}},
	}
	tree := doc.Tree(errs)
	if diff := cmp.Diff(schema.Errors{"services": []any{nil, schema.Errors{
		"host":   "required field missing",
		"routes": []any{nil, schema.Errors{schema.EntityKey: []any{"must set one of"}, "paths": []any{nil, "bad"}, "a": schema.Errors{"b": "deep"}}},
	}}}, tree); diff != "" {
		t.Error(diff)
	}
	if want := `declarative config is invalid: {services={[2]={host="required field missing",routes={[2]={["@entity"]={"must set one of"},a={b="deep"},paths={[2]="bad"}}}}}}`; Message(tree) != want {
		t.Errorf("%s\nwant\n%s", Message(tree), want)
	}
	if want := strings.Trim(`
in 'services':
  - in entry 2 of 'services':
    in 'host': required field missing
    in 'routes':
      - in entry 2 of 'routes':
        must set one of
        in 'a':
          in 'b': deep
        in 'paths':
          - in entry 2 of 'paths': bad`, "\n"); Indented(tree) != want {
		t.Errorf("%s\nwant\n%s", Indented(tree), want)
	}
	want := []FlatError{
		{Type: "service", Name: "b", Tags: []any{"t"}, Entity: doc.Rows[1].Body, Errors: []Problem{{Type: "field", Field: "host", Message: "required field missing"}}},
		{Type: "route", Name: "q", Entity: doc.Rows[3].Body, Errors: []Problem{
			{Type: "entity", Message: "must set one of"}, {Type: "field", Field: "a.b", Message: "deep"}, {Type: "field", Field: "paths.2", Message: "bad"}}},
	}
	body := func(i int) schema.Record { return doc.Rows[i].Body }
	flat, rest := layout().Flat(doc, errs, nil, body)
	if diff := cmp.Diff(want, flat); diff != "" || len(rest) > 0 {
		t.Error(diff, rest)
	}
	both := Merge(tree, schema.Errors{"foo": "unknown field", "services": []any{schema.Errors{"x": "unknown field"}, schema.Errors{"y": "unknown field"}}})
	if got := Message(both); !strings.Contains(got, `foo="unknown field",services={{x="unknown field"},{host="required field missing"`) || !strings.Contains(got, `y="unknown field"`) {
		t.Error(got)
	}
}

// What is written is read as the same rows, whatever is in them.
func TestWriteRead(t *testing.T) {
	var b bytes.Buffer
	w := layout().NewWriter(&b)
	route := schema.Record{"id": "r", "name": "no", "paths": []any{"/a: b", "~/x$", "- y", "line\nbreak", "true", "1.0"}, "regex_priority": 3., "service": schema.Record{"id": "s"},
		"headers": schema.Record{"id": []any{"x"}}, "hosts": nil, "strip_path": false}
	target := schema.Record{"target": "h:1", "created_at": 1795338905.274}
	if err := w.Add("routes", route); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("targets", target); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "e+") {
		t.Errorf("an exponent:\n%s", b.String())
	}
	doc, errs := rows(t, b.String())
	if errs != nil {
		t.Fatal(errs)
	}
	route["service"] = "s"
	if diff := cmp.Diff([]Row{{Entity: "routes", Body: route, Parent: -1, List: "routes"}, {Entity: "targets", Body: target, Parent: -1, List: "targets"}}, doc.Rows); doc.Transform || diff != "" {
		t.Error(diff)
	}
}

func TestNest(t *testing.T) {
	doc, errs := rows(t, `
_format_version: "3.0"
services:
- {id: s1, name: s, host: h, path: ~, retries: ~, tags: [team-a, x], created_at: 1}
routes:
- {id: r1, name: ~, paths: [/b], service: s1, tags: [team-a]}
- {id: r2, name: a, paths: [/a], service: s1}
- {id: r3, name: free, hosts: [h]}
consumers:
- {id: c1, username: bob}
- {id: c2, custom_id: only}
consumer_groups:
- {id: g1, name: silver, tags: [team-a]}
- {id: g2, name: gold}
consumer_group_consumers:
- {id: m1, consumer_group: g1, consumer: c1}
- {id: m2, consumer_group: g2, consumer: c1, created_at: 1}
plugins:
- {id: p3, name: request-termination, consumer_group: g2}
- {id: p4, name: request-termination, consumer_group: g2, service: s1}
- {id: p1, name: acl, service: s1, consumer: c2}
- {id: p2, name: cors, route: r1}
keyauth_credentials:
- {id: k1, key: k, consumer: c1}
`)
	if errs != nil {
		t.Fatal(errs)
	}
	text, err := Marshal(layout().Nest(doc, NestOptions{SelectTags: []string{"team-a"}}))
	if err != nil {
		t.Fatal(err)
	}
	want := `_format_version: "3.0"
_info:
  select_tags:
    - team-a
consumer_groups:
  - name: gold
    plugins:
      - name: request-termination
  - name: silver
consumers:
  - custom_id: only
    id: c2
  - groups:
      - name: gold
      - name: silver
    keyauth_credentials:
      - key: k
    username: bob
plugins:
  - consumer: c2
    name: acl
    service: s
  - consumer_group: gold
    name: request-termination
    service: s
routes:
  - hosts:
      - h
    name: free
services:
  - host: h
    name: s
    retries: null
    routes:
      - paths:
          - /b
        plugins:
          - name: cors
      - name: a
        paths:
          - /a
    tags:
      - x
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("_format_version: '3.0'\nservices: [{name: a, routes: [{paths: [/x]}]}]\n"))
	f.Add([]byte(`{"_format_version":"1.1","consumers":[{"username":"b","acls":[{"group":"g"}]}],"_info":{"defaults":{"route":{"hosts":["x"]}}}}`))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("_format_version: '3.0'\nconsumer_groups: [{name: g, consumers: [a], plugins: [{name: x}]}]\nconsumers: [{username: a, groups: [{name: g}, h]}]\nconsumer_group_consumers: [{consumer: a, consumer_group: g}]\n"))
	f.Add([]byte("x: &x {a: 1}\n_format_version: '2.1'\nroutes: [{<<: *x, paths: ['/(']}]\n"))
	l := layout()
	f.Fuzz(func(t *testing.T, text []byte) {
		tree, err := Read(text)
		if err != nil {
			return
		}
		doc, errs := l.Rows(tree)
		wrong := map[int]schema.Errors{}
		for i, r := range doc.Rows {
			if r.Parent >= i {
				t.Fatalf("row %d comes before its parent %d", i, r.Parent)
			}
			wrong[i] = schema.Errors{"x": "y"}
		}
		_ = Message(Merge(doc.Tree(wrong), errs))
		_ = Indented(errs)
		_, _ = l.Flat(doc, wrong, errs, func(i int) schema.Record { return doc.Rows[i].Body })
		if errs != nil {
			return
		}
		out, err := Marshal(l.Nest(doc, NestOptions{WithIDs: true}))
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := Read(out); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
	})
}

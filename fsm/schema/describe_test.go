package schema_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "concord/fsm/schema"
)

func TestDescribe(t *testing.T) {
	s := &Schema{Name: "s", SubKey: "name", Fields: []Field{
		ID(), CreatedAt(), Path("path"), Tags(), NoConsumer(), Consumer(), Protocols("http"),
		{Name: "name", Type: String, Required: true},
		{Name: "config", Type: RecordT},
		{Name: "redis", Type: RecordT, Fields: []Field{Port("port")},
			Shorthands: []Shorthand{{Name: "redis_port", Type: Integer, ReplacedWith: []string{"redis", "port"}}}},
		{Name: "map", Type: Map, Keys: &Field{Type: String, Pattern: "^a"}, Elem: &Field{Type: Number, GT: new(0.0)}},
	}, Shorthands: []Shorthand{ServiceURL()}, Checks: []Check{
		AtLeastOneOf{"a", "b"},
		Conditional{IfField: "a", IfMatch: Field{NotOneOf: []any{"x"}}, ThenField: "b", ThenMatch: Field{Null: true}},
	}}
	text, err := Encode(s.Describe())
	if err != nil {
		t.Fatal(err)
	}
	want := decode(t, `{"fields":[
		{"id":{"type":"string","uuid":true,"auto":true}},
		{"created_at":{"type":"integer","timestamp":true,"auto":true}},
		{"path":{"type":"string","starts_with":"/","match_none":[{"pattern":"//","err":"must not have empty segments"}]}},
		{"tags":{"type":"set","elements":{"type":"string"}}},
		{"consumer":{"type":"foreign","reference":"consumers","eq":null,"on_delete":"cascade"}},
		{"consumer":{"type":"foreign","reference":"consumers","required":true,"on_delete":"cascade"}},
		{"protocols":{"type":"set","required":true,"default":["http"],"elements":{"type":"string","one_of":["http"]}}},
		{"name":{"type":"string","required":true}},
		{"config":{"type":"record","required":true,"abstract":true}},
		{"redis":{"type":"record","required":true,"fields":[{"port":{"type":"integer","between":[0,65535]}}],
			"shorthand_fields":[{"redis_port":{"type":"integer","translate_backwards":["redis","port"],"deprecation":{"replaced_with":[{"path":["redis","port"]}]}}}]}},
		{"map":{"type":"map","keys":{"type":"string","match":"^a"},"values":{"type":"number","gt":0}}}],
		"shorthand_fields":[{"url":{"type":"string"}}],
		"entity_checks":[{"at_least_one_of":["a","b"]},
			{"conditional":{"if_field":"a","if_match":{"not_one_of":["x"]},"then_field":"b","then_match":{"eq":null}}}]}`)
	if d := cmp.Diff(want, decode(t, string(text))); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if f, ok := s.Field("redis"); !ok || f.Type != RecordT {
		t.Error("Field")
	}
	if l := s.ForeignFields(); len(l) != 2 || l[0].Ref != "consumers" {
		t.Errorf("ForeignFields: %v", l)
	}
}

var withSecrets = &Schema{Name: "s", SubKey: "name", Fields: []Field{
	{Name: "name", Type: String}, {Name: "password", Type: String, Secret: true}, {Name: "config", Type: RecordT},
}}

func secretSub(name string) (*Schema, bool) {
	return &Schema{Name: "p", Fields: []Field{{Name: "config", Type: RecordT,
		Fields: []Field{
			{Name: "keys", Type: Array, Elem: &Field{Type: String, Secret: true}},
			{Name: "by_name", Type: Map, Elem: &Field{Type: String, Secret: true}},
			{Name: "redis", Type: RecordT, Fields: []Field{{Name: "host", Type: String}, {Name: "password", Type: String, Secret: true}}},
		},
		Shorthands: []Shorthand{{Name: "redis_password", Type: String, ReplacedWith: []string{"redis", "password"}}}}}}, name == "p"
}

func TestMapSecrets(t *testing.T) {
	rec := decode(t, `{"name":"p","password":null,"config":{"keys":["a","b"],"by_name":{"x":"c"},"redis":{"host":"h","password":"d"}}}`)
	before, _ := Encode(rec)
	var paths []string
	sealed, err := withSecrets.MapSecrets(rec, secretSub, func(path, v string) (any, error) {
		paths = append(paths, path)
		return Record{"$sealed": v}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := decode(t, `{"name":"p","password":null,"config":{"keys":[{"$sealed":"a"},{"$sealed":"b"}],"by_name":{"x":{"$sealed":"c"}},"redis":{"host":"h","password":{"$sealed":"d"}}}}`)
	if d := cmp.Diff(want, sealed); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if len(paths) != 4 {
		t.Errorf("paths: %v", paths)
	}
	if after, _ := Encode(rec); string(after) != string(before) {
		t.Errorf("input changed: %s", after)
	}
	fails := errors.New("no key")
	if _, err := withSecrets.MapSecrets(rec, secretSub, func(string, string) (any, error) { return nil, fails }); !errors.Is(err, fails) {
		t.Errorf("got %v", err)
	}
	calls := 0
	if _, err := withSecrets.MapSecrets(Record{"name": "unknown", "password": "x"}, secretSub, func(path, _ string) (any, error) {
		calls++
		return path, nil
	}); err != nil || calls != 1 {
		t.Errorf("unknown sub-schema: %v, %d calls", err, calls)
	}
}

func TestDeprecatedNames(t *testing.T) {
	prepare := func(body string) (Record, Errors) {
		return withSecrets.Prepare(decode(t, body), Options{Sub: secretSub})
	}
	for _, c := range []struct{ name, in, want string }{
		{"old name", `{"redis_password":"x","redis":{"host":"h"}}`, "x"},
		{"both equal", `{"redis_password":"x","redis":{"password":"x"}}`, "x"},
		{"null gives way", `{"redis_password":null,"redis":{"password":"y"}}`, "y"},
		{"new null gives way", `{"redis_password":"x","redis":{"password":null}}`, "x"},
	} {
		rec, errs := prepare(`{"name":"p","config":` + c.in + `}`)
		if errs != nil {
			t.Errorf("%s: %s", c.name, errs.Message())
			continue
		}
		redis := rec["config"].(Record)["redis"].(Record)
		if _, stored := rec["config"].(Record)["redis_password"]; stored || redis["password"] != c.want {
			t.Errorf("%s: %v", c.name, rec)
		}
		shown := withSecrets.Present(rec, secretSub)["config"].(Record)
		if shown["redis_password"] != c.want || cmp.Diff(shown["redis"], any(redis)) != "" {
			t.Errorf("%s: shown as %v", c.name, shown)
		}
		if _, errs := withSecrets.Prepare(withSecrets.Present(rec, secretSub), Options{Sub: secretSub}); errs != nil {
			t.Errorf("%s: what is shown is not accepted: %s", c.name, errs.Message())
		}
	}
	for in, want := range map[string]string{
		`{"redis_password":5}`:                  "schema violation (redis_password: expected a string)",
		`{"redis_password":"x","redis":"text"}`: "schema violation (config.redis: expected a record)",
	} {
		if _, errs := prepare(`{"name":"p","config":` + in + `}`); fmt.Sprint(errs) != want {
			t.Errorf("%s\n got %v\nwant %s", in, errs, want)
		}
	}
}

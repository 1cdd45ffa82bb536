package schema_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	. "concord/fsm/schema"
)

func TestCoerce(t *testing.T) {
	sub := func(name string) (*Schema, bool) {
		return &Schema{Name: "p", Fields: []Field{{Name: "config", Type: RecordT,
			Fields:     []Field{{Name: "n", Type: Number}, {Name: "keys", Type: Array, Elem: new(HeaderName(""))}},
			Shorthands: []Shorthand{{Name: "old_n", Type: Number, ReplacedWith: []string{"n"}}}}}}, name == "p"
	}
	s := &Schema{Name: "s", SubKey: "name", TTL: true, Fields: []Field{
		{Name: "name", Type: String},
		{Name: "text", Type: String},
		{Name: "int", Type: Integer},
		{Name: "num", Type: Number},
		{Name: "bool", Type: Boolean},
		{Name: "methods", Type: Set, Elem: new(Method(""))},
		{Name: "paths", Type: Array, Elem: new(RoutePath(""))},
		{Name: "free", Type: Array, Elem: &Field{Type: String}},
		{Name: "codes", Type: Array, Elem: &Field{Type: Integer}},
		{Name: "bools", Type: Array, Elem: &Field{Type: Boolean}},
		{Name: "headers", Type: Map, Elem: &Field{Type: Array, Elem: &Field{Type: String}}},
		{Name: "metrics", Type: Array, Elem: &Field{Type: RecordT, Fields: []Field{{Name: "rate", Type: Number}, {Name: "name", Type: String}}}},
		{Name: "service", Type: Foreign, Ref: "services"},
		{Name: "config", Type: RecordT},
	}, Shorthands: []Shorthand{ServiceURL()}}
	for _, c := range []struct{ name, in, want string }{
		{"empty is null", `{"text":"","int":"","methods":"","service":{"id":""},"url":""}`, `{"text":null,"int":null,"methods":null,"service":{"id":null},"url":null}`},
		{"text stays", `{"text":"5","unknown":"5"}`, `{"text":"5","unknown":"5"}`},
		{"numbers", `{"int":"5","num":"-1.5e2"}`, `{"int":5,"num":-150}`},
		{"hexadecimal", `{"int":"0x10","num":" 7 "}`, `{"int":16,"num":7}`},
		{"no numbers", `{"int":"abc","num":"inf","ttl":"x"}`, `{"int":"abc","num":"inf","ttl":"x"}`},
		{"nor these", `{"int":"1_000","num":"NaN"}`, `{"int":"1_000","num":"NaN"}`},
		{"booleans", `{"bool":"true","bools":["false","yes"]}`, `{"bool":true,"bools":[false,"yes"]}`},
		{"no boolean", `{"bool":"on"}`, `{"bool":"on"}`},
		{"single value wrapped", `{"methods":"GET"}`, `{"methods":["GET"]}`},
		{"list", `{"methods":["GET","POST"]}`, `{"methods":["GET","POST"]}`},
		{"commas split", `{"methods":"GET,POST"}`, `{"methods":["GET","POST"]}`},
		{"blanks after commas", `{"methods":"GET, POST"}`, `{"methods":["GET","POST"]}`},
		{"not in brackets", `{"methods":["GET,POST"]}`, `{"methods":["GET,POST"]}`},
		{"not when valid as it is", `{"paths":"/p1,/p2","free":"a,b"}`, `{"paths":["/p1,/p2"],"free":["a,b"]}`},
		{"not when a part is bad", `{"methods":"GET,post"}`, `{"methods":["GET,post"]}`},
		{"typed parts", `{"codes":"200,404"}`, `{"codes":[200,404]}`},
		{"typed elements", `{"codes":["200","x",""]}`, `{"codes":[200,"x",null]}`},
		{"map of lists", `{"headers":{"x-env":["prod"],"x-one":"a"}}`, `{"headers":{"x-env":["prod"],"x-one":["a"]}}`},
		{"list of records", `{"metrics":[{"rate":"0.5","name":"x","other":"1"}]}`, `{"metrics":[{"rate":0.5,"name":"x","other":"1"}]}`},
		{"foreign", `{"service":{"name":"a"}}`, `{"service":{"name":"a"}}`},
		{"foreign as text", `{"service":"a"}`, `{"service":"a"}`},
		{"sub-schema", `{"name":"p","config":{"n":"1","keys":"a,b","old_n":"2"}}`, `{"name":"p","config":{"n":1,"keys":["a","b"],"old_n":2}}`},
		{"unknown sub-schema", `{"name":"q","int":"1","config":{"n":"1"}}`, `{"name":"q","int":1,"config":{"n":"1"}}`},
		{"record as text", `{"name":"p","config":"x"}`, `{"name":"p","config":"x"}`},
		{"ttl", `{"ttl":"60"}`, `{"ttl":60}`},
		{"typed values stay", `{"int":5,"bool":true,"methods":null}`, `{"int":5,"bool":true,"methods":null}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := decode(t, c.in)
			got := s.Coerce(in, sub)
			want := decode(t, c.want)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if d := cmp.Diff(decode(t, c.in), in); d != "" {
				t.Errorf("input changed\n%s", d)
			}
		})
	}
}

// FuzzCoerce: whatever comes in, Coerce and then Prepare only refuse.
func FuzzCoerce(f *testing.F) {
	f.Add(`{"array":"1,2","map":{"a":"b"},"foreign":{"id":""},"record":{"a":"1"}}`)
	f.Add(`{"array":["1",{}],"set":"a,b,a","number":"0x1p4"}`)
	f.Fuzz(func(t *testing.T, text string) {
		rec, err := Decode([]byte(text))
		if err != nil {
			return
		}
		once := rules.Coerce(rec, nil)
		if d := cmp.Diff(once, rules.Coerce(once, nil)); d != "" {
			t.Fatalf("not idempotent\n%s", d)
		}
		if _, errs := rules.Prepare(once, Options{}); errs != nil && errs.Message() == "" {
			t.Fatal("violations without a message")
		}
	})
}

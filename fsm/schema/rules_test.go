package schema_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "concord/fsm/schema"
)

func decode(t testing.TB, text string) Record {
	t.Helper()
	rec, err := Decode([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return rec
}

// rules has a field for every rule.
var rules = &Schema{Name: "rules", Fields: []Field{
	{Name: "array", Type: Array, Elem: &Field{Type: Integer}},
	{Name: "set", Type: Set, Elem: &Field{Type: String}},
	{Name: "map", Type: Map, Keys: new(HeaderName("")), Elem: &Field{Type: String}},
	{Name: "record", Type: RecordT, Nullable: true, Fields: []Field{{Name: "a", Type: Integer, Default: 7}, {Name: "b", Type: String, Required: true}}},
	{Name: "string", Type: String},
	{Name: "number", Type: Number},
	{Name: "integer", Type: Integer},
	{Name: "boolean", Type: Boolean},
	{Name: "foreign", Type: Foreign, Ref: "others"},
	{Name: "eq", Type: Boolean, Equal: true, Default: true},
	{Name: "eqnull", Type: String, Null: true},
	{Name: "eqerr", Type: String, Null: true, Err: "own text"},
	{Name: "ne", Type: Boolean, NotEqual: true},
	{Name: "gt", Type: Number, GT: new(0.5)},
	{Name: "between", Type: Number, Between: &[2]float64{0.001, 1000000}},
	{Name: "len", Type: String, LenEq: new(3)},
	{Name: "min", Type: String, LenMin: new(2)},
	{Name: "zero", Type: String, LenMin: new(0)},
	{Name: "max", Type: String, LenMax: new(2)},
	{Name: "listmin", Type: Array, LenMin: new(1), Elem: &Field{Type: String}},
	{Name: "mapmax", Type: Map, LenMax: new(1), Elem: &Field{Type: String}},
	{Name: "pattern", Type: String, Pattern: "^a"},
	{Name: "notpattern", Type: String, NotPattern: "^a"},
	{Name: "all", Type: String, MatchAll: []Match{{Pattern: "a", Err: "no a"}, {Pattern: "b", Err: "no b"}}},
	{Name: "any", Type: String, MatchAny: []string{"^a", "^b"}, MatchAnyErr: "neither"},
	{Name: "none", Type: String, MatchNone: []Match{{Pattern: "x", Err: "no x, please"}}},
	{Name: "starts", Type: String, StartsWith: "/"},
	{Name: "contains", Type: Set, Contains: "exp", Elem: &Field{Type: String}},
	{Name: "oneof", Type: Integer, OneOf: []any{426, 301}},
	{Name: "notoneof", Type: String, NotOneOf: []any{"env", "x"}},
	{Name: "regex", Type: String, Regex: true},
	{Name: "timestamp", Type: Integer, Timestamp: true},
	{Name: "uuid", Type: String, UUID: true},
	{Name: "vault", Type: String, Vault: true, LenMax: new(3)},
	{Name: "disjoint", Type: Set, Disjoint: [][]string{{"a", "b"}, {"c"}}, Elem: &Field{Type: String}},
}}

func TestRules(t *testing.T) {
	const uuid = "6B6D1A4E-5b3f-4a41-9d5c-0f4b3c2d1e0f"
	for _, c := range []struct{ name, in, want string }{
		{"array", `{"array":"x"}`, "array: expected an array"},
		{"array of object", `{"array":{"a":1}}`, "array: expected an array"},
		{"element", `{"array":[1,"x",null,4.5]}`, "3: array.2: expected an integer; array.3: required field missing; array.4: expected an integer"},
		{"set", `{"set":1}`, "set: expected a set"},
		{"map", `{"map":"x"}`, "map: expected a map"},
		{"map of list", `{"map":[1]}`, "map: expected a map"},
		{"map key", `{"map":{"a b":"x"}}`, "map: bad header name 'a b', allowed characters are A-Z, a-z, 0-9, '_', and '-'"},
		{"map reserved key", `{"mapmax":{"$sealed":"x"}}`, "mapmax: names must not begin with '$': $sealed"},
		{"map value", `{"map":{"a":1}}`, "map: expected a string"},
		{"record", `{"record":1}`, "record: expected a record"},
		{"record of list", `{"record":[1]}`, "record: expected a record"},
		{"record incomplete", `{"record":{}}`, "record.b: required field missing"},
		{"record unknown", `{"record":{"b":"x","c":1}}`, "record.c: unknown field"},
		{"string", `{"string":1}`, "string: expected a string"},
		{"string empty", `{"string":""}`, "string: length must be at least 1"},
		{"string empty allowed", `{"zero":""}`, ""},
		{"number", `{"number":"1"}`, "number: expected a number"},
		{"integer", `{"integer":1.5}`, "integer: expected an integer"},
		{"integer huge", `{"integer":1e300}`, "integer: expected an integer"},
		{"boolean", `{"boolean":"true"}`, "boolean: expected a boolean"},
		{"foreign text", `{"foreign":"x"}`, "foreign.id: missing primary key"},
		{"foreign empty", `{"foreign":{}}`, "foreign.id: missing primary key"},
		{"foreign null", `{"foreign":{"id":null}}`, "foreign.id: required field missing"},
		{"foreign number", `{"foreign":{"id":1}}`, "foreign.id: expected a string"},
		{"foreign bad", `{"foreign":{"id":"x"}}`, "foreign.id: expected a valid UUID"},
		{"foreign good", `{"foreign":{"id":"` + uuid + `"}}`, ""},
		{"eq", `{"eq":false}`, "eq: value must be true"},
		{"eq null", `{"eq":null}`, "eq: value must be true"},
		{"must be null", `{"eqnull":"x"}`, "eqnull: value must be null"},
		{"own text", `{"eqerr":"x"}`, "eqerr: own text"},
		{"ne", `{"ne":true}`, "ne: value must not be true"},
		{"gt", `{"gt":0.5}`, "gt: value must be greater than 0.5"},
		{"between", `{"between":0}`, "between: value should be between 0 and 1000000"},
		{"len", `{"len":"ab"}`, "len: length must be 3"},
		{"len min", `{"min":"a"}`, "min: length must be at least 2"},
		{"len max", `{"max":"abc"}`, "max: length must be at most 2"},
		{"len counts bytes", `{"max":"é"}`, ""},
		{"list len", `{"listmin":[]}`, "listmin: length must be at least 1"},
		{"map len", `{"mapmax":{"a":"1","b":"2"}}`, "mapmax: length must be at most 1"},
		{"pattern", `{"pattern":"b"}`, "pattern: invalid value: b"},
		{"not pattern", `{"notpattern":"ab"}`, "notpattern: invalid value: ab"},
		{"match all", `{"all":"a"}`, "all: no b"},
		{"match any", `{"any":"c"}`, "any: neither"},
		{"match none", `{"none":"axb"}`, "none: no x, please"},
		{"starts with", `{"starts":"a"}`, "starts: should start with: /"},
		{"contains", `{"contains":["nbf"]}`, "contains: expected to contain: exp"},
		{"one of", `{"oneof":5}`, "oneof: expected one of: 426, 301"},
		{"not one of", `{"notoneof":"env"}`, "notoneof: must not be one of: env, x"},
		{"regex", `{"regex":"("}`, "regex: not a valid regex: ("},
		{"regex named group", `{"regex":"(?<a>x)"}`, ""},
		{"timestamp", `{"timestamp":0}`, "timestamp: expected a valid timestamp"},
		{"uuid", `{"uuid":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0g"}`, "uuid: expected a valid UUID"},
		{"vault", `{"vault":"{vault://env/a-long-name}"}`, ""},
		{"no vault", `{"vault":"abcd"}`, "vault: length must be at most 3"},
		{"disjoint", `{"disjoint":["b","c","a"]}`, "disjoint: these sets are mutually exclusive: ('a', 'b'), ('c')"},
		{"unknown", `{"nope":null,"$a":1}`, "2: $a: unknown field; nope: unknown field"},
		{"empty object is an empty list", `{"array":{}}`, ""},
		{"empty list is an empty map", `{"map":[]}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs := rules.Prepare(decode(t, c.in), Options{})
			if got := message(errs); got != wrap(c.want) {
				t.Errorf("got %s\nwant %s", got, wrap(c.want))
			}
		})
	}
}

// wrap writes "3: a; b; c" as the message for three violations and any other text as that for one.
func wrap(s string) string {
	if n, rest, ok := strings.Cut(s, ": "); ok && strings.Trim(n, "0123456789") == "" {
		return n + " schema violations (" + rest + ")"
	}
	if s == "" {
		return ""
	}
	return "schema violation (" + s + ")"
}

func message(errs Errors) string {
	if errs == nil {
		return ""
	}
	return errs.Message()
}

func TestInvalidUTF8(t *testing.T) {
	for _, in := range []Record{{"string": "ab\xff"}, {"mapmax": Record{"ab\xff": "x"}}, {"set": []any{"ab\xc3("}}} {
		_, errs := rules.Prepare(in, Options{})
		if got := message(errs); !strings.Contains(got, "invalid utf-8 character sequence detected at position 3") {
			t.Errorf("%v: %s", in, got)
		}
	}
}

// checks has a check of every kind over fields a, b, c and r.x.
func checks(c ...Check) *Schema {
	return &Schema{Name: "checks", Checks: c, Fields: []Field{
		{Name: "a", Type: String}, {Name: "b", Type: String, LenMin: new(0)}, {Name: "c", Type: String, Vault: true},
		{Name: "need", Type: String, Required: true, Default: "n"},
		{Name: "r", Type: RecordT, Fields: []Field{{Name: "x", Type: String}}},
		{Name: "late", Type: RecordT, Fields: []Field{{Name: "must", Type: String, Required: true, Default: "d"}}},
	}}
}

func TestChecks(t *testing.T) {
	isGo := Field{OneOf: []any{"go"}}
	custom := Custom{Paths: []string{"a", "r.x"}, Run: func(rec Record) Errors {
		if rec["a"] == "bad" {
			return Errors{"r": Errors{"x": "because of a"}, "@entity": []any{"a is bad"}}
		}
		return nil
	}}
	for _, c := range []struct {
		name  string
		check Check
		in    string
		mode  Mode
		want  string
	}{
		{"at least one", AtLeastOneOf{"a", "r.x"}, `{}`, Insert, "at least one of these fields must be non-empty: 'a', 'r.x'"},
		{"at least one, empty text", AtLeastOneOf{"b"}, `{"b":""}`, Insert, "at least one of these fields must be non-empty: 'b'"},
		{"at least one, update", AtLeastOneOf{"a"}, `{"a":null}`, Update, "when updating, at least one of these fields must be non-empty: 'a'"},
		{"at least one, nested set", AtLeastOneOf{"a", "r.x"}, `{"r":{"x":"y"}}`, Insert, ""},
		{"only one, two", OnlyOneOf{"a", "b"}, `{"a":"1","b":"2"}`, Insert, "exactly one of these fields must be non-empty: 'a', 'b'"},
		{"only one, none", OnlyOneOf{"a", "b"}, `{}`, Insert, "exactly one of these fields must be non-empty: 'a', 'b'"},
		{"only one, one", OnlyOneOf{"a", "b"}, `{"a":"1"}`, Insert, ""},
		{"exclusive", MutuallyExclusive{"a", "b"}, `{"a":"1","b":"2"}`, Insert, "only one or none of these fields must be set: 'a', 'b'"},
		{"exclusive, none", MutuallyExclusive{"a", "b"}, `{}`, Insert, ""},
		{"required together", MutuallyRequired{"a", "b"}, `{"a":"1"}`, Insert, "all or none of these fields must be set: 'a', 'b'"},
		{"required together, both", MutuallyRequired{"a", "b"}, `{"a":"1","b":"2"}`, Insert, ""},
		{"required together, bad value", MutuallyRequired{"a", "b"}, `{"a":1}`, Insert, "a: expected a string"},
		{"distinct", Distinct{"a", "b", "r.x"}, `{"a":"1","r":{"x":"1"}}`, Insert, "values of these fields must be distinct: 'a', 'b', 'r.x'"},
		{"distinct, nulls", Distinct{"a", "b"}, `{}`, Insert, ""},
		{"conditional", Conditional{IfField: "a", IfMatch: isGo, ThenField: "r.x", ThenMatch: Field{Required: true}}, `{"a":"go"}`, Insert,
			"2: failed conditional validation given value of field 'a'; r.x: required field missing"},
		{"conditional, own text", Conditional{IfField: "a", IfMatch: isGo, ThenField: "b", ThenMatch: Field{LenEq: new(0)}, Err: "no b with go"}, `{"a":"go","b":"x"}`, Insert,
			"2: no b with go; b: length must be 0"},
		{"conditional, not met", Conditional{IfField: "a", IfMatch: isGo, ThenField: "b", ThenMatch: Field{Required: true}}, `{"a":"no"}`, Insert, ""},
		{"conditional, vault", Conditional{IfField: "a", IfMatch: isGo, ThenField: "c", ThenMatch: Field{OneOf: []any{"x"}}}, `{"a":"go","c":"{vault://env/x}"}`, Insert, ""},
		{"conditional, field missing", Conditional{IfField: "late.must", IfMatch: isGo, ThenField: "a", ThenMatch: Field{Required: true}}, `{"late":null,"a":"x"}`, Insert,
			"late: required field missing"},
		{"one of if", ConditionalAtLeastOneOf{IfField: "a", IfMatch: isGo, Then: []string{"b", "c"}}, `{"a":"go"}`, Insert, "at least one of these fields must be non-empty: 'b', 'c'"},
		{"one of if, update", ConditionalAtLeastOneOf{IfField: "a", IfMatch: isGo, Then: []string{"b", "c"}}, `{"a":"go"}`, Update, "when updating, at least one of these fields must be non-empty: 'b', 'c'"},
		{"one of else", ConditionalAtLeastOneOf{IfField: "a", IfMatch: isGo, Then: []string{"b"}, ElseMatch: &Field{Pattern: "^x"}, Else: []string{"c"}, ElseErr: "want %s"}, `{"a":"xy","b":"1"}`, Insert, "want 'c'"},
		{"one of neither", ConditionalAtLeastOneOf{IfField: "a", IfMatch: isGo, Then: []string{"b"}, ElseMatch: &Field{Pattern: "^x"}, Else: []string{"c"}}, `{"a":"q"}`, Insert, ""},
		{"custom", custom, `{"a":"bad"}`, Insert, "2: a is bad; r.x: because of a"},
		{"custom, not on bad input", custom, `{"a":"bad","r":{"x":1}}`, Insert, "r.x: expected a string"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := checks(c.check)
			o := Options{Mode: c.mode}
			if c.mode == Update {
				o.Current = Record{"need": "n"}
			}
			_, errs := s.Prepare(decode(t, c.in), o)
			if got := message(errs); got != wrap(c.want) {
				t.Errorf("got %s\nwant %s", got, wrap(c.want))
			}
		})
	}
}

func TestCheckOnAbsentRequiredField(t *testing.T) {
	s := &Schema{Name: "s", Fields: []Field{{Name: "a", Type: String, Required: true}, {Name: "b", Type: String}},
		Checks: []Check{Conditional{IfField: "a", IfMatch: Field{OneOf: []any{"x"}}, ThenField: "b", ThenMatch: Field{Required: true}}}}
	_, errs := s.Prepare(Record{"b": "y"}, Options{})
	if got, want := message(errs), "schema violation (a: field required for entity check)"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestDefaultsAndMerge(t *testing.T) {
	s := &Schema{Name: "s", Fields: []Field{
		{Name: "id", Type: String, UUID: true, Auto: true, AutoKind: AutoUUID},
		{Name: "created_at", Type: Number, Auto: true, AutoKind: AutoNowMS},
		{Name: "updated_at", Type: Integer, Auto: true, AutoKind: AutoTouch},
		{Name: "key", Type: String, Auto: true, AutoKind: AutoRandom},
		{Name: "tags", Type: Set, Elem: &Field{Type: String}},
		{Name: "health", Type: RecordT, Fields: []Field{
			{Name: "active", Type: RecordT, Fields: []Field{{Name: "path", Type: String, Default: "/"}, {Name: "codes", Type: Array, Default: []int{200}, Elem: &Field{Type: Integer}}}},
			{Name: "limit", Type: Number, Default: 0.25},
		}},
		{Name: "list", Type: Array, Elem: &Field{Type: RecordT, Fields: []Field{{Name: "x", Type: Integer, Default: 1}}}},
	}}
	clock := 1700000000.1236
	auto := Auto{Now: func() float64 { return clock }, UUID: func() string { return "6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f" }, Random: func() string { return "r" }}
	in := decode(t, `{"tags":["b","a","b"],"list":[{},{"x":2},{}],"id":null}`)
	first, errs := s.Prepare(in, Options{Auto: auto})
	if errs != nil {
		t.Fatal(errs)
	}
	want := decode(t, `{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f","created_at":1700000000.123,"updated_at":1700000000,"key":"r","tags":["b","a"],
		"health":{"active":{"path":"/","codes":[200]},"limit":0.25},"list":[{"x":1},{"x":2},{"x":1}]}`)
	if d := cmp.Diff(want, first); d != "" {
		t.Fatalf("insert (-want +got)\n%s", d)
	}
	if d := cmp.Diff(decode(t, `{"tags":["b","a","b"],"list":[{},{"x":2},{}],"id":null}`), in); d != "" {
		t.Fatalf("input changed\n%s", d)
	}

	clock += 10
	before, _ := Encode(first)
	patched, errs := s.Prepare(decode(t, `{"health":{"active":{"codes":[]}},"list":null,"updated_at":"x"}`), Options{Mode: Update, Current: first, Auto: auto})
	if errs != nil {
		t.Fatal(errs)
	}
	want["updated_at"], want["list"] = 1700000010.0, nil
	want["health"].(Record)["active"].(Record)["codes"] = []any{}
	if d := cmp.Diff(want, patched); d != "" {
		t.Fatalf("update (-want +got)\n%s", d)
	}
	if after, _ := Encode(first); string(after) != string(before) {
		t.Fatalf("stored record changed\n%s", after)
	}

	// A stored row from before a field existed gets its default, one that is gone is dropped.
	old := Record{"id": first["id"], "gone": 1.0}
	patched, errs = s.Prepare(Record{}, Options{Mode: Update, Current: old, Auto: auto})
	if errs != nil {
		t.Fatal(errs)
	}
	if _, ok := patched["gone"]; ok || patched["health"].(Record)["limit"] != 0.25 {
		t.Fatalf("old row: %v", patched)
	}

	put, errs := s.Prepare(decode(t, `{"id":"`+strings.ToUpper(first["id"].(string))+`"}`), Options{Mode: Upsert, Auto: auto})
	if errs != nil || put["id"] != first["id"] || put["tags"] != nil || put["created_at"] != 1700000010.123 {
		t.Fatalf("upsert: %v %v", put, errs)
	}
}

func TestImmutable(t *testing.T) {
	s := &Schema{Name: "s", Fields: []Field{{Name: "l", Type: Set, Immutable: true, Elem: &Field{Type: String}}, {Name: "r", Type: Foreign, Ref: "x", Immutable: true}}}
	current := decode(t, `{"l":["a","b"],"r":null}`)
	for in, want := range map[string]string{
		`{"l":["a","b","a"]}`: "",
		`{"l":["a"]}`:         "schema violation (l: immutable field cannot be updated)",
		`{"l":null}`:          "schema violation (l: immutable field cannot be updated)",
		`{"r":{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f"}}`: "",
	} {
		if _, errs := s.Prepare(decode(t, in), Options{Mode: Update, Current: current}); message(errs) != want {
			t.Errorf("%s: %s", in, message(errs))
		}
	}
}

func TestShorthandNamedLikeAField(t *testing.T) {
	// As Kong's upstreams: the algorithm follows from what is hashed.
	s := &Schema{Name: "s", Fields: []Field{{Name: "algorithm", Type: String, Default: "round-robin"}, {Name: "hash_on", Type: String, Default: "none"}},
		Shorthands: []Shorthand{{Name: "hash_on", Type: String, Expand: func(v any, _ Record) (Record, Errors) {
			switch v {
			case nil:
				return Record{"hash_on": "none"}, nil
			case "none":
				return Record{"hash_on": v, "algorithm": "round-robin"}, nil
			}
			return Record{"hash_on": v, "algorithm": "consistent-hashing"}, nil
		}}}}
	ip, errs := s.Prepare(decode(t, `{"hash_on":"ip"}`), Options{})
	if d := cmp.Diff(decode(t, `{"hash_on":"ip","algorithm":"consistent-hashing"}`), ip); d != "" || errs != nil {
		t.Errorf("%v\n%s", errs, d)
	}
	none, errs := s.Prepare(decode(t, `{"hash_on":null}`), Options{Mode: Update, Current: ip})
	if d := cmp.Diff(decode(t, `{"hash_on":"none","algorithm":"consistent-hashing"}`), none); d != "" || errs != nil {
		t.Errorf("%v\n%s", errs, d)
	}
}

// TestHugeSet would not end in time if duplicates were sought by comparing each with each.
func TestHugeSet(t *testing.T) {
	list := make([]any, 1<<18)
	for i := range list {
		list[i] = strconv.Itoa(i / 2)
	}
	rec, errs := rules.Prepare(Record{"set": list}, Options{})
	if errs != nil || len(rec["set"].([]any)) != len(list)/2 {
		t.Errorf("%v", errs)
	}
}

func TestSubSchema(t *testing.T) {
	subs := func(name string) (*Schema, bool) {
		switch name {
		case "a":
			return &Schema{Name: "a", Fields: []Field{{Name: "config", Type: RecordT, Fields: []Field{{Name: "x", Type: Integer, Default: 1}}}}}, true
		case "b":
			return &Schema{Name: "b", Fields: []Field{{Name: "extra", Type: Boolean, Null: true},
				{Name: "config", Type: RecordT, Fields: []Field{{Name: "y", Type: Integer, Default: 2}}}}}, true
		}
		return nil, false
	}
	s := &Schema{Name: "things", SubKey: "name", Fields: []Field{{Name: "name", Type: String, Required: true}, {Name: "config", Type: RecordT}, {Name: "extra", Type: Boolean}}}
	a, errs := s.Prepare(decode(t, `{"name":"a","config":{"x":5},"extra":true}`), Options{Sub: subs})
	if errs != nil {
		t.Fatal(errs)
	}
	b, errs := s.Prepare(decode(t, `{"name":"b","extra":null}`), Options{Mode: Update, Current: a, Sub: subs})
	if d := cmp.Diff(decode(t, `{"name":"b","config":{"y":2},"extra":null}`), b); d != "" || errs != nil {
		t.Fatalf("changed name: %v (-want +got)\n%s", errs, d)
	}
	for in, want := range map[string]string{
		`{"name":"b","extra":true}`:  "schema violation (extra: value must be null)",
		`{"name":"c"}`:               "schema violation (name: unknown type: c)",
		`{"name":5}`:                 "schema violation (name: expected a string)",
		`{"name":null}`:              "schema violation (name: required field missing)",
		`{"name":"a","config":3}`:    "schema violation (config: expected a record)",
		`{"name":"a","config":null}`: "schema violation (config: required field missing)",
	} {
		if _, errs := s.Prepare(decode(t, in), Options{Sub: subs}); message(errs) != want {
			t.Errorf("%s\n got %s\nwant %s", in, message(errs), want)
		}
	}
}

func TestCopyOfSchemaIsItsOwn(t *testing.T) {
	s := Schema{Name: "s", Fields: []Field{{Name: "a", Type: String}}}
	if _, errs := s.Prepare(Record{"b": "x"}, Options{}); errs == nil {
		t.Fatal("b accepted")
	}
	c := s
	c.Fields = []Field{{Name: "b", Type: String}}
	if _, errs := c.Prepare(Record{"b": "x"}, Options{}); errs != nil {
		t.Fatalf("the copy judges by the original's fields: %v", errs)
	}
}

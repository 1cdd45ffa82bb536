package schema_test

import (
	"testing"

	. "concord/fsm/schema"
)

func TestMessage(t *testing.T) {
	for _, c := range []struct {
		name string
		errs Errors
		want string
	}{
		{"order", Errors{"b": "2", "a": "1", "@entity": []any{"y", "x"}}, "4 schema violations (y; x; a: 1; b: 2)"},
		{"nested", Errors{"c": Errors{"z": "1", "@entity": []any{"e"}}}, "2 schema violations (c.@entity: {\n  \"e\"\n}; c.z: 1)"},
		{"positions", Errors{"l": []any{nil, "x", nil, "y"}}, "2 schema violations (l.2: x; l.4: y)"},
		{"records in a list", Errors{"l": []any{Errors{"ip": "bad"}}}, "schema violation (l.1: {\n  ip = \"bad\"\n})"},
		{"lists below", Errors{"c": Errors{"l": []any{"a", nil, "b"}}}, "schema violation (c.l: {\n  \"a\",\n  [3] = \"b\"\n})"},
		{"deep", Errors{"c": Errors{"r": Errors{"b-c": "1", "a": Errors{"end": "2"}}}},
			"schema violation (c.r: {\n  a = {\n    [\"end\"] = \"2\"\n  },\n  [\"b-c\"] = \"1\"\n})"},
		{"quotes", Errors{"c": Errors{"l": []any{`say "x" \`}}}, "schema violation (c.l: {\n  \"say \\\"x\\\" \\\\\"\n})"},
		{"brackets", Errors{"c": Errors{"l": []any{"re [a]"}}}, "schema violation (c.l: {\n  [=[re [a]]=]\n})"},
		{"line breaks", Errors{"c": Errors{"l": []any{"a\nb"}}}, "schema violation (c.l: {\n  [[a\nb]]\n})"},
		{"control characters", Errors{"c": Errors{"l": []any{"\x01\x019\x7f\r"}}}, "schema violation (c.l: {\n  \"\\1\\0019\\127\\r\"\n})"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.errs.Message(); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	var err error = EntityError("x")
	if err.Error() != "schema violation (x)" {
		t.Error(err)
	}
}

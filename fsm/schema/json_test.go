package schema_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "concord/fsm/schema"
)

func TestDecode(t *testing.T) {
	nested := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	for _, c := range []struct{ name, in, err string }{
		{"object", `{"a":[1,{"b":null}]}`, ""},
		{"surrounded by blanks", " {} \n", ""},
		{"limit of depth", nested(MaxDepth), ""},
		{"too deep", nested(MaxDepth + 1), "deeper than 100"},
		{"deep list", `{"a":` + strings.Repeat("[", 100000), "deeper than 100"},
		{"brackets in text", `{"a":"` + strings.Repeat("[", 200) + `\"[["}`, ""},
		{"list", `[1]`, "invalid JSON"},
		{"text", `"x"`, "invalid JSON"},
		{"null", `null`, "expected an object"},
		{"empty", ``, "invalid JSON"},
		{"cut", `{"a":`, "invalid JSON"},
		{"more than one", `{} {}`, "invalid JSON"},
		{"trailing comma", `{"a":1,}`, "invalid JSON"},
		{"broken UTF-8", "{\"a\":\"\xff\"}", "not UTF-8"},
		{"surrogate pair", `{"a":"\ud83d\ude00 \\ud83d \u00e9"}`, ""},
		{"first half", `{"a":"\ud83d"}`, "half a surrogate"},
		{"first half twice", `{"a":"\uD83D\ud83d"}`, "half a surrogate"},
		{"second half", `{"a":"x\uDE00"}`, "half a surrogate"},
		{"number out of range", `{"a":1e999}`, "invalid JSON"},
		{"no number", `{"a":NaN}`, "invalid JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Decode([]byte(c.in))
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want %q", err, c.err)
			}
		})
	}
	if rec := decode(t, `{"a":{"x":1},"a":{"y":2}}`); cmp.Diff(Record{"a": Record{"y": 2.0}}, rec) != "" {
		t.Errorf("repeated key: %v", rec)
	}
}

func TestEncode(t *testing.T) {
	got, err := Encode(Record{"z": nil, "a": []any{1.0, 0.5, true, "<&>é\u2028\""}, "m": Record{"b": 1700000000.0, "a": Record{}}})
	want := `{"a":[1,0.5,true,"<&>é\u2028\""],"m":{"a":{},"b":1700000000},"z":null}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	if _, err := Encode(Record{"f": func() {}}); err == nil {
		t.Error("a function was encoded")
	}
}

// FuzzDecode: what Decode accepts, Encode writes back unchanged in meaning and canonically.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":[{"b":"\u0000\ud800"}],"c":1e-7}`, `{"a":"\\\"["}`, `[`, "{\"\xff\":1}", `{"a":1,"a":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := Decode(data)
		if err != nil {
			return
		}
		text, err := Encode(rec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if d := cmp.Diff(rec, again); d != "" {
			t.Fatalf("changed\n%s", d)
		}
		if second, _ := Encode(again); string(second) != string(text) {
			t.Fatalf("not canonical: %s, %s", text, second)
		}
	})
}

package schema

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// What is plain is read and written as encoding/json would.
func TestPlain(t *testing.T) {
	for _, text := range []string{
		`{}`, ` { "a" : [ ] , "b" : [ 1 , -20 , { } ] , "\u00e9" : { "x" : null } , "c" : true , "d" : false } `, `{"a":"\u00e9","b":999999999999999}`,
		"{\"caf\u00e9\":\"\u2028 <&>\",\"a\":\"\x7f\"}", `{"a":1,"a":[2]}`, `{"a":0}`, strings.Repeat(`{"a":`, MaxDepth-1) + "[]" + strings.Repeat("}", MaxDepth-1),
	} {
		checkPlain(t, []byte(text))
	}
	for _, text := range []string{
		``, ` `, `[]`, `null`, `{`, `{"a"`, `{"a":`, `{"a":}`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{,}`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1}`, `{"a":tru}`, `{"a":nul`, `{} {}`, "{}\x00", "{\x00}",
		`{"a":01}`, `{"a":-}`, `{"a":+1}`, `{"a":1.}`, `{"a":1e}`, `{"a":--1}`, `{a:1}`, `{"a" 1}`, "{\"a\":\"\n\"}", `{"a":"\x"}`, `{"a":"\ud83d"}`,
		strings.Repeat(`{"a":`, MaxDepth) + "[]" + strings.Repeat("}", MaxDepth), strings.Repeat(`{"a":`, MaxDepth) + "{}" + strings.Repeat("}", MaxDepth),
	} {
		if rec, ok := plainRecord([]byte(text)); ok {
			t.Errorf("%q was read as %v", text, rec)
		}
		checkPlain(t, []byte(text))
	}
	for _, v := range []any{nil, 1.5, -0.5, 1e15, 1e300, []string{"a"}, 7, "\x7f", "\u2028", Record(nil), []any(nil), Record{"<": ">"}, []any{Record{"b": 1.0, "a": -1.0}}} {
		rec := Record{"v": v}
		want, err := encodeAny(rec)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Encode(rec); err != nil || string(got) != string(want) {
			t.Errorf("%v: %v, %s, want %s", v, err, got, want)
		}
	}
	loop := Record{}
	loop["a"] = loop
	if _, err := Encode(loop); err == nil {
		t.Error("a record that contains itself was encoded")
	}
}

func checkPlain(t *testing.T, text []byte) {
	t.Helper()
	if !utf8.Valid(text) {
		return
	}
	want, err := decodeAny(text)
	if got, ok := plainRecord(text); ok && (err != nil || cmp.Diff(want, got) != "") {
		t.Errorf("%q: read %v, want %v, %v", text, got, want, err)
	}
	if err != nil {
		return
	}
	canonical, err := encodeAny(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := appendPlain(nil, want, 0); ok && string(got) != string(canonical) {
		t.Errorf("written %s, want %s", got, canonical)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add([]byte(`{"a":[1,-2.5e3,"x\u00e9",null,{"b":true}],"\"":0}`))
	f.Fuzz(func(t *testing.T, text []byte) { checkPlain(t, text) })
}

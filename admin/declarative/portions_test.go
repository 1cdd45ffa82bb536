package declarative

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"concord/fsm/schema"
)

// samePortions compares with the decoder that takes the text as a whole.
func samePortions(t *testing.T, text string, limit int) {
	t.Helper()
	want, err := schema.Decode([]byte(text))
	got := decodePortions([]byte(text), limit, func() {})
	if got == nil {
		return // schema.Decode judges
	}
	if err != nil {
		t.Errorf("limit %d: took %q as %v, which has %v", limit, text, got, err)
	} else if !reflect.DeepEqual(want, got) { // cmp takes for ever where values are nested deep
		t.Errorf("limit %d: %q is %v, want %v", limit, text, got, want)
	}
}

func TestPortions(t *testing.T) {
	nested := func(n int) string {
		return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}"
	}
	var long strings.Builder
	for i := range 300 {
		fmt.Fprintf(&long, `%s{"username":"user-%d","tags":["a,]}","\"\\"],"n":[1,-2.5e3,null,true,{}]}`, strings.Repeat(",", min(i, 1)), i)
	}
	for name, text := range map[string]string{
		"empty": "{}", "spaces": " \n{ \t} ", "scalars": `{"a":1,"b":-0.5e2,"c":null,"d":true,"e":"x"}`, "escapes": `{"\u0061\"}":"\ud83d\ude00\\"}`,
		"twice": `{"a":1,"b":[{"c":1,"c":2}],"a":[3]}`, "twice large": `{"aaaaaaaaaaaaaaaa":[1,2,3],"b":1,"aaaaaaaaaaaaaaaa":[4]}`, "no name": `{"":[1,2,3,4,5,6,7,8,9]}`,
		"long text": `{"a":"` + strings.Repeat("x", 50) + `","b":["` + strings.Repeat(",", 50) + `",2]}`, "deep": nested(99), "list": `{"_a":[` + long.String() + `],"b":{"c":[` + long.String() + `]}}`,
	} {
		for _, limit := range []int{1, 2, 7, 30, 500, portion} {
			samePortions(t, text, limit)
			if decodePortions([]byte(text), limit, func() {}) == nil && limit >= len("{ \t} ") {
				t.Errorf("%s, limit %d: refused", name, limit)
			}
		}
	}
	for _, text := range []string{
		"", "null", "[]", "1", "{", "}", "{}}", "{} x", "{,}", `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1,,2]}`, `{"a":[1}`, `{"a":{"b":1]}`, `{"a":[1,   ]}`,
		`{"a":1 "b":2}`, `{a:1}`, `{"a":[1 2]}`, `{"a":"b`, `{"a":[{"b":"c"},{"b":]}`, `{"a":"\ud800"}`, `{"a":"\x"}`, "{\"a\":\"\xff\"}", "{\"a\":\"\n\"}", `{"a":1e999}`, nested(100), `{"a":[[[[[[[[[[[`,
		"\ufeff{}", `{"a":[],"b":[1,2],"c":[1,2]]}`, `{"":[1],"b":2]}`, `{"a":[1],"":[2]`, `{"aaaaaaaaaa" :[1,2,3,4,5] ,"b":tru}`, `{"a":[],` + strings.Repeat(" ", 40) + `}`,
	} {
		for _, limit := range []int{1, 2, 7, 30, portion} {
			if got := decodePortions([]byte(text), limit, func() {}); got != nil {
				t.Errorf("limit %d: took %q as %v", limit, text, got)
			}
		}
	}
}

func FuzzPortions(f *testing.F) {
	f.Add(`{"a":[1,{"b":"c,]"},[]],"d":{"e":[true,null]},"a":"\u00e4"}`, 4)
	f.Add(`{"a":[[[1,2],[3]],[ ],[ 1 , 2 ]],"b":{"c":{"d":{}}}} `, 2)
	f.Add(`{"a":[1,],"b":"\ud800"}`, 3)
	f.Fuzz(func(t *testing.T, text string, limit int) { samePortions(t, text, max(1, limit%64)) })
}

// Who reads a large document may rest all along.
func TestReadWithRests(t *testing.T) {
	var list strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&list, "- {\"username\": \"user-%d\"}\n", i)
	}
	yaml := "_format_version: '3.0'\nconsumers:\n" + list.String()
	json := `{"_format_version":"3.0","consumers":[` + strings.Join(strings.Split(strings.TrimSpace(list.String()), "\n")[1:], ",") + "]}"
	for name, text := range map[string]string{"YAML": yaml, "JSON": strings.ReplaceAll(json, "- ", "")} {
		rests := 0
		tree, err := ReadWith([]byte(text), func() { rests++ })
		if err != nil || rests < len(text)/(2*portion) {
			t.Fatalf("%s: %v, %d rests in %d bytes", name, err, rests, len(text))
		}
		rests = 0
		if doc, errs := layout().RowsWith(tree, func() { rests++ }); errs != nil || rests != len(doc.Rows) {
			t.Errorf("%s: %v, %d rests for %d rows", name, errs, rests, len(doc.Rows))
		}
	}
}

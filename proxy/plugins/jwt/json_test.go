package jwt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzObject compares the parser with encoding/json: what it accepts means the same there, and what it refuses is refused there
// or for a reason that is listed.
func FuzzObject(f *testing.F) {
	for _, s := range []string{
		`{}`, ` { "a" : 1 , "b":[1,2,{"c":null}] } `, `{"a":"\u00e9\ud83d\ude00\n"}`, `{"a":1e400}`, `{"a":-0.5E+2}`, `{"a":"\ud800"}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`,
		`{"a":tru}`, `{"a":01}`, `[]`, `null`, "{\"a\":\"\x01\"}", "{\"\xff\":1}", `{"":""}`, `{"a":{"b":1,"b":2}}`, `{"a":[` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `]}`,
		`{"a":1}}`, `{"a":1`, `{"a"`, `{"a":`, `{`, ``, `{"a":-}`, `{"a":1.}`, `{"a":1e}`, "{\"a\":1}\x00", "{\x00}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := object(data, nil)
		var oracle map[string]json.RawMessage
		refused := json.Unmarshal(data, &oracle) != nil || oracle == nil
		if err != nil {
			if !refused && !stricter(data, oracle) {
				t.Fatalf("%q is refused without a listed reason", data)
			}
			return
		}
		if refused {
			t.Fatalf("%q is accepted, encoding/json refuses it", data)
		}
		if len(list) != len(oracle) {
			t.Fatalf("%q has %d members, encoding/json finds %d", data, len(list), len(oracle))
		}
		for _, m := range list {
			want, ok := oracle[string(m.name)]
			if !ok || !bytes.Equal(want, m.raw) {
				t.Fatalf("%q: member %q is %q, encoding/json has %q", data, m.name, m.raw, want)
			}
			var v any
			fails := json.Unmarshal(want, &v) != nil
			switch m.kind {
			case kindString:
				if fails || v != string(m.text()) {
					t.Fatalf("%q: %q is %q, encoding/json has %q", data, m.name, m.text(), v)
				}
			case kindNumber:
				n, ok := m.number()
				if fails == ok || ok && v != n {
					t.Fatalf("%q: %q is %v, encoding/json has %v", data, m.name, n, v)
				}
			}
		}
	})
}

// stricter tells whether one of the parser's own rules refuses an object.
func stricter(data []byte, oracle map[string]json.RawMessage) bool {
	if !utf8.Valid(data) || len(oracle) > maxMembers {
		return true
	}
	d := json.NewDecoder(bytes.NewReader(data))
	depth, deepest, names := 0, 0, 0
	inName := true
	for {
		tok, err := d.Token()
		if err != nil {
			break
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
			inName = true
			continue
		case json.Delim('}'), json.Delim(']'):
			depth--
		default:
			if depth == 1 && inName {
				names++
				inName = false
				continue
			}
		}
		if depth == 1 {
			inName = true
		}
	}
	// A lone surrogate becomes U+FFFD in encoding/json.
	return names > len(oracle) || deepest > maxDepth || bytes.Contains(bytes.ToLower(data), []byte(`\ud`))
}

// FuzzParse looks for panics and for a token whose parts the parser understands otherwise than encoding/base64 does.
func FuzzParse(f *testing.F) {
	f.Add(raw(`{"alg":"HS256","typ":"JWT"}`, `{"iss":"a","exp":1}`))
	f.Add("a.b.c")
	f.Add("..")
	f.Add(enc(`{"alg":"EdDSA"}`) + "." + enc(`{}`) + ".")
	f.Add(enc(`{"alg":"none"}`) + "." + enc(`{}`) + "." + strings.Repeat(".", 100))
	f.Fuzz(func(t *testing.T, text string) {
		var tok token
		if tok.parse(text) != nil {
			return
		}
		parts := strings.Split(text, ".")
		if len(parts) != 3 {
			t.Fatalf("%d parts", len(parts))
		}
		if string(tok.signed) != parts[0]+"."+parts[1] {
			t.Fatal("signed text differs")
		}
		for _, p := range parts {
			if b, err := base64.RawURLEncoding.Strict().DecodeString(p); err != nil || enc(string(b)) != p {
				t.Fatalf("%q has another spelling", p)
			}
		}
		if enc(string(tok.sig)) != parts[2] || algorithmOf([]byte(tok.alg.name)) != tok.alg {
			t.Fatal("signature or algorithm differs")
		}
	})
}

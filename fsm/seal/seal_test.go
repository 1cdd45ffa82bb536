package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func ring(t testing.TB, current string, ids ...string) *Keyring {
	t.Helper()
	keys := map[string][]byte{}
	for _, id := range ids {
		keys[id] = bytes.Repeat([]byte(id[:1]), KeySize)
	}
	k, err := New(current, keys)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// canonical is JSON as rows are stored: keys sorted, no HTML escapes.
func canonical(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(b.Bytes())
}

var row1, row2 = [16]byte{1}, [16]byte{2}

func sealed(t testing.TB, k *Keyring, clear string) any {
	t.Helper()
	v, err := k.Seal(5, row1, clear)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRoundTrip(t *testing.T) {
	k := ring(t, "a", "a")
	for _, clear := range []string{"", "secret", `quote " and \ and {"$sealed":"x"}`, "<&>\u2028\x00\x1f", "日本", strings.Repeat("long", 5000)} {
		rec := map[string]any{"a": sealed(t, k, clear), "list": []any{sealed(t, k, clear), "open"}, "z": map[string]any{"s": sealed(t, k, "2"+clear)}}
		raw := canonical(t, rec)
		if clear == "secret" && bytes.Contains(raw, []byte(clear)) {
			t.Errorf("clear text in %s", raw)
		}
		got, err := k.Open(5, row1, raw)
		if err != nil {
			t.Fatal(err)
		}
		want := canonical(t, map[string]any{"a": clear, "list": []any{clear, "open"}, "z": map[string]any{"s": "2" + clear}})
		if !bytes.Equal(got, want) {
			t.Errorf("opened %s, want %s", got, want)
		}
	}
	plain := []byte(`{"a":"b"}`)
	if got, err := k.Open(5, row1, plain); err != nil || &got[0] != &plain[0] {
		t.Errorf("a row without secrets is copied: %s %v", got, err)
	}
}

func TestSealIsDeterministicAndBound(t *testing.T) {
	k := ring(t, "a", "a")
	text := func(table uint16, id [16]byte, clear string) string {
		v, err := k.Seal(table, id, clear)
		if err != nil {
			t.Fatal(err)
		}
		return string(canonical(t, v))
	}
	base := text(5, row1, "x")
	if base != text(5, row1, "x") {
		t.Error("the same secret in the same row gives other bytes")
	}
	for name, other := range map[string]string{"text": text(5, row1, "y"), "table": text(6, row1, "x"), "row": text(5, row2, "x")} {
		if other[:30] == base[:30] { // the nonce is in front
			t.Errorf("another %s has the same nonce", name)
		}
	}
	for name, open := range map[string]func() ([]byte, error){
		"moved to another row":   func() ([]byte, error) { return k.Open(5, row2, []byte(base)) },
		"moved to another table": func() ([]byte, error) { return k.Open(6, row1, []byte(base)) },
		"other key under its id": func() ([]byte, error) {
			other, _ := New("a", map[string][]byte{"a": bytes.Repeat([]byte("o"), KeySize)})
			return other.Open(5, row1, []byte(base))
		},
	} {
		if _, err := open(); err == nil || !strings.Contains(err.Error(), "does not open") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := len(Opening) + 2; i < len(base)-len(closing); i++ {
		bad := []byte(base)
		if bad[i]++; bad[i] == '"' {
			continue
		}
		if got, err := k.Open(5, row1, bad); err == nil {
			t.Errorf("byte %d altered: opened as %s", i, got)
		}
	}
}

func TestRotation(t *testing.T) {
	old, both := ring(t, "a", "a"), ring(t, "b", "a", "b")
	raw := canonical(t, []any{sealed(t, old, "1"), sealed(t, both, "2")})
	if got, err := both.Open(5, row1, raw); err != nil || string(got) != `["1","2"]` {
		t.Errorf("%s %v", got, err)
	}
	var missing *MissingKeyError
	if _, err := old.Open(5, row1, raw); !errors.As(err, &missing) || missing.Key != "b" {
		t.Errorf("missing key: %v", err)
	}
}

// Whatever text a user stores, Open finds in the canonical row only what Seal made.
func FuzzForgery(f *testing.F) {
	k := ring(f, "a", "a")
	made := string(canonical(f, sealed(f, k, "stolen")))
	f.Add(made, made)
	f.Add(`{`, `$sealed":"a.AAAA"}`)
	f.Add(`a{`, made[1:])
	f.Add(`\{"$sealed":"`, `\`)
	f.Add(`{\`, `"$sealed":"`)
	f.Fuzz(func(t *testing.T, key, text string) {
		if strings.HasPrefix(key, "$") {
			return // refused by schemas
		}
		raw := canonical(t, map[string]any{key: text, "list": []any{text, key, map[string]any{key: text}}, text + "x": key})
		if strings.HasPrefix(text, "$") {
			raw = canonical(t, map[string]any{key: text, "list": []any{text, key}})
		}
		got, err := k.Open(5, row1, raw)
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("row %s became %s, %v", raw, got, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := ring(f, "a", "a")
	f.Add([]byte(`{"$sealed":"a.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Add([]byte(`{"$sealed":"`))
	f.Add([]byte(`{"$sealed":"b."}{"$sealed":"`))
	f.Add(canonical(f, sealed(f, k, "x")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, err := k.Open(5, row1, raw); err == nil && bytes.Contains(got, []byte(Opening)) && !bytes.Contains(got, []byte(`\"`)) {
			t.Errorf("%s left %s", raw, got)
		}
	})
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, err := Generate(bytes.NewReader(bytes.Repeat([]byte("r"), KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // also over an existing file
		if err := k.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".keys-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	loaded, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	raw := canonical(t, sealed(t, k, "x"))
	if got, err := loaded.Open(5, row1, raw); err != nil || string(got) != `"x"` {
		t.Errorf("the loaded keyring opens %s, %v", got, err)
	}
	if s := k.String(); strings.Contains(s, "rrrr") || !strings.Contains(s, k.current) {
		t.Errorf("String is %s", s)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others may read: %v", err)
	}
	if err := k.Save(filepath.Join(path, "no", "such")); err == nil {
		t.Error("Save into nowhere works")
	}
}

func TestBadKeys(t *testing.T) {
	good := bytes.Repeat([]byte("k"), KeySize)
	for _, c := range []struct {
		name, current string
		keys          map[string][]byte
		text          string
	}{
		{"none", "a", nil, `current key "a" is not among the keys`},
		{"short", "a", map[string][]byte{"a": good[1:]}, "has 31 bytes, must have 32"},
		{"id", "a.b", map[string][]byte{"a.b": good}, `key id "a.b"`},
	} {
		if _, err := New(c.current, c.keys); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := Decode([]byte("{")); err == nil {
		t.Error("half a file is a keyring")
	}
	if _, err := Generate(bytes.NewReader(nil)); err == nil {
		t.Error("a key without randomness")
	}
}

func BenchmarkOpen(b *testing.B) {
	k := ring(b, "a", "a")
	raw := canonical(b, map[string]any{"id": "x", "key": sealed(b, k, strings.Repeat("k", 32))})
	for b.Loop() {
		if _, err := k.Open(5, row1, raw); err != nil {
			b.Fatal(err)
		}
	}
}

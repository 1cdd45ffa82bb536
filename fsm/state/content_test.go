package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// wide has fields of all forms that are set without encoding/json, and of some that are not.
type wide struct {
	ID     string              `json:"id"`
	Text   string              `json:"text"`
	Number float64             `json:"number"`
	Int    int                 `json:"int"`
	IntPtr *int                `json:"int_ptr"`
	Bool   bool                `json:"bool"`
	Maybe  *bool               `json:"maybe"`
	Tags   []string            `json:"tags"`
	Map    map[string][]string `json:"map"`
	Raw    json.RawMessage     `json:"raw"`
	Small  int8                `json:"small"`
	Quoted int                 `json:"quoted,string"`
	Ref    entity.Ref          `json:"ref"`
	RefPtr *entity.Ref         `json:"ref_ptr"`
}

func wideStore(t testing.TB) *Store {
	return New([]entity.Def{{Table: 7, New: func() any { return new(wide) }, Schema: &schema.Schema{Name: "wide", Fields: []schema.Field{
		{Name: "text", Unique: true}, {Name: "int", Unique: true}, {Name: "ref", Type: schema.Foreign}, {Name: "tags"},
	}}}}, keyring(t))
}

// A row reads as encoding/json reads it, and its JSON comes back to the byte.
func FuzzRow(f *testing.F) {
	sealed := func(clear string) string {
		v, _ := keyring(f).Seal(7, id(1), clear)
		text, _ := json.Marshal(v)
		return string(text)
	}
	own := `{"id":"` + id(1).String() + `"`
	for _, s := range []string{
		`{}`, `{"a":1}`, own + `}`, own + `,"text":"x"}`, `{"id":"` + id(2).String() + `"}`, `{"id":""}`, `{"id":null}`, `{"id":5}`,
		`{"text":"` + strings.Repeat("long ", 50) + `"}`, `{"text":"\u0041"}`, `{"text":"a\nb\"\\ü<>&` + "\u2028" + `"}`, `{"text":"\u2028\u0001"}`, "{\"text\":\"\xff\"}", `{"text":7}`, `{"text":null}`,
		`{"text":` + sealed("secret") + `}`, `{"text":` + sealed("ü\n\"") + `}`, `{"text":` + sealed("") + `}`, `{"text":{"$sealed":"k.AAAA"}}`, `{"text":{"$sealed":"zz.AAAA"}}`, `{"text":{"$sealed":"k"}}`, `{"text":{"$sealed":"k`,
		`{"number":0}`, `{"number":-0}`, `{"number":-1.5e3}`, `{"number":123456789012345}`, `{"number":1234567890123456}`, `{"number":1e999}`, `{"number":01}`, `{"number":-}`, `{"number":1700000000.123}`, `{"number":"1"}`, `{"number": 1}`, `{"int": 1}`, `{"int":1 }`,
		`{"int":-42,"int_ptr":7}`, `{"int":1.5}`, `{"int":1e2}`, `{"int_ptr":null}`, `{"int":99999999999999999999}`, `{"small":1}`, `{"small":300}`, `{"quoted":"5"}`, `{"quoted":5}`,
		`{"bool":true,"maybe":false}`, `{"bool":false,"maybe":true}`, `{"bool":null,"maybe":null}`, `{"bool":1}`,
		`{"tags":[]}`, `{"tags":["a"]}`, `{"tags":["a","b","a"]}`, `{"tags":["a\"b","ü"]}`, `{"tags":["a", "b"]}`, `{"tags":[1]}`, `{"tags":["a",]}`, `{"tags":"a"}`, `{"tags":null}`, `{"tags":[",","]"]}`, `{"tags":[""]}`,
		`{"ref":{"id":"` + id(3).String() + `"},"ref_ptr":{"id":"X"}}`, `{"ref":null,"ref_ptr":null}`, `{"ref":{"id":"a","b":1}}`, `{"ref":{"id":null}}`, `{"ref":{}}`, `{"ref_ptr":{}}`, `{"ref":{"id":"\u0061"}}`, `{"ref":{"Id":"A"}}`, `{"ref":{"id":"a","ID":"b"}}`, `{"ref":{"ID":1}}`,
		`{"map":{"a":["b"]},"raw":{"b":[1,{"c":"}"}]}}`, `{"raw":null}`, `{"raw":[1,2]}`, `{"raw":["a"]}`, `{"raw":{"id":"x"}}`, `{"raw":1.50}`, `{"raw":"x"}`, `{"raw":{"a":` + sealed("deep") + `}}`, `{"raw":true}`,
		`{"Text":"x"}`, `{"text":"a","text":"b"}`, `{"text":"a","a":{}}`, `{ "text":"a"}`, `{"text" :"a"}`, `{"text": "a"}`, `{"text":"a" }`, `{"text":"a"} `, `{"te\u0078t":"a"}`, `{"text":"a"`, `{"text":}`, `{"text"`, `{"text":tru}`, `{"text":nul}`, `null`, `[]`, `"x"`, ``, `{"":1}`, `{"$sealed":""}`, `{"a":1,"$sealed":"k.x"}`,
	} {
		f.Add([]byte(s))
	}
	ring := keyring(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := wideStore(t)
		tx := s.Begin()
		d, err := tx.Decode(7, AnyRow{ID: id(1), Index: 9, ExpiresAt: 5, Raw: raw})
		clear, failed := ring.Open(7, id(1), raw)
		var want wide
		if failed == nil {
			failed = json.Unmarshal(clear, &want)
		}
		if err != nil {
			tx.Abort()
			if failed != nil {
				return
			}
			for _, why := range []string{"must be written", "field id: is", "not UTF-8"} {
				if strings.Contains(err.Error(), why) {
					return
				}
			}
			rec, failed := schema.Decode(raw)
			canonical, _ := schema.Encode(rec)
			for name := range rec {
				if strings.HasPrefix(name, "$") || plainString([]byte(`"`+name+`"`)) != len(name)+2 {
					return
				}
			}
			if failed == nil && bytes.Equal(raw, canonical) || !errors.Is(err, errCanonical) && !strings.Contains(err.Error(), "occurs twice") {
				t.Fatalf("%s is refused: %v", raw, err)
			}
			return
		}
		if failed != nil {
			t.Fatalf("%s is taken: %v", raw, failed)
		}
		tx.Set(d)
		tx.Commit(9, nil)
		row, ok := TableOf[wide](s).Get(s.View(), id(1))
		if !ok || row.ID != id(1) || row.Index != 9 || row.ExpiresAt != 5 || !reflect.DeepEqual(row.Val, want) {
			t.Fatalf("%s (-want +got):\n%s", raw, cmp.Diff(want, row.Val))
		}
		table, _ := s.Table("wide")
		anyRow, _ := table.Get(s.View(), id(1))
		if !bytes.Equal(anyRow.Raw, raw) || !reflect.DeepEqual(anyRow.Val, &want) {
			t.Fatalf("%s came back as %s, %+v", raw, anyRow.Raw, anyRow.Val)
		}
		for index, key := range map[string]string{"text": want.Text, "ref": strings.ToLower(want.Ref.ID), "tags": strings.Join(want.Tags[:min(1, len(want.Tags))], "")} {
			if _, ok := table.By(s.View(), index, key); ok != (key != "") {
				t.Fatalf("%s: By(%s, %q) is %v", raw, index, key, ok)
			}
		}
	})
}

func FuzzReadID(f *testing.F) {
	f.Add([]byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var x ID
		copy(x[:], b)
		text := x.text()
		if got := readID(text[:]); got != x {
			t.Errorf("%s was read as %s", x, got)
		}
	})
}

// Packing a table of many rows changes no answer, of the view before or of one after more changes.
func TestManyRows(t *testing.T) {
	s, names := credentials(t, many+1000)
	table, w := TableOf[entity.KeyAuthCredential](s), s.work[0]
	before, random := s.View(), rand.New(rand.NewPCG(7, 8))
	changed := slices.Clone(names)
	for commit := range uint64(100) {
		tx := s.Begin()
		for range 10 {
			i := random.IntN(len(names))
			var x ID
			copy(x[:], mix(uint64(i)))
			changed[i] = fmt.Sprint("new", i, "-", commit)
			raw, _ := json.Marshal(entity.KeyAuthCredential{ID: x.String(), Consumer: entity.Ref{ID: x.String()}, Key: changed[i]})
			d, err := tx.Decode(6, AnyRow{ID: x, Index: commit + 2, Raw: raw})
			if err != nil {
				t.Fatal(err)
			}
			tx.Set(d)
		}
		tx.Commit(commit+2, nil)
		if commit%25 == 3 {
			was := s.View()
			s.Pack()
			if v := s.View(); v.Index() != was.Index() || w.trees[byID].root.loose()+w.hashes[byID].loose()+w.hashes[byIndex].loose() > 0 {
				t.Fatalf("commit %d: not all lies in blocks, or the index is %d", commit, v.Index())
			}
		}
	}
	for i := range names {
		for _, c := range []struct {
			v   *View
			key string
		}{{before, names[i]}, {s.View(), changed[i]}} {
			row, ok := table.By(c.v.At(1), "key", c.key)
			byID, found := table.Get(c.v, row.ID)
			if !ok || !found || byID.Val.Key != c.key || row.Val.Key != c.key {
				t.Fatalf("view %d: key %s: %+v, by its id %+v", c.v.Index(), c.key, row, byID)
			}
		}
	}
	if n := len(slices.Collect(table.All(s.View()))); n != len(names) {
		t.Errorf("%d rows, want %d", n, len(names))
	}
}

// Rows come, change and go for long; what is left is found, old views stay, and the memory does not grow.
func TestChurn(t *testing.T) {
	type row struct {
		text, ref string
		expires   int64
	}
	random := rand.New(rand.NewPCG(5, 6))
	s := wideStore(t)
	table := TableOf[wide](s)
	have := map[ID]row{}
	check := func(v *View, have map[ID]row) {
		t.Helper()
		n := 0
		var last ID
		for r := range table.All(v) {
			want, ok := have[r.ID]
			by, found := table.By(v, "text", want.text)
			if !ok || r.Val.Text != want.text || r.ExpiresAt != want.expires || !found || by.ID != r.ID || compareID(&last, &r.ID) >= 0 {
				t.Fatalf("view %d: row %+v, want %+v, by its text %+v", v.Index(), r, want, by)
			}
			last = r.ID
			n++
		}
		refs := map[string]int{}
		for _, r := range have {
			refs[r.ref]++
		}
		for ref, want := range refs {
			if got := len(collect(table, v, "ref", ref)); got != want {
				t.Fatalf("view %d: %d rows with ref %s, want %d", v.Index(), got, ref, want)
			}
		}
		if n != len(have) || table.Len(v) != n {
			t.Fatalf("view %d has %d rows, Len %d, want %d", v.Index(), n, table.Len(v), len(have))
		}
	}
	type version struct {
		v    *View
		have map[ID]row
	}
	var old []version
	for commit := range uint64(4000) {
		tx := s.Begin()
		for range random.IntN(20) {
			x := id(random.IntN(500))
			if random.IntN(3) == 0 && commit < 3900 {
				if _, found := have[x]; tx.Delete(7, x) != found {
					t.Fatalf("Delete(%s) found %v", x, !found)
				}
				delete(have, x)
				continue
			}
			r := row{text: fmt.Sprint(x, random.Uint64(), strings.Repeat("x", random.IntN(600))), ref: fmt.Sprint("r", random.IntN(5)), expires: random.Int64N(3)}
			d, err := tx.Decode(7, AnyRow{ID: x, Index: commit + 1, ExpiresAt: r.expires, Raw: []byte(`{"ref":{"id":"` + r.ref + `"},"text":"` + r.text + `"}`)})
			if err != nil {
				t.Fatal(err)
			}
			mark := tx.Mark()
			tx.Set(d)
			if random.IntN(4) == 0 {
				tx.Rollback(mark)
				continue
			}
			have[x] = r
		}
		if commit == 2000 {
			d, err := tx.Decode(7, AnyRow{ID: id(900), Raw: []byte(`{"text":"` + strings.Repeat("y", 5*slabSize) + `"}`)})
			if err != nil {
				t.Fatal(err)
			}
			tx.Set(d)
			tx.Delete(7, id(900))
		}
		tx.Commit(commit+1, nil)
		if commit%400 == 0 {
			copied := map[ID]row{}
			for x, r := range have {
				copied[x] = r
			}
			old = append(old, version{s.View(), copied})
		}
	}
	for _, x := range append(old, version{s.View(), have}) {
		check(x.v, x.have)
	}
	w := s.work[0]
	size, live := 0, 0
	for i, b := range w.slabs {
		size += len(b)
		live += w.live[i]
	}
	if size > 2*live+2*slabSize || len(w.slabs) > 30 {
		t.Errorf("%d slabs of %d bytes for rows of %d", len(w.slabs), size, live)
	}
}

func collect[T any](t *Table[T], v *View, index, key string) (list []Row[T]) {
	for r := range t.Scan(v, index, key) {
		list = append(list, r)
	}
	return list
}

func TestLoad(t *testing.T) {
	raw := func(text string) []byte { return []byte(`{"tags":["a","b"],"text":"` + text + `"}`) }
	load := func(s *Store, rows ...AnyRow) error {
		l := s.BeginLoad(keyring(t))
		for _, r := range rows {
			d, err := l.Decode(7, r)
			if err == nil {
				err = l.Add(d)
			}
			if err != nil {
				l.Abort()
				return err
			}
		}
		if err := l.Build(); err != nil {
			l.Abort()
			return err
		}
		l.Commit(50, "aux")
		return nil
	}
	s := wideStore(t)
	if err := load(s, AnyRow{ID: id(1), Raw: raw("one")}, AnyRow{ID: id(2), Raw: raw("two")}); err != nil {
		t.Fatal(err)
	}
	before := s.View()
	for name, c := range map[string]struct {
		rows []AnyRow
		want string
	}{
		"out of order": {[]AnyRow{{ID: id(2), Raw: raw("x")}, {ID: id(1), Raw: raw("y")}}, id(1).String() + " comes behind " + id(2).String()},
		"twice":        {[]AnyRow{{ID: id(2), Raw: raw("x")}, {ID: id(2), Raw: raw("y")}}, id(2).String() + " comes behind " + id(2).String()},
		"one key":      {[]AnyRow{{ID: id(1), Raw: raw("x")}, {ID: id(2), Raw: raw("y")}, {ID: id(3), Raw: raw("x")}}, id(1).String() + " and " + id(3).String() + " have the same text"},
		"no row":       {[]AnyRow{{ID: id(1), Raw: []byte("{")}}, "unexpected end of JSON input"},
	} {
		if err := load(s, c.rows...); err == nil || !strings.Contains(err.Error(), c.want) || s.View() != before {
			t.Errorf("%s: %v", name, err)
		}
	}
	var rows []AnyRow
	for i := range 5000 {
		rows = append(rows, AnyRow{ID: id(i + 1), Index: 3, ExpiresAt: int64(i % 2), Raw: raw(fmt.Sprint("t", i))})
	}
	if err := load(s, rows...); err != nil {
		t.Fatal(err)
	}
	table, v := TableOf[wide](s), s.View()
	if v.Index() != 50 || v.Aux() != "aux" || table.Len(v) != 5000 || len(collect(table, v, "tags", "b")) != 5000 || len(collect(table, v.At(1), "tags", "b")) != 2500 || !v.Due(2) || v.Due(1) {
		t.Errorf("view %d with %d rows", v.Index(), table.Len(v))
	}
	for i := range 5000 {
		if r, ok := table.By(v, "text", fmt.Sprint("t", i)); !ok || r.ID != id(i+1) {
			t.Fatalf("row %d: %v", i, r)
		}
	}
}

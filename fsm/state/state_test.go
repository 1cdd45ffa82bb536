package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/test/harness"
)

type book struct {
	ID     string      `json:"id"`
	Title  string      `json:"title"`
	Number *int        `json:"number"`
	Price  float64     `json:"price"`
	Lent   bool        `json:"lent"`
	Shelf  entity.Ref  `json:"shelf"`
	Series *entity.Ref `json:"series"`
	Tags   []string    `json:"tags"`
}

type shelf struct {
	ID string `json:"id"`
}

func keyring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.New("k", map[string][]byte{"k": make([]byte, seal.KeySize)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func defs() []entity.Def {
	return []entity.Def{
		{Table: 9, New: func() any { return new(shelf) }, Schema: &schema.Schema{Name: "shelves"}},
		{Table: 3, New: func() any { return new(book) }, Schema: &schema.Schema{Name: "books", TTL: true, Fields: []schema.Field{
			{Name: "id", Type: schema.String},
			{Name: "title", Type: schema.String, Unique: true},
			{Name: "number", Type: schema.Integer, Unique: true},
			{Name: "shelf", Type: schema.Foreign, Ref: "shelves"},
			{Name: "series", Type: schema.Foreign, Ref: "series"},
			{Name: "tags", Type: schema.Set},
		}, Unique: [][]string{{"series", "price", "lent"}}}},
	}
}

func id(n int) (x ID) {
	copy(x[:], fmt.Sprintf("%016d", n))
	return x
}

// put writes books from JSON members, each with its own commit index.
func put(t testing.TB, s *Store, n int, expires int64, members string) {
	t.Helper()
	tx := s.Begin()
	index := s.View().Index() + 1
	raw := []byte(`{"id":"` + id(n).String() + `",` + members + `}`)
	d, err := tx.Decode(3, AnyRow{ID: id(n), Index: index, ExpiresAt: expires, Raw: raw})
	if err != nil {
		t.Fatal(err)
	}
	if c, found := tx.Conflict(d); found {
		t.Fatalf("conflict %v", c)
	}
	tx.Set(d)
	tx.Commit(index, nil)
}

func library(t testing.TB) *Store {
	s := New(defs(), keyring(t))
	put(t, s, 1, 0, `"title":"a","number":0,"shelf":{"id":"S1"},"tags":["x","xy","x"],"price":1`)
	put(t, s, 2, 500, `"title":"ab","shelf":{"id":"S1"},"series":{"id":"R"},"tags":["x"],"price":1`)
	put(t, s, 3, 0, `"title":"abcdefghi","shelf":{"id":"S2"},"series":{"id":"R"},"tags":[],"price":1,"lent":true`)
	put(t, s, 4, 0, `"title":"abcdefghz","shelf":{"id":"S1"},"series":{"id":"RR"},"tags":null,"price":1.5`)
	put(t, s, 5, 0, `"shelf":{"id":"S1"},"series":null,"number":10,"price":2`)
	return s
}

func TestReads(t *testing.T) {
	s := library(t)
	books := TableOf[book](s)
	table, _ := s.Table("books")
	v := s.View()
	for _, c := range []struct {
		index, key string
		want       []int
	}{
		{"", "", []int{1, 2, 3, 4, 5}},
		{"title", "", []int{1, 2, 3, 4}}, // null is not indexed
		{"title", "a", []int{1}},
		{"title", "abcdefghz", []int{4}},
		{"title", "abcdefgh", nil},
		{"number", "0", []int{1}}, // zero is no null
		{"number", "10", []int{5}},
		{"shelf", "s1", []int{1, 2, 4, 5}},
		{"shelf", "s2", []int{3}},
		{"series", "r", []int{2, 3}},
		{"tags", "x", []int{1, 2}}, // not xy; each row once
		{"tags", "xy", []int{1}},
		{"tags", "", []int{1, 1, 2}}, // once per key
		{"series:price:lent", Key("r", "1", "true"), []int{3}},
		{"series:price:lent", Key("r", "1", ""), []int{2}},
		{"series:price:lent", Key("r", "1"), nil}, // not the whole key
		{"series:price:lent", Key("", "2", ""), []int{5}},
		{"nosuch", "", nil},
	} {
		var got []int
		for r := range books.Scan(v, c.index, c.key) {
			got = append(got, number(r.ID))
		}
		if c.key == "" {
			slices.Sort(got) // there is no order
		}
		if !cmp.Equal(got, c.want) {
			t.Errorf("Scan(%q, %q) = %v, want %v", c.index, c.key, got, c.want)
		}
		if c.index == "" || c.key == "" {
			continue
		}
		for n := range c.want { // pages of any length
			after := ID{}
			if n > 0 {
				after = id(c.want[n-1])
			}
			got = nil
			for r := range table.Scan(v, c.index, c.key, after) {
				got = append(got, number(r.ID))
			}
			if !cmp.Equal(got, c.want[n:]) {
				t.Errorf("Scan(%q, %q, after %d) = %v, want %v", c.index, c.key, n, got, c.want[n:])
			}
		}
		if r, ok := books.By(v, c.index, c.key); ok != (len(c.want) > 0) || ok && number(r.ID) != c.want[0] {
			t.Errorf("By(%q, %q) = %v", c.index, c.key, r)
		}
	}
	if r, ok := table.By(v, "title", "ab"); !ok || r.Val.(*book).Title != "ab" || r.ExpiresAt != 500 || r.Index != 2 {
		t.Errorf("AnyTable.By: %v", r)
	}
	if r, ok := table.Get(v, id(4)); !ok || r.Val.(*book).Price != 1.5 || table.Len(v) != 5 {
		t.Errorf("AnyTable.Get: %v", r)
	}
	if _, ok := table.Get(v, id(99)); ok {
		t.Error("a row that is not there")
	}
	late := v.At(500)
	_, got := books.Get(late, id(2))
	_, by := books.By(late, "title", "ab")
	if got || by || len(slices.Collect(books.All(late))) != 4 || len(slices.Collect(books.Scan(late, "tags", "x"))) != 1 {
		t.Error("an expired row shows")
	}
	if len(s.Tables()) != 2 || s.Tables()[0].Name() != "books" || s.Tables()[1].Number() != 9 || table.Def().Table != 3 {
		t.Error("tables are not by number")
	}
}

func number(id ID) (n int) {
	fmt.Sscanf(string(id[:]), "%d", &n)
	return n
}

func TestPages(t *testing.T) {
	s := library(t)
	table, _ := s.Table("books")
	for _, c := range []struct {
		index, key string
		after      int
		want       []int
	}{
		{"", "", 2, []int{3, 4, 5}},
		{"", "", 5, nil},
		{"shelf", "s1", 2, []int{4, 5}},
		{"shelf", "s1", 3, []int{4, 5}}, // the row after which to go on may have left the list
		{"title", "ab", 1, []int{2}},
		{"title", "ab", 3, nil},
	} {
		var got []int
		for r := range table.Scan(s.View(), c.index, c.key, id(c.after)) {
			got = append(got, number(r.ID))
		}
		if !cmp.Equal(got, c.want) {
			t.Errorf("Scan(%q, %q, after %d) = %v, want %v", c.index, c.key, c.after, got, c.want)
		}
	}
}

func TestIndexesFollow(t *testing.T) {
	s := library(t)
	old := s.View()
	put(t, s, 1, 0, `"title":"z","shelf":{"id":"s3"},"tags":["q"]`)
	tx := s.Begin()
	tx.Delete(3, id(2))
	if tx.Delete(3, id(2)) || tx.Delete(77, id(2)) {
		t.Error("deleted what is not there")
	}
	tx.Commit(7, "aux")
	books, v := TableOf[book](s), s.View()
	for _, key := range []string{"a", "ab"} {
		if _, ok := books.By(v, "title", key); ok {
			t.Errorf("the new view knows title %q", key)
		}
		if _, ok := books.By(old, "title", key); !ok {
			t.Errorf("the old view lost title %q", key)
		}
	}
	if r, ok := books.By(v, "title", "z"); !ok || r.Val.Shelf.ID != "s3" {
		t.Error("the new title is not known")
	}
	for index, want := range map[string]int{"tags": 1, "shelf": 4, "number": 1, "series": 2, "series:price:lent": 4} {
		if got := len(slices.Collect(books.Scan(v, index, ""))); got != want {
			t.Errorf("index %s has %d entries, want %d", index, got, want)
		}
	}
	if v.Index() != 7 || v.Aux() != "aux" || old.Index() != 5 || books.Len(old) != 5 || books.Len(v) != 4 {
		t.Errorf("views at %d and %d", old.Index(), v.Index())
	}
	if put(t, s, 9, 0, `"title":"ab","shelf":{"id":"s3"},"price":3`); books.Len(s.View()) != 5 {
		t.Error("a freed unique key is not free")
	}
}

func TestConflict(t *testing.T) {
	s := library(t)
	tx := s.Begin()
	defer tx.Abort()
	for _, c := range []struct {
		members string
		want    Conflict
	}{
		{`"title":"ab"`, Conflict{"title", "ab", id(2)}},
		{`"number":10`, Conflict{"number", "10", id(5)}},
		{`"price":2`, Conflict{"series:price:lent", Key("", "2", ""), id(5)}},
		{`"title":"new","price":9`, Conflict{}},
	} {
		d, err := tx.Decode(3, AnyRow{ID: id(8), Raw: []byte(`{` + c.members + `}`)})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := tx.Conflict(d); got != c.want {
			t.Errorf("%s: %v, want %v", c.members, got, c.want)
		}
	}
}

// A look-up of the request path must not allocate.
func TestLookupsDoNotAllocate(t *testing.T) {
	s, names := credentials(t, 1000)
	table := TableOf[entity.KeyAuthCredential](s)
	for _, v := range []*View{s.View(), s.View().At(400)} {
		row, ok := table.By(v, "key", names[7])
		if !ok || row.Val.Key != names[7] || row.Val.Consumer.ID != row.ID.String() {
			t.Fatalf("By: %+v", row)
		}
		consumer := row.Val.Consumer.ID
		for name, f := range map[string]func() bool{
			"Get":            func() bool { r, ok := table.Get(v, row.ID); return ok && r.Val.Key == names[7] },
			"By":             func() bool { r, ok := table.By(v, "key", names[7]); return ok && r.ID == row.ID },
			"By, not unique": func() bool { r, ok := table.By(v, "consumer", consumer); return ok && r.ID == row.ID },
			"By, no row":     func() bool { _, ok := table.By(v, "key", "none"); return !ok },
		} {
			harness.NoAllocs(t, name, func() {
				if !f() {
					t.Error(name)
				}
			})
		}
	}
}

func TestKey(t *testing.T) {
	parts := []string{"", "a", "\x00", "\x01", "\x00\x01", "\x00\xff", "a\x00", "\xff"}
	seen := map[string][2]string{}
	for _, a := range parts {
		for _, b := range parts {
			k := Key(a, b)
			if other, dup := seen[k]; dup {
				t.Errorf("%q and %q have the same key", other, [2]string{a, b})
			}
			seen[k] = [2]string{a, b}
		}
	}
	if Key("a\x00b") != "a\x00b" {
		t.Error("the key of one part is not the part")
	}
}

func TestIDText(t *testing.T) {
	const text = "0123abcd-4567-89ef-0123-456789abcdef"
	for _, s := range []string{text, strings.ToUpper(text)} {
		if x, err := ParseID(s); err != nil || x.String() != text {
			t.Errorf("%s: %v %v", s, x, err)
		}
	}
	for _, s := range []string{"", "x", text[1:], text + "0", strings.Replace(text, "-", "0", 1), strings.Replace(text, "a", "g", 1)} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q is an id", s)
		}
	}
}

func TestMistakesPanic(t *testing.T) {
	double := append(defs(), defs()[0])
	lacking := []entity.Def{{Table: 1, New: func() any { return new(shelf) }, Schema: &schema.Schema{Name: "x", Fields: []schema.Field{{Name: "gone", Unique: true}}}}}
	for name, f := range map[string]func(){
		"two tables of one number":      func() { New(double, keyring(t)) },
		"index of a field that is none": func() { New(lacking, keyring(t)) },
		"handle of no table":            func() { TableOf[int](New(defs(), keyring(t))) },
	} {
		func() {
			defer func() {
				if r := recover(); r == nil || !strings.HasPrefix(r.(string), "state: ") {
					t.Errorf("%s: %v", name, r)
				}
			}()
			f()
		}()
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("0123abcd-4567-89ef-0123-456789abcdef")
	f.Fuzz(func(t *testing.T, s string) {
		if x, err := ParseID(s); err == nil && x.String() != strings.ToLower(s) {
			t.Errorf("%q became %s", s, x)
		}
	})
}

// credentials fills the key-auth table as it is.
func credentials(b testing.TB, n int) (*Store, []string) {
	def := entity.Def{Table: 6, New: func() any { return new(entity.KeyAuthCredential) }, Schema: &schema.Schema{Name: "keyauth_credentials", TTL: true, Fields: []schema.Field{
		{Name: "key", Unique: true}, {Name: "consumer", Type: schema.Foreign}, {Name: "tags"},
	}}}
	s := New([]entity.Def{def}, keyring(b))
	tx := s.Begin()
	names := make([]string, n)
	for i := range n {
		var x ID
		copy(x[:], mix(uint64(i)))
		names[i] = fmt.Sprintf("%x%x", mix(uint64(i)), mix(uint64(i+n)))
		raw, _ := json.Marshal(entity.KeyAuthCredential{ID: x.String(), CreatedAt: 1_700_000_000, Consumer: entity.Ref{ID: x.String()}, Key: names[i]})
		d, err := tx.Decode(6, AnyRow{ID: x, Index: 1, Raw: raw})
		if err != nil {
			b.Fatal(err)
		}
		tx.Set(d)
	}
	tx.Commit(1, nil)
	return s, names
}

func mix(n uint64) []byte {
	n = (n + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return bytes.Repeat([]byte{byte(n >> 56), byte(n >> 48), byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, 2)[:16]
}

func BenchmarkBy(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, names := credentials(b, n)
			table := TableOf[entity.KeyAuthCredential](s)
			b.Run("random", func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if i += 7919; i >= n {
						i %= n
					}
					if _, ok := table.By(s.View().At(1), "key", names[i]); !ok {
						b.Fatal(names[i])
					}
				}
			})
			b.Run("hot", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, ok := table.By(s.View().At(1), "key", names[0]); !ok {
						b.Fatal(names[0])
					}
				}
			})
			b.Run("get", func(b *testing.B) {
				b.ReportAllocs()
				var x ID
				copy(x[:], mix(0))
				for b.Loop() {
					if _, ok := table.Get(s.View(), x); !ok {
						b.Fatal(x)
					}
				}
			})
		})
	}
}

package state

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/btree"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// A part of a composite key is escaped so that no two lists of parts give the same key, whatever bytes they hold.
const (
	separator = "\x00\x01"
	escaped   = "\x00\xff"
)

// Key joins the parts of a composite index's key in the order of the index's name; a null part is "".
// The key of one part is the part itself.
func Key(parts ...string) string {
	if len(parts) == 1 {
		return parts[0]
	}
	var b strings.Builder
	for i, p := range parts {
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(strings.ReplaceAll(p, "\x00", escaped))
	}
	return b.String()
}

// meta is what a table knows from its definition; it never changes.
type meta struct {
	def     entity.Def
	slot    int          // position in View.tables
	typ     reflect.Type // T
	id      part         // the "id" field, if T has one
	indexes []index
}

// index says how the keys of one index are taken from a value.
type index struct {
	name   string
	unique bool
	multi  bool   // one key per element of a list (tags)
	parts  []part // more than one: composite
}

// part is one field of a key.
type part struct {
	name  string
	field []int // reflect index path; nil: the struct has no such field
	ref   bool  // a foreign key: the key is the referenced id
}

func newMeta(def entity.Def, slot int) *meta {
	m := &meta{def: def, slot: slot, typ: reflect.TypeOf(def.New()).Elem()}
	if _, ok := m.lookup("id"); ok {
		m.id = m.part("id")
	}
	for _, f := range def.Schema.Fields {
		switch {
		case f.Name == "tags":
			m.indexes = append(m.indexes, index{name: f.Name, multi: true, parts: []part{m.part(f.Name)}})
		case f.Unique || f.Type == schema.Foreign:
			m.indexes = append(m.indexes, index{name: f.Name, unique: f.Unique, parts: []part{m.part(f.Name)}})
		}
	}
	for _, names := range def.Schema.Unique {
		ix := index{name: strings.Join(names, ":"), unique: true}
		for _, n := range names {
			ix.parts = append(ix.parts, m.part(n))
		}
		m.indexes = append(m.indexes, ix)
	}
	return m
}

// lookup finds the struct field that encoding/json would fill from the JSON name.
func (m *meta) lookup(name string) (reflect.StructField, bool) {
	for _, f := range reflect.VisibleFields(m.typ) {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// part panics on a schema that names a field its struct lacks: that is a mistake in the program, found when it starts.
func (m *meta) part(name string) part {
	f, ok := m.lookup(name)
	if !ok {
		panic(fmt.Sprintf("state: entity %s: schema indexes field %q but %s has no field with that json tag", m.def.Schema.Name, name, m.typ))
	}
	return part{name: name, field: f.Index, ref: deref(f.Type) == reflect.TypeFor[entity.Ref]()}
}

func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// text is the key text of the field; ok is false when it is null. The empty string counts as null: structs hold "" for null
// strings, and the schemas let no indexed field be empty.
func (p *part) text(v reflect.Value) (s string, ok bool) {
	f := v.FieldByIndex(p.field)
	if f.Kind() == reflect.Pointer {
		if f.IsNil() {
			return "", false
		}
		f = f.Elem()
	}
	switch {
	case p.ref:
		s = strings.ToLower(f.Field(0).String()) // returns its argument when nothing changes
	case f.Kind() == reflect.String:
		s = f.String()
	case f.CanInt():
		return strconv.FormatInt(f.Int(), 10), true
	case f.CanFloat():
		return strconv.FormatFloat(f.Float(), 'g', -1, 64), true
	case f.Kind() == reflect.Bool:
		return strconv.FormatBool(f.Bool()), true
	}
	return s, s != ""
}

// keys calls f with each key of the value in this index, each once.
func (ix *index) keys(v reflect.Value, f func(key string) bool) {
	switch {
	case ix.multi:
		list, _ := v.FieldByIndex(ix.parts[0].field).Interface().([]string)
		for i, k := range list {
			if !slices.Contains(list[:i], k) && !f(k) {
				return
			}
		}
	case len(ix.parts) == 1:
		if k, ok := ix.parts[0].text(v); ok {
			f(k)
		}
	default:
		parts := make([]string, len(ix.parts))
		for i := range ix.parts {
			parts[i], _ = ix.parts[i].text(v)
		}
		f(Key(parts...))
	}
}

// matches says whether key belongs to Scan(prefix): the same key, the same leading parts of a composite key, or any.
func (ix *index) matches(key, prefix string) bool {
	if prefix == "" || key == prefix {
		return true
	}
	return len(ix.parts) > 1 && strings.HasPrefix(key, prefix) && strings.HasPrefix(key[len(prefix):], separator)
}

// item is an entry of an index. head, the first eight bytes of the key, decides most comparisons without a look at the
// key's memory. The key shares the memory of the value's string where it can.
type item struct {
	head uint64
	key  string
	row  *row // nil in a search key: before all rows of the key
}

func newItem(key string, r *row) item {
	var head uint64
	if len(key) >= 8 {
		head = binary.BigEndian.Uint64([]byte(key[:8]))
	} else {
		for i := range len(key) {
			head |= uint64(key[i]) << (56 - 8*i)
		}
	}
	return item{head: head, key: key, row: r}
}

func lessKey(a, b item) bool {
	if a.head != b.head {
		return a.head < b.head
	}
	return a.key < b.key
}

func lessKeyID(a, b item) bool {
	if a.head != b.head {
		return a.head < b.head
	}
	if a.key != b.key {
		return a.key < b.key
	}
	if a.row == nil || b.row == nil {
		return a.row == nil && b.row != nil
	}
	return compareID(&a.row.ID, &b.row.ID) < 0
}

// entry is an entry of the primary tree, with the id beside the pointer for the same reason.
type entry struct {
	id  ID
	row *row
}

func lessID(a, b entry) bool { return compareID(&a.id, &b.id) < 0 }

func compareID(a, b *ID) int {
	x, y := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(b[:8])
	if x == y {
		x, y = binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])
	}
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// deadline is an entry of the expiry tree.
type deadline struct {
	at  int64
	id  ID
	row *row
}

func lessDeadline(a, b deadline) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return compareID(&a.id, &b.id) < 0
}

// trees is the content of one table. Copies share nodes until one side writes.
type trees struct {
	rows    *btree.BTreeG[entry]
	indexes []*btree.BTreeG[item]
	expiry  *btree.BTreeG[deadline]
}

// degree trades the bytes copied by a write after a commit against depth: 16 halves the copies of the library's default.
const degree = 16

func newTree[T any](less func(a, b T) bool) *btree.BTreeG[T] {
	return btree.NewBTreeGOptions(less, btree.Options{Degree: degree, NoLocks: true}) // writers are serialised by Store, readers have copies
}

func newTrees(m *meta) *trees {
	t := &trees{rows: newTree(lessID), expiry: newTree(lessDeadline)}
	for _, ix := range m.indexes {
		less := lessKeyID
		if ix.unique {
			less = lessKey
		}
		t.indexes = append(t.indexes, newTree(less))
	}
	return t
}

func (t *trees) copy() *trees {
	c := &trees{rows: t.rows.Copy(), expiry: t.expiry.Copy(), indexes: make([]*btree.BTreeG[item], len(t.indexes))}
	for i, x := range t.indexes {
		c.indexes[i] = x.Copy()
	}
	return c
}

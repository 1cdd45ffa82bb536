package state

import (
	"encoding"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"reflect"
	"slices"
	"strings"

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
	seed    maphash.Seed
	fields  []field
	indexes []index
	near    reference
}

// field is a member of a row's JSON that T holds.
type field struct {
	name   string
	typ    reflect.Type
	offset uintptr
	direct bool // null leaves it alone; false for types that decode themselves
}

// index says which members make up the keys of one index.
type index struct {
	name   string
	unique bool
	multi  bool // one key per element of a list (tags)
	parts  []string
}

func newMeta(def entity.Def, slot int) *meta {
	m := &meta{def: def, slot: slot, typ: reflect.TypeOf(def.New()).Elem(), seed: maphash.MakeSeed()}
	m.addFields(m.typ, 0)
	for _, f := range def.Schema.Fields {
		if f.Name == "tags" || f.Unique || f.Type == schema.Foreign {
			m.indexes = append(m.indexes, index{name: f.Name, unique: f.Unique, multi: f.Name == "tags", parts: []string{f.Name}})
		}
	}
	for _, names := range def.Schema.Unique {
		m.indexes = append(m.indexes, index{name: strings.Join(names, ":"), unique: true, parts: names})
	}
	// A schema that names a field its struct lacks is a mistake in the program, found when it starts.
	for _, ix := range m.indexes {
		for _, name := range ix.parts {
			if _, ok := m.field(name); !ok {
				panic(fmt.Sprintf("state: entity %s: schema indexes field %q but %s has no field with that json tag", def.Schema.Name, name, m.typ))
			}
		}
	}
	return m
}

// addFields lists what encoding/json would fill, with the offsets in T.
func (m *meta) addFields(t reflect.Type, base uintptr) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-" && options == "" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
			m.addFields(f.Type, base+f.Offset)
		default:
			if tag == "" {
				tag = f.Name
			}
			p := reflect.PointerTo(f.Type)
			custom := p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) || options == "string"
			m.fields = append(m.fields, field{tag, f.Type, base + f.Offset, !custom})
		}
	}
}

func (m *meta) field(name string) (*field, bool) {
	for i := range m.fields {
		if m.fields[i].name == name {
			return &m.fields[i], true
		}
	}
	return nil, false
}

// hash is the head of a key. It differs from process to process, so that nobody can choose keys that collide; nothing that a machine
// decides depends on it.
func (m *meta) hash(key string) uint64 { return maphash.String(m.seed, key) }

func (m *meta) hashID(id *ID) uint64 { return maphash.Bytes(m.seed, id[:]) }

func (m *meta) index(name string) int {
	return slices.IndexFunc(m.indexes, func(ix index) bool { return ix.name == name })
}

// keys calls f with each key of the row in an index, each once, until it returns false.
func (r *record) keys(ix int, f func(key string) bool) {
	parts := r.shape.parts[ix]
	switch {
	case r.shape.m.indexes[ix].multi:
		list := r.list(parts[0])
		for i, k := range list {
			if !slices.Contains(list[:i], k) && !f(k) {
				return
			}
		}
	case len(parts) == 1:
		if k := r.text(parts[0]); k != "" {
			f(k)
		}
	default:
		texts := make([]string, len(parts))
		for i, p := range parts {
			texts[i] = r.text(p)
		}
		f(Key(texts...))
	}
}

// has says whether key is among the keys of the row in an index. It does not allocate for a text or a reference.
func (r *record) has(ix int, key string) (found bool) {
	if parts := r.shape.parts[ix]; len(parts) == 1 && !r.shape.m.indexes[ix].multi {
		return key != "" && r.text(parts[0]) == key
	}
	r.keys(ix, func(k string) bool { found = k == key; return !found })
	return found
}

package exchange

import (
	"iter"
	"strings"
)

// Field is one header field. Name keeps the case it was received or set with.
type Field struct{ Name, Value string }

// Header is an ordered list of fields. Look-ups ignore case; order and duplicates are kept. None of its methods allocates
// once Fields has grown.
type Header struct{ Fields []Field }

// maxKeptFields bounds what a pooled exchange remembers of one request with very many fields.
const maxKeptFields = 256

// Reset removes all fields and keeps the memory.
func (h *Header) Reset() {
	if cap(h.Fields) > maxKeptFields {
		h.Fields = nil
	}
	h.Fields = h.Fields[:0]
}

// EqualFold tells whether two ASCII names are equal ignoring case.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func (h *Header) index(name string) int {
	for i := range h.Fields {
		if f := &h.Fields[i]; len(f.Name) == len(name) && EqualFold(f.Name, name) {
			return i
		}
	}
	return -1
}

// Get returns the first value of name, or "".
func (h *Header) Get(name string) string {
	if i := h.index(name); i >= 0 {
		return h.Fields[i].Value
	}
	return ""
}

// Lookup returns the first value of name and whether there is one.
func (h *Header) Lookup(name string) (string, bool) {
	if i := h.index(name); i >= 0 {
		return h.Fields[i].Value, true
	}
	return "", false
}

// Has tells whether a field of that name exists.
func (h *Header) Has(name string) bool { return h.index(name) >= 0 }

// Count returns how many fields have that name.
func (h *Header) Count(name string) int {
	n := 0
	for i := range h.Fields {
		if EqualFold(h.Fields[i].Name, name) {
			n++
		}
	}
	return n
}

// Values yields all values of name in order.
func (h *Header) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range h.Fields {
			if EqualFold(h.Fields[i].Name, name) && !yield(h.Fields[i].Value) {
				return
			}
		}
	}
}

// Set makes value the only value of name, in the place of the first old one. Line breaks and NUL in value become spaces
// (RFC 9110 §5.5).
func (h *Header) Set(name, value string) {
	i := h.index(name)
	if i < 0 {
		h.Add(name, value)
		return
	}
	h.Fields[i] = Field{name, clean(value)}
	rest := h.Fields[i+1:]
	h.Fields = append(h.Fields[:i+1], compact(rest, func(f *Field) bool { return EqualFold(f.Name, name) })...)
}

// Add appends a field. Line breaks and NUL in value become spaces (RFC 9110 §5.5).
func (h *Header) Add(name, value string) {
	h.Fields = append(h.Fields, Field{name, clean(value)})
}

// Del removes all fields of that name and tells whether there was one.
func (h *Header) Del(name string) bool {
	n := len(h.Fields)
	h.Fields = compact(h.Fields, func(f *Field) bool { return EqualFold(f.Name, name) })
	return len(h.Fields) < n
}

// DelFunc removes all fields whose name drop accepts.
func (h *Header) DelFunc(drop func(name string) bool) {
	h.Fields = compact(h.Fields, func(f *Field) bool { return drop(f.Name) })
}

// DelSet removes all fields whose name is in the set: one pass, for fixed lists such as the identity headers.
func (h *Header) DelSet(s *NameSet) {
	for i := range h.Fields {
		if s.Has(h.Fields[i].Name) {
			h.Fields = append(h.Fields[:i], compact(h.Fields[i:], func(f *Field) bool { return s.Has(f.Name) })...)
			return
		}
	}
}

// compact removes in place the fields drop accepts.
func compact(f []Field, drop func(*Field) bool) []Field {
	k := 0
	for i := range f {
		if drop(&f[i]) {
			continue
		}
		if k != i {
			f[k] = f[i]
		}
		k++
	}
	return f[:k]
}

// clean replaces what would end a field line. The common case costs one pass and nothing else.
func clean(v string) string {
	i := 0
	for len(v)-i >= 8 && !hasControl(v[i:]) {
		i += 8
	}
	for ; i < len(v); i++ {
		if c := v[i]; c <= '\r' && (c == '\r' || c == '\n' || c == 0) {
			return strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(v)
		}
	}
	return v
}

// hasControl tells whether one of the first eight bytes is below a space.
func hasControl(s string) bool {
	const each = 0x0101010101010101
	_ = s[7]
	w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
	return (w-each*' ')&^w&(each*0x80) != 0 // a byte that borrows although its own highest bit is not set
}

// HasToken tells whether a comma-separated list such as the value of Connection contains token, ignoring case.
func HasToken(list, token string) bool {
	for len(list) > 0 {
		item, rest, _ := strings.Cut(list, ",")
		if EqualFold(strings.Trim(item, " \t"), token) {
			return true
		}
		list = rest
	}
	return false
}

// NameSet is a fixed set of field names. Case is ignored and '_' equals '-': many servers behind a gateway fold both to
// the same variable, so that X_Consumer_Id would otherwise forge X-Consumer-ID.
type NameSet struct {
	first  [256]bool // first bytes of any member, both cases
	names  []string
	prefix []string
}

// NewNameSet builds a set. A name that ends in '*' stands for all names with that prefix.
func NewNameSet(names ...string) *NameSet {
	s := &NameSet{}
	for _, n := range names {
		if n == "" {
			continue
		}
		c := lower(n[0])
		s.first[c] = true
		if 'a' <= c && c <= 'z' {
			s.first[c-'a'+'A'] = true
		}
		if p, ok := strings.CutSuffix(n, "*"); ok {
			s.prefix = append(s.prefix, p)
		} else {
			s.names = append(s.names, n)
		}
	}
	return s
}

// Has tells whether name is in the set.
func (s *NameSet) Has(name string) bool {
	if name == "" || !s.first[name[0]] {
		return false
	}
	for _, n := range s.names {
		if len(n) == len(name) && equalAlias(n, name) {
			return true
		}
	}
	for _, p := range s.prefix {
		if len(name) >= len(p) && equalAlias(p, name[:len(p)]) {
			return true
		}
	}
	return false
}

func equalAlias(a, b string) bool {
	for i := 0; i < len(a); i++ {
		if x, y := a[i], b[i]; x != y && alias(x) != alias(y) {
			return false
		}
	}
	return true
}

func alias(c byte) byte {
	if c == '_' {
		return '-'
	}
	return lower(c)
}

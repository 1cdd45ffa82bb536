package rest

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"concord/fsm/schema"
)

// Limits of a form. Kong has the first; the others keep hostile keys cheap.
const (
	maxArgs  = 1000
	maxDepth = 32
)

// field is one name and value of a form, before its name is understood.
type field struct {
	name  string
	value any // string; true for a name without "="; any JSON value for a JSON part of a multipart form
}

// parseURLEncoded splits an application/x-www-form-urlencoded text. Broken percent-encoding is kept as it is, as nginx does.
func parseURLEncoded(text string) ([]field, error) {
	var fields []field
	for part := range strings.SplitSeq(text, "&") {
		if part == "" {
			continue
		}
		if len(fields) == maxArgs {
			return nil, malformed("Too many arguments")
		}
		name, value, given := strings.Cut(part, "=")
		f := field{name: unescape(name), value: true}
		if given {
			f.value = unescape(value)
		}
		fields = append(fields, f)
	}
	return fields, nil
}

func unescape(s string) string {
	if out, err := url.QueryUnescape(s); err == nil {
		return out
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b.WriteByte(' ')
		case s[i] == '%' && i+2 < len(s):
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
			b.WriteByte('%')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// nest turns form fields into a record as Kong does: a.b=c nests, a[]=x and a repeated a=x make lists, a[1]=x places by
// position, a[k]=v makes a map entry. Values stay text; the schema gives them types.
func nest(fields []field) (schema.Record, error) {
	root := &node{}
	repeats := map[string]int{}
	for _, f := range fields {
		text, isText := f.value.(string)
		if !utf8.ValidString(f.name) || isText && !utf8.ValidString(text) {
			return nil, malformed(fmt.Sprintf("field %q is not valid UTF-8", f.name))
		}
		repeats[f.name]++
		root.put(parseName(f.name), repeats[f.name], f.value)
	}
	rec := schema.Record{}
	for name, n := range root.fields {
		v, err := n.value(name)
		if err != nil {
			return nil, err
		}
		rec[name] = v
	}
	return rec, nil
}

// step is one part of a field's name: a key, or with key "" a position, of which 0 means the next ("[]").
type step struct {
	key string
	pos int
}

// parseName splits "a.b[1][k][].c". A name that does not follow the grammar is one key as it is, which the schema then reports
// as an unknown field.
func parseName(name string) []step {
	literal := []step{{key: name}}
	var steps []step
	for rest := name; rest != ""; {
		if len(steps) == maxDepth {
			return literal
		}
		switch {
		case rest[0] == '[':
			inner, after, closed := strings.Cut(rest[1:], "]")
			if !closed || len(steps) == 0 || strings.Contains(inner, "[") || after != "" && after[0] != '.' && after[0] != '[' {
				return literal
			}
			steps = append(steps, bracket(inner))
			rest = after
		case rest[0] == '.' && len(steps) > 0 && len(rest) > 1 && rest[1] != '.' && rest[1] != '[':
			rest = rest[1:]
			fallthrough
		default:
			end := strings.IndexAny(rest, ".[")
			if end == 0 {
				return literal
			}
			if end < 0 {
				end = len(rest)
			}
			steps = append(steps, step{key: rest[:end]})
			rest = rest[end:]
			if rest == "." {
				return literal
			}
		}
	}
	if len(steps) == 0 {
		return literal
	}
	return steps
}

func bracket(inner string) step {
	if inner == "" {
		return step{}
	}
	if n, err := strconv.ParseUint(inner, 10, 31); err == nil && n > 0 {
		return step{pos: int(n)}
	}
	return step{key: inner}
}

// node is a value under construction.
type node struct {
	leaves []any
	fields map[string]*node
	items  map[int]*node
	last   int // highest position in items
}

// put places a value. repeat counts how often the whole name occurred: the n-th "m[].name" belongs to the n-th element.
func (n *node) put(steps []step, repeat int, value any) {
	for i, s := range steps {
		if s.key != "" || s.pos == 0 && i == 0 {
			if n.fields == nil {
				n.fields = map[string]*node{}
			}
			if n.fields[s.key] == nil {
				n.fields[s.key] = &node{}
			}
			n = n.fields[s.key]
			continue
		}
		if s.pos == 0 {
			if s.pos = n.last + 1; i < len(steps)-1 {
				s.pos = repeat
			}
		}
		if n.items == nil {
			n.items = map[int]*node{}
		}
		if n.items[s.pos] == nil {
			n.items[s.pos] = &node{}
			n.last = max(n.last, s.pos)
		}
		n = n.items[s.pos]
	}
	n.leaves = append(n.leaves, value)
}

// value is the finished JSON value. Positions only order the elements: gaps are closed.
func (n *node) value(name string) (any, error) {
	if n.fields != nil {
		if len(n.leaves) > 0 {
			return nil, malformed(fmt.Sprintf("field %q is given both as a value and as a record", name))
		}
		rec := schema.Record{}
		for k, child := range n.fields {
			v, err := child.value(name + "." + k)
			if err != nil {
				return nil, err
			}
			rec[k] = v
		}
		for pos, child := range n.items {
			k := strconv.Itoa(pos)
			v, err := child.value(name + "." + k)
			if err != nil {
				return nil, err
			}
			if _, taken := rec[k]; !taken {
				rec[k] = v
			}
		}
		return rec, nil
	}
	if n.items == nil && len(n.leaves) == 1 {
		return n.leaves[0], nil
	}
	list := []any{}
	for _, pos := range sortedKeys(n.items) {
		v, err := n.items[pos].value(name + "[" + strconv.Itoa(pos) + "]")
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return append(list, n.leaves...), nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

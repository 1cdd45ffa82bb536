package declarative

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"concord/fsm/schema"
)

// Tree puts the errors of rows, by index, where the rows stand in the document, as Kong nests them.
func (d *Document) Tree(rows map[int]schema.Errors) schema.Errors {
	tree := schema.Errors{}
	at := map[int]schema.Errors{-1: tree}
	var node func(i int) schema.Errors
	node = func(i int) schema.Errors {
		if n, ok := at[i]; ok {
			return n
		}
		r := &d.Rows[i]
		parent := node(r.Parent)
		list, _ := parent[r.List].([]any)
		n := schema.Errors{}
		parent[r.List] = place(list, r.Pos, n)
		at[i] = n
		return n
	}
	for _, i := range slices.Sorted(maps.Keys(rows)) {
		maps.Copy(node(i), rows[i])
	}
	return tree
}

// Merge adds the errors of one tree to another and returns it.
func Merge(into, from schema.Errors) schema.Errors {
	for k, v := range from {
		into[k] = merged(into[k], v)
	}
	return into
}

func merged(a, b any) any {
	switch b := b.(type) {
	case schema.Errors:
		if into, ok := a.(schema.Errors); ok {
			return Merge(into, b)
		}
	case []any:
		into, ok := a.([]any)
		if !ok {
			return b
		}
		for i, e := range b {
			if e == nil {
				continue
			}
			if i < len(into) {
				e = merged(into[i], e)
			}
			into = place(into, i, e)
		}
		return into
	}
	return b
}

// Message is Kong's summary of a tree of errors.
func Message(tree schema.Errors) string {
	var b strings.Builder
	b.WriteString("declarative config is invalid: ")
	lua(&b, tree)
	return b.String()
}

// lua prints a tree as Kong's pretty printer does without line breaks.
func lua(b *strings.Builder, v any) {
	switch v := v.(type) {
	case schema.Errors:
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				b.WriteByte(',')
			}
			if isName(k) {
				b.WriteString(k)
			} else {
				b.WriteString("[" + strconv.Quote(k) + "]")
			}
			b.WriteByte('=')
			lua(b, v[k])
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('{')
		first, hole := true, false
		for i, e := range v {
			if e == nil {
				hole = true
				continue
			}
			if !first {
				b.WriteByte(',')
			}
			if first = false; hole {
				b.WriteString("[" + position(i) + "]=")
			}
			lua(b, e)
		}
		b.WriteByte('}')
	default:
		b.WriteString(strconv.Quote(fmt.Sprint(v)))
	}
}

func isName(s string) bool {
	for i, c := range s {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// Indented is the tree as `kong config parse` prints it: one line for each step into it.
func Indented(tree schema.Errors) string {
	var b strings.Builder
	indent(&b, "", tree, "")
	return strings.TrimSuffix(b.String(), "\n")
}

func indent(b *strings.Builder, in string, v any, name string) {
	switch v := v.(type) {
	case schema.Errors:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if text, ok := v[k].(string); ok {
				fmt.Fprintf(b, "%sin '%s': %s\n", in, k, text)
				continue
			}
			if texts, ok := v[k].([]any); ok && k == schema.EntityKey {
				for _, text := range texts {
					fmt.Fprintf(b, "%s%v\n", in, text)
				}
				continue
			}
			fmt.Fprintf(b, "%sin '%s':\n", in, k)
			indent(b, in+"  ", v[k], k)
		}
	case []any:
		for i, e := range v {
			switch e := e.(type) {
			case nil:
			case string:
				fmt.Fprintf(b, "%s- in entry %d of '%s': %s\n", in, i+1, name, e)
			default:
				fmt.Fprintf(b, "%s- in entry %d of '%s':\n", in, i+1, name)
				indent(b, in+"  ", e, name)
			}
		}
	}
}

// FlatError is what is wrong with one entity.
type FlatError struct {
	Type   string        `json:"entity_type"` // singular
	Name   string        `json:"entity_name,omitempty"`
	ID     string        `json:"entity_id,omitempty"`
	Tags   []any         `json:"entity_tags,omitempty"`
	Entity schema.Record `json:"entity"`
	Errors []Problem     `json:"errors"`
}

// Problem is one violation: of a field, or of a rule over the entity.
type Problem struct {
	Type     string   `json:"type"` // field, entity
	Field    string   `json:"field,omitempty"`
	Message  string   `json:"message,omitempty"`
	Messages []string `json:"messages,omitempty"` // of a list's elements
}

// Flat lists the errors of rows entity by entity (?flatten_errors=1).
func (d *Document) Flat(rows map[int]schema.Errors) []FlatError {
	list := []FlatError{}
	for _, i := range slices.Sorted(maps.Keys(rows)) {
		body := d.Rows[i].Body
		f := FlatError{Type: Singular(d.Rows[i].Entity), Entity: body}
		for _, key := range []string{"name", "username", "instance_name", "target", "key", "group", "prefix", "custom_id"} {
			if s, ok := body[key].(string); ok && f.Name == "" && !(key == "key" && d.Rows[i].Entity != "keys") {
				f.Name = s
			}
		}
		f.ID, _ = body["id"].(string)
		f.Tags, _ = body["tags"].([]any)
		f.Errors = problems(nil, "", rows[i])
		list = append(list, f)
	}
	return list
}

func problems(list []Problem, path string, v any) []Problem {
	join := func(k string) string {
		if path == "" {
			return k
		}
		return path + "." + k
	}
	switch v := v.(type) {
	case schema.Errors:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			texts, _ := v[k].([]any)
			if k != schema.EntityKey {
				list = problems(list, join(k), v[k])
				continue
			}
			for _, text := range texts {
				list = append(list, Problem{Type: "entity", Field: path, Message: fmt.Sprint(text)})
			}
		}
	case []any:
		var texts []string
		for i, e := range v {
			switch e := e.(type) {
			case nil:
			case string:
				texts = append(texts, e)
			default:
				list = problems(list, join(position(i)), e)
			}
		}
		if len(texts) > 0 {
			list = append(list, Problem{Type: "field", Field: path, Messages: texts})
		}
	default:
		list = append(list, Problem{Type: "field", Field: path, Message: fmt.Sprint(v)})
	}
	return list
}

// Singular is the name of one entity of a kind: "service", "jwt_secret".
func Singular(plural string) string { return strings.TrimSuffix(plural, "s") }

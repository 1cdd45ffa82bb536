package declarative

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

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
	for i, n := range at { // a row that is there twice has a text in its place
		texts, _ := n[schema.EntityKey].([]any)
		if i < 0 || len(n) != 1 || len(texts) != 1 || !strings.HasPrefix(fmt.Sprint(texts[0]), "uniqueness violation: ") {
			continue
		}
		r := &d.Rows[i]
		at[r.Parent][r.List].([]any)[r.Pos] = texts[0]
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

// FlatError is what is wrong with one entity. Name, ID and Tags are there only if they are valid (Kong), so that clients can read the answer.
type FlatError struct {
	Type   string        `json:"entity_type"` // singular
	Name   string        `json:"entity_name,omitempty"`
	ID     string        `json:"entity_id,omitempty"`
	Tags   []any         `json:"entity_tags,omitempty"`
	Entity schema.Record `json:"entity"` // as written, with a reference to what it was nested in if that has an id
	Errors []Problem     `json:"errors"`
}

// Problem is one violation: of a field, or of a rule over the entity.
type Problem struct {
	Type    string `json:"type"` // field, entity
	Field   string `json:"field,omitempty"`
	Message string `json:"message,omitempty"`
}

// Flat lists the errors of a document's rows, and those of form that are about single entities, entity by entity (?flatten_errors=1). rest is what remains of
// form. body is a row's entity.
func (l *Layout) Flat(d *Document, rows map[int]schema.Errors, form schema.Errors, body func(row int) schema.Record) (list []FlatError, rest schema.Errors) {
	list = []FlatError{}
	nodes := map[int]schema.Errors{-1: form} // of form, by row
	for i := range d.Rows {
		r := &d.Rows[i]
		own := rows[i]
		if parent := nodes[r.Parent]; parent != nil {
			if elements, _ := parent[r.List].([]any); r.Pos < len(elements) {
				if node, ok := elements[r.Pos].(schema.Errors); ok {
					nodes[i] = node
					own = Merge(maps.Clone(remaining(node)), own)
				}
			}
		}
		if len(own) == 0 {
			continue
		}
		entity := body(i)
		for _, ref := range l.defs[r.Entity].Schema.ForeignFields() { // a record in place of a reference counts as an entity of its own (Kong)
			errs, wrong := own[ref.Name].(schema.Errors)
			if rec, isRecord := entity[ref.Name].(schema.Record); wrong && isRecord {
				list = append(list, flatError(ref.Ref, rec, errs))
				own, entity = maps.Clone(own), maps.Clone(entity)
				delete(own, ref.Name)
				delete(entity, ref.Name)
			}
		}
		if len(own) == 0 {
			continue
		}
		f := flatError(r.Entity, entity, own)
		if r.Parent >= 0 && f.Entity[r.Field] == nil {
			if id := validID(body(r.Parent)); id != "" {
				f.Entity = maps.Clone(f.Entity)
				f.Entity[r.Field] = schema.Record{"id": id}
			}
		}
		list = append(list, f)
	}
	return list, remaining(form)
}

func flatError(entity string, rec schema.Record, errs schema.Errors) FlatError {
	f := FlatError{Type: Singular(entity), ID: validID(rec), Entity: rec, Errors: problems(nil, "", errs)}
	f.Name, _ = rec["name"].(string)
	if tags, ok := rec["tags"].([]any); ok && !slices.ContainsFunc(tags, func(t any) bool { _, isText := t.(string); return !isText }) {
		f.Tags = tags
	}
	return f
}

// remaining are errors without those of entities in lists.
func remaining(errs schema.Errors) schema.Errors {
	rest := schema.Errors{}
	for k, v := range errs {
		elements, isList := v.([]any)
		for i, e := range elements {
			if _, ofEntity := e.(schema.Errors); !ofEntity && e != nil {
				list, _ := rest[k].([]any)
				rest[k] = place(list, i, e)
			}
		}
		if !isList {
			rest[k] = v
		}
	}
	return rest
}

func validID(rec schema.Record) string {
	id, _ := rec["id"].(string)
	if len(id) != len(uuid.Nil.String()) || uuid.Validate(id) != nil {
		return ""
	}
	return id
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
				list = append(list, Problem{Type: "entity", Message: fmt.Sprint(text)})
			}
		}
	case []any:
		for i, e := range v {
			if e != nil {
				list = problems(list, join(position(i)), e)
			}
		}
	default:
		list = append(list, Problem{Type: "field", Field: path, Message: fmt.Sprint(v)})
	}
	return list
}

// Singular is the name of one entity of a kind: "service", "jwt_secret".
func Singular(plural string) string { return strings.TrimSuffix(plural, "s") }

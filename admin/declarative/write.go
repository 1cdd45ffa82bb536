package declarative

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"concord/fsm/schema"
)

// Writer writes a configuration as Kong exports it: format 3.0, one flat list for each kind of entity, references by id, every field.
type Writer struct {
	layout *Layout
	b      *bufio.Writer
	list   string
	err    error
}

// NewWriter begins a document.
func (l *Layout) NewWriter(w io.Writer) *Writer {
	out := &Writer{layout: l, b: bufio.NewWriterSize(w, 64<<10)}
	out.text("_format_version: \"3.0\"\n_transform: false\n")
	return out
}

func (w *Writer) text(s string) {
	if _, err := w.b.WriteString(s); w.err == nil {
		w.err = err
	}
}

// Add writes one entity. Those of a kind come one after the other.
func (w *Writer) Add(entity string, rec schema.Record) error {
	if entity != w.list {
		w.list = entity
		w.text(entity + ":\n")
	}
	rec = plain(rec).(schema.Record)
	for _, f := range w.layout.defs[entity].Schema.ForeignFields() {
		if ref, ok := rec[f.Name].(schema.Record); ok {
			rec[f.Name] = ref["id"]
		}
	}
	text, err := encodeYAML([]any{rec})
	if err != nil {
		return err
	}
	w.text(string(text))
	return w.err
}

// Close ends the document.
func (w *Writer) Close() error {
	if err := w.b.Flush(); w.err == nil {
		w.err = err
	}
	return w.err
}

func encodeYAML(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// NestOptions of Nest.
type NestOptions struct {
	WithIDs    bool     // keep ids and timestamps
	SelectTags []string // which all entities have: they are written once, in _info
}

// made are the fields that the gateway makes.
var made = []string{"id", "created_at", "updated_at"}

// Nest gives flat rows, as GET /config writes them, the form of decK's files: children in their parents, references by name, no
// nulls where null is the default, and without ids unless something cannot be told without one.
func (l *Layout) Nest(doc *Document, o NestOptions) schema.Record {
	n := nester{Layout: l, o: o, rows: doc.Rows, byID: map[string]int{}, needed: map[int]bool{}, under: map[int]int{}, joined: map[int]bool{}, out: map[int]schema.Record{}}
	for i, r := range doc.Rows {
		if id, ok := r.Body["id"].(string); ok {
			n.byID[r.Entity+"/"+id] = i
		}
	}
	out := schema.Record{"_format_version": "3.0"}
	if len(o.SelectTags) > 0 {
		tags := make([]any, len(o.SelectTags))
		for i, t := range o.SelectTags {
			tags[i] = t
		}
		out["_info"] = schema.Record{"select_tags": tags}
	}
	if n.digests() {
		out["_transform"] = false
	}
	for i := range doc.Rows {
		n.place(i)
	}
	for i := range doc.Rows {
		n.write(i)
	}
	for i, r := range doc.Rows {
		to, list := out, r.Entity
		if p, nested := n.under[i]; nested {
			to = n.out[p]
		}
		if n.joined[i] {
			list = n.defs[r.Entity].Joins[0].List
		}
		have, _ := to[list].([]any)
		to[list] = append(have, n.out[i])
	}
	n.sortLists(out)
	for _, rec := range n.out {
		n.sortLists(rec)
	}
	return plain(out).(schema.Record)
}

type nester struct {
	*Layout
	o      NestOptions
	rows   []Row
	byID   map[string]int
	needed map[int]bool // rows whose id must be written
	under  map[int]int  // row → the row it is nested in
	joined map[int]bool // rows that are an element of a list there
	out    map[int]schema.Record
}

// digests tells whether there are passwords that were hashed together with the id of their consumer: they mean nothing without it.
func (n *nester) digests() (some bool) {
	for i, r := range n.rows {
		if r.Entity != "basicauth_credentials" {
			continue
		}
		some = true
		for _, f := range n.defs[r.Entity].Schema.ForeignFields() {
			if to, ok := n.target(i, f); ok {
				n.needed[to] = true
			}
		}
	}
	return some
}

func (n *nester) target(i int, f schema.Field) (int, bool) {
	id, _ := n.rows[i].Body[f.Name].(string)
	to, ok := n.byID[f.Ref+"/"+id]
	return to, ok && id != ""
}

// place decides where a row goes: below what it refers to if that is one thing, a join into a list of its first end.
func (n *nester) place(i int) {
	r := n.rows[i]
	if def := n.defs[r.Entity]; def.Joins != nil {
		near, _ := def.Schema.Field(def.Joins[0].Field)
		far, _ := def.Schema.Field(def.OtherEnd(near.Name))
		owner, ok := n.target(i, *near)
		if other, both := n.target(i, *far); ok && both {
			n.under[i], n.joined[i] = owner, true
			n.needed[other] = n.needed[other] || n.key(other) == ""
			return
		}
	}
	parent, field, refs := -1, "", 0
	for _, f := range n.defs[r.Entity].Schema.ForeignFields() {
		if to, ok := n.target(i, f); ok {
			refs++
			if n.children[f.Ref][r.Entity] == f.Name && f.Name != "client_certificate" {
				parent, field = to, f.Name
			}
		}
	}
	if refs == 1 && parent >= 0 && field != "" {
		n.under[i] = parent
		return
	}
	for _, f := range n.defs[r.Entity].Schema.ForeignFields() {
		if to, ok := n.target(i, f); ok && n.key(to) == "" {
			n.needed[to] = true
		}
	}
}

// key is the name by which a row can be referred to, "" when only its id tells it.
func (n *nester) key(i int) string {
	s, _ := n.rows[i].Body[n.defs[n.rows[i].Entity].Schema.EndpointKey].(string)
	return s
}

func (n *nester) write(i int) {
	r := n.rows[i]
	def := n.defs[r.Entity]
	if n.joined[i] {
		far, _ := def.Schema.Field(def.OtherEnd(def.Joins[0].Field))
		other, _ := n.target(i, *far)
		n.out[i] = schema.Record{"id": r.Body[far.Name]}
		if name := n.key(other); name != "" {
			n.out[i] = schema.Record{n.defs[far.Ref].Schema.EndpointKey: name}
		}
		return
	}
	rec := schema.Record{}
	for k, v := range r.Body {
		f, known := def.Schema.Field(k)
		if v == nil && (!known || f.Default == nil) {
			continue
		}
		rec[k] = v
	}
	for _, f := range def.Schema.ForeignFields() {
		to, ok := n.target(i, f)
		if p, nested := n.under[i]; nested && ok && p == to {
			delete(rec, f.Name)
		} else if ok && n.key(to) != "" {
			rec[f.Name] = n.key(to)
		}
	}
	if def.Members != nil {
		delete(rec, def.Members.Field)
	}
	if !n.o.WithIDs {
		for _, k := range made {
			if k == "id" && (n.needed[i] || n.listed(i)) {
				continue
			}
			delete(rec, k)
		}
	}
	if tags, ok := rec["tags"].([]any); ok && len(n.o.SelectTags) > 0 {
		tags = slices.DeleteFunc(slices.Clone(tags), func(t any) bool { s, _ := t.(string); return slices.Contains(n.o.SelectTags, s) })
		if rec["tags"] = tags; len(tags) == 0 {
			delete(rec, "tags")
		}
	}
	n.out[i] = rec
}

// listed tells whether lists of ids may name the row (ca_certificates of a service).
func (n *nester) listed(i int) bool { return n.rows[i].Entity == "ca_certificates" }

// sortLists puts entities into the order of their names, so that equal configurations are equal texts.
func (l *Layout) sortLists(rec schema.Record) {
	names := slices.Collect(maps.Keys(l.defs))
	for _, joins := range l.joins {
		for _, j := range joins {
			names = append(names, j.list)
		}
	}
	for _, name := range names {
		if list, ok := rec[name].([]any); ok {
			slices.SortStableFunc(list, func(a, b any) int { return strings.Compare(sortKey(a), sortKey(b)) })
		}
	}
}

func sortKey(v any) string {
	rec, _ := v.(schema.Record) // in lists of plain text nothing moves
	var key strings.Builder
	for _, f := range []string{"name", "username", "custom_id", "target", "prefix", "group", "key", "client_id", "kid", "cert", "id"} {
		s, _ := rec[f].(string)
		key.WriteString(s + "\x00")
	}
	return key.String()
}

// Marshal writes a nested document as YAML, the head first.
func Marshal(doc schema.Record) ([]byte, error) {
	var b bytes.Buffer
	keys := make([]string, 0, len(doc))
	for k := range doc {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return strings.Compare(sortHead(a), sortHead(b)) })
	for _, k := range keys {
		text, err := encodeYAML(schema.Record{k: doc[k]})
		if err != nil {
			return nil, err
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

func sortHead(k string) string {
	if strings.HasPrefix(k, "_") {
		return " " + k
	}
	return k
}

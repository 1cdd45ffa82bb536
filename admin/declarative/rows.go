package declarative

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// Document is a configuration as rows.
type Document struct {
	Version    string // "1.1", "2.1", "3.0"
	Transform  bool   // passwords and secrets are in clear and are to be hashed
	SelectTags []string
	Rows       []Row // parents before their children
}

// Row is one entity of a document.
type Row struct {
	Entity string        // plural name
	Body   schema.Record // as written, without nested entities; references are text (an id or key) or records
	Parent int           // index of the row it is nested in, -1 at the top
	Field  string        // its field that refers to the parent
	List   string        // the key of the list it stands in
	Pos    int           // there, from 0
}

// Layout knows which entities a document may hold, and what may be nested in what.
type Layout struct {
	defs     map[string]entity.Def
	order    []string
	children map[string]map[string]string // entity → nested entity → the nested one's field that refers to it
	joins    map[string][]join            // entity → its lists of those that it belongs together with
}

// join is a list in which each element names the other end of a row of a join: "groups" of a consumer.
type join struct{ list, entity, field, other, ref string }

// NewLayout makes it of the entities; internal ones are left out.
func NewLayout(defs []entity.Def) *Layout {
	l := &Layout{defs: map[string]entity.Def{}, children: map[string]map[string]string{}, joins: map[string][]join{}}
	for _, d := range defs {
		if d.Schema.Internal {
			continue
		}
		l.defs[d.Schema.Name] = d
		l.order = append(l.order, d.Schema.Name)
	}
	for _, name := range l.order {
		for _, f := range l.defs[name].Schema.ForeignFields() {
			if l.children[f.Ref] == nil {
				l.children[f.Ref] = map[string]string{}
			}
			if _, taken := l.children[f.Ref][name]; !taken {
				l.children[f.Ref][name] = f.Name
			}
		}
		for _, j := range l.defs[name].Joins {
			near, _ := l.defs[name].Schema.Field(j.Field)
			far, _ := l.defs[name].Schema.Field(l.defs[name].OtherEnd(j.Field))
			l.joins[near.Ref] = append(l.joins[near.Ref], join{list: j.List, entity: name, field: near.Name, other: far.Name, ref: far.Ref})
		}
	}
	return l
}

// Knows tells whether there is such an entity.
func (l *Layout) Knows(name string) bool {
	_, ok := l.defs[name]
	return ok
}

// The formats. Before 3.0 a path was a regular expression if it looked like one; since then it begins with "~".
var versions = []any{"1.1", "2.1", "3.0"}

// ignored are the keys that exports of Kong hold beside the configuration: there is one workspace, and the cluster's parameters are its own.
var ignored = []string{"workspaces", "parameters"}

// Rows reads the rows out of a parsed document, which it takes apart. The errors are those of the document's form, with the rows
// that could be read all the same; what is wrong in a row's fields is for the schemas to say.
func (l *Layout) Rows(doc schema.Record) (*Document, schema.Errors) {
	return l.RowsWith(doc, func() {})
}

// RowsWith is Rows that calls rest for each row.
func (l *Layout) RowsWith(doc schema.Record, rest func()) (*Document, schema.Errors) {
	w := walker{Layout: l, doc: Document{Transform: true}, errs: schema.Errors{}, rest: rest}
	w.head(doc)
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		if _, known := l.defs[key]; !known && !slices.Contains(ignored, key) {
			w.errs[key] = "unknown field"
		}
	}
	for _, name := range l.order {
		v, there := doc[name]
		if !there || v == nil {
			continue
		}
		if err := w.list(name, v, -1, ""); err != nil {
			w.errs[name] = err
		}
	}
	if len(w.errs) > 0 {
		return &w.doc, w.errs
	}
	return &w.doc, nil
}

type walker struct {
	*Layout
	doc           Document
	errs          schema.Errors
	defaults      schema.Record // of decK: by entity, in the singular
	pluginConfigs schema.Record // of decK: shared configurations by name
	rest          func()
}

// head takes the members out of the document that are not lists of entities.
func (w *walker) head(doc schema.Record) {
	take := func(key string) (any, bool) {
		v, ok := doc[key]
		delete(doc, key)
		return v, ok
	}
	version, ok := take("_format_version")
	text, isText := version.(string)
	switch {
	case !ok || version == nil:
		w.errs["_format_version"] = "required field missing"
	case !isText:
		w.errs["_format_version"] = "expected a string"
	case !slices.Contains(versions, any(text)):
		w.errs["_format_version"] = "expected one of: 1.1, 2.1, 3.0"
	}
	w.doc.Version = text
	if v, ok := take("_transform"); ok && v != nil {
		if w.doc.Transform, ok = v.(bool); !ok {
			w.errs["_transform"] = "expected a boolean"
		}
	}
	comments(doc, w.errs)
	if v, _ := take("_workspace"); v != nil && v != "default" {
		w.errs["_workspace"] = "there is one workspace, default"
	}
	info, _ := take("_info")
	record, isRecord := info.(schema.Record)
	if info != nil && !isRecord {
		w.errs["_info"] = "expected a record"
	}
	for key, v := range record {
		switch key {
		case "select_tags":
			list, ok := v.([]any)
			for _, tag := range list {
				text, isText := tag.(string)
				ok = ok && isText
				w.doc.SelectTags = append(w.doc.SelectTags, text)
			}
			if !ok && v != nil {
				w.errs["_info"] = schema.Errors{key: "expected an array of strings"}
			}
		case "defaults":
			if w.defaults, ok = v.(schema.Record); !ok && v != nil {
				w.errs["_info"] = schema.Errors{key: "expected a record"}
			}
		default:
			w.errs["_info"] = schema.Errors{key: "unknown field"}
		}
	}
	if v, _ := take("_plugin_configs"); v != nil {
		if w.pluginConfigs, ok = v.(schema.Record); !ok {
			w.errs["_plugin_configs"] = "expected a record"
		}
	}
}

// comments takes what is allowed anywhere and means nothing.
func comments(rec schema.Record, errs schema.Errors) {
	if v, ok := rec["_comment"]; ok {
		if _, isText := v.(string); !isText && v != nil {
			errs["_comment"] = "expected a string"
		}
		delete(rec, "_comment")
	}
	if v, ok := rec["_ignore"]; ok {
		if _, isList := v.([]any); !isList && v != nil {
			errs["_ignore"] = "expected an array"
		}
		delete(rec, "_ignore")
	}
}

// list reads the entities of one list; the error is nil, a text, or a list of errors by position.
func (w *walker) list(name string, v any, parent int, field string) any {
	list, ok := v.([]any)
	if rec, empty := v.(schema.Record); !ok && empty && len(rec) == 0 { // what languages with one type for both write
		ok = true
	}
	if !ok {
		return "expected an array"
	}
	var errs []any
	for i, e := range list {
		if err := w.entity(name, e, parent, field, i); err != nil {
			errs = place(errs, i, err)
		}
	}
	if errs == nil {
		return nil
	}
	return errs
}

func place(list []any, i int, err any) []any {
	for len(list) <= i {
		list = append(list, nil)
	}
	list[i] = err
	return list
}

func (w *walker) entity(name string, v any, parent int, field string, pos int) any {
	w.rest()
	def := w.defs[name]
	rec, ok := v.(schema.Record)
	if text, isText := v.(string); isText && parent >= 0 && w.names(w.doc.Rows[parent].Entity, name) {
		rec, ok = schema.Record{def.Schema.EndpointKey: text}, true
	}
	if !ok {
		return "expected a record"
	}
	if w.defaults != nil {
		rec = maps.Clone(rec) // rows share what comes from there
	}
	errs := schema.Errors{}
	comments(rec, errs)
	if name == "plugins" {
		w.shared(rec, errs)
	}
	if defaults, ok := w.defaults[strings.TrimSuffix(name, "s")].(schema.Record); ok {
		for k, x := range defaults {
			if _, given := rec[k]; !given {
				rec[k] = x
			}
		}
	}
	if name == "routes" && w.doc.Version != "3.0" {
		MarkRegexes(rec)
	}
	if field != "" && rec[field] != nil {
		if !w.isParent(rec[field], w.doc.Rows[parent]) {
			errs[field] = "unknown field"
		}
		delete(rec, field)
	}
	self := len(w.doc.Rows)
	w.doc.Rows = append(w.doc.Rows, Row{Entity: name, Body: rec, Parent: parent, Field: field, List: name, Pos: pos})
	kinds := w.children[name]
	for _, child := range w.order {
		ref, nested := kinds[child]
		if !nested {
			continue
		}
		if x, there := rec[child]; there {
			delete(rec, child)
			if x == nil {
				continue
			}
			if err := w.list(child, x, self, ref); err != nil {
				errs[child] = err
			}
		}
	}
	for _, j := range w.joins[name] {
		if x := rec[j.list]; x != nil {
			delete(rec, j.list)
			if err := w.join(j, x, self); err != nil {
				errs[j.list] = err
			}
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// join reads a list of names, ids or records that tell one of them (decK).
func (w *walker) join(j join, v any, owner int) any {
	list, ok := v.([]any)
	if !ok {
		return "expected an array"
	}
	var errs []any
	for i, e := range list {
		ref := w.told(w.defs[j.ref].Schema, e)
		if ref == nil {
			errs = place(errs, i, "expected a name or an id")
			continue
		}
		w.doc.Rows = append(w.doc.Rows, Row{Entity: j.entity, Body: schema.Record{j.other: ref}, Parent: owner, Field: j.field, List: j.list, Pos: i})
	}
	if errs == nil {
		return nil
	}
	return errs
}

// told is the reference that a text or the record of an entity is; nil when it tells none.
func (w *walker) told(sch *schema.Schema, v any) any {
	if text, ok := v.(string); ok {
		return text
	}
	rec, _ := v.(schema.Record)
	for _, f := range sch.Fields {
		if key := f.Name; (f.Unique || key == "id") && key != sch.EndpointKey && rec[sch.EndpointKey] == nil && rec[key] != nil {
			return schema.Record{key: rec[key]}
		}
	}
	if name := rec[sch.EndpointKey]; name != nil {
		return schema.Record{sch.EndpointKey: name}
	}
	return nil
}

// isParent tells whether a reference is to the row around it, which Kong's ingress controller names again inside.
func (w *walker) isParent(ref any, parent Row) bool {
	if rec, ok := ref.(schema.Record); ok {
		ref = rec["id"]
	}
	text, ok := ref.(string)
	if !ok {
		return false
	}
	key := w.defs[parent.Entity].Schema.EndpointKey
	return parent.Body["id"] == text || key != "" && parent.Body[key] == text
}

// names tells whether entities of the kind may be written as bare names under the parent: snis of a certificate.
func (l *Layout) names(parent, child string) bool {
	m := l.defs[parent].Members
	return m != nil && m.Entity == child
}

// shared lays a plugin's own configuration over the one that it names (decK).
func (w *walker) shared(rec schema.Record, errs schema.Errors) {
	name, there := rec["_config"]
	if !there {
		return
	}
	delete(rec, "_config")
	text, _ := name.(string)
	base, ok := w.pluginConfigs[text].(schema.Record)
	if !ok {
		errs["_config"] = fmt.Sprintf("_plugin_configs has no %q", text)
		return
	}
	own, _ := rec["config"].(schema.Record)
	config := maps.Clone(base)
	maps.Copy(config, own)
	rec["config"] = config
}

// literalPath is a path that no one would have meant as a regular expression (Kong's migration from 2.8).
var literalPath = regexp.MustCompile(`^[A-Za-z0-9._~/%-]*$`)

// MarkRegexes puts "~" before the paths of a route that were regular expressions before format 3.0; false if there are none.
func MarkRegexes(rec schema.Record) (marked bool) {
	list, _ := rec["paths"].([]any)
	list = slices.Clone(list)
	for i, p := range list {
		if s, ok := p.(string); ok && !strings.HasPrefix(s, "~") && !literalPath.MatchString(s) {
			list[i], marked = "~"+s, true
		}
	}
	if marked {
		rec["paths"] = list
	}
	return marked
}

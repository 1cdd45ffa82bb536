package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"concord/fsm"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// lookup finds what a Target names in one view, in which expired rows are hidden.
type lookup struct {
	s     *Service
	view  *state.View
	grant grant // of whom it is for; none: of the gateway itself
}

func (s *Service) lookup(v *state.View) lookup { return lookup{s: s, view: v} }

// place is where a Target leads.
type place struct {
	row    state.AnyRow
	found  bool
	parent state.AnyRow
	fixed  schema.Record // what the URL says about a new row's fields
	member string        // a member's name in the URL of an upsert
}

func (l lookup) place(t Target, verb Verb) (place, error) {
	table, ok := l.s.tables[t.Entity]
	if !ok {
		return place{}, notFound()
	}
	p := place{fixed: schema.Record{}}
	if t.Parent != nil {
		if err := l.enter(&p, t); err != nil {
			return place{}, err
		}
		if t.Parent.Owner {
			return l.owned(p, table, t, verb)
		}
	}
	if t.Ref == "" {
		return p, nil
	}
	if table.Def().Joins != nil && t.Parent != nil {
		err := l.joined(&p, table, t)
		return p, err
	}
	key, value, index := l.reference(table, t, p)
	var err error
	if index != "" {
		p.row, p.found = table.By(l.view, index, value)
	} else if p.row, p.found, err = l.find(table, t.Ref); err != nil {
		return place{}, err
	}
	if verb == Upsert {
		if id, err := state.ParseID(t.Ref); err == nil {
			key, t.Ref = "id", id.String()
		}
		if key != "" {
			p.fixed[key] = t.Ref
		} else {
			p.member = t.Ref
		}
		return p, nil
	}
	if t.Parent != nil && p.found && foreignID(p.row, t.Parent.Field) != p.parent.ID.String() {
		p.row, p.found = state.AnyRow{}, false // another parent's
	}
	return p, nil
}

// enter finds the parent and notes that a new row belongs to it.
func (l lookup) enter(p *place, t Target) error {
	table, ok := l.s.tables[t.Parent.Entity]
	if !ok {
		return notFound()
	}
	row, ok, err := l.find(table, t.Parent.Ref)
	if err != nil {
		return err
	}
	if !ok {
		return l.absent(table, t.Parent.Ref)
	}
	p.parent = row
	if !t.Parent.Owner {
		p.fixed[t.Parent.Field] = schema.Record{"id": row.ID.String()}
	}
	return nil
}

// owned follows the parent's foreign key to the target.
func (l lookup) owned(p place, table state.AnyTable, t Target, verb Verb) (place, error) {
	id, err := state.ParseID(foreignID(p.parent, t.Parent.Field))
	if err == nil {
		p.row, p.found = table.Get(l.view, id)
	}
	if !p.found && verb != Upsert {
		return place{}, notFound()
	}
	return p, nil
}

// reference says by which field a Target's Ref is meant, and the composite index when it counts under its parent only.
func (l lookup) reference(table state.AnyTable, t Target, p place) (field, key, index string) {
	def := table.Def()
	if t.Parent == nil || def.NestedKey == "" {
		return def.Schema.EndpointKey, "", ""
	}
	if _, err := state.ParseID(t.Ref); err == nil {
		return def.Schema.EndpointKey, "", ""
	}
	for _, names := range def.Schema.Unique {
		if !slices.Contains(names, def.NestedKey) || !slices.Contains(names, t.Parent.Field) {
			continue
		}
		parts := make([]string, len(names))
		for i, n := range names {
			switch n {
			case def.NestedKey:
				parts[i] = t.Ref
			case t.Parent.Field:
				parts[i] = p.parent.ID.String()
			}
		}
		return def.NestedKey, state.Key(parts...), strings.Join(names, ":")
	}
	return def.Schema.EndpointKey, "", ""
}

// other is the field of a join's row that does not refer to the parent, and what it refers to.
func (l lookup) other(table state.AnyTable, t Target) (string, state.AnyTable) {
	field, _ := table.Def().Schema.Field(table.Def().OtherEnd(t.Parent.Field))
	return field.Name, l.s.tables[field.Ref]
}

// joined finds the row of a join that Ref, an id or name of what it refers to beside the parent, means.
func (l lookup) joined(p *place, table state.AnyTable, t Target) error {
	field, to := l.other(table, t)
	row, ok, err := l.find(to, t.Ref)
	if err != nil {
		return err
	}
	if !ok {
		return l.absent(to, t.Ref)
	}
	p.fixed[field] = schema.Record{"id": row.ID.String()}
	for _, names := range table.Def().Schema.Unique {
		parts := make([]string, len(names))
		for i, n := range names {
			parts[i] = keyPart(p.fixed[n])
		}
		p.row, p.found = table.By(l.view, strings.Join(names, ":"), state.Key(parts...))
	}
	return nil
}

// find looks a row up by id, by the schema's alternative key or by a member's name.
func (l lookup) find(table state.AnyTable, ref string) (state.AnyRow, bool, error) {
	if id, err := state.ParseID(ref); err == nil {
		row, ok := table.Get(l.view, id)
		return row, ok, nil
	}
	if table.Def().Members != nil {
		return l.byMember(table, ref)
	}
	sch := table.Def().Schema
	key := sch.EndpointKey
	if key == "" {
		const text = "expected a valid UUID"
		return state.AnyRow{}, false, refuse(InvalidKey, map[string]any{"id": text}, "invalid primary key: '{id=%q}'", text).
			withHint(sch.Name + " have no name: use the id that GET /" + table.Def().CollectionName() + " shows")
	}
	if text := sch.CheckField(key, ref); text != "" {
		e := refuse(InvalidUnique, nil, "%s", text)
		e.Name = "invalid unique " + key
		return state.AnyRow{}, false, e
	}
	row, ok := table.By(l.view, key, ref)
	return row, ok, nil
}

// absent is the answer to a reference that finds nothing.
func (l lookup) absent(table state.AnyTable, ref string) *Error {
	if m := table.Def().Members; m != nil {
		if _, err := state.ParseID(ref); err != nil {
			return &Error{Kind: Missing, Message: m.NotFound}
		}
	}
	return notFound().withHint(l.similar(table, ref))
}

// missing is Kong's refusal to change what does not exist.
func (l lookup) missing(t Target) error {
	table := l.s.tables[t.Entity]
	id, err := state.ParseID(t.Ref)
	switch {
	case t.Parent != nil, err != nil && table.Def().Members != nil:
		return l.absent(table, t.Ref)
	case err == nil:
		return refuse(NotFound, map[string]any{"id": id.String()}, "could not find the entity with primary key '{id=%q}'", id)
	}
	key := map[string]any{table.Def().Schema.EndpointKey: t.Ref}
	return refuse(NotFound, key, "could not find the entity with '%s'", keyText(key)).withHint(l.similar(table, t.Ref))
}

// foreignID is the id that a row's foreign field holds, "" when null.
func foreignID(row state.AnyRow, field string) string {
	var rec map[string]json.RawMessage
	if json.Unmarshal(row.Raw, &rec) != nil {
		return ""
	}
	var ref struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(rec[field], &ref) != nil {
		return ""
	}
	return ref.ID
}

// resolveForeign replaces references by unique field ({"name": …}) with references by id.
func (p *planner) resolveForeign(body schema.Record) error {
	unresolved := map[string]any{}
	var hint string
	for _, f := range p.def.Schema.ForeignFields() {
		ref, ok := body[f.Name].(schema.Record)
		target := p.s.tables[f.Ref]
		if !ok || target == nil || ref["id"] != nil {
			continue
		}
		for _, u := range target.Def().Schema.Fields {
			value, ok := ref[u.Name].(string)
			if !u.Unique || !ok {
				continue
			}
			row, ok := target.By(p.view, u.Name, value)
			if !ok {
				unresolved[f.Name] = map[string]any{u.Name: fmt.Sprintf("the foreign key cannot be resolved with '%s' for an existing '%s' entity",
					keyText(map[string]any{u.Name: value}), f.Ref)}
				hint = p.s.lookup(p.view).similarOr(target, value)
				break
			}
			body[f.Name] = schema.Record{"id": row.ID.String()}
			break
		}
	}
	if len(unresolved) == 0 {
		return nil
	}
	var texts []string
	for f, m := range unresolved {
		for u, text := range m.(map[string]any) {
			texts = append(texts, f+"."+u+": "+text.(string))
		}
	}
	sort.Strings(texts)
	prefix := "foreign key unresolved"
	if len(texts) > 1 {
		prefix = fmt.Sprintf("%d foreign keys unresolved", len(texts))
	}
	return refuse(ForeignUnresolved, unresolved, "%s (%s)", prefix, strings.Join(texts, "; ")).withHint(hint)
}

// foreignErrors has records that are no references judged by the schema of what they were meant to refer to, as Kong does: its errors
// say more than that the id is missing.
func (s *Service) foreignErrors(sch *schema.Schema, body schema.Record, form bool, errs schema.Errors) {
	for _, f := range sch.ForeignFields() {
		ref, isRecord := body[f.Name].(schema.Record)
		target, known := s.tables[f.Ref]
		if _, wrong := errs[f.Name].(schema.Errors); !wrong || !isRecord || !known {
			continue
		}
		if form {
			ref = target.Def().Schema.Coerce(ref, s.o.Plugins)
		}
		if own := target.Def().Schema.Partial(ref, schema.Options{Sub: s.o.Plugins}); own != nil {
			errs[f.Name] = own
		}
	}
}

// meant is what a record of a document says in place of a reference: an id, whatever else it holds, or one unique field alone.
func (s *Service) meant(sch *schema.Schema, ref schema.Record) (key, value string, errs schema.Errors) {
	if id, ok := ref["id"].(string); ok && schema.IsUUID(id) {
		return "id", id, nil
	}
	for k, x := range ref {
		text, ok := x.(string)
		if f, _ := sch.Field(k); ok && f != nil && f.Unique && len(ref) == 1 {
			return k, text, nil
		}
	}
	if errs = sch.Partial(ref, schema.Options{Sub: s.o.Plugins}); errs == nil {
		errs = schema.Errors{"id": "missing primary key"}
	}
	return "", "", errs
}

// checkForeign refuses references to nothing and writes ids in their canonical form.
func (p *planner) checkForeign(rec schema.Record) error {
	for _, f := range p.def.Schema.ForeignFields() {
		ref, ok := rec[f.Name].(schema.Record)
		if !ok {
			continue
		}
		text, _ := ref["id"].(string)
		id, err := state.ParseID(text)
		target := p.s.tables[f.Ref]
		if err == nil && target != nil {
			if _, ok := target.Get(p.view, id); ok {
				rec[f.Name] = schema.Record{"id": id.String()}
				continue
			}
		}
		e := refuse(ForeignKey, map[string]any{f.Name: ref}, "the foreign key '%s' does not reference an existing '%s' entity.", keyText(ref), f.Ref)
		if target == nil {
			return e.withHint("this gateway has no " + f.Ref + " yet: leave " + f.Name + " out")
		}
		return e.withHint("list what exists with GET /" + target.Def().CollectionName())
	}
	return nil
}

// checkUnique refuses values that another row has.
func (p *planner) checkUnique(rec schema.Record, id state.ID) error {
	for _, names := range uniqueKeys(p.def.Schema) {
		parts := make([]string, len(names))
		for i, n := range names {
			parts[i] = keyPart(rec[n])
		}
		if len(names) == 1 && parts[0] == "" {
			continue
		}
		other, ok := p.table.By(p.view, strings.Join(names, ":"), state.Key(parts...))
		if !ok || other.ID == id {
			continue
		}
		key := map[string]any{}
		for _, n := range names {
			if v, ok := rec[n]; ok {
				key[n] = v
			}
		}
		return refuse(UniqueTaken, key, "UNIQUE violation detected on '%s'", keyText(key)).withHint(p.takenHint(other, names))
	}
	return nil
}

// uniqueKeys lists the unique keys of a schema, single fields first, as the store names its indexes.
func uniqueKeys(s *schema.Schema) [][]string {
	var keys [][]string
	for _, f := range s.Fields {
		if f.Unique {
			keys = append(keys, []string{f.Name})
		}
	}
	return append(keys, s.Unique...)
}

// keyPart is the text of one field in a unique key, "" for null.
func keyPart(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case schema.Record:
		id, _ := v["id"].(string)
		return strings.ToLower(id)
	case nil:
		return ""
	}
	b, _ := json.Marshal(v)
	return string(b)
}

func referenced(entity, by string) *Error {
	return refuse(ForeignKey, map[string]any{"@referenced_by": by}, "an existing '%s' entity references this '%s' entity", by, entity)
}

// applyError renders a refusal of the machine that planning anew did not explain: other writes kept getting in between, or
// a cascade reached a row that may not go.
func applyError(err error) error {
	var restricted *fsm.RestrictedError
	if errors.As(err, &restricted) {
		return referenced(restricted.Table, restricted.By).withHint(restricted.Error())
	}
	var unique *fsm.UniqueError
	var missing *fsm.ForeignKeyError
	var conflict *fsm.ConflictError
	var gone *fsm.NotFoundError
	if errors.As(err, &unique) || errors.As(err, &missing) || errors.As(err, &conflict) || errors.As(err, &gone) {
		return &Error{Kind: Unavailable, Message: "nothing was stored: others keep changing the same entities: " + err.Error()}
	}
	return err
}

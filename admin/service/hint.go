package service

import (
	"fmt"
	"strings"

	"concord/fsm/schema"
	"concord/fsm/state"
)

// similarRows bounds the search for a name that was meant, so that unknown names cost little on large tables: each row is decoded, some 10 µs.
const similarRows = 200

func (e *Error) withHint(hint string) *Error {
	e.Hint = hint
	return e
}

// similar names the row that was probably meant by a reference that finds nothing: one whose key differs in case or by a
// trailing slash, or that has the reference as another unique value.
func (l lookup) similar(table state.AnyTable, ref string) string {
	sch := table.Def().Schema
	if key, ok := sch.Field(sch.EndpointKey); !ok || key.Secret || ref == "" { // what is nearly a secret is nobody's to know
		return ""
	}
	for _, f := range sch.Fields {
		if !f.Unique || f.Name == sch.EndpointKey {
			continue
		}
		if row, ok := table.By(l.view, f.Name, ref); ok {
			return fmt.Sprintf("%s are addressed by %s or id, not by %s: %q is the %s of %s", sch.Name, sch.EndpointKey, f.Name, ref, f.Name, l.nameOf(table, row))
		}
	}
	if row, ok := table.By(l.view, sch.EndpointKey, ref); ok {
		if _, err := state.ParseID(ref); err == nil {
			return fmt.Sprintf("what looks like an id is taken as one: the one with this %s has the id %s", sch.EndpointKey, row.ID)
		}
		return fmt.Sprintf("there is one with this %s, but it belongs to something else", sch.EndpointKey)
	}
	for _, likely := range []string{strings.ToLower(ref), strings.ToUpper(ref), strings.ToUpper(ref[:1]) + strings.ToLower(ref[1:])} {
		if _, ok := table.By(l.view, sch.EndpointKey, likely); ok && likely != ref {
			return fmt.Sprintf("%s is case-sensitive: did you mean %q?", sch.EndpointKey, likely)
		}
	}
	seen := 0
	for row := range table.Scan(l.view, sch.EndpointKey, "", state.ID{}) {
		if seen++; seen > similarRows {
			break
		}
		name := l.keyOf(table, row)
		switch {
		case strings.EqualFold(name, ref):
			return fmt.Sprintf("%s is case-sensitive: did you mean %q?", sch.EndpointKey, name)
		case strings.EqualFold(strings.TrimSuffix(name, "/"), strings.TrimSuffix(ref, "/")):
			return fmt.Sprintf("%s %q differs by a trailing slash", sch.EndpointKey, name)
		}
	}
	return ""
}

func (l lookup) similarOr(table state.AnyTable, ref string) string {
	if hint := l.similar(table, ref); hint != "" {
		return hint
	}
	return "list what exists with GET /" + table.Def().CollectionName()
}

// keyOf is a row's alternative key, "" without.
func (l lookup) keyOf(table state.AnyTable, row state.AnyRow) string {
	rec, err := l.s.record(table, row)
	if err != nil {
		return ""
	}
	key, _ := rec[table.Def().Schema.EndpointKey].(string)
	return key
}

func (l lookup) nameOf(table state.AnyTable, row state.AnyRow) string {
	if key := l.keyOf(table, row); key != "" {
		return fmt.Sprintf("%q", key)
	}
	return row.ID.String()
}

// takenHint points at the row that has a unique value already.
func (p *planner) takenHint(row state.AnyRow, key []string) string {
	what := p.def.Schema.Name + " " + row.ID.String()
	path := "/" + p.def.CollectionName() + "/" + row.ID.String()
	if len(key) > 1 {
		return fmt.Sprintf("%s is the same combination of %s: change it with PATCH %s (what you send is merged) or PUT %s (replaces it)",
			what, strings.Join(key, ", "), path, path)
	}
	return fmt.Sprintf("%s has this %s: change it with PATCH %s, or choose another", what, key[0], path)
}

// unknownFieldHint explains unknown fields that look like a foreign key in the style of old tutorials, or misspelt.
func (p *planner) unknownFieldHint(errs schema.Errors) string {
	for name, text := range errs {
		if text != "unknown field" {
			continue
		}
		if f, ok := p.def.Schema.Field(strings.TrimSuffix(name, "_id")); ok && f.Type == schema.Foreign {
			return fmt.Sprintf("write %s.id=… in a form, or \"%s\":{\"id\":\"…\"} in JSON, instead of %s", f.Name, f.Name, name)
		}
		for _, f := range p.def.Schema.Fields {
			if f.Name == name+"s" || f.Name+"s" == name || strings.ReplaceAll(name, "-", "_") == f.Name || strings.EqualFold(f.Name, name) {
				return fmt.Sprintf("did you mean %s instead of %s?", f.Name, name)
			}
		}
	}
	return ""
}

// advice warns about a write that is valid but probably not what was meant.
func (p *planner) advice(rec schema.Record) string {
	var advice []string
	if p.def.Advise != nil {
		if text := p.def.Advise(rec); text != "" {
			advice = append(advice, text)
		}
	}
	for _, f := range p.def.Schema.Fields {
		target := p.s.tables[listed(f)]
		if target == nil {
			continue
		}
		for _, text := range texts(rec[f.Name]) {
			id, err := state.ParseID(text)
			if err != nil {
				continue
			}
			if _, ok := target.Get(p.view, id); !ok {
				advice = append(advice, fmt.Sprintf("%s: there is no %s %s yet", f.Name, singular(listed(f)), id))
			}
		}
	}
	return strings.Join(advice, "; ")
}

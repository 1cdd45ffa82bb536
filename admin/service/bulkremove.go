package service

import (
	"bytes"
	"iter"
	"maps"
	"slices"

	"concord/fsm/schema"
	"concord/fsm/state"
)

// removals finds what goes with Bulk.Removals.
func (p *bulkPlan) removals() error {
	p.removed = map[string]map[state.ID]bool{}
	l := p.s.lookup(p.view)
	for _, r := range p.b.Removals {
		t, ok := p.s.tables[r.Entity]
		if !ok {
			return refuse(Malformed, nil, "there is no entity %q", r.Entity)
		}
		row, found, err := l.find(t, r.Ref)
		if err != nil {
			return err
		}
		if err := p.conditions(r.Conditions, t, row); err != nil {
			return err
		}
		if found {
			p.remove(t, row, true)
		}
	}
	return nil
}

// remove notes a row, and those that its deletion deletes.
func (p *bulkPlan) remove(t state.AnyTable, row state.AnyRow, named bool) {
	of := p.removed[t.Name()]
	if of == nil {
		of = map[state.ID]bool{}
		p.removed[t.Name()] = of
	}
	if known, ok := of[row.ID]; ok {
		of[row.ID] = known || named
		return
	}
	of[row.ID] = named
	p.referring(t, row, schema.Cascade, func(by state.AnyTable, child state.AnyRow) bool {
		if !by.Def().Runtime { // there may be very many: they go without being listed
			p.remove(by, child, false)
		}
		return true
	})
}

// referring calls f with the stored rows that refer to a row by fields with an action.
func (p *bulkPlan) referring(t state.AnyTable, row state.AnyRow, action schema.RefAction, f func(state.AnyTable, state.AnyRow) bool) {
	for _, by := range p.all {
		for _, field := range by.Def().Schema.ForeignFields() {
			if field.Ref != t.Name() || field.OnDelete != action {
				continue
			}
			for child := range by.Scan(p.view, field.Name, row.ID.String(), state.ID{}) {
				if !f(by, child) {
					return
				}
			}
		}
	}
}

// removedRows are those of a table, by id.
func (p *bulkPlan) removedRows(t state.AnyTable) iter.Seq[state.AnyRow] {
	return func(yield func(state.AnyRow) bool) {
		ids := slices.SortedFunc(maps.Keys(p.removed[t.Name()]), func(a, b state.ID) int { return bytes.Compare(a[:], b[:]) })
		for _, id := range ids {
			if row, ok := t.Get(p.view, id); ok && !yield(row) {
				return
			}
		}
	}
}

// heldBy refuses to delete what a row that stays as it is refers to. Rows that are wanted have been compared with what is left.
func (p *bulkPlan) heldBy(t state.AnyTable, row state.AnyRow) (err error) {
	if _, removed := p.removed[t.Name()][row.ID]; !removed {
		return nil
	}
	for _, action := range []schema.RefAction{schema.Restrict, ""} {
		p.referring(t, row, action, func(by state.AnyTable, child state.AnyRow) bool {
			if p.stays(by, child) {
				err = referenced(t.Name(), by.Name())
			}
			return err == nil
		})
	}
	return err
}

// conditions judges the preconditions of a row; without ID there is none.
func (p *bulkPlan) conditions(c Conditions, t state.AnyTable, row state.AnyRow) error {
	if c == (Conditions{}) {
		return nil
	}
	tag := ""
	if !row.ID.IsZero() {
		tag = p.s.lookup(p.view).tag(t, row)
	}
	match, none := c.Met(tag)
	switch {
	case match && none:
		return nil
	case tag == "":
		return &Error{Kind: Changed, Message: "precondition failed: there is no such " + singular(t.Name())}
	case !none:
		return &Error{Kind: Changed, Message: "precondition failed: " + singular(t.Name()) + " " + row.ID.String() + " exists already, with the ETag " + tag}
	}
	return &Error{Kind: Changed, Message: "precondition failed: " + singular(t.Name()) + " " + row.ID.String() + " has been changed, its ETag is now " + tag}
}

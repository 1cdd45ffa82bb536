package service

import (
	"slices"

	"concord/fsm/command"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// A Members list (entity.Def.Members) is not part of its row: it names the rows of another entity that refer to it.

// membership is what a write makes of the list.
type membership struct {
	names   []string       // afterwards, sorted
	added   []string       // of names, those that are not there yet
	removed []state.AnyRow // those that are there and not in names
}

// memberNames is the list of a row, sorted.
func (l lookup) memberNames(table state.AnyTable, id state.ID) []string {
	names := []string{}
	for _, row := range l.memberRows(table, id) {
		names = append(names, l.keyOf(l.s.tables[table.Def().Members.Entity], row))
	}
	slices.Sort(names)
	return names
}

func (l lookup) memberRows(table state.AnyTable, id state.ID) []state.AnyRow {
	m := table.Def().Members
	return slices.Collect(l.s.tables[m.Entity].Scan(l.view, m.Ref, id.String(), state.ID{}))
}

// byMember finds the row that has ref in its list.
func (l lookup) byMember(table state.AnyTable, ref string) (state.AnyRow, bool, error) {
	m := table.Def().Members
	member, ok, err := l.find(l.s.tables[m.Entity], ref)
	if err != nil || !ok {
		return state.AnyRow{}, false, err
	}
	id, err := state.ParseID(foreignID(member, m.Ref))
	if err != nil {
		return state.AnyRow{}, false, err
	}
	row, ok := table.Get(l.view, id)
	return row, ok, nil
}

// named tells whether a reference can only be a member's name.
func (p *planner) named(ref string) bool {
	_, err := state.ParseID(ref)
	return p.def.Members != nil && ref != "" && err != nil
}

// members takes the list out of the prepared record and works out what becomes of it. A PATCH that does not mention the list
// leaves it alone. member is a name from the URL of a PUT, which belongs to the list in any case.
func (p *planner) members(body, rec schema.Record, current state.AnyRow, member string) (*membership, error) {
	m := p.def.Members
	if m == nil {
		return nil, nil
	}
	names := texts(rec[m.Field])
	delete(rec, m.Field)
	l := p.s.lookup(p.view)
	if _, given := body[m.Field]; !given && p.m.Verb == Update {
		return &membership{names: l.memberNames(p.table, current.ID)}, nil
	}
	if member != "" && !slices.Contains(names, member) {
		names = append(names, member)
	}
	out := &membership{names: append([]string{}, names...)}
	slices.Sort(out.names)
	table := p.s.tables[m.Entity]
	for i, name := range out.names {
		if i > 0 && name == out.names[i-1] {
			return nil, violation(schema.Errors{m.Field: name + " is duplicated"})
		}
		row, ok := table.By(p.view, table.Def().Schema.EndpointKey, name)
		switch owner := foreignID(row, m.Ref); {
		case !ok:
			out.added = append(out.added, name)
		case owner != current.ID.String():
			return nil, violation(schema.Errors{m.Field: name + " already associated with existing " + m.Ref + " '" + owner + "'"})
		}
	}
	for _, row := range l.memberRows(p.table, current.ID) {
		if !slices.Contains(out.names, l.keyOf(table, row)) {
			out.removed = append(out.removed, row)
		}
	}
	return out, nil
}

// reconcile adds the writes that make the rows of the list what it says.
func (p *planner) reconcile(id state.ID, list *membership) error {
	if list == nil {
		return nil
	}
	m := p.def.Members
	other := p.beside(p.s.tables[m.Entity])
	for _, name := range list.added {
		rec, errs := other.def.Schema.Prepare(schema.Record{other.def.Schema.EndpointKey: name, m.Ref: schema.Record{"id": id.String()}}, schema.Options{Auto: p.s.auto})
		if errs != nil {
			return violation(errs)
		}
		text, _ := rec["id"].(string)
		made, err := state.ParseID(text)
		if err != nil {
			return err
		}
		if _, err := other.put(command.Put{Table: other.table.Number(), ID: made, IfIndex: command.IfAbsent}, rec, state.AnyRow{}); err != nil {
			return err
		}
	}
	p.takeOver(other)
	for _, row := range list.removed {
		if err := p.mayErase(other.table, row); err != nil {
			return err
		}
		p.plan.puts = append(p.plan.puts, command.Put{Table: other.table.Number(), ID: row.ID, IfIndex: row.Index})
	}
	return nil
}

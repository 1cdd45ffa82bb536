package service

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"concord/fsm/schema"
	"concord/fsm/state"
)

// Joined lists what the rows of a join (entity.Def.Joins) under t.Parent lead to: the consumers of a group, the groups of a consumer. They
// come in the order of the join's rows.
func (s *Service) Joined(ctx context.Context, t Target, o ListOptions) (Page, error) {
	table, ok := s.tables[t.Entity]
	if !ok {
		return Page{}, notFound()
	}
	q, err := parseQuery(o)
	if err != nil {
		return Page{}, err
	}
	l, err := s.reader(ctx)
	if err == nil {
		err = l.grant.reads(table.Def())
	}
	if err != nil {
		return Page{}, err
	}
	field, to := l.other(table, t)
	if err := l.grant.reads(to.Def()); err != nil {
		return Page{}, err
	}
	p, err := l.place(t, "")
	if err == nil {
		err = l.enters(t, p)
	}
	if err != nil {
		return Page{}, l.grant.tell(err)
	}
	page := Page{Index: l.view.Index()}
	var last state.ID
	for row := range table.Scan(l.view, t.Parent.Field, p.parent.ID.String(), q.after) {
		id, err := state.ParseID(foreignID(row, field))
		if err != nil {
			return Page{}, err
		}
		target, ok := to.Get(l.view, id)
		if !ok || !l.sees(to, target) || !q.tagged(tagsOf(target)) {
			continue
		}
		if len(page.Rows) == q.size {
			page.Offset = offsetToken(last)
			break
		}
		text, refusal := l.show(to, target)
		if refusal != nil {
			return Page{}, refusal
		}
		page.Rows, page.Tags = append(page.Rows, text), append(page.Tags, l.tag(to, target))
		last = row.ID
	}
	return page, nil
}

// tagged tells whether something with these tags is wanted.
func (q query) tagged(have []string) bool {
	has := func(t string) bool { return slices.Contains(have, t) }
	if q.anyTag {
		return slices.ContainsFunc(q.tags, has)
	}
	return !slices.ContainsFunc(q.tags, func(t string) bool { return !has(t) })
}

// carries tells whether a row has all of the tags. A join has those that both its ends have.
func (l lookup) carries(table state.AnyTable, row state.AnyRow, tags []string) bool {
	if len(tags) == 0 || table.Def().Joins == nil {
		return hasTags(row, tags)
	}
	for _, j := range table.Def().Joins {
		f, _ := table.Def().Schema.Field(j.Field)
		to := l.s.tables[f.Ref]
		id, err := state.ParseID(foreignID(row, j.Field))
		if err != nil {
			return false
		}
		if end, ok := to.Get(l.view, id); !ok || !hasTags(end, tags) {
			return false
		}
	}
	return true
}

// joinName is what people call the row of a join: the names of its ends.
func (p *bulkPlan) joinName(t state.AnyTable, rec schema.Record) string {
	var names []string
	for _, j := range t.Def().Joins {
		f, _ := t.Def().Schema.Field(j.Field)
		id, err := state.ParseID(keyPart(rec[j.Field]))
		if err != nil {
			return ""
		}
		to, name := p.s.tables[f.Ref], ""
		if i, ok := p.claimed[f.Ref][id]; ok {
			name = nameOf(to.Def(), p.b.Rows[i].Record())
		} else if row, ok := to.Get(p.view, id); ok {
			if end, err := p.s.record(to, row); err == nil {
				name = nameOf(to.Def(), end)
			}
		}
		names = append(names, cmp.Or(name, id.String()))
	}
	return strings.Join(names, " in ")
}

package service

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // what UUIDs of version 5 are made with (RFC 9562, 5.5)
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// bulkPlan is a configuration compared with one view.
type bulkPlan struct {
	s    *Service
	b    Bulk
	view *state.View      // hides expired rows
	all  []state.AnyTable // in the order of Service.inOrder
	now  time.Time

	ids     []state.ID                  // of the wanted rows; zero: not known yet
	claimed map[string]map[state.ID]int // by table: which wanted row a row becomes
	keys    map[string]map[string]int   // by table and unique key: the wanted row that has it
	named   map[string]map[string]int   // by table and alternative key as written, also of rows that are refused
	refs    []schema.Field              // of the table whose turn it is, to others
	space   uuid.UUID                   // and that of its names
	alike   map[string]map[string][]state.ID
	removed map[string]map[state.ID]bool // by table: what goes with Bulk.Removals; true: named there
	errs    map[int]schema.Errors

	puts  []command.Put
	level uint32 // that the cluster must have reached for them
	res   BulkResult
	shown blocks // holds res.Rows
	raws  blocks // holds the rows of puts
	pace  *Pace
}

func (s *Service) planBulk(ctx context.Context, b Bulk) (*bulkPlan, error) {
	now := time.Now()
	p := &bulkPlan{s: s, b: b, pace: b.Pace, now: now, view: s.store.View().At(now.UnixMilli()), all: s.inOrder(), ids: make([]state.ID, len(b.Rows)), claimed: map[string]map[state.ID]int{},
		keys: map[string]map[string]int{}, named: map[string]map[string]int{}, errs: map[int]schema.Errors{}}
	if b.Show {
		p.res.Rows, p.res.IDs = make([][]byte, len(b.Rows)), p.ids
	}
	if err := p.removals(); err != nil {
		return nil, err
	}
	of := map[string][]int{}
	for i := range b.Rows {
		of[b.Rows[i].Entity] = append(of[b.Rows[i].Entity], i)
	}
	for _, t := range p.all {
		p.claimed[t.Name()] = map[state.ID]int{}
		if err := p.entity(ctx, t, of[t.Name()]); err != nil {
			return nil, err
		}
	}
	if len(p.errs) > 0 {
		return nil, &BulkError{Rows: p.errs}
	}
	if err := p.deletions(); err != nil {
		return nil, err
	}
	return &bulkPlan{view: p.view, puts: p.puts, level: p.level, res: p.res}, nil // the rest is large
}

// inOrder lists the tables so that what is referred to comes before what refers.
func (s *Service) inOrder() []state.AnyTable {
	var list []state.AnyTable
	done := map[string]bool{}
	var visit func(state.AnyTable)
	visit = func(t state.AnyTable) {
		if done[t.Name()] {
			return
		}
		done[t.Name()] = true
		for _, f := range t.Def().Schema.ForeignFields() {
			if to := s.tables[f.Ref]; to != nil {
				visit(to)
			}
		}
		list = append(list, t)
	}
	for _, t := range s.store.Tables() {
		if s.tables[t.Name()] != nil && !t.Def().Schema.Internal {
			visit(t)
		}
	}
	return list
}

func (p *bulkPlan) fail(i int, errs schema.Errors) {
	if p.ids[i].IsZero() { // so that what refers to it is judged on its own
		p.ids[i] = state.ID(uuid.New())
	}
	have := p.errs[i]
	if have == nil {
		have = schema.Errors{}
		p.errs[i] = have
	}
	for k, v := range errs {
		old, _ := have[k].([]any)
		if list, ok := v.([]any); ok && k == schema.EntityKey {
			have[k] = append(old, list...)
		} else if _, said := have[k]; !said {
			have[k] = v
		}
	}
}

// entity compares the wanted rows of one table. Those with an id choose their row first, then those with a unique key, then those that
// only equal a row.
func (p *bulkPlan) entity(ctx context.Context, t state.AnyTable, rows []int) error {
	p.alike = map[string]map[string][]state.ID{}
	key := t.Def().Schema.EndpointKey
	named := make(map[string]int, len(rows))
	p.named[t.Name()] = named
	p.refs = t.Def().Schema.ForeignFields()
	p.space = uuid.NewSHA1(kongNamespace, []byte(t.Name()))
	for _, i := range rows {
		p.pace.Rest()
		body := p.b.Rows[i].Record()
		if name, _ := body[key].(string); name != "" {
			named[name] = i
		}
		if text, ok := body["id"].(string); ok {
			if id, err := state.ParseID(text); err == nil && !id.IsZero() {
				p.claim(t, i, id)
			}
		}
	}
	for _, i := range rows {
		p.pace.Rest()
		if !p.ids[i].IsZero() {
			continue
		}
		body := p.body(t, i)
		if !p.ids[i].IsZero() {
			continue // what it refers to is not there
		}
		if row, ok := p.byKey(t, body); ok {
			p.claim(t, i, row.ID)
		} else if name, _ := body[key].(string); name != "" {
			p.claim(t, i, p.fresh(t, body))
		}
	}
	for n, i := range rows {
		if p.pace.Rest(); n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := p.row(ctx, t, i, p.body(t, i)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// build has the data plane try what a row would make it build.
func (p *bulkPlan) build(ctx context.Context, i int, changes []state.Change) error {
	if p.s.o.DryBuild == nil {
		return nil
	}
	if err := p.s.o.DryBuild(ctx, changes); ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		p.fail(i, invalid(err).Fields)
	}
	return nil
}

func (p *bulkPlan) claim(t state.AnyTable, i int, id state.ID) {
	if _, twice := p.claimed[t.Name()][id]; twice {
		p.fail(i, schema.EntityError(fmt.Sprintf("uniqueness violation: '%s' entity with primary key set to '%s' already declared", t.Name(), id)))
		p.ids[i] = state.ID(uuid.New())
		return
	}
	p.claimed[t.Name()][id] = i
	p.ids[i] = id
}

// body is the row as wanted with references by id, and with the tags that all have.
func (p *bulkPlan) body(t state.AnyTable, i int) schema.Record {
	w := &p.b.Rows[i]
	body := w.Record()
	if w.packed == nil { // the caller's
		body = make(schema.Record, len(w.Body)+2)
		maps.Copy(body, w.Body)
	}
	sch := t.Def().Schema
	if w.Parent >= 0 {
		body[w.Field] = schema.Record{"id": p.ids[w.Parent].String()}
	}
	for _, f := range p.refs {
		v, given := body[f.Name]
		if !given || v == nil || w.Parent >= 0 && f.Name == w.Field {
			continue
		}
		id, wrong := p.resolve(f, v)
		if wrong != nil {
			p.fail(i, schema.Errors{f.Name: wrong})
			delete(body, f.Name)
			continue
		}
		body[f.Name] = schema.Record{"id": id}
	}
	if _, ok := sch.Field("tags"); ok && len(p.b.SelectTags) > 0 {
		tags, _ := body["tags"].([]any)
		for _, tag := range p.b.SelectTags {
			if !slices.Contains(tags, any(tag)) {
				tags = append(slices.Clip(tags), tag)
			}
		}
		body["tags"] = tags
	}
	return body
}

// resolve finds what a reference means: among the wanted rows, then among the stored ones that stay. wrong is nil, a text or schema.Errors.
func (p *bulkPlan) resolve(f schema.Field, v any) (id string, wrong any) {
	to := p.s.tables[f.Ref]
	if to == nil {
		return "", "this gateway has no " + f.Ref
	}
	key, value := to.Def().Schema.EndpointKey, ""
	switch v := v.(type) {
	case string:
		value = v
	case schema.Record:
		var errs schema.Errors
		if key, value, errs = p.s.meant(to.Def().Schema, v); errs != nil {
			return "", errs
		}
	default:
		return "", "expected a string"
	}
	if id, err := state.ParseID(value); err == nil {
		_, wanted := p.claimed[f.Ref][id]
		if row, found := to.Get(p.view, id); wanted || found && p.stays(to, row) {
			return id.String(), nil
		}
		key = cmp.Or(key, "id")
	}
	if key != "id" && key != "" {
		if i, ok := p.keys[f.Ref+"\x00"+key][value]; ok {
			return p.ids[i].String(), nil
		}
		if i, ok := p.named[f.Ref][value]; ok && key == to.Def().Schema.EndpointKey {
			return p.ids[i].String(), nil
		}
		if row, ok := to.By(p.view, key, value); ok && p.stays(to, row) {
			return row.ID.String(), nil
		}
	}
	return "", fmt.Sprintf("invalid reference '%s: %s' (no such entry in '%s')", f.Name, value, f.Ref)
}

// stays tells whether a stored row is no part of this change.
func (p *bulkPlan) stays(t state.AnyTable, row state.AnyRow) bool {
	_, claimed := p.claimed[t.Name()][row.ID]
	return !claimed && !p.deletable(t, row)
}

func (p *bulkPlan) deletable(t state.AnyTable, row state.AnyRow) bool {
	_, removed := p.removed[t.Name()][row.ID]
	return removed || !p.b.Merge && !t.Def().Runtime && row.ExpiresAt == 0 && p.s.lookup(p.view).carries(t, row, p.b.SelectTags)
}

// byKey finds the stored row that has one of the record's unique keys and is nobody else's. A join is whose its ends are.
func (p *bulkPlan) byKey(t state.AnyTable, rec schema.Record) (state.AnyRow, bool) {
	for _, names := range uniqueKeys(t.Def().Schema) {
		key, ok := keyOfRecord(names, rec)
		if !ok {
			continue
		}
		row, found := t.By(p.view, strings.Join(names, ":"), key)
		if !found {
			continue
		}
		if _, taken := p.claimed[t.Name()][row.ID]; !taken && (p.b.Merge || t.Def().Joins != nil || hasTags(row, p.b.SelectTags)) {
			return row, true
		}
	}
	return state.AnyRow{}, false
}

func keyOfRecord(names []string, rec schema.Record) (string, bool) {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = keyPart(rec[n])
	}
	return state.Key(parts...), len(names) > 1 || parts[0] != ""
}

// row prepares one wanted row and notes the write that makes it so.
func (p *bulkPlan) row(ctx context.Context, t state.AnyTable, i int, body schema.Record) error {
	rec, current, expires, errs, err := p.prepare(t, i, body)
	if err != nil {
		return err
	}
	if errs != nil {
		p.fail(i, errs)
		return nil
	}
	if p.ids[i].IsZero() {
		if row, ok := p.byKey(t, rec); ok { // a key in the form in which it is stored
			p.claim(t, i, row.ID)
			return p.row(ctx, t, i, body)
		}
		if id, ok := p.equal(t, body, rec); ok {
			p.claim(t, i, id)
			return p.row(ctx, t, i, body)
		}
		p.claim(t, i, p.fresh(t, rec))
		return p.row(ctx, t, i, body)
	}
	id := p.ids[i]
	rec["id"] = id.String()
	if !p.unique(t, i, rec) {
		return nil
	}
	pl := &planner{s: p.s, view: p.view, now: p.now, table: t, def: t.Def()}
	found := !current.ID.IsZero()
	if err := p.conditions(p.b.Rows[i].Conditions, t, current); err != nil {
		return err
	}
	if found && expires == current.ExpiresAt {
		if same, row, err := p.unchanged(t, current, rec); err != nil || same {
			p.res.Unchanged++
			p.show(i, pl, row, expires)
			return err
		}
	}
	put := command.Put{Table: t.Number(), ID: id, IfIndex: command.IfAbsent, Expires: expires}
	if found {
		put.IfIndex = current.Index
	}
	clear, err := pl.put(put, rec, current)
	if err != nil {
		return err
	}
	for _, put := range pl.plan.puts {
		if put.Raw != nil {
			put.Raw = p.raws.keep(put.Raw)
		}
		p.puts = append(p.puts, put)
	}
	p.level = max(p.level, pl.plan.level)
	if err := p.build(ctx, i, pl.plan.changes); err != nil {
		return err
	}
	p.show(i, pl, clear, expires)
	if found {
		p.res.Updated++
		return p.note("update", t, current, rec)
	}
	p.res.Created++
	return p.note("create", t, state.AnyRow{ID: id}, rec)
}

func (p *bulkPlan) show(i int, pl *planner, row []byte, expires int64) {
	if !p.b.Show {
		return
	}
	row = shown(pl.def, p.s.present(pl.def, row), expires, p.now, nil)
	p.res.Rows[i] = p.shown.keep(row)
}

// prepare validates and completes a row, whose body is the plan's own, as a PUT would, except that what the gateway makes is made only
// once: a stored row keeps its key, secret and timestamps unless others are given.
func (p *bulkPlan) prepare(t state.AnyTable, i int, body schema.Record) (rec schema.Record, current state.AnyRow, expires int64, errs schema.Errors, err error) {
	def := t.Def()
	var stored schema.Record
	if !p.ids[i].IsZero() {
		var found bool
		if current, found = t.Get(p.view, p.ids[i]); found {
			if stored, err = p.s.record(t, current); err != nil {
				return nil, current, 0, nil, err
			}
		} else {
			current = state.AnyRow{}
		}
	}
	if !p.ids[i].IsZero() {
		if _, given := body["id"]; !given {
			body["id"] = p.ids[i].String()
		}
	}
	for _, f := range def.Schema.Fields {
		if f.Auto && body[f.Name] == nil && stored[f.Name] != nil {
			body[f.Name] = stored[f.Name]
		}
	}
	if _, given := body["ttl"]; given && !def.Schema.TTL {
		return nil, current, 0, schema.Errors{"ttl": "unknown field"}, nil
	}
	rec, errs = check(def.Schema, body, schema.Options{Mode: schema.Upsert, Auto: p.s.auto, Sub: p.s.o.Plugins})
	if len(errs) > 0 {
		return nil, current, 0, errs, nil
	}
	delete(rec, "ttl")
	if def.Members != nil {
		delete(rec, def.Members.Field) // rows of their own here
	}
	if seconds, _ := body["ttl"].(float64); seconds > 0 {
		expires = p.now.UnixMilli() + int64(seconds)*1000
	}
	before := stored
	if p.b.Hashed {
		before = rec // as if it were stored like this already
	}
	if rec, err = transform(def, rec, before); err != nil {
		return nil, current, 0, asError(err).Fields, nil
	}
	return rec, current, expires, nil, nil
}

// fresh is the id of a new row: Kong's for a row with a name, so that all who load a file make the same, else any.
func (p *bulkPlan) fresh(t state.AnyTable, rec schema.Record) state.ID {
	if name, _ := rec[t.Def().Schema.EndpointKey].(string); name != "" {
		id := state.ID(named(p.space, name))
		_, wanted := p.claimed[t.Name()][id]
		if _, stored := t.Get(p.view, id); !wanted && !stored {
			return id
		}
	}
	return state.ID(uuid.New())
}

// named is uuid.NewSHA1 in one piece of memory.
func named(space uuid.UUID, name string) uuid.UUID {
	sum := sha1.Sum(append(append(make([]byte, 0, 128), space[:]...), name...)) //nolint:gosec // as above
	id := uuid.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|5<<4, id[8]&0x3f|0x80 // version and variant
	return id
}

// kongNamespace is the one from which Kong derives the ids of entities in declarative files.
var kongNamespace = uuid.MustParse("fd02801f-0957-4a15-a55a-c8d9606f30b5")

// unique refuses keys that another wanted row has, or a stored one that stays.
func (p *bulkPlan) unique(t state.AnyTable, i int, rec schema.Record) bool {
	for _, names := range uniqueKeys(t.Def().Schema) {
		key, ok := keyOfRecord(names, rec)
		if !ok {
			continue
		}
		index := strings.Join(names, ":")
		have := p.keys[t.Name()+"\x00"+index]
		if have == nil {
			have = map[string]int{}
			p.keys[t.Name()+"\x00"+index] = have
		}
		isOwn := func(name string) bool { _, ref := rec[name].(schema.Record); return !ref && rec[name] != nil }
		name := names[max(0, slices.IndexFunc(names, isOwn))] // the others are what it belongs to
		shown := fmt.Sprint(rec[name])
		if f, _ := t.Def().Schema.Field(name); f.Secret {
			shown = "***"
		}
		if other, twice := have[key]; twice && other != i {
			p.fail(i, schema.EntityError(fmt.Sprintf("uniqueness violation: '%s' entity with %s set to '%s' already declared", t.Name(), name, shown)))
			return false
		}
		have[key] = i
		if !p.b.Merge && len(p.b.SelectTags) == 0 {
			continue // nothing with such a key stays, or the machine says so
		}
		if other, found := t.By(p.view, index, key); found && other.ID != p.ids[i] && p.stays(t, other) {
			p.fail(i, schema.EntityError(fmt.Sprintf("uniqueness violation: '%s' entity with %s set to '%s' exists already with another id, %s", t.Name(),
				name, shown, other.ID)))
			return false
		}
	}
	return true
}

// unchanged compares a prepared record with the stored row, but for updated_at. row is what is stored, in clear.
func (p *bulkPlan) unchanged(t state.AnyTable, current state.AnyRow, rec schema.Record) (same bool, row []byte, err error) {
	if row, err = p.s.o.Machine.Keys().Open(t.Number(), current.ID, current.Raw); err != nil {
		return false, nil, err
	}
	stored, err := schema.Decode(row)
	if err != nil {
		return false, nil, err
	}
	touched := rec["updated_at"]
	if _, has := rec["updated_at"]; has {
		rec["updated_at"] = stored["updated_at"]
	}
	text, err := schema.Encode(rec)
	if err != nil {
		return false, nil, err
	}
	if bytes.Equal(text, row) {
		return true, row, nil
	}
	if touched != nil {
		rec["updated_at"] = touched
	}
	return false, row, nil
}

// equal finds a stored row that nobody claimed and that has the same content as a record without id and key.
func (p *bulkPlan) equal(t state.AnyTable, body, rec schema.Record) (state.ID, bool) {
	made := []string{"id", "created_at", "updated_at"}
	for _, f := range t.Def().Schema.Fields {
		if f.Auto && body[f.Name] == nil {
			made = append(made, f.Name)
		}
	}
	kind := strings.Join(made, " ")
	if p.alike[kind] == nil {
		p.alike[kind] = map[string][]state.ID{}
		for row := range t.Scan(p.view, "", "", state.ID{}) {
			p.pace.Rest()
			if _, taken := p.claimed[t.Name()][row.ID]; taken || !p.b.Merge && !p.deletable(t, row) {
				continue
			}
			if stored, err := p.s.record(t, row); err == nil {
				c := content(stored, made)
				p.alike[kind][c] = append(p.alike[kind][c], row.ID)
			}
		}
	}
	c := content(rec, made)
	for ids := p.alike[kind][c]; len(ids) > 0; ids = p.alike[kind][c] {
		p.alike[kind][c] = ids[1:]
		if _, taken := p.claimed[t.Name()][ids[0]]; !taken {
			return ids[0], true
		}
	}
	return state.ID{}, false
}

func content(rec schema.Record, without []string) string {
	rec = maps.Clone(rec)
	for _, k := range without {
		delete(rec, k)
	}
	text, _ := schema.Encode(rec) // plain data
	return string(text)
}

// deletions deletes what is stored and not wanted.
func (p *bulkPlan) deletions() error {
	for _, t := range slices.Backward(p.all) {
		rows := t.Scan(p.view, "", "", state.ID{})
		if p.b.Merge {
			rows = p.removedRows(t)
		}
		for row := range rows {
			p.pace.Rest()
			if _, wanted := p.claimed[t.Name()][row.ID]; wanted || !p.deletable(t, row) {
				if p.removed[t.Name()][row.ID] {
					return refuse(Malformed, nil, "%s %s is both wanted and to be deleted", singular(t.Name()), row.ID)
				}
				continue
			}
			if err := p.heldBy(t, row); err != nil {
				return err
			}
			if err := p.listedBy(t, row); err != nil {
				return err
			}
			p.puts = append(p.puts, command.Put{Table: t.Number(), ID: row.ID, IfIndex: row.Index})
			p.res.Deleted++
			if err := p.note("delete", t, row, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// listedBy refuses to delete what a list of ids in a row that stays holds.
func (p *bulkPlan) listedBy(t state.AnyTable, row state.AnyRow) error {
	if len(p.b.SelectTags) == 0 && !p.b.Merge {
		return nil // all rows with lists go, or say what they want
	}
	for _, by := range p.s.store.Tables() {
		fields := by.Def().Schema.Fields
		for i := range fields { // for each row that goes: without copies
			f := &fields[i]
			if f.Elem == nil || f.Elem.Ref != t.Name() {
				continue
			}
			for other := range by.Scan(p.view, "", "", state.ID{}) {
				if p.stays(by, other) && listHolds(other, f.Name, row.ID.String()) {
					return refuse(Referenced, nil, "%s %s is still referenced by %s (id = %s)", singular(t.Name()), row.ID, by.Name(), other.ID)
				}
			}
		}
	}
	return nil
}

// note adds to the list of changes.
func (p *bulkPlan) note(action string, t state.AnyTable, row state.AnyRow, rec schema.Record) error {
	if !p.b.Diff {
		return nil
	}
	var stored schema.Record
	var err error
	if row.Raw != nil {
		if stored, err = p.s.record(t, row); err != nil {
			return err
		}
	}
	def := t.Def()
	c := BulkChange{Action: action, Entity: t.Name(), ID: row.ID.String(), Name: cmp.Or(nameOf(def, rec), nameOf(def, stored), p.joinName(t, rec), p.joinName(t, stored))}
	if c.Before, err = p.masked(def, stored, rec, "before"); err != nil {
		return err
	}
	if c.After, err = p.masked(def, rec, stored, "after"); err != nil {
		return err
	}
	p.res.Changes = append(p.res.Changes, c)
	return nil
}

// masked is a record as JSON without its secrets; those that differ from the other record's get another mark.
func (p *bulkPlan) masked(def entity.Def, rec, other schema.Record, side string) ([]byte, error) {
	if rec == nil {
		return nil, nil
	}
	secrets := map[string]string{}
	if other != nil {
		if _, err := def.Schema.MapSecrets(other, p.s.o.Plugins, func(path, v string) (any, error) { secrets[path] = v; return v, nil }); err != nil {
			return nil, err
		}
	}
	rec, err := def.Schema.MapSecrets(rec, p.s.o.Plugins, func(path, v string) (any, error) {
		if other == nil || secrets[path] == v {
			return "***", nil
		}
		return "*** (" + side + ")", nil
	})
	if err != nil {
		return nil, err
	}
	return schema.Encode(rec)
}

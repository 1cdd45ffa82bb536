package service

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// maxTTL is Kong's limit on the lifetime of a row, in seconds.
const maxTTL = 100_000_000

// plan is a mutation worked out against one view: what to append, and what to answer once it is applied.
type plan struct {
	puts    []command.Put
	changes []state.Change // what the data plane has to build, without deletes
	answer  []byte         // the entity as the client will see it
	hint    string
	members *membership // of the answer
	level   uint32      // that the cluster must have reached for the puts
	index   uint64      // of the view
	now     int64       // Unix milliseconds by which it was judged what has expired
}

// planner works out one mutation.
type planner struct {
	s     *Service
	view  *state.View // hides expired rows, which make room in the machine as well
	now   time.Time
	m     Mutation
	grant grant
	table state.AnyTable
	def   entity.Def
	plan  plan
}

func (s *Service) plan(ctx context.Context, view *state.View, m Mutation) (*plan, error) {
	table, ok := s.tables[m.Target.Entity]
	if !ok {
		return nil, notFound()
	}
	now := time.Now()
	p := &planner{s: s, view: view.At(now.UnixMilli()), now: now, m: m, table: table, def: table.Def()}
	p.plan.index, p.plan.now = view.Index(), now.UnixMilli()
	var err error
	if p.grant, err = s.grant(p.view, m.Actor); err == nil {
		err = p.run(ctx)
	}
	if err != nil {
		return nil, p.grant.tell(err)
	}
	return &p.plan, nil
}

func (p *planner) run(ctx context.Context) error {
	if err := p.grant.writes(p.def); err != nil {
		return err
	}
	if err := p.since(p.def.Since, p.def.Schema.Name); err != nil {
		return err
	}
	l := p.lookup()
	place, err := l.place(p.m.Target, p.m.Verb)
	if err == nil {
		err = l.enters(p.m.Target, place)
	}
	if err != nil {
		return err
	}
	if err := p.conditions(place); err != nil {
		return err
	}
	current, found := place.row, place.found
	if p.m.Verb == Delete {
		switch {
		case found:
			return p.remove(current)
		case p.m.Target.Parent != nil:
			return notFound()
		case p.named(p.m.Target.Ref):
			return l.absent(p.table, p.m.Target.Ref)
		}
		return nil
	}
	if p.m.Verb == Update && !found {
		return l.missing(p.m.Target)
	}

	var stored schema.Record
	if found {
		if stored, err = p.s.record(p.table, current); err != nil {
			return err
		}
	}
	body, err := p.body(stored, place.fixed)
	if err != nil {
		return err
	}
	switch {
	case p.m.Verb == Update:
		delete(body, "id")
	case found:
		body["id"] = current.ID.String()
	}
	rec, expires, err := p.prepare(body, stored, current.ExpiresAt)
	if err != nil {
		return err
	}
	members, err := p.members(body, rec, current, place.member)
	if err != nil {
		return err
	}
	text, _ := rec["id"].(string)
	id, err := state.ParseID(text)
	if err != nil {
		return violation(schema.Errors{"id": "expected a valid UUID"})
	}
	rec["id"] = id.String()
	put := command.Put{Table: p.table.Number(), ID: id, IfIndex: current.Index, Expires: expires}
	if !found {
		put.IfIndex = command.IfAbsent
		if _, taken := p.table.Get(p.view, id); taken {
			return refuse(PrimaryKeyTaken, map[string]any{"id": rec["id"]}, "primary key violation on key '{id=%q}'", rec["id"])
		}
	}
	if err := p.checkForeign(rec); err != nil {
		return err
	}
	if rec, err = transform(p.def, rec, stored); err != nil {
		return err
	}
	if err := p.checkUnique(rec, id); err != nil {
		return err
	}
	if errs := p.related(body, rec); errs != nil {
		return violation(errs)
	}
	clear, err := p.put(put, rec, current)
	if err != nil {
		return err
	}
	if err := p.associate(place, id.String()); err != nil {
		return err
	}
	if err := p.reconcile(id, members); err != nil {
		return err
	}
	if err := p.build(ctx); err != nil {
		return err
	}
	p.plan.answer = shown(p.def, p.s.present(p.def, p.grant.redact(p.s, p.def, clear)), expires, p.now, members)
	p.plan.hint, p.plan.members = p.advice(rec), members
	return nil
}

// body is the client's record with typed values and resolved references. What the URL says (fixed) wins.
func (p *planner) body(stored, fixed schema.Record) (schema.Record, error) {
	body := schema.Record{}
	maps.Copy(body, p.m.Body)
	if p.m.Form {
		// A PATCH need not name the plugin whose schema types the values: the stored row does.
		key := p.def.Schema.SubKey
		_, named := body[key]
		if key != "" && !named && stored != nil {
			body[key] = stored[key]
		}
		body = p.def.Schema.Coerce(body, p.s.o.Plugins)
		if !named {
			delete(body, key)
		}
	}
	if _, ok := body["ttl"]; ok && !p.def.Schema.TTL {
		text := "cannot be used with '" + p.def.Schema.Name + "'"
		e := refuse(InvalidOptions, nil, "invalid option (ttl: %s)", text)
		e.Options = map[string]any{"ttl": text}
		return nil, e
	}
	for field, v := range fixed {
		if _, given := body[field]; given && p.m.Verb == Update {
			continue // a PATCH may give the entity to another parent, or to none (Kong)
		}
		body[field] = v
	}
	if err := p.resolveForeign(body); err != nil {
		return nil, err
	}
	return body, nil
}

// prepare validates and completes the record and takes its lifetime out of it.
func (p *planner) prepare(body, stored schema.Record, expires int64) (schema.Record, int64, error) {
	o := schema.Options{Auto: p.s.auto, Sub: p.s.o.Plugins}
	switch p.m.Verb {
	case Create:
		o.Mode = schema.Insert
	case Update:
		o.Mode, o.Current = schema.Update, stored
	case Upsert:
		o.Mode = schema.Upsert
		expires = 0
	}
	ttl, given := body["ttl"]
	rec, errs := check(p.def.Schema, body, o)
	if len(errs) > 0 {
		p.s.foreignErrors(p.def.Schema, body, p.m.Form, errs)
		return nil, 0, violation(errs).withHint(p.unknownFieldHint(errs))
	}
	delete(rec, "ttl")
	if given {
		expires = 0
		if seconds, _ := ttl.(float64); seconds > 0 {
			expires = p.now.UnixMilli() + int64(seconds)*1000
		}
	}
	return rec, expires, nil
}

// check prepares a record and looks at its lifetime, which is not a field of the row.
func check(sch *schema.Schema, body schema.Record, o schema.Options) (schema.Record, schema.Errors) {
	rec, errs := sch.Prepare(body, o)
	text := ""
	switch ttl := body["ttl"].(type) {
	case nil:
	case float64:
		if ttl != float64(int64(ttl)) {
			text = "expected an integer"
		} else if ttl < 0 || ttl > maxTTL {
			text = fmt.Sprintf("value should be between 0 and %d", maxTTL)
		}
	default:
		text = "expected an integer"
	}
	if text != "" {
		if errs == nil {
			errs = schema.Errors{}
		}
		errs["ttl"] = text
	}
	return rec, errs
}

// transform runs the entity's own last step.
func transform(def entity.Def, rec, stored schema.Record) (schema.Record, error) {
	if def.Transform == nil {
		return rec, nil
	}
	rec, err := def.Transform(rec, stored)
	if err != nil {
		return nil, invalid(err)
	}
	return rec, nil
}

// put adds a write of rec over current, which may be none, to the plan and returns the row in clear. Every row that a mutation writes
// passes here, and is authorised here.
func (p *planner) put(put command.Put, rec schema.Record, current state.AnyRow) ([]byte, error) {
	p.own(rec)
	if err := p.mayWrite(rec, current); err != nil {
		return nil, err
	}
	if err := p.level(rec); err != nil {
		return nil, err
	}
	clear, err := schema.Encode(rec)
	if err != nil {
		return nil, err
	}
	keys := p.s.o.Machine.Keys()
	secrets := false
	sealed, err := p.def.Schema.MapSecrets(rec, p.s.o.Plugins, func(_, v string) (any, error) {
		secrets = true
		return keys.Seal(put.Table, put.ID, v)
	})
	if err != nil {
		return nil, err
	}
	if put.Raw = clear; secrets {
		if put.Raw, err = schema.Encode(sealed); err != nil {
			return nil, err
		}
	}
	val := p.def.New()
	if err := json.Unmarshal(clear, val); err != nil {
		return nil, err
	}
	p.plan.puts = append(p.plan.puts, put)
	p.plan.changes = append(p.plan.changes, state.Change{Table: put.Table, ID: put.ID, Old: current.Val, New: val})
	return clear, nil
}

// level refuses what members of the cluster that run an older version would not know, and notes what a row needs.
func (p *planner) level(rec schema.Record) error {
	if err := p.since(p.def.Since, p.def.Schema.Name); err != nil {
		return err
	}
	for _, f := range p.def.Schema.Fields {
		if rec[f.Name] == nil {
			continue
		}
		if err := p.since(f.Since, f.Name); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) since(level uint32, what string) error {
	if level > p.s.o.Machine.Level() {
		return &Error{Kind: Unavailable, Message: "nothing was stored: not all nodes of the cluster run a version with " + strings.ReplaceAll(what, "_", " ") + " yet"}
	}
	p.plan.level = max(p.plan.level, level)
	return nil
}

// beside is a planner for a row of another table that changes along; its puts are still to be taken over.
func (p *planner) beside(table state.AnyTable) *planner {
	return &planner{s: p.s, view: p.view, now: p.now, grant: p.grant, table: table, def: table.Def()}
}

func (p *planner) takeOver(other *planner) {
	p.plan.puts = append(p.plan.puts, other.plan.puts...)
	p.plan.changes = append(p.plan.changes, other.plan.changes...)
	p.plan.level = max(p.plan.level, other.plan.level)
}

// associate points the parent at a target that was made through /{parent}/{p}/{field}.
func (p *planner) associate(place place, id string) error {
	parent := p.m.Target.Parent
	if parent == nil || !parent.Owner || place.found {
		return nil
	}
	table := p.s.tables[parent.Entity]
	rec, err := p.s.record(table, place.parent)
	if err != nil {
		return err
	}
	rec[parent.Field] = schema.Record{"id": id}
	owner := p.beside(table)
	put := command.Put{Table: table.Number(), ID: place.parent.ID, IfIndex: place.parent.Index, Expires: place.parent.ExpiresAt}
	if _, err := owner.put(put, rec, place.parent); err != nil {
		return err
	}
	p.takeOver(owner)
	return nil
}

// build has the data plane try what the change would make it build.
func (p *planner) build(ctx context.Context) error {
	if p.s.o.DryBuild == nil {
		return nil
	}
	if err := p.s.o.DryBuild(ctx, p.plan.changes); err != nil {
		return invalid(err)
	}
	return nil
}

// remove deletes a row. What refers to it with cascade or set-null follows in the machine; restrict is refused.
func (p *planner) remove(row state.AnyRow) error {
	if err := p.mayErase(p.table, row); err != nil {
		return err
	}
	name, id := p.def.Schema.Name, row.ID.String()
	for _, t := range p.s.store.Tables() {
		for _, f := range t.Def().Schema.Fields {
			switch {
			case f.Type == schema.Foreign && f.Ref == name && f.OnDelete != schema.Cascade && f.OnDelete != schema.SetNull:
				for by := range t.Scan(p.view, f.Name, id, state.ID{}) {
					return referenced(name, t.Name()).withHint("first delete or detach " + t.Name() + " " + by.ID.String())
				}
			case listed(f) == name:
				for by := range t.Scan(p.view, "", "", state.ID{}) {
					if listHolds(by, f.Name, id) {
						return refuse(Referenced, nil, "%s %s is still referenced by %s (id = %s)", singular(name), id, t.Name(), by.ID).
							withHint("first take it out of " + f.Name + " with PATCH /" + t.Def().CollectionName() + "/" + by.ID.String())
					}
				}
			}
		}
	}
	p.plan.puts = []command.Put{{Table: p.table.Number(), ID: row.ID, IfIndex: row.Index}}
	return nil
}

// listed is the entity whose ids a list field holds, "" for other fields.
func listed(f schema.Field) string {
	if f.Elem == nil {
		return ""
	}
	return f.Elem.Ref
}

// listHolds tells whether a row's list field holds an id. Few rows do, so most are ruled out without decoding.
func listHolds(row state.AnyRow, field, id string) bool {
	if !bytes.Contains(row.Raw, []byte(id)) {
		return false
	}
	var rec map[string]json.RawMessage
	var ids []string
	return json.Unmarshal(row.Raw, &rec) == nil && json.Unmarshal(rec[field], &ids) == nil && slices.Contains(ids, id)
}

// singular is an entity's name for one row in Kong's texts: "ca certificate".
func singular(plural string) string {
	return strings.ReplaceAll(strings.TrimSuffix(plural, "s"), "_", " ")
}

package service

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// Actor is who asks. A forwarded mutation carries it to the leader, which looks the token's rights up anew in its own rows.
type Actor struct {
	Token string `json:"token,omitempty"` // id of the admin token; "": none, for a program on this machine
	From  string `json:"from,omitempty"`  // IP address of the client; "": this machine, or this program itself
	// Program is a node that writes what its plugins keep, and may write nothing else.
	Program bool `json:"program,omitempty"`
}

// local tells whether the client is on the machine of the node that was asked.
func (a Actor) local() bool {
	ip, err := netip.ParseAddr(a.From)
	return a.From == "" || err == nil && ip.Unmap().IsLoopback()
}

type actorKey struct{}

// WithActor says on whose behalf the Service is called with the context. Without it, it is the program itself.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(cluster.WithCause(ctx, fsm.Cause{Token: a.Token, From: a.From}), actorKey{}, a)
}

func actorOf(ctx context.Context) Actor {
	a, _ := ctx.Value(actorKey{}).(Actor)
	return a
}

// Power is what a role may do beside reading and writing entities.
type Power string

// The powers.
const (
	ReadNode      Power = "look at this node"                 // whoever may be here at all
	OperateNode   Power = "change how this node works"        // log level, health of targets
	ManageCluster Power = "change the members of the cluster" //
	ReadAudit     Power = "read the audit log"                //
	TraceRoutes   Power = "see how requests are routed"       // among all routes, whoever they belong to
)

// grant is what an actor may do, by the rows of one view.
type grant struct {
	name     string // of the token; "" without
	role     string
	entities []string // nil: all
	tags     []string // nil: all
	first    bool     // the actor may make the first token and nothing else
}

// grant looks up what the actor may do.
func (s *Service) grant(view *state.View, a Actor) (grant, error) {
	tokens := s.tables[entity.AdminTokens]
	if a.Program {
		return grant{role: entity.RoleAdmin, entities: []string{entity.ACMEStorageTable}}, nil
	}
	if a.Token == "" {
		switch {
		case !a.local():
			return grant{}, unauthenticated("no admin token")
		case !s.o.RequireToken:
			return grant{role: entity.RoleSuper}, nil
		}
		for range tokens.Scan(view, "", "", state.ID{}) {
			return grant{}, unauthenticated("no admin token")
		}
		return grant{role: entity.RoleSuper, first: true}, nil
	}
	id, err := state.ParseID(a.Token)
	if err != nil {
		return grant{}, unauthenticated("the admin token is not known")
	}
	row, ok := tokens.Get(view, id)
	if !ok {
		return grant{}, unauthenticated("the admin token is not known, has expired or was revoked")
	}
	t, ok := row.Val.(*entity.AdminToken)
	if !ok {
		return grant{}, fmt.Errorf("admin token %s is a %T", a.Token, row.Val)
	}
	g := grant{name: t.Name, role: t.Role}
	if len(t.Entities) > 0 {
		g.entities = t.Entities
	}
	if len(t.Tags) > 0 {
		g.tags = t.Tags
	}
	return g, nil
}

func unauthenticated(why string) *Error {
	return (&Error{Kind: Unauthenticated, Message: "Unauthorized: " + why}).
		withHint("send Authorization: Bearer gwat_… or Kong-Admin-Token; gwctl token create makes a token")
}

func forbidden(format string, args ...any) *Error {
	return &Error{Kind: Forbidden, Message: "Forbidden: " + fmt.Sprintf(format, args...)}
}

func (g grant) who() string {
	if g.name == "" {
		return "this machine without a token"
	}
	return "token " + g.name
}

// limited tells whether some rows are out of the actor's reach; what is said to it must not speak of them.
func (g grant) limited() bool { return g.entities != nil || g.tags != nil }

// may checks a power.
func (g grant) may(p Power) error {
	ok := false
	switch {
	case g.first:
		return unauthenticated("no admin token")
	case p == ReadNode:
		ok = true
	case g.role == entity.RoleSuper:
		ok = true
	case p == OperateNode:
		ok = g.role == entity.RoleAdmin && !g.limited()
	case p == TraceRoutes:
		ok = !g.limited()
	case p == ReadAudit:
		ok = slices.Contains(g.entities, entity.AuditScope)
	}
	if !ok {
		return forbidden("%s may not %s", g.who(), p)
	}
	return nil
}

// reads checks that the actor may read entities of a kind.
func (g grant) reads(def entity.Def) error { return g.reach(def, "read") }

// writes checks that the actor may change entities of a kind.
func (g grant) writes(def entity.Def) error {
	if g.role == entity.RoleReadOnly {
		return forbidden("%s is read-only", g.who())
	}
	return g.reach(def, "change")
}

func (g grant) reach(def entity.Def, verb string) error {
	name := def.Schema.Name
	switch {
	case g.first && name != entity.AdminTokens:
		return unauthenticated("no admin token")
	case g.role == entity.RoleSuper:
		return nil
	case def.Schema.Internal, g.entities != nil && !slices.Contains(g.entities, name):
		return forbidden("%s may not %s %s", g.who(), verb, name)
	}
	return nil
}

// blind tells whether the actor is shown no secrets.
func (g grant) blind(def entity.Def) bool {
	return g.role == entity.RoleReadOnly || def.Schema.Internal || def.WriteOnly
}

// tagged tells whether a row's tags are within reach.
func (g grant) tagged(tags []string) bool {
	return g.tags == nil || slices.ContainsFunc(tags, func(t string) bool { return slices.Contains(g.tags, t) })
}

// sees tells whether a row is within reach by its tags. A row that cannot have tags belongs to those whom what it refers to belongs to.
func (l lookup) sees(table state.AnyTable, row state.AnyRow) bool {
	if l.grant.tags == nil {
		return true
	}
	if table.Def().HasTags() {
		return l.grant.tagged(tagsOf(row))
	}
	for _, f := range table.Def().Schema.ForeignFields() {
		to := l.s.tables[f.Ref]
		id, err := state.ParseID(foreignID(row, f.Name))
		if err != nil || to == nil {
			continue
		}
		if owner, ok := to.Get(l.view, id); ok && l.sees(to, owner) {
			return true
		}
	}
	return false
}

// reachable refuses what is out of the actor's reach: a row to be read, changed or referred to.
func (l lookup) reachable(table state.AnyTable, row state.AnyRow) error {
	if l.sees(table, row) {
		return nil
	}
	return forbidden("%s may touch only what carries %s, which %s %s does not", l.grant.who(), oneOfTags(l.grant.tags), singular(table.Name()), row.ID)
}

func oneOfTags(tags []string) string {
	if len(tags) == 1 {
		return "the tag " + tags[0]
	}
	return fmt.Sprintf("one of the tags %v", tags)
}

// Authorize checks that the actor of ctx has a power, by rows that hold every write answered before.
func (s *Service) Authorize(ctx context.Context, p Power) error {
	view := s.fresh(ctx)
	g, err := s.grant(view, actorOf(ctx))
	if err != nil {
		return err
	}
	return g.may(p)
}

// Admit checks that the actor of ctx may be here at all, by the rows that this node has.
func (s *Service) Admit(ctx context.Context) error {
	g, err := s.grant(s.store.View().At(time.Now().UnixMilli()), actorOf(ctx))
	if err != nil {
		return err
	}
	return g.may(ReadNode)
}

// AuthorizeWrite checks that the actor of ctx may change what t names, for doors that change something about it that is no row.
func (s *Service) AuthorizeWrite(ctx context.Context, t Target) error {
	l, err := s.reader(ctx)
	if err != nil {
		return err
	}
	table, ok := s.tables[t.Entity]
	if !ok {
		return notFound()
	}
	if err := l.grant.writes(table.Def()); err != nil {
		return err
	}
	p, err := l.place(t, "")
	if err != nil || !p.found {
		return err
	}
	return l.reachable(table, p.row)
}

// reader is a lookup in a fresh view with the rights of the actor of ctx.
func (s *Service) reader(ctx context.Context) (lookup, error) {
	view, err := s.view(ctx)
	if err != nil {
		return lookup{}, err
	}
	g, err := s.grant(view, actorOf(ctx))
	return lookup{s: s, view: view, grant: g}, err
}

// within leaves out of a listing what is out of reach.
func (l lookup) within(table state.AnyTable, rows iter.Seq[state.AnyRow]) iter.Seq[state.AnyRow] {
	if l.grant.tags == nil {
		return rows
	}
	return func(yield func(state.AnyRow) bool) {
		for row := range rows {
			if l.sees(table, row) && !yield(row) {
				return
			}
		}
	}
}

// enters checks that the parent in a target's path is within reach.
func (l lookup) enters(t Target, p place) error {
	if t.Parent == nil {
		return nil
	}
	return l.reachable(l.s.tables[t.Parent.Entity], p.parent)
}

// redact empties the secrets of a row for those who are shown none.
func (g grant) redact(s *Service, def entity.Def, row []byte) []byte {
	if !g.blind(def) {
		return row
	}
	rec, err := schema.Decode(row)
	if err == nil {
		rec, err = g.blank(s, def, rec)
	}
	if err == nil {
		row, err = schema.Encode(rec)
	}
	if err != nil { // a row that was stored; whatever it is, it is not shown
		return []byte(`{"message":"not shown"}`)
	}
	return row
}

// blank is redact for a record.
func (g grant) blank(s *Service, def entity.Def, rec schema.Record) (schema.Record, error) {
	if !g.blind(def) {
		return rec, nil
	}
	return def.Schema.MapSecrets(rec, s.o.Plugins, func(string, string) (any, error) { return nil, nil })
}

// tell takes hints, which may speak of rows out of reach, from what a limited actor is told.
func (g grant) tell(err error) error {
	var e *Error
	if g.limited() && errors.As(err, &e) && e.Kind != Forbidden {
		quiet := *e
		quiet.Hint = ""
		return &quiet
	}
	return err
}

func (p *planner) lookup() lookup { return lookup{s: p.s, view: p.view, grant: p.grant} }

// own gives what a limited actor writes one of its tags, lest it makes what it could not change again.
func (p *planner) own(rec schema.Record) {
	if p.def.HasTags() && !p.grant.tagged(texts(rec["tags"])) {
		have, _ := rec["tags"].([]any)
		rec["tags"] = append(slices.Clone(have), p.grant.tags[0])
	}
}

// mayWrite authorises a write of rec over current, which may be none. What a limited actor writes may refer only to what is within
// its reach.
func (p *planner) mayWrite(rec schema.Record, current state.AnyRow) error {
	if err := p.grant.writes(p.def); err != nil || p.grant.tags == nil {
		return err
	}
	l := p.lookup()
	if current.Index != 0 {
		if err := l.reachable(p.table, current); err != nil {
			return err
		}
	}
	refers := false
	for _, f := range p.def.Schema.Fields {
		to, ids := p.s.tables[f.Ref], []string{keyPart(rec[f.Name])}
		if f.Type != schema.Foreign {
			to, ids = p.s.tables[listed(f)], texts(rec[f.Name])
		}
		for _, text := range ids {
			id, err := state.ParseID(text)
			if err != nil || to == nil {
				continue
			}
			refers = refers || f.Type == schema.Foreign
			row, ok := to.Get(p.view, id)
			if !ok {
				continue // a row that this transaction makes, or a reference that is refused elsewhere
			}
			if err := l.reachable(to, row); err != nil {
				return err
			}
		}
	}
	switch tagged := p.def.HasTags(); {
	case !tagged && !refers, p.def.Schema.Name == "plugins" && !refers:
		return forbidden("%s may not make %s that belong to nothing that carries %s", p.grant.who(), p.def.Schema.Name, oneOfTags(p.grant.tags))
	case tagged && !p.grant.tagged(texts(rec["tags"])):
		return forbidden("%s may write only what carries %s", p.grant.who(), oneOfTags(p.grant.tags))
	}
	return nil
}

// mayApply checks that the actor of ctx may apply configurations at all. One that is limited by tags applies what carries its tag.
func (s *Service) mayApply(ctx context.Context, b *Bulk) error {
	g, err := s.grant(s.store.View().At(time.Now().UnixMilli()), actorOf(ctx))
	switch {
	case err != nil:
		return err
	case g.first:
		return unauthenticated("no admin token")
	case g.role == entity.RoleReadOnly && (!b.DryRun || g.limited()):
		return forbidden("%s is read-only", g.who())
	case !g.tagged(b.SelectTags):
		b.SelectTags = append(slices.Clone(b.SelectTags), g.tags[0])
	}
	return nil
}

// mayPut authorises finished writes, each on its own. With reading, an actor that may read all may see what would be written.
func (s *Service) mayPut(view *state.View, a Actor, puts []command.Put, reading bool) error {
	g, err := s.grant(view, a)
	if err != nil || reading && g.role == entity.RoleReadOnly {
		return err
	}
	tables := map[uint16]state.AnyTable{}
	for _, t := range s.tables {
		if !t.Def().Schema.Internal {
			tables[t.Number()] = t
		}
	}
	for i := range puts {
		t := tables[puts[i].Table]
		if t == nil {
			return forbidden("table %d is not for clients", puts[i].Table)
		}
		if err := g.writes(t.Def()); err != nil {
			return err
		}
		if !g.limited() {
			continue
		}
		p := &planner{s: s, view: view, grant: g, table: t, def: t.Def()}
		row, found := t.Get(view, puts[i].ID)
		if puts[i].Raw == nil {
			if found {
				err = p.mayErase(t, row)
			}
		} else {
			var rec schema.Record
			if rec, err = schema.Decode(puts[i].Raw); err == nil {
				err = p.mayWrite(rec, row)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayErase authorises the deletion of a row, and of all that goes or changes with it.
func (p *planner) mayErase(table state.AnyTable, row state.AnyRow) error {
	if err := p.grant.writes(table.Def()); err != nil || !p.grant.limited() {
		return err
	}
	if err := p.lookup().reachable(table, row); err != nil {
		return err
	}
	for _, t := range p.s.store.Tables() {
		for _, f := range t.Def().Schema.ForeignFields() {
			if f.Ref != table.Name() || f.OnDelete != schema.Cascade && f.OnDelete != schema.SetNull {
				continue
			}
			for by := range t.Scan(p.view, f.Name, row.ID.String(), state.ID{}) {
				err := p.grant.writes(t.Def())
				switch {
				case err == nil && f.OnDelete == schema.Cascade:
					err = p.mayErase(t, by)
				case err == nil:
					err = p.lookup().reachable(t, by)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

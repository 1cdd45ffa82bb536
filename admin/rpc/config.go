package rpc

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"concord/admin/service"
	"concord/fsm/entity"
	"concord/fsm/schema"
	adminv1 "concord/proto/concord/admin/v1"
)

// config is ConfigService.
type config struct{ *API }

var levels = map[adminv1.Consistency]service.Consistency{
	adminv1.Consistency_CONSISTENCY_LOCAL: service.Local, adminv1.Consistency_CONSISTENCY_LEADER: service.Leader,
	adminv1.Consistency_CONSISTENCY_LINEARIZABLE: service.Linearizable,
}

// Get reads one entity.
func (c config) Get(ctx context.Context, req *connect.Request[adminv1.GetRequest]) (*connect.Response[adminv1.GetResponse], error) {
	out, err := c.get(service.WithConsistency(ctx, levels[req.Msg.GetConsistency()]), req.Msg)
	if err != nil {
		return nil, c.refusal(ctx, err)
	}
	return answer(out, out.GetIndex()), nil
}

func (c config) get(ctx context.Context, m *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	_, t, err := c.target(m.GetTarget())
	if err != nil {
		return nil, err
	}
	if t.Ref == "" && (t.Parent == nil || !t.Parent.Owner) {
		return nil, malformed("target.ref is missing: List reads collections")
	}
	res, err := c.o.Service.Get(ctx, t)
	if err != nil {
		return nil, err
	}
	e, err := entityOf(t.Entity, res.Row, res.Tag, m.GetFormat())
	return &adminv1.GetResponse{Index: res.Index, Entity: e}, err
}

// List reads one page of a kind.
func (c config) List(ctx context.Context, req *connect.Request[adminv1.ListRequest]) (*connect.Response[adminv1.ListResponse], error) {
	out, err := c.list(service.WithConsistency(ctx, levels[req.Msg.GetConsistency()]), req.Msg)
	if err != nil {
		return nil, c.refusal(ctx, err)
	}
	return answer(out, out.GetIndex()), nil
}

func (c config) list(ctx context.Context, m *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	def, t, err := c.target(m.GetTarget())
	if err != nil {
		return nil, err
	}
	if t.Ref != "" || t.Parent != nil && t.Parent.Owner {
		return nil, malformed("target names one entity: Get reads it")
	}
	o := service.ListOptions{Offset: m.GetPageToken(), Filter: m.GetFilter()}
	if m.GetPageSize() > 0 {
		o.Size = strconv.FormatUint(uint64(m.GetPageSize()), 10)
	}
	if len(m.GetFilter()) > 1 {
		return nil, malformed("filter takes one field")
	}
	for name, value := range m.GetFilter() {
		if !slices.Contains(def.Filters, name) || t.Parent != nil {
			return nil, malformed("%s cannot be filtered by %q", t.Entity, name)
		}
		if value == "" {
			return nil, malformed("filter %q is empty", name)
		}
	}
	if len(m.GetTags()) > 0 {
		joint := ","
		if m.GetTagMatch() == adminv1.TagMatch_TAG_MATCH_ANY {
			joint = "/"
		}
		for _, tag := range m.GetTags() {
			if strings.ContainsAny(tag, ",/") {
				return nil, malformed("tag %q: a tag has neither commas nor slashes", tag)
			}
		}
		text := strings.Join(m.GetTags(), joint)
		o.Tags = &text
	}
	page, err := c.o.Service.List(ctx, t, o)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListResponse{Index: page.Index, NextPageToken: page.Offset}
	for i, row := range page.Rows {
		e, err := entityOf(t.Entity, row, page.Tags[i], m.GetFormat())
		if err != nil {
			return nil, err
		}
		out.Entities = append(out.Entities, e)
	}
	return out, nil
}

var verbs = map[adminv1.Verb]service.Verb{
	adminv1.Verb_VERB_CREATE: service.Create, adminv1.Verb_VERB_UPDATE: service.Update,
	adminv1.Verb_VERB_UPSERT: service.Upsert, adminv1.Verb_VERB_DELETE: service.Delete,
}

// Mutate changes one entity.
func (c config) Mutate(ctx context.Context, req *connect.Request[adminv1.MutateRequest]) (*connect.Response[adminv1.MutateResponse], error) {
	out, err := c.mutate(ctx, req.Msg)
	if err != nil {
		return nil, c.refusal(ctx, err)
	}
	return answer(out, out.GetIndex()), nil
}

func (c config) mutate(ctx context.Context, m *adminv1.MutateRequest) (*adminv1.MutateResponse, error) {
	def, t, err := c.target(m.GetTarget())
	if err != nil {
		return nil, err
	}
	verb, ok := verbs[m.GetVerb()]
	owner := t.Parent != nil && t.Parent.Owner
	switch {
	case !ok:
		return nil, malformed("verb must be one of VERB_CREATE, VERB_UPDATE, VERB_UPSERT, VERB_DELETE")
	case verb == service.Create && (t.Ref != "" || owner):
		return nil, malformed("VERB_CREATE takes no target.ref: the id goes into the entity, or use VERB_UPSERT")
	case verb != service.Create && t.Ref == "" && !owner:
		return nil, malformed("target.ref is missing")
	case verb == service.Delete && owner:
		return nil, malformed("what an entity refers to is deleted by its own id or name")
	case verb == service.Upsert && def.PutUpdates:
		verb = service.Update
	}
	body := schema.Record{}
	if verb != service.Delete {
		if body, err = recordOf(t.Entity, m.GetEntity(), m.GetNullFields()); err != nil {
			return nil, err
		}
	}
	res, err := c.o.Service.Mutate(ctx, service.Mutation{
		Verb: verb, Target: t, Body: body, Conditions: service.Conditions{IfMatch: m.GetIfMatch(), IfNoneMatch: m.GetIfNoneMatch()},
	})
	if err != nil {
		return nil, err
	}
	out := &adminv1.MutateResponse{Index: res.Index, Hint: res.Hint}
	if verb != service.Delete {
		out.Entity, err = entityOf(t.Entity, res.Row, res.Tag, m.GetFormat())
	}
	return out, err
}

// target resolves what a request names. Only entities of the configuration can be named, and only along fields that refer.
func (c config) target(m *adminv1.Target) (entity.Def, service.Target, error) {
	def, err := c.kind(m.GetKind())
	if err != nil {
		return def, service.Target{}, err
	}
	t := service.Target{Entity: m.GetKind(), Ref: m.GetRef()}
	if m.GetParent() == nil {
		return def, t, nil
	}
	p := &service.Parent{Entity: m.GetParent().GetKind(), Ref: m.GetParent().GetRef(), Field: m.GetParent().GetField()}
	parent, err := c.kind(p.Entity)
	if err != nil {
		return def, t, err
	}
	if p.Ref == "" {
		return def, t, malformed("target.parent.ref is missing")
	}
	under, over := refers(def, p.Entity, p.Field), refers(parent, t.Entity, p.Field)
	switch {
	case len(under) == 1:
		p.Field = under[0]
	case len(under) == 0 && len(over) == 1:
		p.Field, p.Owner = over[0], true
		if t.Ref != "" {
			return def, t, malformed("target.ref and target.parent exclude each other here: %s of %s refers to one of the %s", over[0], p.Entity, t.Entity)
		}
	case len(under)+len(over) > 1:
		return def, t, malformed("target.parent.field must be one of %s", strings.Join(append(under, over...), ", "))
	default:
		return def, t, malformed("%s and %s do not refer to each other by such a field", t.Entity, p.Entity)
	}
	t.Parent = p
	return def, t, nil
}

// refers lists the fields of an entity that refer to entities of a kind; with field not "" only that one.
func refers(def entity.Def, kind, field string) (names []string) {
	for _, f := range def.Schema.ForeignFields() {
		if f.Ref == kind && (field == "" || field == f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

func (a *API) kind(name string) (entity.Def, error) {
	var names []string
	for _, d := range a.o.Service.Entities() {
		if d.Schema.Name == name {
			return d, nil
		}
		names = append(names, d.Schema.Name)
	}
	if name == "" {
		return entity.Def{}, malformed("target.kind is missing: it is one of %s", strings.Join(names, ", "))
	}
	return entity.Def{}, malformed("%q is no kind of entity: it is one of %s", name, strings.Join(names, ", "))
}

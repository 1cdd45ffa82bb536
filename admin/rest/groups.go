package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"concord/admin/service"
	"concord/fsm/entity"
	"concord/fsm/schema"
)

// side is how members of groups look from one of the two ends: /consumer_groups/{g}/consumers and /consumers/{c}/consumer_groups.
type side struct {
	owner, field  string // the kind whose members they are, and the join's field that refers to it
	member, ref   string // the kind of the members, and the field that refers to them
	param, called string // how a request and a message name one
}

var sides = []side{
	{owner: entity.ConsumerGroups, field: "consumer_group", member: "consumers", ref: "consumer", param: "consumer", called: "Consumer"},
	{owner: "consumers", field: "consumer", member: entity.ConsumerGroups, ref: "consumer_group", param: "group", called: "Group"},
}

// groupRoutes are Kong Enterprise's endpoints of consumer groups that no schema implies.
func (a *API) groupRoutes() {
	if _, ok := a.o.Service.Schema(entity.ConsumerGroups); !ok {
		return
	}
	for _, s := range sides {
		path := "/" + s.owner + "/{" + s.owner + "}/" + s.member
		item := path + "/{" + s.member + "}"
		a.router.add(http.MethodGet, path, func(c *call) (answer, error) { return a.listMembers(c, s) })
		a.router.add(http.MethodPost, path, func(c *call) (answer, error) { return a.addMembers(c, s) })
		a.router.add(http.MethodDelete, path, func(c *call) (answer, error) { return a.removeMembers(c, s) })
		a.router.add(http.MethodGet, item, func(c *call) (answer, error) { return a.showMember(c, s) })
		a.router.add(http.MethodDelete, item, a.mutation(service.Delete, http.StatusNoContent, func(p []string) service.Target { return s.target(p[0], p[1]) }))
	}
	const group = "/consumer_groups/{consumer_groups}"
	a.router.add(http.MethodGet, group, a.showGroup)
	// Until Kong 3.4 one plugin could be configured for groups, here.
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		a.router.add(m, group+"/overrides/plugins/rate-limiting-advanced", func(c *call) (answer, error) {
			if err := a.mayChange(c, service.Target{Entity: entity.ConsumerGroups}); err != nil {
				return answer{}, err
			}
			return answer{}, &statusError{http.StatusNotFound, "Not found",
				"there are no overrides of rate-limiting-advanced: give the group plugins of its own with POST /consumer_groups/{group}/plugins"}
		})
	}
}

// mayChange judges the client before what it sent.
func (a *API) mayChange(c *call, t service.Target) error {
	if c.r.Method == http.MethodGet {
		return nil
	}
	return a.o.Service.AuthorizeWrite(c.r.Context(), t)
}

// target names the members of an owner, or one of them.
func (s side) target(owner, member string) service.Target {
	return service.Target{Entity: entity.ConsumerGroupConsumers, Ref: member, Parent: &service.Parent{Entity: s.owner, Ref: owner, Field: s.field}}
}

// showGroup shows a group with all its consumers, with ?list_consumers=false without. The ETag is that of the group alone, so that it
// serves for If-Match.
func (a *API) showGroup(c *call) (answer, error) {
	s := sides[0]
	res, err := a.o.Service.Get(c.r.Context(), service.Target{Entity: s.owner, Ref: c.params[0]})
	if err != nil {
		return answer{}, err
	}
	c.w.Header().Set("ETag", res.Tag)
	body := map[string]any{"consumer_group": json.RawMessage(res.Row)}
	if c.query("list_consumers") != "false" {
		body["consumers"], err = a.members(c.r.Context(), s.target(c.params[0], ""), a.o.Service.Joined)
	}
	return answer{status: http.StatusOK, body: body, index: res.Index}, err
}

// members reads all pages of a list. Only for the first one others are asked how new this node's state is.
func (a *API) members(ctx context.Context, t service.Target, list func(context.Context, service.Target, service.ListOptions) (service.Page, error)) ([]json.RawMessage, error) {
	all := []json.RawMessage{}
	for o := (service.ListOptions{Size: "1000"}); ; {
		page, err := list(ctx, t, o)
		if err != nil {
			return nil, err
		}
		for _, row := range page.Rows {
			all = append(all, row)
		}
		if o.Offset = page.Offset; o.Offset == "" {
			return all, nil
		}
		ctx = service.WithConsistency(ctx, service.Local)
	}
}

func (a *API) listMembers(c *call, s side) (answer, error) {
	t := s.target(c.params[0], "")
	o, err := listOptions(c, entity.Def{}, t)
	if err != nil {
		return answer{}, err
	}
	o.Tags = tagsOf(c)
	page, err := a.o.Service.Joined(c.r.Context(), t, o)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: pageBody(c, page.Rows, page.Offset, false), index: page.Index}, nil
}

func (a *API) showMember(c *call, s side) (answer, error) {
	res, err := a.o.Service.Get(c.r.Context(), s.target(c.params[0], c.params[1]))
	if err == nil {
		res, err = a.o.Service.Get(c.r.Context(), service.Target{Entity: s.member, Ref: c.params[1]})
	}
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: map[string]any{s.ref: json.RawMessage(res.Row)}, index: res.Index}, nil
}

// addMembers adds what the body names, all or none.
func (a *API) addMembers(c *call, s side) (answer, error) {
	if err := a.mayChange(c, service.Target{Entity: entity.ConsumerGroupConsumers}); err != nil {
		return answer{}, err
	}
	body, _, err := readBody(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	names, err := s.named(body)
	if err != nil {
		return answer{}, err
	}
	owner, err := a.o.Service.Get(c.r.Context(), service.Target{Entity: s.owner, Ref: c.params[0]})
	if err != nil {
		return answer{}, err
	}
	rows, named := make([]json.RawMessage, len(names)), make(map[string]bool, len(names))
	bulk := service.Bulk{Merge: true, Rows: make([]service.Wanted, len(names))}
	for i, name := range names {
		res, err := a.o.Service.Get(c.r.Context(), service.Target{Entity: s.member, Ref: name})
		if err != nil {
			return answer{}, s.unknown(name, err)
		}
		if named[string(res.Row)] {
			return answer{}, invalidField(s.param, fmt.Sprintf("'%s' is named twice", name))
		}
		named[string(res.Row)] = true
		rows[i] = res.Row
		bulk.Rows[i] = service.Wanted{Entity: entity.ConsumerGroupConsumers, Parent: -1, Conditions: service.Conditions{IfNoneMatch: "*"},
			Body: schema.Record{s.field: rowRef(owner.Row), s.ref: rowRef(res.Row)}}
	}
	ans := answer{status: http.StatusCreated, body: map[string]any{s.field: json.RawMessage(owner.Row), s.member: rows}}
	if len(names) == 1 {
		res, err := a.o.Service.Mutate(c.r.Context(), service.Mutation{Verb: service.Create, Target: s.target(c.params[0], ""), Body: bulk.Rows[0].Body})
		ans.index = res.Index
		return ans, err
	}
	res, err := a.o.Service.Apply(c.r.Context(), bulk)
	var e *service.Error
	if errors.As(err, &e) && e.Kind == service.Changed {
		return answer{}, &statusError{http.StatusConflict, "nothing was changed: " + e.Message, ""}
	}
	ans.index = res.Index
	return ans, err
}

// mostMembers bounds what one request adds: each is looked up on its own.
const mostMembers = 1000

// named are the names or ids of the body's members: one text or a list of them.
func (s side) named(body schema.Record) (names []string, err error) {
	list, ok := body[s.param].([]any)
	if !ok && body[s.param] != nil {
		list = []any{body[s.param]}
	}
	for _, v := range list {
		name, _ := v.(string)
		if name == "" {
			return nil, invalidField(s.param, "expected a name or an id, or a list of them")
		}
		names = append(names, name)
	}
	for name := range body {
		if name != s.param {
			return nil, invalidField(name, "unknown field")
		}
	}
	if len(names) > mostMembers {
		return nil, invalidField(s.param, fmt.Sprintf("at most %d can be added at once: use more requests, or POST /config", mostMembers))
	}
	if names == nil {
		return nil, malformed("must provide " + s.param)
	}
	return names, nil
}

func invalidField(name, text string) error {
	errs := schema.Errors{name: text}
	return &service.Error{Kind: service.SchemaViolation, Name: "schema violation", Message: errs.Message(), Fields: errs}
}

// unknown says what is not there: the path of the request is.
func (s side) unknown(name string, err error) error {
	var e *service.Error
	if errors.As(err, &e) && e.Kind == service.Missing {
		return &statusError{http.StatusNotFound, fmt.Sprintf("%s '%s' not found", s.called, name), e.Hint}
	}
	return err
}

// rowRef is a reference to an entity that was read.
func rowRef(row []byte) schema.Record {
	var rec struct{ ID string }
	_ = json.Unmarshal(row, &rec) // a row
	return schema.Record{"id": rec.ID}
}

// removeMembers removes all members that the client may reach.
func (a *API) removeMembers(c *call, s side) (answer, error) {
	if err := a.mayChange(c, service.Target{Entity: entity.ConsumerGroupConsumers}); err != nil {
		return answer{}, err
	}
	rows, err := a.members(c.r.Context(), s.target(c.params[0], ""), a.o.Service.List)
	if err != nil {
		return answer{}, err
	}
	bulk := service.Bulk{Merge: true}
	for _, row := range rows {
		id, _ := rowRef(row)["id"].(string)
		bulk.Removals = append(bulk.Removals, service.Removal{Entity: entity.ConsumerGroupConsumers, Ref: id})
	}
	if len(rows) == 0 {
		return answer{status: http.StatusNoContent}, nil
	}
	res, err := a.o.Service.Apply(c.r.Context(), bulk)
	return answer{status: http.StatusNoContent, index: res.Index}, err
}

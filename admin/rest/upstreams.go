package rest

import (
	"encoding/json"
	"errors"
	"net/http"

	"concord/admin/service"
	"concord/fsm/entity"
)

// Balancer knows the health of upstreams' targets as this node sees it; *balancer.Set has it.
type Balancer interface {
	// TargetHealth is what each target, by id, is shown with; false: there is no such upstream.
	TargetHealth(upstreamID string) (map[string]map[string]any, bool)
	PoolHealth(upstreamID string) (map[string]any, bool)
	// SetHealth overrides the health of a target, or of one of its addresses. Errors with a method NotFound that says so are 404,
	// all others 400.
	SetHealth(upstreamID, targetID, address string, healthy bool) error
}

// upstreamRoutes are the endpoints of upstreams that no schema implies.
func (a *API) upstreamRoutes() {
	targets, ok := entity.Lookup("targets")
	if !ok {
		return
	}
	const item = "/upstreams/{upstreams}"
	// Kong once kept a history of each target, which this list showed.
	a.router.add(http.MethodGet, item+"/targets/all", func(c *call) (answer, error) { return a.list(c, targets, targetsOf(c)) })
	if a.o.Balancer == nil {
		return
	}
	a.router.add(http.MethodGet, item+"/health", func(c *call) (answer, error) { return a.upstreamHealth(c, targets) })
	for word, healthy := range map[string]bool{"healthy": true, "unhealthy": false} {
		for _, path := range []string{item + "/targets/{targets}/" + word, item + "/targets/{targets}/{address}/" + word} {
			set := func(c *call) (answer, error) { return a.setHealth(c, healthy) }
			a.router.add(http.MethodPut, path, set)
			a.router.add(http.MethodPost, path, set) // of old clients
		}
	}
}

func targetsOf(c *call) service.Target {
	return service.Target{Entity: "targets", Parent: &service.Parent{Entity: "upstreams", Ref: c.params[0], Field: "upstream"}}
}

// idOf is the id of what t names. The balancer knows it when idOf returns.
func (a *API) idOf(c *call, t service.Target) (string, error) {
	res, err := a.o.Service.Get(c.r.Context(), t)
	if err == nil {
		err = a.o.Service.WaitIndex(c.r.Context(), res.Index)
	}
	if err != nil {
		return "", err
	}
	var rec struct{ ID string }
	return rec.ID, json.Unmarshal(res.Row, &rec)
}

func (a *API) upstreamHealth(c *call, targets entity.Def) (answer, error) {
	id, err := a.idOf(c, service.Target{Entity: "upstreams", Ref: c.params[0]})
	if err != nil {
		return answer{}, err
	}
	if c.query("balancer_health") == "1" {
		pool, ok := a.o.Balancer.PoolHealth(id)
		if !ok {
			return answer{}, &statusError{http.StatusNotFound, "Not found", ""}
		}
		return answer{status: http.StatusOK, body: map[string]any{"data": pool, "next": nil, "node_id": a.ownID()}}, nil
	}
	t := targetsOf(c)
	o, err := listOptions(c, targets, t)
	if err != nil {
		return answer{}, err
	}
	page, err := a.o.Service.List(c.r.Context(), t, o)
	if err != nil {
		return answer{}, err
	}
	health, _ := a.o.Balancer.TargetHealth(id)
	for i, row := range page.Rows {
		var rec struct{ ID string }
		if err := json.Unmarshal(row, &rec); err != nil {
			return answer{}, err
		}
		for name, v := range health[rec.ID] {
			row = withMember(row, name, v)
		}
		page.Rows[i] = row
	}
	body := withMember(pageBody(c, page.Rows, page.Offset, false), "node_id", a.ownID())
	return answer{status: http.StatusOK, body: body, index: page.Index}, nil
}

func (a *API) setHealth(c *call, healthy bool) (answer, error) {
	upstream, err := a.idOf(c, service.Target{Entity: "upstreams", Ref: c.params[0]})
	if err != nil {
		return answer{}, err
	}
	t := targetsOf(c)
	t.Ref = c.params[1]
	if err := a.o.Service.AuthorizeWrite(c.r.Context(), t); err != nil {
		return answer{}, err
	}
	target, err := a.idOf(c, t)
	if err != nil {
		return answer{}, err
	}
	address := ""
	if len(c.params) > 2 {
		address = c.params[2]
	}
	err = a.o.Balancer.SetHealth(upstream, target, address, healthy)
	var missing interface{ NotFound() bool }
	switch {
	case errors.As(err, &missing) && missing.NotFound():
		return answer{}, &statusError{http.StatusNotFound, "Not found", ""}
	case err != nil:
		return answer{}, malformed(err.Error())
	}
	return answer{status: http.StatusNoContent}, nil
}

package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"concord/admin/rest/apis"
	"concord/admin/service"
	"concord/fsm/schema"
)

// apiRoutes are the endpoints of Kong before 1.0, which had "APIs" in the place of services and routes.
func (a *API) apiRoutes() {
	const all, item, plugins = "/apis", "/apis/{api}", "/apis/{api}/plugins"
	a.router.add(http.MethodGet, all, a.listAPIs)
	a.router.add(http.MethodPost, all, a.createAPI)
	a.router.add(http.MethodPut, all, a.createAPI)
	a.router.add(http.MethodGet, item, func(c *call) (answer, error) {
		found, err := a.findAPI(c.r.Context(), c.params[0])
		return answer{status: http.StatusOK, body: found.JSON()}, err
	})
	a.router.add(http.MethodPatch, item, a.patchAPI)
	a.router.add(http.MethodDelete, item, a.deleteAPI)
	a.router.add(http.MethodGet, plugins, a.listAPIPlugins)
	a.router.add(http.MethodPost, plugins, a.writeAPIPlugin(service.Create))
	a.router.add(http.MethodPut, plugins, a.writeAPIPlugin(service.Upsert))
	a.router.add(http.MethodGet, plugins+"/{plugin}", func(c *call) (answer, error) {
		p, err := a.findAPIPlugin(c)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: apis.PluginOut(p)}, nil
	})
	a.router.add(http.MethodPatch, plugins+"/{plugin}", a.writeAPIPlugin(service.Update))
	a.router.add(http.MethodDelete, plugins+"/{plugin}", func(c *call) (answer, error) {
		p, err := a.findAPIPlugin(c)
		if err != nil {
			return answer{}, err
		}
		return a.mutation(service.Delete, http.StatusNoContent, func([]string) service.Target { return service.Target{Entity: "plugins", Ref: idOf(p)} })(c)
	})
}

// storedAPI is an API and the rows it is read from.
type storedAPI struct {
	apis.API
	service schema.Record
	routes  []schema.Record
	other   string // id of a route that the service was given outside /apis
}

func idOf(rec schema.Record) string {
	id, _ := rec["id"].(string)
	return id
}

func (a *API) findAPI(ctx context.Context, ref string) (storedAPI, error) {
	res, err := a.o.Service.Get(ctx, service.Target{Entity: "services", Ref: ref})
	if err != nil {
		return storedAPI{}, err
	}
	return a.readAPI(ctx, res.Row)
}

func (a *API) readAPI(ctx context.Context, row []byte) (storedAPI, error) {
	var s storedAPI
	if err := json.Unmarshal(row, &s.service); err != nil {
		return s, err
	}
	rows, err := a.allRows(ctx, service.Target{Entity: "routes", Parent: &service.Parent{Entity: "services", Ref: idOf(s.service), Field: "service"}}, "")
	if err != nil {
		return s, err
	}
	for _, r := range rows {
		tags, _ := r["tags"].([]any)
		if slices.Contains(tags, any(apis.TagHostPath)) || slices.Contains(tags, any(apis.TagLists)) {
			s.routes = append(s.routes, r)
		} else {
			s.other = idOf(r)
		}
	}
	slices.SortStableFunc(s.routes, func(x, y schema.Record) int { // as API.Routes makes them: hosts first
		return boolOrder(x["hosts"] == nil) - boolOrder(y["hosts"] == nil)
	})
	var ok bool
	if s.API, ok = apis.Of(s.service, s.routes); !ok {
		return s, &statusError{http.StatusNotFound, "Not found", fmt.Sprintf("there is a service %s that was not made through /apis: use /services/%[1]s", idOf(s.service))}
	}
	return s, nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// allRows reads a collection to its end.
func (a *API) allRows(ctx context.Context, t service.Target, tags string) ([]schema.Record, error) {
	o := service.ListOptions{Size: "1000"}
	if tags != "" {
		o.Tags = &tags
	}
	var all []schema.Record
	for {
		page, err := a.o.Service.List(ctx, t, o)
		if err != nil {
			return nil, err
		}
		for _, row := range page.Rows {
			var rec schema.Record
			if err := json.Unmarshal(row, &rec); err != nil {
				return nil, err
			}
			all = append(all, rec)
		}
		if o.Offset = page.Offset; o.Offset == "" {
			return all, nil
		}
	}
}

// allAPIs reads every API.
func (a *API) allAPIs(ctx context.Context) ([]storedAPI, error) {
	services, err := a.allRows(ctx, service.Target{Entity: "services"}, apis.TagHostPath+"/"+apis.TagLists)
	if err != nil {
		return nil, err
	}
	routes, err := a.allRows(ctx, service.Target{Entity: "routes"}, apis.TagHostPath+"/"+apis.TagLists)
	if err != nil {
		return nil, err
	}
	byService := map[string][]schema.Record{}
	for _, r := range routes {
		if ref, ok := r["service"].(schema.Record); ok {
			byService[idOf(ref)] = append(byService[idOf(ref)], r)
		}
	}
	var out []storedAPI
	for _, s := range services {
		stored := storedAPI{service: s, routes: byService[idOf(s)]}
		stored.API, _ = apis.Of(s, stored.routes)
		out = append(out, stored)
	}
	return out, nil
}

// listAPIs answers as Kong 0.9 does: every argument but size and offset is a filter on equality.
func (a *API) listAPIs(c *call) (answer, error) {
	all, err := a.allAPIs(c.r.Context())
	if err != nil {
		return answer{}, err
	}
	q := c.r.URL.Query()
	size, from := 100, 0
	if text := q.Get("size"); text != "" {
		if size, err = strconv.Atoi(text); err != nil || size < 1 || size > 1000 {
			return answer{status: http.StatusBadRequest, body: map[string]any{"size": "size must be a number from 1 to 1000"}}, nil
		}
	}
	if text := q.Get("offset"); text != "" {
		if from, err = strconv.Atoi(text); err != nil || from < 0 {
			return answer{status: http.StatusBadRequest, body: map[string]any{"offset": "invalid offset"}}, nil
		}
	}
	q.Del("size")
	q.Del("offset")
	data := []schema.Record{}
	for _, stored := range all {
		rec := stored.JSON()
		if !slices.ContainsFunc(sortedKeys(q), func(name string) bool { return fmt.Sprint(rec[name]) != q.Get(name) }) {
			data = append(data, rec)
		}
	}
	for name := range q {
		if !apis.Known(name) {
			return answer{status: http.StatusBadRequest, body: map[string]any{name: "unknown field"}}, nil
		}
	}
	return answer{status: http.StatusOK, body: page(c, data, size, from)}, nil
}

// page is the list envelope of Kong 0.9.
func page(c *call, data []schema.Record, size, from int) map[string]any {
	body := map[string]any{"total": len(data)}
	from = min(from, len(data))
	to := min(from+size, len(data))
	body["data"] = data[from:to]
	if to < len(data) {
		q := c.r.URL.Query()
		q.Set("offset", strconv.Itoa(to))
		q.Set("size", strconv.Itoa(size))
		scheme := "http"
		if c.r.TLS != nil {
			scheme = "https"
		}
		next := url.URL{Scheme: scheme, Host: c.r.Host, Path: c.r.URL.Path, RawQuery: q.Encode()}
		body["next"], body["offset"] = next.String(), strconv.Itoa(to)
	}
	return body
}

// createAPI is POST, and PUT: without an id it inserts, with the id of an API it replaces that.
func (a *API) createAPI(c *call) (answer, error) {
	body, _, err := readBody(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	wanted := apis.New(body)
	id, given := body["id"].(string)
	if c.r.Method == http.MethodPut && given {
		before, err := a.findAPI(c.r.Context(), id)
		if err != nil {
			return answer{}, err
		}
		wanted.ID = before.ID
		return a.storeAPI(c, before, wanted, body, http.StatusOK)
	}
	return a.storeAPI(c, storedAPI{}, wanted, body, http.StatusCreated)
}

func (a *API) patchAPI(c *call) (answer, error) {
	body, _, err := readBody(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	if len(body) == 0 {
		return answer{status: http.StatusBadRequest, body: map[string]any{"message": "empty body"}}, nil
	}
	before, err := a.findAPI(c.r.Context(), c.params[0])
	if err != nil {
		return answer{}, err
	}
	return a.storeAPI(c, before, before.API, body, http.StatusOK)
}

// storeAPI writes the service and the routes of wanted, changed by the client's fields, in one transaction.
func (a *API) storeAPI(c *call, before storedAPI, wanted apis.API, body schema.Record, status int) (answer, error) {
	errs := wanted.Set(body)
	for field, text := range wanted.Check() {
		if errs[field] == nil {
			errs[field] = text
		}
	}
	if len(errs) > 0 {
		return answer{status: http.StatusBadRequest, body: errs}, nil
	}
	if taken, err := a.takenAPI(c.r.Context(), wanted, before.service == nil); err != nil || len(taken) > 0 {
		return answer{status: http.StatusConflict, body: taken}, err
	}
	if wanted.ID == "" {
		wanted.ID = uuid.NewString()
	}
	bulk := service.Bulk{Merge: true, Show: true,
		Rows: []service.Wanted{{Entity: "services", Body: wanted.Service(before.service), Parent: -1}}}
	kept := map[string]bool{}
	for _, r := range wanted.Routes(before.routes) {
		row := service.Wanted{Entity: "routes", Body: r, Parent: 0, Field: "service"}
		if kept[idOf(r)] = true; idOf(r) == "" { // a host or path that another API was given a moment ago is not taken from it
			row.Conditions.IfNoneMatch = "*"
		}
		bulk.Rows = append(bulk.Rows, row)
	}
	for _, r := range before.routes {
		if !kept[idOf(r)] { // a host or path is gone
			bulk.Removals = append(bulk.Removals, service.Removal{Entity: "routes", Ref: idOf(r)})
		}
	}
	res, err := a.o.Service.Apply(c.r.Context(), bulk)
	var invalid *service.BulkError
	if errors.As(err, &invalid) {
		flat := map[string]any{}
		for _, fields := range invalid.Rows {
			for name, text := range wanted.FlatErrors(fields) {
				flat[name] = text
			}
		}
		return answer{status: http.StatusBadRequest, body: flat}, nil
	}
	var lost *service.Error
	if errors.As(err, &lost) && lost.Kind == service.Changed {
		if taken, again := a.takenAPI(c.r.Context(), wanted, before.service == nil); again == nil && len(taken) > 0 {
			return answer{status: http.StatusConflict, body: taken}, nil
		}
	}
	if err != nil {
		return answer{}, err
	}
	after, err := a.readAPI(c.r.Context(), res.Rows[0])
	return answer{status: status, body: after.JSON(), index: res.Index}, err
}

// takenAPI names the unique fields whose value another API, or the name another service, has. All are found by unique indexes.
func (a *API) takenAPI(ctx context.Context, wanted apis.API, create bool) (map[string]any, error) {
	taken := map[string]any{}
	for _, kind := range []string{"services", "routes"} { // who may not write these hears that, not that everything is taken
		if err := a.o.Service.AuthorizeWrite(ctx, service.Target{Entity: kind}); err != nil {
			return nil, err
		}
	}
	// owner is the id of the service that a row is or belongs to; "": there is no such row.
	owner := func(kind, ref string) (string, error) {
		res, err := a.o.Service.Get(ctx, service.Target{Entity: kind, Ref: ref})
		var e *service.Error
		switch {
		case errors.As(err, &e) && e.Kind == service.Missing:
			return "", nil
		case errors.As(err, &e) && e.Kind == service.Forbidden:
			return ref, nil // somebody else's
		}
		var row schema.Record
		if err == nil {
			err = json.Unmarshal(res.Row, &row)
		}
		if of, ok := row["service"].(schema.Record); ok && kind == "routes" {
			return idOf(of), err
		}
		return idOf(row), err
	}
	look := func(field, value, kind, ref string, mine bool) error {
		if value == "" {
			return nil
		}
		id, err := owner(kind, ref)
		if id != "" && (id != wanted.ID || mine) {
			taken[field] = fmt.Sprintf("already exists with value '%s'", value)
		}
		return err
	}
	errs := []error{look("name", wanted.Name, "services", wanted.Name, false)}
	if create { // the transaction would write over a service that has the id
		errs = append(errs, look("id", wanted.ID, "services", wanted.ID, true))
	}
	if !wanted.Lists {
		errs = append(errs, look("request_host", strings.Join(wanted.Hosts, ""), "routes", apis.RouteName(wanted.Hosts, nil), false),
			look("request_path", strings.Join(wanted.Paths, ""), "routes", apis.RouteName(nil, wanted.Paths), false))
	}
	return taken, errors.Join(errs...)
}

func (a *API) deleteAPI(c *call) (answer, error) {
	before, err := a.findAPI(c.r.Context(), c.params[0])
	if err != nil {
		return answer{}, err
	}
	if before.other != "" {
		return answer{}, &statusError{http.StatusBadRequest, "an existing 'routes' entity references this API",
			"delete /routes/" + before.other + " first, which was not made through /apis"}
	}
	// A service goes last: with routes it cannot be deleted. A reader may see the API without its routes for a moment.
	targets := []service.Target{}
	for _, r := range before.routes {
		targets = append(targets, service.Target{Entity: "routes", Ref: idOf(r)})
	}
	targets = append(targets, service.Target{Entity: "services", Ref: before.ID})
	var index uint64
	for _, t := range targets {
		res, err := a.o.Service.Mutate(c.r.Context(), service.Mutation{Verb: service.Delete, Target: t})
		if err != nil {
			return answer{}, err
		}
		index = res.Index
	}
	return answer{status: http.StatusNoContent, index: index}, nil
}

func (a *API) pluginsOf(api storedAPI) service.Target {
	return service.Target{Entity: "plugins", Parent: &service.Parent{Entity: "services", Ref: api.ID, Field: "service"}}
}

func (a *API) listAPIPlugins(c *call) (answer, error) {
	api, err := a.findAPI(c.r.Context(), c.params[0])
	if err != nil {
		return answer{}, err
	}
	rows, err := a.allRows(c.r.Context(), a.pluginsOf(api), "")
	if err != nil {
		return answer{}, err
	}
	data := []schema.Record{}
	for _, row := range rows {
		data = append(data, apis.PluginOut(row))
	}
	return answer{status: http.StatusOK, body: page(c, data, max(1, len(data)), 0)}, nil
}

// findAPIPlugin reads the plugin that the path names, which must be one of the API's.
func (a *API) findAPIPlugin(c *call) (schema.Record, error) {
	api, err := a.findAPI(c.r.Context(), c.params[0])
	if err != nil {
		return nil, a.hintAtOwner(c, err)
	}
	t := a.pluginsOf(api)
	t.Ref = c.params[1]
	res, err := a.o.Service.Get(c.r.Context(), t)
	if err != nil {
		return nil, a.hintAtOwner(c, err)
	}
	var row schema.Record
	return row, json.Unmarshal(res.Row, &row)
}

// hintAtOwner adds to a 404 the API that does have the plugin.
func (a *API) hintAtOwner(c *call, err error) error {
	var e *service.Error
	if !errors.As(err, &e) || e.Kind != service.Missing {
		return err
	}
	res, lost := a.o.Service.Get(c.r.Context(), service.Target{Entity: "plugins", Ref: c.params[1]})
	var row schema.Record
	if lost != nil || json.Unmarshal(res.Row, &row) != nil {
		return err
	}
	owner, ok := row["service"].(schema.Record)
	if !ok {
		return err
	}
	api, lost := a.findAPI(c.r.Context(), idOf(owner))
	if lost != nil {
		return err
	}
	return &statusError{http.StatusNotFound, "Not found", fmt.Sprintf("plugin %s belongs to the API %s", c.params[1], api.Name)}
}

// writeAPIPlugin is POST, PUT (which inserts without an id) and PATCH.
func (a *API) writeAPIPlugin(verb service.Verb) handler {
	return func(c *call) (answer, error) {
		body, form, err := readBody(c.w, c.r)
		if err != nil {
			return answer{}, err
		}
		if body, err = dotted(body); err != nil {
			return answer{}, err
		}
		m, status := service.Mutation{Verb: verb, Form: form}, http.StatusOK
		name, _ := body["name"].(string)
		if verb == service.Update {
			stored, err := a.findAPIPlugin(c)
			if err != nil {
				return answer{}, err
			}
			if len(body) == 0 {
				return answer{status: http.StatusBadRequest, body: map[string]any{"message": "empty body"}}, nil
			}
			if name == "" {
				name, _ = stored["name"].(string)
			}
			m.Target = service.Target{Entity: "plugins", Ref: idOf(stored)}
		} else {
			api, err := a.findAPI(c.r.Context(), c.params[0])
			if err != nil {
				return answer{}, err
			}
			m.Target = a.pluginsOf(api)
			if id, given := body["id"].(string); given && verb == service.Upsert {
				m.Target.Ref = id
			} else {
				m.Verb, status = service.Create, http.StatusCreated
			}
		}
		m.Body = apis.PluginIn(name, body, a.configFields(name))
		res, err := a.o.Service.Mutate(c.r.Context(), m)
		var e *service.Error
		if errors.As(err, &e) && len(e.Fields) > 0 {
			flat, status := apis.FlatPluginErrors(name, e.Fields), http.StatusBadRequest
			switch known, ok := statuses[e.Kind]; {
			case e.Kind == service.UniqueTaken || e.Kind == service.PrimaryKeyTaken:
				flat, status = apis.TakenPlugin(e.Fields), http.StatusConflict
			case ok:
				status = known
			}
			if e.Hint != "" {
				flat["hint"] = e.Hint
			}
			return answer{status: status, body: flat}, nil
		}
		if err != nil {
			return answer{}, err
		}
		var row schema.Record
		if err := json.Unmarshal(res.Row, &row); err != nil {
			return answer{}, err
		}
		return answer{status: status, body: apis.PluginOut(row), index: res.Index}, nil
	}
}

// dotted nests what is named "config.key_names", as in a form: before 1.0 names in JSON were read so, too, and clients of then write them.
func dotted(body schema.Record) (schema.Record, error) {
	var fields []field
	flat := true
	for _, name := range slices.Sorted(maps.Keys(body)) {
		fields = append(fields, field{name, body[name]})
		flat = flat && !strings.ContainsAny(name, ".[")
	}
	if flat {
		return body, nil
	}
	return nest(fields)
}

// configFields are the fields of a plugin's configuration; nil for a plugin that is not there.
func (a *API) configFields(name string) []schema.Field {
	for _, p := range a.o.Plugins {
		if f, ok := p.Schema.Field("config"); ok && p.Name == name {
			return f.Fields
		}
	}
	return nil
}

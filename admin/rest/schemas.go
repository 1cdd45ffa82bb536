package rest

import (
	"fmt"
	"net/http"

	"concord/admin/service"
	"concord/fsm/schema"
)

func (a *API) schemaRoutes() {
	a.router.add(http.MethodGet, "/schemas/{name}", a.entitySchema)
	a.router.add(http.MethodPost, "/schemas/{name}/validate", func(c *call) (answer, error) { return a.validate(c, c.params[0]) })
	a.router.add(http.MethodPost, "/schemas/plugins/validate", func(c *call) (answer, error) { return a.validate(c, "plugins") })
	a.router.add(http.MethodGet, "/schemas/plugins/{name}", func(c *call) (answer, error) {
		p, err := a.plugin(c.params[0])
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: p.Schema.Describe()}, nil
	})
	a.router.add(http.MethodGet, "/plugins/schema/{name}", a.configSchema)
	a.router.add(http.MethodGet, "/plugins/enabled", func(*call) (answer, error) {
		names := []string{}
		for _, p := range a.o.Plugins {
			names = append(names, p.Name)
		}
		return answer{status: http.StatusOK, body: map[string]any{"enabled_plugins": names}}, nil
	})
	a.router.add(http.MethodGet, "/tags", func(c *call) (answer, error) { return a.tags(c, "") })
	a.router.add(http.MethodGet, "/tags/{tags}", func(c *call) (answer, error) { return a.tags(c, c.params[0]) })
}

func (a *API) entitySchema(c *call) (answer, error) {
	sch, err := a.schemaOf(c.params[0])
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: sch.Describe()}, nil
}

func (a *API) schemaOf(name string) (*schema.Schema, error) {
	for _, d := range a.o.Service.Entities() {
		if d.Schema.Name == name {
			return d.Schema, nil
		}
	}
	return nil, &statusError{http.StatusNotFound, fmt.Sprintf("No entity named '%s'", name), ""}
}

func (a *API) plugin(name string) (Plugin, error) {
	for _, p := range a.o.Plugins {
		if p.Name == name {
			return p, nil
		}
	}
	return Plugin{}, &statusError{http.StatusNotFound, fmt.Sprintf("No plugin named '%s'", name), ""}
}

func (a *API) validate(c *call, name string) (answer, error) {
	if _, err := a.schemaOf(name); err != nil {
		return answer{}, err
	}
	body, form, err := readBody(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	if err := a.o.Service.Validate(name, body, form); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: errorBody{Message: "schema validation successful"}}, nil
}

// configSchema is Kong's deprecated form of a plugin's schema: the config record only.
func (a *API) configSchema(c *call) (answer, error) {
	p, err := a.plugin(c.params[0])
	if err != nil {
		return answer{}, err
	}
	config, ok := p.Schema.Field("config")
	if !ok {
		return answer{status: http.StatusOK, body: map[string]any{"fields": []any{}}}, nil
	}
	sub := schema.Schema{Name: p.Name, Fields: config.Fields, Shorthands: config.Shorthands, Checks: config.Checks}
	return answer{status: http.StatusOK, body: sub.Describe()}, nil
}

func (a *API) tags(c *call, tag string) (answer, error) {
	list, offset, err := a.o.Service.Tags(c.r.Context(), tag, service.ListOptions{Size: c.query("size"), Offset: c.query("offset")})
	if err != nil {
		return answer{}, err
	}
	rows := make([][]byte, len(list))
	for i, t := range list {
		rows[i] = encode(t)
	}
	return answer{status: http.StatusOK, body: pageBody(c, rows, offset, true)}, nil
}

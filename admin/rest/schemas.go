package rest

import (
	"fmt"
	"net/http"

	"concord/admin/service"
	"concord/fsm/schema"
)

func (a *API) schemaRoutes() {
	a.router.add(http.MethodGet, "/schemas/{name}", func(c *call) (answer, error) {
		sch, err := a.schemaOf(c.params[0])
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: sch.Describe()}, nil
	})
	a.router.add(http.MethodPost, "/schemas/{name}/validate", func(c *call) (answer, error) { return a.validate(c, c.params[0]) })
	a.subSchemas("plugins", "plugin", func(name string) (*schema.Schema, bool) {
		p, err := a.plugin(name)
		return p.Schema, err == nil
	})
	if vaults, ok := a.o.Service.Schema("vaults"); ok {
		a.subSchemas("vaults", "vault", vaults.Subs)
	}
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

// subSchemas shows what completes an entity, by the value that selects it.
func (a *API) subSchemas(entity, one string, sub func(string) (*schema.Schema, bool)) {
	a.router.add(http.MethodGet, "/schemas/"+entity+"/{name}", func(c *call) (answer, error) {
		sch, ok := sub(c.params[0])
		if !ok {
			return answer{}, &statusError{http.StatusNotFound, fmt.Sprintf("No %s named '%s'", one, c.params[0]), ""}
		}
		return answer{status: http.StatusOK, body: sch.Describe()}, nil
	})
	a.router.add(http.MethodPost, "/schemas/"+entity+"/validate", func(c *call) (answer, error) { return a.validate(c, entity) })
}

func (a *API) schemaOf(name string) (*schema.Schema, error) {
	if sch, ok := a.o.Service.Schema(name); ok {
		return sch, nil
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
	return answer{status: http.StatusOK, body: pageBody(c, rows, offset, tag == "")}, nil
}

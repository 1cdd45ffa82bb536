package rest

import (
	"bytes"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"concord/admin/service"
	"concord/fsm/entity"
)

// entityRoutes makes Kong's endpoints of every entity: the collection, its items, the entities an item refers to, and the
// collections of what refers to it.
func (a *API) entityRoutes() {
	defs := a.o.Service.Entities()
	byName := map[string]entity.Def{}
	for _, d := range defs {
		byName[d.Schema.Name] = d
		if key, ok := d.Schema.Field(d.Schema.EndpointKey); ok && key.Secret {
			a.secretRefs["{"+d.Schema.Name+"}"] = true
		}
	}
	for _, d := range defs {
		if d.Endpoints == entity.NoEndpoints {
			continue
		}
		base, item := "/"+d.CollectionName(), itemPath("/"+d.CollectionName(), d)
		if d.Endpoints != entity.NestedEndpoints {
			a.collection(base, d, func([]string) service.Target { return service.Target{Entity: d.Schema.Name} })
			a.item(item, d, func(p []string) service.Target { return service.Target{Entity: d.Schema.Name, Ref: p[0]} })
		}
		for _, f := range d.Schema.ForeignFields() {
			parent, ok := byName[f.Ref]
			if !ok {
				continue
			}
			if d.Endpoints == entity.AllEndpoints {
				owner := func(p []string) service.Target {
					return service.Target{Entity: f.Ref, Parent: &service.Parent{Entity: d.Schema.Name, Ref: p[0], Field: f.Name, Owner: true}}
				}
				a.owned(item+"/"+f.Name, service.Upsert, owner)
				a.router.add(http.MethodDelete, item+"/"+f.Name, func(c *call) (answer, error) {
					if err := a.o.Service.AuthorizeWrite(c.r.Context(), owner(c.params)); err != nil {
						return answer{}, err
					}
					if _, err := a.o.Service.Get(c.r.Context(), owner(c.params)); err != nil {
						return answer{}, err // Kong looks before it refuses
					}
					return answer{}, notAllowed()
				})
			}
			under := func(p []string) *service.Parent {
				return &service.Parent{Entity: f.Ref, Ref: p[0], Field: f.Name}
			}
			nested := itemPath("/"+parent.CollectionName(), parent) + "/" + d.NestedName()
			a.collection(nested, d, func(p []string) service.Target { return service.Target{Entity: d.Schema.Name, Parent: under(p)} })
			a.item(itemPath(nested, d), d, func(p []string) service.Target {
				return service.Target{Entity: d.Schema.Name, Ref: p[1], Parent: under(p)}
			})
		}
	}
}

func itemPath(base string, d entity.Def) string { return base + "/{" + d.Schema.Name + "}" }

// target is what a path's parameters name.
type target func(params []string) service.Target

func (a *API) collection(path string, d entity.Def, t target) {
	a.router.add(http.MethodGet, path, func(c *call) (answer, error) { return a.list(c, d, t(c.params)) })
	a.router.add(http.MethodPost, path, a.mutation(service.Create, http.StatusCreated, t))
}

func (a *API) item(path string, d entity.Def, t target) {
	put := service.Upsert
	if d.PutUpdates {
		put = service.Update
	}
	a.owned(path, put, t)
	a.router.add(http.MethodDelete, path, a.mutation(service.Delete, http.StatusNoContent, t))
}

// owned is an item that is not deleted through this path: what an entity refers to.
func (a *API) owned(path string, put service.Verb, t target) {
	a.router.add(http.MethodGet, path, func(c *call) (answer, error) {
		res, err := a.o.Service.Get(c.r.Context(), t(c.params))
		if err != nil {
			return answer{}, err
		}
		c.w.Header().Set("ETag", res.Tag)
		switch match, none := conditions(c).Met(res.Tag); {
		case !match:
			return answer{}, &service.Error{Kind: service.Changed, Message: "precondition failed: the ETag of the entity is " + res.Tag}
		case !none:
			return answer{status: http.StatusNotModified, index: res.Index}, nil
		}
		return answer{status: http.StatusOK, body: res.Row, index: res.Index}, nil
	})
	a.router.add(http.MethodPut, path, a.mutation(put, http.StatusOK, t))
	a.router.add(http.MethodPatch, path, a.mutation(service.Update, http.StatusOK, t))
}

func (a *API) mutation(verb service.Verb, status int, t target) handler {
	return func(c *call) (answer, error) {
		m := service.Mutation{Verb: verb, Target: t(c.params), Conditions: conditions(c)}
		if verb != service.Delete {
			var err error
			if m.Body, m.Form, err = readBody(c.w, c.r); err != nil {
				return answer{}, err
			}
		}
		res, err := a.o.Service.Mutate(c.r.Context(), m)
		if err != nil {
			return answer{}, err
		}
		ans := answer{status: status, index: res.Index}
		if verb != service.Delete {
			ans.body = withHint(res.Row, res.Hint)
			c.w.Header().Set("ETag", res.Tag)
		}
		return ans, nil
	}
}

// conditions are the preconditions of a request.
func conditions(c *call) service.Conditions {
	return service.Conditions{IfMatch: strings.Join(c.r.Header.Values("If-Match"), ","), IfNoneMatch: strings.Join(c.r.Header.Values("If-None-Match"), ",")}
}

// withHint adds the member "hint" to a JSON object.
func withHint(row []byte, hint string) []byte {
	if hint == "" {
		return row
	}
	return withMember(row, "hint", hint)
}

// withMember adds a member to a JSON object that has others.
func withMember(row []byte, name string, v any) []byte {
	return slices.Concat(row[:len(row)-1], []byte(`,"`+name+`":`), encode(v), []byte("}"))
}

func (a *API) list(c *call, d entity.Def, t service.Target) (answer, error) {
	o, err := listOptions(c, d, t)
	if err != nil {
		return answer{}, err
	}
	page, err := a.o.Service.List(c.r.Context(), t, o)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: pageBody(c, page.Rows, page.Offset, t.Parent == nil), index: page.Index}, nil
}

func listOptions(c *call, d entity.Def, t service.Target) (service.ListOptions, error) {
	q := c.r.URL.Query()
	o := service.ListOptions{Size: q.Get("size"), Offset: q.Get("offset")}
	if t.Parent == nil { // below one Kong overlooks tags and filters
		o.Tags = tagsOf(c)
		for _, name := range d.Filters {
			if !q.Has(name) {
				continue
			}
			if q.Get(name) == "" {
				return o, malformed(name + " must be an unempty string")
			}
			o.Filter = map[string]string{name: q.Get(name)}
		}
	}
	return o, nil
}

// tagsOf are the tags by which a list is filtered; nil: it is not.
func tagsOf(c *call) *string {
	q := c.r.URL.Query()
	if !q.Has("tags") {
		return nil
	}
	tags := q.Get("tags")
	return &tags
}

// pageBody is Kong's list envelope. The next page of a nested collection does not carry size and tags over.
func pageBody(c *call, rows [][]byte, offset string, options bool) []byte {
	var b bytes.Buffer
	b.WriteString(`{"data":[`)
	b.Write(bytes.Join(rows, []byte(",")))
	b.WriteString(`],"next":`)
	if offset == "" {
		b.WriteString("null}")
		return b.Bytes()
	}
	next := strings.TrimSuffix(c.r.URL.EscapedPath(), "/") + "?offset=" + offset
	for _, name := range []string{"tags", "size"} {
		if v := c.query(name); options && v != "" {
			next += "&" + name + "=" + strings.ReplaceAll(url.QueryEscape(v), "+", "%20") // Kong's form of a space, which every decoder knows
		}
	}
	b.Write(encode(next))
	b.WriteString(`,"offset":`)
	b.Write(encode(offset))
	b.WriteByte('}')
	return b.Bytes()
}

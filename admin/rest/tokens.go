package rest

import (
	"encoding/json"
	"net/http"
	"time"

	"concord/admin/service"
	"concord/fsm/entity"
)

const tokensPath = "/admin/tokens"

// tokenRoutes are the endpoints of admin tokens, which Kong's open source does not have.
func (a *API) tokenRoutes() {
	def, ok := entity.Lookup(entity.AdminTokens)
	if !ok {
		return
	}
	one := func(p []string) service.Target { return service.Target{Entity: entity.AdminTokens, Ref: p[0]} }
	a.router.add(http.MethodGet, tokensPath, func(c *call) (answer, error) {
		t := service.Target{Entity: entity.AdminTokens}
		o, err := listOptions(c, def, t)
		if err != nil {
			return answer{}, err
		}
		page, err := a.o.Service.List(c.r.Context(), t, o)
		if err != nil {
			return answer{}, err
		}
		for i, row := range page.Rows {
			if page.Rows[i], err = a.tokenRow(row); err != nil {
				return answer{}, err
			}
		}
		return answer{status: http.StatusOK, body: pageBody(c, page.Rows, page.Offset, true), index: page.Index}, nil
	})
	a.router.add(http.MethodPost, tokensPath, func(c *call) (answer, error) {
		body, form, err := readBody(c.w, c.r)
		if err != nil {
			return answer{}, err
		}
		text, res, err := a.o.Service.CreateToken(c.r.Context(), body, form)
		if err != nil {
			return answer{}, err
		}
		row, err := a.tokenRow(res.Row)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusCreated, body: withMember(row, "token", text), index: res.Index}, nil
	})
	a.router.add(http.MethodGet, tokensPath+"/{token}", func(c *call) (answer, error) {
		res, err := a.o.Service.Get(c.r.Context(), one(c.params))
		if err != nil {
			return answer{}, err
		}
		row, err := a.tokenRow(res.Row)
		return answer{status: http.StatusOK, body: row, index: res.Index}, err
	})
	a.router.add(http.MethodDelete, tokensPath+"/{token}", func(c *call) (answer, error) {
		if _, err := a.o.Service.Get(c.r.Context(), one(c.params)); err != nil {
			return answer{}, err // a slip in the name must not pass for a revocation
		}
		res, err := a.o.Service.Mutate(c.r.Context(), service.Mutation{Verb: service.Delete, Target: one(c.params)})
		return answer{status: http.StatusNoContent, index: res.Index}, err
	})
}

// tokenRow is a token as it is shown: without its hash, with the time of its last use at this node.
func (a *API) tokenRow(row []byte) ([]byte, error) {
	var rec map[string]any
	if err := json.Unmarshal(row, &rec); err != nil {
		return nil, err
	}
	delete(rec, "hash")
	id, _ := rec["id"].(string)
	rec["last_used_at"] = nil
	if t := a.o.Service.LastUsed(id); !t.IsZero() {
		rec["last_used_at"] = t.Truncate(time.Second).Unix()
	}
	return encode(rec), nil
}

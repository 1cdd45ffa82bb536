// Package keyauth authenticates requests by an API key in a header, a query parameter or a body field.
package keyauth

import (
	"context"
	"strings"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the key-auth plugin.
func Plugin() plugin.Plugin {
	name := schema.HeaderName("")
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "key-auth", Priority: 1250, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "key_names", Type: schema.Array, Required: true, Elem: &name, Default: []any{"apikey"},
					Description: "Names of headers, query parameters and body fields that hold the key."},
				{Name: "hide_credentials", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether the key is removed before the request is proxied."},
				{Name: "anonymous", Type: schema.String,
					Description: "Id or username of the consumer that requests without a valid key are given to."},
				{Name: "key_in_header", Type: schema.Boolean, Required: true, Default: true,
					Description: "Whether headers are inspected."},
				{Name: "key_in_query", Type: schema.Boolean, Required: true, Default: true,
					Description: "Whether query parameters are inspected."},
				{Name: "key_in_body", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether fields of form, JSON and multipart bodies are inspected."},
				{Name: "run_on_preflight", Type: schema.Boolean, Required: true, Default: true,
					Description: "Whether OPTIONS requests need a key."},
				{Name: "realm", Type: schema.String, Description: "Realm of the WWW-Authenticate header."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			i := &instance{
				config: *c, auth: plugin.NewAuth(env, c.Anonymous),
				credentials: state.JoinOf[entity.KeyAuthCredential, entity.Consumer](env.Store, "key"),
				challenge:   "Key",
			}
			if c.Realm != "" {
				i.challenge += ` realm="` + c.Realm + `"`
			}
			return i, nil
		}),
	}
}

type config struct {
	KeyNames        []string `json:"key_names"`
	HideCredentials bool     `json:"hide_credentials"`
	Anonymous       string   `json:"anonymous"`
	KeyInHeader     bool     `json:"key_in_header"`
	KeyInQuery      bool     `json:"key_in_query"`
	KeyInBody       bool     `json:"key_in_body"`
	RunOnPreflight  bool     `json:"run_on_preflight"`
	Realm           string   `json:"realm"`
}

type instance struct {
	config
	auth        *plugin.Auth
	credentials *state.Join[entity.KeyAuthCredential, entity.Consumer]
	challenge   string
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	if !i.RunOnPreflight && x.Request.Method == "OPTIONS" {
		return nil
	}
	return i.auth.Access(x, i)
}

// Authenticate implements plugin.Authenticator.
func (i *instance) Authenticate(x *exchange.Exchange, v *state.View) *plugin.Exit {
	key, exit := i.find(x)
	if exit != nil {
		return exit
	}
	if key == "" {
		return plugin.Refuse(401, "No API key found in request", i.challenge)
	}
	row, consumer, ok := i.credentials.By(v, key)
	if !ok || row.ExpiresAt != 0 && row.ExpiresAt <= time.Now().UnixMilli() {
		return plugin.Refuse(401, "Unauthorized", i.challenge)
	}
	i.auth.AcceptAs(x, &consumer.Val, exchange.Credential{ID: row.Val.ID, Identifier: row.Val.ID, Kind: "key-auth"})
	return nil
}

// find looks for a key under every name in turn, in header, query and body (Kong's order), and hides it.
func (i *instance) find(x *exchange.Exchange) (string, *plugin.Exit) {
	r := &x.Request
	var body *form
	for _, name := range i.KeyNames {
		key, n := "", 0
		if i.KeyInHeader {
			key, n = r.Header.Get(name), r.Header.Count(name)
		}
		if n == 0 && i.KeyInQuery {
			for v := range r.QueryValues(name) {
				if n++; n == 1 {
					key = v
				}
			}
		}
		if n == 0 && i.KeyInBody {
			if body == nil {
				var exit *plugin.Exit
				if body, exit = readForm(x); exit != nil {
					return "", exit
				}
			}
			key, n = body.value(name)
		}
		switch {
		case n > 1:
			return "", plugin.Refuse(401, "Duplicate API key found", i.challenge)
		case n == 1:
			if i.HideCredentials {
				return key, i.hide(x, name, body)
			}
			return key, nil
		}
	}
	return "", nil
}

func (i *instance) hide(x *exchange.Exchange, name string, body *form) *plugin.Exit {
	r := &x.Request
	r.Header.Del(name)
	if r.DelQuery(name) {
		// Target is what logs show.
		path, _, _ := strings.Cut(r.Target, "?")
		if r.HasQuery {
			path += "?" + r.RawQuery
		}
		r.Target = path
	}
	if !i.KeyInBody {
		return nil
	}
	if body == nil {
		var exit *plugin.Exit
		if body, exit = readForm(x); exit != nil {
			return exit
		}
	}
	body.drop(x, name)
	return nil
}

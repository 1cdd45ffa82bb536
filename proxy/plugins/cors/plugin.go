// Package cors lets pages of other origins use a service: it answers their browsers' preflight requests and marks responses
// as readable (Fetch standard §3.2).
//
// It keeps no request out. Browsers decide, by what the headers say.
package cors

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the cors plugin.
func Plugin() plugin.Plugin {
	methods := []any{"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "cors", Priority: 2000, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "origins", Type: schema.Array, Elem: &schema.Field{Type: schema.String, Check: checkOrigin},
					Description: "Origins that may read responses: as they are, as regular expressions, or * for all. Unset: all."},
				{Name: "headers", Type: schema.Array, Elem: &schema.Field{Type: schema.String},
					Description: "Request headers that are allowed. Unset: those that a preflight asks for."},
				{Name: "exposed_headers", Type: schema.Array, Elem: &schema.Field{Type: schema.String},
					Description: "Response headers that pages may read."},
				{Name: "methods", Type: schema.Array, Elem: &schema.Field{Type: schema.String, OneOf: methods}, Default: methods,
					Description: "Methods that are allowed."},
				{Name: "max_age", Type: schema.Number, Description: "Seconds for which a browser may keep the answer to a preflight."},
				{Name: "credentials", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether requests may carry cookies and the like."},
				{Name: "private_network", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether public pages may reach this private network."},
				{Name: "preflight_continue", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether preflights are proxied, for the upstream to answer."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			return newInstance(c)
		}),
	}
}

// checkOrigin demands that every entry is a regular expression, even those that are not used as one (Kong).
func checkOrigin(v any) string {
	s, _ := v.(string)
	if s != "*" && schema.CheckRegex(s) != "" {
		return "'" + s + "' is not a valid regex"
	}
	return ""
}

type config struct {
	Origins           []string `json:"origins"`
	Headers           []string `json:"headers"`
	ExposedHeaders    []string `json:"exposed_headers"`
	Methods           []string `json:"methods"`
	MaxAge            *float64 `json:"max_age"`
	Credentials       bool     `json:"credentials"`
	PrivateNetwork    bool     `json:"private_network"`
	PreflightContinue bool     `json:"preflight_continue"`
}

type instance struct {
	credentials, privateNetwork, preflightContinue bool
	// One of these says which origins are allowed; neither: all.
	fixed   string // this one, whatever the request's
	origins *list

	headers, exposed, methods, maxAge string // "": no such header
}

func newInstance(c *config) (*instance, error) {
	i := &instance{
		credentials: c.Credentials, privateNetwork: c.PrivateNetwork, preflightContinue: c.PreflightContinue,
		headers: strings.Join(c.Headers, ","), exposed: strings.Join(c.ExposedHeaders, ","), methods: strings.Join(c.Methods, ","),
	}
	if c.Methods == nil {
		i.methods = "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS,TRACE,CONNECT"
	}
	if c.MaxAge != nil {
		i.maxAge = strconv.FormatFloat(*c.MaxAge, 'g', 14, 64)
	}
	switch {
	case len(c.Origins) == 0, len(c.Origins) == 1 && c.Origins[0] == "*":
	case len(c.Origins) == 1 && plain(c.Origins[0]):
		i.fixed = c.Origins[0]
	default:
		var err error
		if i.origins, err = newList(c.Origins); err != nil {
			return nil, fmt.Errorf("config.origins: %w", err)
		}
	}
	return i, nil
}

// State values: how HeaderFilter treats a preflight.
const (
	state     = "cors"
	answered  = "answered"
	forwarded = "forwarded"
)

// preflightAnswer has no headers: HeaderFilter adds them.
var preflightAnswer = &plugin.Exit{Status: 200}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	h := &x.Request.Header
	if x.Request.Method != "OPTIONS" || h.Get("Origin") == "" || !h.Has("Access-Control-Request-Method") {
		return nil
	}
	if i.preflightContinue {
		x.Leave(state, forwarded)
		return nil
	}
	x.Leave(state, answered)
	return preflightAnswer
}

// HeaderFilter implements plugin.HeaderFilter.
func (i *instance) HeaderFilter(x *exchange.Exchange) error {
	did := x.Left(state)
	if did == forwarded {
		return nil
	}
	i.allowOrigin(&x.Response.Header, x.Request.Header.Get("Origin"))
	if did == answered {
		i.answerPreflight(x)
	} else if i.exposed != "" {
		x.Response.Header.Set("Access-Control-Expose-Headers", i.exposed)
	}
	return nil
}

// allowOrigin says to whom the response may be shown. An answer that depends on who asks says so in Vary, so that no cache
// gives one origin's answer to another.
func (i *instance) allowOrigin(h *exchange.Header, origin string) {
	allowed, all := i.fixed, i.fixed == "" && i.origins == nil
	if !all {
		h.Add("Vary", "Origin")
	}
	if i.origins != nil && origin != "" {
		if all = i.origins.all; !all {
			allowed, _ = i.origins.match(origin)
		}
	}
	switch {
	case all && i.credentials && origin != "":
		if i.origins == nil {
			h.Add("Vary", "Origin")
		}
		allowed = origin // browsers take no "*" for requests with credentials
	case all:
		allowed = "*"
	}
	if allowed == "" {
		h.Del("Access-Control-Allow-Origin")
	} else {
		h.Set("Access-Control-Allow-Origin", allowed)
	}
	if i.credentials && allowed != "*" {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
}

func (i *instance) answerPreflight(x *exchange.Exchange) {
	asked, h := &x.Request.Header, &x.Response.Header
	if headers := i.headers; headers != "" {
		h.Set("Access-Control-Allow-Headers", headers)
	} else if headers, ok := asked.Lookup("Access-Control-Request-Headers"); ok {
		h.Set("Access-Control-Allow-Headers", headers)
	}
	h.Set("Access-Control-Allow-Methods", i.methods)
	if i.maxAge != "" {
		h.Set("Access-Control-Max-Age", i.maxAge)
	}
	if i.privateNetwork && asked.Get("Access-Control-Request-Private-Network") == "true" {
		h.Set("Access-Control-Allow-Private-Network", "true")
	}
}

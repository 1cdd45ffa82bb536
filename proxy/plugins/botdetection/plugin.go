// Package botdetection refuses robots that say what they are in their User-Agent.
//
// It detects nothing else: a robot that calls itself a browser passes.
package botdetection

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the bot-detection plugin.
func Plugin() plugin.Plugin {
	known := newNames()
	expression := schema.Field{Type: schema.String, Regex: true}
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "bot-detection", Priority: 2500, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "allow", Type: schema.Array, Elem: &expression, Default: []any{},
					Description: "Regular expressions for User-Agents that may pass, whatever else they are."},
				{Name: "deny", Type: schema.Array, Elem: &expression, Default: []any{},
					Description: "Regular expressions for User-Agents that may not pass, in addition to known robots."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			i := &instance{known: known}
			var err error
			if i.allow, err = compile(c.Allow); err != nil {
				return nil, fmt.Errorf("config.allow: %w", err)
			}
			if i.deny, err = compile(c.Deny); err != nil {
				return nil, fmt.Errorf("config.deny: %w", err)
			}
			return i, nil
		}),
	}
}

type config struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

type instance struct {
	known       *names
	allow, deny []*regexp.Regexp
}

func compile(list []string) (out []*regexp.Regexp, err error) {
	for _, s := range list {
		re, err := regexp.Compile(s)
		if err != nil {
			return nil, err
		}
		out = append(out, re)
	}
	return out, nil
}

var (
	several   = plugin.Refuse(400, "Only one User-Agent header allowed", "")
	forbidden = plugin.Refuse(403, plugin.Message(403), "")
)

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	h := &x.Request.Header
	agent, ok := h.Lookup("User-Agent")
	if !ok {
		return nil
	}
	if h.Count("User-Agent") > 1 {
		return several
	}
	agent = strings.TrimSpace(agent)
	matches := func(re *regexp.Regexp) bool { return re.MatchString(agent) }
	switch {
	case slices.ContainsFunc(i.allow, matches):
		return nil
	case slices.ContainsFunc(i.deny, matches), i.known.in(agent):
		return forbidden
	}
	return nil
}

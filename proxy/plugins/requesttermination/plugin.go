// Package requesttermination answers requests itself, with a configured status and body or with an echo of the request.
package requesttermination

import (
	"context"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the request-termination plugin.
func Plugin() plugin.Plugin {
	trigger := schema.HeaderName("trigger")
	trigger.Description = "Only requests with this header or query parameter are answered."
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "request-termination", Priority: 2,
			Config: schema.Field{
				Fields: []schema.Field{
					{Name: "status_code", Type: schema.Integer, Required: true, Default: 503.0, Between: &[2]float64{100, 599},
						Description: "Status of the answer."},
					{Name: "message", Type: schema.String, Description: "Message of the answer."},
					{Name: "content_type", Type: schema.String, Description: "Content type of body."},
					{Name: "body", Type: schema.String, Description: "The whole answer, in place of a message."},
					{Name: "echo", Type: schema.Boolean, Required: true, Default: false,
						Description: "Whether the answer shows the request, for debugging."},
					trigger,
				},
				Check: check,
			},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			if c.StatusCode < 200 { // Kong takes it, but it cannot end an exchange (RFC 9110 §15.2)
				c.StatusCode = 500
			}
			return &instance{config: *c, env: env, fixed: c.answer()}, nil
		}),
	}
}

func check(v any) string {
	c, _ := v.(schema.Record)
	set := func(name string) bool {
		s, _ := c[name].(string)
		return s != ""
	}
	switch echo, _ := c["echo"].(bool); {
	case set("message") && (set("content_type") || set("body")):
		return "message cannot be used with content_type or body"
	case set("content_type") && !set("body"):
		return "content_type requires a body"
	case echo && (set("content_type") || set("body")):
		return "echo cannot be used with content_type and body"
	}
	return ""
}

type config struct {
	StatusCode  int    `json:"status_code"`
	Message     string `json:"message"`
	ContentType string `json:"content_type"`
	Body        string `json:"body"`
	Echo        bool   `json:"echo"`
	Trigger     string `json:"trigger"`
}

type instance struct {
	config
	env   plugin.Env
	fixed *plugin.Exit
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	if i.Trigger != "" && !x.Request.Header.Has(i.Trigger) {
		if _, ok := x.Request.Query(i.Trigger); !ok {
			return nil
		}
	}
	if i.Echo {
		return i.echo(x)
	}
	return i.fixed
}

// answer is the same for all requests.
func (c *config) answer() *plugin.Exit {
	e := &plugin.Exit{Status: c.StatusCode}
	switch {
	case c.Body != "":
		e.Body = []byte(c.Body)
		if c.ContentType != "" {
			e.Header = []exchange.Field{{Name: "Content-Type", Value: c.ContentType}}
		}
	case c.text() != "":
		e.Body = c.text()
	}
	return e
}

// text is the message, or the plugin's own default for some statuses.
func (c *config) text() string {
	if c.Message != "" {
		return c.Message
	}
	switch c.StatusCode {
	case 401, 404, 405, 500:
		return plugin.Message(c.StatusCode)
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service unavailable"
	}
	return ""
}

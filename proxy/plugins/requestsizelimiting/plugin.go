// Package requestsizelimiting refuses requests whose body is too long.
package requestsizelimiting

import (
	"context"
	"math"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the request-size-limiting plugin.
func Plugin() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "request-size-limiting", Priority: 951,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "allowed_payload_size", Type: schema.Integer, Default: 128.0,
					Description: "The longest body, in size_unit."},
				{Name: "size_unit", Type: schema.String, Required: true, Default: "megabytes",
					OneOf: []any{"megabytes", "kilobytes", "bytes"}, Description: "Unit of allowed_payload_size, in powers of 1024."},
				{Name: "require_content_length", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether requests that do not tell their length are refused."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			unit := map[string]int64{"bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20}[c.SizeUnit]
			size := int64(128)
			if c.AllowedPayloadSize != nil {
				size = *c.AllowedPayloadSize
			}
			size = min(max(size, math.MinInt64/unit), math.MaxInt64/unit)
			return &instance{limit: size * unit, require: c.RequireContentLength}, nil
		}),
	}
}

type config struct {
	AllowedPayloadSize   *int64 `json:"allowed_payload_size"`
	SizeUnit             string `json:"size_unit"`
	RequireContentLength bool   `json:"require_content_length"`
}

type instance struct {
	limit   int64 // bytes
	require bool
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	r := &x.Request
	switch {
	case r.Length > i.limit:
		return tooLong(x)
	case r.Length < 0:
		// Kong reads such a body to its end before it proxies; here it is counted while it passes.
		r.Body = &counted{Body: r.Body, left: i.limit, x: x}
	case i.require && r.Length == 0 && !r.Header.Has("Content-Length"):
		return plugin.Refuse(411, "A valid Content-Length header is required", "")
	}
	return nil
}

func tooLong(x *exchange.Exchange) error {
	status := 413
	if x.Request.Expect100 {
		status = 417
	}
	return plugin.Refuse(status, "Request size limit exceeded", "")
}

// counted ends a body with the plugin's Exit once it is too long.
type counted struct {
	exchange.Body
	left int64
	x    *exchange.Exchange
}

// Next implements exchange.Body.
func (b *counted) Next() ([]byte, error) {
	if b.left < 0 {
		return nil, tooLong(b.x)
	}
	chunk, err := b.Body.Next()
	if b.left -= int64(len(chunk)); b.left < 0 {
		return nil, tooLong(b.x)
	}
	return chunk, err
}

// Ready implements exchange.Readier.
func (b *counted) Ready() bool { return b.left >= 0 && exchange.Ready(b.Body) }

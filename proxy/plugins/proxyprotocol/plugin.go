// Package proxyprotocol tells upstreams whose connection it is, by a header of the PROXY protocol in front of it.
//
// Kong has no such plugin, and no field of services for it. A plugin is what its clients (decK, the Admin API's) carry along without
// knowing it; a further field of services they would drop.
package proxyprotocol

import (
	"context"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the proxy-protocol plugin. Not for gRPC, whose connections to upstreams are shared by clients, nor for datagrams.
func Plugin() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "proxy-protocol", Priority: 5, Protocols: []string{"http", "https", "tcp", "tls", "tls_passthrough"},
			Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "version", Type: schema.Integer, Default: 1, Required: true, OneOf: []any{1, 2}, Description: "Of the header: 1 is a line of text, 2 is binary."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			return c, nil
		}),
	}
}

type config struct {
	Version int `json:"version"`
}

// Access implements plugin.Accessor.
func (c *config) Access(x *exchange.Exchange) error {
	x.Upstream.ProxyProtocol = c.Version
	return nil
}

// StreamAccess implements plugin.StreamAccessor.
func (c *config) StreamAccess(x *exchange.Exchange) error { return c.Access(x) }

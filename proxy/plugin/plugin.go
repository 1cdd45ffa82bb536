// Package plugin is the contract between the proxy and its plugins: phases, priorities, scopes, typed configuration.
//
// A plugin is one package under proxy/plugins that exports a Plugin value; proxy/plugins/all lists them. No registration
// by side effect. Plugins see the exchange and the Env, nothing else of the gateway.
//
// The package also holds what several plugins need and none should do its own way: authentication with its OR and AND and
// its identity headers (Auth), values derived from rows (Derived), the texts of statuses (Message).
package plugin

import (
	"context"
	"log/slog"

	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
)

// Scope is the set of entities a plugin may be attached to.
type Scope uint8

// Scopes. Global is always allowed.
const (
	ScopeRoute Scope = 1 << iota
	ScopeService
	ScopeConsumer
	ScopeAll = ScopeRoute | ScopeService | ScopeConsumer
)

// Info describes a plugin.
type Info struct {
	Name      string
	Priority  int            // higher runs first; Kong's numbers
	Version   string         // "": the gateway's
	Config    schema.Field   // the config record: its Fields, Shorthands, Checks and Check; name and type are filled in
	Checks    []schema.Check // rules on the whole plugin entity, with paths such as "config.allow"
	Protocols []string       // nil: grpc, grpcs, http, https
	Streams   bool           // the protocols of streams may be chosen too, even if they are not among Protocols, the default
	Scopes    Scope          // 0: ScopeAll
}

// Plugin is an Info with its factory.
type Plugin struct {
	Info Info
	New  Factory
}

// Env is what the gateway offers to plugins. It is the same for all instances.
type Env struct {
	Store    *state.Store
	Log      *slog.Logger
	NodeID   func() string // changes when the node joins or leaves a cluster
	Hostname string
}

// Config is one configured row, handed to the factory.
type Config struct {
	ID     string        // of the plugin row
	Scope  string        // "route id:service id:consumer id" of the row, for counters
	Record schema.Record // complete, validated, secrets in clear
}

// Factory builds an instance when the configuration is compiled, never per request. It must not block or dial. Most plugins
// use Typed.
type Factory func(ctx context.Context, env Env, cfg Config) (Instance, error)

// Instance implements any of Rewriter, Accessor, HeaderFilter, BodyFilter, Logger, StreamAccessor, StreamLogger, Closer. It is used by many
// goroutines at once.
type Instance any

// The phases, in the order they run.
type (
	// Rewriter runs before routing, for global plugins only.
	Rewriter interface {
		Rewrite(*exchange.Exchange) error
	}
	// Accessor runs after routing and may end the exchange with an *Exit.
	Accessor interface {
		Access(*exchange.Exchange) error
	}
	// HeaderFilter sees the response head before it is sent.
	HeaderFilter interface {
		HeaderFilter(*exchange.Exchange) error
	}
	// BodyFilter sees every chunk of the response body.
	BodyFilter interface {
		BodyFilter(x *exchange.Exchange, chunk []byte, last bool) ([]byte, error)
	}
	// Logger runs after the response.
	Logger interface{ Log(*exchange.Exchange) }
	// StreamAccessor runs when the route of a stream session is known, before the upstream is dialled; an *Exit ends the
	// session. What it says is for the log: there is no way to say it to the client.
	StreamAccessor interface {
		StreamAccess(*exchange.Exchange) error
	}
	// StreamLogger runs at the end of a stream session.
	StreamLogger interface{ StreamLog(*exchange.Exchange) }
	// Closer frees what the instance holds once no exchange uses it.
	Closer interface{ Close(context.Context) error }
)

// Exit is an error that ends the exchange with this answer.
type Exit struct {
	Status int
	Header []exchange.Field
	// Body is sent as {"message": ...} JSON for a string with Templated false (Kong's response.exit), as the negotiated
	// error template for a string with Templated true (Kong's response.error), as it is for []byte, and as JSON otherwise.
	// nil sends no body.
	Body      any
	Templated bool
}

// Error makes Exit an error.
func (e *Exit) Error() string { return "plugin ended the exchange" }

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
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"time"

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
	ScopeConsumer // and groups of consumers
	ScopeAll      = ScopeRoute | ScopeService | ScopeConsumer
	// ScopeGlobal alone allows nothing else.
	ScopeGlobal Scope = 1 << 7
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
	Keep     Keep           // nil: nothing can be kept
	Roots    *x509.CertPool // verify servers that plugins talk to; nil: the system's
}

// Keep writes rows of acme_storage, which all nodes have and which outlive the node. Rows are read from the Store. A write is
// visible in the local Store when it returns; it fails while the cluster has no leader.
type Keep interface {
	// Create writes a row, unless there is one with this key: then it is false.
	Create(ctx context.Context, key, value string, life time.Duration) (bool, error)
	// Put writes or replaces a row. A life of 0 is for ever.
	Put(ctx context.Context, key, value string, life time.Duration) error
	// Delete removes a row; it is no error when there is none.
	Delete(ctx context.Context, key string) error
}

// Config is one configured row, handed to the factory.
type Config struct {
	ID     string        // of the plugin row
	Scope  string        // "route id:service id:consumer id" of the row, for counters; of a group's ":group id" follows
	Record schema.Record // complete, validated, secrets in clear
}

// Factory builds an instance when the configuration is compiled, never per request. It must not block or dial. Most plugins
// use Typed.
type Factory func(ctx context.Context, env Env, cfg Config) (Instance, error)

// Instance implements any of Rewriter, Accessor, HeaderFilter, BodyFilter, Logger, StreamAccessor, StreamLogger, CertificateAsker, CertificateSource, Stopper, Closer. It is used by many
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
	// CertificateAsker needs the client's certificate. It is asked for in handshakes for the SNIs of the routes that the plugin applies
	// to, or in all when one of them has none; whether there is one, and a good one, is the plugin's to judge.
	CertificateAsker interface {
		// ClientCAs are the ids of the CA certificates that the plugin accepts, and whether clients are told their names.
		ClientCAs() (ids []string, send bool)
	}
	// CertificateSource has certificates for names that no certificate entity is for. It is asked in handshakes, if the plugin is global, and
	// must not block: nil is none, or none yet.
	CertificateSource interface {
		Certificate(hello *tls.ClientHelloInfo) *tls.Certificate
	}
	// Stopper ends what the instance does by itself, in the background, as soon as it is not configured any more. Exchanges that began before may
	// still use it, a tunnel for days. It must not block; Close follows.
	Stopper interface{ Stop() }
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

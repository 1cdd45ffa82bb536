// Package exchange is one HTTP request and its response as plugins and both HTTP front ends see them.
//
// It is independent of the wire: h1 and h2 fill it, the proxy handler and plugins read and change it. Strings handed out
// by an Exchange may point into connection buffers: they are valid until the exchange ends; strings.Clone what outlives it.
package exchange

import (
	"crypto/tls"
	"net/netip"
	"time"

	"concord/fsm/entity"
)

// Body yields a message body chunk by chunk without copying.
type Body interface {
	// Next returns the next bytes, valid until the following call. It returns io.EOF (possibly together with last bytes)
	// at the end, and any other error when the body is broken or too slow.
	Next() ([]byte, error)
	// Close gives up on the rest; the connection is reused only if the rest is known to be consumed.
	Close() error
}

// Field is one header field. Name keeps the case it was received or set with.
type Field struct{ Name, Value string }

// Header is an ordered list of fields. Look-ups ignore case; order and duplicates are kept.
type Header struct{ Fields []Field }

// Request is what the client asked, and what will be sent upstream after the access phase.
type Request struct {
	Method     string
	Target     string // origin-form as received: path and query
	Path       string // normalised for routing, no query
	RawQuery   string // without '?'
	HasQuery   bool   // a bare trailing '?' is kept
	Scheme     string // "http" or "https": of the client connection
	Host       string // Host header or authority as received
	Major      int
	Minor      int
	Header     Header
	Trailer    Header // complete once Body returned io.EOF
	Body       Body   // nil: no body
	Length     int64  // of the body; -1: unknown (chunked)
	Expect100  bool   // the client waits for 100 Continue; the front end sends it when Body.Next is first called
	Upgrade    string // requested protocol of a "Connection: Upgrade" request, e.g. "websocket"; "" otherwise
	TETrailers bool
}

// Response is what goes back to the client.
type Response struct {
	Status  int
	Reason  string // "": the standard text
	Header  Header
	Trailer Header
	Body    Body  // nil: none
	Length  int64 // of Body; -1: unknown
	Close   bool  // close the client connection afterwards
	// Tunnel, when set with status 101, takes over both connections until either side ends.
	Tunnel Tunnel
}

// Tunnel is the upstream side of an upgraded connection.
type Tunnel interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	CloseWrite() error
	Close() error
}

// Conn is what is known of the client connection.
type Conn struct {
	Peer     netip.AddrPort // the other end of the socket (after PROXY protocol)
	Local    netip.AddrPort // where it was accepted
	TLS      *tls.ConnectionState
	SNI      string
	Requests uint64 // requests served on it so far, this one included
	Serial   uint64 // process-wide number of the connection
}

// Credential is what an auth plugin found.
type Credential struct {
	ID         string
	Identifier string // X-Credential-Identifier
	Kind       string // plugin name
}

// Upstream is where the request is sent. The handler fills it from the service, plugins may change it in access.
type Upstream struct {
	Scheme         string // "http" or "https"
	Host           string // name or address to dial
	Port           int
	HostHeader     string // value of Host (and SNI when https)
	Path           string // path to send, escaped; the query is Request.RawQuery
	ConnectTimeout time.Duration
	WriteTimeout   time.Duration
	ReadTimeout    time.Duration
	Retries        int
	TLS            *tls.Config // nil: default client configuration
}

// Exchange is one request and its response.
type Exchange struct {
	Conn     Conn
	Request  Request
	Response Response
	Upstream Upstream

	ClientIP  netip.Addr // after trusted_ips processing
	RequestID string     // 32 lower-case hex characters
	Start     time.Time
	HeadersAt time.Time // first upstream response header
	SentAt    time.Time // upstream request handed over (end of the balancer phase)

	Route      *entity.Route
	Service    *entity.Service
	Consumer   *entity.Consumer
	Credential *Credential
	Groups     []string // authenticated groups
	Captures   []string // regex captures of the route's path, alternating name, value

	Proxied bool  // the response came from the upstream
	Err     error // why the gateway answered itself, for the log

	// Pinned is the data-plane snapshot of this exchange; owned by the handler.
	Pinned any
	// State is scratch for the handler and plugins, by plugin name; cleared between exchanges.
	State map[string]any
}

// Handler is what a front end calls for every parsed request.
type Handler interface {
	// Serve runs the exchange until Response is complete (its Body may still stream).
	Serve(x *Exchange)
	// Finish is called once after the response was written or given up: releases the upstream, runs the log phase.
	Finish(x *Exchange)
}

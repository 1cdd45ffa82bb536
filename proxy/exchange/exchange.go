// Package exchange is one HTTP request and its response as plugins and both HTTP front ends see them.
//
// It is independent of the wire: h1 and h2 fill it, the proxy handler and plugins read and change it. Strings handed out
// by an Exchange may point into connection buffers: they are valid until the exchange ends; strings.Clone what outlives it.
// Exchanges are pooled by the front ends: nobody keeps one, or anything inside it, after Handler.Finish.
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
	// Close gives up on the rest; the connection is reused only if the rest is known to be consumed. It may be called
	// while another goroutine is in Next, which then returns an error.
	Close() error
}

// Request is what the client asked, and what will be sent upstream after the access phase.
type Request struct {
	Method     string
	Target     string // origin-form as received: path and query
	Path       string // normalised for routing (see NormalizePath), no query; "*" for OPTIONS *
	RawQuery   string // without '?'
	HasQuery   bool   // a bare trailing '?' is kept
	Scheme     string // "http" or "https": of the client connection
	Host       string // Host header or authority as received
	Major      int
	Minor      int
	Header     Header // without hop-by-hop fields: those never reach plugins or the upstream
	Trailer    Header // complete once Body returned io.EOF
	Body       Body   // nil: no body
	Length     int64  // of the body; -1: unknown (chunked)
	Expect100  bool   // the client waits for 100 Continue; the front end sends it when Body.Next is first called
	Upgrade    string // protocols a "Connection: Upgrade" request offers, e.g. "websocket", and behind the 101 the one that was chosen; "" otherwise
	TETrailers bool

	bytes bytesBody // storage of SetBody
	ahead aheadBody // storage of Hold
}

// Response is what goes back to the client.
type Response struct {
	Status  int
	Reason  string // "": the standard text
	Header  Header // the front end adds Date, Connection and the framing fields; such fields set here are ignored
	Trailer Header
	Body    Body  // nil: none
	Length  int64 // of Body; -1: unknown
	Close   bool  // close the client connection afterwards
	// Tunnel, when set with status 101, takes over both connections until either side ends.
	Tunnel Tunnel

	bytes bytesBody // storage of SetBody
}

// Tunnel is the upstream side of an upgraded connection.
type Tunnel interface {
	// Next returns the next bytes, valid until the following call, possibly together with an error, as a read does.
	Next() ([]byte, error)
	Write(p []byte) (int, error)
	CloseWrite() error
	Close() error
}

// Conn is what is known of the client connection.
type Conn struct {
	Peer             netip.AddrPort // the other end of the socket
	Proxied          netip.AddrPort // whose connection the peer passes on, by the PROXY protocol; invalid if it does not say
	Local            netip.AddrPort // where it was accepted
	TLS              *tls.ConnectionState
	SNI              string
	CertificateAsked bool   // the client was asked for a certificate in the handshake
	Requests         uint64 // requests served on it so far, this one included
	Serial           uint64 // process-wide number of the connection
}

// Credential is what an auth plugin found.
type Credential struct {
	ID         string
	Identifier string // X-Credential-Identifier
	Kind       string // plugin name
}

// Stream is what is known of a session of a stream route: a connection, or a row of datagrams with one client. Its Exchange has no
// request; of the response it has only the status, as nginx writes it to the log.
type Stream struct {
	Protocol         string // of the route: tcp, tls, tls_passthrough or udp
	UpstreamSent     int64  // bytes
	UpstreamReceived int64
	Connect, Session time.Duration // until the upstream was reached; in all
}

// Upstream is where the request is sent. The handler fills it from the service, plugins may change it in access.
type Upstream struct {
	Scheme         string // "http" or "https"
	HTTP2          bool   // speak HTTP/2, in plain text with prior knowledge: gRPC
	Host           string // name or address to dial
	Port           int
	HostHeader     string // value of Host (and SNI when https)
	Path           string // path to send; bytes that may not stand in a request line are escaped while it is written. The query is Request.RawQuery
	ConnectTimeout time.Duration
	WriteTimeout   time.Duration // between two writes
	ReadTimeout    time.Duration // between two reads
	Retries        int           // further tries after the first
	TLS            *tls.Config   // nil: default client configuration
	ProxyProtocol  int           // version of the PROXY protocol header that begins the connection, which then is not shared; 0: none

	// Retry, if set, is called before every further try with what went wrong, so that a balancer can name another peer
	// in Host, Port and HostHeader. An error ends the tries. nil: the same address, or the next one of the same name.
	Retry func(x *Exchange, cause error) error
	// Dialing, if set, is called with true before a connection is made for this exchange, and after it without an error with false when it
	// was made or was not to be had. An error forbids the connection and ends the exchange with 503.
	Dialing func(begins bool) error
}

// Exchange is one request and its response.
type Exchange struct {
	Conn     Conn
	Request  Request
	Response Response
	Upstream Upstream
	Stream   *Stream // nil: HTTP

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

	// Peer is the upstream address that answered or was tried last; Tries counts the tries. Filled by the transport.
	Peer  netip.AddrPort
	Tries int
	// BytesSent is what was written to the client, head included. Filled by the front end before Handler.Finish.
	BytesSent int64
	// BytesReceived is what was read of the request, head and body; of an HTTP/2 head as RFC 9113 §6.5.2 counts. Filled by the front end before
	// Handler.Finish.
	BytesReceived int64

	// Pinned is the data-plane snapshot of this exchange; owned by the handler.
	Pinned any
	// Link is the upstream connection between RoundTrip and Release; owned by the transport.
	Link any
	// Informational, if set by the front end, passes a 1xx answer of the upstream (other than 100 and 101) on to the client.
	Informational func(status int, h *Header) error

	id         [32]byte
	arena      arena
	credential Credential      // storage of SetCredential
	consumer   entity.Consumer // storage of SetConsumer
	gone       gone
	left       []left
}

// left is what one phase of a plugin left to the next.
type left struct {
	name  string
	value any
}

// Handler is what a front end calls for every parsed request.
type Handler interface {
	// Serve runs the exchange until Response is complete (its Body may still stream).
	Serve(x *Exchange)
	// Finish is called once after the response was written or given up: releases the upstream, runs the log phase.
	Finish(x *Exchange)
}

// Reset makes x ready for the next request, keeping the memory it has gathered.
func (x *Exchange) Reset() {
	groups, captures, rest, a := x.Groups[:0], x.Captures[:0], x.left, x.arena
	h1, t1, h2, t2 := x.Request.Header, x.Request.Trailer, x.Response.Header, x.Response.Trailer
	*x = Exchange{}
	h1.Reset()
	t1.Reset()
	h2.Reset()
	t2.Reset()
	a.reset()
	clear(rest)
	x.Request.Header, x.Request.Trailer, x.Response.Header, x.Response.Trailer = h1, t1, h2, t2
	x.Groups, x.Captures, x.left, x.arena = groups, captures, rest[:0], a
}

// Now is the time, for half the price of time.Now: only the monotonic clock is read, from the start of the exchange on.
func (x *Exchange) Now() time.Time {
	if x.Start.IsZero() {
		return time.Now()
	}
	return x.Start.Add(time.Since(x.Start))
}

// Leave keeps a value for later phases of a plugin, by its name, until the exchange ends.
func (x *Exchange) Leave(plugin string, value any) {
	for i := range x.left {
		if x.left[i].name == plugin {
			x.left[i].value = value
			return
		}
	}
	x.left = append(x.left, left{plugin, value})
}

// Left is the value that a plugin left; nil if it left none.
func (x *Exchange) Left(plugin string) any {
	for i := range x.left { // a few at most
		if x.left[i].name == plugin {
			return x.left[i].value
		}
	}
	return nil
}

// SetConsumer makes c the client, without allocating.
func (x *Exchange) SetConsumer(c *entity.Consumer) {
	x.consumer = *c
	x.Consumer = &x.consumer
}

// SetCredential makes c the credential that authenticated the client, without allocating.
func (x *Exchange) SetCredential(c Credential) {
	x.credential = c
	x.Credential = &x.credential
}

// Package upstream sends exchanges to upstream servers: connection pools, names and addresses, TLS, timeouts, retries.
//
// It does not speak HTTP itself (that is h1) and does not choose between peers (that is the balancer): it is told where to
// send by exchange.Upstream.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"concord/proxy/dns"
	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/h2"
)

// Options configure a Transport. Zero values mean Kong's defaults.
type Options struct {
	MaxIdle     int           // connections kept per address, 512
	IdleTimeout time.Duration // how long one is kept unused, 60 s
	MaxRequests int           // exchanges per connection, 10,000
	Resolver    dns.Resolver  // nil: the system's
	DNS         dns.Policy    // how names are resolved
	MaxNames    int           // how many are remembered, 10,000
	// Guard is asked before every dial. An error refuses the address: the node's own admin and cluster ports, say.
	Guard func(netip.AddrPort) error
	// Control is net.Dialer's. With EMFILE it says that there is no more room for connections: those that are kept unused are closed then, and
	// if there is still none, that is a failure of the node and not of the upstream.
	Control func(network, address string, c syscall.RawConn) error
	TLS     *tls.Config // base of the client configuration; nil: no verification, as Kong without tls_verify
	Limits  h1.Limits   // of response heads
	Clock   *h1.Clock   // nil: an own one
	Log     *slog.Logger
}

// Transport is an upstream client. It is safe for many goroutines.
type Transport struct {
	o        Options
	ownClock bool
	names    *names
	h2       *h2.Pool
	stop     chan struct{}
	once     sync.Once

	mu        sync.RWMutex
	endpoints map[endpointKey]*endpoint

	shedAt atomic.Int64 // clock milliseconds

	turn atomic.Uint32 // which of several addresses of a name the next stream session comes to
}

// New makes a Transport; Close ends it.
func New(o Options) *Transport {
	if o.MaxIdle == 0 {
		o.MaxIdle = 512
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 60 * time.Second
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = 10000
	}
	if o.Resolver == nil {
		o.Resolver = &dns.System{}
	}
	o.DNS = o.DNS.WithDefaults()
	if o.MaxNames == 0 {
		o.MaxNames = 10000
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1024)} //nolint:gosec // Kong's default: tls_verify off
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Transport{
		o: o, stop: make(chan struct{}), endpoints: map[endpointKey]*endpoint{},
		names: newNames(o.Resolver, o.DNS, o.MaxNames), h2: h2.NewPool(h2.PoolOptions{IdleTimeout: o.IdleTimeout, Limits: o.Limits, MaxRequests: o.MaxRequests}),
	}
	if t.o.Clock == nil {
		t.o.Clock, t.ownClock = h1.NewClock(), true
	}
	go t.run()
	return t
}

// Close closes all kept connections. Exchanges under way are not disturbed.
func (t *Transport) Close() {
	t.once.Do(func() {
		close(t.stop)
		t.h2.Close()
		if t.ownClock {
			t.o.Clock.Stop()
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, e := range t.endpoints {
			e.close()
		}
		clear(t.endpoints)
	})
}

func (t *Transport) run() {
	tick := time.NewTicker(min(t.o.IdleTimeout, 4*time.Second) / 4)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			t.sweep(t.o.Clock.Millis() - t.o.IdleTimeout.Milliseconds())
		}
	}
}

// conn is a connection and where it belongs; between RoundTrip and Release it is the exchange's Link.
type conn struct {
	*h1.ClientConn
	ep    *endpoint
	at    netip.AddrPort
	since int64 // kept since, clock milliseconds
	own   bool  // of one client alone, not to be kept
}

// RoundTrip sends x.Request to x.Upstream and fills x.Response up to its head; the body streams. It tries again as Kong
// does: after connection errors and timeouts, x.Upstream.Retries times, never a request with side effects that the upstream
// may have seen, never a body that is gone. The error is an *Error. Release must follow in any case.
func (t *Transport) RoundTrip(x *exchange.Exchange) error {
	turn := 0 // which of several addresses comes first
	for try := 0; ; try++ {
		x.Tries = try + 1
		err := t.try(x, &turn, try)
		if err == nil {
			return nil
		}
		x.Response.Header.Reset()
		x.Response.Status, x.Response.Reason, x.Response.Body, x.Response.Tunnel, x.Response.Length = 0, "", nil, nil, 0
		x.Proxied = false
		if try >= x.Upstream.Retries || !err.again(x) {
			return err
		}
		if x.Upstream.Retry != nil && x.Upstream.Retry(x, err) != nil {
			return err
		}
	}
}

// again decides whether another try is right.
func (e *Error) again(x *exchange.Exchange) bool {
	switch e.Kind {
	case Refused, Request, Canceled, Resolve:
		return false
	}
	if !e.sent {
		return true // the body was not touched
	}
	return !e.answered && repeatable(x.Request.Method) && x.Request.InMemory()
}

// repeatable is nginx's rule: these methods are not sent again once the upstream may have seen them.
func repeatable(method string) bool {
	return method != "POST" && method != "PATCH" && method != "LOCK"
}

func (t *Transport) try(x *exchange.Exchange, turn *int, try int) *Error {
	ep := t.endpoint(x)
	at := ep.literal
	if !at.IsValid() {
		places, err := t.names.lookup(ep.key.host, x.Upstream.ConnectTimeout)
		if err != nil {
			return &Error{Kind: Resolve, Op: "resolve " + ep.key.host, Err: err}
		}
		if try == 0 {
			*turn, x.Peer = ep.first(len(places)), netip.AddrPort{}
		}
		at = place(places, *turn+try, ep.key.port, x.Peer)
	}
	x.Peer = at
	own := x.Upstream.ProxyProtocol != 0
	if x.Upstream.HTTP2 {
		if own {
			return &Error{Kind: Refused, Op: "exchange with", Addr: at, Err: errors.New("the PROXY protocol speaks of one client, HTTP/2 connections are shared by many")}
		}
		return t.exchangeHTTP2(x, ep, at)
	}
	// A kept connection may have been closed by the other side: that is no failure of the upstream, so it is not counted as
	// a try, as long as sending the request again is safe.
	for !own {
		c := ep.get(at)
		if c == nil {
			break
		}
		err := t.exchange(x, c)
		if err == nil {
			return nil
		}
		if errors.Is(err.Err, h1.ErrStale) {
			continue
		}
		if err.answered || err.Kind != Closed || !repeatable(x.Request.Method) || !x.Request.InMemory() {
			return err
		}
	}
	nc, err := t.dial(x, "tcp", ep, at)
	if err != nil {
		return err
	}
	return t.exchange(x, &conn{ClientConn: h1.NewClientConn(nc, t.o.Clock, t.o.Limits), ep: ep, at: at, own: own})
}

// exchangeHTTP2 shares a connection with other exchanges.
func (t *Transport) exchangeHTTP2(x *exchange.Exchange, ep *endpoint, at netip.AddrPort) *Error {
	config := ep.key.config // and not the endpoint's own, which is made anew when it was idle
	if config == nil && ep.key.tls {
		config = t.o.TLS
	}
	err := t.h2.RoundTrip(x, h2.Key{Addr: at, TLS: config, Name: ep.key.sni}, func() (net.Conn, error) {
		nc, err := t.dial(x, "tcp", ep, at)
		if err != nil {
			return nil, err
		}
		if tc, ok := nc.(*tls.Conn); ok && tc.ConnectionState().NegotiatedProtocol != "h2" {
			_ = nc.Close()
			return nil, &Error{Kind: Connect, Op: "TLS handshake with", Addr: at, Err: errors.New("the upstream does not offer HTTP/2, which gRPC needs")}
		}
		return nc, nil
	})
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	e := &Error{Kind: kindOf(err), Op: "HTTP/2 exchange with", Addr: at, Err: err}
	var f *h2.Failure
	if errors.As(err, &f) {
		e.sent, e.answered = f.Sent, f.Answered
	}
	return e
}

func (t *Transport) exchange(x *exchange.Exchange, c *conn) *Error {
	err := c.RoundTrip(x)
	if err == nil {
		x.Link = c
		return nil
	}
	e := &Error{Kind: kindOf(err), Op: "exchange with", Addr: c.at, Err: err, sent: c.Wrote(), answered: c.Got()}
	c.Release()
	_ = c.Close()
	return e
}

// Release ends the exchange with the upstream and keeps its connection if nothing is left on it. Strings of x.Response may
// point into that connection's memory: log first, then release.
func (t *Transport) Release(x *exchange.Exchange) {
	if t.h2.Release(x) {
		return
	}
	c, ok := x.Link.(*conn)
	if !ok {
		return
	}
	x.Link = nil
	if !c.Release() || c.own || c.Uses() >= t.o.MaxRequests || !c.ep.put(c, t.o.Clock.Millis(), t.o.MaxIdle) {
		_ = c.Close()
	}
}

func (t *Transport) dial(x *exchange.Exchange, network string, ep *endpoint, at netip.AddrPort) (net.Conn, *Error) {
	u := &x.Upstream
	if t.o.Guard != nil {
		if err := t.o.Guard(at); err != nil {
			return nil, &Error{Kind: Refused, Op: "dial", Addr: at, Err: err}
		}
	}
	if u.Dialing != nil {
		if err := u.Dialing(true); err != nil {
			return nil, &Error{Kind: Refused, Op: "dial", Addr: at, Err: err}
		}
		defer func() { _ = u.Dialing(false) }()
	}
	ctx := context.Background()
	if u.ConnectTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, u.ConnectTimeout)
		defer cancel()
	}
	d := net.Dialer{KeepAlive: 60 * time.Second, Control: t.o.Control}
	nc, err := d.DialContext(ctx, network, at.String())
	if noFiles(err) && t.shed() {
		nc, err = d.DialContext(ctx, network, at.String())
	}
	if noFiles(err) {
		return nil, &Error{Kind: Refused, Op: "connect to", Addr: at, Err: err}
	}
	if err != nil {
		return nil, &Error{Kind: connectKind(err), Op: "connect to", Addr: at, Err: err}
	}
	if u.ProxyProtocol != 0 {
		if _, err := nc.Write(proxyHeader(x)); err != nil {
			_ = nc.Close()
			return nil, &Error{Kind: connectKind(err), Op: "send a PROXY header to", Addr: at, Err: err}
		}
	}
	if ep.key.tls {
		tc := tls.Client(h1.NewTLSSocket(nc, nil), ep.config)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, &Error{Kind: connectKind(err), Op: "TLS handshake with", Addr: at, Err: err}
		}
		nc = tc
	}
	return nc, nil
}

// serverName is the host without port and brackets.
func serverName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

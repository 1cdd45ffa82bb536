// Package h2 is HTTP/2 on the wire: server connections for clients, and multiplexed connections to upstreams, gRPC
// included.
//
// It knows no routes and no plugins; it hands every request to an exchange.Handler, one goroutine each, and sends
// exchanges to upstreams (Pool). Frames are read in place and written by whoever has something to send; HPACK is
// golang.org/x/net's. The rules for what is in a request are h1's.
package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// Preface is what a client sends first (RFC 9113 §3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Sniff tells whether a connection in plain text begins with the preface; more: first is too short to know.
func Sniff(first []byte) (yes, more bool) {
	const telling = "PRI * HTTP/2.0\r\n" // no request of HTTP/1.1 begins so
	n := min(len(first), len(telling))
	same := string(first[:n]) == telling[:n]
	return same && n == len(telling), same && n < len(telling)
}

// Options configure a Server. Zero values mean the defaults, which are nginx's.
type Options struct {
	Handler exchange.Handler
	// Refuse fills x.Response for a request that was refused before the Handler saw it: x.Request is incomplete. Neither
	// Serve nor Finish is called for it. nil: a short text.
	Refuse        func(x *exchange.Exchange, status int, reason error)
	Limits        h1.Limits     // of request heads
	MaxStreams    int           // at once on one connection, 128
	HeaderTimeout time.Duration // from the first byte of a frame or header block to its last, 60 s
	BodyTimeout   time.Duration // between two pieces of a body, 60 s
	WriteTimeout  time.Duration // for each piece of a response the client takes, 60 s
	IdleTimeout   time.Duration // without a request, 75 s
	MaxRequests   uint64        // per connection, 10,000 as Kong; then it is drained
	Clock         *h1.Clock     // nil: an own one
	Log           *slog.Logger
}

// Server serves HTTP/2 connections.
type Server struct {
	o        Options
	lim      limits
	ownClock bool
	keep     *keeper
	streams  sync.Pool
	serial   atomic.Uint64
}

// New makes a server. Shutdown frees what it holds.
func New(o Options) *Server {
	setDefault(&o.MaxStreams, 128)
	setDefault(&o.HeaderTimeout, 60*time.Second)
	setDefault(&o.BodyTimeout, 60*time.Second)
	setDefault(&o.WriteTimeout, 60*time.Second)
	setDefault(&o.IdleTimeout, 75*time.Second)
	setDefault(&o.MaxRequests, 10000)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Refuse == nil {
		o.Refuse = refuse
	}
	s := &Server{o: o, keep: newKeeper(o.HeaderTimeout, o.BodyTimeout, o.WriteTimeout, o.IdleTimeout)}
	if s.o.Clock == nil {
		s.o.Clock, s.ownClock = h1.NewClock(), true
	}
	s.lim = limits{
		head: o.Limits.WithDefaults(), streams: o.MaxStreams, window: 1 << 20, streamWindow: 512 << 10,
		headTime: o.HeaderTimeout, writeTime: o.WriteTimeout, idleTime: o.IdleTimeout,
	}
	s.streams.New = func() any { return newServerStream() }
	return s
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func refuse(x *exchange.Exchange, status int, _ error) {
	x.Response.Status = status
	x.Response.Header.Set("Content-Type", "text/plain; charset=utf-8")
	x.Response.SetBody([]byte(http.StatusText(status) + "\n"))
}

// serverConn is one client connection.
type serverConn struct {
	conn
	s     *Server
	info  exchange.Conn
	ready []*serverStream // requests whose handler is to be started
	onEnd func()
}

// ServeConn serves one connection, which it closes. It returns when the connection is over and the last handler has returned, or when nothing has
// happened on it for a while: it is parked then, and served by another goroutine when something does. A *tls.Conn is to be handshaken and described
// in info, which is not kept. The preface is still to be read, or in info.Initial.
func (s *Server) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	c := &serverConn{s: s, info: info.Conn, onEnd: info.Ended}
	if !c.info.Peer.IsValid() {
		c.info.Peer = addrPort(nc.RemoteAddr())
	}
	if !c.info.Local.IsValid() {
		c.info.Local = addrPort(nc.LocalAddr())
	}
	if c.info.Serial == 0 {
		c.info.Serial = s.serial.Add(1)
	}
	c.init(nc, s.keep, s.lim, c)
	c.clock, c.resume = s.o.Clock, func() { c.over(c.read()) }
	s.keep.add(&c.conn)
	c.over(c.serve(info.Initial))
}

// over ends the connection, unless it is parked.
func (c *serverConn) over(err error) {
	if err == errParked {
		return
	}
	c.s.o.Log.Debug("HTTP/2 connection ended", "peer", c.info.Peer, "requests", c.info.Requests, "reason", err)
	c.mu.Lock()
	for _, s := range c.ready {
		c.discard(s) // it came together with what ended the connection
	}
	c.mu.Unlock()
	c.end(err)
	if c.onEnd != nil {
		c.onEnd()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func (c *serverConn) serve(initial []byte) error {
	c.out = appendSettings(c.queued(),
		setting{settingMaxStreams, uint32(c.lim.streams)}, setting{settingMaxHeaders, uint32(c.lim.head.HeadBytes)},
		setting{settingConnect, 1})
	c.out = appendWindowUpdate(c.queued(), 0, c.lim.window-defaultWindow)
	if c.info.TLS != nil && c.info.TLS.Version == tls.VersionTLS12 && !adequate(c.info.TLS.CipherSuite) {
		return &connError{InadequateSecurity, tls.CipherSuiteName(c.info.TLS.CipherSuite) + " (RFC 9113 §9.2.2)"}
	}
	if len(initial) > readBuffer {
		return &connError{InternalError, "too much was read before"}
	}
	c.e = copy(c.Room(), initial)
	for {
		n := min(c.e, len(Preface))
		if string(c.in[:n]) != Preface[:n] {
			return &connError{ProtocolError, "wrong preface"}
		}
		if n == len(Preface) {
			c.r = n
			return c.read()
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// adequate are the cipher suites of TLS 1.2 with forward secrecy and authenticated encryption.
func adequate(suite uint16) bool {
	switch suite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

// full tells whether there is no room for another stream. Streams that were reset take room while their handlers still
// run: without that, resets would be cheap for an attacker. Streams that ended regularly do not count, as their client does
// not count them either (RFC 9113 §5.1.2), although what follows the response may still be under way. c.mu is held.
func (c *serverConn) full() bool {
	if c.running < c.lim.streams {
		return false
	}
	over := 0
	for _, s := range c.streams {
		if s.sentEnd && s.recvEnd && s.err == nil {
			over++
		}
	}
	return c.running-over >= c.lim.streams || c.running >= 2*c.lim.streams
}

// head implements side: a request, or the trailers of one.
func (c *serverConn) head(id uint32, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		return c.trailers(s, end)
	}
	if id <= c.maxID {
		if c.wasReset(id) {
			return nil // trailers that were on their way
		}
		return errClosedStream
	}
	c.maxID = id
	if c.draining == drainNotice && c.keep.now() >= c.idleBy {
		c.decide()
	}
	if c.draining == drainDecided {
		return nil // the last stream that is served was announced
	}
	c.lastID = id
	if c.full() {
		return &streamError{RefusedStream, "too many streams at once"}
	}
	s := c.s.streams.Get().(*serverStream)
	s.open(&c.conn, id)
	s.server, s.readTime, s.writeTime, s.lateErr = c.s, c.s.o.BodyTimeout, c.lim.writeTime, errBodyTime
	c.running++
	c.info.Requests++
	x := &s.own
	x.Conn, x.Start = c.info, time.Now()
	x.Request.Scheme = "http"
	if c.info.TLS != nil {
		x.Request.Scheme = "https"
	}
	x.Informational = s.inform
	err := c.conn.head.request(x)
	var wrong *streamError
	if errors.As(err, &wrong) {
		c.discard(s)
		return wrong
	}
	x.BytesReceived = int64(c.conn.head.size)
	s.fault, s.recvEnd = err, end
	if err == nil {
		err = c.expectBody(s, end)
	}
	if errors.As(err, &wrong) {
		c.discard(s)
		return wrong
	}
	c.ready = append(c.ready, s)
	if c.info.Requests == c.s.o.MaxRequests {
		c.drain()
	}
	return nil
}

// expectBody prepares for the body. c.mu is held.
func (c *serverConn) expectBody(s *serverStream, end bool) error {
	r := &s.own.Request
	if r.Upgrade != "" { // what comes is for the tunnel
		r.Length, r.Expect100 = 0, false
		return nil
	}
	if end {
		if r.Length > 0 {
			return malformed("content-length without a body (RFC 9113 §8.1.1)")
		}
		r.Length, r.Body, r.Expect100 = 0, nil, false
		return nil
	}
	s.declared, s.expect = r.Length, r.Expect100
	r.Body = (*body)(&s.stream)
	return nil
}

// discard takes back a stream that no handler has seen. c.mu is held.
func (c *serverConn) discard(s *serverStream) {
	s.drop()
	c.ended()
	c.s.recycle(s)
}

// trailers ends a request body. c.mu is held.
func (c *serverConn) trailers(s *stream, end bool) error {
	h := &c.conn.head
	switch {
	case s.recvEnd && s.sentEnd && s.err == nil: // closed, though its handler has not returned
		return errClosedStream
	case s.recvEnd, s.wasReset():
		return &streamError{StreamClosed, "HEADERS behind the end of the stream"}
	case s.err != nil:
		return nil
	case h.wrong != nil:
		return h.wrong
	case !end:
		return malformed("HEADERS within a body (RFC 9113 §8.1)")
	case h.large:
		return &streamError{EnhanceYourCalm, "trailer section is too large"}
	case s.declared >= 0 && s.received != s.declared:
		return malformed("content-length is not what was sent (RFC 9113 §8.1.1)")
	}
	h.appendTrailers(&s.x.Request.Trailer)
	s.recvEnd = true
	s.recv.Broadcast()
	return nil
}

// gone implements side.
func (c *serverConn) gone(s *stream) {
	s.x.Gone()
	if !s.streaming {
		return
	}
	// The stream's goroutine may be waiting for more of the response. It goes on when Close has returned.
	s.closing = true
	go func(b exchange.Body) {
		_ = b.Close()
		c.mu.Lock()
		s.closing = false
		s.recv.Broadcast()
		c.mu.Unlock()
	}(s.x.Response.Body)
}

// away implements side: the client opens no more streams; it will close.
func (c *serverConn) away(uint32) {}

// batch implements side. Handlers start when all frames at hand were looked at: a short body has then come already.
func (c *serverConn) batch() {
	for i, s := range c.ready {
		c.ready[i] = nil
		go s.serve()
	}
	c.ready = c.ready[:0]
}

// Conns returns how many connections are open.
func (s *Server) Conns() int { return s.keep.count() }

// Shutdown lets streams that are under way, or on their way, finish, ends idle connections, and cuts what is left when
// ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.keep.close()
	if s.ownClock {
		defer s.o.Clock.Stop()
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for s.Conns() > 0 {
		cut := ctx.Err() != nil
		s.keep.each(func(c *conn) {
			if cut {
				go func() {
					_ = c.nc.Close() // TLS takes its time to say goodbye
					c.wake()
				}()
			} else if !c.leaving.Swap(true) {
				go func() { // writing may take its time
					c.mu.Lock()
					c.drain()
					c.mu.Unlock()
				}()
			}
		})
		if cut {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	return nil
}

// Package h1 is HTTP/1.1 on the wire: strict parsing, serialising, server connections and upstream connections.
//
// It knows no routes, no plugins and no pools; it hands every request to an exchange.Handler and carries one exchange at a
// time over an upstream connection (ClientConn). It is built for a proxy: the goroutine of the client connection also does
// the upstream's I/O, heads are parsed in place, and a plain request costs two reads, two writes and no allocation.
package h1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// Options configure a Server. Zero values mean the defaults, which are nginx's.
type Options struct {
	Handler exchange.Handler
	// Refuse fills x.Response for a request that was refused before the Handler saw it: x.Request is incomplete. Neither
	// Serve nor Finish is called for it. nil: a short text.
	Refuse        func(x *exchange.Exchange, status int, reason error)
	Limits        Limits
	HeaderTimeout time.Duration // from the first byte of a head to its last, 60 s
	BodyTimeout   time.Duration // between two reads of a body, 60 s
	WriteTimeout  time.Duration // for each piece of a response the client takes, 60 s
	IdleTimeout   time.Duration // between two requests, 75 s
	MaxRequests   uint64        // per connection, 10,000 as Kong; then it is closed
	Clock         *Clock        // nil: an own one
	Log           *slog.Logger
}

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("h1: server closed")

// Server serves HTTP/1.1 connections.
type Server struct {
	o        Options
	ownClock bool
	works    sync.Pool
	draining atomic.Bool
	closing  atomic.Bool // Shutdown
	serial   atomic.Uint64
	bulk     atomic.Int64 // responses of which the kernel takes as much as it can

	mu    sync.Mutex
	conns map[*conn]struct{}
	lns   map[net.Listener]struct{}
}

// New makes a server. Shutdown frees what it holds.
func New(o Options) *Server {
	o.Limits.setDefaults()
	setDefault(&o.HeaderTimeout, 60*time.Second)
	setDefault(&o.BodyTimeout, 60*time.Second)
	setDefault(&o.WriteTimeout, 60*time.Second)
	setDefault(&o.IdleTimeout, 75*time.Second)
	if o.MaxRequests == 0 {
		o.MaxRequests = 10000
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Refuse == nil {
		o.Refuse = refuse
	}
	s := &Server{o: o, conns: map[*conn]struct{}{}, lns: map[net.Listener]struct{}{}}
	if s.o.Clock == nil {
		s.o.Clock, s.ownClock = NewClock(), true
	}
	s.works.New = func() any { return newWork() }
	return s
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

func refuse(x *exchange.Exchange, status int, _ error) {
	x.Response.Status = status
	x.Response.Header.Set("Content-Type", "text/plain; charset=utf-8")
	x.Response.SetBody([]byte(http.StatusText(status) + "\n"))
}

// ConnInfo is what the acceptor of a connection knows about it.
type ConnInfo struct {
	exchange.Conn        // Peer and Local default to the socket's, Serial to the server's count
	Initial       []byte // bytes that were read already
	HTTP2         bool   // the listener speaks HTTP/2 too: by ALPN under TLS, else to clients that know (RFC 9113 §3.3)
	Ended         func() // called once by who serves the connection, when it is over, which may be after ServeConn has returned; nil: nobody asks
}

// End calls Ended.
func (i *ConnInfo) End() {
	if i.Ended != nil {
		i.Ended()
	}
}

// Serve accepts until ln fails or Shutdown is called.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.lns[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.lns, ln)
		s.mu.Unlock()
	}()
	for {
		nc, err := ln.Accept()
		if err != nil {
			if s.draining.Load() {
				return ErrServerClosed
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Temporary() { //nolint:staticcheck // EMFILE and ECONNABORTED pass
				s.o.Log.Warn("accept failed, trying again", "err", err)
				time.Sleep(20 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		go s.ServeConn(nc, &ConnInfo{})
	}
}

// ServeConn serves one connection, which it closes. It returns when the connection is over, or when nothing has happened on it for a while: it is
// parked then, and served by another goroutine when something does. *net.TCPConn, and *tls.Conn above a TLSSocket, are read with as few system calls
// as can be; any other kind of connection works too. A *tls.Conn is to be handshaken and described in info, which is not kept.
func (s *Server) ServeConn(nc net.Conn, info *ConnInfo) {
	c := &conn{s: s, info: info.Conn, ended: info.Ended}
	if !c.info.Peer.IsValid() {
		c.info.Peer = addrPort(nc.RemoteAddr())
	}
	if !c.info.Local.IsValid() {
		c.info.Local = addrPort(nc.LocalAddr())
	}
	if c.info.Serial == 0 {
		c.info.Serial = s.serial.Add(1)
	}
	c.owner = c
	c.stays = !parks(nc) || s.o.IdleTimeout < precise
	c.open(nc, s.o.Clock)
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.run(info.Initial)
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	if c.ended != nil {
		c.ended()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// Conns returns how many connections are open.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Drain makes every further response the last one on its connection. Idle connections are left alone: a client may be about to send, and would
// lose its request.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown stops accepting, closes idle connections, lets requests in flight finish with "Connection: close", and cuts
// what is left when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.closing.Store(true)
	s.mu.Lock()
	for ln := range s.lns {
		_ = ln.Close()
	}
	s.mu.Unlock()
	if s.ownClock {
		defer s.o.Clock.Stop()
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		s.mu.Lock()
		left := len(s.conns)
		for c := range s.conns {
			if ctx.Err() != nil {
				_ = c.nc.Close()
			} else if t := c.still.Load(); t > 0 {
				c.interrupt(t)
			}
			c.clock.Wake(&c.spot)
		}
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
}

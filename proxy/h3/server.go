// Package h3 is HTTP/3 for clients: QUIC connections on UDP sockets, their requests mapped to an exchange.Handler.
//
// QUIC, QPACK and the frames of HTTP/3 are quic-go's; the rules for what is in a request are h1's and h2's. It knows no routes and no
// plugins, and speaks HTTP/3 to no upstream.
package h3

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// Options configure a Server. Zero values mean the defaults, which are those of HTTP/2.
type Options struct {
	Handler exchange.Handler
	// Refuse fills x.Response for a request that was refused before the Handler saw it: x.Request is incomplete. Neither
	// Serve nor Finish is called for it. nil: a short text.
	Refuse       func(x *exchange.Exchange, status int, reason error)
	Limits       h1.Limits     // of request heads
	MaxStreams   int           // requests at once on one connection, 128
	TakenBack    int           // requests that a client may take back at once, 1000; each second allows a tenth of it more
	BodyTimeout  time.Duration // between two pieces of a body, 60 s
	WriteTimeout time.Duration // for each piece of a response the client takes, 60 s
	IdleTimeout  time.Duration // without a complete request head, 75 s
	Clock        *h1.Clock     // nil: an own one
	Log          *slog.Logger
}

// Server serves HTTP/3 connections.
type Server struct {
	o        Options
	ownClock bool
	quic     http3.Server
	streams  sync.Pool

	mu       sync.Mutex
	conns    map[*conn]struct{}
	entering sync.WaitGroup // connections that the library does not count yet
	closing  bool
}

// New makes a server. Shutdown frees what it holds.
func New(o Options) *Server {
	setDefault(&o.MaxStreams, 128)
	setDefault(&o.TakenBack, 1000)
	setDefault(&o.BodyTimeout, 60*time.Second)
	setDefault(&o.WriteTimeout, 60*time.Second)
	setDefault(&o.IdleTimeout, 75*time.Second)
	o.Limits = o.Limits.WithDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Refuse == nil {
		o.Refuse = refuse
	}
	s := &Server{o: o, conns: map[*conn]struct{}{}}
	if s.o.Clock == nil {
		s.o.Clock, s.ownClock = h1.NewClock(), true
	}
	s.streams.New = func() any { return newStream(s) }
	s.quic = http3.Server{
		Handler: http.HandlerFunc(s.serve),
		// Twice what is allowed: heads up to here get an answer like those of the other versions, larger ones a bare 431.
		MaxHeaderBytes: 2 * s.o.Limits.HeadBytes,
		ConnContext: func(ctx context.Context, _ *quic.Conn) context.Context {
			s.entering.Done()
			return ctx
		},
		Logger: slog.New(slog.DiscardHandler), // what clients do wrong
	}
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

// conn is one client connection while it is served.
type conn struct {
	s    *Server
	quic *quic.Conn
	info exchange.Conn // but for the peer, whose address may change

	requests atomic.Uint64
	mu       sync.Mutex
	running  int         // handlers
	last     time.Time   // when one returned
	idle     *time.Timer // ends the connection; stopped while handlers run
	points   float64     // see charge
	charged  time.Time
}

// ServeConn serves one connection and returns when it is over and the last handler has returned.
func (s *Server) ServeConn(qc *Conn) {
	c := &conn{s: s, quic: qc.quic, points: float64(s.o.TakenBack)}
	state := c.quic.ConnectionState().TLS
	c.info = exchange.Conn{Local: addrPort(c.quic.LocalAddr()), TLS: &state, SNI: state.ServerName, CertificateAsked: qc.asked, Serial: qc.serial}
	s.mu.Lock()
	qc.served.Store(c)
	if s.closing {
		s.mu.Unlock()
		c.close()
		return
	}
	s.entering.Add(1)
	s.conns[c] = struct{}{}
	c.idle = time.AfterFunc(s.o.IdleTimeout, c.close)
	s.mu.Unlock()
	err := s.quic.ServeQUICConn(c.quic)
	c.close() // if it is not
	s.o.Log.Debug("HTTP/3 connection ended", "peer", c.quic.RemoteAddr().String(), "requests", c.requests.Load(), "reason", err)
	c.idle.Stop()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// close ends a connection on which nothing is going on.
func (c *conn) close() {
	_ = c.quic.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
}

// young is the age up to which a request that the client takes back costs it a point of those that Options.TakenBack gives, as with HTTP/2
// (CVE-2023-44487).
const young = time.Second

// charge takes a point away; without any the connection ends.
func (c *conn) charge() {
	most := float64(c.s.o.TakenBack)
	c.mu.Lock()
	now := time.Now()
	if !c.charged.IsZero() {
		c.points = min(most, c.points+most/10*now.Sub(c.charged).Seconds())
	}
	c.charged = now
	c.points--
	over := c.points < 0
	c.mu.Unlock()
	if over {
		_ = c.quic.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), "too many requests were taken back")
	}
}

// begin counts a request; false when too many are running, also such as were reset: that is what makes resets cheap for an attacker.
func (c *conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= c.s.o.MaxStreams {
		return false
	}
	c.running++
	c.idle.Stop()
	return true
}

func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	if c.running--; c.running == 0 {
		c.idle.Reset(c.s.o.IdleTimeout)
	}
}

// quiet tells whether no request runs, and the last answer has had the time to get there: closing a connection takes back what the
// client has not acknowledged.
func (c *conn) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == 0 && time.Since(c.last) > farewell
}

// Conns returns how many connections are open.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// farewell is how long a client that was told to go away may take to do so: what it has sent before it knew is refused in a way that tells
// it to send it again elsewhere.
const farewell = 2 * time.Second

// Shutdown tells clients to go away, lets what is under way finish, and cuts what is left when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.ownClock {
		defer s.o.Clock.Stop()
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.entering.Wait()
	told := make(chan error, 1)
	go func() { told <- s.quic.Shutdown(ctx) }() // it ends with the last connection, or cuts them
	begun := time.Now()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case err := <-told:
			for s.Conns() > 0 {
				<-t.C // they are over, and about to be forgotten
			}
			return err
		case <-t.C:
		}
		if time.Since(begun) < farewell {
			continue
		}
		s.mu.Lock()
		for c := range s.conns {
			if c.quiet() {
				go c.close()
			}
		}
		s.mu.Unlock()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := u.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

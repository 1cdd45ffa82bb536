// Package stream serves stream_listen: connections and datagrams that are passed on as they are, to the service of the stream route
// that fits addresses and TLS server name.
//
// It knows no HTTP. Routes, services and plugins come from the data plane, connections to upstreams from package upstream, targets
// from the balancer.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/exchange"
	"concord/proxy/listen"
)

// Options of Open.
type Options struct {
	Specs []listen.Spec
	TLS   *tls.Config // of connections that are terminated here
	// MaxSessions bounds the connections (default 16,384, as nginx's worker_connections in Kong), MaxClients the UDP clients that are
	// remembered at a time (default 8,192). One more is turned away.
	MaxSessions, MaxClients int
	Files                   listen.Files // bounds the connections, too
	Stats                   *Stats       // shared by Servers that count together, for limits too; nil: counts of this one alone
	// HelloTimeout is how long a client may take for a PROXY header and a TLS ClientHello, default 30 s (nginx's preread_timeout),
	// HandshakeTimeout how long for the TLS handshake, default 15 s.
	HelloTimeout, HandshakeTimeout time.Duration
	Inherited                      *listen.Inherited // sockets to take instead of opening them; nil: none
	Log                            *slog.Logger
}

// Connector opens connections to upstreams; *upstream.Transport is one.
type Connector interface {
	Connect(x *exchange.Exchange, network string) (net.Conn, error)
}

// Lines takes lines of the access log; *proxy.AccessLog is one.
type Lines interface {
	Append(line func(b []byte) []byte)
}

// Gateway is what sessions need. It is there later than the sockets, which are opened first of all.
type Gateway struct {
	Holder    *dataplane.Holder
	Upstreams Connector
	Pools     *balancer.Set // nil: there are none
	AccessLog Lines         // nil: none
	JSON      bool          // lines of the access log are JSON objects
	// TrustedIPs may tell the client's address in a PROXY header; empty: nobody.
	TrustedIPs []netip.Prefix
}

// Stats are what Servers count.
type Stats struct {
	sessions, clients                         atomic.Int64  // open now: connections, UDP clients
	accepted, refusedSessions, refusedClients atomic.Uint64 // since the start
}

// Counters are the sessions so far and those that are open, of TCP and UDP together.
func (s *Stats) Counters() (accepted, active uint64) {
	return s.accepted.Load(), uint64(s.sessions.Load() + s.clients.Load())
}

// Refused are the connections, and the datagrams of clients that have no session, that were turned away because of the limits.
func (s *Stats) Refused() (connections, datagrams uint64) {
	return s.refusedSessions.Load(), s.refusedClients.Load()
}

// Server is a set of open listeners and the sessions that came in through them.
type Server struct {
	o         Options
	g         Gateway
	tcp       []tcpListener
	udp       []*udpListener
	accepting sync.WaitGroup
	sessions  sync.WaitGroup
	serial    atomic.Uint64
	stats     *Stats
	lastFull  atomic.Int64 // Unix seconds of the last complaint
	stopping  atomic.Bool

	mu     sync.Mutex
	closed bool
	open   map[*session]struct{}
}

type tcpListener struct {
	net.Listener
	spec listen.Spec
}

// Open opens all sockets, or none.
func Open(ctx context.Context, o Options) (*Server, error) {
	if o.MaxSessions == 0 {
		o.MaxSessions = 16384
	}
	if o.MaxClients == 0 {
		o.MaxClients = 8192
	}
	if o.HelloTimeout == 0 {
		o.HelloTimeout = 30 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{o: o, stats: o.Stats, open: map[*session]struct{}{}}
	if s.stats == nil {
		s.stats = &Stats{}
	}
	for _, spec := range o.Specs {
		var err error
		if spec.UDP {
			var l *udpListener
			if l, err = s.listenUDP(ctx, spec); err == nil {
				s.udp = append(s.udp, l)
			}
		} else {
			var l net.Listener
			if l, err = spec.Listen(ctx, o.Inherited); err == nil {
				s.tcp = append(s.tcp, tcpListener{l, spec})
			}
		}
		if err != nil {
			s.closeListeners()
			return nil, err
		}
	}
	return s, nil
}

// Addrs are the addresses of the TCP listeners, then those of UDP, each in the order of the specs.
func (s *Server) Addrs() (list []net.Addr) {
	for _, l := range s.tcp {
		list = append(list, l.Addr())
	}
	for _, l := range s.udp {
		list = append(list, l.conn.LocalAddr())
	}
	return list
}

// Serve accepts until Shutdown. It returns nil then, and earlier the error of a listener that broke.
func (s *Server) Serve(g Gateway) error {
	s.g = g
	failed := make(chan error, len(s.tcp)+len(s.udp))
	serve := func(accept func() error) {
		s.accepting.Go(func() {
			if err := accept(); err != nil {
				failed <- err
				s.Close()
			}
		})
	}
	for _, l := range s.tcp {
		serve(func() error { return s.accept(l) })
	}
	for _, l := range s.udp {
		serve(l.serve)
	}
	s.accepting.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (s *Server) accept(l tcpListener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.stopping.Load() || s.isClosed() {
				return nil
			}
			if transient(err) {
				s.o.Log.Warn("accept failed, trying again", "listen", l.spec.String(), "error", err)
				time.Sleep(20 * time.Millisecond)
				continue
			}
			return err
		}
		if !s.o.Files.Take(nc) {
			s.stats.refusedSessions.Add(1) // before the client can know
			_ = nc.Close()
			s.complain("ulimit -n", int(s.o.Files))
			continue
		}
		if s.stats.sessions.Add(1) > int64(s.o.MaxSessions) {
			s.stats.sessions.Add(-1)
			s.stats.refusedSessions.Add(1)
			_ = nc.Close()
			s.complain("stream_max_connections", s.o.MaxSessions)
			continue
		}
		s.stats.accepted.Add(1)
		ss := s.newSession(addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr()))
		ss.client, ss.spec = nc, l.spec
		l.spec.Tune(nc)
		if !s.begin(ss) {
			_ = nc.Close()
			s.stats.sessions.Add(-1)
			return nil
		}
		go func() {
			defer s.sessions.Done()
			defer s.stats.sessions.Add(-1)
			ss.serve()
		}()
	}
}

// transient tells whether accept may work again soon.
func transient(err error) bool {
	for _, e := range []syscall.Errno{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// complain logs at most once a second: whoever fills the sessions shall not fill the disk.
func (s *Server) complain(setting string, limit int) {
	now := time.Now().Unix()
	if last := s.lastFull.Load(); last != now && s.lastFull.CompareAndSwap(last, now) {
		s.o.Log.Error("the limit of stream sessions is reached", "setting", setting, "limit", limit)
	}
}

// begin notes a session, so that Shutdown can wait for it and cut it; false when the server is closed.
func (s *Server) begin(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[ss] = struct{}{}
	s.sessions.Add(1)
	return true
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Sockets gives out the sockets, each with the name for listen.Inherited. The descriptors are valid during the call only.
func (s *Server) Sockets(give func(name string, fd int) error) error {
	for _, l := range s.tcp {
		if err := listen.GiveSocket(l.spec, l.Listener, give); err != nil {
			return err
		}
	}
	for _, l := range s.udp {
		if err := listen.GiveSocket(l.spec, l.conn, give); err != nil {
			return err
		}
	}
	return nil
}

// Stop is Close for sockets that somebody else has inherited: what waits in them is theirs, and a connection that was just accepted is served.
func (s *Server) Stop() {
	s.stopping.Store(true)
	for _, l := range s.tcp {
		if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
			_ = d.SetDeadline(time.Unix(1, 0))
		}
	}
	for _, l := range s.udp {
		l.stop()
	}
	s.accepting.Wait()
	for _, l := range s.tcp {
		_ = l.Close()
	}
	for _, l := range s.udp {
		l.release()
	}
}

// Close stops accepting. Sessions go on; of UDP clients only what upstreams still answer.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.closeListeners()
}

func (s *Server) closeListeners() {
	for _, l := range s.tcp {
		_ = l.Close()
	}
	for _, l := range s.udp {
		l.stop()
	}
}

// Shutdown closes, waits until the sessions have ended, and cuts those that are left when ctx ends.
func (s *Server) Shutdown(ctx context.Context) {
	s.Close()
	done := make(chan struct{})
	go func() { s.sessions.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		s.mu.Lock()
		for ss := range s.open {
			ss.cut()
		}
		s.mu.Unlock()
		<-done
	}
	for _, l := range s.udp {
		_ = l.conn.Close()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch t := a.(type) {
	case *net.TCPAddr:
		return unmap(t.AddrPort())
	case *net.UDPAddr:
		return unmap(t.AddrPort())
	}
	return netip.AddrPort{}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// failure is why a session ended that was not passed on; status is for the log, as nginx has it.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(status int, format string, args ...any) error {
	return &failure{status, fmt.Errorf(format, args...)}
}

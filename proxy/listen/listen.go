package listen

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/h2"
	"concord/proxy/proxyproto"
)

// ConnServer serves a connection on which HTTP begins, closes it, and calls info.End then. *h1.Server is one.
type ConnServer interface {
	ServeConn(nc net.Conn, info *h1.ConnInfo)
}

// Options of Open.
type Options struct {
	Specs  []Spec
	Server ConnServer
	// TLS is for every connection that begins with a TLS handshake, on any port. What its GetConfigForClient returns is used for that
	// handshake only, with the protocols of the listener.
	TLS *tls.Config
	// MaxConns bounds the connections of the group; one more is closed at once. Default 65,536.
	MaxConns int
	Conns    *atomic.Int64 // open connections, of all Groups that it is given to; nil: of this one alone
	Files    Files         // bounds them, too
	// FirstByteTimeout is how long it may take a client to say enough to be understood: the header of the PROXY protocol, and what tells TLS,
	// HTTP/2 and HTTP/1.1 apart. Default 60 s (nginx's client_header_timeout).
	FirstByteTimeout time.Duration
	// HandshakeTimeout bounds the TLS handshake, default 15 s.
	HandshakeTimeout time.Duration
	Inherited        *Inherited // sockets to take instead of opening them; nil: none
	Log              *slog.Logger
}

// Group is a set of open listeners.
type Group struct {
	o         Options
	listeners []listener
	http1     *tls.Config // of the other listeners
	http2     *tls.Config // of listeners with http2
	stopping  atomic.Bool // no more connections
	closed    atomic.Bool
	accepting sync.WaitGroup
	conns     *atomic.Int64
	leave     func() // Leave, bound once
	serial    atomic.Uint64
	lastFull  atomic.Int64 // Unix seconds of the last complaint

	mu      sync.Mutex
	waiting map[net.Conn]struct{} // before HTTP begins: nobody else would close them
}

type listener struct {
	net.Listener
	spec      Spec
	keepAlive *net.KeepAliveConfig
}

// Open opens all sockets, or none.
func Open(ctx context.Context, o Options) (*Group, error) {
	if o.MaxConns == 0 {
		o.MaxConns = 65536
	}
	if o.FirstByteTimeout == 0 {
		o.FirstByteTimeout = 60 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	g := &Group{o: o, conns: cmp.Or(o.Conns, new(atomic.Int64)), waiting: map[net.Conn]struct{}{}}
	g.leave = g.Leave
	if o.TLS != nil {
		g.http1, g.http2 = speaking(o.TLS, o.TLS.NextProtos), speaking(o.TLS, append([]string{"h2"}, o.TLS.NextProtos...))
	}
	for _, s := range o.Specs {
		keepAlive, err := s.keepAlive()
		var ln net.Listener
		if err == nil {
			ln, err = s.Listen(ctx, o.Inherited)
		}
		if err != nil {
			g.closeListeners()
			return nil, err
		}
		g.listeners = append(g.listeners, listener{ln, s, keepAlive})
	}
	return g, nil
}

// Addrs are the addresses, in the order of the specs, with the ports the system chose.
func (g *Group) Addrs() []net.Addr {
	var a []net.Addr
	for _, l := range g.listeners {
		a = append(a, l.Addr())
	}
	return a
}

// Serve accepts connections until Stop or Close. It returns nil then, and earlier the error of a listener that broke.
func (g *Group) Serve() error {
	failed := make(chan error, len(g.listeners))
	for _, l := range g.listeners {
		g.accepting.Go(func() {
			if err := g.accept(l); err != nil {
				failed <- err
				g.Close()
			}
		})
	}
	g.accepting.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (g *Group) accept(l listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if g.stopping.Load() {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isTransient(err) {
				g.o.Log.Warn("accept failed, trying again", "listen", l.spec.String(), "error", err)
				time.Sleep(20 * time.Millisecond)
				continue
			}
			return err
		}
		if !g.o.Files.Take(nc) {
			_ = nc.Close()
			g.complain("open files", int(g.o.Files))
			continue
		}
		if g.conns.Add(1) > int64(g.o.MaxConns) {
			g.conns.Add(-1)
			_ = nc.Close()
			g.complain("connections", g.o.MaxConns)
			continue
		}
		if t, ok := nc.(*net.TCPConn); ok && l.keepAlive != nil {
			_ = t.SetKeepAliveConfig(*l.keepAlive) // a connection that has just gone fails at its first read
		}
		if !g.wait(nc) { // noted here, so that Settled knows of it when Stop has returned
			g.conns.Add(-1)
			_ = nc.Close()
			return nil
		}
		go g.serve(nc, &l.spec)
	}
}

// complain logs at most once a second: whoever fills the connections shall not fill the disk.
func (g *Group) complain(of string, limit int) {
	now := time.Now().Unix()
	if last := g.lastFull.Load(); last != now && g.lastFull.CompareAndSwap(last, now) {
		g.o.Log.Error("connection refused: the limit is reached", "of", of, "limit", limit)
	}
}

// tlsHandshake is the first byte of a TLS connection: the content type of a handshake record (RFC 8446 §5.1). No HTTP
// request begins with it.
const tlsHandshake = 0x16

// sniffed is how much is read to tell what a connection speaks; the rest stays in the kernel. The preface of HTTP/2 is known by as many.
const sniffed = 16

// serve stays as long as the server does. All that is needed only at the beginning is in admit, whose stack is free again by then:
// the runtime gives a waiting goroutine the smallest stack only if little of the one it has is in use.
func (g *Group) serve(nc net.Conn, spec *Spec) {
	info := &h1.ConnInfo{Ended: g.leave}
	if nc = g.admit(nc, spec, info); nc == nil {
		g.Leave()
		return
	}
	g.o.Server.ServeConn(nc, info)
}

// admit reads how a connection begins and tells how to serve it; nil: it is closed.
//
//go:noinline
func (g *Group) admit(nc net.Conn, spec *Spec, info *h1.ConnInfo) net.Conn {
	info.Serial, info.HTTP2 = g.serial.Add(1), spec.HTTP2
	first, err := g.begin(nc, *spec, &info.Conn)
	if err != nil {
		g.proceed(nc)
		_ = nc.Close()
		return nil
	}
	switch {
	case first[0] == tlsHandshake && g.o.TLS != nil:
		a := &asking{TLSSocket: h1.NewTLSSocket(nc, first)}
		tc, err := g.handshake(a, *spec)
		if err != nil {
			g.proceed(nc)
			g.o.Log.Debug("TLS handshake failed", "peer", nc.RemoteAddr().String(), "error", err)
			_ = nc.Close()
			return nil
		}
		state := tc.ConnectionState()
		info.TLS, info.SNI, info.CertificateAsked = &state, state.ServerName, a.certificate
		info.Peer, info.Local = addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr())
		if g.proceed(nc) {
			return tc
		}
	case spec.SSL || first[0] == tlsHandshake:
		if g.proceed(nc) {
			refusePlain(nc, first[0])
		}
	default:
		_ = nc.SetReadDeadline(time.Time{})
		info.Initial = first
		if g.proceed(nc) {
			return nc
		}
	}
	_ = nc.Close()
	return nil
}

// begin reads until it is clear what the connection speaks: at least one byte, and all of what may become the preface of HTTP/2.
func (g *Group) begin(nc net.Conn, spec Spec, info *exchange.Conn) ([]byte, error) {
	_ = nc.SetReadDeadline(time.Now().Add(g.o.FirstByteTimeout))
	var first []byte
	if spec.ProxyProtocol {
		h, rest, err := proxyproto.Read(nc, nil)
		if err != nil {
			g.o.Log.Debug("connection closed", "listen", spec.String(), "peer", nc.RemoteAddr().String(), "reason", err)
			return nil, err
		}
		if !h.Datagram {
			info.Proxied = h.Source
		}
		first = rest
	}
	for {
		if len(first) > 0 {
			_, more := h2.Sniff(first)
			if !more || !spec.HTTP2 {
				return first, nil
			}
		}
		if room := len(first) + sniffed; cap(first) < room {
			first = append(make([]byte, 0, room), first...)
		}
		n, err := nc.Read(first[len(first) : len(first)+sniffed])
		if first = first[:len(first)+n]; n == 0 && err != nil {
			return nil, err
		}
	}
}

// speaking is a configuration with other protocols.
func speaking(config *tls.Config, protocols []string) *tls.Config {
	out := config.Clone()
	out.NextProtos = protocols
	choose := config.GetConfigForClient
	if choose == nil {
		return out
	}
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen, err := choose(hello)
		if chosen != nil {
			chosen.NextProtos = protocols
			if a, ok := hello.Conn.(*asking); ok {
				a.certificate = chosen.ClientAuth != tls.NoClientCert
			}
		}
		return chosen, err
	}
	return out
}

func (g *Group) handshake(a *asking, spec Spec) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), g.o.HandshakeTimeout)
	defer cancel()
	_ = a.SetReadDeadline(time.Time{})
	config := g.http1
	if spec.HTTP2 {
		config = g.http2
	}
	tc := tls.Server(a, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return tc, nil
}

// refusePlain answers HTTP on a TLS port in words; whatever else it is just ends.
func refusePlain(nc net.Conn, first byte) {
	if first < 'A' || first > 'Z' {
		return
	}
	const text = "The plain HTTP request was sent to an HTTPS port: use https:// instead of http://\n"
	_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
	_, err := fmt.Fprintf(nc, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	if err != nil {
		return
	}
	// Unread bytes would turn the close into a reset that can overtake the answer.
	if cw, ok := nc.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		buf := make([]byte, 4096)
		for range 64 {
			if _, err := nc.Read(buf); err != nil {
				return
			}
		}
	}
}

// wait notes a connection nobody serves yet; false when the group is closed.
func (g *Group) wait(nc net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed.Load() {
		return false
	}
	g.waiting[nc] = struct{}{}
	return true
}

// proceed ends wait; false when Close has closed the connection meanwhile.
func (g *Group) proceed(nc net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.waiting[nc]
	delete(g.waiting, nc)
	return ok
}

// Enter counts and numbers a connection that somebody else has accepted, over QUIC; false: there are too many. Leave ends it.
func (g *Group) Enter() (serial uint64, ok bool) {
	if g.conns.Add(1) > int64(g.o.MaxConns) {
		g.conns.Add(-1)
		g.complain("connections", g.o.MaxConns)
		return 0, false
	}
	return g.serial.Add(1), true
}

// Leave ends what Enter has begun: a connection is over.
func (g *Group) Leave() { g.conns.Add(-1) }

// Conns is the number of open connections, see Options.Conns.
func (g *Group) Conns() int { return int(g.conns.Load()) }

// Stop stops accepting and returns when no connection can come any more. Sockets that somebody else has inherited stay open there: what waits in
// their queues is theirs to accept.
func (g *Group) Stop() {
	g.stopping.Store(true)
	for _, l := range g.listeners {
		if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
			_ = d.SetDeadline(time.Unix(1, 0)) // ends Accept, and takes no connection with it as closing might
		}
	}
	g.accepting.Wait()
	g.closeListeners()
}

// Settled waits, after Stop, until the server has been given every connection on which something was said, at most as long as ctx.
func (g *Group) Settled(ctx context.Context) {
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		g.mu.Lock()
		left := len(g.waiting)
		g.mu.Unlock()
		if left == 0 {
			tick.Stop()
			return
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

// Close stops accepting and closes the connections on which no request has begun. The others are the server's to drain.
func (g *Group) Close() {
	g.mu.Lock()
	g.stopping.Store(true)
	g.closed.Store(true)
	for nc := range g.waiting {
		_ = nc.Close()
		delete(g.waiting, nc)
	}
	g.mu.Unlock()
	g.closeListeners()
}

func (g *Group) closeListeners() {
	for _, l := range g.listeners {
		_ = l.Close()
	}
}

// asking is the socket below a TLS connection in its handshake.
type asking struct {
	*h1.TLSSocket
	certificate bool // of the client
}

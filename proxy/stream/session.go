package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/listen"
	"concord/proxy/plugin"
	"concord/proxy/proxyproto"
	"concord/proxy/router"
)

// session is one connection, or one UDP client, from its first byte to its line in the log.
type session struct {
	s        *Server
	spec     listen.Spec
	x        exchange.Exchange
	stream   exchange.Stream
	query    router.StreamQuery
	dispatch *balancer.Dispatch // nil: the service names its host itself
	client   net.Conn           // nil: UDP

	mu       sync.Mutex
	upstream net.Conn
	over     bool // told to end
}

func (s *Server) newSession(peer, local netip.AddrPort) *session {
	ss := &session{s: s}
	x := &ss.x
	x.Stream = &ss.stream
	x.Conn = exchange.Conn{Peer: peer, Local: local, Serial: s.serial.Add(1)}
	x.ClientIP, x.Start = peer.Addr(), time.Now()
	return ss
}

// serve is the life of a connection.
func (ss *session) serve() {
	defer ss.client.Close()
	err := ss.proxy()
	ss.end(err)
}

// proxy takes a connection to its upstream and passes on what both sides say. An error says why it came to nothing.
func (ss *session) proxy() error {
	first, err := ss.preread()
	if err != nil {
		return err
	}
	if err := ss.route(); err != nil {
		if ss.spec.SSL && ss.x.Route == nil {
			ss.alert(unrecognizedName)
		}
		return err
	}
	client := ss.client
	if ss.spec.SSL && ss.stream.Protocol == "tls" {
		tc, err := ss.handshake(first)
		if err != nil {
			return err
		}
		client, first = tc, nil
	}
	up, err := ss.connect("tcp")
	if err != nil {
		return err
	}
	r := newRelay(client, up, ss.x.Upstream.ReadTimeout, ss.x.Upstream.WriteTimeout)
	r.run(first)
	ss.x.BytesReceived, ss.stream.UpstreamSent = r.up.in, r.up.out
	ss.stream.UpstreamReceived, ss.x.BytesSent = r.down.in, r.down.out
	return nil
}

// preread reads what routing needs: a PROXY header where the listener demands one, the ClientHello where it speaks TLS. It returns what
// belongs to the connection itself.
func (ss *session) preread() (first []byte, err error) {
	x, q := &ss.x, &ss.query
	_ = ss.client.SetReadDeadline(time.Now().Add(ss.s.o.HelloTimeout))
	if ss.spec.ProxyProtocol {
		var h proxyproto.Header
		if h, first, err = proxyproto.Read(ss.client, nil); err != nil {
			return nil, failed(400, "PROXY header of %s: %w", x.Conn.Peer, err)
		}
		if h.Source.IsValid() && !h.Datagram && trusted(ss.s.g.TrustedIPs, x.ClientIP) {
			x.Conn.Peer = unmap(h.Source)
			x.ClientIP = x.Conn.Peer.Addr()
		}
	}
	q.Protocols, q.Source, q.Destination = router.TCP, x.Conn.Peer, x.Conn.Local
	if ss.spec.SSL {
		var h hello
		if h, first, err = readHello(ss.client, first); err != nil {
			return nil, failed(400, "%w", err)
		}
		q.Protocols, q.SNI, x.Conn.SNI = router.TLS|router.TLSPassthrough, h.sni, h.sni
	}
	_ = ss.client.SetReadDeadline(time.Time{})
	return first, nil
}

func trusted(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if ip := p.Addr(); ip.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(ip.Unmap(), p.Bits()-96)
		}
		if p.Contains(a) {
			return true
		}
	}
	return false
}

var errNoRoute = &failure{404, errors.New("no stream route matched")}

// route finds the route and asks its plugins. The snapshot is used for no longer than that: a session may outlast thousands of
// configurations, which would all have to be kept.
func (ss *session) route() error {
	x := &ss.x
	snap := ss.s.g.Holder.Pin(x.Conn.Serial)
	defer snap.Unpin(x.Conn.Serial)
	t, ok := snap.FindStream(&ss.query)
	if !ok {
		return errNoRoute
	}
	x.Route = t.Route.Entity
	ss.stream.Protocol = protocolOf(t.Route.Protocols & ss.query.Protocols)
	if t.Service != nil {
		x.Service, x.Upstream = t.Service.Entity, t.Service.Upstream
	}
	for _, step := range t.Chain.Steps {
		if step.StreamAccessor == nil {
			continue
		}
		if err := ss.access(step); err != nil {
			var exit *plugin.Exit
			if errors.As(err, &exit) {
				return failed(exit.Status, "refused by plugin %s", step.Name)
			}
			return failed(500, "plugin %s: %w", step.Name, err)
		}
	}
	if x.Upstream.Host == "" {
		return failed(503, "route %s has no service", x.Route.ID)
	}
	if (x.Upstream.Scheme == "udp") != (ss.stream.Protocol == "udp") {
		return failed(500, "a route for %s cannot use service %s, which speaks %s", ss.stream.Protocol, x.Service.ID, x.Upstream.Scheme)
	}
	return nil
}

func protocolOf(p router.Protocols) string {
	switch {
	case p&router.TCP != 0:
		return "tcp"
	case p&router.TLS != 0:
		return "tls"
	case p&router.TLSPassthrough != 0:
		return "tls_passthrough"
	}
	return "udp"
}

// access runs a plugin, whose panic is the failure of one session.
func (ss *session) access(step *dataplane.Step) (err error) {
	defer ss.recovered(step.Name, &err)
	return step.StreamAccessor.StreamAccess(&ss.x)
}

func (ss *session) recovered(name string, err *error) {
	if p := recover(); p != nil {
		ss.s.o.Log.Error("plugin panicked", "plugin", name, "phase", "stream", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

// unrecognizedName is the alert for a name that nobody serves (RFC 6066 §3).
const unrecognizedName = 112

// alert tells a TLS client, before any handshake, why the connection ends.
func (ss *session) alert(description byte) {
	_ = ss.client.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = ss.client.Write([]byte{21, 3, 1, 0, 2, 2, description})
}

// handshake terminates TLS; first is the ClientHello.
func (ss *session) handshake(first []byte) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ss.s.o.HandshakeTimeout)
	defer cancel()
	tc := tls.Server(h1.NewTLSSocket(ss.client, first), ss.s.o.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, failed(400, "TLS handshake: %w", err)
	}
	state := tc.ConnectionState()
	if !strings.EqualFold(state.ServerName, ss.query.SNI) {
		return nil, failed(400, "TLS handshake: the connection was routed by the server name %q and is for %q", ss.query.SNI, state.ServerName)
	}
	ss.x.Conn.TLS = &state
	return tc, nil
}

// connect opens the connection to the service or to a target of its upstream.
func (ss *session) connect(network string) (net.Conn, error) {
	x := &ss.x
	if ss.s.g.Pools != nil {
		if pool := ss.s.g.Pools.Pool(x.Upstream.Host); pool != nil {
			d, err := pool.Dispatch(x, false)
			if err != nil {
				return nil, failed(502, "%w", err)
			}
			ss.dispatch = d
		}
	}
	nc, err := ss.s.g.Upstreams.Connect(x, network)
	ss.stream.Connect = time.Since(x.Start)
	if network == "tcp" || err != nil { // what a UDP upstream is worth, its answer says
		ss.result(err)
	}
	if err != nil {
		return nil, failed(502, "%w", err)
	}
	x.Proxied = true
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.over {
		_ = nc.Close()
		return nil, failed(502, "the gateway is stopping")
	}
	ss.upstream = nc
	return nc, nil
}

// result tells the balancer how a target does.
func (ss *session) result(err error) {
	if ss.dispatch != nil {
		ss.x.Response.Status = 200 // a success in the words of HTTP, which health checks count in
		ss.dispatch.Result(&ss.x, err)
	}
}

// cut ends a session from outside.
func (ss *session) cut() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.over = true
	if ss.client != nil {
		_ = ss.client.Close()
	}
	if ss.upstream != nil {
		_ = ss.upstream.Close()
	}
}

// end closes, counts and logs.
func (ss *session) end(err error) {
	s, x := ss.s, &ss.x
	x.Response.Status, x.Err = 200, err
	var f *failure
	if errors.As(err, &f) {
		x.Response.Status = f.status
		s.o.Log.Debug("stream session failed", "peer", x.Conn.Peer.String(), "status", f.status, "error", err)
	}
	ss.mu.Lock()
	if ss.upstream != nil {
		_ = ss.upstream.Close()
	}
	ss.mu.Unlock()
	if ss.dispatch != nil {
		ss.dispatch.End()
	}
	ss.stream.Session = time.Since(x.Start)
	ss.log()
	s.mu.Lock()
	delete(s.open, ss)
	s.mu.Unlock()
}

// log asks the plugins of the route as they are now, and writes the line.
func (ss *session) log() {
	s, x := ss.s, &ss.x
	if x.Route != nil {
		snap := s.g.Holder.Pin(x.Conn.Serial)
		defer snap.Unpin(x.Conn.Serial)
		chain := snap.GlobalStreams()
		if t, ok := snap.FindStream(&ss.query); ok && t.Route.Entity.ID == x.Route.ID {
			chain = t.Chain
		}
		for _, step := range chain.Steps {
			if step.StreamLogger != nil {
				ss.logStep(step)
			}
		}
	}
	if s.g.AccessLog != nil {
		line := appendBasic
		if s.g.JSON {
			line = appendJSON
		}
		s.g.AccessLog.Append(func(b []byte) []byte { return line(b, x) })
	}
}

func (ss *session) logStep(step *dataplane.Step) {
	var err error
	defer ss.recovered(step.Name, &err)
	step.StreamLogger.StreamLog(&ss.x)
}

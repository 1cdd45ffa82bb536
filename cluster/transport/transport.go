// Package transport is the peer port: one TCP listener, TLS 1.3 only, split by ALPN.
//
//	concord-raft/1  streams of the raft log, between members
//	h2              requests between members (net/http)
//	concord-join/1  the one thing a node without a certificate may do: send one request to join and read one answer
//
// It authenticates peers with the node certificates of package pki and asks its owner whether a node is a member; it knows
// nothing of raft, of what is requested, or of how members come to be. Whoever is not let in gets no byte but a TLS alert.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"concord/cluster/pki"
)

// The protocols of the port.
const (
	ProtoRaft = "concord-raft/1"
	ProtoRPC  = "h2"
	ProtoJoin = "concord-join/1"
)

// ErrClosed is returned after Close.
var ErrClosed = errors.New("peer transport is closed")

// Options of Listen. Listen, Member and Join are required.
type Options struct {
	Listen string // host:port
	// Member decides, in the handshake, whether a node with a valid certificate may speak proto now. It must be quick.
	Member func(nodeID, proto string) error
	// Handler answers the requests of members; NodeID tells it whose.
	Handler http.Handler
	// Join answers the message of a node that has no certificate yet; from is its address.
	Join func(ctx context.Context, from net.Addr, conn tls.ConnectionState, message []byte) []byte
	Log  *slog.Logger

	HandshakeTimeout time.Duration // default 5 s
	MaxHalfOpen      int           // connections that have not finished the handshake; the oldest make room. Default 256
	MaxJoins         int           // join requests at a time. Default 32
}

// The bounds of messages on the join path.
const (
	maxJoinRequest = 16 << 10
	maxJoinAnswer  = 1 << 20
	joinTimeout    = 30 * time.Second
)

// Transport is one node's end of the peer port.
type Transport struct {
	opt     Options
	addr    net.Addr
	creds   atomic.Pointer[pki.Credentials]
	rpc     *http.Server
	rpcIn   *feed
	client  *http.Client
	joins   chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	serving sync.WaitGroup

	mu       sync.Mutex
	ln       net.Listener
	paused   bool
	closed   bool
	raft     *feed
	conns    map[*peerConn]struct{} // all connections, in both directions
	halfOpen []*peerConn            // of conns, oldest first
	resolve  func(nodeID string) (addr string, ok bool)
}

// peerConn is a connection that can be found again by whom it belongs to.
type peerConn struct {
	net.Conn
	t    *Transport
	node string // guarded by Transport.mu; "" until authenticated
}

func (c *peerConn) Close() error {
	c.t.mu.Lock()
	delete(c.t.conns, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}

// Listen opens the port. Without credentials every handshake is refused until SetCredentials.
func Listen(o Options) (*Transport, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.MaxHalfOpen == 0 {
		o.MaxHalfOpen = 256
	}
	if o.MaxJoins == 0 {
		o.MaxJoins = 32
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("cluster_listen %s: %w", o.Listen, err)
	}
	t := &Transport{opt: o, addr: ln.Addr(), ln: ln, conns: map[*peerConn]struct{}{}, joins: make(chan struct{}, o.MaxJoins)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.rpcIn = newFeed(ln.Addr())
	t.rpc = &http.Server{
		Handler: o.Handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // broken connections of peers are reported where they matter, by the caller
	}
	t.client = &http.Client{
		Transport: &http.Transport{
			ForceAttemptHTTP2: true, DialTLSContext: t.dialRPC, MaxIdleConnsPerHost: 2, IdleConnTimeout: 2 * time.Minute,
			DisableCompression: true,
			// A connection to a host that vanished must not swallow requests until TCP gives up.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.serving.Add(2)
	go func() { defer t.serving.Done(); _ = t.rpc.Serve(t.rpcIn) }() // ends with Close
	go func() { defer t.serving.Done(); t.accept(ln) }()
	return t, nil
}

// Addr is the address the port is bound to.
func (t *Transport) Addr() net.Addr { return t.addr }

// Pause closes the port and every connection, until Resume. Nothing can be dialled meanwhile.
func (t *Transport) Pause() error {
	t.mu.Lock()
	ln := t.ln
	t.paused = true
	t.mu.Unlock()
	err := ln.Close()
	t.cut(func(*peerConn) bool { return true })
	t.client.CloseIdleConnections()
	return err
}

// Resume opens the port again, at the same address.
func (t *Transport) Resume() error {
	ln, err := net.Listen("tcp", t.addr.String())
	if err != nil {
		return fmt.Errorf("cluster_listen %s: %w", t.addr, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || !t.paused {
		return errors.Join(ErrClosed, ln.Close())
	}
	t.ln, t.paused = ln, false
	t.serving.Go(func() { t.accept(ln) })
	return nil
}

// SetCredentials switches to another identity or a renewed certificate, for new connections. nil refuses everyone.
func (t *Transport) SetCredentials(c *pki.Credentials) { t.creds.Store(c) }

// Credentials are those in use, nil if none.
func (t *Transport) Credentials() *pki.Credentials { return t.creds.Load() }

// SetResolver says how Client finds the address of a node.
func (t *Transport) SetResolver(f func(nodeID string) (addr string, ok bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resolve = f
}

func (t *Transport) accept(ln net.Listener) {
	for {
		raw, err := ln.Accept()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: the port must come back by itself.
			t.opt.Log.Error("peer port: accept failed", "error", err)
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		c := t.track(raw, true)
		if c == nil {
			continue // the listener has been closed, or is about to be
		}
		t.serving.Go(func() { t.serve(c) })
	}
}

// track registers a connection; nil when the transport is closed. Too many half-open ones: the oldest is closed, because an honest
// handshake takes milliseconds and what is old is stalled.
func (t *Transport) track(raw net.Conn, half bool) *peerConn {
	c := &peerConn{Conn: raw, t: t}
	t.mu.Lock()
	if t.closed || t.paused {
		t.mu.Unlock()
		raw.Close()
		return nil
	}
	t.conns[c] = struct{}{}
	var evicted *peerConn
	if half {
		if len(t.halfOpen) >= t.opt.MaxHalfOpen {
			evicted = t.halfOpen[0]
			t.halfOpen = slices.Delete(t.halfOpen, 0, 1)
		}
		t.halfOpen = append(t.halfOpen, c)
	}
	t.mu.Unlock()
	if evicted != nil {
		evicted.Close()
	}
	return c
}

func (t *Transport) settled(c *peerConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.halfOpen, c); i >= 0 {
		t.halfOpen = slices.Delete(t.halfOpen, i, i+1)
	}
}

// own records whose connection this is and asks again whether the node is welcome: a removal between the handshake and here
// must not be missed.
func (t *Transport) own(c *peerConn, node, proto string) error {
	t.mu.Lock()
	c.node = node
	t.mu.Unlock()
	return t.opt.Member(node, proto)
}

func (t *Transport) serve(c *peerConn) {
	creds := t.creds.Load()
	if creds == nil {
		c.Close()
		t.settled(c)
		return
	}
	conn := tls.Server(c, t.serverConfig(creds))
	ctx, cancel := context.WithTimeout(t.ctx, t.opt.HandshakeTimeout)
	err := conn.HandshakeContext(ctx)
	cancel()
	t.settled(c)
	if err != nil {
		t.opt.Log.Debug("peer port: connection refused", "from", c.RemoteAddr().String(), "reason", err)
		c.Close()
		return
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol == ProtoJoin {
		t.serveJoin(conn, state)
		return
	}
	node, err := creds.Verify(state.PeerCertificates, time.Now())
	if err == nil {
		err = t.own(c, node, state.NegotiatedProtocol)
	}
	if err != nil {
		c.Close()
		return
	}
	in := t.rpcIn
	if state.NegotiatedProtocol == ProtoRaft {
		t.mu.Lock()
		in = t.raft
		t.mu.Unlock()
	}
	if in == nil || !in.put(conn) {
		conn.Close()
	}
}

var errNoProtocol = errors.New("the peer speaks none of the protocols of this port")

func (t *Transport) serverConfig(creds *pki.Credentials) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{creds.TLS()}, SessionTicketsDisabled: true,
		NextProtos: []string{ProtoRaft, ProtoRPC},
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			return t.verifyPeer(creds, s)
		},
	}
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Contains(hello.SupportedProtos, ProtoRaft), slices.Contains(hello.SupportedProtos, ProtoRPC):
			return nil, nil
		case slices.Contains(hello.SupportedProtos, ProtoJoin):
			join := base.Clone()
			join.GetConfigForClient, join.VerifyConnection = nil, nil
			join.NextProtos, join.ClientAuth = []string{ProtoJoin}, tls.NoClientCert
			return join, nil
		}
		return nil, errNoProtocol
	}
	return base
}

func (t *Transport) verifyPeer(creds *pki.Credentials, s tls.ConnectionState) error {
	node, err := creds.Verify(s.PeerCertificates, time.Now())
	if err != nil {
		return err
	}
	return t.opt.Member(node, s.NegotiatedProtocol)
}

// dial opens an authenticated connection to a member. want is the node that must answer, "" for any.
func (t *Transport) dial(ctx context.Context, addr, proto, want string) (*tls.Conn, error) {
	creds := t.creds.Load()
	if creds == nil {
		return nil, errors.New("this node has no certificate yet")
	}
	raw, err := (&net.Dialer{Timeout: t.opt.HandshakeTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := t.track(raw, false)
	if c == nil {
		return nil, ErrClosed
	}
	var node string
	conn := tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{creds.TLS()}, NextProtos: []string{proto},
		InsecureSkipVerify: true, // VerifyConnection does it: node certificates name nodes, not hosts
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != proto {
				return errNoProtocol
			}
			id, err := creds.Verify(s.PeerCertificates, time.Now())
			if err != nil {
				return err
			}
			if want != "" && id != want {
				return fmt.Errorf("node %s answers at %s, where node %s was expected", id, addr, want)
			}
			node = id
			return t.opt.Member(id, proto)
		},
	})
	hctx, cancel := context.WithTimeout(ctx, t.opt.HandshakeTimeout)
	defer cancel()
	if err = conn.HandshakeContext(hctx); err == nil {
		err = t.own(c, node, proto)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return conn, nil
}

// DialRaft opens a raft stream to the member at addr.
func (t *Transport) DialRaft(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	return t.dial(ctx, addr, ProtoRaft, "")
}

// Client sends requests to members. The host of the URL is the node's id ("https://<node id>/path") or, where only an address is
// known, that address (host:port).
func (t *Transport) Client() *http.Client { return t.client }

func (t *Transport) dialRPC(ctx context.Context, _, hostport string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	resolve := t.resolve
	t.mu.Unlock()
	if resolve != nil {
		if addr, ok := resolve(host); ok {
			return t.dial(ctx, addr, ProtoRPC, host)
		}
	}
	return t.dial(ctx, hostport, ProtoRPC, "")
}

// Raft gives the incoming raft streams, to one owner at a time: an earlier listener gets no more.
func (t *Transport) Raft() net.Listener {
	f := newFeed(t.addr)
	t.mu.Lock()
	old := t.raft
	t.raft = f
	t.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return f
}

// Cut closes all connections with a node; CutAll those with every node.
func (t *Transport) Cut(nodeID string) {
	t.cut(func(c *peerConn) bool { return c.node == nodeID })
	t.client.CloseIdleConnections()
}

// CutAll closes the connections with all nodes, in both directions.
func (t *Transport) CutAll() {
	t.cut(func(c *peerConn) bool { return c.node != "" })
	t.client.CloseIdleConnections()
}

func (t *Transport) cut(which func(*peerConn) bool) {
	t.mu.Lock()
	var list []*peerConn
	for c := range t.conns {
		if which(c) {
			list = append(list, c)
		}
	}
	t.mu.Unlock()
	for _, c := range list {
		c.Close()
	}
}

// Close stops listening, cuts every connection and waits until nothing runs any more.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	raft, ln, paused := t.raft, t.ln, t.paused
	t.mu.Unlock()
	t.cancel()
	var err error
	if !paused {
		err = ln.Close()
	}
	if raft != nil {
		raft.Close()
	}
	t.cut(func(*peerConn) bool { return true })
	t.rpc.Close()
	t.client.CloseIdleConnections()
	t.serving.Wait()
	return err
}

// NodeID is the member that sent a request.
func NodeID(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return pki.NodeID(r.TLS.PeerCertificates[0])
}

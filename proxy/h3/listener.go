package h3

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"concord/proxy/listen"
)

// ConnServer serves a connection and returns when it is over. *Server is one.
type ConnServer interface {
	ServeConn(c *Conn)
}

// Gate bounds the connections, those over TCP included. *listen.Group is one.
type Gate interface {
	// Enter counts a connection and numbers it; false: there are too many.
	Enter() (serial uint64, ok bool)
	Leave()
}

// ListenOptions configure a Listener.
type ListenOptions struct {
	Spec   listen.Spec
	Port   int // where the TCP listener of the spec is: the same one is for UDP
	Server ConnServer
	TLS    *tls.Config // of the TCP listener: certificates and the rules about clients are the same
	Gate   Gate
	// Secret makes the keys of address validation tokens and stateless resets, so that they mean something to the next process, too. It
	// is not to be known to others.
	Secret           []byte
	IdleTimeout      time.Duration     // without any packet, 75 s
	HandshakeTimeout time.Duration     // 15 s
	MaxStreams       int               // requests at once on one connection, 128
	Inherited        *listen.Inherited // sockets to take instead of opening them; nil: none
	Log              *slog.Logger
}

// Listener is a UDP socket for QUIC. It outlives a change of settings that leaves its address alone, and so do its connections.
type Listener struct {
	spec      listen.Spec
	server    ConnServer
	log       *slog.Logger
	socket    *socket
	transport *quic.Transport
	config    *quic.Config

	current    atomic.Pointer[present]
	handshakes atomic.Int64 // that have begun and are not complete

	mu      sync.Mutex
	ln      *quic.Listener
	serving bool
	stopped bool
	conns   map[*quic.Conn]*Conn
}

// present is what a change of settings replaces.
type present struct {
	tls  *tls.Config
	gate Gate
}

// Conn is a connection that a Listener has accepted, or is about to.
type Conn struct {
	quic   *quic.Conn
	serial uint64
	served atomic.Pointer[conn]
	over   atomic.Bool // the handshake
	asked  bool        // for a client certificate, in the handshake
}

type connKey struct{}

// manyHandshakes is how many may be under way before clients have to show that their address is their own (RFC 9000 §8.1.2), which costs
// them a round trip and us no memory.
const manyHandshakes = 128

var (
	errFull  = errors.New("h3: too many connections")
	errTLS13 = errors.New("http3 needs TLS 1.3: add TLSv1.3 to ssl_protocols, or take http3 out")
)

// Listen opens the socket, or takes it if it is inherited. Nothing is accepted before Serve.
func Listen(ctx context.Context, o ListenOptions) (*Listener, error) {
	setDefault(&o.IdleTimeout, 75*time.Second)
	setDefault(&o.HandshakeTimeout, 15*time.Second)
	setDefault(&o.MaxStreams, 128)
	setDefault(&o.Log, slog.Default())
	if o.TLS.MaxVersion != 0 && o.TLS.MaxVersion < tls.VersionTLS13 {
		return nil, fmt.Errorf("listen %s: %w", o.Spec, errTLS13)
	}
	packets, err := o.Spec.ListenQUIC(ctx, o.Port, o.Inherited)
	if err != nil {
		return nil, err
	}
	udp, ok := packets.(*net.UDPConn)
	if !ok {
		_ = packets.Close()
		return nil, fmt.Errorf("listen %s: not a UDP socket", o.Spec)
	}
	sock, err := openSocket(udp, o.Spec.QUICSocketName(), derive(o, "id"), o.Inherited)
	if err != nil {
		_ = udp.Close()
		return nil, err
	}
	l := &Listener{spec: o.Spec, server: o.Server, log: o.Log, socket: sock, conns: map[*quic.Conn]*Conn{}}
	l.current.Store(&present{o.TLS, o.Gate})
	token, reset := quic.TokenGeneratorKey(derive(o, "token")), quic.StatelessResetKey(derive(o, "reset"))
	l.transport = &quic.Transport{
		Conn: sock, ConnectionIDGenerator: sock, TokenGeneratorKey: &token, StatelessResetKey: &reset,
		VerifySourceAddress: func(net.Addr) bool { return l.handshakes.Load() >= manyHandshakes },
		ConnContext:         l.admit,
	}
	l.config = &quic.Config{
		HandshakeIdleTimeout: o.HandshakeTimeout / 2, // in all it may take twice that
		MaxIdleTimeout:       o.IdleTimeout,
		MaxIncomingStreams:   int64(o.MaxStreams), MaxIncomingUniStreams: 8, // a client has use for three
		// What a client may have in flight is as with HTTP/2: memory is bounded by what slow readers get.
		InitialStreamReceiveWindow: 64 << 10, MaxStreamReceiveWindow: 512 << 10,
		InitialConnectionReceiveWindow: 512 << 10, MaxConnectionReceiveWindow: 1 << 20,
		Allow0RTT: false, // what comes in it could be sent again by others (RFC 9001 §9.2)
	}
	return l, nil
}

// derive makes a key of the secret for one purpose and socket.
func derive(o ListenOptions, purpose string) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "concord quic %s\x00%s\x00%s", purpose, o.Spec.SocketName(), o.Secret))
}

// admit is asked when a client has begun a handshake.
func (l *Listener) admit(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	gate := l.current.Load().gate
	serial, ok := gate.Enter()
	if !ok {
		return nil, errFull
	}
	l.handshakes.Add(1)
	context.AfterFunc(ctx, gate.Leave)
	c := &Conn{serial: serial}
	ctx = context.WithValue(ctx, connKey{}, c)
	context.AfterFunc(ctx, func() { l.shaken(c) })
	return ctx, nil
}

// shaken ends a handshake, once.
func (l *Listener) shaken(c *Conn) {
	if c.over.CompareAndSwap(false, true) {
		l.handshakes.Add(-1)
	}
}

// Use makes other settings those of new connections.
func (l *Listener) Use(config *tls.Config, gate Gate) { l.current.Store(&present{config, gate}) }

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return l.socket.LocalAddr() }

// SocketName is how a socket like this one is known to listen.Inherited.
func (l *Listener) SocketName() string { return l.spec.QUICSocketName() }

// Serve accepts connections until Stop or Close. It returns nil then, and earlier the error of a socket that broke.
func (l *Listener) Serve() error {
	// The configuration is looked up for each handshake; crypto/tls asks for it before it looks at anything else.
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{http3.NextProtoH3}}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := http3.ConfigureTLSConfig(l.current.Load().tls)
		if choose := c.GetConfigForClient; choose != nil {
			chosen, err := choose(hello)
			if err != nil {
				return nil, err
			}
			if chosen != nil {
				c = chosen // a copy, too
			}
		}
		if accepted, ok := hello.Context().Value(connKey{}).(*Conn); ok {
			accepted.asked = c.ClientAuth != tls.NoClientCert
		}
		c.MinVersion = tls.VersionTLS13
		return c, nil
	}
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return nil
	}
	l.serving = true
	ln, err := l.transport.Listen(config, l.config)
	l.ln = ln
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("listen %s: %w", l.spec, err)
	}
	for {
		qc, err := ln.Accept(context.Background())
		if err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.stopped {
				return nil
			}
			return fmt.Errorf("%s: %w", l.spec, err)
		}
		c, ok := qc.Context().Value(connKey{}).(*Conn)
		if !ok {
			_ = qc.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeInternalError), "")
			continue
		}
		c.quic = qc
		l.mu.Lock()
		l.conns[qc] = c
		l.mu.Unlock()
		l.shaken(c)
		go func() {
			l.server.ServeConn(c)
			l.mu.Lock()
			delete(l.conns, qc)
			l.mu.Unlock()
		}()
	}
}

// Serving tells whether Serve was called.
func (l *Listener) Serving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.serving
}

// Settled waits, after Stop, until the server has every connection that was begun, at most as long as ctx.
func (l *Listener) Settled(ctx context.Context) {
	l.await(ctx, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.conns {
			if c.served.Load() == nil {
				return false
			}
		}
		return l.handshakes.Load() == 0
	})
}

// Linger waits until the process before this one, whose packets come through this one, has ended, at most as long as ctx.
func (l *Listener) Linger(ctx context.Context) {
	l.await(ctx, func() bool { return l.socket.ancestor.Load() == nil })
}

func (l *Listener) await(ctx context.Context, done func() bool) {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Drain, after Stop, ends connections on which no request runs, until none is left or ctx ends.
func (l *Listener) Drain(ctx context.Context) {
	l.await(ctx, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.conns {
			if served := c.served.Load(); served != nil && served.quiet() {
				go served.close()
			}
		}
		return len(l.conns) == 0
	})
}

// Socket gives out the socket for another process, with its name for listen.Inherited. The descriptors are valid during the call only.
func (l *Listener) Socket(give func(name string, fd int) error) error {
	return l.socket.give(l.SocketName(), give)
}

// Stop accepts no more connections; those that are open stay. If another process was given the socket, it reads it from now on: what this
// one has begun to accept, it accepts.
func (l *Listener) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	if l.ln != nil && !l.socket.handOver() {
		_ = l.ln.Close()
	}
}

// Close ends the listener, and connections that are still open with it, without a word: the server is to be shut down before.
func (l *Listener) Close() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.socket.closing.Store(true)
	_ = l.transport.Close()
	_ = l.socket.Close()
}

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"concord/admin/rest"
	"concord/proxy"
	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// front is the proxy as clients meet it: it accepts connections and gives them to the present server. A reload makes a new
// server; connections that are open end on the old one, which drains meanwhile.
type front struct {
	log      *slog.Logger
	clock    *h1.Clock
	current  atomic.Pointer[h1.Server]
	accepted atomic.Uint64
	requests atomic.Uint64

	mu      sync.Mutex
	servers []*h1.Server // those that still have connections
}

// use makes a server with this handler the one for new connections.
func (f *front) use(h *proxy.Handler) {
	next := h1.New(h1.Options{Handler: counted{h, &f.requests}, Refuse: h.Refuse, Clock: f.clock, Log: f.log})
	f.mu.Lock()
	f.servers = append(f.servers, next)
	f.mu.Unlock()
	old := f.current.Swap(next)
	if old == nil {
		return
	}
	go func() {
		_ = old.Shutdown(context.Background()) // it returns when its last connection has ended
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, s := range f.servers {
			if s == old {
				f.servers = append(f.servers[:i:i], f.servers[i+1:]...)
				break
			}
		}
	}()
}

// counted counts the requests of a handler.
type counted struct {
	exchange.Handler
	n *atomic.Uint64
}

// Serve counts and serves.
func (c counted) Serve(x *exchange.Exchange) {
	c.n.Add(1)
	c.Handler.Serve(x)
}

// accept gives connections to the present server until the listener is closed. tlsConfig is nil for plain listeners.
func (f *front) accept(l net.Listener, tlsConfig *tls.Config) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		f.accepted.Add(1)
		go f.serve(nc, tlsConfig)
	}
}

// handshakeLimit is how long a client may take for its TLS handshake.
const handshakeLimit = 15 * time.Second

func (f *front) serve(nc net.Conn, tlsConfig *tls.Config) {
	if tlsConfig == nil {
		f.current.Load().ServeConn(nc, h1.ConnInfo{})
		return
	}
	tc := tls.Server(nc, tlsConfig)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeLimit)
	err := tc.HandshakeContext(ctx)
	cancel()
	if err != nil {
		f.log.Debug("TLS handshake failed", "peer", nc.RemoteAddr().String(), "error", err)
		nc.Close()
		return
	}
	state := tc.ConnectionState()
	f.current.Load().ServeConn(tc, h1.ConnInfo{Conn: exchange.Conn{TLS: &state, SNI: state.ServerName}})
}

func (f *front) counters() rest.Counters {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := rest.Counters{Accepted: f.accepted.Load(), Requests: f.requests.Load()}
	for _, s := range f.servers {
		c.Active += uint64(s.Conns())
	}
	return c
}

// shutdown ends all servers; when ctx ends, connections that are still open are cut.
func (f *front) shutdown(ctx context.Context) {
	f.mu.Lock()
	servers := append([]*h1.Server(nil), f.servers...)
	f.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { _ = s.Shutdown(ctx) }) // its error is that it had to cut
	}
	wg.Wait()
	if f.clock != nil {
		f.clock.Stop()
	}
}

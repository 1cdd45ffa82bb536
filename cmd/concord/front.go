package main

import (
	"context"
	"log/slog"
	"net"
	"slices"
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
		f.servers = slices.DeleteFunc(f.servers, func(s *h1.Server) bool { return s == old })
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

// ServeConn serves a connection with the present server.
func (f *front) ServeConn(nc net.Conn, info h1.ConnInfo) {
	f.accepted.Add(1)
	f.current.Load().ServeConn(nc, info)
}

// counters are for GET /status.
func (f *front) counters() rest.Counters {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := rest.Counters{Accepted: f.accepted.Load(), Requests: f.requests.Load()}
	for _, s := range f.servers {
		c.Active += uint64(s.Conns())
	}
	return c
}

// shutdown ends all servers. When ctx ends, connections that are still open are cut; one whose request hangs in an upstream
// ends with the process at the latest, so it is not waited for.
func (f *front) shutdown(ctx context.Context) {
	f.mu.Lock()
	servers := slices.Clone(f.servers)
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		var wg sync.WaitGroup
		for _, s := range servers {
			wg.Go(func() { _ = s.Shutdown(ctx) }) // its error is that it had to cut
		}
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(cutLimit):
		}
	}
	if f.clock != nil {
		f.clock.Stop()
	}
}

// cutLimit is how long cutting connections may take.
const cutLimit = 500 * time.Millisecond

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
	"concord/cmd/concord/settings"
	"concord/proxy"
	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/h2"
	"concord/proxy/h3"
)

// front is the proxy as clients meet it: it accepts connections and gives them to the present server. A reload makes a new
// server; connections that are open end on the old one, which drains meanwhile.
type front struct {
	log      *slog.Logger
	clock    *h1.Clock
	current  atomic.Pointer[engine]
	accepted atomic.Uint64
	requests atomic.Uint64
	altSvc   atomic.Pointer[map[uint16]string] // by port, see sockets.altSvc

	mu      sync.Mutex
	servers []*engine // those that still have connections
}

// engine serves all versions of HTTP with one handler.
type engine struct {
	h1   *h1.Server
	h2   *h2.Server
	h3   *h3.Server
	open atomic.Int64 // connections that are, or are about to be, with one of them
}

func (e *engine) conns() int { return e.h1.Conns() + e.h2.Conns() + e.h3.Conns() }

// shutdown drains all; the error of each is that it had to cut.
func (e *engine) shutdown(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.h1.Shutdown(ctx) })
	wg.Go(func() { _ = e.h2.Shutdown(ctx) })
	wg.Go(func() { _ = e.h3.Shutdown(ctx) })
	wg.Wait()
}

// retire ends an engine for which there is a successor: answers of HTTP/1.1 are the last on their connection, HTTP/2 and HTTP/3 are told to go
// away, and connections on which nothing is said are closed only after a while. When ctx ends, all are cut.
func (e *engine) retire(ctx context.Context) {
	e.h1.Drain()
	awaitDone(ctx, func() bool { return e.open.Load() == int64(e.conns()) })
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.h2.Shutdown(ctx) })
	wg.Go(func() { _ = e.h3.Shutdown(ctx) })
	wg.Go(func() {
		silent, cancel := context.WithTimeout(ctx, quiet)
		defer cancel()
		awaitDone(silent, func() bool { return e.h1.Conns() == 0 })
		_ = e.h1.Shutdown(ctx)
	})
	wg.Wait()
}

// use makes a server with this handler the one for new connections.
func (f *front) use(h *proxy.Handler, s *settings.Settings) {
	limits, requests := h1.Limits{HeadBytes: s.MaxHead, TargetBytes: s.MaxTarget}, uint64(s.KeepaliveRequests)
	handler := counted{h, f}
	next := &engine{
		h1: h1.New(h1.Options{
			Handler: handler, Refuse: h.Refuse, Limits: limits, HeaderTimeout: s.ClientHeaderTimeout, BodyTimeout: s.ClientBodyTimeout,
			WriteTimeout: s.SendTimeout, IdleTimeout: s.KeepaliveTimeout, MaxRequests: requests, Clock: f.clock, Log: f.log,
		}),
		h2: h2.New(h2.Options{
			Handler: handler, Refuse: h.Refuse, Limits: limits, HeaderTimeout: s.ClientHeaderTimeout, BodyTimeout: s.ClientBodyTimeout,
			WriteTimeout: s.SendTimeout, IdleTimeout: s.KeepaliveTimeout, MaxRequests: requests, Clock: f.clock, Log: f.log,
		}),
		h3: h3.New(h3.Options{
			Handler: handler, Refuse: h.Refuse, Limits: limits, BodyTimeout: s.ClientBodyTimeout,
			WriteTimeout: s.SendTimeout, IdleTimeout: s.KeepaliveTimeout, Clock: f.clock, Log: f.log,
		}),
	}
	f.mu.Lock()
	f.servers = append(f.servers, next)
	f.mu.Unlock()
	old := f.current.Swap(next)
	if old == nil {
		return
	}
	go func() {
		old.retire(context.Background()) // it returns when its last connection has ended
		f.mu.Lock()
		defer f.mu.Unlock()
		f.servers = slices.DeleteFunc(f.servers, func(s *engine) bool { return s == old })
	}()
}

// counted counts the requests of a handler, and tells who came over TLS where HTTP/3 is to be had.
type counted struct {
	exchange.Handler
	f *front
}

// Serve counts and serves.
func (c counted) Serve(x *exchange.Exchange) {
	c.f.requests.Add(1)
	c.Handler.Serve(x)
	if x.Conn.TLS == nil || x.Request.Major > 2 {
		return
	}
	if all := c.f.altSvc.Load(); all != nil {
		if v, ok := (*all)[x.Conn.Local.Port()]; ok && !x.Response.Header.Has("Alt-Svc") {
			x.Response.Header.Add("Alt-Svc", v)
		}
	}
}

// enter takes the present server for a connection. Its successor does not end it unawares.
func (f *front) enter() *engine {
	for {
		e := f.current.Load()
		e.open.Add(1)
		if e == f.current.Load() {
			return e
		}
		e.open.Add(-1)
	}
}

// ServeConn serves a connection with the present server.
func (f *front) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	f.accepted.Add(1)
	e, end := f.enter(), info.Ended
	info.Ended = func() {
		e.open.Add(-1)
		if end != nil {
			end()
		}
	}
	if info.TLS != nil {
		if info.TLS.NegotiatedProtocol == "h2" {
			e.h2.ServeConn(nc, info)
			return
		}
	} else if info.HTTP2 {
		if yes, _ := h2.Sniff(info.Initial); yes {
			e.h2.ServeConn(nc, info)
			return
		}
	}
	e.h1.ServeConn(nc, info)
}

// quicFront is the front as connections of HTTP/3 meet it.
type quicFront struct{ *front }

// ServeConn serves a connection with the present server.
func (f quicFront) ServeConn(c *h3.Conn) {
	f.accepted.Add(1)
	e := f.enter()
	defer e.open.Add(-1)
	e.h3.ServeConn(c)
}

// drain makes every further answer of HTTP/1.1 the last one on its connection.
func (f *front) drain() {
	for _, e := range f.engines() {
		e.h1.Drain()
	}
}

// retire retires all servers; there may be connections still that were accepted before.
func (f *front) retire(ctx context.Context) {
	var wg sync.WaitGroup
	for _, e := range f.engines() {
		wg.Go(func() { e.retire(ctx) })
	}
	wg.Wait()
}

func (f *front) engines() []*engine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.servers)
}

// counters are for GET /status.
func (f *front) counters() rest.Counters {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := rest.Counters{Accepted: f.accepted.Load(), Requests: f.requests.Load()}
	for _, s := range f.servers {
		c.Active += uint64(s.conns())
	}
	return c
}

// shutdown ends all servers. When ctx ends, connections that are still open are cut; one whose request hangs in an upstream
// ends with the process at the latest, so it is not waited for.
func (f *front) shutdown(ctx context.Context) {
	servers := f.engines()
	done := make(chan struct{})
	go func() {
		var wg sync.WaitGroup
		for _, s := range servers {
			wg.Go(func() { s.shutdown(ctx) })
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

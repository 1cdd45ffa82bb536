package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
)

// TestPoolSpreads: as many connections as the upstream's limit of streams asks for, and the same ones again later.
func TestPoolSpreads(t *testing.T) {
	gate := make(chan struct{})
	addr, conns := startUpstreamWith(t, &http2.Server{MaxConcurrentStreams: 2}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/wait" {
			w.(http.Flusher).Flush()
		}
		<-gate
	})
	c := newClient(t, addr)
	first := c.exchange(nil)
	if err := c.send(first); err != nil { // afterwards its settings are known. It goes on: Go's server counts a stream for a moment after its end
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			x := c.exchange(func(x *exchange.Exchange) { x.Upstream.Path = "/wait" })
			if err := c.send(x); err != nil {
				t.Error(err)
			}
			c.finish(x)
		})
	}
	waitFor(t, "too few connections", func() bool { return conns.Load() >= 5 })
	close(gate)
	wg.Wait()
	c.finish(first)
	if n := conns.Load(); n > 11 {
		t.Errorf("%d connections", n)
	}
}

// TestPoolMaxRequests: a connection serves so many requests and is then closed, with none of them disturbed.
func TestPoolMaxRequests(t *testing.T) {
	addr, conns := startUpstream(t, func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Millisecond) })
	c := newClient(t, addr)
	c.pool.o.MaxRequests = 3
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for range 6 {
				x := c.exchange(nil)
				if err := c.send(x); err != nil {
					t.Error(err)
				}
				c.finish(x)
			}
		})
	}
	wg.Wait()
	if n := conns.Load(); n < 10 {
		t.Errorf("30 requests over %d connections", n)
	}
	waitFor(t, "connections stay open", func() bool { n, _ := c.pool.Stats(); return n <= 1 })
}

// TestSignsOfLife: a connection that was silent is asked together with the next request, and open streams now and then; one that does not
// answer is given up, so that it is a timeout for who was on it and nothing for who comes next.
func TestSignsOfLife(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		dead          bool // the upstream goes on reading, but says nothing more
		after, stream time.Duration
		pings         bool
	}{
		{"with a request", false, 20 * time.Millisecond, time.Hour, true},
		{"with a request, dead", true, 20 * time.Millisecond, time.Hour, true},
		{"open stream", false, time.Hour, 20 * time.Millisecond, true},
		{"open stream, dead", true, time.Hour, 20 * time.Millisecond, true},
		{"not asked", false, time.Hour, time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			var pings atomic.Int64
			addr, conns := rawUpstream(t, func(c *rawClient) {
				var waiting uint32 // the stream that is answered when a ping was seen
				for n := 0; ; {
					f, err := c.next()
					if err != nil {
						return
					}
					switch f.(type) {
					case *http2.PingFrame:
						if pings.Add(1); waiting > 0 {
							c.headers(waiting, true, ":status", "200")
							waiting = 0
						}
					case *http2.MetaHeadersFrame:
						switch n++; {
						case n == 1:
							c.headers(f.Header().StreamID, true, ":status", "200")
							c.mute = tt.dead
						case !tt.dead && tt.pings && pings.Load() == 0:
							waiting = f.Header().StreamID
						case !tt.dead: // slow, but alive
							time.Sleep(300 * time.Millisecond)
							c.headers(f.Header().StreamID, true, ":status", "200")
						}
					}
				}
			})
			c := newClient(t, addr)
			c.pool.Close()
			o := PoolOptions{IdleTimeout: time.Minute, PingAfter: tt.after, StreamSilence: tt.stream, PongTime: time.Minute}
			if tt.dead {
				o.PongTime = 2 * time.Second
			}
			c.pool = NewPool(o)
			defer c.pool.Close()
			do := func() error {
				x := c.exchange(nil)
				err := c.send(x)
				if err == nil {
					c.finish(x)
				}
				return err
			}
			if err := do(); err != nil {
				t.Fatal(err)
			}
			silent := c.pool.keep.now() + 20
			waitFor(t, "the clock stands still", func() bool { return c.pool.keep.now() > silent })
			if err := do(); errors.Is(err, os.ErrDeadlineExceeded) != tt.dead || !tt.dead && err != nil {
				t.Errorf("got %v", err)
			}
			if tt.pings {
				waitFor(t, "no ping", func() bool { return pings.Load() > 0 })
			} else if n := pings.Load(); n > 0 {
				t.Errorf("%d pings", n)
			}
			want := int64(1)
			if tt.dead {
				want = 2
			}
			if err := do(); err != nil || conns.Load() != want {
				t.Errorf("afterwards: %v, %d connections", err, conns.Load())
			}
		})
	}
}

// TestSlowReaderStopsNobody: an exchange whose client does not read leaves the connection to the others.
func TestSlowReaderStopsNobody(t *testing.T) {
	addr, conns := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			for range 100 {
				if _, err := w.Write(make([]byte, 100000)); err != nil {
					return
				}
			}
		}
		fmt.Fprint(w, "ok")
	})
	c := newClient(t, addr)
	var slow []*exchange.Exchange
	for range 50 {
		x := c.exchange(func(x *exchange.Exchange) { x.Upstream.Path = "/large" })
		if err := c.send(x); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, x)
	}
	for range 20 {
		x := c.exchange(nil)
		if err := c.send(x); err != nil {
			t.Fatal(err)
		}
		if body, err := c.finish(x); body != "ok" || err != nil {
			t.Fatal(body, err)
		}
	}
	for _, x := range slow {
		c.pool.Release(x)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestPoolIdleAndClose(t *testing.T) {
	addr, conns := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {})
	p := NewPool(PoolOptions{IdleTimeout: 100 * time.Millisecond})
	c := &client{t: t, pool: p, addr: addr}
	for i := range int64(2) {
		x := c.exchange(nil)
		if err := c.send(x); err != nil {
			t.Fatal(err)
		}
		c.finish(x)
		waitFor(t, "the idle connection stays", func() bool { return p.keep.count() == 0 })
		waitFor(t, "its place stays", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.places) == 0
		})
		if n := conns.Load(); n != i+1 {
			t.Errorf("%d connections", n)
		}
	}
	failed := errors.New("no way")
	err := p.RoundTrip(c.exchange(nil), Key{}, func() (net.Conn, error) { return nil, failed })
	if !errors.Is(err, failed) {
		t.Error(err)
	}
	p.Close()
	if err := c.send(c.exchange(nil)); !errors.Is(err, errPoolClosed) {
		t.Error(err)
	}
}

// gateway passes everything on through a pool.
type gateway struct {
	pool *Pool
	addr string
}

func (g *gateway) Serve(x *exchange.Exchange) {
	x.Upstream = exchange.Upstream{Scheme: "http", Path: x.Request.Path, HostHeader: "up.test", ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	err := g.pool.RoundTrip(x, Key{Addr: netip.MustParseAddrPort(g.addr)}, func() (net.Conn, error) { return net.Dial("tcp", g.addr) })
	if err != nil {
		x.Err, x.Response.Status = err, 502
	}
}

func (g *gateway) Finish(x *exchange.Exchange) { g.pool.Release(x) }

// TestThrough sends many exchanges of many kinds at once through front and pool, with Go's client and server at the ends.
func TestThrough(t *testing.T) {
	addr, _ := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Count")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		n, err := io.Copy(w, r.Body)
		if err != nil {
			return
		}
		w.Header().Set("X-Count", fmt.Sprint(n, r.Trailer.Get("X-Sum")))
	})
	p := NewPool(PoolOptions{})
	defer p.Close()
	_, front := startServer(t, Options{Handler: &gateway{p, addr}})
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: nil}
	nc, err := net.Dial("tcp", front)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := tr.NewClientConn(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			body := bytes.Repeat([]byte{byte('a' + i%26)}, i*i*100)
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://a.test/x", io.MultiReader(bytes.NewReader(body))) // no length
			req.Trailer = http.Header{"X-Sum": {"s"}}
			res, err := cc.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if i%7 == 3 { // gives up in the middle
				io.CopyN(io.Discard, res.Body, int64(len(body)/2))
				return
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(got, body) || res.Trailer.Get("X-Count") != fmt.Sprint(len(body), "s") {
				t.Errorf("%d: %d of %d bytes, %v, %v", i, len(got), len(body), err, res.Trailer)
			}
		})
	}
	wg.Wait()
}

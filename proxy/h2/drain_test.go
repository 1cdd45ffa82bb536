package h2

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
)

// TestDrain: at Shutdown, streams that run or are on their way are served, later ones are not.
func TestDrain(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	h := &handlerFunc{serve: func(x *exchange.Exchange) { <-stop; x.Response.Status = 204 }}
	s, addr := startServer(t, Options{Handler: h})
	idle := dialRaw(t, addr).hello()
	c := dialRaw(t, addr).hello()
	c.headers(1, true, getFields...)
	waitFor(t, "the handler does not run", func() bool { n, _ := h.counts(); return n == 1 && s.Conns() == 2 })
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	first := (*http2.GoAwayFrame)(nil)
	for first == nil {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			first = g
		}
	}
	if first.LastStreamID != 1<<31-1 || first.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", first)
	}
	c.headers(3, true, getFields...) // crossed with GOAWAY
	var ping *http2.PingFrame
	for ping == nil {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		ping, _ = f.(*http2.PingFrame)
	}
	c.do(c.fr.WritePing(true, ping.Data))
	second := c.awaitGoAway()
	if second == nil || second.LastStreamID != 3 {
		t.Fatalf("%v", second)
	}
	c.headers(5, true, getFields...)
	close(stop)
	if a := c.await(3); a.status != "204" {
		t.Errorf("%+v", a)
	}
	if a := c.await(5); a.status != "" || !a.closed {
		t.Errorf("%+v", a)
	}
	if a := idle.await(1); a.goaway == nil || !a.closed {
		t.Errorf("idle: %+v", a)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, _ := h.counts(); n != 2 {
		t.Errorf("%d requests were served", n)
	}
}

func (c *rawClient) awaitGoAway() *http2.GoAwayFrame {
	for {
		f, err := c.next()
		if err != nil {
			return nil
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			h := *g
			return &h
		}
	}
}

// TestShutdownCuts: what does not end by itself is cut when the time is over.
func TestShutdownCuts(t *testing.T) {
	h := &handlerFunc{serve: func(x *exchange.Exchange) {
		gone := make(chan struct{})
		x.OnGone(func() { close(gone) })
		<-gone
		x.OnGone(nil)
	}}
	s, addr := startServer(t, Options{Handler: h})
	c := dialRaw(t, addr).hello()
	c.headers(1, true, getFields...)
	waitFor(t, "the handler does not run", func() bool { n, _ := h.counts(); return n == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	waitFor(t, "the handler hangs", func() bool { _, n := h.counts(); return n == 1 && s.Conns() == 0 })
}

func TestMaxRequests(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}, MaxRequests: 3})
	c := dialRaw(t, addr).hello()
	for id := uint32(1); id < 7; id += 2 {
		c.headers(id, true, getFields...)
		if a := c.await(id); a.status != "200" {
			t.Fatalf("%+v", a)
		}
	}
	if a := c.await(7); !a.closed {
		t.Errorf("%+v", a)
	}
}

// TestWaitingHoldsNoBuffers: a connection whose request waits to be answered holds nothing to read with, or to write with, whatever was sent
// before; nor does one without a request.
func TestWaitingHoldsNoBuffers(t *testing.T) {
	const conns = 200
	large := bytes.Repeat([]byte("x"), 1<<20)
	fields := func(path string) []string { return append(slices.Clone(getFields[:6]), ":path", path) }
	tests := []struct {
		name               string
		begun              string // of a frame
		waits, posts, gets bool
	}{{name: "no request"}, {name: "a part of a frame", begun: "\x00\x00\x08\x06\x00\x00\x00\x00\x00ping"}, {name: "waiting", waits: true}, {name: "waiting with a body", waits: true, posts: true}, {name: "waiting after much", waits: true, gets: true}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answer := make(chan struct{})
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				x.Response.Status = 200
				if x.Request.Path == "/large" {
					x.Response.SetBody(large)
				} else {
					<-answer
				}
			}}
			s, addr := startServer(t, Options{Handler: h})
			before := heap()
			clients := make([]*rawClient, conns)
			for i := range clients {
				c := dialRaw(t, addr).hello()
				for range 3 { // settings, a window, and the acknowledgement
					if _, err := c.next(); err != nil {
						t.Fatal(err)
					}
				}
				if tt.waits {
					c.headers(1, !tt.posts, fields("/wait")...)
				}
				if tt.posts {
					c.data(1, true, "body")
				}
				c.write([]byte(tt.begun))
				if tt.gets {
					c.headers(3, true, fields("/large")...)
					if a := c.await(3); len(a.body) != len(large) {
						t.Fatal("not all has come")
					}
					c.fr = http2.NewFramer(c.nc, c.nc) // the client's memory is not looked at
					c.fr.ReadMetaHeaders = newDecoder()
				}
				clients[i] = c
			}
			waitFor(t, "requests are missing", func() bool {
				n, _ := h.counts()
				return s.Conns() == conns && (!tt.waits || n >= conns)
			})
			if each := (heap() - before) / conns; each > 16<<10 { // with both ends, one of which is the test's
				t.Errorf("a connection holds %d bytes", each)
			}
			close(answer)
			for _, c := range clients {
				if tt.waits && c.await(1).status != "200" {
					t.Fatal("no answer")
				}
			}
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools forget at the second one
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

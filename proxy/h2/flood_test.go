package h2

import (
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// TestFloods is D3: frames that serve nothing end with ENHANCE_YOUR_CALM, long before they could cost much.
func TestFloods(t *testing.T) {
	t.Parallel()
	const enough = 300000                                                      // frames; the server stops listening much earlier
	uncompressed := appendIndexed(nil, staticDate, strings.Repeat("y", 10000)) // a piece of a header block
	tests := []struct {
		name  string
		start func(c *rawClient)
		flood func(c *rawClient, i uint32) error
	}{
		{name: "rapid reset", flood: func(c *rawClient, i uint32) error {
			if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: c.block(getFields...), EndHeaders: true, EndStream: true}); err != nil {
				return err
			}
			return c.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		{name: "streams that are refused", flood: func(c *rawClient, i uint32) error {
			return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: c.block(append(getFields, "x-hang", "1")...), EndHeaders: true})
		}},
		{name: "malformed requests", flood: func(c *rawClient, i uint32) error {
			return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: c.block("a", "b"), EndHeaders: true, EndStream: true})
		}},
		{name: "continuation", start: func(c *rawClient) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
		}, flood: func(c *rawClient, i uint32) error {
			return c.fr.WriteContinuation(1, false, c.block("x", strings.Repeat("y", 1000)))
		}},
		{name: "large continuation", start: func(c *rawClient) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
		}, flood: func(c *rawClient, i uint32) error {
			return c.fr.WriteContinuation(1, false, uncompressed)
		}},
		{name: "large blocks", flood: func(c *rawClient, i uint32) error {
			if i%16 == 0 {
				return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: i/8 + 1, BlockFragment: c.block(getFields...), EndStream: true})
			}
			return c.fr.WriteContinuation(i/16*2+1, i%16 == 15, uncompressed)
		}},
		{name: "empty continuation", start: func(c *rawClient) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
		}, flood: func(c *rawClient, i uint32) error { return c.fr.WriteContinuation(1, false, nil) }},
		{name: "settings", flood: func(c *rawClient, i uint32) error {
			return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 100000})
		}},
		{name: "settings acknowledgements", flood: func(c *rawClient, i uint32) error { return c.fr.WriteSettingsAck() }},
		{name: "ping", flood: func(c *rawClient, i uint32) error { return c.fr.WritePing(false, [8]byte{1}) }},
		{name: "ping acknowledgements", flood: func(c *rawClient, i uint32) error { return c.fr.WritePing(true, [8]byte{1}) }},
		{name: "priority", flood: func(c *rawClient, i uint32) error {
			return c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		}},
		{name: "window updates", flood: func(c *rawClient, i uint32) error { return c.fr.WriteWindowUpdate(0, 1) }},
		{name: "unknown frames", flood: func(c *rawClient, i uint32) error { return c.fr.WriteRawFrame(0x42, 0, 0, nil) }},
		{name: "goaway", flood: func(c *rawClient, i uint32) error { return c.fr.WriteGoAway(0, 0, nil) }},
		{name: "resets of a closed stream", start: func(c *rawClient) { c.headers(1, true, getFields...) },
			flood: func(c *rawClient, i uint32) error { return c.fr.WriteRSTStream(1, 0) }},
		{name: "late resets of a stream that still runs", start: func(c *rawClient) {
			c.headers(1, true, append(getFields, "x-deaf", "1")...)
			time.Sleep((young + 100) * time.Millisecond)
		}, flood: func(c *rawClient, i uint32) error { return c.fr.WriteRSTStream(1, 0) }},
		{name: "empty data", start: func(c *rawClient) { c.headers(1, false, append(postFields, "x-hang", "1")...) },
			flood: func(c *rawClient, i uint32) error { return c.fr.WriteData(1, false, nil) }},
		{name: "padding", start: func(c *rawClient) { c.headers(1, false, append(postFields, "x-hang", "1")...) },
			flood: func(c *rawClient, i uint32) error {
				if i > 200 {
					time.Sleep(10 * time.Microsecond) // the window comes back
				}
				return c.fr.WriteDataPadded(1, false, nil, make([]byte, 100))
			}},
		{name: "windows of one byte", start: func(c *rawClient) {
			c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			c.headers(1, true, append(getFields, "x-big", "1")...)
		}, flood: func(c *rawClient, i uint32) error { return c.fr.WriteWindowUpdate(1, 1) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			over := make(chan struct{})
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				if x.Request.Header.Has("x-hang") {
					gone := make(chan struct{})
					x.OnGone(func() { close(gone) })
					<-gone
					x.OnGone(nil)
				}
				if x.Request.Header.Has("x-deaf") {
					<-over
				}
				x.Response.Status = 200
				if x.Request.Header.Has("x-big") {
					x.Response.SetBody(make([]byte, 1<<20))
				}
			}}
			s, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			if tt.start != nil {
				tt.start(c)
			}
			sent := make(chan int, 1)
			go func() {
				for i := uint32(0); i < enough; i++ {
					if err := tt.flood(c, i); err != nil {
						sent <- int(i)
						return
					}
				}
				sent <- enough
			}()
			a := c.drainAll()
			close(over)
			if a != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("ended with %v", a)
			}
			if n := <-sent; n == enough {
				t.Error("the server listened to all of it")
			}
			waitFor(t, "something stays behind", func() bool {
				served, finished := h.counts()
				return s.Conns() == 0 && served == finished
			})
			if n, _ := h.counts(); n > 3*calmBurst {
				t.Errorf("%d handlers ran", n)
			}
		})
	}
}

// TestUpstreamFloods: an upstream is not trusted more than a client.
func TestUpstreamFloods(t *testing.T) {
	t.Parallel()
	const enough = 300000
	begin := func(c *rawClient, id uint32) { c.headers(id, false, ":status", "200") }
	for _, tt := range []struct {
		name  string
		start func(c *rawClient, id uint32)
		flood func(c *rawClient, id, i uint32) error
		want  string
	}{
		{name: "settings", flood: func(c *rawClient, _, i uint32) error {
			return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 100000})
		}},
		{name: "settings acknowledgements", flood: func(c *rawClient, _, _ uint32) error { return c.fr.WriteSettingsAck() }},
		{name: "ping", flood: func(c *rawClient, _, _ uint32) error { return c.fr.WritePing(false, [8]byte{1}) }},
		{name: "ping acknowledgements", flood: func(c *rawClient, _, _ uint32) error { return c.fr.WritePing(true, pingData) }},
		{name: "window updates", flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteWindowUpdate(id, 1) }},
		{name: "unknown frames", flood: func(c *rawClient, _, _ uint32) error { return c.fr.WriteRawFrame(0x42, 0, 0, nil) }},
		{name: "priority", flood: func(c *rawClient, id, _ uint32) error {
			return c.fr.WritePriority(id, http2.PriorityParam{StreamDep: 33})
		}},
		{name: "goaway", flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteGoAway(id, 0, nil) }},
		{name: "empty continuation", start: func(c *rawClient, id uint32) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(":status", "200")}))
		}, flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteContinuation(id, false, nil) }},
		{name: "large continuation", start: func(c *rawClient, id uint32) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(":status", "200")}))
		}, flood: func(c *rawClient, id, _ uint32) error {
			return c.fr.WriteContinuation(id, false, appendIndexed(nil, staticDate, strings.Repeat("y", 10000)))
		}, want: "header block is much too large"},
		{name: "push", flood: func(c *rawClient, id, i uint32) error {
			return c.fr.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2*i + 2, BlockFragment: c.block(getFields...), EndHeaders: true})
		}, want: "PUSH_PROMISE was not allowed"},
		{name: "empty data", start: begin, flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteData(id, false, nil) }},
		{name: "resets", start: begin, flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteRSTStream(id, http2.ErrCodeCancel) }, want: "CANCEL"},
		{name: "late resets", start: func(c *rawClient, id uint32) { begin(c, id); time.Sleep((young + 100) * time.Millisecond) },
			flood: func(c *rawClient, id, _ uint32) error { return c.fr.WriteRSTStream(id, http2.ErrCodeCancel) }, want: "CANCEL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sent := make(chan int, 1)
			addr, _ := rawUpstream(t, func(c *rawClient) {
				id := c.request()
				go io.Copy(io.Discard, c.nc) // so that the flood alone decides
				if tt.start != nil {
					tt.start(c, id)
				}
				i := uint32(0)
				for ; i < enough && tt.flood(c, id, i) == nil; i++ {
				}
				sent <- int(i)
			})
			c := newClient(t, addr)
			x := c.exchange(nil)
			err := c.send(x)
			if n := <-sent; n == enough {
				t.Error("all of it was listened to")
			}
			if err == nil {
				_, err = c.finish(x)
			}
			if want := cmp.Or(tt.want, "too many frames that serve nothing"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
			waitFor(t, "something stays behind", func() bool { conns, streams := c.pool.Stats(); return conns+streams == 0 })
		})
	}
}

// drainAll reads, answering nothing, until the connection is over, and returns the last code.
func (c *rawClient) drainAll() http2.ErrCode {
	code := http2.ErrCode(0xffff)
	for {
		c.nc.SetReadDeadline(time.Now().Add(c.idle))
		f, err := c.fr.ReadFrame()
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code = g.ErrCode
		}
		if err != nil {
			var se http2.StreamError
			if errors.As(err, &se) {
				continue
			}
			c.nc.Close()
			return code
		}
	}
}

// TestHonestWork: what honest clients do is not taken for a flood.
func TestHonestWork(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		if x.Request.Method == "POST" {
			x.Response.SetBody(make([]byte, 20<<20))
		} else {
			x.Response.SetBody(make([]byte, 40000))
		}
	}}})
	t.Run("many answers", func(t *testing.T) {
		c := dialRaw(t, addr).hello()
		for i := range uint32(3000) {
			// Two window updates for each of three frames and a ping for each answer, as gRPC's bandwidth estimate does.
			c.do(c.fr.WritePing(false, [8]byte{1}))
			c.headers(2*i+1, true, getFields...)
			if a := c.await(2*i + 1); len(a.body) != 40000 {
				t.Fatalf("request %d: %+v", i, a)
			}
		}
	})
	t.Run("window in pieces", func(t *testing.T) {
		c := dialRaw(t, addr).hello()
		c.mute = true
		c.headers(1, true, postFields...)
		for got := 0; got < 20<<20; {
			f, err := c.next()
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			d, ok := f.(*http2.DataFrame)
			if !ok {
				continue
			}
			n := len(d.Data())
			for got += n; n > 0 && !d.StreamEnded(); n -= 2048 {
				c.do(c.fr.WriteWindowUpdate(0, uint32(max(1024, min(n, 2048)))))
				c.do(c.fr.WriteWindowUpdate(1, uint32(max(1024, min(n, 2048)))))
			}
		}
	})
}

// TestHeaderBomb: a small block that stands for very many large fields is answered with 431 and costs no memory.
func TestHeaderBomb(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr).hello()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for id := uint32(1); id < 41; id += 2 {
		block := c.block(append(getFields, "bomb", strings.Repeat("b", 3900))...) // now in the dynamic table
		block = append(block, strings.Repeat("\xbe", 12000)...)                   // index 62, again and again
		c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}))
		if a := c.await(id); a.status != "431" {
			t.Fatalf("%+v", a)
		}
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 20 {
		t.Errorf("%d MB were allocated for 20 blocks of 47 MB", n)
	}
	if !c.alive(41) {
		t.Error("the connection ended")
	}
}

// TestLargeBlocksAtOnce: header blocks above the limit are read to their end, to be refused, on some connections at a time only. What they held is given
// back when the block or the connection ends.
func TestLargeBlocksAtOnce(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	pieces := func(c *rawClient, n int, end bool) {
		block := c.block(append(getFields, "x", strings.Repeat("~", 16_000))...)
		c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true}))
		for i := range n {
			c.do(c.fr.WriteContinuation(1, end && i == n-1, c.block("x", strings.Repeat("~", 16_000))))
		}
	}
	var held []*rawClient
	for range 64 {
		c := dialRaw(t, addr).hello()
		pieces(c, 6, false)
		held = append(held, c)
	}
	refused := func(want bool) {
		t.Helper()
		for i := 0; ; i++ {
			c := dialRaw(t, addr).hello()
			pieces(c, 6, true)
			a := c.await(1)
			if got := a.status != "431"; got == want {
				return
			}
			if i > 400 {
				t.Fatalf("refused: %v, want %v: %+v", !want, want, a)
			}
			time.Sleep(5 * time.Millisecond) // the node reads what was sent to it
		}
	}
	refused(true)
	_ = held[0].nc.Close()
	held[1].do(held[1].fr.WriteContinuation(1, true, nil))
	if a := held[1].await(1); a.status != "431" {
		t.Errorf("%+v", a)
	}
	refused(false)
	refused(false)
}

// TestTimeouts: nothing is waited for without end. D2 among them.
func TestTimeouts(t *testing.T) {
	const short, long = 100 * time.Millisecond, time.Hour
	hang := func(x *exchange.Exchange) {
		if x.Request.Body == nil {
			x.Response.Status = 200
			x.Response.SetBody(make([]byte, 1<<20))
			return
		}
		if _, err := readBody(x.Request.Body); errors.Is(err, errBodyTime) {
			x.Response.Status = 408
		}
	}
	tests := []struct {
		name  string
		o     Options
		do    func(c *rawClient)
		check func(t *testing.T, a *answer)
	}{
		{name: "D2 nothing", o: Options{HeaderTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {}, check: closedWith(http2.ErrCodeSettingsTimeout)},
		{name: "half a preface", o: Options{HeaderTimeout: short, IdleTimeout: long}, do: func(c *rawClient) { c.write([]byte(Preface[:20])) },
			check: closedWith(http2.ErrCodeSettingsTimeout)},
		{name: "preface only", o: Options{HeaderTimeout: short, IdleTimeout: long}, do: func(c *rawClient) { c.write([]byte(Preface)) },
			check: closedWith(http2.ErrCodeSettingsTimeout)},
		{name: "half a frame", o: Options{HeaderTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {
			c.hello()
			c.write([]byte{0, 0, 10, 1})
		}, check: closedWith(http2.ErrCodeEnhanceYourCalm)},
		{name: "half a block, kept alive", o: Options{HeaderTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {
			c.hello()
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
			go func() {
				for c.fr.WriteContinuation(1, false, []byte{0, 1, 'x', 1, 'y'}) == nil {
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}, check: closedWith(http2.ErrCodeEnhanceYourCalm)},
		{name: "idle", o: Options{IdleTimeout: short}, do: func(c *rawClient) { c.hello() }, check: closedWith(http2.ErrCodeNo)},
		{name: "idle, pinging", o: Options{IdleTimeout: short}, do: func(c *rawClient) {
			c.hello()
			go func() {
				for c.fr.WritePing(false, [8]byte{}) == nil {
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}, check: closedWith(http2.ErrCodeNo)},
		{name: "body", o: Options{BodyTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {
			c.hello()
			c.headers(1, false, postFields...)
			c.data(1, false, "begun")
		}, check: func(t *testing.T, a *answer) {
			if a.status != "408" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "window stays 0", o: Options{WriteTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {
			c.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			c.headers(1, true, getFields...)
		}, check: func(t *testing.T, a *answer) {
			if !a.wasReset || a.reset != http2.ErrCodeCancel {
				t.Errorf("%+v", a)
			}
		}},
		{name: "window trickles", o: Options{WriteTimeout: short, IdleTimeout: long}, do: func(c *rawClient) {
			c.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			c.headers(1, true, getFields...)
			go func() {
				for c.fr.WriteWindowUpdate(1, 300) == nil {
					time.Sleep(10 * time.Millisecond)
				}
			}()
		}, check: func(t *testing.T, a *answer) {
			if !a.wasReset || a.reset != http2.ErrCodeCancel {
				t.Errorf("%+v", a)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &handlerFunc{serve: hang}
				tt.o.Handler = h
				s := New(tt.o)
				nc, other := net.Pipe()
				go s.ServeConn(other, &h1.ConnInfo{})
				c := newRaw(t, nc)
				c.mute = true
				go tt.do(c)
				tt.check(t, c.await(1))
				nc.Close()
				time.Sleep(time.Second) // who writes again and again notices
				synctest.Wait()
				if n, m := h.counts(); n != m {
					t.Errorf("of %d handlers %d ended", n, m)
				}
				if err := s.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func closedWith(code http2.ErrCode) func(t *testing.T, a *answer) {
	return func(t *testing.T, a *answer) {
		if a.goaway == nil || a.goaway.ErrCode != code {
			t.Errorf("%+v", a)
		}
	}
}

// TestSocketStall: a client that reads nothing at all is cut when the kernel takes no more.
func TestSocketStall(t *testing.T) {
	h := &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		x.Response.SetBody(make([]byte, 64<<20))
	}}
	s, addr := startServer(t, Options{Handler: h, WriteTimeout: 200 * time.Millisecond})
	c := dialRaw(t, addr)
	c.nc.(*net.TCPConn).SetReadBuffer(4096)
	c.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	c.do(c.fr.WriteWindowUpdate(0, 1<<31-1-65535))
	c.headers(1, true, getFields...)
	waitFor(t, "the connection lives on", func() bool {
		n, m := h.counts()
		return n == 1 && m == 1 && s.Conns() == 0
	})
}

// TestStalledTLSIsReset: what a client of TLS did not take is forgotten, however many connections lie above the socket.
func TestStalledTLSIsReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	discardQueued(tls.Server(h1.NewTLSSocket(nc, nil), nil))
	nc.Close()
	_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ends with %v", err)
	}
}

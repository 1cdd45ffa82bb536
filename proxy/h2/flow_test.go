package h2

import (
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
)

// piecesBody yields its pieces as they come, then its trailers' owner ends it.
type piecesBody struct {
	pieces <-chan string
	closed chan struct{}
	err    error
}

func (b *piecesBody) Next() ([]byte, error) {
	select {
	case p, ok := <-b.pieces:
		if !ok {
			if b.err != nil {
				return nil, b.err
			}
			return nil, io.EOF
		}
		return []byte(p), nil
	case <-b.closed:
		return nil, errors.New("closed")
	}
}

func (b *piecesBody) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestResponses(t *testing.T) {
	tests := []struct {
		name   string
		method string
		fill   func(r *exchange.Response)
		check  func(t *testing.T, a *answer)
	}{
		{name: "no content", fill: func(r *exchange.Response) { r.Status = 204 }, check: func(t *testing.T, a *answer) {
			if a.status != "204" || a.header["content-length"] != "" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "empty", fill: func(r *exchange.Response) { r.Status = 404 }, check: func(t *testing.T, a *answer) {
			if a.status != "404" || a.header["content-length"] != "0" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "rare status", fill: func(r *exchange.Response) { r.Status = 799 }, check: func(t *testing.T, a *answer) {
			if a.status != "799" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "no status", fill: func(r *exchange.Response) {}, check: func(t *testing.T, a *answer) {
			if a.status != "500" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "HEAD", method: "HEAD", fill: func(r *exchange.Response) {
			r.Status = 200
			r.SetBody([]byte("not sent"))
		}, check: func(t *testing.T, a *answer) {
			if a.body != "" || a.header["content-length"] != "8" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "HEAD with a length", method: "HEAD", fill: func(r *exchange.Response) {
			r.Status = 200
			r.Header.Add("Content-Length", "77")
		}, check: func(t *testing.T, a *answer) {
			if a.body != "" || a.header["content-length"] != "77" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "fields of the connection", fill: func(r *exchange.Response) {
			r.Status = 200
			for _, n := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "TE", "Trailer", "Content-Length"} {
				r.Header.Add(n, "7")
			}
			r.Header.Add("X-Kept", "  yes\t")
			r.Header.Add("Date", "then")
			r.SetBody([]byte("ok"))
		}, check: func(t *testing.T, a *answer) {
			if len(a.header) != 3 || a.header["x-kept"] != "yes" || a.header["date"] != "then" || a.header["content-length"] != "2" {
				t.Errorf("%v", a.header)
			}
		}},
		{name: "forged value", fill: func(r *exchange.Response) {
			r.Status = 200
			r.Header.Fields = append(r.Header.Fields, exchange.Field{Name: "x", Value: "a\r\nset-cookie: b"})
			r.SetBody([]byte("secret"))
		}, check: func(t *testing.T, a *answer) {
			if a.status != "500" || a.body != "" || a.header["x"] != "" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "forged name", fill: func(r *exchange.Response) {
			r.Status = 200
			r.Header.Fields = append(r.Header.Fields, exchange.Field{Name: "x: y", Value: "a"})
		}, check: func(t *testing.T, a *answer) {
			if a.status != "500" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "trailers", fill: func(r *exchange.Response) {
			r.Status = 200
			r.SetBody([]byte("body"))
			r.Trailer.Add("Grpc-Status", "0")
			r.Trailer.Add("Content-Length", "9")
		}, check: func(t *testing.T, a *answer) {
			if a.body != "body" || len(a.trailer) != 1 || a.trailer["grpc-status"] != "0" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "trailers without body", fill: func(r *exchange.Response) {
			r.Status = 200
			r.Trailer.Add("Grpc-Status", "0")
		}, check: func(t *testing.T, a *answer) {
			if a.trailer["grpc-status"] != "0" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "short body", fill: func(r *exchange.Response) {
			r.Status = 200
			p := make(chan string, 1)
			p <- "abc"
			close(p)
			r.Body, r.Length = &piecesBody{pieces: p, closed: make(chan struct{})}, 5
		}, check: func(t *testing.T, a *answer) {
			if !a.wasReset || a.reset != http2.ErrCodeInternal {
				t.Errorf("%+v", a)
			}
		}},
		{name: "broken body", fill: func(r *exchange.Response) {
			r.Status = 200
			p := make(chan string, 1)
			p <- "abc"
			close(p)
			r.Body, r.Length = &piecesBody{pieces: p, closed: make(chan struct{}), err: errors.New("cut")}, -1
		}, check: func(t *testing.T, a *answer) {
			if !a.wasReset || a.reset != http2.ErrCodeInternal || a.body != "abc" {
				t.Errorf("%+v", a)
			}
		}},
		{name: "many large headers", fill: func(r *exchange.Response) {
			r.Status = 200
			for range 10 {
				r.Header.Add("X-Large", strings.Repeat("v", 4000))
			}
			r.SetBody([]byte("ok"))
		}, check: func(t *testing.T, a *answer) {
			if a.body != "ok" || len(a.header["x-large"]) != 4000 {
				t.Errorf("%+v", a)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
				if x.Request.Path == "/probe" {
					tt.fill(&x.Response)
					return
				}
				echo(x)
			}}})
			c := dialRaw(t, addr).hello()
			method := tt.method
			if method == "" {
				method = "GET"
			}
			c.headers(1, true, ":method", method, ":scheme", "http", ":authority", "a", ":path", "/probe")
			a := c.await(1)
			if !a.end && !a.wasReset {
				t.Errorf("not over: %+v", a)
			}
			tt.check(t, a)
			if !c.alive(3) {
				t.Error("the connection ended")
			}
		})
	}
}

// TestPanic: a handler that panics costs its stream only.
func TestPanic(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		if x.Request.Method == "POST" {
			panic("test")
		}
		echo(x)
	}}})
	c := dialRaw(t, addr).hello()
	c.headers(1, true, postFields...)
	if a := c.await(1); !a.wasReset || a.reset != http2.ErrCodeInternal {
		t.Errorf("%+v", a)
	}
	if !c.alive(3) {
		t.Error("the connection ended")
	}
}

func TestContinueAndInformational(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		var hints exchange.Header
		hints.Add("Link", "</a>; rel=preload")
		if err := x.Informational(103, &hints); err != nil {
			t.Error(err)
		}
		echo(x)
	}}})
	c := dialRaw(t, addr).hello()
	c.headers(1, false, append(postFields, "expect", "100-continue")...)
	for seen := ""; seen != "100"; {
		f, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			if seen == "" && h.PseudoValue("status") != "103" {
				t.Errorf("got %v first", h)
			}
			seen = h.PseudoValue("status")
		}
	}
	c.data(1, true, "now")
	if a := c.await(1); a.status != "200" || !strings.HasSuffix(a.body, "\n\nnow") || strings.Contains(a.body, "expect") {
		t.Errorf("%+v", a)
	}
	// A client that does not wait gets no 100.
	b := appendHeaders(nil, 3, c.block(append(postFields, "expect", "100-continue")...), false, maxFrame)
	c.write(appendData(b, 3, []byte("at once"), true))
	if a := c.await(3); a.status != "200" || len(a.infos) > 1 {
		t.Errorf("%+v", a)
	}
}

func TestRequestTrailers(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr).hello()
	c.headers(1, false, postFields...)
	c.data(1, false, "body")
	c.headers(1, true, "x-sum", "1", "content-length", "9", "x-consumer-id", "forged")
	if a := c.await(1); !strings.HasSuffix(a.body, "\n\nbody\nx-sum: 1") {
		t.Errorf("%+v", a)
	}
}

// TestShortBodyIsInMemory: what has come with the head can be sent upstream in one piece, and again.
func TestShortBodyIsInMemory(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		if !x.Request.InMemory() || x.Request.Length != 5 || !x.Request.Rewind() {
			x.Response.Status = 500
		}
	}}})
	var a any
	for range 20 { // what is written at once may still be read in two pieces, now and then
		c := dialRaw(t, addr)
		var b []byte
		b = append(b, Preface...)
		b = appendSettings(b)
		b = appendHeaders(b, 1, c.block(postFields...), false, maxFrame)
		b = appendData(b, 1, []byte("hel"), false)
		b = appendData(b, 1, []byte("lo"), true)
		c.write(b)
		got := c.await(1)
		if got.status == "200" {
			return
		}
		a = got
	}
	t.Errorf("%+v", a)
}

// TestLargeBodies sends megabytes both ways through small windows.
func TestLargeBodies(t *testing.T) {
	const size = 5 << 20
	blob := make([]byte, size)
	rand.Read(blob)
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		x.Response.Body, x.Response.Length = x.Request.Body, x.Request.Length // as it comes
	}}})
	for _, window := range []uint32{1000, 65535, 1 << 20} {
		c := dialRaw(t, addr)
		c.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		c.headers(1, false, postFields...)
		// The peer's windows: 65,535 at first, and what WINDOW_UPDATE gives.
		conn, stream, sent := 65535, 65535, 0
		var got []byte
		for end := false; !end; {
			for sent < size && conn > 0 && stream > 0 {
				n := min(size-sent, conn, stream, 16384)
				c.data(1, sent+n == size, string(blob[sent:sent+n]))
				sent, conn, stream = sent+n, conn-n, stream-n
			}
			f, err := c.next()
			if err != nil {
				t.Fatalf("window %d: after %d sent, %d received: %v", window, sent, len(got), err)
			}
			switch f := f.(type) {
			case *http2.WindowUpdateFrame:
				if f.StreamID == 0 {
					conn += int(f.Increment)
				} else {
					stream += int(f.Increment)
				}
			case *http2.DataFrame:
				got = append(got, f.Data()...)
				end = f.StreamEnded()
			case *http2.RSTStreamFrame, *http2.GoAwayFrame:
				t.Fatal(f)
			}
		}
		if string(got) != string(blob) {
			t.Errorf("window %d: %d bytes differ", window, len(got))
		}
		c.nc.Close()
	}
}

// TestPieces: a body is what was sent, in whatever pieces, and whether they are read as they come or have to wait.
func TestPieces(t *testing.T) {
	var wait atomic.Bool
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		if wait.Load() {
			time.Sleep(20 * time.Millisecond)
		}
		got, err := readBody(x.Request.Body)
		if err != nil {
			t.Error(err)
		}
		x.Response.Status = 200
		x.Response.SetBody([]byte(got))
	}}})
	blob := make([]byte, 5*maxFrame)
	for i := range blob {
		blob[i] = byte(i % 251)
	}
	c, id := dialRaw(t, addr).hello(), uint32(1)
	for _, pieces := range [][]int{
		{1}, {1, 1}, {smallChunk}, {smallChunk - 1, 1, 1}, {smallChunk, 1}, {smallChunk + 1}, {smallChunk - 5, 10}, {10, smallChunk},
		{1, maxFrame}, {smallChunk, maxFrame}, {maxFrame, 1}, {maxFrame, maxFrame}, {smallChunk, maxFrame - smallChunk, 1}, {1000, 100, maxFrame, 5, maxFrame, 3},
	} {
		for _, w := range []bool{false, true} {
			wait.Store(w)
			c.headers(id, false, postFields...)
			sent := 0
			for i, n := range pieces {
				c.data(id, i == len(pieces)-1, string(blob[sent:sent+n]))
				sent += n
			}
			if a := c.await(id); a.body != string(blob[:sent]) {
				t.Errorf("%v: %d bytes came of %d, or others: %+v", pieces, len(a.body), sent, a.reset)
			}
			id += 2
		}
	}
}

// TestBackPressure: a handler that does not read, and a client that does not read, stop the other side after a bounded
// number of bytes.
func TestBackPressure(t *testing.T) {
	stop := make(chan struct{})
	var produced atomic.Int64
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		if x.Request.Method == "POST" {
			<-stop
			return
		}
		x.Response.Status = 200
		x.Response.Body, x.Response.Length = &endlessBody{n: &produced}, -1
	}}})
	c := dialRaw(t, addr).hello()
	c.headers(1, false, postFields...)
	sent := 0
	for ; sent+16384 <= 65535; sent += 16384 {
		c.data(1, false, strings.Repeat("x", 16384))
	}
	c.headers(3, true, getFields...)
	waitFor(t, "nothing is made", func() bool { return produced.Load() >= 65535 })
	c.idle = 300 * time.Millisecond
	for {
		// No windows are given back here.
		c.nc.SetReadDeadline(time.Now().Add(c.idle))
		f, err := c.fr.ReadFrame()
		if err != nil {
			break
		}
		if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == 1 {
			t.Error("the window was given back though nobody reads")
		}
	}
	if n := produced.Load(); n < 65535 || n > 65535+2*64<<10 {
		t.Errorf("%d bytes were made for a client that takes 65,535", n)
	}
	close(stop)
}

type endlessBody struct{ n *atomic.Int64 }

func (b *endlessBody) Next() ([]byte, error) {
	b.n.Add(10000)
	return make([]byte, 10000), nil
}
func (b *endlessBody) Close() error { return nil }
func (b *endlessBody) Ready() bool  { return true }

// TestWindowChanges: settings that come while streams wait.
func TestWindowChanges(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr).hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	c.headers(1, true, getFields...)
	status := ""
	for status == "" {
		f, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			status = f.PseudoValue("status")
		case *http2.DataFrame:
			t.Fatal("DATA without a window")
		}
	}
	c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3}))
	f := (*http2.DataFrame)(nil)
	for f == nil {
		g, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		f, _ = g.(*http2.DataFrame)
	}
	if len(f.Data()) != 3 {
		t.Errorf("%d bytes in a window of 3", len(f.Data()))
	}
	c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100000}))
	if a := c.await(1); !a.end {
		t.Errorf("%+v", a)
	}
}

// TestCancel: a client that gives up frees the handler, wherever that waits.
func TestCancel(t *testing.T) {
	tests := []struct {
		name  string
		end   bool
		serve func(x *exchange.Exchange, at chan<- struct{})
	}{
		{"reading the body", false, func(x *exchange.Exchange, at chan<- struct{}) {
			close(at)
			if _, err := readBody(x.Request.Body); err == nil {
				t.Error("the body was complete")
			}
		}},
		{"waiting for the upstream", true, func(x *exchange.Exchange, at chan<- struct{}) {
			gone := make(chan struct{})
			x.OnGone(func() { close(gone) })
			close(at)
			<-gone
			x.OnGone(nil)
		}},
		{"streaming the response", true, func(x *exchange.Exchange, at chan<- struct{}) {
			p := make(chan string)
			go func() { p <- "first"; close(at) }()
			x.Response.Status = 200
			x.Response.Body, x.Response.Length = &piecesBody{pieces: p, closed: make(chan struct{})}, -1
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at := make(chan struct{})
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				if x.Request.Path == "/hang" {
					tt.serve(x, at)
					return
				}
				echo(x)
			}}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.headers(1, tt.end, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/hang")
			<-at
			c.do(c.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			waitFor(t, "the handler still runs", func() bool { _, n := h.counts(); return n == 1 })
			if !c.alive(3) {
				t.Error("the connection ended")
			}
		})
	}
}

// TestEarlyAnswer: a complete answer ends the request, whose rest is not read.
func TestEarlyAnswer(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 413
		if x.Request.Body == nil {
			x.Response.Status = 200
		}
	}}})
	c := dialRaw(t, addr).hello()
	c.headers(1, false, postFields...)
	if a := c.await(1); a.status != "413" || !a.end {
		t.Fatalf("%+v", a)
	}
	// What was on its way is no fault.
	c.data(1, false, strings.Repeat("x", 10000))
	c.headers(1, true, "x-sum", "1")
	if !c.alive(3) {
		t.Error("the connection ended")
	}
}

func TestMaxStreams(t *testing.T) {
	stop := make(chan struct{})
	h := &handlerFunc{serve: func(x *exchange.Exchange) { <-stop; x.Response.Status = 204 }}
	_, addr := startServer(t, Options{Handler: h, MaxStreams: 2})
	c := dialRaw(t, addr).hello()
	for id := uint32(1); id <= 3; id += 2 {
		c.headers(id, true, getFields...)
	}
	waitFor(t, "the handlers do not run", func() bool { n, _ := h.counts(); return n == 2 })
	c.do(c.fr.WriteRSTStream(1, http2.ErrCodeCancel)) // its handler still runs: no room for another
	c.headers(5, true, getFields...)
	if a := c.await(5); !a.wasReset || a.reset != http2.ErrCodeRefusedStream {
		t.Errorf("%+v", a)
	}
	close(stop)
	if a := c.await(3); a.status != "204" {
		t.Errorf("%+v", a)
	}
	waitFor(t, "the handlers hang", func() bool { _, n := h.counts(); return n == 2 })
	c.headers(7, true, getFields...)
	if a := c.await(7); a.status != "204" {
		t.Errorf("%+v", a)
	}
}

// TestMaxStreamsAnswered: what is left to do behind a response takes no room from the client, up to a bound.
func TestMaxStreamsAnswered(t *testing.T) {
	stop := make(chan struct{})
	h := &handlerFunc{serve: func(x *exchange.Exchange) { x.Response.Status = 204 }, finish: func() { <-stop }}
	_, addr := startServer(t, Options{Handler: h, MaxStreams: 2})
	c := dialRaw(t, addr).hello()
	for id := uint32(1); id <= 7; id += 2 {
		c.headers(id, true, getFields...)
		if a := c.await(id); a.status != "204" || !a.end {
			t.Errorf("stream %d: %+v", id, a)
		}
	}
	c.headers(9, true, getFields...)
	if a := c.await(9); !a.wasReset || a.reset != http2.ErrCodeRefusedStream {
		t.Errorf("%+v", a)
	}
	close(stop)
	waitFor(t, "the handlers hang", func() bool { _, n := h.counts(); return n == 4 })
}

package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// listenFor gives every connection to serve and counts them.
func listenFor(t testing.TB, serve func(nc net.Conn)) (string, *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			wg.Go(func() { defer nc.Close(); serve(nc) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, nc := range open {
			nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String(), &n
}

// startUpstream is Go's own HTTP/2 server.
func startUpstream(t testing.TB, h http.HandlerFunc) (string, *atomic.Int64) {
	return startUpstreamWith(t, &http2.Server{}, h)
}

func startUpstreamWith(t testing.TB, s *http2.Server, h http.HandlerFunc) (string, *atomic.Int64) {
	return listenFor(t, func(nc net.Conn) { s.ServeConn(nc, &http2.ServeConnOpts{Handler: h}) })
}

// rawUpstream speaks frames: f is called behind the preface and the client's SETTINGS.
func rawUpstream(t testing.TB, f func(c *rawClient)) (string, *atomic.Int64) {
	return listenFor(t, func(nc net.Conn) {
		preface := make([]byte, len(Preface))
		if _, err := io.ReadFull(nc, preface); err != nil {
			return
		}
		if string(preface) != Preface {
			t.Errorf("preface: %q", preface)
		}
		c := &rawClient{t: t, nc: nc, fr: http2.NewFramer(nc, nc), idle: time.Minute}
		c.fr.AllowIllegalWrites = true
		c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		c.enc = hpack.NewEncoder(&c.buf)
		c.do(c.fr.WriteSettings())
		f(c)
	})
}

// request waits for a request's head.
func (c *rawClient) request() uint32 {
	for {
		f, err := c.next()
		if err != nil {
			return 0
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			return h.StreamID
		}
	}
}

type client struct {
	t    testing.TB
	pool *Pool
	addr string
}

func newClient(t testing.TB, addr string) *client {
	p := NewPool(PoolOptions{})
	t.Cleanup(p.Close)
	return &client{t: t, pool: p, addr: addr}
}

func (c *client) dial() (net.Conn, error) { return net.Dial("tcp", c.addr) }

// exchange makes one; fill changes it.
func (c *client) exchange(fill func(x *exchange.Exchange)) *exchange.Exchange {
	x := &exchange.Exchange{}
	x.Request = exchange.Request{Method: "GET", Path: "/p", Major: 2}
	x.Upstream = exchange.Upstream{
		Scheme: "http", Path: "/p", HostHeader: "up.test:80", ReadTimeout: time.Minute, WriteTimeout: time.Minute, ConnectTimeout: time.Minute,
	}
	if fill != nil {
		fill(x)
	}
	return x
}

func (c *client) send(x *exchange.Exchange) error {
	return c.pool.RoundTrip(x, Key{Addr: netip.MustParseAddrPort(c.addr)}, c.dial)
}

// finish reads the rest and releases.
func (c *client) finish(x *exchange.Exchange) (string, error) {
	defer c.pool.Release(x)
	if x.Response.Body == nil {
		return "", nil
	}
	return readBody(x.Response.Body)
}

func TestClient(t *testing.T) {
	addr, conns := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Saw", fmt.Sprintf("%s %s %s %d te=%s agent=%s", r.Method, r.Host, r.RequestURI, r.ContentLength, r.Header.Get("TE"), r.Header.Get("User-Agent")))
		switch r.URL.Path {
		case "/hints":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
		case "/none":
			w.WriteHeader(204)
			return
		case "/trailers":
			w.Header().Set("Trailer", "Grpc-Status")
			defer w.Header().Set("Grpc-Status", "7")
			defer w.Header().Set(http.TrailerPrefix+"X-Sum", r.Trailer.Get("X-Sum"))
		case "/flushed":
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		}
		w.Write(body)
	})
	c := newClient(t, addr)
	tests := []struct {
		name  string
		fill  func(x *exchange.Exchange)
		check func(t *testing.T, x *exchange.Exchange, body string)
	}{
		{name: "get", fill: func(x *exchange.Exchange) {
			x.Request.RawQuery = "a=b c"
			x.Upstream.Path = "/a b"
			x.Request.Header.Add("User-Agent", "test")
			x.Request.Header.Add("Connection", "x")
			x.Request.Header.Add("Host", "wrong")
		}, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if got := x.Response.Header.Get("X-Saw"); got != "GET up.test:80 /a%20b?a=b%20c 0 te= agent=test" {
				t.Error(got)
			}
			if !x.Proxied || x.Response.Status != 200 || body != "" || x.SentAt.IsZero() || x.HeadersAt.Before(x.SentAt) {
				t.Errorf("%+v", &x.Response)
			}
		}},
		{name: "body in memory", fill: func(x *exchange.Exchange) {
			x.Request.Method = "POST"
			x.Request.SetBody([]byte("hello"))
		}, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if got := x.Response.Header.Get("X-Saw"); got != "POST up.test:80 /p 5 te= agent=" || body != "hello" || x.Response.Length != 5 {
				t.Error(got, body, x.Response.Length)
			}
		}},
		{name: "post without body", fill: func(x *exchange.Exchange) { x.Request.Method = "POST" }, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if got := x.Response.Header.Get("X-Saw"); got != "POST up.test:80 /p 0 te= agent=" {
				t.Error(got)
			}
		}},
		{name: "large body in memory", fill: func(x *exchange.Exchange) {
			x.Request.Method = "PUT"
			x.Request.SetBody(bytes.Repeat([]byte("0123456789"), 200000))
		}, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if len(body) != 2000000 {
				t.Error(len(body))
			}
		}},
		{name: "streamed body with trailers", fill: func(x *exchange.Exchange) {
			x.Request.Method = "POST"
			x.Upstream.Path = "/trailers"
			x.Request.TETrailers = true
			x.Request.Trailer.Add("X-Sum", "42")
			p := make(chan string, 2)
			p <- "hel"
			p <- "lo"
			close(p)
			x.Request.Body, x.Request.Length = &piecesBody{pieces: p, closed: make(chan struct{})}, -1
		}, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if got := x.Response.Header.Get("X-Saw"); got != "POST up.test:80 /trailers -1 te=trailers agent=" || body != "hello" {
				t.Error(got, body)
			}
			if x.Response.Trailer.Get("grpc-status") != "7" {
				t.Error(x.Response.Trailer)
			}
		}},
		{name: "head", fill: func(x *exchange.Exchange) { x.Request.Method = "HEAD" }, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if x.Response.Body != nil || x.Response.Status != 200 {
				t.Errorf("%+v", &x.Response)
			}
		}},
		{name: "no content", fill: func(x *exchange.Exchange) { x.Upstream.Path = "/none" }, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if x.Response.Body != nil || x.Response.Status != 204 || x.Response.Length != 0 {
				t.Errorf("%+v", &x.Response)
			}
		}},
		{name: "informational", fill: func(x *exchange.Exchange) {
			x.Upstream.Path = "/hints"
			x.Informational = func(status int, h *exchange.Header) error {
				x.RequestID = fmt.Sprint(status, h.Get("Link"))
				return nil
			}
		}, check: func(t *testing.T, x *exchange.Exchange, body string) {
			if x.RequestID != "103</a>" && x.RequestID != "103 </a>" {
				t.Error(x.RequestID)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := c.exchange(tt.fill)
			if err := c.send(x); err != nil {
				t.Fatal(err)
			}
			body, err := c.finish(x)
			if err != nil {
				t.Fatal(err)
			}
			tt.check(t, x, body)
		})
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestBothWays: the response begins before the request ends, and both go on in turn.
func TestBothWays(t *testing.T) {
	addr, _ := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		buf := make([]byte, 100)
		for {
			w.(http.Flusher).Flush()
			n, err := r.Body.Read(buf)
			if err != nil {
				fmt.Fprint(w, "end")
				return
			}
			w.Write(bytes.ToUpper(buf[:n]))
		}
	})
	c := newClient(t, addr)
	p := make(chan string)
	x := c.exchange(func(x *exchange.Exchange) {
		x.Request.Method = "POST"
		x.Request.Body, x.Request.Length = &piecesBody{pieces: p, closed: make(chan struct{})}, -1
	})
	if err := c.send(x); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"one", "two", "three"} {
		p <- m
		got, err := x.Response.Body.Next()
		if err != nil || string(got) != strings.ToUpper(m) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	close(p)
	if rest, err := c.finish(x); rest != "end" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestAnswerBeforeBody: an upstream that answers without reading; its sender is stopped.
func TestAnswerBeforeBody(t *testing.T) {
	addr, conns := startUpstream(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) })
	c := newClient(t, addr)
	for range 3 {
		var n atomic.Int64
		x := c.exchange(func(x *exchange.Exchange) {
			x.Request.Method = "POST"
			x.Request.Body, x.Request.Length = &endlessBody{n: &n}, -1
		})
		if err := c.send(x); err != nil || x.Response.Status != 413 {
			t.Fatal(err, x.Response.Status)
		}
		c.finish(x)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestClientLeaves: the upstream learns that nobody waits, whether it has answered or not.
func TestClientLeaves(t *testing.T) {
	came, left := make(chan struct{}, 1), make(chan struct{}, 1)
	addr, _ := startUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begin" {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		} else {
			came <- struct{}{}
		}
		<-r.Context().Done()
		left <- struct{}{}
	})
	c := newClient(t, addr)
	x := c.exchange(nil)
	go func() {
		<-came
		x.Gone()
	}()
	err := c.send(x)
	var body *h1.RequestBodyError
	var fault *h1.Fault
	if !errors.As(err, &body) || !errors.As(err, &fault) || fault.Status != 499 {
		t.Errorf("%v", err)
	}
	<-left
	x = c.exchange(func(x *exchange.Exchange) { x.Upstream.Path = "/begin" })
	if err := c.send(x); err != nil {
		t.Fatal(err)
	}
	go x.Gone()
	if _, err := c.finish(x); err == nil {
		t.Error("the body was complete")
	}
	<-left
	x = c.exchange(func(x *exchange.Exchange) { x.Upstream.Path = "/begin" })
	if err := c.send(x); err != nil {
		t.Fatal(err)
	}
	c.pool.Release(x) // nobody reads the rest
	<-left
}

// TestClientFailures: what went wrong, in the terms the gateway's answers are made of.
func TestClientFailures(t *testing.T) {
	ok := func(c *rawClient, id uint32) { c.headers(id, true, ":status", "200") }
	tests := []struct {
		name     string
		upstream func(c *rawClient)
		fill     func(x *exchange.Exchange)
		is       error // one of these two
		fault    string
		sent     bool
		answered bool
		works    bool // in the end
		conns    int64
	}{
		{name: "reset", upstream: func(c *rawClient) { c.do(c.fr.WriteRSTStream(c.request(), http2.ErrCodeInternal)) }, is: h1.ErrNoResponse, sent: true},
		{name: "refused at first", upstream: func(c *rawClient) {
			c.do(c.fr.WriteRSTStream(c.request(), http2.ErrCodeRefusedStream))
			ok(c, c.request())
		}, works: true},
		{name: "refused always", upstream: func(c *rawClient) {
			for id := c.request(); id != 0; id = c.request() {
				c.do(c.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream))
			}
		}, is: h1.ErrStale},
		{name: "going away", upstream: func(c *rawClient) {
			id := c.request()
			c.do(c.fr.WriteGoAway(id-1, http2.ErrCodeNo, nil))
		}, is: h1.ErrStale, conns: 3},
		{name: "going away behind it", upstream: func(c *rawClient) {
			id := c.request()
			c.do(c.fr.WriteGoAway(id, http2.ErrCodeNo, nil))
			ok(c, id)
		}, works: true},
		{name: "closed", upstream: func(c *rawClient) { c.request() }, is: h1.ErrNoResponse, sent: true},
		{name: "silent", upstream: func(c *rawClient) { c.request(); c.request() }, is: os.ErrDeadlineExceeded, sent: true,
			fill: func(x *exchange.Exchange) { x.Upstream.ReadTimeout = 100 * time.Millisecond }},
		{name: "takes no data", upstream: func(c *rawClient) {
			c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			c.request()
			c.request()
		}, is: errStalled, sent: true, fill: func(x *exchange.Exchange) {
			x.Request.Method = "POST"
			x.Request.SetBody(make([]byte, 100000))
			x.Upstream.WriteTimeout = 100 * time.Millisecond
		}},
		{name: "data first", upstream: func(c *rawClient) { c.data(c.request(), true, "x") }, fault: "DATA before HEADERS", sent: true},
		{name: "no status", upstream: func(c *rawClient) { c.headers(c.request(), true, "a", "b") }, fault: "without a valid status", sent: true},
		{name: "odd status", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "2x0") }, fault: "without a valid status", sent: true},
		{name: "two status", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", ":status", "200") }, fault: "twice", sent: true},
		{name: "switching", upstream: func(c *rawClient) { c.headers(c.request(), false, ":status", "101") }, fault: "without a valid status", sent: true},
		{name: "end with 1xx", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "103") }, fault: "without a valid status", sent: true},
		{name: "1xx for ever", upstream: func(c *rawClient) {
			id := c.request()
			for range 200 {
				c.headers(id, false, ":status", "103")
			}
			c.request()
		}, fault: "1xx", sent: true, answered: true},
		{name: "upper case", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", "A", "b") }, fault: "lower case", sent: true},
		{name: "line break", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", "a", "b\r\nc: d") }, fault: "invalid value", sent: true},
		{name: "connection", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", "connection", "x") }, fault: "connection-specific", sent: true},
		{name: "request pseudo field", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", ":path", "/") }, fault: "unknown pseudo", sent: true},
		{name: "length without body", upstream: func(c *rawClient) { c.headers(c.request(), true, ":status", "200", "content-length", "5") },
			fault: "content-length without", sent: true},
		{name: "large head", upstream: func(c *rawClient) {
			id := c.request()
			v := strings.Repeat("v", 15000)
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(":status", "200", "a", v)}))
			for range 10 {
				c.do(c.fr.WriteContinuation(id, false, c.block("a", v)))
			}
			c.do(c.fr.WriteContinuation(id, true, nil))
		}, fault: "too large", sent: true},
		{name: "HTTP/1.1", upstream: func(c *rawClient) {
			c.request()
			c.write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			c.request()
		}, fault: "larger than SETTINGS_MAX_FRAME_SIZE", sent: true},
		{name: "bad value", upstream: func(c *rawClient) { c.request() }, is: h1.ErrRequest,
			fill: func(x *exchange.Exchange) {
				x.Request.Header.Fields = append(x.Request.Header.Fields, exchange.Field{Name: "a", Value: "b\nc"})
			}},
		{name: "the client's body breaks", upstream: func(c *rawClient) { c.request(); c.request() }, is: io.ErrUnexpectedEOF, sent: true,
			fill: func(x *exchange.Exchange) {
				p := make(chan string, 1)
				p <- "begun"
				close(p)
				x.Request.Method = "POST"
				x.Request.Body, x.Request.Length = &piecesBody{pieces: p, closed: make(chan struct{}), err: io.ErrUnexpectedEOF}, -1
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr, conns := rawUpstream(t, tt.upstream)
			c := newClient(t, addr)
			c.pool.keep.close() // a faster one
			c.pool.keep = newKeeper(20 * time.Millisecond)
			x := c.exchange(tt.fill)
			err := c.send(x)
			if tt.works {
				if err != nil || x.Response.Status != 200 {
					t.Errorf("%v, %d", err, x.Response.Status)
				}
				c.finish(x)
				return
			}
			var f *Failure
			if !errors.As(err, &f) {
				t.Fatalf("%v", err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) || f.Sent != tt.sent || f.Answered != tt.answered {
				t.Errorf("%v, sent %v, answered %v", err, f.Sent, f.Answered)
			}
			var fault *h1.Fault
			if tt.fault != "" && (!errors.As(err, &fault) || !strings.Contains(fault.Text, tt.fault) || fault.Status != 502) {
				t.Errorf("%v", err)
			}
			if x.Link != nil {
				t.Error("the exchange is still linked")
			}
			if tt.conns > 0 && conns.Load() != tt.conns {
				t.Errorf("%d connections", conns.Load())
			}
		})
	}
}

// TestClientBodies: responses that break after their head.
func TestClientBodies(t *testing.T) {
	tests := []struct {
		name     string
		upstream func(c *rawClient, id uint32)
		fill     func(x *exchange.Exchange)
		body     string
		err      string
	}{
		{name: "right", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200", "content-length", "5")
			c.data(id, false, "hel")
			c.data(id, true, "lo")
		}, body: "hello"},
		{name: "reset with NO_ERROR behind the end", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.data(id, true, "hello")
			c.do(c.fr.WriteRSTStream(id, http2.ErrCodeNo))
		}, body: "hello"},
		{name: "short", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200", "content-length", "6")
			c.data(id, true, "hello")
		}, err: "content-length"},
		{name: "long", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200", "content-length", "4")
			c.data(id, true, "hello")
		}, err: "content-length"},
		{name: "reset", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.data(id, false, "hello")
			c.do(c.fr.WriteRSTStream(id, http2.ErrCodeInternal))
		}, err: "INTERNAL_ERROR"},
		{name: "connection ends", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.data(id, false, "hello")
			c.nc.(*net.TCPConn).CloseWrite()
		}, err: "closed"},
		{name: "stalls", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.request()
		}, fill: func(x *exchange.Exchange) { x.Upstream.ReadTimeout = 100 * time.Millisecond }, err: "timeout"},
		{name: "not modified with a length", upstream: func(c *rawClient, id uint32) { c.headers(id, true, ":status", "304", "content-length", "5") }},
		{name: "trailers", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.data(id, false, "hello")
			c.headers(id, true, "grpc-status", "0", "x-kong-request-id", "forged")
		}, body: "hello"},
		{name: "trailers without end", upstream: func(c *rawClient, id uint32) {
			c.headers(id, false, ":status", "200")
			c.headers(id, false, "grpc-status", "0")
		}, err: "trailers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr, _ := rawUpstream(t, func(c *rawClient) {
				tt.upstream(c, c.request())
				c.request()
			})
			c := newClient(t, addr)
			c.pool.keep.close()
			c.pool.keep = newKeeper(20 * time.Millisecond)
			x := c.exchange(tt.fill)
			if err := c.send(x); err != nil {
				// What follows the head at once may be seen with it.
				if tt.err == "" || !strings.Contains(err.Error(), tt.err) {
					t.Error(err)
				}
				return
			}
			body, err := c.finish(x)
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && (err != nil || body != tt.body) {
				t.Errorf("%q, %v", body, err)
			}
			if tt.name == "trailers" && len(x.Response.Trailer.Fields) != 1 {
				t.Error(x.Response.Trailer)
			}
		})
	}
}

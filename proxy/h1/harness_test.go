package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// plain is the smallest handler that proxies: everything goes to one address.
type plain struct {
	t    *upstream.Transport
	host string
	port int
	edit func(x *exchange.Exchange)
	head func(x *exchange.Exchange) // when that of the answer is there
	err  func(x *exchange.Exchange, err error)
	done func(x *exchange.Exchange)
	hide bool // the sockets: the server then uses net.Conn
}

func (p *plain) Serve(x *exchange.Exchange) {
	u := &x.Upstream
	u.Scheme, u.Host, u.Port, u.HostHeader, u.Path = "http", p.host, p.port, x.Request.Host, x.Request.Path
	u.ConnectTimeout, u.ReadTimeout, u.WriteTimeout = time.Minute, time.Minute, time.Minute
	if p.edit != nil {
		p.edit(x)
	}
	if err := p.t.RoundTrip(x); err != nil {
		x.Response.Status = 502
		var e *upstream.Error
		if errors.As(err, &e) {
			x.Response.Status = e.Status()
		}
		x.Response.SetBody([]byte(err.Error()))
		if p.err != nil {
			p.err(x, err)
		}
	} else if p.head != nil {
		p.head(x)
	}
}

func (p *plain) Finish(x *exchange.Exchange) {
	if p.done != nil {
		p.done(x)
	}
	p.t.Release(x)
}

// start runs a gateway before the upstream at addr and returns its address.
func start(t testing.TB, addr net.Addr, change func(*h1.Options, *upstream.Options, *plain)) (string, *h1.Server, *upstream.Transport) {
	t.Helper()
	p := &plain{}
	if a, ok := addr.(*net.TCPAddr); ok {
		p.host, p.port = a.IP.String(), a.Port
	}
	ho, uo := h1.Options{Handler: p}, upstream.Options{}
	if change != nil {
		change(&ho, &uo, p)
	}
	p.t = upstream.New(uo)
	s := h1.New(ho)
	ln := listen(t)
	if p.hide {
		ln = hidden{ln}
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = s.Shutdown(ctx) // cuts what a failed test left
		p.t.Close()
	})
	return ln.Addr().String(), s, p.t
}

// hidden accepts connections that are not *net.TCPConn.
type hidden struct{ net.Listener }

func (h hidden) Accept() (net.Conn, error) {
	c, err := h.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct {
		net.Conn
		closeWriter
	}{c, c.(closeWriter)}, nil
}

type closeWriter interface{ CloseWrite() error }

// backends runs a test with both kinds of I/O.
func backends(t *testing.T, f func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain))) {
	t.Run("socket", func(t *testing.T) { f(t, func(*h1.Options, *upstream.Options, *plain) {}) })
	t.Run("net.Conn", func(t *testing.T) { f(t, func(_ *h1.Options, _ *upstream.Options, p *plain) { p.hide = true }) })
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// echoUpstream answers every bodiless request with the same bytes, without allocating.
func echoUpstream(t testing.TB, size int) net.Addr {
	ln := listen(t)
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n")
	answer = append(answer, bytes.Repeat([]byte("x"), size)...)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return ln.Addr()
}

// recorder is an upstream that keeps every byte it receives.
type recorder struct {
	ln     net.Listener
	answer func(c net.Conn, r *http.Request, n int) bool // false: close

	mu    sync.Mutex
	raw   bytes.Buffer
	conns int
	reqs  []string // method, target and host
}

func newRecorder(t testing.TB, answer func(c net.Conn, r *http.Request, n int) bool) *recorder {
	r := &recorder{ln: listen(t), answer: answer}
	if answer == nil {
		r.answer = func(c net.Conn, _ *http.Request, _ int) bool {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return err == nil
		}
	}
	go func() {
		for {
			c, err := r.ln.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	r.mu.Lock()
	r.conns++
	r.mu.Unlock()
	br := bufio.NewReader(io.TeeReader(c, lockedWriter{r}))
	for n := 0; ; n++ {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.reqs = append(r.reqs, req.Method+" "+req.RequestURI+" "+req.Host)
		r.mu.Unlock()
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if !r.answer(c, req, n) {
			return
		}
	}
}

type lockedWriter struct{ r *recorder }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.raw.Write(p)
}

func (r *recorder) bytes() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.raw.String()
}

func (r *recorder) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.reqs...)
}

func (r *recorder) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// dial connects with a deadline that only a hanging test meets.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// talk sends raw bytes and returns all that comes back until the gateway closes.
func talk(t testing.TB, addr, raw string) string {
	t.Helper()
	c := dial(t, addr)
	go func() { _, _ = io.WriteString(c, raw) }()
	all, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("the connection was not closed: %v, got %q", err, all)
	}
	return string(all)
}

// statuses lists the status codes of all responses in raw.
func statuses(t testing.TB, raw string, methods ...string) (codes []int, bodies []string) {
	t.Helper()
	br := bufio.NewReader(strings.NewReader(raw))
	for i := 0; ; i++ {
		if _, err := br.Peek(1); err != nil {
			return codes, bodies
		}
		m := "GET"
		if i < len(methods) {
			m = methods[i]
		}
		resp, err := http.ReadResponse(br, &http.Request{Method: m})
		if err != nil {
			t.Fatalf("response %d of %q: %v", i, raw, err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("body %d of %q: %v", i, raw, err)
		}
		codes, bodies = append(codes, resp.StatusCode), append(bodies, string(b))
	}
}

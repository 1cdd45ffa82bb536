package h1_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// answers is an upstream that writes fixed bytes after each request head and body, then goes on or closes.
func answers(raw string, goOn bool) func(net.Conn, *http.Request, int) bool {
	return func(c net.Conn, _ *http.Request, _ int) bool {
		_, err := io.WriteString(c, raw)
		return err == nil && goOn
	}
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n" }

const getClose = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

// TestBadUpstream: S22 and relatives. The client gets a 502, or a response that ends visibly short; the connection to the
// upstream is never used again.
func TestBadUpstream(t *testing.T) {
	tests := []struct {
		name, raw string
		goOn      bool
		status    int
		cut       bool // the body ends early
	}{
		{name: "garbage", raw: "garbage\r\n\r\n", status: 502},
		{name: "length and chunked", raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", goOn: true, status: 502},
		{name: "two lengths", raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", goOn: true, status: 502},
		{name: "unknown coding", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", goOn: true, status: 502},
		{name: "bare LF", raw: "HTTP/1.1 200 OK\nContent-Length: 0\n\n", goOn: true, status: 502},
		{name: "control character", raw: "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", goOn: true, status: 502},
		{name: "HTTP/2", raw: "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", goOn: true, status: 502},
		{name: "status 99", raw: "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", goOn: true, status: 502},
		{name: "1 MB head", raw: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", goOn: true, status: 502},
		{name: "1xx flood", raw: strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000), goOn: true, status: 502},
		{name: "100 flood", raw: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000), goOn: true, status: 502},
		{name: "101 not asked for", raw: "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", goOn: true, status: 502},
		{name: "closed without answer", raw: "", status: 502},
		{name: "closed within the head", raw: "HTTP/1.1 200 OK\r\nContent-Le", status: 502},
		{name: "body shorter than its length", raw: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", status: 200, cut: true},
		{name: "broken chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", goOn: true, status: 200, cut: true},
		{name: "closed within a chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", status: 200, cut: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder(t, answers(tt.raw, tt.goOn))
			addr, _, _ := start(t, rec.ln.Addr(), nil)
			for i := range 2 {
				c := dial(t, addr)
				fmt.Fprint(c, getClose)
				br := bufio.NewReader(c)
				resp, err := http.ReadResponse(br, nil)
				for err == nil && resp.StatusCode < 200 { // early hints on the way
					resp, err = http.ReadResponse(br, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || (err != nil) != tt.cut {
					t.Errorf("got %d, body error %v", resp.StatusCode, err)
				}
				if n := rec.connections(); n != i+1 {
					t.Errorf("%d upstream connections after %d requests", n, i+1)
				}
			}
		})
	}
}

// TestCutShort: of a body that ends early, a client that reads slowly still gets all there was.
func TestCutShort(t *testing.T) {
	body := strings.Repeat("x", 256<<10)
	rec := newRecorder(t, answers("HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"+body, false))
	addr, _, _ := start(t, rec.ln.Addr(), nil)
	c := dial(t, addr)
	_ = c.SetReadBuffer(32 << 10)
	fmt.Fprint(c, getClose)
	time.Sleep(100 * time.Millisecond) // the upstream has ended; what it sent lies in the kernel
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); len(got) != len(body) || err != io.ErrUnexpectedEOF {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestUpstreamSpeaksOutOfTurn: a second response must never answer the next request.
func TestUpstreamSpeaksOutOfTurn(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
	t.Run("S22 in the same packet", func(t *testing.T) {
		rec := newRecorder(t, answers(ok+"good"+ok+"evil", true))
		addr, _, _ := start(t, rec.ln.Addr(), nil)
		_, bodies := statuses(t, talk(t, addr, get("/1")+get("/2")+getClose))
		if fmt.Sprint(bodies) != "[good good good]" {
			t.Errorf("got %q", bodies)
		}
	})
	t.Run("S22 later", func(t *testing.T) {
		evil, sent := make(chan struct{}), make(chan struct{})
		var once sync.Once // what comes after the next request was sent cannot be told from its answer
		rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
			fmt.Fprint(c, ok+"good")
			once.Do(func() {
				go func() {
					<-evil
					fmt.Fprint(c, ok+"evil")
					close(sent)
				}()
			})
			return true
		})
		addr, _, _ := start(t, rec.ln.Addr(), nil)
		c := dial(t, addr)
		br := bufio.NewReader(c)
		for i := range 3 {
			fmt.Fprint(c, get("/"))
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(resp.Body); string(b) != "good" {
				t.Errorf("request %d: got %q", i, b)
			}
			if i == 0 {
				close(evil)
				<-sent
				time.Sleep(50 * time.Millisecond) // let it arrive
			}
		}
	})
}

// TestResponses checks what the client sees for correct but unusual answers.
func TestResponses(t *testing.T) {
	tests := []struct {
		name, request, answer string
		closes                bool // the upstream closes after the answer
		has, not              []string
		end                   string
	}{
		{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
			has: []string{"Transfer-Encoding: chunked\r\n"}, not: []string{"Content-Length"}, end: "\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"},
		{name: "chunked to HTTP/1.0", request: "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
			has: []string{"Connection: close\r\n"}, not: []string{"chunked"}, end: "\r\n\r\nabc"},
		{name: "padded chunk sizes", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3     \r\nabc\r\n2\t\r\nde\r\n0     \r\n\r\n", end: "\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"},
		{name: "until the end", closes: true, answer: "HTTP/1.1 200 OK\r\n\r\nabc", has: []string{"Transfer-Encoding: chunked\r\n"}, end: "3\r\nabc\r\n0\r\n\r\n"},
		{name: "HTTP/1.0 upstream", closes: true, answer: "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", has: []string{"HTTP/1.1 200 OK\r\n"}, end: "\r\n\r\nabc"},
		{name: "204", answer: "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", not: []string{"Content-Length", "chunked"}, end: "\r\n\r\n"},
		{name: "304 keeps its length", answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", has: []string{"Content-Length: 77\r\n"}, end: "\r\n\r\n"},
		{name: "HEAD keeps its length", request: "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", answer: "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n",
			has: []string{"Content-Length: 77\r\n"}, end: "\r\n\r\n"},
		{name: "HEAD of a chunked answer", request: "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			not: []string{"Content-Length"}, end: "\r\n\r\n"},
		{name: "early hints", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
			has: []string{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"}, not: []string{"100 Continue"}, end: "x"},
		{name: "a long row of 102", answer: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 90) + "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
			has: []string{"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n"}, end: "x"},
		{name: "early hints and HTTP/1.0", request: "GET / HTTP/1.0\r\n\r\n", answer: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
			not: []string{"103"}, end: "x"},
		{name: "426", answer: "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
			has: []string{"Upgrade: websocket\r\n"}, end: "\r\n\r\n"},
		{name: "426 to h2c", answer: "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", not: []string{"h2c"}, end: "\r\n\r\n"},
		{name: "hop by hop", answer: "HTTP/1.1 200 OK\r\nConnection: X-Drop, close\r\nKeep-Alive: timeout=1\r\nX-Drop: 1\r\nUpgrade: h2c\r\nProxy-Authenticate: y\r\nTrailer: z\r\nContent-Length: 0\r\nDate: now\r\n\r\n",
			has: []string{"Date: now\r\n"}, not: []string{"X-Drop", "timeout", "Upgrade", "Proxy-", "Trailer"}, end: "\r\n\r\n"},
		{name: "own reason", answer: "HTTP/1.1 299 Fine By Me\r\nContent-Length: 0\r\n\r\n", has: []string{"HTTP/1.1 299 Fine By Me\r\n"}, end: "\r\n\r\n"},
		{name: "no reason", answer: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", has: []string{"HTTP/1.1 200 OK\r\n"}, end: "\r\n\r\n"},
		{name: "trailers asked for", request: "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n",
			answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nSum: 1\r\nContent-Length: 9\r\n\r\n", not: []string{"Content-Length"}, end: "0\r\nSum: 1\r\n\r\n"},
		{name: "trailers not asked for", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nSum: 1\r\n\r\n", not: []string{"Sum"}, end: "0\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder(t, answers(tt.answer, !tt.closes))
			addr, _, _ := start(t, rec.ln.Addr(), nil)
			if tt.request == "" {
				tt.request = getClose
			}
			got := talk(t, addr, tt.request)
			for _, s := range tt.has {
				if !strings.Contains(got, s) {
					t.Errorf("no %q in %q", s, got)
				}
			}
			for _, s := range tt.not {
				if strings.Contains(got, s) {
					t.Errorf("%q in %q", s, got)
				}
			}
			if !strings.HasSuffix(got, tt.end) {
				t.Errorf("%q does not end in %q", got, tt.end)
			}
		})
	}
}

func TestPipelining(t *testing.T) { backends(t, testPipelining) }

func testPipelining(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
	const n = 1000
	rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.RequestURI), r.RequestURI)
		return err == nil
	})
	addr, _, _ := start(t, rec.ln.Addr(), set)
	var all strings.Builder
	for i := range n {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
		case 1:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /", i)
		case 2:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n", i)
		}
	}
	all.WriteString(getClose)
	_, bodies := statuses(t, talk(t, addr, all.String()))
	if len(bodies) != n+1 {
		t.Fatalf("%d answers", len(bodies))
	}
	for i, b := range bodies[:n] {
		if b != fmt.Sprintf("/%d", i) {
			t.Fatalf("answer %d is %q", i, b)
		}
	}
}

// TestSentBehindTheLast: what a client sends behind its last request, while that is served, does not reset the connection over the answer.
func TestSentBehindTheLast(t *testing.T) {
	arrived, sent := make(chan bool), make(chan bool)
	rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
		arrived <- true
		<-sent
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return err == nil
	})
	addr, _, _ := start(t, rec.ln.Addr(), nil)
	for range 20 {
		c := dial(t, addr)
		fmt.Fprint(c, getClose)
		<-arrived
		fmt.Fprint(c, strings.Repeat("GET /behind HTTP/1.1\r\nHost: a\r\n\r\n", 1000))
		sent <- true
		got, err := io.ReadAll(c)
		if codes, bodies := statuses(t, string(got)); err != nil || fmt.Sprint(codes, bodies) != "[200] [ok]" {
			t.Fatalf("got %q, %v", got, err)
		}
		_ = c.Close()
	}
	if strings.Contains(rec.bytes(), "behind") {
		t.Error("a request behind the last was served")
	}
}

func TestExpect(t *testing.T) {
	read := func(t *testing.T, c net.Conn, want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
			t.Fatalf("got %q, %v, want %q", buf, err, want)
		}
	}
	post := "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	t.Run("body after 100", func(t *testing.T) {
		rec := newRecorder(t, nil)
		addr, _, _ := start(t, rec.ln.Addr(), nil)
		c := dial(t, addr)
		fmt.Fprint(c, post)
		read(t, c, "HTTP/1.1 100 Continue\r\n\r\n")
		fmt.Fprint(c, "hello"+getClose)
		rest, _ := io.ReadAll(c)
		if codes, _ := statuses(t, string(rest)); fmt.Sprint(codes) != "[200 200]" {
			t.Errorf("got %q", rest)
		}
		if b := rec.bytes(); strings.Contains(b, "Expect") || !strings.Contains(b, "\r\n\r\nhello") {
			t.Errorf("the upstream received %q", b)
		}
	})
	t.Run("no 100 when the body is not read", func(t *testing.T) {
		rec := newRecorder(t, nil)
		addr, _, _ := start(t, rec.ln.Addr(), func(o *h1.Options, _ *upstream.Options, p *plain) {
			o.Handler = fixed(401, "no")
		})
		c := dial(t, addr)
		fmt.Fprint(c, post)
		got, _ := io.ReadAll(c)
		if codes, _ := statuses(t, string(got)); fmt.Sprint(codes) != "[401]" || strings.Contains(string(got), "100 Continue") {
			t.Errorf("got %q", got)
		}
		if rec.bytes() != "" {
			t.Error("the upstream received something")
		}
	})
	t.Run("S21 then nothing", func(t *testing.T) {
		rec := newRecorder(t, nil)
		addr, s, _ := start(t, rec.ln.Addr(), func(o *h1.Options, _ *upstream.Options, p *plain) { o.BodyTimeout = 200 * time.Millisecond })
		c := dial(t, addr)
		fmt.Fprint(c, post)
		got, _ := io.ReadAll(c)
		_ = c.Close()
		if !strings.HasPrefix(string(got), "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ") {
			t.Errorf("got %q", got)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

// fixed answers everything itself.
type fixedHandler struct {
	status int
	body   string
}

func fixed(status int, body string) exchange.Handler { return &fixedHandler{status, body} }

func (f *fixedHandler) Serve(x *exchange.Exchange) {
	x.Response.Status = f.status
	x.Response.SetBody([]byte(f.body))
}
func (f *fixedHandler) Finish(*exchange.Exchange) {}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	ask := "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
	t.Run("tunnel", func(t *testing.T) {
		rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
			if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "keep-alive, Upgrade" {
				t.Errorf("got %v", r.Header)
			}
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s\r\n\r\nhello ")
			return false
		})
		rec.answer = func(c net.Conn, r *http.Request, _ int) bool {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s\r\n\r\nhello ")
			_, _ = io.Copy(c, c)
			return false
		}
		addr, s, _ := start(t, rec.ln.Addr(), nil)
		c := dial(t, addr)
		fmt.Fprint(c, ask+"early ")
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s" || resp.Header.Get("Upgrade") != "websocket" {
			t.Fatal(resp, err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(br)
		if err != nil || !bytes.HasPrefix(got, []byte("hello early ")) && !bytes.Contains(got, []byte("early ")) || len(got) != len("hello early ")+len(data) {
			t.Errorf("%v, %d bytes, %.20q", err, len(got), got)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
	t.Run("upstream ends, client goes on", func(t *testing.T) {
		rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbye")
			return false
		})
		addr, s, _ := start(t, rec.ln.Addr(), nil)
		c := dial(t, addr)
		fmt.Fprint(c, ask)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for err := error(nil); err == nil; {
				_, err = c.Write(make([]byte, 1000))
			}
		}()
		got, err := io.ReadAll(c) // not reset
		if err != nil || !strings.HasSuffix(string(got), "bye") {
			t.Errorf("%q %v", got, err)
		}
		_ = c.Close()
		<-done
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
	t.Run("S15 refused", func(t *testing.T) {
		rec := newRecorder(t, nil)
		addr, _, _ := start(t, rec.ln.Addr(), nil)
		got := talk(t, addr, ask+"GET /admin HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
		if codes, _ := statuses(t, got); fmt.Sprint(codes) != "[200 200]" {
			t.Errorf("got %q", got)
		}
		// The second request was served as one of its own, on another connection.
		if fmt.Sprint(rec.requests()) != "[GET /ws a GET /admin b]" || rec.connections() != 2 {
			t.Errorf("%v on %d connections", rec.requests(), rec.connections())
		}
	})
	for _, tt := range []struct{ name, chosen, want string }{
		{"the second of several", "BAR", "101 BAR"}, {"two, one on the other", "bar, foo/2", "101 bar, foo/2"}, {"another version", "foo/1", "502 "},
		{"none", "", "502 "}, {"one too many", "bar, h2c", "502 "}, {"an empty one", "bar,", "502 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
				fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", tt.chosen)
				return false
			})
			addr, _, _ := start(t, rec.ln.Addr(), nil)
			c := dial(t, addr)
			fmt.Fprint(c, "GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo/2, bar\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Upgrade")) != tt.want {
				t.Errorf("%v %v, want %s", resp, err, tt.want)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			return false
		})
		addr, s, _ := start(t, rec.ln.Addr(), func(_ *h1.Options, _ *upstream.Options, p *plain) {
			p.head = func(x *exchange.Exchange) { x.Upstream.ReadTimeout = 100 * time.Millisecond }
		})
		c := dial(t, addr)
		fmt.Fprint(c, ask)
		if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 101 ") {
			t.Errorf("%q %v", got, err)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools forget at the second one
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestWaitingAnswers: an answer that waits for its next piece, as Server-Sent Events do, has no buffer for long bodies, and none that sent the request.
func TestWaitingAnswers(t *testing.T) {
	const streams = 300
	rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		return false
	})
	addr, s, _ := start(t, rec.ln.Addr(), nil)
	before := heap()
	var conns []net.Conn
	for range streams {
		c := dial(t, addr)
		fmt.Fprint(c, get("/events"))
		var got []byte
		for b := make([]byte, 1024); !bytes.Contains(got, []byte("data: 1\n\n")); {
			n, err := c.Read(b)
			if got = append(got, b[:n]...); err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
		conns = append(conns, c)
	}
	if each := (heap() - before) / streams; each > 64<<10 { // with both ends of it, which are the test's
		t.Errorf("an answer that waits holds %d bytes", each)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	waitFor(t, func() bool { return s.Conns() == 0 })
}

// TestWaitingRequests: a request whose upstream takes its time (long polling), or whose body does, holds memory for its head, not for what will be
// sent to either side.
func TestWaitingRequests(t *testing.T) {
	t.Run("head", func(t *testing.T) { waitingRequests(t, get("/poll")) })
	t.Run("body", func(t *testing.T) {
		waitingRequests(t, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 20_000))
	})
}

func waitingRequests(t *testing.T, request string) {
	backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
		const requests = 300
		var arrived atomic.Int64
		answer := make(chan struct{})
		ln := listen(t)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
						return
					}
					arrived.Add(1)
					<-answer
					fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}()
			}
		}()
		hidden := false
		addr, s, _ := start(t, ln.Addr(), func(ho *h1.Options, uo *upstream.Options, p *plain) {
			set(ho, uo, p)
			hidden = p.hide
		})
		before := heap()
		var conns []net.Conn
		for range requests {
			c := dial(t, addr)
			fmt.Fprint(c, request)
			conns = append(conns, c)
		}
		waitFor(t, func() bool { return arrived.Load() == requests })
		// Without the socket itself somebody has to read all the time, into memory that is there already.
		if each := (heap() - before) / requests; !hidden && each > 60<<10 { // with both ends of it, which are the test's
			t.Errorf("a request that waits holds %d bytes", each)
		}
		close(answer)
		for _, c := range conns {
			if got, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || got.StatusCode != 200 {
				t.Fatalf("%v, %v", got, err)
			}
			_ = c.Close()
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

// TestSlowHeads: a head of which little has come takes little more than that, and is understood when the rest comes, be it byte by byte.
func TestSlowHeads(t *testing.T) {
	backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
		const clients = 300
		rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.URL.Path), r.URL.Path)
			return true
		})
		hidden := false
		addr, s, _ := start(t, rec.ln.Addr(), func(ho *h1.Options, uo *upstream.Options, p *plain) {
			set(ho, uo, p)
			hidden = p.hide
		})
		before := heap()
		var conns []net.Conn
		for i := range clients {
			c := dial(t, addr)
			fmt.Fprintf(c, "\r\nGET /%d HT", i)
			conns = append(conns, c)
		}
		waitFor(t, func() bool { return s.Conns() == clients })
		time.Sleep(50 * time.Millisecond)
		// Without the socket itself somebody has to read all the time, into memory that is there already.
		if each := (heap() - before) / clients; !hidden && each > 8<<10 { // with both ends, one of which is the test's
			t.Errorf("a head that has begun holds %d bytes", each)
		}
		for i, c := range conns {
			rest := "TP/1.1\r\nHost: a\r\nX-Long: " + strings.Repeat("x", i) + "\r\n\r\n"
			piece := 1 + i%97
			for len(rest) > 0 {
				n := min(piece, len(rest))
				fmt.Fprint(c, rest[:n])
				rest = rest[n:]
				if i%10 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}
		for i, c := range conns {
			got, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(got.Body); got.StatusCode != 200 || string(body) != fmt.Sprint("/", i) {
				t.Fatal(i, got.Status, string(body))
			}
			_ = c.Close()
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

// TestWaitingTunnels: a tunnel that waits holds no buffers, and when it is over the request and the answer are told as they were, whatever has gone through it.
func TestWaitingTunnels(t *testing.T) {
	backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
		const tunnels = 300
		rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Answer: %s\r\n\r\n", r.URL.Path)
			_, _ = io.Copy(c, c)
			return false
		})
		var mu sync.Mutex
		told := map[string]int{}
		hidden := false
		addr, s, _ := start(t, rec.ln.Addr(), func(ho *h1.Options, uo *upstream.Options, p *plain) {
			set(ho, uo, p)
			hidden = p.hide
			p.done = func(x *exchange.Exchange) {
				mu.Lock()
				defer mu.Unlock()
				told[fmt.Sprint(x.Request.Method, " ", x.Request.Target, " ", x.Request.Path, " ", x.Request.Host, " ", x.Request.Header.Get("User-Agent"), " ", x.Response.Header.Get("X-Answer"))]++
			}
		})
		before := heap()
		var conns []*bufio.ReadWriter
		var ends []*net.TCPConn
		say := func(rw *bufio.ReadWriter, what string) {
			t.Helper()
			fmt.Fprint(rw, what)
			_ = rw.Flush()
			got := make([]byte, len(what))
			if _, err := io.ReadFull(rw, got); err != nil || string(got) != what {
				t.Fatalf("%.20q, %v", got, err)
			}
		}
		for range tunnels {
			c := dial(t, addr)
			rw := bufio.NewReadWriter(bufio.NewReaderSize(c, 1024), bufio.NewWriterSize(c, 1024))
			fmt.Fprint(rw, "GET /a%20b?c HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = rw.Flush()
			if resp, err := http.ReadResponse(rw.Reader, nil); err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
			say(rw, strings.Repeat("0123456789abcdef", 1<<9))
			conns, ends = append(conns, rw), append(ends, c)
		}
		if each := (heap() - before) / tunnels; each > 48<<10 && !hidden { // with both ends of it, which are the test's
			t.Errorf("a tunnel that waits holds %d bytes", each)
		}
		for i, rw := range conns {
			say(rw, "still there")
			_ = ends[i].Close()
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
		mu.Lock()
		defer mu.Unlock()
		if want := "GET /a%20b?c /a b a me /a b"; len(told) != 1 || told[want] != tunnels {
			t.Errorf("%v, want %d times %q", told, tunnels, want)
		}
	})
}

// TestUpgradeBehindBody: Docker's clients ask for an upgrade with a body. What follows it is of the new protocol, even if the upstream has agreed
// before it had all of the body.
func TestUpgradeBehindBody(t *testing.T) {
	const head = "POST /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	large := strings.Repeat("0123456789abcdef", 1<<14)
	for _, tt := range []struct {
		name, ask, body string
		cut             int // where the client waits
		early           bool
	}{
		{name: "in one piece", ask: "Content-Length: 2\r\n\r\n{}", body: "{}"},
		{name: "behind the head", ask: "Content-Length: 2\r\n\r\n{}", body: "{}", cut: 1},
		{name: "long", ask: fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(large), large), body: large, cut: len(large) / 2},
		{name: "chunked", ask: "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", body: "{}"},
		{name: "end of chunks awaited", ask: "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", body: "{}", cut: 2},
		{name: "101 before the body", ask: fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(large), large), body: large, cut: len(large) / 2, early: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := listen(t)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				br := bufio.NewReader(c)
				r, err := http.ReadRequest(br)
				if err != nil {
					t.Error(err)
					return
				}
				agree := func() {
					fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
				}
				if tt.early {
					agree()
				}
				if body, err := io.ReadAll(r.Body); err != nil || string(body) != tt.body || r.Header.Get("Upgrade") != "tcp" {
					t.Errorf("%v, %d bytes, %v", err, len(body), r.Header)
				}
				if !tt.early {
					agree()
				}
				_, _ = io.Copy(c, br)
			}()
			addr, s, _ := start(t, ln.Addr(), nil)
			c := dial(t, addr)
			ask := head + tt.ask
			fmt.Fprint(c, ask[:len(ask)-tt.cut])
			if tt.cut > 0 {
				time.Sleep(20 * time.Millisecond)
			}
			fmt.Fprint(c, ask[len(ask)-tt.cut:]+"early ")
			br := bufio.NewReader(c)
			if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "tcp" {
				t.Fatal(resp, err)
			}
			fmt.Fprint(c, "late")
			_ = c.CloseWrite()
			if got, err := io.ReadAll(br); err != nil || string(got) != "early late" {
				t.Errorf("%q %v", got, err)
			}
			waitFor(t, func() bool { return s.Conns() == 0 })
		})
	}
	t.Run("body cut short", func(t *testing.T) {
		got := make(chan string, 1)
		ln := listen(t)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			all, _ := io.ReadAll(c)
			got <- string(all)
		}()
		addr, s, _ := start(t, ln.Addr(), nil)
		c := dial(t, addr)
		fmt.Fprint(c, head+"Content-Length: 9\r\n\r\nabc")
		time.Sleep(20 * time.Millisecond)
		_ = c.CloseWrite()
		if answer, _ := io.ReadAll(c); strings.Contains(string(answer), " 101 ") {
			t.Errorf("%q", answer)
		}
		if all := <-got; !strings.HasSuffix(all, "\r\n\r\nabc") {
			t.Errorf("the upstream got %q", all)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

// TestInjection: fields set without Header's methods cannot add lines, neither up nor down.
func TestInjection(t *testing.T) {
	rec := newRecorder(t, nil)
	addr, _, _ := start(t, rec.ln.Addr(), func(_ *h1.Options, _ *upstream.Options, p *plain) {
		p.edit = func(x *exchange.Exchange) {
			switch x.Request.Path {
			case "/up":
				x.Request.Header.Fields = append(x.Request.Header.Fields, exchange.Field{Name: "X", Value: "a\r\nY: b"})
			case "/set":
				x.Request.Header.Set("X", "a\r\nY: b")
			}
		}
		p.done = func(x *exchange.Exchange) {}
	})
	got := talk(t, addr, get("/up")+get("/set")+getClose)
	if codes, _ := statuses(t, got); fmt.Sprint(codes) != "[500 200 200]" {
		t.Errorf("got %v", codes)
	}
	if b := rec.bytes(); strings.Contains(b, "\nY:") || !strings.Contains(b, "X: a  Y: b\r\n") {
		t.Errorf("the upstream received %q", b)
	}
}

// TestManyClients runs mixed traffic through one gateway; with the race detector it watches over the pools.
func TestManyClients(t *testing.T) {
	rec := newRecorder(t, func(c net.Conn, r *http.Request, n int) bool {
		id := r.Header.Get("Id")
		var err error
		if n%3 == 2 {
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nId: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", id, len(id), id)
		} else {
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nId: %s\r\nContent-Length: %d\r\n\r\n%s", id, len(id), id)
		}
		return err == nil && n < 20
	})
	addr, _, _ := start(t, rec.ln.Addr(), nil)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for i := range 100 {
				id := fmt.Sprintf("%d-%d", g, i)
				var body io.Reader
				switch i % 4 {
				case 1:
					body = strings.NewReader(id)
				case 2:
					body = io.MultiReader(strings.NewReader(strings.Repeat(id, 10_000))) // chunked
				}
				req, _ := http.NewRequest("PUT", "http://"+addr+"/", body)
				req.Header.Set("Id", id)
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == 502 && i%4 == 2 {
					continue // the upstream closed a kept connection under a body that cannot be sent twice
				}
				if err != nil || string(b) != id || resp.Header.Get("Id") != id {
					t.Errorf("%s: got %d %q %q, %v", id, resp.StatusCode, b, resp.Header.Get("Id"), err)
				}
			}
		})
	}
	wg.Wait()
}

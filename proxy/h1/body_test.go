package h1_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// TestLargeBodies sends 64 MB each way and watches the memory.
func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	piece := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	want := sha256.New()
	for range size / len(piece) {
		want.Write(piece)
	}
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprintf("chunked=%t", chunked), func(t *testing.T) {
			sums := make(chan string, 1)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h := sha256.New()
				_, _ = io.Copy(h, r.Body)
				sums <- fmt.Sprintf("%x", h.Sum(nil))
				if !chunked {
					w.Header().Set("Content-Length", fmt.Sprint(size))
				}
				for range size / len(piece) {
					_, _ = w.Write(piece)
				}
			})}
			ln := listen(t)
			go func() { _ = srv.Serve(ln) }()
			defer srv.Close()
			addr, _, _ := start(t, ln.Addr(), nil)
			pr, pw := io.Pipe()
			go func() {
				for range size / len(piece) {
					_, _ = pw.Write(piece)
				}
				_ = pw.Close()
			}()
			req, _ := http.NewRequest("POST", "http://"+addr+"/", pr)
			if !chunked {
				req.ContentLength = size
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			n, err := io.Copy(h, resp.Body)
			if err != nil || n != size {
				t.Fatalf("%d bytes, %v", n, err)
			}
			runtime.ReadMemStats(&after)
			if sum := fmt.Sprintf("%x", want.Sum(nil)); sum != <-sums || sum != fmt.Sprintf("%x", h.Sum(nil)) {
				t.Error("the bytes differ")
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
				t.Errorf("%d bytes allocated on the way", used)
			}
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		})
	}
}

// TestEarlyAnswer: the upstream refuses an upload at once; the client must see that although it has not sent everything.
func TestEarlyAnswer(t *testing.T) {
	ln := listen(t)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 1024)
				_, _ = c.Read(buf)
				fmt.Fprint(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
				<-over // and never reads on
				_ = c.Close()
			}()
		}
	}()
	addr, s, _ := start(t, ln.Addr(), nil)
	c := dial(t, addr)
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
	go func() {
		junk := make([]byte, 1<<16)
		for {
			if _, err := c.Write(junk); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != 413 || string(b) != "big" || err != nil || !resp.Close {
		t.Errorf("got %d %q %v", resp.StatusCode, b, err)
	}
	_ = c.Close()
	waitFor(t, func() bool { return s.Conns() == 0 })
}

// TestFullDuplex: the upstream answers while the request is still coming.
func TestFullDuplex(t *testing.T) {
	ln := listen(t)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		buf := make([]byte, 100)
		for {
			n, err := req.Body.Read(buf)
			if n > 0 {
				fmt.Fprintf(c, "%x\r\n%s\r\n", n, buf[:n])
			}
			if err != nil {
				fmt.Fprint(c, "0\r\n\r\n")
				return
			}
		}
	}()
	addr, _, _ := start(t, ln.Addr(), nil)
	c := dial(t, addr)
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one", "two", "three"} {
		fmt.Fprintf(c, "%x\r\n%s\r\n", len(s), s)
		buf := make([]byte, len(s))
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != s {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	fmt.Fprint(c, "0\r\n\r\n")
	if b, err := io.ReadAll(resp.Body); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestUnreadBody: an answer that does not wait for the body arrives whole, however much the client goes on sending.
func TestUnreadBody(t *testing.T) {
	backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
		addr, s, _ := start(t, nil, func(o *h1.Options, u *upstream.Options, p *plain) {
			set(o, u, p)
			o.Handler = fixed(401, strings.Repeat("no", 5000))
		})
		for _, head := range []string{"Content-Length: 9000000", "Transfer-Encoding: chunked"} {
			c := dial(t, addr)
			fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n895440\r\n", head)
			if _, err := c.Write(bytes.Repeat([]byte("x"), 9_000_000)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			_ = c.Close()
			if codes, bodies := statuses(t, string(got)); err != nil || len(codes) != 1 || codes[0] != 401 || len(bodies[0]) != 10_000 {
				t.Errorf("%v %v", codes, err)
			}
		}
		// A small body that came along is passed over, and the connection goes on.
		got := talk(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"+getClose)
		if codes, _ := statuses(t, got); fmt.Sprint(codes) != "[401 401]" {
			t.Errorf("%v", codes)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

package h1_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"concord/proxy/h1"
	"concord/proxy/upstream"
)

func TestHalfClose(t *testing.T) { backends(t, testHalfClose) }

func testHalfClose(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
	rec := newRecorder(t, func(c net.Conn, _ *http.Request, _ int) bool {
		time.Sleep(20 * time.Millisecond)
		_, err := fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return err == nil
	})
	addr, s, _ := start(t, rec.ln.Addr(), set)
	c := dial(t, addr)
	fmt.Fprint(c, get("/"))
	_ = c.CloseWrite()
	got, err := io.ReadAll(c) // the end, not a timeout
	if err != nil || !strings.HasSuffix(string(got), "\r\n\r\nok") {
		t.Errorf("%q %v", got, err)
	}
	waitFor(t, func() bool { return s.Conns() == 0 })
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	backends(t, testTimeouts)
}

func testTimeouts(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
	const short = 150 * time.Millisecond // for one of the three: a slow machine may take as long for the others
	head := func(o *h1.Options) { o.HeaderTimeout = short }
	body := func(o *h1.Options) { o.BodyTimeout = short }
	idle := func(o *h1.Options) { o.IdleTimeout = short }
	rec := newRecorder(t, nil)
	tests := []struct {
		name, send, want string
		limit            func(*h1.Options)
	}{
		{"nothing", "", "", idle},
		{"D1 slow header", "GET / HTTP/1.1\r\nHo", "HTTP/1.1 408 ", head},
		{"D1 slow body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhal", "HTTP/1.1 408 ", body},
		{"D1 slow chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", "HTTP/1.1 408 ", body},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr, s, _ := start(t, rec.ln.Addr(), func(o *h1.Options, u *upstream.Options, p *plain) {
				set(o, u, p)
				tt.limit(o)
			})
			c := dial(t, addr)
			fmt.Fprint(c, tt.send)
			got, err := io.ReadAll(c)
			_ = c.Close()
			if err != nil || !strings.HasPrefix(string(got), tt.want) || tt.want == "" && len(got) > 0 {
				t.Errorf("%q, %v", got, err)
			}
			waitFor(t, func() bool { return s.Conns() == 0 })
		})
	}
	t.Run("D1 drip", func(t *testing.T) {
		t.Parallel()
		addr, s, _ := start(t, rec.ln.Addr(), func(o *h1.Options, u *upstream.Options, p *plain) {
			set(o, u, p)
			head(o)
		})
		c := dial(t, addr)
		go func() {
			for {
				if _, err := fmt.Fprint(c, "X"); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		buf := make([]byte, 1000)
		if n, _ := c.Read(buf); !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 408 ") {
			t.Errorf("got %q", buf[:n])
		}
		_ = c.Close()
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
	t.Run("D1 slow reader", func(t *testing.T) {
		t.Parallel()
		big := newRecorder(t, answers("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"+strings.Repeat("x", 30<<20), false))
		addr, s, _ := start(t, big.ln.Addr(), func(o *h1.Options, u *upstream.Options, p *plain) {
			set(o, u, p)
			o.WriteTimeout = 150 * time.Millisecond
		})
		c := dial(t, addr)
		fmt.Fprint(c, get("/"))
		waitFor(t, func() bool { return big.connections() == 1 })
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
	t.Run("idle after a request", func(t *testing.T) {
		t.Parallel()
		addr, s, _ := start(t, rec.ln.Addr(), func(o *h1.Options, u *upstream.Options, p *plain) {
			set(o, u, p)
			o.IdleTimeout = 3 * time.Second // by the coarse clock
		})
		c := dial(t, addr)
		fmt.Fprint(c, get("/"))
		if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
			t.Errorf("%q, %v", got, err)
		}
		waitFor(t, func() bool { return s.Conns() == 0 })
	})
}

// TestClientLeaves: nobody reads from a client whose answer is awaited, yet the upstream is freed when it leaves.
func TestClientLeaves(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]string{
		"before the head": get("/wait"), "with a request behind": get("/wait") + get("/next"),
		"within a body": "POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx", "within the answer": get("/begin"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			freed := make(chan struct{})
			var once sync.Once
			rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
				if r.URL.Path == "/begin" {
					fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegin")
				}
				_, _ = io.Copy(io.Discard, c)
				once.Do(func() { close(freed) })
				return false
			})
			addr, s, _ := start(t, rec.ln.Addr(), nil)
			c := dial(t, addr)
			fmt.Fprint(c, send)
			if name == "within the answer" {
				if _, err := bufio.NewReader(c).ReadString('b'); err != nil {
					t.Fatal(err)
				}
			} else if name != "within a body" { // where the recorder waits for the rest
				waitFor(t, func() bool { return len(rec.requests()) == 1 })
			}
			_ = c.Close()
			if name != "within a body" {
				select {
				case <-freed:
				case <-time.After(60 * time.Second):
					t.Fatal("the upstream still waits")
				}
			}
			waitFor(t, func() bool { return s.Conns() == 0 })
		})
	}
}

func TestDrain(t *testing.T) { backends(t, testDrain) }

func testDrain(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
	release := make(chan struct{})
	rec := newRecorder(t, func(c net.Conn, r *http.Request, _ int) bool {
		if r.RequestURI == "/slow" {
			<-release
		}
		_, err := fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return err == nil
	})
	addr, s, _ := start(t, rec.ln.Addr(), set)
	idle, busy, partial := dial(t, addr), dial(t, addr), dial(t, addr)
	fmt.Fprint(idle, get("/"))
	if _, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(busy, get("/slow"))
	fmt.Fprint(partial, get("/")+"GET /partial HTTP/1.1\r\n") // with the answer to the first it is known that the second has begun to arrive
	rest := bufio.NewReader(partial)
	if r, err := http.ReadResponse(rest, nil); err != nil {
		t.Fatal(err)
	} else if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(rec.requests()) == 3 && s.Conns() == 3 })
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	if _, err := io.ReadAll(idle); err != nil {
		t.Error("idle:", err)
	}
	fmt.Fprint(partial, "Host: a\r\n\r\n")
	if got, err := io.ReadAll(rest); err != nil || !strings.Contains(string(got), "Connection: close") {
		t.Errorf("partial: %q, %v", got, err)
	}
	close(release)
	if got, err := io.ReadAll(busy); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") || !strings.Contains(string(got), "Connection: close") {
		t.Errorf("busy: %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Error("still accepting")
	}
}

// TestHeadTime: the time of a head begins with its first byte, not with the wait for it.
func TestHeadTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := h1.New(h1.Options{Handler: fixed(200, "ok"), HeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute})
		defer func() { _ = s.Shutdown(t.Context()) }()
		c, other := net.Pipe()
		go s.ServeConn(other, &h1.ConnInfo{})
		in := bufio.NewReader(c)
		for i, want := range []int{200, 200, 408} {
			time.Sleep(30 * time.Second)
			fmt.Fprint(c, "GET / HTTP/1.1\r\n")
			time.Sleep([]time.Duration{0, 8 * time.Second, 11 * time.Second}[i])
			if want == 200 {
				fmt.Fprint(c, "Host: a\r\n\r\n")
			}
			r, err := http.ReadResponse(in, nil)
			if err != nil || r.StatusCode != want {
				t.Fatal(i, r, err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
		}
		_ = c.Close()
	})
}

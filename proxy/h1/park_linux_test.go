package h1_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// lot is a server whose connections are followed: served are those with a goroutine, open those that have not ended.
type lot struct {
	*h1.Server
	addr         string
	clock        *h1.Clock
	tls          *tls.Config
	served, open atomic.Int64
}

// mirror answers with the body of the request, or its path, or something that ends early.
type mirror struct{}

func (mirror) Serve(x *exchange.Exchange) {
	x.Response.Status = 200
	if x.Request.Path == "/broken" {
		x.Response.Length, x.Response.Body = -1, &broken{}
		return
	}
	said := []byte(x.Request.Path)
	if b := x.Request.Body; b != nil {
		said = nil
		for {
			p, err := b.Next()
			if said = append(said, p...); err == io.EOF {
				break
			} else if err != nil {
				x.Response.Status, said = 408, []byte(err.Error())
				break
			}
		}
		_ = b.Close()
	}
	x.Response.SetBody(said)
}
func (mirror) Finish(*exchange.Exchange) {}

// newLot serves, with TLS or without. idle and head are times after which connections are given up.
func newLot(t *testing.T, secure bool, idle, head time.Duration) *lot {
	l := &lot{clock: h1.NewClock()}
	l.Server = h1.New(h1.Options{Handler: mirror{}, IdleTimeout: idle, HeaderTimeout: head, Clock: l.clock})
	if secure {
		s := httptest.NewTLSServer(nil)
		l.tls = s.TLS.Clone()
		s.Close()
	}
	ln := listen(t)
	l.addr = ln.Addr().String()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			l.served.Add(1)
			l.open.Add(1)
			go func() {
				defer l.served.Add(-1)
				info := &h1.ConnInfo{Ended: func() { l.open.Add(-1) }}
				if l.tls != nil {
					tc := tls.Server(h1.NewTLSSocket(nc, nil), l.tls)
					if tc.Handshake() != nil {
						nc.Close()
						info.End()
						return
					}
					state := tc.ConnectionState()
					nc, info.TLS = tc, &state
				}
				l.ServeConn(nc, info)
			}()
		}
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = l.Shutdown(ctx)
		waitFor(t, func() bool { return l.open.Load() == 0 && l.Conns() == 0 })
		l.clock.Stop()
	})
	return l
}

// client is one that has been answered once.
type client struct {
	net.Conn
	in *bufio.Reader
}

func (l *lot) dial() (*client, error) {
	nc, err := net.Dial("tcp", l.addr)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(90 * time.Second))
	if l.tls != nil {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	}
	c := &client{nc, bufio.NewReader(nc)}
	return c, c.ask("/first")
}

func (l *lot) client(t *testing.T) *client {
	t.Helper()
	c, err := l.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (c *client) ask(path string) error {
	if _, err := fmt.Fprint(c, get(path)); err != nil {
		return err
	}
	return c.answered(path)
}

func (c *client) answered(want string) error {
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", want, err)
	}
	got, err := io.ReadAll(r.Body)
	if err != nil || string(got) != want || r.StatusCode != 200 {
		return fmt.Errorf("%s: %d %q %w", want, r.StatusCode, got, err)
	}
	return nil
}

// parked waits until the connections that are open, n of them, hold no goroutine.
func (l *lot) parked(t *testing.T, n int64) {
	t.Helper()
	waitFor(t, func() bool { return l.served.Load() == 0 && l.open.Load() == n })
	if got := l.open.Load(); got != n || int64(l.Conns()) != n {
		t.Fatalf("%d connections are open, %d known to the server, want %d", got, l.Conns(), n)
	}
}

func TestParked(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		idle time.Duration
		head time.Duration
		do   func(l *lot, c *client) error
		ends bool
	}{
		{"request", time.Hour, time.Hour, func(_ *lot, c *client) error { return c.ask("/again") }, false},
		{"pipelined", time.Hour, time.Hour, func(_ *lot, c *client) error {
			fmt.Fprint(c, get("/a")+get("/b")+get("/c"))
			for _, want := range []string{"/a", "/b", "/c"} {
				if err := c.answered(want); err != nil {
					return err
				}
			}
			return nil
		}, false},
		{"body", time.Hour, time.Hour, func(_ *lot, c *client) error {
			fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
			time.Sleep(10 * time.Millisecond)
			fmt.Fprint(c, "body")
			return c.answered("body")
		}, false},
		{"half a head", time.Hour, time.Hour, func(_ *lot, c *client) error {
			fmt.Fprint(c, "GET /half HTT")
			time.Sleep(50 * time.Millisecond)
			fmt.Fprint(c, "P/1.1\r\nHost: a\r\n\r\n")
			return c.answered("/half")
		}, false},
		{"never the other half", time.Hour, time.Second, func(_ *lot, c *client) error {
			fmt.Fprint(c, "GET /half HTT")
			if r, err := http.ReadResponse(c.in, nil); err != nil || r.StatusCode != 408 {
				return fmt.Errorf("%v %w", r, err)
			}
			return c.Close()
		}, true},
		{"client closes", time.Hour, time.Hour, func(_ *lot, c *client) error { return c.Close() }, true},
		{"request and end", time.Hour, time.Hour, func(_ *lot, c *client) error {
			fmt.Fprint(c, get("/last"))
			if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				return err
			}
			return ended(c, "HTTP/1.1 200 ")
		}, true},
		{"idle timeout", 3 * time.Second, time.Hour, func(_ *lot, c *client) error { return ended(c, "") }, true},
		{"drain", time.Hour, time.Hour, func(l *lot, c *client) error {
			l.Drain()
			fmt.Fprint(c, get("/last"))
			return ended(c, "HTTP/1.1 200 ")
		}, true},
		{"shutdown", time.Hour, time.Hour, func(l *lot, c *client) error {
			if err := l.Shutdown(context.Background()); err != nil {
				return err
			}
			return ended(c, "")
		}, true},
		{"request and shutdown", time.Hour, time.Hour, func(l *lot, c *client) error {
			fmt.Fprint(c, get("/last"))
			if err := l.Shutdown(context.Background()); err != nil {
				return err
			}
			return ended(c, "HTTP/1.1 200 ")
		}, true},
		{"cut", time.Hour, time.Hour, func(l *lot, c *client) error {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Shutdown(ctx)
			_, _ = io.Copy(io.Discard, c)
			return nil
		}, true},
		{"clock stops", time.Hour, time.Hour, func(l *lot, c *client) error {
			l.clock.Stop()
			return c.ask("/still")
		}, false},
	}
	for _, secure := range []bool{false, true} {
		var lots []*lot // all wait at the same time
		var clients []*client
		for _, tt := range tests {
			l := newLot(t, secure, tt.idle, tt.head)
			lots, clients = append(lots, l), append(clients, l.client(t))
		}
		for i, tt := range tests {
			t.Run(fmt.Sprintf("%s, TLS %v", tt.name, secure), func(t *testing.T) {
				t.Parallel()
				l, c := lots[i], clients[i]
				waitFor(t, func() bool { return l.served.Load() == 0 })
				if err := tt.do(l, c); err != nil {
					t.Error(err)
				}
				if tt.ends {
					waitFor(t, func() bool { return l.open.Load() == 0 && l.Conns() == 0 })
				} else if err := c.ask("/more"); err != nil || l.open.Load() != 1 {
					t.Error(err, l.open.Load())
				}
			})
		}
	}
}

// ended reads until the end and compares how that begins.
func ended(c *client, want string) error {
	got, err := io.ReadAll(c.in)
	if err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
		return fmt.Errorf("got %q, want %q: %w", got, want, err)
	}
	return nil
}

// TestParking: requests that come just when connections are being parked, whole and in parts, are answered.
func TestParking(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			t.Parallel()
			l := newLot(t, secure, time.Hour, time.Hour)
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					c, err := l.dial()
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					for round := range 2 {
						time.Sleep(950*time.Millisecond + time.Duration(4*i)*time.Millisecond)
						switch i % 3 {
						case 0:
							err = c.ask("/whole")
						case 1:
							fmt.Fprint(c, "GET /parts HTTP/1.1\r\n")
							time.Sleep(time.Millisecond)
							fmt.Fprint(c, "Host: a\r\n\r\n")
							err = c.answered("/parts")
						default:
							fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
							time.Sleep(time.Millisecond)
							fmt.Fprint(c, "body")
							err = c.answered("body")
						}
						if err != nil {
							t.Error(i, round, err)
							return
						}
					}
				})
			}
			wg.Wait()
			waitFor(t, func() bool { return l.open.Load() == 0 })
		})
	}
}

// TestIdleMeetsRequest: of requests that are sent when the idle timeout is about to pass each is answered, or finds the connection ended in order.
func TestIdleMeetsRequest(t *testing.T) {
	t.Parallel()
	l := newLot(t, false, 2*time.Second, time.Hour)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			c, err := l.dial()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			time.Sleep(1950*time.Millisecond + time.Duration(4*i)*time.Millisecond)
			if _, err := fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"); err != nil {
				return // ended
			}
			time.Sleep(time.Millisecond)
			_, _ = fmt.Fprint(c, "body")
			if _, err := c.in.Peek(1); err == nil {
				if err := c.answered("body"); err != nil {
					t.Error(i, err)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { return l.open.Load() == 0 && l.Conns() == 0 })
}

// TestParkedCrowd: many are woken at once while others close, and their descriptors become new connections'.
func TestParkedCrowd(t *testing.T) {
	t.Parallel()
	l := newLot(t, false, time.Hour, time.Hour)
	const crowd = 1000
	var clients []*client
	for range crowd {
		clients = append(clients, l.client(t))
	}
	for round := range 2 {
		l.parked(t, int64(len(clients)))
		var wg sync.WaitGroup
		for i := 0; i < len(clients); i += 2 {
			fmt.Fprint(clients[i], get(fmt.Sprint("/", i)))
		}
		for i := 1; i < len(clients); i += 2 {
			_ = clients[i].Close()
			fresh := l.client(t)
			clients[i] = fresh
			wg.Go(func() {
				for k := range 3 {
					if err := fresh.ask(fmt.Sprint("/fresh", k)); err != nil {
						t.Error(round, i, err)
						return
					}
				}
			})
		}
		for i := 0; i < len(clients); i += 2 {
			if err := clients[i].answered(fmt.Sprint("/", i)); err != nil {
				t.Fatal(round, i, err)
			}
		}
		wg.Wait()
		waitFor(t, func() bool { return l.open.Load() == crowd })
	}
}

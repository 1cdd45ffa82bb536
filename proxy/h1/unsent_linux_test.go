package h1_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// accepting notes the sockets of the clients by their addresses.
type accepting struct {
	net.Listener
	conns sync.Map
}

func (a *accepting) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err == nil {
		a.conns.Store(c.RemoteAddr().String(), c)
	}
	return c, err
}

// unsent is the TCP_NOTSENT_LOWAT of the connection with a client.
func (a *accepting) unsent(t *testing.T, client string) (limit int) {
	c, _ := a.conns.Load(client)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { limit, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
	}
	if err != nil {
		t.Error(err)
	}
	return limit
}

// halting is a long body that tells when it has been taken half and goes on when it is told to.
type halting struct {
	piece []byte
	left  int
	half  func()
}

func (h *halting) Next() ([]byte, error) {
	if h.left--; h.left == 4 {
		h.half()
	}
	if h.left == 0 {
		return h.piece, io.EOF
	}
	return h.piece, nil
}

func (*halting) Close() error { return nil }

type serveFunc func(x *exchange.Exchange)

func (f serveFunc) Serve(x *exchange.Exchange) { f(x) }
func (serveFunc) Finish(*exchange.Exchange)    {}

// TestLongResponsesWaitOutsideTheKernel: what the listener bounds is lifted for long responses, for 32 at a time, until they have ended.
func TestLongResponsesWaitOutsideTheKernel(t *testing.T) {
	const clients, limit = 40, 64 << 10
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, limit) })
		return err
	}}
	lc.SetMultipathTCP(false)
	tcp, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &accepting{Listener: tcp}
	var half sync.WaitGroup
	half.Add(clients)
	on := make(chan struct{})
	piece := make([]byte, 256<<10)
	s := h1.New(h1.Options{Handler: serveFunc(func(x *exchange.Exchange) {
		x.Response.Status, x.Response.Length = 200, int64(10*len(piece))
		x.Response.Body = &halting{piece, 10, func() { half.Done(); <-on }}
	})})
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Shutdown(t.Context()) })
	var all sync.WaitGroup
	lifted := func() (n int) {
		ln.conns.Range(func(client, _ any) bool {
			switch got := ln.unsent(t, client.(string)); got {
			case 0:
				n++
			case limit:
			default:
				t.Errorf("the socket's limit is %d", got)
			}
			return true
		})
		return n
	}
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	for round := range 2 {
		for range clients {
			all.Go(func() {
				r, err := c.Get("http://" + tcp.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				if n, err := io.Copy(io.Discard, r.Body); n != int64(10*len(piece)) || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				r.Body.Close()
			})
		}
		half.Wait()
		if n := lifted(); n != 32 {
			t.Errorf("round %d: %d responses are sent without a limit, want 32", round, n)
		}
		half.Add(clients)
		close(on)
		all.Wait()
		waitFor(t, func() bool { return lifted() == 0 })
		on = make(chan struct{})
	}
	c.CloseIdleConnections()
}

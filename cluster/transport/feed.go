package transport

import (
	"net"
	"sync"
	"time"
)

// feed is a net.Listener whose connections are handed in by the port after the handshake.
type feed struct {
	addr net.Addr
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newFeed(addr net.Addr) *feed {
	return &feed{addr: addr, in: make(chan net.Conn), done: make(chan struct{})}
}

// put hands over a connection; false if nobody takes it in time.
func (f *feed) put(c net.Conn) bool {
	t := time.NewTimer(5 * time.Second)
	defer t.Stop()
	select {
	case f.in <- c:
		return true
	case <-f.done:
	case <-t.C:
	}
	return false
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.in:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

func (f *feed) Addr() net.Addr { return f.addr }

package main

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"concord/cmd/concord/settings"
)

// sockets are the listening sockets of a node.
type sockets struct {
	proxy, admin, status []bound
}

// bound is an open listener with its settings.
type bound struct {
	net.Listener
	conf settings.Listener
}

// listenAll opens the sockets of all listeners, or none.
func listenAll(s *settings.Settings) (*sockets, error) {
	out := &sockets{}
	for _, g := range []struct {
		key  string
		list []settings.Listener
		to   *[]bound
	}{{"proxy_listen", s.ProxyListen, &out.proxy}, {"admin_listen", s.AdminListen, &out.admin}, {"status_listen", s.StatusListen, &out.status}} {
		for _, l := range g.list {
			ln, err := listen(l)
			if err != nil {
				out.close()
				return nil, fmt.Errorf("%s: cannot listen on %s: %w", g.key, l.Addr(), err)
			}
			*g.to = append(*g.to, bound{ln, l})
		}
	}
	return out, nil
}

func listen(l settings.Listener) (net.Listener, error) {
	c := net.ListenConfig{}
	if l.ReusePort {
		c.Control = func(_, _ string, raw syscall.RawConn) error {
			var err error
			if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
				return cerr
			}
			return err
		}
	}
	return c.Listen(context.Background(), "tcp", l.Addr())
}

// close closes all; closing twice does no harm.
func (s *sockets) close() {
	closeAll(s.proxy)
	closeAll(s.admin)
	closeAll(s.status)
}

func closeAll(list []bound) {
	for _, b := range list {
		b.Close()
	}
}

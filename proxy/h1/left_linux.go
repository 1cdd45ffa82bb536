package h1

import (
	"net"
	"syscall"
)

// States of a TCP connection (linux/tcp.h).
const (
	tcpClose     = 7 // reset
	tcpCloseWait = 8 // the other side has ended
)

// peerEnded tells whether the other end has closed or reset the connection. Like nginx it does not tell a client that only
// ended its side from one that left. What was sent before the end may still wait to be read.
func peerEnded(nc net.Conn) bool {
	return onSocket(nc, func(fd uintptr) bool {
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO) // its first byte is the state
		state := info & 0xff
		return err == nil && (state == tcpClose || state == tcpCloseWait)
	})
}

// socket is what is below a connection; nil: no TCP.
func socket(nc net.Conn) *net.TCPConn {
	for {
		inner, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			t, _ := nc.(*net.TCPConn)
			return t
		}
		nc = inner.NetConn()
	}
}

func onSocket(nc net.Conn, f func(fd uintptr) bool) bool {
	t := socket(nc)
	if t == nil {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	yes := false
	err = raw.Control(func(fd uintptr) { yes = f(fd) })
	return err == nil && yes
}

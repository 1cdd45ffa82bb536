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
	for {
		inner, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = inner.NetConn()
	}
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = raw.Control(func(fd uintptr) {
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO) // its first byte is the state
		state := info & 0xff
		ended = err == nil && (state == tcpClose || state == tcpCloseWait)
	})
	return err == nil && ended
}

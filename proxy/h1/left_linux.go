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

// atEnd tells whether a read would return the end of the stream, with nothing before it.
func atEnd(nc net.Conn) bool {
	return onSocket(nc, func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return n == 0 && err == nil
	})
}

func onSocket(nc net.Conn, f func(fd uintptr) bool) bool {
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
	yes := false
	err = raw.Control(func(fd uintptr) { yes = f(fd) })
	return err == nil && yes
}

package h1

import (
	"net"
	"syscall"
)

const tcpNotSentLowat = 25 // TCP_NOTSENT_LOWAT (linux/tcp.h)

// unsent is how many bytes the kernel takes before it can send them; 0: as many as it likes.
func unsent(nc net.Conn) (limit int) {
	onSocket(nc, func(fd uintptr) bool {
		limit, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat)
		return true
	})
	return limit
}

func setUnsent(nc net.Conn, limit int) {
	onSocket(nc, func(fd uintptr) bool {
		return syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, limit) == nil
	})
}

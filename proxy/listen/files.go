package listen

import (
	"net"
	"syscall"
)

// Files is how many of the files that a process may open its clients can take, with the connections to upstreams that they cause. It is compared
// with the number of a socket, for the kernel gives the lowest one that is free: while no socket is kept whose number is not below it, the
// files above are free for whatever else has to go on. 0 is no bound.
type Files int

// Control is for a net.Dialer: a socket too many is EMFILE, as if there were none left at all.
func (f Files) Control(_, _ string, c syscall.RawConn) error {
	over := false
	err := c.Control(func(fd uintptr) { over = f > 0 && int(fd) >= int(f) })
	if over {
		return syscall.EMFILE
	}
	return err
}

// Take says whether a connection that was accepted may stay.
func (f Files) Take(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if f == 0 || !ok {
		return true
	}
	c, err := sc.SyscallConn()
	return err == nil && f.Control("", "", c) == nil
}

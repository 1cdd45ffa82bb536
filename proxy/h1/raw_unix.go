//go:build unix

package h1

import (
	"io"
	"syscall"
)

// rawIO: sockets can be read and written inside a RawConn callback.
const rawIO = true

// rawRead reads without waiting. ok is false when there is nothing to read.
func rawRead(fd int, p []byte) (n int, ok bool, err error) {
	for {
		n, errno := sysRead(fd, p)
		switch {
		case errno == 0 && n == 0:
			return 0, true, io.EOF
		case errno == 0:
			return n, true, nil
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			return 0, false, nil
		default:
			return 0, true, errno
		}
	}
}

// rawWrite writes what the socket takes without waiting.
func rawWrite(fd int, p []byte) (int, error) {
	for {
		n, errno := sysWrite(fd, p)
		switch errno {
		case 0:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

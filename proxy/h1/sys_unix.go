//go:build unix && (!linux || race || 386 || s390x)

package h1

import "syscall"

// The race detector wants to see the calls: what one goroutine sends and another one receives orders them.

func sysRead(fd int, p []byte) (int, syscall.Errno) { return answer(syscall.Read(fd, p)) }

func sysWrite(fd int, p []byte) (int, syscall.Errno) { return answer(syscall.Write(fd, p)) }

func answer(n int, err error) (int, syscall.Errno) {
	errno, _ := err.(syscall.Errno) // of these calls all errors are
	return n, errno
}

//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// upstream answers every request with 200 from one thread, so that it is never what is measured. /size/N asks for a body of N bytes,
// anything else gets 1 KiB. It understands keep-alive and request bodies with a length, nothing more.
type upstream struct {
	ep      int
	answers map[int][]byte
	conns   map[int32]*upstreamConn
	buf     []byte
}

type upstreamConn struct {
	in   []byte // a head that is not complete
	skip int    // of a request body
	next []byte // the answer behind that body
	out  []byte // what the socket did not take
}

func serveUpstream(addr string) error {
	runtime.LockOSThread()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close() // and so it is not collected, which would close it
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer f.Close()
	u := &upstream{answers: map[int][]byte{}, conns: map[int32]*upstreamConn{}, buf: make([]byte, 256<<10)}
	if u.ep, err = unix.EpollCreate1(0); err != nil {
		return err
	}
	lfd := int32(f.Fd())
	if err := unix.SetNonblock(int(lfd), true); err != nil {
		return err
	}
	if err := watch(u.ep, unix.EPOLL_CTL_ADD, lfd, unix.EPOLLIN); err != nil {
		return err
	}
	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(u.ep, events, -1)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == lfd {
				u.accept(int(lfd))
			} else if c := u.conns[e.Fd]; c != nil && !u.serve(e.Fd, c, e.Events) {
				delete(u.conns, e.Fd)
				_ = unix.Close(int(e.Fd))
			}
		}
	}
}

func watch(ep, op int, fd int32, events uint32) error {
	return unix.EpollCtl(ep, op, int(fd), &unix.EpollEvent{Events: events, Fd: fd})
}

func (u *upstream) accept(lfd int) {
	for {
		fd, _, err := unix.Accept4(lfd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if watch(u.ep, unix.EPOLL_CTL_ADD, int32(fd), unix.EPOLLIN) == nil {
			u.conns[int32(fd)] = &upstreamConn{}
		}
	}
}

// serve reports false when the connection is over.
func (u *upstream) serve(fd int32, c *upstreamConn, events uint32) bool {
	if len(c.out) > 0 {
		if events&unix.EPOLLOUT != 0 && !u.send(fd, c, c.out) {
			return false
		}
		if len(c.out) > 0 {
			return events&(unix.EPOLLHUP|unix.EPOLLERR) == 0
		}
	}
	n, err := unix.Read(int(fd), u.buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return true
	}
	if n <= 0 {
		return false
	}
	in := u.buf[:n]
	if len(c.in) > 0 {
		c.in = append(c.in, in...)
		in = c.in
	}
	for len(in) > 0 {
		if c.skip > 0 {
			k := min(c.skip, len(in))
			c.skip, in = c.skip-k, in[k:]
			if c.skip == 0 && !u.send(fd, c, c.next) {
				return false
			}
			continue
		}
		e := bytes.Index(in, []byte("\r\n\r\n"))
		if e < 0 {
			break
		}
		answer := u.answer(in[:e])
		c.skip = contentLength(in[:e+2])
		in = in[e+4:]
		if c.skip > 0 {
			c.next = answer
		} else if !u.send(fd, c, answer) {
			return false
		}
	}
	c.in = append(c.in[:0], in...)
	return true
}

func (u *upstream) answer(head []byte) []byte {
	size := 1024
	if _, rest, ok := bytes.Cut(head, []byte("/size/")); ok {
		digits, _, _ := bytes.Cut(rest, []byte(" "))
		size, _ = strconv.Atoi(string(digits))
	}
	b := u.answers[size]
	if b == nil {
		b = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", size)
		b = append(b, bytes.Repeat([]byte("x"), size)...)
		u.answers[size] = b
	}
	return b
}

func (u *upstream) send(fd int32, c *upstreamConn, b []byte) bool {
	waiting := len(c.out) > 0
	for len(b) > 0 {
		n, err := unix.Write(int(fd), b)
		if err == unix.EAGAIN {
			c.out = b // an answer is never changed
			return waiting || watch(u.ep, unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN|unix.EPOLLOUT) == nil
		}
		if err != nil && err != unix.EINTR {
			return false
		}
		b = b[max(n, 0):]
	}
	c.out = nil
	return !waiting || watch(u.ep, unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN) == nil
}

// contentLength is the length a head tells, 0 if it tells none.
func contentLength(head []byte) int {
	const name = "\ncontent-length:"
	for i := 0; i+len(name) <= len(head); i++ {
		if head[i] == '\n' && head[i+1]|0x20 == 'c' && bytes.EqualFold(head[i:i+len(name)], []byte(name)) {
			value, _, _ := bytes.Cut(head[i+len(name):], []byte("\r"))
			n, _ := strconv.Atoi(string(bytes.TrimSpace(value)))
			return n
		}
	}
	return 0
}

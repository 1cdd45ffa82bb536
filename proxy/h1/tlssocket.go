package h1

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
)

// TLSSocket is the socket below a *tls.Conn. Server and client read TLS from it as they read plain HTTP: inside one RawConn callback, where a read
// that finds nothing ends instead of waiting, and where it is not even tried when the read before has left nothing. Outside of that, it is
// like any net.Conn.
//
// It relies on this: a *tls.Conn goes on after a read that timed out, which is how a read that finds nothing ends.
type TLSSocket struct {
	net.Conn
	first []byte          // was read to look at, and is given back
	raw   syscall.RawConn // nil: only net.Conn

	// Of the goroutine that reads.
	fd    int  // of the running RawConn callback, or -1
	empty bool // there is nothing to read
	short bool // the last read has left nothing behind
	begun bool // something has come of what is not whole yet: a record, as a rule

	mu   sync.Mutex // of a write
	out  []byte
	err  error
	send func(fd uintptr) bool // sendSome, bound once
}

// NewTLSSocket makes what tls.Server or tls.Client is to be given. first was read from nc already.
func NewTLSSocket(nc net.Conn, first []byte) *TLSSocket {
	s := &TLSSocket{Conn: nc, first: first, fd: -1}
	if t, ok := nc.(*net.TCPConn); ok && rawIO {
		s.raw, _ = t.SyscallConn()
	}
	s.send = s.sendSome
	return s
}

// NetConn is the connection below, as of a *tls.Conn.
func (s *TLSSocket) NetConn() net.Conn { return s.Conn }

func (s *TLSSocket) below() *TLSSocket { return s }

// tlsSocket is what is below a *tls.Conn; nil: no TLSSocket, or one that is not a socket.
func tlsSocket(nc net.Conn) *TLSSocket {
	outer, ok := nc.(interface{ NetConn() net.Conn })
	if !ok {
		return nil
	}
	inner, ok := outer.NetConn().(interface{ below() *TLSSocket })
	if !ok || inner.below().raw == nil {
		return nil
	}
	return inner.below()
}

// readThrough reads from outer, the *tls.Conn above, without waiting. ok is false when not enough has arrived.
func (s *TLSSocket) readThrough(outer net.Conn, fd int, p []byte) (n int, ok bool, err error) {
	s.fd, s.short = fd, false
	n, err = outer.Read(p)
	s.fd, s.empty = -1, false
	switch {
	case n > 0:
		s.begun = false
		return n, true, nil // an error comes again
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, false, nil
	}
	return 0, true, err
}

// Read begins with what was read before.
func (s *TLSSocket) Read(p []byte) (int, error) {
	if len(s.first) > 0 {
		n := copy(p, s.first)
		if s.first = s.first[n:]; len(s.first) == 0 {
			s.first = nil
		}
		return n, nil
	}
	if s.fd < 0 {
		return s.Conn.Read(p)
	}
	if s.empty {
		return 0, os.ErrDeadlineExceeded
	}
	n, ok, err := rawRead(s.fd, p)
	if !ok {
		return 0, os.ErrDeadlineExceeded
	}
	s.short, s.begun = n < len(p), true
	return n, err
}

// Write sends all of p. The scheduler is not told of the system call, see sysWrite.
func (s *TLSSocket) Write(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Write(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out, s.err = p, nil
	err := s.raw.Write(s.send)
	if err == nil {
		err = s.err
	}
	n := len(p) - len(s.out)
	s.out = nil
	return n, err
}

func (s *TLSSocket) sendSome(fd uintptr) bool {
	for len(s.out) > 0 {
		n, err := rawWrite(int(fd), s.out)
		if err != nil || n == 0 {
			s.err = err
			return err != nil
		}
		s.out = s.out[n:]
	}
	return true
}

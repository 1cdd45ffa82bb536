package h1

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Buffer sizes. A connection holds none while it is parked.
const (
	smallBuffer = 16 << 10 // heads, and bodies that come with them
	largeBuffer = 64 << 10 // long bodies
	writePiece  = 16 << 10 // what must be taken by a slow reader within one write timeout
)

type buffer struct{ b []byte }

var (
	smallPool = sync.Pool{New: func() any { return &buffer{make([]byte, smallBuffer)} }}
	largePool = sync.Pool{New: func() any { return &buffer{make([]byte, largeBuffer)} }}
)

// outgoing is what waits to be sent. When it is sent, its memory goes back: requests wait for their upstreams, and long bodies for what comes
// next, without any.
type outgoing struct {
	b   []byte
	buf *buffer // that b began in
}

// queued is b with room behind it.
func (o *outgoing) queued() []byte {
	if o.buf == nil {
		o.buf = smallPool.Get().(*buffer)
		o.b = o.buf.b[:0]
	}
	return o.b
}

// fits tells whether n more bytes may be gathered.
func (o *outgoing) fits(n int) bool { return len(o.b)+n <= smallBuffer }

func (o *outgoing) drop() {
	if o.buf != nil && cap(o.b) <= 4*smallBuffer { // else it has grown for a rare head
		o.buf.b = o.b[:cap(o.b)]
		smallPool.Put(o.buf)
	}
	*o = outgoing{}
}

// putBuffer gives a buffer back to the pool that it is from.
func putBuffer(b *buffer) {
	if len(b.b) < largeBuffer {
		smallPool.Put(b)
	} else {
		largePool.Put(b)
	}
}

// access is the way to the socket itself, where the platform has one.
type access struct {
	raw syscall.RawConn // nil: only net.Conn
	tls *TLSSocket      // the connection is a *tls.Conn, and this the socket of raw; nil: it is the socket
}

func accessTo(nc net.Conn) (a access) {
	if t, ok := nc.(*net.TCPConn); ok && rawIO {
		a.raw, _ = t.SyscallConn()
	} else if a.tls = tlsSocket(nc); a.tls != nil {
		a.raw = a.tls.raw
	}
	return a
}

// look reads without waiting, inside a RawConn callback. ok is false when there is nothing to read.
func (a *access) look(nc net.Conn, fd int, p []byte) (n int, ok bool, err error) {
	if a.tls != nil {
		return a.tls.readThrough(nc, fd, p)
	}
	return rawRead(fd, p)
}

// wire is a connection with its deadlines.
type wire struct {
	alarm
	access
}

func (w *wire) open(nc net.Conn, c *Clock) {
	w.attach(nc, c)
	w.access = accessTo(nc)
}

func (w *wire) look(fd int, p []byte) (n int, ok bool, err error) { return w.access.look(w.nc, fd, p) }

// read waits for bytes, at most d; 0 leaves the deadline as it is.
func (w *wire) read(p []byte, d time.Duration) (int, error) {
	if d <= 0 {
		return w.nc.Read(p)
	}
	w.armRead(d)
	n, err := w.nc.Read(p)
	if w.disarmRead(d) && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// write sends all of p; d is the time for each piece. fd, if not negative, is the socket of a connection whose RawConn
// callback is running: the socket is then tried directly, which saves the locks of net.Conn.
func (w *wire) write(fd int, p []byte, d time.Duration) error {
	if fd >= 0 && w.tls == nil {
		n, err := rawWrite(fd, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	for len(p) > 0 {
		k := min(len(p), writePiece)
		if w.raw == nil || w.tls != nil {
			k = len(p) // TLS cuts records itself; a timeout breaks the connection anyway
		}
		w.armWrite(d)
		_, err := w.nc.Write(p[:k])
		if w.disarmWrite(d) && err == nil {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return err
		}
		p = p[k:]
	}
	return nil
}

// Memory is what a Source reads into.
type Memory interface {
	// Room is called when something may have come.
	Room() []byte
	// Idle is called when nothing has: until Room is called again, nothing of what that returned is needed.
	Idle()
}

// Source reads what may be long in coming. While it waits it needs no memory, where the platform has access to sockets.
type Source struct {
	nc net.Conn
	access
	memory Memory
	n      int
	err    error
	try    func(fd uintptr) bool // attempt, bound once
}

// Open makes s the source of what comes on nc, a *net.TCPConn or a *tls.Conn above a TLSSocket; other connections are read as they are.
func (s *Source) Open(nc net.Conn, m Memory) { s.open(nc, accessTo(nc), m) }

func (s *Source) open(nc net.Conn, a access, m Memory) {
	s.nc, s.access, s.memory = nc, a, m
	if s.try == nil {
		s.try = s.attempt
	}
}

// Read waits as the connection's own Read does.
func (s *Source) Read() (int, error) {
	if s.raw == nil {
		return s.nc.Read(s.memory.Room())
	}
	s.n, s.err = 0, nil
	if err := s.raw.Read(s.try); err != nil {
		return 0, err
	}
	return s.n, s.err
}

func (s *Source) attempt(fd uintptr) bool {
	n, ok, err := s.look(s.nc, int(fd), s.memory.Room())
	if !ok {
		s.memory.Idle()
		return false
	}
	s.n, s.err = n, err
	return true
}

// reader is a source with memory from a pool, and a deadline.
type reader struct {
	Source
	w     *wire
	pool  *sync.Pool
	limit int // of what is read at once
	buf   *buffer
}

// prepare makes the next read one of at most so many bytes.
func (r *reader) prepare(w *wire, pool *sync.Pool, limit int) {
	r.w, r.pool, r.limit = w, pool, limit
	r.open(w.nc, w.access, r)
}

// read is wire.read into buf, which is nil when it had to wait and nothing has come.
func (r *reader) read(d time.Duration) (n int, err error) {
	r.w.armRead(d)
	n, err = r.Read()
	if d > 0 && r.w.disarmRead(d) && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// Room implements Memory.
func (r *reader) Room() []byte {
	if r.buf == nil {
		r.buf = r.pool.Get().(*buffer)
	}
	return r.buf.b[:min(len(r.buf.b), r.limit)]
}

// Idle implements Memory.
func (r *reader) Idle() { r.drop() }

func (r *reader) drop() {
	if r.buf != nil {
		putBuffer(r.buf)
		r.buf = nil
	}
}

// again reads with the deadline of an earlier interruption removed first. What it returns is valid until the following call or drop.
func (r *reader) again(d time.Duration) ([]byte, error) {
	n, err := r.read(d)
	if err != nil && isTimeout(err) {
		_ = r.w.nc.SetReadDeadline(time.Time{})
	}
	if r.buf == nil {
		return nil, err
	}
	return r.buf.b[:n], err
}

// resets lets the connection end in a way that is not taken for the end of what was to be sent.
func (w *wire) resets() {
	nc := w.nc
	if w.tls != nil {
		nc = w.tls.Conn
	}
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

func (w *wire) shut() error {
	w.detach()
	return w.nc.Close()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

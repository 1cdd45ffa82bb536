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

// wire is a connection with its deadlines and, where the platform has it, access to the socket itself.
type wire struct {
	alarm
	raw syscall.RawConn // nil: only net.Conn
	tls *TLSSocket      // nc is a *tls.Conn, and this the socket of raw; nil: nc is the socket
}

func (w *wire) open(nc net.Conn, c *Clock) {
	w.attach(nc, c)
	if t, ok := nc.(*net.TCPConn); ok && rawIO {
		w.raw, _ = t.SyscallConn()
	} else if w.tls = tlsSocket(nc); w.tls != nil {
		w.raw = w.tls.raw
	}
}

// look reads without waiting, inside a RawConn callback. ok is false when there is nothing to read.
func (w *wire) look(fd int, p []byte) (n int, ok bool, err error) {
	if w.tls != nil {
		return w.tls.readThrough(w.nc, fd, p)
	}
	return rawRead(fd, p)
}

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

// reader reads what may be long in coming. While it waits it has no buffer.
type reader struct {
	w     *wire
	pool  *sync.Pool
	limit int // of what is read at once
	buf   *buffer
	n     int
	err   error
	try   func(fd uintptr) bool // look, bound once
}

// prepare makes the next read one of at most so many bytes.
func (r *reader) prepare(w *wire, pool *sync.Pool, limit int) {
	r.w, r.pool, r.limit = w, pool, limit
	if r.try == nil {
		r.try = r.look
	}
}

// read is wire.read into buf, which is nil when it had to wait and nothing has come.
func (r *reader) read(d time.Duration) (n int, err error) {
	w := r.w
	r.n, r.err = 0, nil
	if w.raw == nil {
		r.take()
		return w.read(r.room(), d)
	}
	w.armRead(d)
	if err = w.raw.Read(r.try); err == nil {
		err = r.err
	}
	if d > 0 && w.disarmRead(d) && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return r.n, err
}

func (r *reader) take() {
	if r.buf == nil {
		r.buf = r.pool.Get().(*buffer)
	}
}

func (r *reader) room() []byte { return r.buf.b[:min(len(r.buf.b), r.limit)] }

func (r *reader) look(fd uintptr) bool {
	r.take()
	n, ok, err := r.w.look(int(fd), r.room())
	if !ok {
		r.drop()
		return false
	}
	r.n, r.err = n, err
	return true
}

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

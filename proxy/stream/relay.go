package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/h1"
)

// relay passes bytes between a client and an upstream until both have said all, one fails, or both are silent for too long.
type relay struct {
	up, down    half // client to upstream, upstream to client
	idle, write time.Duration
	moment      // when bytes came from either side
}

// half is one direction. in and out count bytes.
type half struct {
	r         *relay
	src, dst  net.Conn
	in, out   int64
	writeFrom time.Time // when the deadline of writes was set
	source    h1.Source
	buf       *[bufferSize]byte // nil: nothing is under way
}

// defaultTimeout is Kong's of services.
const defaultTimeout = time.Minute

func newRelay(client, upstream net.Conn, idle, write time.Duration) *relay {
	if idle <= 0 {
		idle = defaultTimeout
	}
	if write <= 0 {
		write = defaultTimeout
	}
	r := &relay{idle: idle, write: write, moment: moment{since: time.Now()}}
	r.up, r.down = half{r: r, src: client, dst: upstream}, half{r: r, src: upstream, dst: client}
	return r
}

// run sends first to the upstream, then what the client sends. An end of one side is passed on to the other, which may go on; a
// failure ends both.
func (r *relay) run(first []byte) {
	r.touch()
	deadline := time.Now().Add(r.idle)
	_ = r.up.src.SetReadDeadline(deadline)
	_ = r.down.src.SetReadDeadline(deadline)
	var wg sync.WaitGroup
	wg.Go(func() {
		r.up.in += int64(len(first))
		err := r.up.send(first)
		if err == nil {
			err = r.up.copy()
		}
		r.finish(&r.up, err)
	})
	r.finish(&r.down, r.down.copy())
	wg.Wait()
}

func (r *relay) finish(h *half, err error) {
	if err == nil {
		if c, ok := h.dst.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
			return
		}
	}
	_ = h.src.Close()
	_ = h.dst.Close()
}

// moment is a time that changes often. It is kept by the monotonic clock: the wall clock may be set, and ends or prolongs no session.
type moment struct {
	since time.Time
	after atomic.Int64
}

func (m *moment) touch() { m.after.Store(int64(time.Since(m.since))) }

func (m *moment) last() time.Time { return m.since.Add(time.Duration(m.after.Load())) }

// expired is asked when a read has come to its deadline. While either side is active, it sets the next one.
func (r *relay) expired(c net.Conn) bool {
	until := r.last().Add(r.idle)
	if !until.After(time.Now()) {
		return true
	}
	return c.SetReadDeadline(until) != nil
}

func (h *half) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	h.mayWrite()
	n, err := h.dst.Write(b)
	h.out += int64(n)
	return err
}

// mayWrite gives the next write its time. To set a deadline costs more than to look whether that is needed.
func (h *half) mayWrite() {
	if now := time.Now(); now.Sub(h.writeFrom) > h.r.write/8 {
		h.writeFrom = now
		_ = h.dst.SetWriteDeadline(now.Add(h.r.write))
	}
}

// buffers are held only while bytes are under way: thousands of silent connections cost no memory.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

const bufferSize = 32 << 10

// Room implements h1.Memory.
func (h *half) Room() []byte {
	if h.buf == nil {
		h.buf = buffers.Get().(*[bufferSize]byte)
	}
	return h.buf[:]
}

// Idle implements h1.Memory.
func (h *half) Idle() {
	if h.buf != nil {
		buffers.Put(h.buf)
		h.buf = nil
	}
}

// copy returns nil at the end of src.
func (h *half) copy() error {
	h.source.Open(h.src, h)
	defer h.Idle()
	src, _ := h.src.(*net.TCPConn)
	dst, _ := h.dst.(*net.TCPConn)
	for {
		n, err := h.source.Read()
		if n > 0 {
			h.in += int64(n)
			h.r.touch()
			if err := h.send(h.buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if h.r.expired(h.src) {
				return err
			}
		case err != nil:
			return err
		case n == bufferSize && src != nil && dst != nil:
			if err := h.splice(dst, src); err != nil {
				return err
			}
		}
	}
}

// maxSplice is how much a receiver must take before its write timeout passes.
const maxSplice = 256 << 10

// splice sends from socket to socket, inside the kernel, as long as there is more than a buffer holds.
func (h *half) splice(dst, src *net.TCPConn) error {
	rc, err := src.SyscallConn()
	if err != nil {
		return err
	}
	bulk := io.LimitedReader{R: src}
	for {
		var available int
		if rc.Control(func(fd uintptr) { available, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil || err != nil || available < bufferSize {
			return nil // what is wrong the next read tells
		}
		h.Idle()
		h.mayWrite()
		_ = src.SetReadDeadline(time.Now().Add(h.r.idle)) // not to pass in the middle
		bulk.N = int64(min(available, maxSplice))
		n, err := dst.ReadFrom(&bulk)
		h.in += n
		h.out += n
		h.r.touch()
		if err != nil {
			return err
		}
	}
}

package h2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"concord/proxy/exchange"
)

var (
	errStalled    = fmt.Errorf("h2: the other side takes no data: %w", os.ErrDeadlineExceeded)
	errBodyClosed = errors.New("h2: body was closed")
)

// stream is one exchange on a connection, and the body that comes in on it. Its connection's mu protects it.
type stream struct {
	c    *conn
	id   uint32
	x    *exchange.Exchange
	born int64
	err  error // the stream is over: reset by either side, or with its connection

	recv       sync.Cond // something has come, or it is over
	chunks     []*chunk
	held       *chunk // its bytes were handed out
	declared   int64  // Content-Length, or -1
	received   int64
	recvEnd    bool // END_STREAM has come
	started    bool // client: the final response head has come
	closed     bool // nobody wants the rest
	expect     bool // 100 Continue is to be sent before waiting
	recvWindow int
	window     int // that recvWindow is filled up to
	unacked    int
	readBy     int64
	readLate   bool
	readTime   time.Duration // between two pieces of the body
	lateErr    error         // what a late body is

	send       sync.Cond
	sendWindow int64
	sentEnd    bool
	sent       int64         // bytes queued
	writeTime  time.Duration // for a piece that the other side takes
	writeBy    int64
	writeLate  bool

	streaming bool          // server: the response body is being read
	closing   bool          // server: the response body is being closed by another goroutine
	up        *clientStream // client: what it is a part of
}

// chunk is a piece of a body: b[:e] has come.
type chunk struct {
	e int
	b []byte
}

// smallChunk holds most messages of gRPC, and bodies of forms: a request may wait for its answer for hours, with its body.
const smallChunk = 1 << 10

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, maxFrame)} }}
)

func (k *chunk) release() {
	k.e = 0
	if len(k.b) < maxFrame {
		smallChunks.Put(k)
	} else {
		largeChunks.Put(k)
	}
}

// open makes s a fresh stream. c.mu is held.
func (s *stream) open(c *conn, id uint32) {
	*s = stream{
		c: c, id: id, x: s.x, chunks: s.chunks[:0], born: c.keep.now(), declared: -1, up: s.up,
		recvWindow: defaultWindow, window: defaultWindow, sendWindow: c.peerWindow,
	}
	s.recv.L, s.send.L = &c.mu, &c.mu
	c.streams[id] = s
}

// fail ends the stream for all who wait on it. c.mu is held.
func (s *stream) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.recv.Broadcast()
	s.send.Broadcast()
}

// wasReset tells whether the other side has reset the stream: it may not send more on it. c.mu is held.
func (s *stream) wasReset() bool {
	var reset *ResetError
	return errors.As(s.err, &reset)
}

// drop forgets the stream and gives its memory back. c.mu is held.
func (s *stream) drop() {
	left := 0
	for i, k := range s.chunks {
		left += k.e
		k.release()
		s.chunks[i] = nil
	}
	s.chunks = s.chunks[:0]
	if s.held != nil {
		s.held.release()
		s.held = nil
	}
	if !s.c.lim.early {
		s.c.credit(left)
	}
	delete(s.c.streams, s.id)
}

// push keeps bytes that came in. c.mu is held.
func (s *stream) push(p []byte) {
	for len(p) > 0 {
		k := s.space(len(p))
		n := copy(k.b[k.e:], p)
		k.e += n
		p = p[n:]
	}
}

// space is a chunk, the last one, with room in it. A small one is the only one, which grows when it must. c.mu is held.
func (s *stream) space(size int) *chunk {
	n := len(s.chunks)
	if n == 0 && size <= smallChunk {
		s.chunks = append(s.chunks, smallChunks.Get().(*chunk))
	} else if n == 0 || s.chunks[n-1].e == maxFrame {
		s.chunks = append(s.chunks, largeChunks.Get().(*chunk))
	} else if k := s.chunks[n-1]; k.e == len(k.b) {
		large := largeChunks.Get().(*chunk)
		large.e = copy(large.b, k.b)
		s.chunks[n-1] = large
		k.release()
	}
	return s.chunks[len(s.chunks)-1]
}

// body is the exchange.Body of what comes in on a stream.
type body stream

// Ready implements exchange.Readier.
func (b *body) Ready() bool {
	s := (*stream)(b)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return len(s.chunks) > 0 || s.recvEnd || s.err != nil
}

// Next implements exchange.Body.
func (b *body) Next() ([]byte, error) {
	s := (*stream)(b)
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.held != nil {
		s.held.release()
		s.held = nil
	}
	if s.expect {
		s.expect = false
		if len(s.chunks) == 0 && !s.recvEnd && s.err == nil {
			c.putHead(s, appendStatus(make([]byte, 1, 8), 100), false)
			c.flush(false)
		}
	}
	defer s.calmRead()
	for {
		switch {
		case s.closed:
			return nil, errBodyClosed
		case s.err != nil && !s.recvEnd:
			return nil, s.err
		case len(s.chunks) > 0:
			return s.pop()
		case s.recvEnd:
			return nil, io.EOF
		case s.readLate:
			return nil, s.lateErr
		}
		if s.readBy == 0 && s.readTime > 0 {
			s.readBy = c.keep.in(s.readTime)
			c.waits.Add(1)
		}
		s.recv.Wait()
	}
}

func (s *stream) calmRead() {
	if s.readBy != 0 {
		s.readBy, s.readLate = 0, false
		s.c.waits.Add(-1)
	}
}

// pop hands out the first chunk.
func (s *stream) pop() ([]byte, error) {
	c := s.c
	k := s.chunks[0]
	n := copy(s.chunks, s.chunks[1:])
	s.chunks[n] = nil
	s.chunks = s.chunks[:n]
	s.held = k
	size := k.e
	if !c.lim.early {
		c.credit(size)
	}
	if s.recvEnd {
		if n == 0 {
			c.flush(false)
			return k.b[:k.e], io.EOF
		}
	} else if s.err == nil {
		s.grow(size, n == 0)
	}
	c.flush(false)
	return k.b[:k.e], nil
}

// grow gives back the stream's window. A reader that is faster than the sender gets a larger one, so that long ways are
// filled; memory is bounded by what slow readers get.
func (s *stream) grow(size int, fast bool) {
	c := s.c
	s.unacked += size
	if s.unacked < s.window/2 {
		return
	}
	more := s.unacked
	if w := min(2*s.window, c.lim.streamWindow); fast && w > s.window {
		more += w - s.window
		s.window = w
	}
	c.out = appendWindowUpdate(c.queued(), s.id, more)
	s.recvWindow += more
	s.unacked = 0
}

// Close implements exchange.Body.
func (b *body) Close() error {
	s := (*stream)(b)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.closed = true
	s.recv.Broadcast()
	return nil
}

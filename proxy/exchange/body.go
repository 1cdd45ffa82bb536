package exchange

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"
)

// ErrTooLarge is returned by Buffer when the body exceeds the limit.
var ErrTooLarge = errors.New("body is larger than the limit")

var errClosed = errors.New("body was closed")

// bytesBody is a body held in memory; it lives inside its message so that setting one allocates nothing.
type bytesBody struct {
	data   []byte
	err    error  // io.EOF once read
	closed uint32 // 1: perhaps by another goroutine; not an atomic.Bool, because messages are copied
}

func (b *bytesBody) set(data []byte) {
	b.data, b.err = data, nil
	atomic.StoreUint32(&b.closed, 0)
}

func (b *bytesBody) Next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	if atomic.LoadUint32(&b.closed) != 0 {
		return nil, errClosed
	}
	b.err = io.EOF
	return b.data, io.EOF
}

func (b *bytesBody) Close() error {
	atomic.StoreUint32(&b.closed, 1)
	return nil
}

// lost tells whether it was closed before it was read.
func (b *bytesBody) lost() bool { return b.err == nil && atomic.LoadUint32(&b.closed) != 0 }

// SetBody makes data, which must stay unchanged until the exchange ends, the body.
func (r *Response) SetBody(data []byte) {
	r.bytes.set(data)
	r.Body, r.Length = &r.bytes, int64(len(data))
}

// SetBody makes data, which must stay unchanged until the exchange ends, the body.
func (r *Request) SetBody(data []byte) {
	r.bytes.set(data)
	r.Body, r.Length = &r.bytes, int64(len(data))
}

// Buffer reads the whole body, at most limit bytes, and puts it back so that it can be read (and retried) again. On
// ErrTooLarge the body is not usable any more.
func (r *Request) Buffer(limit int64) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	if r.Body == Body(&r.bytes) && r.bytes.err == nil && !r.bytes.lost() {
		if int64(len(r.bytes.data)) > limit {
			return nil, ErrTooLarge
		}
		return r.bytes.data, nil
	}
	if r.Length > limit {
		return nil, ErrTooLarge
	}
	data, err := readAll(r.Body, r.Length, limit)
	if err != nil {
		return nil, err
	}
	r.SetBody(data)
	return data, nil
}

// Buffer reads the whole body, at most limit bytes, and puts it back. On ErrTooLarge the body is not usable any more.
func (r *Response) Buffer(limit int64) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	if r.Length > limit {
		return nil, ErrTooLarge
	}
	data, err := readAll(r.Body, r.Length, limit)
	if err != nil {
		return nil, err
	}
	r.SetBody(data)
	return data, nil
}

// Hold waits until the body is complete, which then is in memory, or more than limit bytes of it are there, which come first of what streams on.
// What had to be copied is appended to memory, which is returned and must stay unchanged until the exchange ends. A body with trailers keeps
// streaming: only so can it carry them.
func (r *Request) Hold(memory []byte, limit int64) ([]byte, error) {
	if r.InMemory() {
		return memory, nil
	}
	for {
		p, err := r.Body.Next() // p is lent until the following Next
		if err != nil && err != io.EOF {
			return memory, err
		}
		if int64(len(memory)+len(p)) <= limit && (err == nil || len(memory) > 0) {
			memory, p = append(memory, p...), nil
			if err == nil {
				continue
			}
		}
		whole := p
		if p == nil {
			whole = memory
		}
		if err == io.EOF && len(r.Trailer.Fields) == 0 && (len(memory) == 0 || p == nil) && (r.Length < 0 || r.Length == int64(len(whole))) {
			r.SetBody(whole)
			return memory, nil
		}
		r.ahead = aheadBody{Body: r.Body, first: memory, next: p, err: err}
		r.Body = &r.ahead
		return memory, nil
	}
}

// aheadBody is a body of which the beginning has been read.
type aheadBody struct {
	Body
	first, next []byte
	err         error // that came with next
}

func (b *aheadBody) Next() ([]byte, error) {
	if p := b.first; len(p) > 0 {
		b.first = nil
		return p, nil
	}
	if p := b.next; len(p) > 0 {
		b.next = nil
		return p, b.err
	}
	if b.err != nil {
		return nil, b.err
	}
	return b.Body.Next()
}

func (b *aheadBody) Ready() bool {
	return len(b.first)+len(b.next) > 0 || b.err != nil || Ready(b.Body)
}

// Rewind makes the request body readable from the start again. It is true for no body and for one held in memory: those
// can be sent a second time.
func (r *Request) Rewind() bool {
	if r.Body == nil {
		return true
	}
	if r.Body != Body(&r.bytes) || r.bytes.lost() {
		return false
	}
	r.bytes.err = nil
	atomic.StoreUint32(&r.bytes.closed, 0)
	return true
}

// InMemory tells whether the request has no body or one held in memory.
func (r *Request) InMemory() bool { return r.Body == nil || r.Body == Body(&r.bytes) }

func readAll(b Body, length, limit int64) ([]byte, error) {
	var data []byte
	if length > 0 {
		data = make([]byte, 0, min(length, 1<<20))
	}
	for {
		p, err := b.Next()
		if int64(len(data)+len(p)) > limit {
			return nil, ErrTooLarge
		}
		data = append(data, p...)
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// arena holds short strings made during an exchange: header values, identifiers, rewritten paths.
type arena struct{ buf []byte }

const arenaSize = 1024

func (a *arena) reset() {
	if cap(a.buf) > 8*arenaSize {
		a.buf = nil
	}
	a.buf = a.buf[:0]
}

// Scratch returns an empty slice to append to. What is appended becomes a string, valid until the exchange ends, by Keep.
// Only one such slice is in use at a time.
func (x *Exchange) Scratch() []byte {
	a := &x.arena
	if cap(a.buf)-len(a.buf) < 128 {
		// The old memory stays alive through the strings that point into it.
		a.buf = make([]byte, 0, max(arenaSize, 2*cap(a.buf)))
	}
	return a.buf[len(a.buf):len(a.buf):cap(a.buf)]
}

// Keep turns what was appended to Scratch into a string without copying.
func (x *Exchange) Keep(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	a := &x.arena
	if n := len(a.buf); len(b) <= cap(a.buf)-n && unsafe.SliceData(b) == unsafe.SliceData(a.buf[n:n+1]) {
		a.buf = a.buf[:n+len(b)]
	}
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// Concat joins parts into one string that is valid until the exchange ends.
func (x *Exchange) Concat(parts ...string) string {
	b := x.Scratch()
	for _, p := range parts {
		b = append(b, p...)
	}
	return x.Keep(b)
}

// NewRequestID sets RequestID to 32 random lower-case hex characters.
func (x *Exchange) NewRequestID() {
	const hex = "0123456789abcdef"
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := 0; i < 16; i++ {
		x.id[i], x.id[16+i] = hex[hi&15], hex[lo&15]
		hi, lo = hi>>4, lo>>4
	}
	x.RequestID = unsafe.String(&x.id[0], len(x.id))
}

// Readier is an optional part of a Body.
type Readier interface {
	// Ready tells that Next would return at once.
	Ready() bool
}

// Ready tells whether b is known to have its next bytes at hand, so that they can be sent along with what comes before.
func Ready(b Body) bool {
	r, ok := b.(Readier)
	return ok && r.Ready()
}

func (b *bytesBody) Ready() bool { return true }

package h1

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// How the end of a body is found.
const (
	bodyNone = iota
	bodyLength
	bodyChunked
	bodyToEOF
)

// Where a chunked body is.
const (
	chunkSize = iota
	chunkData
	chunkEnd
	chunkTrailer
)

const (
	maxChunkLine    = 4 << 10  // size and extensions of one chunk
	maxChunkExcess  = 16 << 10 // overhead beyond what honest senders of small chunks need (CVE-2023-39326)
	maxTrailerBytes = 8 << 10
)

var errBodyClosed = errors.New("h1: body was closed")

// bodyReader reads a message body from a connection. It lives inside its connection and is used again for every message.
type bodyReader struct {
	w       *wire
	buf     []byte // buf[r:e] is unread
	r, e    int
	own     *buffer // taken when more has come than with the head
	next    reader  // of own
	mode    uint8
	state   uint8
	padded  bool  // spaces behind the size of a chunk do not matter: of responses, as some servers fill up a field of fixed width
	left    int64 // of the body, or of the chunk
	excess  int
	trailer *exchange.Header
	timeout time.Duration
	err     error // sticky; io.EOF: complete
	closed  atomic.Bool
	ended   atomic.Bool  // err is io.EOF; may be asked by another goroutine than the reading one
	got     atomic.Int64 // bytes handed out; as above
	before  func() error // called once before the first read from the connection
}

// start prepares for a body whose first bytes, maybe none, are buf[r:e].
func (b *bodyReader) start(w *wire, buf []byte, r, e int, mode uint8, length int64, t *exchange.Header, timeout time.Duration) {
	b.w, b.buf, b.r, b.e, b.mode, b.left, b.trailer, b.timeout = w, buf, r, e, mode, length, t, timeout
	b.state, b.excess, b.err, b.before = chunkSize, 0, nil, nil
	b.closed.Store(false)
	b.ended.Store(false)
	b.got.Store(0)
	if mode == bodyNone || mode == bodyLength && length == 0 {
		b.mode, b.err = bodyNone, io.EOF
		b.ended.Store(true)
	}
}

// Next implements exchange.Body.
func (b *bodyReader) Next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	var p []byte
	switch b.mode {
	case bodyLength:
		p, b.err = b.nextLength()
	case bodyChunked:
		p, b.err = b.nextChunk()
	case bodyToEOF:
		p, b.err = b.nextToEOF()
	}
	b.got.Store(b.got.Load() + int64(len(p))) // one goroutine at a time reads
	if b.err == io.EOF {
		b.ended.Store(true)
	}
	return p, b.err
}

// Ready implements exchange.Readier.
func (b *bodyReader) Ready() bool {
	if b.err != nil || b.mode == bodyNone {
		return true
	}
	if b.mode != bodyChunked {
		return b.r < b.e
	}
	// A chunk's size line and some data behind it.
	switch b.state {
	case chunkData:
		return b.r < b.e
	case chunkEnd:
		return b.e-b.r > 2 && bytes.IndexByte(b.buf[b.r+2:b.e], '\n') >= 0
	case chunkSize:
		i := bytes.IndexByte(b.buf[b.r:b.e], '\n')
		return i >= 0 && (b.r+i+1 < b.e)
	}
	return false
}

// Close implements exchange.Body: whoever waits in Next gets an error.
func (b *bodyReader) Close() error {
	if !b.closed.Swap(true) && !b.ended.Load() && b.w != nil {
		_ = b.w.nc.SetReadDeadline(longAgo)
	}
	return nil
}

// complete tells whether the whole body was read, so that what follows on the connection is another message.
func (b *bodyReader) complete() bool { return b.ended.Load() }

// skipBuffered reads on as long as that needs no waiting.
func (b *bodyReader) skipBuffered() {
	for b.err == nil && b.Ready() {
		_, _ = b.Next()
	}
}

// release returns the extra buffer.
func (b *bodyReader) release() {
	if b.own != nil {
		putBuffer(b.own)
		b.own = nil
	}
	b.buf, b.w, b.before, b.trailer = nil, nil, nil, nil
}

func (b *bodyReader) nextLength() ([]byte, error) {
	if b.r == b.e {
		if err := b.fill(); err != nil {
			if err == io.EOF {
				err = errBodyCut
			}
			return nil, err
		}
	}
	n := int(min(int64(b.e-b.r), b.left))
	p := b.buf[b.r : b.r+n]
	b.r += n
	b.left -= int64(n)
	if b.left == 0 {
		return p, io.EOF
	}
	return p, nil
}

func (b *bodyReader) nextToEOF() ([]byte, error) {
	if b.r == b.e {
		if err := b.fill(); err != nil {
			return nil, err
		}
	}
	p := b.buf[b.r:b.e]
	b.r = b.e
	return p, nil
}

// nextChunk follows RFC 9112 §7.1 to the letter: hexadecimal size, extensions without control characters, CR LF.
func (b *bodyReader) nextChunk() ([]byte, error) {
	for {
		switch b.state {
		case chunkData:
			if b.r == b.e {
				if err := b.more(); err != nil {
					return nil, err
				}
			}
			n := int(min(int64(b.e-b.r), b.left))
			p := b.buf[b.r : b.r+n]
			b.r += n
			if b.left -= int64(n); b.left == 0 {
				b.state = chunkEnd
				// Pass over the end of the chunk at once if it is here, so that the last data can come with io.EOF.
				if err := b.tail(); err != nil {
					return p, err
				}
			}
			return p, nil
		case chunkEnd:
			for b.e-b.r < 2 {
				if err := b.more(); err != nil {
					return nil, err
				}
			}
			if b.buf[b.r] != '\r' || b.buf[b.r+1] != '\n' {
				return nil, errChunk
			}
			b.r += 2
			b.state = chunkSize
		case chunkSize:
			line, err := b.line(maxChunkLine, errChunkExt)
			if err != nil {
				return nil, err
			}
			if err := b.size(line); err != nil {
				return nil, err
			}
		case chunkTrailer:
			return nil, b.readTrailer()
		}
	}
}

// tail consumes CR LF "0" CR LF CR LF if exactly that is buffered.
func (b *bodyReader) tail() error {
	const last = "\r\n0\r\n\r\n"
	if b.e-b.r >= len(last) && str(b.buf[b.r:b.r+len(last)]) == last {
		b.r += len(last)
		return io.EOF
	}
	return nil
}

func (b *bodyReader) size(line []byte) error {
	if b.padded {
		line = bytes.TrimRight(line, " \t")
	}
	i, n := 0, int64(0)
	for ; i < len(line); i++ {
		d := hexDigit(line[i])
		if d < 0 {
			break
		}
		if i == 15 {
			return errChunk
		}
		n = n<<4 | int64(d)
	}
	if i == 0 || i < len(line) && (line[i] != ';' || !validValue(line[i:])) {
		return errChunk
	}
	// An honest sender of small chunks pays about 16 bytes each.
	b.excess = max(0, b.excess+len(line)+2-16-2*int(min(n, maxChunkExcess)))
	if b.excess > maxChunkExcess {
		return errChunkExt
	}
	if n == 0 {
		b.state = chunkTrailer
	} else {
		b.state, b.left = chunkData, n
	}
	return nil
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// line returns the next line without its CR LF. It is valid until more is read.
func (b *bodyReader) line(limit int, tooLong error) ([]byte, error) {
	from := 0
	for {
		if i := bytes.IndexByte(b.buf[b.r+from:b.e], '\n'); i >= 0 {
			i += from
			if i > limit {
				return nil, tooLong
			}
			if i == 0 || b.buf[b.r+i-1] != '\r' {
				return nil, errChunk
			}
			l := b.buf[b.r : b.r+i-1]
			b.r += i + 1
			return l, nil
		}
		from = b.e - b.r
		if from > limit {
			return nil, tooLong
		}
		if err := b.more(); err != nil {
			return nil, err
		}
	}
}

// forbiddenTrailers must not be merged into or acted on like header fields (RFC 9110 §6.5.1); the identity headers are
// among them because upstream servers may fold trailers into their headers.
var forbiddenTrailers = exchange.NewNameSet("Transfer-Encoding", "Content-*", "Host", "Trailer", "TE", "Connection", "Keep-Alive",
	"Upgrade", "Proxy*", "Authorization", "WWW-Authenticate", "Authentication-*", "Cookie", "Set-Cookie", "Cache-Control", "Expect",
	"Max-Forwards", "Pragma", "Range", "If-*", "Age", "Date", "Expires", "Location", "Retry-After", "Vary", "Warning", "Server", "Via",
	"Forwarded", "X-Forwarded-*", "X-Real-IP", "X-Kong-*", "X-Consumer-*", "X-Credential-*", "X-Authenticated-*",
	"X-Anonymous-Consumer", "X-Userinfo", "X-Access-Token", "X-ID-Token")

func (b *bodyReader) readTrailer() error {
	total := 0
	for {
		line, err := b.line(maxTrailerBytes, errTrailerLarge)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return io.EOF
		}
		if total += len(line); total > maxTrailerBytes {
			return errTrailerLarge
		}
		i := 0
		for i < len(line) && class[line[i]]&isToken != 0 {
			i++
		}
		if i == 0 || i == len(line) || line[i] != ':' {
			return errFieldName
		}
		value := trim(line[i+1:])
		if !validValue(value) {
			return errFieldValue
		}
		if name := str(line[:i]); !forbiddenTrailers.Has(name) && b.trailer != nil {
			b.trailer.Fields = append(b.trailer.Fields, exchange.Field{Name: strings.Clone(name), Value: string(value)})
		}
	}
}

// more reads further bytes behind the unread ones.
func (b *bodyReader) more() error {
	if err := b.fill(); err != nil {
		if err == io.EOF {
			err = errBodyCut
		}
		return err
	}
	return nil
}

// pool is where the extra buffer comes from: of slow clients that send little there may be many.
func (b *bodyReader) pool() *sync.Pool {
	if b.mode == bodyLength && b.left <= smallBuffer {
		return &smallPool
	}
	return &largePool
}

// fill reads into the body's own buffer, which keeps the head's bytes where they are.
func (b *bodyReader) fill() error {
	if b.w == nil {
		return errBodyCut
	}
	if b.before != nil {
		f := b.before
		b.before = nil
		if err := f(); err != nil {
			return err
		}
	}
	if b.closed.Load() {
		return errBodyClosed
	}
	var n int
	var err error
	if b.r == b.e {
		n, err = b.await()
	} else {
		n, err = b.add()
	}
	if n > 0 {
		return nil
	}
	if b.closed.Load() {
		return errBodyClosed
	}
	if err != nil && isTimeout(err) {
		return errBodyTime
	}
	return err
}

// await reads when nothing is left of what was read before. That may last, and a buffer is not needed before something has come.
func (b *bodyReader) await() (int, error) {
	b.next.buf, b.own = b.own, nil
	limit := largeBuffer
	if b.mode == bodyLength {
		limit = int(min(b.left, largeBuffer)) // leave the next message in the socket
	}
	b.next.prepare(b.w, b.pool(), limit)
	n, err := b.next.read(b.timeout)
	b.buf, b.r, b.e = nil, 0, 0
	if b.own, b.next.buf = b.next.buf, nil; b.own != nil {
		b.buf, b.e = b.own.b, n
	}
	return n, err
}

// add reads behind the beginning of something.
func (b *bodyReader) add() (int, error) {
	if b.own == nil {
		b.own = b.pool().Get().(*buffer)
		n := copy(b.own.b, b.buf[b.r:b.e])
		b.buf, b.r, b.e = b.own.b, 0, n
	} else if b.r > 0 {
		n := copy(b.buf, b.buf[b.r:b.e])
		b.r, b.e = 0, n
	}
	n, err := b.w.read(b.buf[b.e:], b.timeout)
	b.e += n
	return n, err
}

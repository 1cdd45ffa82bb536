package h3

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// The reasons to answer a request with an error. What is malformed by HTTP/3 itself is reset by the library.
var (
	errConnect    = &h1.Fault{Status: 405, Rule: "RFC 9110 §9.3.6", Text: "CONNECT is not offered"}
	errProtocol   = &h1.Fault{Status: 501, Rule: "RFC 9220 §3", Text: "no protocol is offered by CONNECT"}
	errTarget     = &h1.Fault{Status: 400, Rule: "RFC 9114 §4.3.1", Text: "malformed request target"}
	errTargetLong = &h1.Fault{Status: 414, Rule: "RFC 9110 §15.5.15", Text: "request target is too long"}
	errHost       = &h1.Fault{Status: 400, Rule: "RFC 9110 §7.2", Text: "malformed or missing authority"}
	errHeadLarge  = &h1.Fault{Status: 431, Rule: "RFC 6585 §5", Text: "header section is too large"}
	errField      = &h1.Fault{Status: 400, Rule: "RFC 9114 §4.2", Text: "malformed header field"}
	errExpect     = &h1.Fault{Status: 417, Rule: "RFC 9110 §10.1.1", Text: "expectation is not 100-continue"}
	errBodyTime   = &h1.Fault{Status: 408, Rule: "RFC 9110 §15.5.9", Text: "body did not arrive in time"}
	errGone       = &h1.Fault{Status: 499, Rule: "RFC 9114 §4.1.1", Text: "the client gave up"}
	errLength     = &h1.Fault{Status: 400, Rule: "RFC 9114 §4.1.2", Text: "content-length is not what was sent"}
)

// head fills x.Request with everything but the body, as far as it is known for one that is going to be refused.
func (s *stream) head(r *http.Request) error {
	lim, x := &s.server.o.Limits, &s.x
	q := &x.Request
	q.Method, q.Target, q.Host = r.Method, r.RequestURI, r.Host
	q.Scheme, q.Major, q.Minor = "https", 3, 0
	q.Length = r.ContentLength
	size := len(":method:scheme:authority:pathhttps") + len(r.Method) + len(r.Host) + len(r.RequestURI) + 4*32
	count := 4
	q.Header.Fields = append(q.Header.Fields[:0], exchange.Field{Name: "Host", Value: r.Host})
	var fault error
	s.names = s.names[:0]
	for name := range r.Header {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names) // the library does not tell the order
	for _, name := range s.names {
		for _, value := range r.Header[name] {
			size += len(name) + len(value) + 32
			count++
			if size > lim.HeadBytes || count > lim.Fields {
				x.BytesReceived = int64(size)
				return errHeadLarge
			}
			keep, err := s.note(name, value)
			if err != nil {
				fault = err
			}
			if keep {
				q.Header.Fields = append(q.Header.Fields, exchange.Field{Name: name, Value: value})
			}
		}
	}
	x.BytesReceived = int64(size)
	switch {
	case r.Method == http.MethodConnect && r.Proto != "HTTP/3.0":
		return errProtocol
	case r.Method == http.MethodConnect:
		return errConnect
	case fault != nil:
		return fault
	case len(q.Target) > lim.TargetBytes:
		return errTargetLong
	case q.Target == "" || !h1.ValidTarget(q.Target), q.Target[0] != '/' && (q.Target != "*" || q.Method != http.MethodOptions):
		return errTarget
	case !h1.ValidHost(q.Host):
		return errHost
	}
	q.Path, q.RawQuery, q.HasQuery = strings.Cut(q.Target, "?")
	if q.Path == "*" {
		return nil
	}
	path, err := x.NormalizePath(q.Path)
	if err != nil {
		return &h1.Fault{Status: 400, Rule: "RFC 3986 §6.2.2", Text: err.Error()}
	}
	q.Path = path
	return nil
}

// note takes from a field what concerns connection and framing and tells whether it is kept: the same are dropped as with the other
// versions. Those that name HTTP/1.1's connection were refused by the library (RFC 9114 §4.2).
func (s *stream) note(name, value string) (bool, error) {
	if !h1.ValidToken(name) || !h1.ValidValue(value) || value != strings.Trim(value, " \t") {
		return false, errField
	}
	switch name {
	case "Te":
		s.x.Request.TETrailers = true // it has no other value
		return false, nil
	case "Host", "Http2-Settings", "Proxy-Authenticate", "Proxy":
		return false, nil
	case "Expect":
		if !exchange.EqualFold(value, "100-continue") {
			return false, errExpect
		}
		s.x.Request.Expect100 = true
		return false, nil
	}
	return true, nil
}

// bodyChunk is how much of a body is read at once.
const bodyChunk = 16 << 10

// body is the exchange.Body of a request.
type body struct {
	s      *stream
	in     io.Reader
	buf    []byte
	first  int  // bytes that were read before anybody asked
	eof    bool // behind them
	err    error
	closed atomic.Bool
}

// expectBody prepares for the body.
func (s *stream) expectBody(r *http.Request) error {
	q, b := &s.x.Request, &s.body
	if q.Length == 0 {
		q.Expect100 = false
		return nil
	}
	b.in, s.expect = r.Body, q.Expect100
	if q.Length < 0 && !bodyLikely(q.Method) {
		// The end of the stream is what tells that there is no body, and it comes with the head or right behind it.
		q.Expect100, s.expect = false, false
		n, err := b.read(0)
		if n == 0 && err == io.EOF {
			q.Length = 0
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		b.first, b.eof = n, err == io.EOF
	}
	if q.Length > 0 && q.Length <= bodyChunk && !q.Expect100 {
		return b.gather(q)
	}
	q.Body = b
	return nil
}

// gather waits for a short body, as nginx does: one in memory can be sent in one piece, and again.
func (b *body) gather(q *exchange.Request) error {
	n := 0
	for {
		k, err := b.read(n)
		n += k
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if len(b.s.r.Trailer) == 0 {
		q.SetBody(b.buf[:n])
		return nil
	}
	b.first, b.eof = n, true
	q.Body = b
	return nil
}

// bodyLikely tells whether a request with this method has a body even if it names no length.
func bodyLikely(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodDelete:
		return false
	}
	return true
}

// Next implements exchange.Body.
func (b *body) Next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	if n := b.first; n > 0 {
		b.first = 0
		if b.eof {
			return b.buf[:n], b.end()
		}
		return b.buf[:n], nil
	}
	b.s.goOn()
	n, err := b.read(0)
	if err == io.EOF {
		return b.buf[:n], b.end()
	}
	if err != nil {
		b.err = err
	}
	return b.buf[:n], err
}

// end takes the trailers and returns io.EOF.
func (b *body) end() error {
	b.err = io.EOF
	t := &b.s.x.Request.Trailer
	for name, values := range b.s.r.Trailer {
		for _, value := range values {
			if !h1.ForbiddenTrailer(name) && h1.ValidToken(name) && h1.ValidValue(value) {
				t.Fields = append(t.Fields, exchange.Field{Name: name, Value: value})
			}
		}
	}
	return io.EOF
}

// read reads once to b.buf[at:], and makes the library's errors ours.
func (b *body) read(at int) (int, error) {
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	if b.buf == nil {
		b.buf = make([]byte, bodyChunk)
	}
	_ = b.s.control.SetReadDeadline(time.Now().Add(b.s.server.o.BodyTimeout))
	if b.closed.Load() { // just now: Close's deadline is the one that counts
		return 0, errBodyClosed
	}
	n, err := b.in.Read(b.buf[at:])
	received := b.s.received.Add(int64(n))
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case b.closed.Load():
		return n, errBodyClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errBodyTime
	case b.s.r.Context().Err() == nil && errors.Is(err, io.ErrUnexpectedEOF), b.s.r.ContentLength >= 0 && received >= b.s.r.ContentLength:
		b.s.malformed.Store(true)
		return n, errLength
	}
	return n, errGone
}

// Ready implements exchange.Readier.
func (b *body) Ready() bool { return b.first > 0 || b.err != nil }

// Close implements exchange.Body. The rest is refused when the answer is complete.
func (b *body) Close() error {
	b.closed.Store(true)
	return b.s.control.SetReadDeadline(time.Unix(1, 0))
}

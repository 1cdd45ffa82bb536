package h2

import (
	"errors"
	"io"
	"net/http"
	"runtime/debug"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

var (
	errInjection = errors.New("h2: a header name or value contains what may not be sent")
	errTooShort  = errors.New("h2: the response body is shorter than announced")
	errTooLong   = errors.New("h2: the response body is longer than announced")
)

// serverStream is a request of a client and its answer. It is pooled with all its memory.
type serverStream struct {
	stream
	own    exchange.Exchange
	server *Server
	fault  error  // the request is refused with this
	block  []byte // header blocks are made here
	inform func(int, *exchange.Header) error
}

func newServerStream() *serverStream {
	s := &serverStream{block: make([]byte, 0, 1024)}
	s.x = &s.own
	s.inform = s.sendInformational
	return s
}

func (s *Server) recycle(st *serverStream) {
	st.own.Reset()
	st.fault = nil
	if cap(st.block) > 8<<10 {
		st.block = make([]byte, 0, 1024)
	}
	s.streams.Put(st)
}

// serve runs one exchange.
func (s *serverStream) serve() {
	defer s.finish()
	x := &s.own
	if s.fault != nil {
		status := http.StatusBadRequest
		var f *h1.Fault
		if errors.As(s.fault, &f) {
			status = f.Status
		}
		x.Err = s.fault
		s.server.o.Refuse(x, status, s.fault)
		s.respond()
		return
	}
	s.gather()
	s.server.o.Handler.Serve(x)
	s.respond()
	s.c.mu.Lock()
	x.BytesSent, x.BytesReceived = s.sent, x.BytesReceived+s.received
	s.c.mu.Unlock()
	s.server.o.Handler.Finish(x)
}

// gather makes a body that has come completely, and is no more than a frame's worth, one in memory: it can be sent in one
// piece, with its length, and again.
func (s *serverStream) gather() {
	c, r := s.c, &s.own.Request
	if r.Body == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.recvEnd || s.err != nil || len(s.chunks) > 1 || len(r.Trailer.Fields) > 0 {
		return
	}
	r.Expect100, s.expect = false, false
	if len(s.chunks) == 0 {
		r.Body, r.Length = nil, 0
		return
	}
	p, _ := s.pop()
	r.SetBody(p)
}

// finish ends the stream, whatever has become of it.
func (s *serverStream) finish() {
	if p := recover(); p != nil {
		s.server.o.Log.Error("panic while serving a request", "panic", p, "stack", string(debug.Stack()))
	}
	c := s.c
	c.mu.Lock()
	switch {
	case s.err != nil:
	case !s.sentEnd:
		c.reset(s.id, InternalError)
	default:
		c.refund(1)
		if !s.recvEnd {
			c.reset(s.id, NoError) // the answer is complete without the rest (RFC 9113 §8.1)
		}
	}
	s.rest()
	s.drop()
	c.ended()
	c.flush(true)
	c.mu.Unlock()
	s.server.recycle(s)
}

// respond writes x.Response.
func (s *serverStream) respond() {
	x := &s.own
	if !x.Proxied {
		AnswerGRPC(x)
	}
	if x.Request.Expect100 {
		s.c.mu.Lock()
		s.expect = false // too late for 100 Continue
		s.c.mu.Unlock()
	}
	r := &x.Response
	if r.Status == http.StatusSwitchingProtocols && r.Tunnel != nil && x.Request.Upgrade != "" {
		s.tunnel()
		return
	}
	if r.Status < 200 || r.Status > 999 {
		r.Status = http.StatusInternalServerError
	}
	head := x.Request.Method == http.MethodHead
	bodyless := head || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
	length := r.Length
	if r.Body == nil {
		length = 0
	}
	if !s.makeHead(r, head || r.Status == http.StatusNotModified) {
		// Nothing of this response can be trusted.
		r.Header.Reset()
		r.Trailer.Reset()
		if r.Body != nil {
			_ = r.Body.Close()
		}
		r.Status, r.Body, length = http.StatusInternalServerError, nil, 0
		x.Err = errInjection
		s.makeHead(r, false)
	}
	switch {
	case !bodyless && length >= 0 && !(length == 0 && trailersOnly(r)):
		s.block = appendLength(s.block, length)
	case head && r.Body != nil && length >= 0 && !r.Header.Has("Content-Length"):
		s.block = appendLength(s.block, length)
	}
	if bodyless || r.Body == nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		s.put(s.block, nil, len(r.Trailer.Fields) == 0, true)
		s.putTrailers(r)
		return
	}
	s.streamBody(r, length)
}

// makeHead puts status and fields, without length, into s.block.
func (s *serverStream) makeHead(r *exchange.Response, pass bool) bool {
	b := appendStatus(append(s.block[:0], 0), r.Status)
	var date, ok bool
	for i := range r.Header.Fields {
		f := &r.Header.Fields[i]
		if ConnectionField(f.Name) || !pass && len(f.Name) == 14 && exchange.EqualFold(f.Name, "Content-Length") {
			continue
		}
		date = date || len(f.Name) == 4 && exchange.EqualFold(f.Name, "Date")
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			return false
		}
	}
	if !date {
		b = appendIndexed(b, staticDate, s.server.o.Clock.Date())
	}
	s.block = b
	return true
}

// ConnectionField tells whether a field belongs to a connection of HTTP/1.1 (RFC 9113 §8.2.2).
func ConnectionField(name string) bool {
	switch len(name) {
	case 2:
		return exchange.EqualFold(name, "TE")
	case 7:
		return exchange.EqualFold(name, "Upgrade") || exchange.EqualFold(name, "Trailer")
	case 10:
		return exchange.EqualFold(name, "Connection") || exchange.EqualFold(name, "Keep-Alive")
	case 16:
		return exchange.EqualFold(name, "Proxy-Connection")
	case 17:
		return exchange.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// streamBody sends the head together with what is ready of the body, then the rest as it comes.
func (s *serverStream) streamBody(r *exchange.Response, length int64) {
	c := s.c
	c.mu.Lock()
	s.streaming = true
	c.mu.Unlock()
	ok := true
	block := s.block
	var sent int64
	for ok {
		if block != nil && !exchange.Ready(r.Body) {
			ok = s.put(block, nil, false, true)
			block = nil
			continue
		}
		p, err := r.Body.Next()
		sent += int64(len(p))
		if length >= 0 && sent > length {
			err = errTooLong
		} else if err == io.EOF && sent < length {
			err = errTooShort
		}
		if err != nil && err != io.EOF {
			s.abort(err)
			break
		}
		last := err == io.EOF
		end := last && len(r.Trailer.Fields) == 0
		if len(p) > 0 || end || block != nil {
			ok = s.put(block, p, end, last || !exchange.Ready(r.Body))
			block = nil
		}
		if last {
			s.putTrailers(r)
			break
		}
	}
	c.mu.Lock()
	s.streaming = false
	for s.closing {
		s.recv.Wait()
	}
	c.mu.Unlock()
	if !ok {
		_ = r.Body.Close()
	}
}

// put queues a header block, if there is one, and a piece of the body, if there is one, and tells whether the stream goes
// on.
func (s *serverStream) put(block, p []byte, end, flush bool) bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return false
	}
	if block != nil {
		c.putHead(&s.stream, block, end && len(p) == 0)
	}
	ok := true
	if len(p) > 0 || end && !s.sentEnd {
		ok = s.putData(p, end)
	}
	if flush {
		c.flush(true)
	}
	return ok
}

// putTrailers ends a response that has trailers.
func (s *serverStream) putTrailers(r *exchange.Response) {
	if len(r.Trailer.Fields) == 0 {
		return
	}
	b := append(s.block[:0], 0)
	for i := range r.Trailer.Fields {
		f := &r.Trailer.Fields[i]
		if h1.ForbiddenTrailer(f.Name) {
			continue
		}
		n := len(b)
		var ok bool
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			b = b[:n]
		}
	}
	s.block = b
	if len(b) > 1 {
		s.put(b, nil, true, true)
	} else {
		s.put(nil, nil, true, true)
	}
}

// abort ends the stream so that the client sees that the response is not complete.
func (s *serverStream) abort(err error) {
	if s.own.Err == nil {
		s.own.Err = err
	}
	s.c.mu.Lock()
	if s.err == nil {
		s.fail(err)
		s.c.reset(s.id, InternalError)
	}
	s.c.mu.Unlock()
}

// sendInformational passes on a 1xx answer of the upstream.
func (s *serverStream) sendInformational(status int, h *exchange.Header) error {
	b := appendStatus(append(s.block[:0], 0), status)
	for i := range h.Fields {
		f := &h.Fields[i]
		if ConnectionField(f.Name) {
			continue
		}
		var ok bool
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			return errInjection
		}
	}
	s.block = b
	s.put(b, nil, false, true)
	return nil
}

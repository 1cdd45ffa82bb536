package h3

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/h2"
)

var (
	errInjection  = errors.New("h3: a header name or value contains what may not be sent")
	errTooShort   = errors.New("h3: the response body is shorter than announced")
	errTooLong    = errors.New("h3: the response body is longer than announced")
	errBodyClosed = errors.New("h3: body was closed")
)

// stream is a request of a client and its answer. It is pooled with all its memory.
type stream struct {
	server  *Server
	c       *conn
	x       exchange.Exchange
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	body    body
	names   []string

	received  atomic.Int64 // bytes of the body
	malformed atomic.Bool  // the request breaks a rule that only its body tells about
	sent      int64        // bytes, the head as RFC 9114 §4.2.2 counts
	inform    func(int, *exchange.Header) error

	mu        sync.Mutex
	gone      bool
	streaming bool // the response body is being read
	expect    bool // 100 Continue is to be sent before waiting for the body
}

func newStream(s *Server) *stream {
	st := &stream{server: s}
	st.body.s = st
	st.inform = st.sendInformational
	return st
}

// recycle keeps the memory only: nobody has a hold of it any more.
func (s *stream) recycle() {
	s.x.Reset()
	clear(s.names)
	s.body.in, s.body.first, s.body.eof, s.body.err = nil, 0, false, nil
	s.body.closed.Store(false)
	s.c, s.w, s.r, s.control = nil, nil, nil, nil
	s.received.Store(0)
	s.malformed.Store(false)
	s.sent, s.gone, s.streaming, s.expect = 0, false, false, false
	s.server.streams.Put(s)
}

// serve is called by the library for every request whose head is well-formed.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	qc, ok := r.Context().Value(connKey{}).(*Conn)
	if !ok || qc.served.Load() == nil {
		panic(http.ErrAbortHandler)
	}
	c := qc.served.Load()
	if !c.begin() {
		c.charge() // an honest client has no more streams than may be
		reset(w, http3.ErrCodeRequestRejected)
		return
	}
	defer c.end()
	st, ok := s.streams.Get().(*stream)
	if !ok {
		panic(http.ErrAbortHandler) // cannot be
	}
	st.c, st.w, st.r, st.control = c, w, r, http.NewResponseController(w)
	x := &st.x
	x.Conn, x.Start = c.info, time.Now()
	x.Conn.Peer, x.Conn.Requests = addrPort(c.quic.RemoteAddr()), c.requests.Add(1)
	x.Informational = st.inform
	left := make(chan struct{})
	stay := context.AfterFunc(r.Context(), func() {
		defer close(left)
		st.leave()
	})
	complete := st.run()
	if !stay() {
		<-left
	}
	malformed := st.malformed.Load()
	st.recycle()
	switch {
	case malformed:
		reset(w, http3.ErrCodeMessageError)
	case !complete:
		panic(http.ErrAbortHandler) // the library resets the stream with H3_INTERNAL_ERROR
	}
}

// reset ends a stream so that nothing that was said in it counts.
func reset(w http.ResponseWriter, code http3.ErrCode) {
	if hs, ok := w.(http3.HTTPStreamer); ok {
		if str, err := hs.HTTPStream(); err == nil {
			str.CancelRead(quic.StreamErrorCode(code))
			str.CancelWrite(quic.StreamErrorCode(code))
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// leave is called when the client has given up, or its connection has ended.
func (s *stream) leave() {
	if time.Since(s.x.Start) < young {
		s.c.charge()
	}
	s.x.Gone()
	s.mu.Lock()
	s.gone = true
	streaming := s.streaming
	s.mu.Unlock()
	if streaming {
		_ = s.x.Response.Body.Close()
	}
}

// run is the life of the exchange; false: the client has to learn that the response is not complete.
func (s *stream) run() (complete bool) {
	x := &s.x
	defer func() {
		if p := recover(); p != nil {
			s.server.o.Log.Error("panic while serving a request", "panic", p, "stack", string(debug.Stack()))
			complete = false
		}
	}()
	err := s.head(s.r)
	if err == nil {
		err = s.expectBody(s.r)
	}
	if s.malformed.Load() {
		return false
	}
	if err != nil {
		status := http.StatusBadRequest
		var f *h1.Fault
		if errors.As(err, &f) {
			status = f.Status
		}
		x.Err = err
		s.server.o.Refuse(x, status, err)
		return s.respond()
	}
	s.server.o.Handler.Serve(x)
	complete = s.respond()
	x.BytesSent, x.BytesReceived = s.sent, x.BytesReceived+s.received.Load()
	s.server.o.Handler.Finish(x)
	return complete
}

// goOn sends 100 Continue if the client waits for it. Somebody else may be about to answer.
func (s *stream) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expect {
		s.expect = false
		s.w.WriteHeader(http.StatusContinue)
	}
}

// respond writes x.Response.
func (s *stream) respond() bool {
	x := &s.x
	if !x.Proxied {
		h2.AnswerGRPC(x)
	}
	s.mu.Lock()
	s.expect = false // too late for 100 Continue
	s.mu.Unlock()
	r := &x.Response
	if r.Status < 200 || r.Status > 999 {
		r.Status = http.StatusInternalServerError
	}
	head := x.Request.Method == http.MethodHead
	bodyless := head || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
	length := r.Length
	if r.Body == nil {
		length = 0
	}
	if !s.makeHead(&r.Header, head || r.Status == http.StatusNotModified) {
		// Nothing of this response can be trusted.
		r.Header.Reset()
		r.Trailer.Reset()
		if r.Body != nil {
			_ = r.Body.Close()
		}
		r.Status, r.Body, length = http.StatusInternalServerError, nil, 0
		x.Err = errInjection
		clear(s.w.Header())
		s.makeHead(&r.Header, false)
	}
	h := s.w.Header()
	switch {
	case !bodyless && length >= 0 && !(length == 0 && r.Header.Has("grpc-status")), // gRPC expects none
		head && r.Body != nil && length >= 0 && h["Content-Length"] == nil:
		h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	for name, values := range h {
		for _, v := range values {
			s.sent += int64(len(name) + len(v) + 32)
		}
	}
	s.deadline()
	s.w.WriteHeader(r.Status)
	if bodyless || r.Body == nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return s.finish(r)
	}
	return s.streamBody(r, length)
}

// makeHead fills the header of the answer, without length unless pass is set.
func (s *stream) makeHead(from *exchange.Header, pass bool) bool {
	h := s.w.Header()
	for i := range from.Fields {
		f := &from.Fields[i]
		if h2.ConnectionField(f.Name) || !pass && exchange.EqualFold(f.Name, "Content-Length") {
			continue
		}
		if !h1.ValidToken(f.Name) || !h1.ValidValue(f.Value) {
			return false
		}
		name := http.CanonicalHeaderKey(f.Name)
		h[name] = append(h[name], f.Value)
	}
	if h["Date"] == nil {
		h["Date"] = []string{s.server.o.Clock.Date()}
	}
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // the library shall not guess
	}
	return true
}

func (s *stream) deadline() {
	_ = s.control.SetWriteDeadline(time.Now().Add(s.server.o.WriteTimeout))
}

// streamBody sends the body as it comes.
func (s *stream) streamBody(r *exchange.Response, length int64) (ok bool) {
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		_ = r.Body.Close()
		return false
	}
	s.streaming = true
	s.mu.Unlock()
	var sent int64
	for ok = true; ok; {
		if !exchange.Ready(r.Body) {
			s.deadline()
			if s.control.Flush() != nil {
				ok = false
				break
			}
		}
		p, err := r.Body.Next()
		sent += int64(len(p))
		if length >= 0 && sent > length {
			err = errTooLong
		} else if err == io.EOF && sent < length {
			err = errTooShort
		}
		if err != nil && err != io.EOF {
			if s.x.Err == nil {
				s.x.Err = err
			}
			s.endStreaming()
			return false
		}
		if len(p) > 0 {
			s.deadline()
			n, werr := s.w.Write(p)
			s.sent += int64(n)
			ok = werr == nil
		}
		if err == io.EOF {
			break
		}
	}
	s.endStreaming()
	if !ok {
		_ = r.Body.Close()
		return false
	}
	return s.finish(r)
}

func (s *stream) endStreaming() {
	s.mu.Lock()
	s.streaming = false
	s.mu.Unlock()
}

// finish ends a response, with its trailers.
func (s *stream) finish(r *exchange.Response) bool {
	s.deadline()
	if s.control.Flush() != nil {
		return false
	}
	h := s.w.Header()
	for i := range r.Trailer.Fields {
		f := &r.Trailer.Fields[i]
		if h1.ForbiddenTrailer(f.Name) || !h1.ValidToken(f.Name) || !h1.ValidValue(f.Value) {
			continue
		}
		name := http.TrailerPrefix + http.CanonicalHeaderKey(f.Name)
		h[name] = append(h[name], f.Value)
		s.sent += int64(len(f.Name) + len(f.Value) + 32)
	}
	return true
}

// sendInformational passes on a 1xx answer of the upstream.
func (s *stream) sendInformational(status int, from *exchange.Header) error {
	h := s.w.Header()
	defer clear(h)
	for i := range from.Fields {
		f := &from.Fields[i]
		if h2.ConnectionField(f.Name) {
			continue
		}
		if !h1.ValidToken(f.Name) || !h1.ValidValue(f.Value) {
			return errInjection
		}
		name := http.CanonicalHeaderKey(f.Name)
		h[name] = append(h[name], f.Value)
	}
	s.deadline()
	s.w.WriteHeader(status)
	return nil
}

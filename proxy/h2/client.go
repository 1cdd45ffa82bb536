package h2

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// clientConn is a connection to an upstream. It carries many exchanges.
type clientConn struct {
	conn
	key     Key
	next    uint32 // id of the next stream
	closing bool   // no further streams
	over    bool   // the pool's mu protects it
	o       *PoolOptions

	lastIn atomic.Int64 // when anything was received, keeper time
	pinged atomic.Int64 // when a sign of life was asked for that has not come yet; 0: not
}

// clientStream is an exchange with an upstream; between RoundTrip and Release it is the exchange's Link.
type clientStream struct {
	stream
	conn  *clientConn
	block []byte
	left  func() // clientLeft, bound once

	status   int
	infos    []informational
	infoSeen int
	sending  bool // a goroutine sends the request body
	bodyErr  error
}

// informational is a 1xx answer.
type informational struct {
	status int
	header exchange.Header
}

// How many 1xx answers come before the final one, as in h1, and how many of them wait to be passed on.
const (
	maxInformational = 100
	maxInfosWaiting  = 16
)

func newClientStream() *clientStream {
	s := &clientStream{block: make([]byte, 0, 1024)}
	s.left, s.up = s.clientLeft, s
	return s
}

// newConn begins HTTP/2 on a connection to an upstream.
func (p *Pool) newConn(nc net.Conn, key Key, patience time.Duration) *clientConn {
	c := &clientConn{key: key, next: 1, o: &p.o}
	c.lastIn.Store(p.keep.now())
	c.client = true
	lim := p.lim
	if patience > 0 {
		lim.headTime = patience
	}
	c.init(nc, p.keep, lim, c)
	c.lim.headTime = p.lim.headTime
	c.out = append(c.queued(), Preface...)
	c.out = appendSettings(c.queued(), setting{settingEnablePush, 0}, setting{settingMaxHeaders, uint32(c.lim.head.HeadBytes)})
	c.out = appendWindowUpdate(c.queued(), 0, c.lim.window-defaultWindow)
	return c
}

// serve reads until the connection is over.
func (p *Pool) serve(c *clientConn) {
	p.keep.add(&c.conn)
	c.end(c.read())
	p.forget(c)
}

// begun waits until the upstream has said how many streams it takes, or that it does not speak HTTP/2 at all.
func (c *clientConn) begun() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.settled && c.err == nil {
		c.room.Wait()
	}
	if c.err != nil {
		return &Failure{Err: explain(c.err)}
	}
	return nil
}

// usable tells whether another stream may be opened. c.mu is held.
func (c *clientConn) usable() bool {
	return c.err == nil && !c.closing && c.next < maxWindow && c.running < c.peerStreams
}

// head implements side: an answer, or the trailers of one.
func (c *clientConn) head(id uint32, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.streams[id]
	if st == nil {
		if err := c.stray(id); err != nil || c.wasReset(id) {
			return err
		}
		return errClosedStream
	}
	h := &c.conn.head
	switch {
	case st.err != nil:
		return nil
	case st.recvEnd:
		return &streamError{StreamClosed, "HEADERS behind the end of the stream"}
	case h.wrong != nil:
		return h.wrong
	case h.large:
		return &streamError{EnhanceYourCalm, "header section is too large"}
	}
	s := st.up
	if st.started {
		if !end || st.declared >= 0 && st.received != st.declared {
			return malformed("trailers are not the end of the body they announced (RFC 9113 §8.1)")
		}
		h.appendTrailers(&st.x.Response.Trailer)
		st.recvEnd = true
		st.recv.Broadcast()
		return nil
	}
	status, ok := parseStatus(h.pseudo[pseudoStatus])
	switch {
	case !ok || status == http.StatusSwitchingProtocols || status < 200 && end:
		return malformed("response without a valid status (RFC 9113 §8.3.2)")
	case status < 200:
		if s.infoSeen++; s.infoSeen > maxInformational || len(s.infos) >= maxInfosWaiting {
			return malformed("too many 1xx answers")
		}
		if status != http.StatusContinue {
			i := informational{status: status}
			i.header.Fields = append(i.header.Fields, h.fields...)
			s.infos = append(s.infos, i)
			st.recv.Broadcast()
		}
		return nil
	}
	if st.x.Request.Method != http.MethodHead && status != http.StatusNotModified {
		if st.declared = h.length; end && h.length > 0 {
			return malformed("content-length without a body (RFC 9113 §8.1.1)")
		}
	}
	s.status = status
	r := &st.x.Response
	r.Header.Fields = append(r.Header.Fields[:0], h.fields...)
	st.started, st.recvEnd = true, end
	st.recv.Broadcast()
	return nil
}

func parseStatus(s string) (int, bool) {
	if len(s) != 3 {
		return 0, false
	}
	n := 0
	for i := range 3 {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, n >= 100
}

// gone implements side: whoever waits finds s.err.
func (c *clientConn) gone(*stream) {}

// away implements side: streams above last were not looked at and may be sent again (RFC 9113 §6.8).
func (c *clientConn) away(last uint32) {
	c.closing = true
	for id, s := range c.streams {
		if id > last {
			s.fail(errGoingAt)
		}
	}
	c.draining = drainDecided
	if c.running == 0 {
		c.wake()
	}
}

// batch implements side.
func (c *clientConn) batch() {
	c.lastIn.Store(c.keep.now())
	c.pinged.Store(0)
}

// errSilent is a timeout: what was sent may have arrived.
var errSilent = fmt.Errorf("h2: no sign of life from the upstream: %w", os.ErrDeadlineExceeded)

// pingData marks the pings that ask for a sign of life.
var pingData = [8]byte{'c', 'o', 'n', 'c', 'o', 'r', 'd', '?'}

// ping asks for a sign of life, unless that was done already. c.mu is held.
func (c *clientConn) ping(now int64) {
	if c.pinged.CompareAndSwap(0, now) {
		c.out = appendPing(c.queued(), 0, pingData)
	}
}

// beat looks whether the upstream is still there. It is called by the keeper and must not wait for the network.
func (c *clientConn) beat(now int64) {
	p := c.pinged.Load()
	switch {
	case p != 0 && now-p >= c.o.PongTime.Milliseconds():
		c.mu.Lock()
		c.closing, c.dead = true, true
		c.failAll(errSilent)
		c.mu.Unlock()
		c.wake()
	case p == 0 && now-c.lastIn.Load() >= c.o.StreamSilence.Milliseconds():
		c.mu.Lock()
		if c.running > 0 {
			c.ping(now)
			go func() {
				c.mu.Lock()
				c.flush(false)
				c.mu.Unlock()
			}()
		}
		c.mu.Unlock()
	}
}

// Failure is why there is no answer.
type Failure struct {
	Err      error
	Sent     bool // the upstream may have seen the request
	Answered bool // a part of an answer was received
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// start opens a stream and queues the request's head; false: the connection takes no more.
func (c *clientConn) start(s *clientStream, x *exchange.Exchange) (bool, error) {
	block, ok := appendRequestHead(append(s.block[:0], 0), x)
	s.block = block
	if !ok {
		return false, h1.ErrRequest
	}
	r := &x.Request
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.usable() {
		return false, nil
	}
	s.x = x
	s.open(&c.conn, c.next)
	s.conn, s.status, s.infos, s.infoSeen, s.sending, s.bodyErr = c, 0, s.infos[:0], 0, false, nil
	s.readTime, s.writeTime, s.lateErr = x.Upstream.ReadTimeout, x.Upstream.WriteTimeout, os.ErrDeadlineExceeded
	c.maxID, c.next = c.next, c.next+2
	c.running++
	c.arm()
	x.Link = s
	x.SentAt = time.Now()
	c.putHead(&s.stream, block, r.Body == nil)
	if now := c.keep.now(); now-c.lastIn.Load() >= c.o.PingAfter.Milliseconds() {
		c.ping(now)
	}
	if int(c.next/2) >= c.o.MaxRequests {
		c.closing, c.draining = true, drainDecided
	}
	return true, nil
}

// appendRequestHead makes the header block of the upstream request; false: a name or value may not be sent.
func appendRequestHead(b []byte, x *exchange.Exchange) ([]byte, bool) {
	r, u := &x.Request, &x.Upstream
	switch r.Method {
	case http.MethodGet:
		b = append(b, 0x80|staticGET)
	case http.MethodPost:
		b = append(b, 0x80|staticPOST)
	default:
		b = appendIndexed(b, staticGET, r.Method)
	}
	if u.Scheme == "https" {
		b = append(b, 0x80|staticHTTPS)
	} else {
		b = append(b, 0x80|staticHTTP)
	}
	if !h1.ValidToken(r.Method) || !h1.ValidHost(u.HostHeader) {
		return b, false
	}
	b = appendIndexed(b, staticAuthority, u.HostHeader)
	target := h1.AppendTarget(x.Scratch(), r, u)
	b = appendInt(b, 4, literal, staticPath)
	b = append(appendInt(b, 7, 0, len(target)), target...)
	var ok bool
	for i := range r.Header.Fields {
		f := &r.Header.Fields[i]
		switch len(f.Name) {
		case 2, 7, 10, 16, 17:
			if ConnectionField(f.Name) && !exchange.EqualFold(f.Name, "Trailer") {
				continue
			}
		case 4:
			if exchange.EqualFold(f.Name, "Host") {
				continue
			}
		case 14:
			if exchange.EqualFold(f.Name, "Content-Length") {
				continue
			}
		}
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			return b, false
		}
	}
	switch {
	case r.Body != nil && r.Length >= 0:
		b = appendLength(b, r.Length)
	case r.Body == nil && h1.ExpectsLength(r.Method):
		b = appendLength(b, 0)
	}
	if r.TETrailers {
		b, _ = appendField(b, "te", "trailers")
	}
	return b, true
}

// run sends the body and waits for the head of the answer.
func (s *clientStream) run() error {
	x, c := s.x, s.c
	r := &x.Request
	if r.Body != nil && r.InMemory() && !r.Rewind() {
		return s.failure(&h1.RequestBodyError{Err: errBodyClosed})
	}
	var whole []byte
	if r.Body != nil && r.InMemory() {
		whole, _ = r.Body.Next()
	}
	x.OnGone(s.left)
	c.mu.Lock()
	switch {
	case r.Body == nil:
	case r.InMemory() && int64(len(whole)) <= min(s.sendWindow, c.sendWindow) && len(c.out) < maxOut:
		s.putData(whole, len(r.Trailer.Fields) == 0)
		s.putTrailers(r)
	default:
		s.sending = true
		go s.sendBody(whole)
	}
	c.flush(true)
	err := s.await()
	c.mu.Unlock()
	if err != nil {
		return s.failure(err)
	}
	x.HeadersAt = time.Now()
	p := &x.Response
	p.Status, p.Reason = s.status, ""
	p.Body, p.Length = (*body)(&s.stream), s.declared
	c.mu.Lock()
	if s.recvEnd && len(s.chunks) == 0 {
		p.Body, p.Length = nil, 0
	}
	c.mu.Unlock()
	x.Proxied = true
	return nil
}

// await waits for the final head. The time for it runs from when the request was sent. c.mu is held.
func (s *clientStream) await() error {
	c := s.c
	defer s.calmRead()
	for {
		for len(s.infos) > 0 {
			i := s.infos[0]
			s.infos = s.infos[1:]
			if pass := s.x.Informational; pass != nil {
				c.mu.Unlock()
				err := pass(i.status, &i.header)
				c.mu.Lock()
				if err != nil {
					return err
				}
			}
		}
		switch {
		case s.started && (s.err == nil || s.recvEnd):
			return nil
		case s.bodyErr != nil:
			return &h1.RequestBodyError{Err: s.bodyErr}
		case s.err != nil:
			return s.err
		case s.readLate:
			return os.ErrDeadlineExceeded
		}
		if s.readBy == 0 && !s.sending && s.readTime > 0 {
			s.readBy = c.keep.in(s.readTime)
			c.waits.Add(1)
		}
		s.recv.Wait()
	}
}

// failure says what became of the exchange. c.mu is not held.
func (s *clientStream) failure(err error) *Failure {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &Failure{Err: explain(err), Sent: true, Answered: s.started || s.infoSeen > 0}
	switch {
	case errors.Is(f.Err, h1.ErrStale):
		f.Sent, f.Answered = !s.x.Request.InMemory(), false
	case errors.Is(err, os.ErrDeadlineExceeded) && c.lastIn.Load() <= s.born:
		c.closing = true // no sign of life since the request was sent: nobody else shall try this connection
	}
	return f
}

// explain puts what went wrong into the terms of h1's client.
func explain(err error) error {
	var reset *ResetError
	var wrong *streamError
	var broken *connError
	switch {
	case errors.Is(err, errGoingAt), errors.As(err, &reset) && reset.Code == RefusedStream:
		return fmt.Errorf("%w: %w", h1.ErrStale, err) // RFC 9113 §8.7: nothing was done with it
	case errors.As(err, &reset), errors.Is(err, errClosed), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%w: %w", h1.ErrNoResponse, err)
	case errors.As(err, &wrong):
		return &h1.Fault{Status: http.StatusBadGateway, Rule: wrong.code.String(), Text: wrong.reason}
	case errors.As(err, &broken) && broken.code == SettingsTimeout:
		return os.ErrDeadlineExceeded
	case errors.As(err, &broken):
		return &h1.Fault{Status: http.StatusBadGateway, Rule: broken.code.String(), Text: broken.reason}
	}
	return err
}

// sendBody sends the request body from a goroutine of its own, so that an answer that comes before its end is seen, and
// both directions stream at once.
func (s *clientStream) sendBody(whole []byte) {
	r, c := &s.x.Request, s.c
	err, upstream := s.copyBody(whole)
	c.mu.Lock()
	if err == nil {
		s.putTrailers(r)
	} else if s.err == nil && !upstream {
		// The upstream must not take what it has for the whole.
		s.bodyErr = err
		s.fail(err)
		c.reset(s.id, Cancel)
	}
	s.sending = false
	s.recv.Broadcast()
	c.flush(true)
	c.mu.Unlock()
}

// copyBody returns what went wrong, and whether with the upstream.
func (s *clientStream) copyBody(whole []byte) (err error, upstream bool) {
	r, c := &s.x.Request, s.c
	put := func(p []byte, end, flush bool) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		ok := s.err == nil && s.putData(p, end)
		if flush {
			c.flush(true)
		}
		return ok
	}
	if r.InMemory() {
		if !put(whole, len(r.Trailer.Fields) == 0, true) {
			return errBodyClosed, true
		}
		return nil, false
	}
	var n int64
	for {
		p, err := r.Body.Next()
		n += int64(len(p))
		if r.Length >= 0 && n > r.Length {
			return errTooLong, false
		}
		if err != nil && err != io.EOF {
			return err, false
		}
		last := err == io.EOF
		if last && n < r.Length {
			return errTooShort, false
		}
		end := last && len(r.Trailer.Fields) == 0
		if (len(p) > 0 || end) && !put(p, end, last || !exchange.Ready(r.Body)) {
			return errBodyClosed, true
		}
		if last {
			return nil, false
		}
	}
}

// putTrailers ends a request that has trailers. c.mu is held.
func (s *clientStream) putTrailers(r *exchange.Request) {
	if len(r.Trailer.Fields) == 0 || s.err != nil || s.sentEnd {
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
	if len(b) == 1 {
		s.putData(nil, true)
		return
	}
	s.c.putHead(&s.stream, b, true)
}

// clientLeft runs when the client of the exchange has given up.
func (s *clientStream) clientLeft() {
	s.c.mu.Lock()
	if s.err == nil {
		s.fail(&h1.RequestBodyError{Err: errGone})
		s.c.reset(s.id, Cancel)
	}
	s.c.mu.Unlock()
}

// release ends the exchange, whatever state it is in.
func (s *clientStream) release() {
	x, c := s.x, s.conn
	x.OnGone(nil)
	c.mu.Lock()
	if s.err == nil && !(s.recvEnd && s.sentEnd) {
		c.reset(s.id, Cancel)
		s.fail(errBodyClosed)
	}
	s.closed = true
	sending := s.sending
	c.flush(true)
	c.mu.Unlock()
	if sending && x.Request.Body != nil {
		_ = x.Request.Body.Close() // its sender may be waiting for more
	}
	c.mu.Lock()
	for s.sending {
		s.recv.Wait()
	}
	s.calmRead()
	s.rest()
	s.drop()
	c.refund(1)
	c.ended()
	c.flush(false)
	c.mu.Unlock()
	x.Link, s.x, s.conn = nil, nil, nil
}

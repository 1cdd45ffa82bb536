package h1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// Errors of ClientConn.RoundTrip. The text of a *Fault says what was wrong with the upstream's answer.
var (
	ErrStale         = errors.New("h1: the kept connection was closed or spoke out of turn")
	ErrNoResponse    = errors.New("h1: the upstream closed the connection without an answer")
	ErrInformational = errors.New("h1: too many 1xx answers")
	ErrUpgrade       = errors.New("h1: the upstream upgraded to what was not asked for, or before it had the request")
	ErrRequest       = errors.New("h1: a header name or value contains a line break")
)

// RequestBodyError means that the client's body broke off or was wrong: not the upstream's fault.
type RequestBodyError struct{ Err error }

func (e *RequestBodyError) Error() string { return "h1: request body: " + e.Err.Error() }
func (e *RequestBodyError) Unwrap() error { return e.Err }

// maxInformational bounds how many 1xx answers come before the final one: half an hour of 102 Processing each twenty seconds.
const maxInformational = 100

// ClientConn is a connection to an upstream. It carries one exchange at a time: RoundTrip, then the reading of the
// response body, then Release.
type ClientConn struct {
	wire
	lim     Limits
	onReady func(fd uintptr) bool // ready, bound once
	onGone  func()                // clientLeft, bound once
	uses    int

	// One exchange.
	x       *exchange.Exchange
	f       framing
	out     outgoing
	in      *buffer // while something lies in it
	big     []byte  // a response head larger than in
	r, e    int
	scanned int
	infos   int
	probe   bool    // the connection was kept: nothing may have arrived meanwhile
	one     [1]byte // what is looked for then
	wrote   bool    // at least one byte of the request was handed to the kernel
	got     bool    // at least one byte of an answer was received
	err     error
	body    bodyReader
	tunnel  bool
	broken  bool

	arriving reader // of a tunnel
	sending  *sender
	gone     atomic.Bool // the client of the exchange has left
}

// NewClientConn takes over nc.
func NewClientConn(nc net.Conn, clock *Clock, lim Limits) *ClientConn {
	lim.setDefaults()
	c := &ClientConn{lim: lim}
	c.open(nc, clock)
	c.onReady, c.onGone, c.body.padded = c.ready, c.clientLeft, true
	return c
}

// Close ends the connection.
func (c *ClientConn) Close() error { return c.shut() }

// Uses returns how many exchanges the connection has carried.
func (c *ClientConn) Uses() int { return c.uses }

// Wrote tells, after a failed RoundTrip, whether the upstream may have seen a part of the request.
func (c *ClientConn) Wrote() bool { return c.wrote }

// Got tells, after a failed RoundTrip, whether a part of an answer was received.
func (c *ClientConn) Got() bool { return c.got }

// RoundTrip sends the request and reads the head of the final answer into x.Response, whose Body then streams from the
// connection. A failed connection is only good for Close after Release.
func (c *ClientConn) RoundTrip(x *exchange.Exchange) error {
	c.x = x
	c.big, c.r, c.e, c.scanned, c.infos = nil, 0, 0, 0, 0
	c.probe, c.wrote, c.got, c.err, c.tunnel, c.broken = c.uses > 0, false, false, nil, false, false
	c.uses++
	c.gone.Store(false)
	x.OnGone(c.onGone)
	b, ok := appendRequest(c.out.queued()[:0], x)
	if !ok {
		c.broken = true
		return ErrRequest
	}
	r := &x.Request
	stream := r.Body != nil
	if r.Body != nil && r.InMemory() && !r.Rewind() {
		c.broken = true
		return &RequestBodyError{errBodyClosed}
	}
	if r.Body != nil && r.InMemory() && r.Length <= 2*smallBuffer {
		p, err := r.Body.Next()
		if err != io.EOF {
			c.broken = true
			return &RequestBodyError{err}
		}
		b = append(b, p...)
		stream = false
	}
	c.out.b = b
	var err error
	if stream {
		err = c.roundTripStreaming()
	} else {
		err = c.readHead(x.Upstream.ReadTimeout)
	}
	if err != nil {
		c.broken = true
		if c.gone.Load() {
			return &RequestBodyError{errGone}
		}
		return err
	}
	x.Proxied = true
	return nil
}

// clientLeft runs when the client of the exchange has given up: whoever waits for the upstream returns.
func (c *ClientConn) clientLeft() {
	c.gone.Store(true)
	_ = c.nc.SetReadDeadline(longAgo)
	_ = c.nc.SetWriteDeadline(longAgo)
}

func (c *ClientConn) ready(fd uintptr) bool {
	if c.probe {
		c.probe = false
		if _, ok, _ := c.look(int(fd), c.one[:]); ok {
			c.err = ErrStale
			return true
		}
	}
	if !c.wrote {
		c.err = c.writeHead(int(fd))
		return c.err != nil
	}
	for { // until it is certain that nothing is left, not even an end of the stream that came with the bytes
		n, ok, err := c.look(int(fd), c.space())
		if !ok {
			if c.e == 0 {
				c.putIn()
			}
			return false
		}
		if err != nil {
			c.err = c.readError(err)
			return true
		}
		c.got = true
		c.e += n
		done, err := c.head()
		if done || err != nil {
			c.err = err
			return true
		}
	}
}

// writeHead sends the request, or what is there of it before its body.
func (c *ClientConn) writeHead(fd int) error {
	c.wrote = true
	c.x.SentAt = c.x.Now()
	if err := c.write(fd, c.out.b, c.x.Upstream.WriteTimeout); err != nil {
		return err
	}
	c.out.drop()
	return nil
}

// stale looks, without waiting, whether something has arrived on a kept connection.
func (c *ClientConn) stale() (stale bool) {
	if c.raw == nil {
		return false
	}
	err := c.raw.Read(func(fd uintptr) bool {
		_, stale, _ = c.look(int(fd), c.one[:])
		return true
	})
	return stale || err != nil
}

// readHead waits for the answer, at most d; 0 leaves the deadline as it is. Where there is a RawConn the request is written first, unless it is on
// its way: inside the callback, when the poller has just been armed, so that the first read is only tried when there is something to read.
func (c *ClientConn) readHead(d time.Duration) error {
	if c.raw != nil {
		c.armRead(d)
		err := c.raw.Read(c.onReady)
		late := d > 0 && c.disarmRead(d)
		if c.err != nil {
			return c.err
		}
		if err == nil && late {
			err = os.ErrDeadlineExceeded
		}
		return err
	}
	if !c.wrote {
		if err := c.writeHead(-1); err != nil {
			return err
		}
	}
	for {
		n, err := c.read(c.space(), d)
		if n == 0 && err != nil {
			return c.readError(err)
		}
		c.got = true
		c.e += n
		if done, err := c.head(); done || err != nil {
			return err
		}
	}
}

func (c *ClientConn) readError(err error) error {
	if err == io.EOF {
		return ErrNoResponse
	}
	return err
}

func (c *ClientConn) buf() []byte {
	if c.big != nil {
		return c.big
	}
	return c.in.b
}

// space is where the next bytes of the head go.
func (c *ClientConn) space() []byte {
	if c.in == nil {
		c.in = smallPool.Get().(*buffer)
	}
	b := c.buf()
	if c.e == len(b) {
		bigger := make([]byte, 2*len(b))
		c.e = copy(bigger, b[c.r:c.e])
		c.r = 0
		c.big = bigger
		b = bigger
	}
	return b[c.e:]
}

// head looks for the final answer in what was received.
func (c *ClientConn) head() (done bool, err error) {
	x := c.x
	r := &x.Response
	for {
		in := c.buf()[c.r:c.e]
		if len(in) == 0 {
			return false, nil
		}
		if c.scanned > 0 && len(in) < c.lim.HeadBytes && !headComplete(in, c.scanned) {
			c.scanned = len(in)
			return false, nil
		}
		n, err := parseResponse(in, &c.lim, r, &c.f)
		if err == nil && n > 0 && r.Status == http.StatusSwitchingProtocols { // as the head of the request
			n, err = parseResponse(bytes.Clone(in[:n]), &c.lim, r, &c.f)
		}
		if err != nil {
			return false, err
		}
		if n == 0 {
			c.scanned = len(in)
			return false, nil
		}
		c.scanned = 0
		c.r += n
		if r.Status >= 200 {
			break
		}
		if r.Status == http.StatusSwitchingProtocols {
			if !c.f.upgrades || !offered(x.Request.Upgrade, c.f.upgrade) {
				return false, ErrUpgrade
			}
			x.Request.Upgrade = c.f.upgrade
			c.tunnel = true
			x.HeadersAt = x.Now()
			r.Tunnel = (*clientTunnel)(c)
			return true, nil
		}
		if c.infos++; c.infos > maxInformational {
			return false, ErrInformational
		}
		if r.Status != http.StatusContinue && x.Informational != nil {
			if err := x.Informational(r.Status, &r.Header); err != nil {
				return false, err
			}
		}
	}
	if r.Status == http.StatusUpgradeRequired && upgradable(c.f.upgrade) {
		r.Header.Add("Upgrade", c.f.upgrade) // without it the answer says nothing (RFC 9110 §15.5.22)
	}
	x.HeadersAt = x.Now()
	mode, length := uint8(bodyToEOF), int64(-1)
	switch {
	case x.Request.Method == "HEAD", r.Status == http.StatusNoContent, r.Status == http.StatusNotModified:
		mode, length = bodyNone, 0
	case c.f.chunked:
		mode = bodyChunked
	case c.f.length >= 0:
		mode, length = bodyLength, c.f.length
	}
	c.body.start(&c.wire, c.buf(), c.r, c.e, mode, length, &r.Trailer, x.Upstream.ReadTimeout)
	r.Body, r.Length = &c.body, length
	if mode == bodyNone {
		r.Body, r.Length = nil, 0
	}
	return true, nil
}

// Release ends the exchange and tells whether the connection can carry another one: the answer was read completely,
// nothing followed it, and the request was sent completely.
func (c *ClientConn) Release() bool {
	if c.x != nil {
		c.x.OnGone(nil)
	}
	reusable := !c.gone.Load() && !c.broken && !c.tunnel && c.x != nil && c.x.Request.Upgrade == "" && c.f.persistent()
	if c.sending != nil && !c.stopSending() {
		reusable = false
	}
	if !c.broken && !c.tunnel {
		if reusable {
			c.body.skipBuffered()
		}
		reusable = reusable && c.body.complete() && c.body.r == c.body.e && !c.body.closed.Load()
		c.body.release()
	}
	c.putIn()
	c.out.drop()
	c.arriving.drop()
	c.x = nil
	return reusable
}

// putIn gives the buffers of the answer's head back.
func (c *ClientConn) putIn() {
	if c.in != nil {
		smallPool.Put(c.in)
	}
	c.in, c.big = nil, nil
}

// sender sends a request body from a goroutine of its own, so that an answer that comes before the end of the body is
// seen.
type sender struct {
	mu      sync.Mutex
	done    chan struct{}
	err     error // of the client's body
	failed  bool  // the upstream does not take it
	sent    bool  // complete
	waiting bool  // the head of the answer is awaited: its time starts when the body is sent
}

func (c *ClientConn) roundTripStreaming() error {
	if c.probe && c.stale() {
		return ErrStale
	}
	c.probe = false
	s := &sender{done: make(chan struct{}), waiting: true}
	c.sending = s
	if err := c.writeHead(-1); err != nil {
		close(s.done)
		return err
	}
	go c.send(s)
	err := c.readHead(0)
	s.mu.Lock()
	s.waiting = false
	late := c.disarmRead(c.x.Upstream.ReadTimeout)
	bodyErr := s.err
	s.mu.Unlock()
	if c.tunnel && err == nil {
		<-s.done // what the client sends behind the request is of the new protocol, and there is one reader (RFC 9110 §7.8)
		if bodyErr = s.err; !s.sent {
			err = ErrUpgrade
		}
	}
	if err == nil && late {
		err = os.ErrDeadlineExceeded
	}
	if err != nil && bodyErr != nil {
		err = &RequestBodyError{bodyErr}
	}
	return err
}

func (c *ClientConn) send(s *sender) {
	err, failed := c.sendBody()
	s.mu.Lock()
	s.failed, s.sent = failed, err == nil && !failed
	if !failed {
		s.err = err
	}
	if s.waiting {
		if err != nil && !failed {
			_ = c.nc.SetReadDeadline(longAgo) // the upstream must not take what it has for the whole
		} else {
			c.armRead(c.x.Upstream.ReadTimeout)
		}
	}
	s.mu.Unlock()
	close(s.done)
}

// sendBody returns what went wrong, and whether with the upstream.
func (c *ClientConn) sendBody() (err error, upstream bool) {
	r := &c.x.Request
	d := c.x.Upstream.WriteTimeout
	w := chunkWriter{c: c, d: d, chunked: r.Length < 0}
	defer w.drop()
	var n int64
	for {
		p, err := r.Body.Next()
		n += int64(len(p))
		if r.Length >= 0 && n > r.Length {
			return errTooLong, false
		}
		if e := w.write(p); e != nil {
			return e, true
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err, false
		}
		if !exchange.Ready(r.Body) {
			if e := w.flush(); e != nil {
				return e, true
			}
			w.drop()
		}
	}
	if r.Length >= 0 && n < r.Length {
		return errTooShort, false
	}
	if e := w.end(r); e != nil {
		return e, true
	}
	return nil, false
}

// stopSending ends the sender and tells whether it had finished by itself.
func (c *ClientConn) stopSending() bool {
	s := c.sending
	c.sending = nil
	select {
	case <-s.done:
	default:
		if b := c.x.Request.Body; b != nil {
			_ = b.Close()
		}
		_ = c.nc.SetWriteDeadline(longAgo)
		<-s.done
		return false
	}
	return s.sent
}

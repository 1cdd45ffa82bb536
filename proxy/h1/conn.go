package h1

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"concord/proxy/exchange"
)

// verdict is what is to happen with a connection after its buffered bytes were looked at.
type verdict uint8

const (
	more  verdict = iota // wait for bytes
	leave                // a request must be served outside the RawConn callback: it reads from the client while it runs
	quit                 // close
)

// conn is one client connection. It is small; what a request needs is in work, which a parked connection does not hold.
type conn struct {
	wire
	s        *Server
	info     exchange.Conn
	w        *work
	part     *part                 // of a head, kept while the rest is waited for; w is nil then
	readable func(fd uintptr) bool // onReadable, bound once
	verdict  verdict
	err      error
	armed    time.Duration // read deadline while parked
	headBy   time.Time     // when the head must be complete that has begun to arrive; zero: none has
	linger   bool          // the client may still be sending: do not reset what it has not read yet
	last     bool          // one more look, then close
	stays    bool          // its goroutine, while it waits
	ended    func()
}

// work is the memory of a connection that has something to do.
type work struct {
	x       exchange.Exchange
	f       framing
	c       *conn
	in      []byte // in[r:e] is unread
	r, e    int
	scanned int  // of an incomplete head
	blank   bool // an empty line before the request line was skipped
	ready   bool // a request is parsed and waits to be served
	body    bodyReader
	out     outgoing
	fd      int // of the running RawConn callback, or -1

	inform func(int, *exchange.Header) error // sendInformational, bound once
	// With Expect: 100-continue the request body may be read by another goroutine than the one that writes the answer.
	continueMu sync.Mutex
	answered   bool
}

func newWork() *work { return workOf(make([]byte, smallBuffer)) }

func workOf(in []byte) *work {
	w := &work{in: in}
	w.inform = w.sendInformational
	return w
}

func (c *conn) take() {
	if c.w != nil {
		return
	}
	w := c.s.works.Get().(*work)
	c.w, w.c, w.fd = w, c, -1
	if p := c.part; p != nil {
		w.e, w.scanned, w.blank = copy(w.in, p.b), p.scanned, p.blank
		c.part = nil
	}
}

// part is what has come of a head.
type part struct {
	b       []byte
	scanned int
	blank   bool
}

// largestPart is how much of a head is kept in memory of its own size: many clients that send a little and no more would each hold a lot.
const largestPart = 1 << 10

// begun tells whether a head has begun to arrive.
func (c *conn) begun() bool { return c.part != nil || c.w != nil && c.w.r < c.w.e }

// shelve gives the memory back in which a head has begun.
func (c *conn) shelve() {
	if w := c.w; w != nil && w.e-w.r <= largestPart {
		c.part = &part{bytes.Clone(w.in[w.r:w.e]), w.scanned, w.blank}
		c.putBack()
	}
}

func (c *conn) putBack() {
	if w := c.w; w != nil {
		c.w, w.c = nil, nil
		w.r, w.e, w.scanned, w.blank, w.ready = 0, 0, 0, false, false
		w.out.drop()
		if len(w.in) < smallBuffer {
			return // a tunnel has let go of it
		}
		if len(w.in) > smallBuffer {
			w.in = make([]byte, smallBuffer)
		}
		c.s.works.Put(w)
	}
}

// run serves the connection until it is over or parked, which belongs to another goroutine then.
func (c *conn) run(initial []byte) {
	away := false
	defer func() {
		if p := recover(); p != nil {
			c.s.o.Log.Error("panic while serving a connection", "panic", p, "peer", c.info.Peer)
		} else if away {
			return
		}
		if c.err != nil && c.tls != nil {
			_ = c.tls.Close() // without a close_notify, which would say that this was all
		}
		_ = c.shut()
		c.s.remove(c)
	}()
	away = c.serve(initial)
}

// resume goes on with a connection that was parked. Why it is not any more shows when it is looked at.
func (c *conn) resume() {
	if c.woken() {
		c.last = true
	}
	c.run(nil)
}

func (c *conn) serve(initial []byte) (away bool) {
	v := more
	if len(initial) > 0 {
		c.take()
		if len(initial) > len(c.w.in) {
			c.w.in = make([]byte, len(initial))
		}
		c.w.e = copy(c.w.in, initial)
		v = c.advance(-1)
	}
	if v != quit {
		if c.raw != nil {
			c.readable = c.onReadable
			away = c.serveRaw()
		} else {
			away = c.servePlain()
		}
		if away {
			return true
		}
	}
	if c.linger {
		c.lingerClose()
	}
	c.putBack()
	return false
}

// serveRaw runs the connection inside RawConn.Read. Readiness is edge-triggered and sticky there: after a read that did
// not fill the buffer nothing is left, so the callback parks without asking the kernel again.
func (c *conn) serveRaw() (away bool) {
	for {
		c.verdict = quit
		if err := c.raw.Read(c.readable); err != nil {
			switch c.awake() {
			case lookAgain:
				continue
			case gone:
				return true
			}
			return false
		}
		if c.verdict == leave && c.exchange(-1) && c.advance(-1) == more {
			continue
		}
		return false
	}
}

func (c *conn) onReadable(fd uintptr) bool {
	if c.armed != 0 && c.woken() {
		if c.begun() {
			c.verdict = quit
			return true
		}
		c.last = true
	}
	c.take()
	for {
		w := c.w
		room := w.in[w.e:]
		n, ok, err := c.look(int(fd), room)
		if err != nil || !ok && c.last {
			c.verdict = quit
			return true
		}
		if !ok {
			c.wait()
			return false
		}
		if c.tls != nil && w.r == w.e {
			c.headBy = time.Time{} // what had begun was a record
		}
		w.e += n
		c.last = false
		before := c.info.Requests
		c.verdict = c.advance(int(fd))
		if c.verdict != more {
			return true
		}
		// A short read has emptied the socket, but the end of the stream may have come with the bytes, and it will not be
		// announced again: look for it where it is likely, after the first request, several at once, or a part of one.
		// Elsewhere it shows when the connection is parked.
		ending := c.info.Requests <= 1 || c.info.Requests > before+1 || c.w.r < c.w.e
		if c.tls != nil { // which may have read further records with this one
			c.tls.empty = c.tls.short && !ending
		} else if n < len(room) && !ending {
			c.wait()
			return false
		}
	}
}

// wait prepares for waiting: the memory goes back unless much of a head is in it.
func (c *conn) wait() {
	if c.begun() {
		c.armed = c.untilHead()
		c.armRead(c.armed)
		c.shelve()
		return
	}
	c.putBack()
	d := c.s.o.IdleTimeout
	if c.tls != nil && c.tls.begun {
		d = c.untilHead()
	}
	c.rest(d)
}

// untilHead is how long a head that has begun may still take.
func (c *conn) untilHead() time.Duration {
	if c.headBy.IsZero() {
		c.headBy = time.Now().Add(c.s.o.HeaderTimeout)
	}
	return max(time.Until(c.headBy), time.Millisecond)
}

// rest begins a wait between two requests.
func (c *conn) rest(d time.Duration) {
	c.armed = d
	c.armRead(d)
	if c.stays {
		c.still.Store(never)
	} else {
		c.still.Store(c.clock.ms.Load())
	}
}

// woken ends a wait and tells whether it was too long. The deadline that may have interrupted it is removed: what has arrived is served.
func (c *conn) woken() (late bool) {
	disturbed := c.stir()
	late = c.disarmRead(c.armed)
	c.armed = 0
	if disturbed || late {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	return late
}

// next is how a connection goes on whose wait was interrupted.
type next uint8

const (
	over next = iota
	lookAgain
	gone
)

// awake handles a wait that was interrupted: by the clock, because it has lasted for a while or too long, or by Shutdown.
func (c *conn) awake() next {
	if c.begun() {
		if !c.headBy.IsZero() {
			c.refuse(-1, errHeaderTime)
		}
		return over
	}
	if c.stir() {
		_ = c.nc.SetReadDeadline(time.Time{})
		if !c.s.closing.Load() {
			c.putBack()
			// A deadline that goes off now was not ours to be woken by; the next one finds the connection parked.
			if c.clock.Park(&c.spot, c.nc, c.resume, func() bool { return c.rd.Load() > 0 }) {
				return gone
			}
			c.stays = true
			if c.rd.Load() > 0 {
				return lookAgain
			}
		}
	}
	if c.last {
		return over
	}
	// A request may have arrived in the same moment: it is still answered.
	c.last = true
	c.disarmRead(c.armed)
	c.armed = 0
	_ = c.nc.SetReadDeadline(time.Time{})
	return lookAgain
}

// glance is how long the last look may take where one cannot look without waiting.
const glance = time.Millisecond

// servePlain is the same loop over net.Conn.
func (c *conn) servePlain() (away bool) {
	for {
		c.take()
		w := c.w
		switch {
		case w.r < w.e:
			c.armed = c.untilHead()
			c.armRead(c.armed)
		case c.last:
			c.armed = glance
			c.armRead(glance)
		default:
			c.rest(c.s.o.IdleTimeout)
		}
		n, err := c.nc.Read(w.in[w.e:])
		if n == 0 && err != nil {
			if !isTimeout(err) {
				return false
			}
			// A *tls.Conn that was interrupted has used up all bytes it has read, but for a record that is incomplete, and goes on when
			// more of them arrive: whether it can is up to the socket alone.
			switch c.awake() {
			case lookAgain:
				continue
			case gone:
				return true
			}
			return false
		}
		c.woken()
		c.last = false
		w.e += n
		if c.advance(-1) == quit {
			return false
		}
	}
}

// advance serves all complete requests that are buffered. fd is the socket inside a RawConn callback, -1 outside.
func (c *conn) advance(fd int) verdict {
	w := c.w
	for {
		in := w.in[w.r:w.e]
		if len(in) == 0 {
			w.r, w.e = 0, 0
			return more
		}
		if in[0] == '\r' && !w.blank && w.scanned == 0 {
			// RFC 9112 §2.2: one empty line before the request line is ignored.
			if len(in) > 1 && in[1] == '\n' {
				w.r += 2
				w.blank = true
				continue
			}
			if len(in) == 1 {
				c.room()
				return more
			}
		}
		if w.scanned > 0 && !c.worthParsing(in) {
			w.scanned = len(in)
			c.room()
			return more
		}
		n, err := parseRequest(in, &c.s.o.Limits, &w.x.Request, &w.f)
		if err == nil && n > 0 && w.x.Request.Upgrade != "" { // for as long as a tunnel may last, the head lies in memory of its own size
			n, err = parseRequest(bytes.Clone(in[:n]), &c.s.o.Limits, &w.x.Request, &w.f)
		}
		if err == nil && n > 0 && w.x.Request.Path != "*" {
			w.x.Request.Path, err = w.x.NormalizePath(w.x.Request.Path)
			switch err {
			case exchange.ErrPathEscape:
				err = errPathEscape
			case exchange.ErrPathAmbiguous:
				err = errPathUnclear
			}
		}
		if err != nil {
			c.refuse(fd, err)
			return quit
		}
		if n == 0 {
			w.scanned = len(in)
			c.room()
			return more
		}
		w.scanned, w.blank, c.headBy = 0, false, time.Time{}
		w.r += n
		w.x.BytesReceived = int64(n)
		r := &w.x.Request
		if fd >= 0 && (r.Length < 0 || r.Length > int64(w.e-w.r) || r.Upgrade != "") {
			w.ready = true
			return leave
		}
		if !c.exchangeOn(fd) {
			return quit
		}
		w = c.w
	}
}

// worthParsing tells whether an incomplete head may now be complete, wrong or over a limit. Parsing it again with every byte that
// arrives would be a lever for slow senders.
func (c *conn) worthParsing(in []byte) bool {
	lim := &c.s.o.Limits
	if len(in) >= lim.HeadBytes || headComplete(in, c.w.scanned) {
		return true
	}
	line := bytes.IndexByte(in, '\n')
	return line >= c.w.scanned || line < 0 && len(in) > lim.TargetBytes+requestLineSlack
}

// room makes space behind an incomplete head.
func (c *conn) room() {
	w := c.w
	if w.e < len(w.in) {
		return
	}
	if w.r > 0 {
		w.e = copy(w.in, w.in[w.r:w.e])
		w.r = 0
		return
	}
	bigger := make([]byte, 2*len(w.in))
	w.e = copy(bigger, w.in[:w.e])
	w.in = bigger
}

func (c *conn) exchange(fd int) bool {
	return c.w != nil && c.w.ready && c.exchangeOn(fd)
}

// exchangeOn serves the request whose head was parsed and tells whether the connection goes on.
func (c *conn) exchangeOn(fd int) bool {
	w, x := c.w, &c.w.x
	w.ready, w.fd, w.answered = false, fd, false
	c.info.Requests++
	x.Conn = c.info
	x.Start = time.Now()
	x.Request.Scheme = "http"
	if c.info.TLS != nil {
		x.Request.Scheme = "https"
	}
	x.Informational = w.inform
	streamed := false
	switch n := x.Request.Length; {
	case n == 0:
		x.Request.Body = nil
	case n > 0 && n <= int64(w.e-w.r):
		x.Request.SetBody(w.in[w.r : w.r+int(n)])
		x.BytesReceived += n
		x.Request.Expect100 = false
		w.r += int(n)
	default:
		streamed = true
		mode := uint8(bodyLength)
		if n < 0 {
			mode = bodyChunked
		}
		w.body.start(&c.wire, w.in, w.r, w.e, mode, n, &x.Request.Trailer, c.s.o.BodyTimeout)
		if x.Request.Expect100 {
			w.body.before = w.sendContinue
		}
		x.Request.Body = &w.body
	}
	c.watch()
	c.s.o.Handler.Serve(x)
	keep := c.respond(streamed)
	w.out.drop()
	c.unwatch()
	if streamed {
		x.BytesReceived += w.body.got.Load()
	}
	c.s.o.Handler.Finish(x)
	if streamed {
		keep = c.afterBody() && keep
	}
	if !keep && c.err == nil && !c.linger { // a tunnel has told
		c.linger = w.r < w.e || streamed && !w.body.complete() || c.unread(fd)
	}
	if streamed {
		w.body.release()
	}
	w.fd = -1
	x.Reset()
	return keep
}

// unread tells whether more than was served has arrived, on a connection that ends: closed over it, it would be reset.
func (c *conn) unread(fd int) (more bool) {
	look := func(fd uintptr) bool {
		n, _, _ := c.look(int(fd), c.w.in)
		more = n > 0
		return true
	}
	switch {
	case c.raw == nil:
	case fd >= 0:
		look(uintptr(fd))
	default:
		_ = c.raw.Read(look)
	}
	return more
}

// clientLeft is called by the clock while an exchange runs.
func (c *conn) clientLeft() { c.w.x.Gone() }

// afterBody takes over the bytes behind a request body that was read from the connection.
func (c *conn) afterBody() bool {
	w, b := c.w, &c.w.body
	if !b.complete() {
		return false
	}
	if b.closed.Load() {
		_ = c.nc.SetReadDeadline(time.Time{}) // closed after its end: no reason to part
	}
	rest := b.buf[b.r:b.e]
	b.r = b.e
	if b.own == nil {
		w.r = w.e - len(rest)
		return true
	}
	if len(rest) > len(w.in) {
		w.in = make([]byte, len(rest))
	}
	w.r, w.e = 0, copy(w.in, rest)
	return true
}

// refuse answers a request that is not one, and ends the connection.
func (c *conn) refuse(fd int, reason error) {
	c.take()
	w, x := c.w, &c.w.x
	status := 400
	var f *Fault
	if errors.As(reason, &f) {
		status = f.Status
	}
	c.info.Requests++
	x.Request.Length, x.Request.Body = 0, nil
	x.Conn, x.Start, x.Err = c.info, time.Now(), reason
	x.Request.Scheme = "http"
	if c.info.TLS != nil {
		x.Request.Scheme = "https"
	}
	w.f = framing{close: true}
	w.fd, w.answered = fd, false
	c.s.o.Refuse(x, status, reason)
	c.respond(false)
	c.linger = c.err == nil
	w.fd = -1
	w.r, w.e = 0, 0
	x.Reset()
}

// Lingering: how long a client may still send after the last answer, in all and without sending anything, so that the kernel does not reset
// the connection before the answer was read. These are nginx's times.
const (
	lingerTime = 30 * time.Second
	lingerIdle = 5 * time.Second
)

func (c *conn) lingerClose() {
	if cw, ok := c.nc.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		return
	}
	c.take()
	for end := time.Now().Add(lingerTime); ; {
		_ = c.nc.SetReadDeadline(time.Now().Add(min(lingerIdle, time.Until(end))))
		if _, err := c.nc.Read(c.w.in); err != nil {
			return
		}
	}
}

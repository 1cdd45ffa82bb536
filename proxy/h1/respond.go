package h1

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"

	"concord/proxy/exchange"
)

var (
	errInjection = errors.New("h1: a header name or value contains a line break")
	errTooShort  = errors.New("h1: the response body is shorter than announced")
	errTooLong   = errors.New("h1: the response body is longer than announced")
)

// respond writes x.Response and tells whether the connection may go on. c.err is set when the client could not be given
// all of it.
func (c *conn) respond(streamed bool) bool {
	w, x := c.w, &c.w.x
	r := &x.Response
	if r.Status == http.StatusSwitchingProtocols && r.Tunnel != nil {
		if streamed && !c.afterBody() {
			c.err = errBodyClosed // nobody has asked for all of it: where the new protocol begins is not known
			_ = r.Tunnel.Close()
			return false
		}
		c.tunnel()
		return false
	}
	if r.Status < 200 || r.Status > 999 {
		r.Status = http.StatusInternalServerError
	}
	if streamed && x.Request.Expect100 {
		w.continueMu.Lock()
		w.answered = true
		w.continueMu.Unlock()
	}
	old := w.f.old
	head := x.Request.Method == "HEAD"
	bodyless := head || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
	length := r.Length
	if r.Body == nil {
		length = 0
	}
	chunked := length < 0 && !old && !bodyless
	keep := w.f.persistent() && !r.Close && c.info.Requests < c.s.o.MaxRequests && !c.s.draining.Load() &&
		(length >= 0 || chunked || bodyless) && (!streamed || w.body.complete())

	b, ok := c.appendHead(w.out.queued()[:0], r, keep)
	if !ok {
		// A name or value would have forged header lines. Nothing of this response can be trusted.
		r.Header.Reset()
		r.Trailer.Reset()
		r.Status, r.Reason, r.Body = http.StatusInternalServerError, "", nil
		length, keep, chunked, bodyless = 0, false, false, head
		b, _ = c.appendHead(w.out.queued()[:0], r, false)
		x.Err = errInjection
	}
	switch {
	case bodyless:
		if head && r.Body != nil && length >= 0 && !r.Header.Has("Content-Length") {
			b = appendContentLength(b, length)
		}
	case chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case length >= 0:
		b = appendContentLength(b, length)
	}
	w.out.b = append(b, '\r', '\n')
	if bodyless || r.Body == nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		c.flush()
	} else {
		c.writeBody(r, length, chunked)
	}
	return keep && c.err == nil
}

// appendHead writes everything but the framing fields and the empty line.
func (c *conn) appendHead(b []byte, r *exchange.Response, keep bool) ([]byte, bool) {
	w := c.w
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	if r.Reason != "" {
		b = append(b, r.Reason...)
	} else {
		b = append(b, http.StatusText(r.Status)...)
	}
	b = append(b, '\r', '\n')
	lines := 1
	date := false
	pass := w.x.Request.Method == "HEAD" || r.Status == http.StatusNotModified
	upgrade := false
	for i := range r.Header.Fields {
		f := &r.Header.Fields[i]
		switch len(f.Name) {
		case 2, 10, 16, 17:
			if framingField(f.Name) {
				continue
			}
		case 4:
			date = date || exchange.EqualFold(f.Name, "Date")
		case 7:
			if exchange.EqualFold(f.Name, "Upgrade") {
				if r.Status != http.StatusUpgradeRequired {
					continue
				}
				upgrade = true
			} else if exchange.EqualFold(f.Name, "Trailer") {
				continue
			}
		case 14:
			if !pass && exchange.EqualFold(f.Name, "Content-Length") {
				continue
			}
		}
		b = appendField(b, f.Name, f.Value)
		lines++
	}
	if !date {
		b = appendField(b, "Date", *c.clock.date.Load())
		lines++
	}
	switch {
	case upgrade && keep:
		b = append(b, "Connection: Upgrade\r\n"...)
	case upgrade:
		b = append(b, "Connection: Upgrade, close\r\n"...)
	case keep:
		b = append(b, "Connection: keep-alive\r\n"...)
	default:
		b = append(b, "Connection: close\r\n"...)
	}
	return b, wellFormed(b, lines+1)
}

// framingField tells whether a field belongs to the connection, not to the message.
func framingField(name string) bool {
	switch len(name) {
	case 2:
		return exchange.EqualFold(name, "TE")
	case 7:
		return exchange.EqualFold(name, "Upgrade") || exchange.EqualFold(name, "Trailer")
	case 10:
		return exchange.EqualFold(name, "Connection") || exchange.EqualFold(name, "Keep-Alive")
	case 14:
		return exchange.EqualFold(name, "Content-Length")
	case 16:
		return exchange.EqualFold(name, "Proxy-Connection")
	case 17:
		return exchange.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// wellFormed makes sure that a head has exactly the lines that were meant: whatever filled the fields, no value can
// smuggle in another one.
func wellFormed(b []byte, lines int) bool {
	return bytes.Count(b, crlf[1:]) == lines && bytes.Count(b, crlf[:1]) == lines && bytes.IndexByte(b, 0) < 0
}

var crlf = []byte("\r\n")

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ':', ' ')
	b = append(b, value...)
	return append(b, '\r', '\n')
}

func appendContentLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '\r', '\n')
}

// writeBody sends the head in w.out together with what is ready of the body, then the rest as it comes.
func (c *conn) writeBody(r *exchange.Response, length int64, chunked bool) {
	w := c.w
	var sent int64
	bulk, limit := false, 0
	defer func() { c.endBulk(limit) }()
	for c.err == nil {
		if w.out.buf != nil && !exchange.Ready(r.Body) {
			c.flush()
			if w.out.drop(); c.err != nil {
				break
			}
		}
		p, err := r.Body.Next()
		sent += int64(len(p))
		if length >= 0 && sent > length {
			err = errTooLong
		} else if len(p) > 0 {
			c.emit(p, chunked)
			if !bulk && sent >= bulkFrom {
				bulk, limit = true, c.beginBulk()
			}
		}
		if err == io.EOF {
			if sent < length {
				err = errTooShort
			} else {
				if chunked {
					c.endChunks(r)
				}
				c.flush()
				return
			}
		}
		if err != nil {
			c.abort(err, chunked || length >= 0)
			return
		}
	}
	_ = r.Body.Close()
}

// emit queues or sends one piece of the body.
func (c *conn) emit(p []byte, chunked bool) {
	w := c.w
	if chunked {
		w.out.b = strconv.AppendInt(w.out.queued(), int64(len(p)), 16)
		w.out.b = append(w.out.b, '\r', '\n')
	}
	if w.out.fits(len(p) + 2) {
		w.out.b = append(w.out.queued(), p...)
	} else {
		c.flush()
		c.send(p)
	}
	if chunked {
		w.out.b = append(w.out.queued(), '\r', '\n')
	}
}

func (c *conn) endChunks(r *exchange.Response) {
	w := c.w
	w.out.b = append(w.out.queued(), "0\r\n"...)
	if w.x.Request.TETrailers {
		from, lines := len(w.out.b), 0
		for i := range r.Trailer.Fields {
			if f := &r.Trailer.Fields[i]; !forbiddenTrailers.Has(f.Name) {
				w.out.b = appendField(w.out.b, f.Name, f.Value)
				lines++
			}
		}
		if !wellFormed(w.out.b[from:], lines) {
			w.out.b = w.out.b[:from]
		}
	}
	w.out.b = append(w.out.b, '\r', '\n')
}

func (c *conn) flush() {
	c.send(c.w.out.b)
	c.w.out.b = c.w.out.b[:0]
}

func (c *conn) send(p []byte) {
	if c.err != nil || len(p) == 0 {
		return
	}
	c.w.x.BytesSent += int64(len(p))
	c.err = c.write(c.w.fd, p, c.s.o.WriteTimeout)
}

// abort ends the connection so that the client sees that the response is not complete. One without framing takes a reset, which makes the
// kernel forget what was not sent yet; with framing the client gets all there was, as from nginx.
func (c *conn) abort(err error, framed bool) {
	if c.w.x.Err == nil {
		c.w.x.Err = err
	}
	c.flush()
	c.err = err
	if !framed {
		c.resets()
	}
}

// sendContinue tells a waiting client to send its body, unless the answer has begun.
func (w *work) sendContinue() error {
	w.continueMu.Lock()
	defer w.continueMu.Unlock()
	if w.answered {
		return errBodyClosed
	}
	w.answered = true
	return w.c.write(-1, []byte("HTTP/1.1 100 Continue\r\n\r\n"), w.c.s.o.WriteTimeout)
}

// sendInformational passes on a 1xx answer of the upstream.
func (w *work) sendInformational(status int, h *exchange.Header) error {
	if w.f.old {
		return nil // RFC 9110 §15.2
	}
	b := append(w.out.queued()[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, '\r', '\n')
	lines := 1
	for i := range h.Fields {
		if f := &h.Fields[i]; !framingField(f.Name) {
			b = appendField(b, f.Name, f.Value)
			lines++
		}
	}
	if !wellFormed(b, lines) {
		return errInjection
	}
	w.out.b = append(b, '\r', '\n')
	w.continueMu.Lock()
	defer w.continueMu.Unlock()
	w.c.flush()
	w.out.drop()
	return w.c.err
}

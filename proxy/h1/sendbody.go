package h1

import (
	"io"
	"strconv"
	"time"

	"concord/proxy/exchange"
)

// chunkWriter gathers pieces of a request body and frames them.
type chunkWriter struct {
	c       *ClientConn
	d       time.Duration
	chunked bool
	outgoing
}

func (w *chunkWriter) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if w.chunked {
		if err := w.room(32); err != nil {
			return err
		}
		w.b = strconv.AppendInt(w.queued(), int64(len(p)), 16)
		w.b = append(w.b, '\r', '\n')
	}
	for len(p) > 0 {
		n := len(p) - len(p)%smallBuffer
		if len(w.b) == 0 && n > 0 { // sent from where it lies
			if err := w.c.write(-1, p[:n], w.d); err != nil {
				return err
			}
		} else {
			if err := w.room(1); err != nil {
				return err
			}
			n = min(len(p), smallBuffer-len(w.b))
			w.b = append(w.queued(), p[:n]...)
		}
		p = p[n:]
	}
	if w.chunked {
		if err := w.room(2); err != nil {
			return err
		}
		w.b = append(w.queued(), '\r', '\n')
	}
	return nil
}

// room sends what was gathered if there is no room for n bytes behind it.
func (w *chunkWriter) room(n int) error {
	if w.fits(n) {
		return nil
	}
	return w.flush()
}

func (w *chunkWriter) flush() error {
	err := w.c.write(-1, w.b, w.d)
	w.b = w.b[:0]
	return err
}

func (w *chunkWriter) end(r *exchange.Request) error {
	if w.chunked {
		w.b = append(w.queued(), "0\r\n"...)
		from, lines := len(w.b), 0
		for i := range r.Trailer.Fields {
			if f := &r.Trailer.Fields[i]; !forbiddenTrailers.Has(f.Name) {
				w.b = appendField(w.b, f.Name, f.Value)
				lines++
			}
		}
		if !wellFormed(w.b[from:], lines) {
			w.b = w.b[:from]
		}
		w.b = append(w.b, '\r', '\n')
	}
	return w.flush()
}

// clientTunnel is the upstream side of an upgraded connection.
type clientTunnel ClientConn

// Next begins with what came with the head of the answer, and lets go of the buffers for heads then.
func (t *clientTunnel) Next() ([]byte, error) {
	c := (*ClientConn)(t)
	if c.r < c.e {
		p := c.buf()[c.r:c.e]
		c.r = c.e
		return p, nil
	}
	if c.in != nil {
		c.putIn()
		c.arriving.prepare(&c.wire, &largePool, largeBuffer)
	}
	return c.arriving.again(c.x.Upstream.ReadTimeout)
}

func (t *clientTunnel) Write(p []byte) (int, error) {
	c := (*ClientConn)(t)
	if err := c.write(-1, p, c.x.Upstream.WriteTimeout); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *clientTunnel) CloseWrite() error {
	if cw, ok := t.nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return io.ErrClosedPipe
}

func (t *clientTunnel) Close() error { return t.nc.Close() }

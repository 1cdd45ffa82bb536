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
	b       []byte
	chunked bool
}

func (w *chunkWriter) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(w.b)+len(p)+32 > cap(w.b) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.chunked {
		w.b = strconv.AppendInt(w.b, int64(len(p)), 16)
		w.b = append(w.b, '\r', '\n')
	}
	if len(w.b)+len(p)+2 <= cap(w.b) {
		w.b = append(w.b, p...)
	} else {
		if err := w.flush(); err != nil {
			return err
		}
		if err := w.c.write(-1, p, w.d); err != nil {
			return err
		}
	}
	if w.chunked {
		w.b = append(w.b, '\r', '\n')
	}
	return nil
}

func (w *chunkWriter) flush() error {
	err := w.c.write(-1, w.b, w.d)
	w.b = w.b[:0]
	return err
}

func (w *chunkWriter) end(r *exchange.Request) error {
	if w.chunked {
		w.b = append(w.b, "0\r\n"...)
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

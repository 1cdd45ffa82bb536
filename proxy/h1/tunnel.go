package h1

import (
	"io"
	"sync/atomic"

	"concord/proxy/exchange"
)

// lastLooks is how much of what still arrives behind a tunnel is read at once.
const lastLooks = 1 << 10

// tunnel answers 101 and copies both ways until both sides have ended, one fails, or nothing has moved in either
// direction for the upstream's read timeout. It only runs after the upstream has agreed to the upgrade.
func (c *conn) tunnel() {
	w, x := c.w, &c.w.x
	up := x.Response.Tunnel
	defer up.Close()
	c.unwatch() // both sides are read now
	b := append(w.out.queued()[:0], "HTTP/1.1 101 Switching Protocols\r\n"...)
	lines := 3
	for i := range x.Response.Header.Fields {
		if f := &x.Response.Header.Fields[i]; !framingField(f.Name) {
			b = appendField(b, f.Name, f.Value)
			lines++
		}
	}
	b = append(b, "Connection: upgrade\r\n"...)
	b = appendField(b, "Upgrade", x.Request.Upgrade)
	if !wellFormed(b, lines) {
		c.err, x.Err = errInjection, errInjection
		return
	}
	w.out.b = append(b, '\r', '\n')
	c.flush()
	if w.out.drop(); c.err != nil {
		return
	}
	idle := x.Upstream.ReadTimeout
	if idle <= 0 {
		idle = c.s.o.IdleTimeout
	}
	// Such connections are many, and mostly wait: they have no buffers. Heads lie elsewhere, see advance and ClientConn.head.
	rest := w.in[w.r:w.e]
	if len(rest) == 0 && x.Request.Body == nil && len(w.in) == smallBuffer {
		c.s.works.Put(workOf(w.in))
	}
	w.in, w.r, w.e = nil, 0, 0
	defer func() { w.in = make([]byte, lastLooks) }()
	t := traffic{idleEnds: func() bool { return c.s.draining.Load() }}
	done := make(chan struct{})
	var down int64
	go func() {
		defer close(done)
		var err error
		down, err = t.pump(up.Next, func(p []byte) error { return c.write(-1, p, c.s.o.WriteTimeout) })
		c.linger = !isTimeout(err) // the client may still be sending, and has not read the end yet
		t.over.Store(true)
		_ = c.nc.SetReadDeadline(longAgo)
	}()
	var err error
	if len(rest) > 0 {
		err = writeTunnel(up, rest)
	}
	if err == nil {
		var arriving reader
		arriving.prepare(&c.wire, &smallPool, smallBuffer)
		_, err = t.pump(func() ([]byte, error) { return arriving.again(idle) }, func(p []byte) error { return writeTunnel(up, p) })
		arriving.drop()
	}
	if err != io.EOF || up.CloseWrite() != nil {
		_ = up.Close()
	}
	<-done
	x.BytesSent += down
}

// traffic is what the two directions of a tunnel know of each other.
type traffic struct {
	moved    atomic.Int64 // how often bytes arrived from either side
	over     atomic.Bool  // the upstream has ended
	idleEnds func() bool
}

// pump copies one direction. A read that timed out is repeated while the other direction moves.
func (t *traffic) pump(next func() ([]byte, error), write func([]byte) error) (n int64, err error) {
	for {
		before := t.moved.Load()
		p, err := next()
		if len(p) > 0 {
			t.moved.Add(1)
			n += int64(len(p))
			if err := write(p); err != nil {
				return n, err
			}
		}
		if t.over.Load() {
			return n, errBodyClosed
		}
		if err != nil && (!isTimeout(err) || t.moved.Load() == before || t.idleEnds()) {
			return n, err
		}
	}
}

func writeTunnel(up exchange.Tunnel, p []byte) error {
	_, err := up.Write(p)
	return err
}

package h1

import (
	"io"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// tunnel answers 101 and copies both ways until both sides have ended, one fails, or nothing has moved in either
// direction for the upstream's read timeout. It only runs after the upstream has agreed to the upgrade.
func (c *conn) tunnel() {
	w, x := c.w, &c.w.x
	up := x.Response.Tunnel
	defer up.Close()
	c.unwatch() // both sides are read now
	b := append(w.out[:0], "HTTP/1.1 101 Switching Protocols\r\n"...)
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
	w.out = append(b, '\r', '\n')
	if c.flush(); c.err != nil {
		return
	}
	idle := x.Upstream.ReadTimeout
	if idle <= 0 {
		idle = c.s.o.IdleTimeout
	}
	t := traffic{idleEnds: func() bool { return c.s.draining.Load() }}
	done := make(chan struct{})
	var down int64
	go func() {
		defer close(done)
		buf := largePool.Get().(*buffer)
		defer largePool.Put(buf)
		var err error
		down, err = t.pump(buf.b, up.Read, func(p []byte) error { return c.write(-1, p, c.s.o.WriteTimeout) })
		c.linger = !isTimeout(err) // the client may still be sending, and has not read the end yet
		t.over.Store(true)
		_ = c.nc.SetReadDeadline(longAgo)
	}()
	var err error
	if w.r < w.e {
		err = writeTunnel(up, w.in[w.r:w.e])
		w.r = w.e
	}
	if err == nil {
		read := func(p []byte) (int, error) { return c.readAgain(p, idle) }
		_, err = t.pump(w.in, read, func(p []byte) error { return writeTunnel(up, p) })
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
func (t *traffic) pump(buf []byte, read func([]byte) (int, error), write func([]byte) error) (n int64, err error) {
	for {
		before := t.moved.Load()
		k, err := read(buf)
		if k > 0 {
			t.moved.Add(1)
			n += int64(k)
			if err := write(buf[:k]); err != nil {
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

// readAgain is read with the deadline of an earlier interruption removed first.
func (w *wire) readAgain(p []byte, d time.Duration) (int, error) {
	n, err := w.read(p, d)
	if err != nil && isTimeout(err) {
		_ = w.nc.SetReadDeadline(time.Time{})
	}
	return n, err
}

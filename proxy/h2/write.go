package h2

import (
	"runtime"
	"sync"
)

// outMemory is borrowed while something waits to be written: connections and streams may be silent for long after much was sent.
type outMemory struct{ b []byte }

var outPool = sync.Pool{New: func() any { return &outMemory{make([]byte, 0, 4<<10)} }}

// queued is c.out with room behind it. c.mu is held.
func (c *conn) queued() []byte {
	if c.outMemory == nil {
		c.outMemory = outPool.Get().(*outMemory)
		c.out = c.outMemory.b
	}
	return c.out
}

// flush writes what is queued. c.mu is held when it is called and when it returns, but not between. One goroutine writes
// at a time. With patient, when other streams are busy, those that could run do so first: their frames then leave with the
// same system call.
func (c *conn) flush(patient bool) {
	if c.flushing || len(c.out) == 0 || c.dead {
		return
	}
	c.flushing = true
	if patient && c.running > 1 {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.write()
	if len(c.out) > 0 && !c.dead {
		// Others went on queueing. Nobody shall write for them for ever.
		go func() {
			c.mu.Lock()
			for len(c.out) > 0 && !c.dead {
				c.write()
			}
			c.flushing = false
			c.room.Broadcast()
			c.mu.Unlock()
		}()
		return
	}
	c.flushing = false
	c.room.Broadcast()
}

// write sends c.out. c.mu is held, but not while it waits.
func (c *conn) write() {
	b, memory := c.out, c.outMemory
	c.out, c.outMemory = nil, nil
	c.writeBy.Store(c.keep.in(c.lim.writeTime))
	c.mu.Unlock()
	_, err := c.nc.Write(b)
	c.mu.Lock()
	c.writeBy.Store(0)
	if cap(b) <= 2*maxOut {
		memory.b = b[:0]
		outPool.Put(memory)
	}
	if err != nil {
		c.dead = true
		c.out, c.outMemory = nil, nil
		if c.err == nil {
			c.failAll(err)
			c.wake()
		}
	}
	c.room.Broadcast()
	c.wakeSenders()
}

// failAll ends all streams. c.mu is held.
func (c *conn) failAll(err error) {
	if c.err == nil {
		c.err = err
	}
	for _, s := range c.streams {
		if s.err == nil {
			s.fail(err)
			c.side.gone(s)
		}
	}
	c.room.Broadcast()
}

// putHead queues a header block, which begins with one byte of room for a table size update. c.mu is held.
func (c *conn) putHead(s *stream, block []byte, end bool) {
	if c.tableUpdate {
		c.tableUpdate = false
		block[0] = 0x20 // RFC 7541 §6.3: size 0
	} else {
		block = block[1:]
	}
	n := len(c.out)
	c.out = appendHeaders(c.queued(), s.id, block, end, c.peerFrame)
	s.sent += int64(len(c.out) - n)
	s.sentEnd = s.sentEnd || end
}

// putData queues p as the windows allow, waiting when they do not, and tells whether all of it was queued. Each piece of
// a frame's size must find its way within the write timeout, however small the windows the other side doles out.
// c.mu is held.
func (s *stream) putData(p []byte, end bool) bool {
	c := s.c
	left := min(len(p), maxFrame) // of the present piece
	for {
		for s.err == nil && (len(p) > 0 && (s.sendWindow <= 0 || c.sendWindow <= 0) || len(c.out) >= maxOut) {
			if s.writeBy == 0 && s.writeTime > 0 {
				s.writeBy = c.keep.in(s.writeTime)
				c.waits.Add(1)
			}
			if s.writeLate {
				s.fail(errStalled)
				c.reset(s.id, Cancel)
				break
			}
			c.flush(false)
			if s.sendWindow > 0 && c.sendWindow > 0 && len(c.out) < maxOut || s.err != nil {
				continue // while it was written
			}
			c.blocked++
			s.send.Wait()
			c.blocked--
		}
		if s.err != nil {
			s.rest()
			return false
		}
		n := int(min(int64(len(p)), s.sendWindow, c.sendWindow, int64(c.peerFrame)))
		if n < len(p) && n < 256 {
			if err := c.charge(1); err != nil { // windows of a few bytes (CVE-2019-9511)
				c.failAll(err)
				c.wake()
				s.rest()
				return false
			}
		}
		last := end && n == len(p)
		before := len(c.out)
		c.out = appendData(c.queued(), s.id, p[:n], last)
		s.sent += int64(len(c.out) - before)
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.refund(3) // an honest receiver gives two windows back, and may measure the way with a ping
		p = p[n:]
		if left -= n; left <= 0 {
			s.rest()
			left = min(len(p), maxFrame)
		}
		if len(p) == 0 {
			s.rest()
			s.sentEnd = s.sentEnd || end
			return true
		}
	}
}

// rest ends the patience that waiting has armed. c.mu is held.
func (s *stream) rest() {
	if s.writeBy != 0 {
		s.writeBy, s.writeLate = 0, false
		s.c.waits.Add(-1)
	}
}

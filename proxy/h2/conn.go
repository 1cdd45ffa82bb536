package h2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"concord/proxy/h1"
)

const (
	readBuffer  = 32 << 10 // holds the largest frame and more; a connection that waits has none, unless much of a frame is in it
	maxOut      = 64 << 10 // data waits for room when so much is queued
	maxQueued   = 256 << 10
	calmBurst   = 1000 // see charge
	calmPerSec  = 100
	rememberIDs = 64
)

var readPool = sync.Pool{New: func() any { return new([readBuffer]byte) }}

var (
	errDone    = errors.New("h2: the connection is over")
	errClosed  = errors.New("h2: the connection was closed")
	errGoingAt = errors.New("h2: the other side did not take the stream")
	errParked  = errors.New("h2: another goroutine goes on with the connection")
)

// side is what a server and a client do differently. All methods are called by the reading goroutine; those marked so
// with c.mu held.
type side interface {
	// head takes a complete header block, which is in c.head.
	head(id uint32, end bool) error
	// gone: the other side has reset a stream. c.mu is held.
	gone(s *stream)
	// away: the other side sent GOAWAY. c.mu is held.
	away(last uint32)
	// batch is called when all bytes at hand were looked at.
	batch()
}

// limits are the settings of one end.
type limits struct {
	head         h1.Limits
	streams      int           // of the other side at once
	window       int           // of the whole connection
	streamWindow int           // to which one stream's may grow
	early        bool          // the connection's window is given back on receipt: slow readers do not stop others
	headTime     time.Duration // for a started frame or header block, and for the first SETTINGS
	writeTime    time.Duration
	idleTime     time.Duration
}

// conn is what both ends of a connection have in common: frames in and out, flow control, the streams, and the patience
// with the other side. One goroutine reads; who has something to send queues it and, unless another goroutine is just
// writing, writes all that is queued.
type conn struct {
	nc     net.Conn
	side   side
	keep   *keeper
	lim    limits
	client bool
	clock  *h1.Clock // that the connection may be parked with; nil: it may not
	resume func()    // serves it again
	spot   h1.Spot

	// Of the reading goroutine.
	source    h1.Source
	in        *[readBuffer]byte // in[r:e] is unread; nil while nothing is, or little
	r, e      int
	part      []byte // what is unread while in is nil
	dec       *hpack.Decoder
	head      head
	blockID   uint32 // of the header block that goes on in CONTINUATION frames; 0: none
	blockEnd  bool
	block     []byte
	oversize  bool  // the block is above the limit, and keep counts it
	settled   bool  // the first SETTINGS has come
	partialBy int64 // when the frame or block must be complete that has begun

	leaving         atomic.Bool
	readBy, writeBy atomic.Int64
	restBy          atomic.Int64 // when a resting connection gives its goroutine back
	waits           atomic.Int32 // streams with deadlines

	mu       sync.Mutex
	streams  map[uint32]*stream
	running  int    // exchanges: a stream may be gone while its handler still runs
	maxID    uint32 // highest stream so far
	lastID   uint32 // highest that was taken
	idleBy   int64
	err      error // the connection is over for its streams
	dead     bool  // nothing can be written any more
	draining int
	resets   [rememberIDs]uint32 // streams reset by this side: what is still on its way for them is no fault
	resetPos int

	out         []byte     // what waits to be written; append to queued
	outMemory   *outMemory // that out began in
	flushing    bool
	room        sync.Cond // something was written, or a stream has ended
	blocked     int       // streams that wait for window or room
	calm        int64     // in thousandths, see charge
	calmAt      int64
	sendWindow  int64
	peerWindow  int64 // initial window of streams
	peerFrame   int
	peerStreams int
	tableUpdate bool // the next header block says that the dynamic table is not used
	recvWindow  int
	unacked     int // consumed, not yet given back
}

// States of draining.
const (
	drainNo       = iota
	drainNotice                      // GOAWAY was sent with the highest id: streams on their way are still served
	drainDecided                     // GOAWAY with the last stream that is served
	drainPingData = 0x636f6e636f7264 // marks the ping that follows the notice
)

func (c *conn) init(nc net.Conn, k *keeper, lim limits, s side) {
	c.nc, c.keep, c.lim, c.side = nc, k, lim, s
	c.source.Open(nc, c)
	c.streams = map[uint32]*stream{}
	c.head.lim, c.head.response = lim.head, c.client
	c.dec = hpack.NewDecoder(4096, c.head.add)
	c.dec.SetMaxStringLength(largestBlocks * lim.head.HeadBytes * 8 / 5) // as long as a block can hold (RFC 7541 §5.2): head judges, and the stream alone ends
	c.room.L = &c.mu
	c.calm, c.calmAt = calmBurst*1000, k.now()
	c.sendWindow, c.peerWindow, c.peerFrame, c.peerStreams = defaultWindow, defaultWindow, maxFrame, 100
	c.recvWindow = lim.window
	c.partialBy = k.in(lim.headTime)
	c.idleBy = k.in(lim.idleTime)
}

// read is the reading goroutine: it returns why the connection is over, or that it is parked.
func (c *conn) read() error {
	for {
		for {
			f, n, err := parseFrame(c.buffered())
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			c.r += n
			if err := c.take(&f); err != nil {
				var se *streamError
				if !errors.As(err, &se) {
					return err
				}
				c.mu.Lock()
				err = c.refuse(f.id, se)
				c.mu.Unlock()
				if err != nil {
					return err
				}
			}
		}
		c.side.batch()
		if err := c.fill(); err != nil {
			return err
		}
	}
}

func (c *conn) buffered() []byte {
	if c.in == nil {
		return nil
	}
	return c.in[c.r:c.e]
}

// fill waits for more bytes.
func (c *conn) fill() error {
	if c.r > 0 {
		c.e = copy(c.in[:], c.in[c.r:c.e])
		c.r = 0
	}
	c.mu.Lock()
	c.flush(false)
	for len(c.out) > maxQueued && !c.dead && c.err == nil {
		c.room.Wait() // the other side makes us write and does not read
	}
	switch {
	case c.e == 0 && c.blockID == 0 && c.settled:
		c.partialBy = 0
	case c.partialBy == 0:
		c.partialBy = c.keep.in(c.lim.headTime)
	}
	c.arm()
	if c.clock != nil && c.resting() && c.restBy.Load() == 0 {
		c.restBy.Store(c.keep.now() + restAfter)
	}
	c.mu.Unlock()
	for {
		n, err := c.source.Read()
		if n > 0 {
			c.e += n
			return nil
		}
		if err == nil {
			continue
		}
		if !isTimeout(err) {
			if err == io.EOF {
				return errClosed
			}
			return err
		}
		if err = c.late(); err != nil {
			return err
		}
	}
}

// Room implements h1.Memory.
func (c *conn) Room() []byte {
	if c.in == nil {
		c.in = readPool.Get().(*[readBuffer]byte)
		copy(c.in[:], c.part)
		c.part = nil
	}
	return c.in[c.e:]
}

// largestPart is how much of a frame is kept in memory of its own size: many clients that send a little and no more would each hold a lot.
const largestPart = 1 << 10

// Idle implements h1.Memory.
func (c *conn) Idle() {
	if c.in != nil && c.e <= largestPart {
		c.part = bytes.Clone(c.in[:c.e])
		readPool.Put(c.in)
		c.in = nil
	}
}

// restAfter is how long a resting connection keeps its goroutine, in milliseconds.
const restAfter = 1000

// resting tells whether there is neither a stream nor a part of a frame. c.mu is held.
func (c *conn) resting() bool { return c.running == 0 && c.e == 0 }

// park lets a connection on which nothing happens wait without a goroutine, see h1.Clock, and tells whether the caller has lost it. c.mu is held.
func (c *conn) park() bool {
	if c.clock == nil || !c.resting() || c.restBy.Load() != 0 || c.partialBy != 0 || c.draining != drainNo || c.flushing || len(c.out) > 0 {
		return false
	}
	c.head.fields, c.head.crumbs, c.block = nil, nil, nil
	return c.clock.Park(&c.spot, c.nc, c.resume, func() bool { return c.readBy.Load() > 0 })
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// arm sets the deadline of reading. c.mu is held.
func (c *conn) arm() {
	by := c.partialBy
	if by == 0 && c.running == 0 {
		by = c.idleBy
	}
	c.readBy.Store(by)
}

// wake makes the reading goroutine look at the connection's state. Who has changed that still holds c.mu, or has cleared a deadline, so
// that the connection is not parked without having seen it.
func (c *conn) wake() {
	_ = c.nc.SetReadDeadline(longAgo)
	if c.clock != nil {
		c.clock.Wake(&c.spot)
	}
}

// late finds out why a read was interrupted.
func (c *conn) late() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetReadDeadline(time.Time{})
	now := c.keep.now()
	switch {
	case c.err != nil:
		return c.err
	case c.partialBy != 0 && now >= c.partialBy:
		if !c.settled {
			return &connError{SettingsTimeout, "no SETTINGS in time"}
		}
		return &connError{EnhanceYourCalm, "a frame or header block did not arrive in time"}
	case c.running == 0 && c.draining == drainDecided:
		c.err = errDone // so that no stream is opened meanwhile
		return errDone
	case c.running == 0 && now >= c.idleBy:
		if c.draining == drainNo && !c.client {
			c.drain()
			break
		}
		if c.draining == drainNotice {
			c.decide()
		}
		c.err = errDone
		return errDone
	}
	c.arm()
	c.flush(false)
	if c.park() {
		return errParked
	}
	return nil
}

// drainGrace is how long the other side may take to acknowledge that no more streams are welcome.
const drainGrace = time.Second

// drain begins to end the connection: streams that are under way, or on their way to us, are served (RFC 9113 §6.8).
// c.mu is held.
func (c *conn) drain() {
	if c.draining != drainNo || c.err != nil {
		return
	}
	c.draining = drainNotice
	c.out = appendGoAway(c.queued(), maxWindow, NoError, "")
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], drainPingData)
	c.out = appendPing(c.queued(), 0, data)
	c.idleBy = c.keep.in(drainGrace)
	c.arm()
	c.flush(false)
}

// decide ends the notice: what comes now is not served any more. c.mu is held.
func (c *conn) decide() {
	c.draining = drainDecided
	c.out = appendGoAway(c.queued(), c.lastID, NoError, "")
	c.flush(false)
	if c.running == 0 {
		c.wake()
	}
}

// ended is called when an exchange is over. c.mu is held.
func (c *conn) ended() {
	c.running--
	if c.running > 0 {
		return
	}
	c.room.Broadcast()
	if c.draining == drainDecided {
		c.wake()
		return
	}
	if c.draining == drainNo {
		c.idleBy = c.keep.in(c.lim.idleTime)
	}
	if c.clock != nil {
		c.restBy.Store(c.keep.now() + restAfter)
	}
	c.arm()
}

// charge makes the other side pay for a frame that costs work and serves no exchange. Whoever sends more of them than the
// burst and the refill allow is asked to calm down. c.mu is held.
func (c *conn) charge(n int64) error {
	now := c.keep.now()
	c.calm = min(calmBurst*1000, c.calm+(now-c.calmAt)*calmPerSec) - n*1000
	c.calmAt = now
	if c.calm < 0 {
		return &connError{EnhanceYourCalm, "too many frames that serve nothing"}
	}
	return nil
}

// refund makes up for frames that belong to honest work. c.mu is held.
func (c *conn) refund(n int64) { c.calm = min(calmBurst*1000, c.calm+n*1000) }

// refuse answers a stream error. c.mu is held.
func (c *conn) refuse(id uint32, e *streamError) error {
	if s := c.streams[id]; s != nil && s.err == nil {
		s.fail(e)
		c.side.gone(s)
	}
	c.reset(id, e.code)
	return c.charge(1)
}

// reset queues RST_STREAM. c.mu is held.
func (c *conn) reset(id uint32, code Code) {
	c.resets[c.resetPos%rememberIDs] = id
	c.resetPos++
	c.out = appendReset(c.queued(), id, code)
}

func (c *conn) wasReset(id uint32) bool {
	for _, r := range c.resets {
		if r == id {
			return true
		}
	}
	return false
}

// stray judges a frame for a stream that is not there. c.mu is held.
func (c *conn) stray(id uint32) error {
	if id&1 == 0 || id > c.maxID { // all streams are opened by clients, with odd ids
		return &connError{ProtocolError, "frame for a stream that was not opened (RFC 9113 §5.1)"}
	}
	return nil
}

// How much and how long the other side may still send after the last frame, so that the kernel does not reset the
// connection before that was read.
const (
	lingerBytes = 1 << 20
	lingerTime  = time.Second
)

// discardQueued makes the kernel forget what the other side did not take.
func discardQueued(nc net.Conn) {
	for {
		outer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = outer.NetConn()
	}
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

// end closes the connection after read has returned, and waits for the exchanges that still run.
func (c *conn) end(err error) {
	c.keep.small(c)
	c.mu.Lock()
	var ce *connError
	if errors.As(err, &ce) {
		c.out = appendGoAway(c.queued(), c.lastID, ce.code, ce.reason)
	}
	c.failAll(err)
	c.flush(false)
	for (c.flushing || len(c.out) > 0) && !c.dead {
		c.room.Wait()
	}
	stalled := c.dead
	polite := !c.dead && (ce != nil || errors.Is(err, errDone))
	c.dead = true
	c.mu.Unlock()
	if cw, ok := c.nc.(interface{ CloseWrite() error }); ok && polite && cw.CloseWrite() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
		buf := readPool.Get().(*[readBuffer]byte)
		for n := 0; n < lingerBytes; {
			k, err := c.nc.Read(buf[:])
			if err != nil {
				break
			}
			n += k
		}
		readPool.Put(buf)
	}
	if stalled {
		discardQueued(c.nc)
	}
	_ = c.nc.Close()
	c.mu.Lock()
	for c.running > 0 {
		c.room.Wait()
	}
	c.mu.Unlock()
	c.e = 0
	c.Idle()
	c.keep.remove(c)
}

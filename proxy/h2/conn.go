package h2

import (
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
	readBuffer  = 32 << 10 // holds the largest frame and more; a connection without streams has none
	keptOut     = 1 << 10  // of the write buffers an idle connection keeps
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
	bodyTime     time.Duration
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

	// Of the reading goroutine.
	in        *[readBuffer]byte // in[r:e] is unread; nil without streams
	r, e      int
	small     [64]byte // what wakes a connection without buffer is read into this
	dec       *hpack.Decoder
	head      head
	blockID   uint32 // of the header block that goes on in CONTINUATION frames; 0: none
	blockEnd  bool
	block     []byte
	settled   bool  // the first SETTINGS has come
	partialBy int64 // when the frame or block must be complete that has begun

	leaving         atomic.Bool
	readBy, writeBy atomic.Int64
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

	out, spare  []byte
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
	c.streams = map[uint32]*stream{}
	c.head.lim, c.head.response = lim.head, c.client
	c.dec = hpack.NewDecoder(4096, c.head.add)
	c.dec.SetMaxStringLength(lim.head.HeadBytes)
	c.room.L = &c.mu
	c.calm, c.calmAt = calmBurst*1000, k.now()
	c.sendWindow, c.peerWindow, c.peerFrame, c.peerStreams = defaultWindow, defaultWindow, maxFrame, 100
	c.recvWindow = lim.window
	c.partialBy = k.in(lim.headTime)
	c.idleBy = k.in(lim.idleTime)
}

// read is the reading goroutine: it returns why the connection is over.
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
	if c.running == 0 && c.e == 0 {
		c.releaseBuffers()
	}
	c.mu.Unlock()
	for {
		room := c.small[:]
		if c.in != nil {
			room = c.in[c.e:]
		}
		n, err := c.nc.Read(room)
		if n > 0 {
			if c.in == nil {
				c.in = readPool.Get().(*[readBuffer]byte)
				copy(c.in[:], room[:n])
			}
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

// releaseBuffers keeps an idle connection small. c.mu is held.
func (c *conn) releaseBuffers() {
	if c.in != nil {
		readPool.Put(c.in)
		c.in, c.r, c.e = nil, 0, 0
	}
	if !c.flushing && len(c.out) == 0 && cap(c.out) > keptOut {
		c.out = nil
	}
	if cap(c.spare) > keptOut {
		c.spare = nil
	}
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

// wake makes the reading goroutine look at the connection's state.
func (c *conn) wake() { _ = c.nc.SetReadDeadline(longAgo) }

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
		return errDone
	case c.running == 0 && now >= c.idleBy:
		if c.draining == drainNo && !c.client {
			c.drain()
			break
		}
		if c.draining == drainNotice {
			c.decide()
		}
		return errDone
	}
	c.arm()
	c.flush(false)
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
	c.out = appendGoAway(c.out, maxWindow, NoError, "")
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], drainPingData)
	c.out = appendPing(c.out, 0, data)
	c.idleBy = c.keep.in(drainGrace)
	c.arm()
	c.flush(false)
}

// decide ends the notice: what comes now is not served any more. c.mu is held.
func (c *conn) decide() {
	c.draining = drainDecided
	c.out = appendGoAway(c.out, c.lastID, NoError, "")
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
	c.out = appendReset(c.out, id, code)
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

// take handles one frame.
func (c *conn) take(f *frame) error {
	if !c.settled && f.kind != frameSettings {
		return &connError{ProtocolError, "the first frame is not SETTINGS (RFC 9113 §3.4)"}
	}
	if c.blockID != 0 && (f.kind != frameContinuation || f.id != c.blockID) {
		return &connError{ProtocolError, "another frame within a header block (RFC 9113 §4.3)"}
	}
	switch f.kind {
	case frameHeaders:
		return c.takeHeaders(f)
	case frameContinuation:
		return c.takeContinuation(f)
	case frameData:
		return c.takeData(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f.kind {
	case frameWindowUpdate:
		return c.takeWindowUpdate(f)
	case frameReset:
		return c.takeReset(f)
	case frameSettings:
		return c.takeSettings(f)
	case framePing:
		return c.takePing(f)
	case frameGoAway:
		if f.id != 0 {
			return &connError{ProtocolError, "GOAWAY on a stream"}
		}
		if len(f.payload) < 8 {
			return &connError{FrameSizeError, "GOAWAY is too short"}
		}
		c.side.away(binary.BigEndian.Uint32(f.payload) & maxWindow)
		return c.charge(1)
	case framePriority:
		// Deprecated, and ignored but for what is plainly wrong (RFC 9113 §5.3.2).
		if f.id == 0 {
			return &connError{ProtocolError, "PRIORITY without a stream"}
		}
		if len(f.payload) != 5 {
			return &streamError{FrameSizeError, "PRIORITY is not 5 bytes"}
		}
		if binary.BigEndian.Uint32(f.payload)&maxWindow == f.id {
			return &streamError{ProtocolError, "a stream depends on itself"}
		}
	case framePush:
		return &connError{ProtocolError, "PUSH_PROMISE was not allowed"}
	}
	return c.charge(1)
}

func (c *conn) takeHeaders(f *frame) error {
	if f.id == 0 || f.id&1 == 0 {
		return &connError{ProtocolError, "HEADERS on a stream that clients cannot open (RFC 9113 §5.1.1)"}
	}
	if err := f.unpad(); err != nil {
		return err
	}
	selfish := false
	if f.has(flagPriority) {
		if len(f.payload) < 5 {
			return &connError{FrameSizeError, "HEADERS is too short for its priority"}
		}
		selfish = binary.BigEndian.Uint32(f.payload)&maxWindow == f.id
		f.payload = f.payload[5:]
	}
	c.mu.Lock()
	s := c.streams[f.id]
	c.mu.Unlock()
	c.head.reset(s != nil && (!c.client || s.started))
	if selfish {
		c.head.wrong = malformed("a stream depends on itself")
	}
	c.blockEnd = f.has(flagEndStream)
	if f.has(flagEndHeaders) {
		return c.decode(f.id, f.payload)
	}
	c.blockID = f.id
	c.block = append(c.block[:0], f.payload...)
	return c.paid(f)
}

func (c *conn) takeContinuation(f *frame) error {
	if c.blockID == 0 {
		return &connError{ProtocolError, "CONTINUATION without HEADERS (RFC 9113 §6.10)"}
	}
	if len(c.block)+len(f.payload) > c.lim.head.HeadBytes {
		return &connError{EnhanceYourCalm, "header block is too large"}
	}
	c.block = append(c.block, f.payload...)
	if !f.has(flagEndHeaders) {
		return c.paid(f)
	}
	c.blockID = 0
	err := c.decode(f.id, c.block)
	if cap(c.block) > maxFrame {
		c.block = nil
	}
	return err
}

// paid charges for pieces of header blocks that are smaller than an honest sender makes them.
func (c *conn) paid(f *frame) error {
	if len(f.payload) >= 1024 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.charge(1)
}

// decode reads a header block. Whatever is wrong with the fields, it is decoded to the end: the compression state is the
// connection's.
func (c *conn) decode(id uint32, block []byte) error {
	if _, err := c.dec.Write(block); err != nil {
		return &connError{CompressionError, err.Error()}
	}
	if err := c.dec.Close(); err != nil {
		return &connError{CompressionError, err.Error()}
	}
	return c.side.head(id, c.blockEnd)
}

func (c *conn) takeWindowUpdate(f *frame) error {
	if len(f.payload) != 4 {
		return &connError{FrameSizeError, "WINDOW_UPDATE is not 4 bytes"}
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	if err := c.charge(1); err != nil {
		return err
	}
	if f.id == 0 {
		if n == 0 {
			return &connError{ProtocolError, "WINDOW_UPDATE of 0"}
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return &connError{FlowControlError, "window above 2^31-1"}
		}
		c.wakeSenders()
		return nil
	}
	s := c.streams[f.id]
	if s == nil {
		return c.stray(f.id)
	}
	if s.err != nil {
		return nil
	}
	if n == 0 {
		return &streamError{ProtocolError, "WINDOW_UPDATE of 0"}
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		return &streamError{FlowControlError, "window above 2^31-1"}
	}
	s.send.Broadcast()
	return nil
}

// wakeSenders lets the streams look again that wait for window or room. c.mu is held.
func (c *conn) wakeSenders() {
	if c.blocked == 0 {
		return
	}
	for _, s := range c.streams {
		s.send.Broadcast()
	}
}

// young is the age up to which a reset makes a stream one that served nothing (CVE-2023-44487).
const young = 1000

func (c *conn) takeReset(f *frame) error {
	if f.id == 0 {
		return &connError{ProtocolError, "RST_STREAM without a stream"}
	}
	if len(f.payload) != 4 {
		return &connError{FrameSizeError, "RST_STREAM is not 4 bytes"}
	}
	s := c.streams[f.id]
	if s == nil {
		if err := c.stray(f.id); err != nil {
			return err
		}
		return c.charge(1)
	}
	if s.err == nil {
		s.fail(&ResetError{Code(binary.BigEndian.Uint32(f.payload))})
		c.side.gone(s)
	}
	if c.keep.now()-s.born < young {
		return c.charge(1)
	}
	return nil
}

func (c *conn) takePing(f *frame) error {
	if f.id != 0 {
		return &connError{ProtocolError, "PING on a stream"}
	}
	if len(f.payload) != 8 {
		return &connError{FrameSizeError, "PING is not 8 bytes"}
	}
	if f.has(flagAck) {
		if c.draining == drainNotice && binary.BigEndian.Uint64(f.payload) == drainPingData {
			c.decide()
		}
	} else {
		c.out = appendPing(c.out, flagAck, [8]byte(f.payload))
	}
	return c.charge(1)
}

func (c *conn) takeSettings(f *frame) error {
	if f.id != 0 {
		return &connError{ProtocolError, "SETTINGS on a stream"}
	}
	if len(f.payload)%6 != 0 || f.has(flagAck) && len(f.payload) > 0 {
		return &connError{FrameSizeError, "SETTINGS has the wrong size"}
	}
	if f.has(flagAck) {
		if !c.settled {
			return &connError{ProtocolError, "the first frame is an acknowledgement (RFC 9113 §3.4)"}
		}
		return c.charge(1)
	}
	c.settled = true
	for p := f.payload; len(p) > 0; p = p[6:] {
		if err := c.apply(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	c.out = appendFrameHeader(c.out, 0, frameSettings, flagAck, 0)
	c.wakeSenders()
	c.room.Broadcast()
	return c.charge(1 + int64(len(f.payload)/6/8))
}

func (c *conn) apply(id uint16, v uint32) error {
	switch id {
	case settingTableSize:
		c.tableUpdate = c.tableUpdate || v < 4096
	case settingEnablePush:
		if v > 1 || v == 1 && c.client {
			return &connError{ProtocolError, "SETTINGS_ENABLE_PUSH is wrong"}
		}
	case settingMaxStreams:
		c.peerStreams = int(min(v, maxWindow))
	case settingWindow:
		if v > maxWindow {
			return &connError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1"}
		}
		more := int64(v) - c.peerWindow
		c.peerWindow = int64(v)
		for _, s := range c.streams {
			if s.sendWindow += more; s.sendWindow > maxWindow {
				return &connError{FlowControlError, "window above 2^31-1"}
			}
		}
	case settingMaxFrame:
		if v < 1<<14 || v > 1<<24-1 {
			return &connError{ProtocolError, "SETTINGS_MAX_FRAME_SIZE out of range"}
		}
	}
	return nil
}

func (c *conn) takeData(f *frame) error {
	size := len(f.payload)
	if f.id == 0 {
		return &connError{ProtocolError, "DATA without a stream"}
	}
	if err := f.unpad(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if size > c.recvWindow {
		return &connError{FlowControlError, "more DATA than the connection's window"}
	}
	c.recvWindow -= size
	p, end := f.payload, f.has(flagEndStream)
	if len(p) == 0 && !end || size > 0 && len(p) < size/8 {
		if err := c.charge(1); err != nil {
			return err
		}
	}
	s := c.streams[f.id]
	if s == nil || s.recvEnd || s.err != nil {
		c.credit(size)
		switch {
		case s != nil && s.err != nil && !s.wasReset():
			return nil // on its way when the stream was reset
		case s == nil && c.stray(f.id) != nil:
			return c.stray(f.id)
		case s == nil && c.wasReset(f.id):
			return nil
		}
		return &streamError{StreamClosed, "DATA behind the end of the stream"}
	}
	if size > s.recvWindow {
		c.credit(size)
		return &streamError{FlowControlError, "more DATA than the stream's window"}
	}
	s.recvWindow -= size
	if c.lim.early {
		c.credit(size)
	} else {
		c.credit(size - len(p))
	}
	s.unacked += size - len(p)
	if c.client && !s.started {
		return malformed("DATA before HEADERS")
	}
	s.received += int64(len(p))
	if s.declared >= 0 && (s.received > s.declared || end && s.received < s.declared) {
		return malformed("content-length is not what was sent (RFC 9113 §8.1.1)")
	}
	if s.closed {
		if !c.lim.early {
			c.credit(len(p))
		}
	} else {
		s.push(p)
	}
	s.recvEnd = s.recvEnd || end
	s.recv.Broadcast()
	return nil
}

// credit gives back n bytes of the connection's window, once they are worth a frame. c.mu is held.
func (c *conn) credit(n int) {
	if c.unacked += n; c.unacked >= c.lim.window/2 {
		c.out = appendWindowUpdate(c.out, 0, c.unacked)
		c.recvWindow += c.unacked
		c.unacked = 0
	}
}

// How much and how long the other side may still send after the last frame, so that the kernel does not reset the
// connection before that was read.
const (
	lingerBytes = 1 << 20
	lingerTime  = time.Second
)

// discardQueued makes the kernel forget what the other side did not take.
func discardQueued(nc net.Conn) {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

// end closes the connection after read has returned, and waits for the exchanges that still run.
func (c *conn) end(err error) {
	c.mu.Lock()
	var ce *connError
	if errors.As(err, &ce) {
		c.out = appendGoAway(c.out, c.lastID, ce.code, ce.reason)
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
	c.releaseBuffers()
	c.mu.Unlock()
	c.keep.remove(c)
}

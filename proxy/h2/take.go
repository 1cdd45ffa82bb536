package h2

import (
	"encoding/binary"
)

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
			return c.wrongPriority(f.id, FrameSizeError, "PRIORITY is not 5 bytes")
		}
		if binary.BigEndian.Uint32(f.payload)&maxWindow == f.id {
			return c.wrongPriority(f.id, ProtocolError, "a stream depends on itself")
		}
	case framePush:
		return &connError{ProtocolError, "PUSH_PROMISE was not allowed"}
	}
	return c.charge(1)
}

// wrongPriority is the error of one stream, or if that is idle, for which there may be no RST_STREAM (RFC 9113 §5.1), of the connection. c.mu is held.
func (c *conn) wrongPriority(id uint32, code Code, reason string) error {
	if c.stray(id) != nil {
		return &connError{code, reason}
	}
	return &streamError{code, reason}
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
	c.block = append(c.block[:0], f.payload...) // the decoder keeps a reference to what it has read
	if f.has(flagEndHeaders) {
		return c.decode(f.id)
	}
	c.blockID = f.id
	return c.paid(f, false)
}

func (c *conn) takeContinuation(f *frame) error {
	if c.blockID == 0 {
		return &connError{ProtocolError, "CONTINUATION without HEADERS (RFC 9113 §6.10)"}
	}
	c.block = append(c.block, f.payload...)
	if large := len(c.block) > c.lim.head.HeadBytes; large || !f.has(flagEndHeaders) {
		if len(c.block) > largestBlocks*c.lim.head.HeadBytes {
			return &connError{EnhanceYourCalm, "header block is much too large"}
		}
		if large && !c.keep.large(c) {
			return &connError{EnhanceYourCalm, "header block is too large, as many others are now"}
		}
		if err := c.paid(f, large); err != nil {
			return err
		}
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	c.blockID = 0
	c.keep.small(c)
	return c.decode(f.id)
}

// largestBlocks is how many times the limit of a head a header block may have: larger than the limit it is decoded, because the compression
// state is the connection's, and refused; beyond this it ends the connection.
const largestBlocks = 4

// largeAtOnce is how many connections may have such a block at once, 16 MiB in all as a rule: many clients that stop within one would each hold
// several times what a request may.
const largeAtOnce = 64

// largePiece is the charge for a piece of a header block that is too large: some hundred refusals, then a few each second.
const largePiece = 10

// paid charges for pieces of header blocks that are smaller than an honest sender makes them, or for nothing.
func (c *conn) paid(f *frame, large bool) error {
	n := int64(1)
	switch {
	case large:
		n = largePiece
	case len(f.payload) >= 1024:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.charge(n)
}

// keptBlock is how large a buffer for header blocks a connection keeps.
const keptBlock = 1 << 10

// decode reads c.block. Whatever is wrong with the fields, it is decoded to the end: the compression state is the
// connection's.
func (c *conn) decode(id uint32) error {
	block := c.block
	if cap(block) > keptBlock {
		c.block = nil
	}
	if _, err := c.dec.Write(block); err != nil {
		return &connError{CompressionError, err.Error()}
	}
	if err := c.dec.Close(); err != nil {
		return &connError{CompressionError, err.Error()}
	}
	return c.side.head(id, c.blockEnd)
}

// smallUpdate is what is too little for an honest WINDOW_UPDATE, but for very short DATA, which pays for it. Larger ones
// are few by themselves: the sum is bounded by the window's largest size and what was sent.
const smallUpdate = 1024

func (c *conn) takeWindowUpdate(f *frame) error {
	if len(f.payload) != 4 {
		return &connError{FrameSizeError, "WINDOW_UPDATE is not 4 bytes"}
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	if n < smallUpdate {
		if err := c.charge(1); err != nil {
			return err
		}
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
	useless := s.err != nil || c.keep.now()-s.born < young
	if s.err == nil {
		s.fail(&ResetError{Code(binary.BigEndian.Uint32(f.payload))})
		c.side.gone(s)
	}
	if useless {
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
		c.out = appendPing(c.queued(), flagAck, [8]byte(f.payload))
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
	c.out = appendFrameHeader(c.queued(), 0, frameSettings, flagAck, 0)
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
		c.out = appendWindowUpdate(c.queued(), 0, c.unacked)
		c.recvWindow += c.unacked
		c.unacked = 0
	}
}

package h2

import (
	"encoding/binary"
	"fmt"
)

// Frame types (RFC 9113 §6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePush         = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// Flags.
const (
	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113 §6.5.2).
const (
	settingTableSize  = 0x1
	settingEnablePush = 0x2
	settingMaxStreams = 0x3
	settingWindow     = 0x4
	settingMaxFrame   = 0x5
	settingMaxHeaders = 0x6
	settingConnect    = 0x8 // RFC 8441 §3
)

// Code is an error code of HTTP/2 (RFC 9113 §7).
type Code uint32

// The error codes.
const (
	NoError            Code = 0x0
	ProtocolError      Code = 0x1
	InternalError      Code = 0x2
	FlowControlError   Code = 0x3
	SettingsTimeout    Code = 0x4
	StreamClosed       Code = 0x5
	FrameSizeError     Code = 0x6
	RefusedStream      Code = 0x7
	Cancel             Code = 0x8
	CompressionError   Code = 0x9
	ConnectError       Code = 0xa
	EnhanceYourCalm    Code = 0xb
	InadequateSecurity Code = 0xc
	HTTP11Required     Code = 0xd
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error 0x%x", uint32(c))
}

// connError ends the connection (RFC 9113 §5.4.1).
type connError struct {
	code   Code
	reason string
}

var errClosedStream = &connError{StreamClosed, "HEADERS on a closed stream (RFC 9113 §5.1)"}

func (e *connError) Error() string { return "h2: " + e.code.String() + ": " + e.reason }

// streamError ends one stream (RFC 9113 §5.4.2).
type streamError struct {
	code   Code
	reason string
}

func (e *streamError) Error() string { return "h2: stream: " + e.code.String() + ": " + e.reason }

// ResetError means that the other side ended the stream.
type ResetError struct{ Code Code }

func (e *ResetError) Error() string { return "h2: the stream was reset with " + e.Code.String() }

const (
	frameHeader   = 9
	maxFrame      = 16 << 10 // what is accepted and sent: SETTINGS_MAX_FRAME_SIZE at its least
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
)

// frame is one frame; its payload lies in the read buffer.
type frame struct {
	kind, flags byte
	id          uint32
	payload     []byte
}

// parseFrame reads one frame from b; n is 0 when it is not there completely.
func parseFrame(b []byte) (f frame, n int, err error) {
	if len(b) < frameHeader {
		return f, 0, nil
	}
	size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if size > maxFrame {
		return f, 0, &connError{FrameSizeError, "frame is larger than SETTINGS_MAX_FRAME_SIZE"}
	}
	if len(b) < frameHeader+size {
		return f, 0, nil
	}
	n = frameHeader + size
	return frame{kind: b[3], flags: b[4], id: binary.BigEndian.Uint32(b[5:]) & maxWindow, payload: b[frameHeader:n]}, n, nil
}

func (f *frame) has(flag byte) bool { return f.flags&flag != 0 }

// unpad takes the padding away (RFC 9113 §6.1).
func (f *frame) unpad() error {
	if !f.has(flagPadded) {
		return nil
	}
	if len(f.payload) == 0 {
		return &connError{FrameSizeError, "padded frame without padding length"}
	}
	n := int(f.payload[0])
	if n >= len(f.payload) {
		return &connError{ProtocolError, "padding is longer than the frame"}
	}
	f.payload = f.payload[1 : len(f.payload)-n]
	return nil
}

func appendFrameHeader(b []byte, size int, kind, flags byte, id uint32) []byte {
	return append(b, byte(size>>16), byte(size>>8), byte(size), kind, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendUint32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func appendReset(b []byte, id uint32, code Code) []byte {
	return appendUint32(appendFrameHeader(b, 4, frameReset, 0, id), uint32(code))
}

func appendWindowUpdate(b []byte, id uint32, n int) []byte {
	return appendUint32(appendFrameHeader(b, 4, frameWindowUpdate, 0, id), uint32(n))
}

func appendGoAway(b []byte, last uint32, code Code, reason string) []byte {
	b = appendFrameHeader(b, 8+len(reason), frameGoAway, 0, 0)
	b = appendUint32(appendUint32(b, last), uint32(code))
	return append(b, reason...)
}

func appendPing(b []byte, flags byte, data [8]byte) []byte {
	return append(appendFrameHeader(b, 8, framePing, flags, 0), data[:]...)
}

// setting is one parameter of a SETTINGS frame.
type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, list ...setting) []byte {
	b = appendFrameHeader(b, 6*len(list), frameSettings, 0, 0)
	for _, s := range list {
		b = appendUint32(binary.BigEndian.AppendUint16(b, s.id), s.value)
	}
	return b
}

// appendHeaders cuts a header block into HEADERS and CONTINUATION frames of at most limit bytes.
func appendHeaders(b []byte, id uint32, block []byte, end bool, limit int) []byte {
	kind, flags := byte(frameHeaders), byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(block), limit)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		b = append(appendFrameHeader(b, n, kind, flags, id), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags = frameContinuation, 0
	}
}

func appendData(b []byte, id uint32, p []byte, end bool) []byte {
	flags := byte(0)
	if end {
		flags = flagEndStream
	}
	return append(appendFrameHeader(b, len(p), frameData, flags, id), p...)
}

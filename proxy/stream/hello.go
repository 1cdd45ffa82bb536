package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of what is read to find a ClientHello (nginx's preread_buffer_size is 16 KiB too).
const (
	maxHello     = 16 << 10 // bytes, headers of records included
	maxRecords   = 64       // a client that sends byte by byte is not worth waiting for
	recordHeader = 5
)

// hello is what a ClientHello says.
type hello struct {
	sni string // lower-case; "": the client names no server
}

var errNotTLS = errors.New("the connection does not begin with a TLS ClientHello")

func badHello(format string, args ...any) error {
	return fmt.Errorf("TLS ClientHello: "+format, args...)
}

// readHello reads the ClientHello with which a connection begins, and returns all bytes it has read. The message may be spread
// over records and segments (RFC 8446 §5.1). r bounds the time, by a read deadline; first is what was read already.
func readHello(r io.Reader, first []byte) (hello, []byte, error) {
	buf := make([]byte, len(first), max(2048, len(first)))
	copy(buf, first)
	for {
		message, more, err := joinRecords(buf)
		if err != nil {
			return hello{}, buf, err
		}
		if more == 0 {
			h, err := parseHello(message)
			return h, buf, err
		}
		if len(buf)+more > maxHello {
			return hello{}, buf, badHello("longer than %d bytes", maxHello)
		}
		if cap(buf)-len(buf) < more {
			buf = append(make([]byte, 0, maxHello), buf...)
		}
		// All that is known to be missing before the next look: a client that sends byte by byte costs no more looks than another.
		n, err := io.ReadAtLeast(r, buf[len(buf):cap(buf)], more)
		buf = buf[:len(buf)+n]
		if n < more {
			if err == io.EOF && len(buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return hello{}, buf, err
		}
	}
}

// joinRecords collects the body of the first handshake message from the records in b. more is how many bytes are missing at
// least; 0: none.
func joinRecords(b []byte) (message []byte, more int, err error) {
	var joined []byte
	for records := 0; ; records++ {
		if len(b) > 0 && b[0] != 22 { // handshake
			if records == 0 {
				return nil, 0, errNotTLS
			}
			return nil, 0, badHello("record type %d within it", b[0])
		}
		if len(b) > 1 && b[1] != 3 {
			return nil, 0, errNotTLS
		}
		if records == maxRecords {
			return nil, 0, badHello("more than %d records", maxRecords)
		}
		if len(b) < recordHeader {
			return nil, recordHeader - len(b), nil
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		switch {
		case n == 0:
			return nil, 0, badHello("empty record")
		case n > maxHello:
			return nil, 0, badHello("record of %d bytes", n)
		}
		missing := recordHeader + n - len(b)
		b = b[recordHeader:]
		fragment := b[:min(n, len(b))]
		if records == 0 {
			joined = fragment
		} else {
			joined = append(joined[:len(joined):len(joined)], fragment...)
		}
		if len(joined) > 0 && joined[0] != 1 {
			return nil, 0, badHello("handshake message %d instead", joined[0])
		}
		if len(joined) >= 4 {
			size := int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3])
			if size > maxHello {
				return nil, 0, badHello("message of %d bytes", size)
			}
			if len(joined) >= 4+size && missing <= 0 {
				if len(joined) > 4+size {
					return nil, 0, badHello("followed by another message")
				}
				return joined[4:], 0, nil
			}
		}
		if missing > 0 {
			return nil, missing, nil
		}
		b = b[n:]
	}
}

// cursor reads TLS's presentation language (RFC 8446 §3); after a failure everything is empty.
type cursor struct {
	b    []byte
	fail bool
}

func (c *cursor) bytes(n int) []byte {
	if c.fail || n > len(c.b) {
		c.fail, c.b = true, nil
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) number(size int) (n int) {
	for _, x := range c.bytes(size) {
		n = n<<8 | int(x)
	}
	return n
}

// vector is a list whose length stands before it in size bytes.
func (c *cursor) vector(size int) cursor { return cursor{b: c.bytes(c.number(size)), fail: c.fail} }

// parseHello reads the body of a ClientHello (RFC 8446 §4.1.2).
func parseHello(b []byte) (h hello, err error) {
	c := &cursor{b: b}
	c.bytes(2 + 32) // version, random
	if session := c.vector(1); len(session.b) > 32 {
		return h, badHello("session id of %d bytes", len(session.b))
	}
	if suites := c.vector(2); len(suites.b) == 0 || len(suites.b)%2 != 0 {
		return h, badHello("malformed cipher suites")
	}
	if methods := c.vector(1); len(methods.b) == 0 {
		return h, badHello("no compression methods")
	}
	if c.fail {
		return h, badHello("cut short")
	}
	if len(c.b) == 0 {
		return h, nil // TLS 1.2 without extensions
	}
	list := c.vector(2)
	if c.fail || len(c.b) != 0 {
		return h, badHello("malformed extensions")
	}
	var seen []int
	for len(list.b) > 0 {
		kind := list.number(2)
		body := list.vector(2)
		if list.fail {
			return h, badHello("malformed extensions")
		}
		for _, k := range seen {
			if k == kind {
				return h, badHello("extension %d twice", kind)
			}
		}
		if seen = append(seen, kind); len(seen) > maxExtensions {
			return h, badHello("more than %d extensions", maxExtensions)
		}
		if kind == 0 {
			if h.sni, err = parseServerName(body); err != nil {
				return h, err
			}
		}
	}
	return h, nil
}

// maxExtensions bounds the work of finding a double one; browsers send about twenty.
const maxExtensions = 128

// parseServerName reads the extension server_name (RFC 6066 §3): a list with one name, which must be a DNS name in ASCII without
// trailing dot.
func parseServerName(c cursor) (string, error) {
	list := c.vector(2)
	kind := list.number(1)
	name := list.vector(2)
	if list.fail || len(c.b) != 0 || len(list.b) != 0 || kind != 0 {
		return "", badHello("malformed server name")
	}
	s := string(name.b)
	if s == "" || len(s) > 255 || strings.HasSuffix(s, ".") {
		return "", badHello("the server name is not a DNS name")
	}
	for i := range len(s) {
		switch x := s[i]; {
		case 'a' <= x && x <= 'z', 'A' <= x && x <= 'Z', '0' <= x && x <= '9', x == '-', x == '.', x == '_':
		case x == ':': // an IPv6 address, which some clients send although they should not
		default:
			return "", badHello("the server name is not a DNS name")
		}
	}
	return strings.ToLower(s), nil
}

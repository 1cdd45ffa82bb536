// Package proxyproto is the PROXY protocol, versions 1 and 2, as HAProxy specifies it: the line or block with which a load
// balancer says whose connection it passes on. It reads and writes headers.
//
// It trusts nobody: whether the address of a header is to be believed is the caller's to decide. Like nginx, and so
// Kong, a listener that expects a header serves no connection without one, and the address in it becomes the client's only if the
// peer that sent it is a trusted one.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
)

// Header is what a proxy says of a connection.
type Header struct {
	// Source and Destination are the ends of the client's connection. Both are invalid when the header names none: LOCAL, UNKNOWN, UNSPEC and
	// Unix sockets. The connection is the peer's own then.
	Source, Destination netip.AddrPort
	Datagram            bool // the client speaks UDP; version 2 only
}

// Bounds of a header.
const (
	maxV1 = 107  // §2.1: the longest line, with its CRLF
	MaxV2 = 4096 // of the fixed part, addresses and TLVs together, as in nginx
	fixed = 16
)

// signature begins a header of version 2.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// ErrIncomplete of Parse: the bytes may be the beginning of a header.
var ErrIncomplete = errors.New("PROXY protocol: the header is incomplete")

// ErrMissing is how a connection fails that begins with something else.
var ErrMissing = errors.New("PROXY protocol: the connection does not begin with a header")

func malformed(format string, args ...any) error {
	return fmt.Errorf("PROXY protocol: "+format, args...)
}

// Parse reads the header at the beginning of b and says how many bytes it takes. ErrIncomplete asks for more bytes; every other error is
// final. It never asks for more than MaxV2 bytes.
func Parse(b []byte) (Header, int, error) {
	switch {
	case len(b) == 0:
		return Header{}, 0, ErrIncomplete
	case b[0] == 'P':
		return parseV1(b)
	case b[0] == signature[0]:
		return parseV2(b)
	}
	return Header{}, 0, ErrMissing
}

// parseV1 reads "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n" (§2.1).
func parseV1(b []byte) (Header, int, error) {
	const start = "PROXY "
	if n := min(len(b), len(start)); string(b[:n]) != start[:n] {
		return Header{}, 0, ErrMissing
	}
	end := bytes.IndexByte(b[:min(len(b), maxV1)], '\n')
	if end < 0 {
		if len(b) >= maxV1 {
			return Header{}, 0, malformed("the line is longer than %d bytes", maxV1)
		}
		return Header{}, 0, ErrIncomplete
	}
	line, ok := bytes.CutSuffix(b[:end], []byte("\r"))
	if !ok {
		return Header{}, 0, malformed("the line does not end with CR LF")
	}
	words := bytes.Split(line[len(start):], []byte(" "))
	family := string(words[0])
	if family == "UNKNOWN" { // §2.1: whatever follows is ignored
		return Header{}, end + 1, nil
	}
	if family != "TCP4" && family != "TCP6" {
		return Header{}, 0, malformed("family %q is not TCP4, TCP6 or UNKNOWN", family)
	}
	if len(words) != 5 {
		return Header{}, 0, malformed("%s needs two addresses and two ports, each after one space", family)
	}
	src, err1 := addrPort(words[1], words[3], family == "TCP4")
	dst, err2 := addrPort(words[2], words[4], family == "TCP4")
	if err := errors.Join(err1, err2); err != nil {
		return Header{}, 0, err
	}
	return Header{Source: src, Destination: dst}, end + 1, nil
}

func addrPort(addr, port []byte, v4 bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(string(addr))
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.AddrPort{}, malformed("%q is not an address of the family", addr)
	}
	p, err := strconv.ParseUint(string(port), 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' || port[0] == '+' {
		return netip.AddrPort{}, malformed("%q is not a port", port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// The fields of version 2 (§2.2).
const (
	version2   = 0x20
	cmdLocal   = 0
	cmdProxy   = 1
	familyV4   = 1
	familyV6   = 2
	familyUnix = 3
	stream     = 1
	datagram   = 2
)

func parseV2(b []byte) (Header, int, error) {
	if n := min(len(b), len(signature)); string(b[:n]) != signature[:n] {
		return Header{}, 0, ErrMissing
	}
	if len(b) < fixed {
		return Header{}, 0, ErrIncomplete
	}
	total := fixed + int(binary.BigEndian.Uint16(b[14:]))
	command, family, transport := b[12]&0x0f, b[13]>>4, b[13]&0x0f
	switch {
	case b[12]&0xf0 != version2:
		return Header{}, 0, malformed("version %d is not 2", b[12]>>4)
	case command > cmdProxy:
		return Header{}, 0, malformed("command %d is neither LOCAL nor PROXY", command)
	case family > familyUnix || transport > datagram:
		return Header{}, 0, malformed("family and transport %#x are not defined", b[13])
	case total > MaxV2:
		return Header{}, 0, malformed("the header has %d bytes, more than %d", total, MaxV2)
	case len(b) < total:
		return Header{}, 0, ErrIncomplete
	}
	if command == cmdLocal || transport == 0 || family != familyV4 && family != familyV6 {
		return Header{}, total, nil
	}
	size := 4
	if family == familyV6 {
		size = 16
	}
	block := b[fixed:total]
	if len(block) < 2*size+4 {
		return Header{}, 0, malformed("%d bytes are too short for the addresses", len(block))
	}
	at := func(i int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(block[i*size : (i+1)*size])
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(block[2*size+2*i:]))
	}
	return Header{Source: at(0), Destination: at(1), Datagram: transport == datagram}, total, nil
}

// Read reads the header with which a connection begins, and returns what it has read behind it. r bounds the time, for example by a read
// deadline; first is what was read already.
func Read(r io.Reader, first []byte) (Header, []byte, error) {
	b := append(make([]byte, 0, max(256, len(first))), first...)
	for {
		h, n, err := Parse(b)
		if err == nil {
			return h, b[n:], nil
		}
		if !errors.Is(err, ErrIncomplete) {
			return Header{}, nil, err
		}
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 2*cap(b)), b...) // at most MaxV2, or Parse had decided
		}
		n, err = r.Read(b[len(b):cap(b)])
		if b = b[:len(b)+n]; n > 0 {
			continue
		}
		switch {
		case err == io.EOF && len(b) == 0:
			return Header{}, nil, io.EOF
		case err == io.EOF:
			return Header{}, nil, io.ErrUnexpectedEOF
		case err != nil:
			return Header{}, nil, err
		}
	}
}

// ends are the addresses as one family; an IPv4 address among IPv6 ones is written as a mapped one.
func (h Header) ends() (src, dst netip.Addr, ok bool) {
	src, dst = h.Source.Addr().Unmap(), h.Destination.Addr().Unmap()
	if !src.IsValid() || !dst.IsValid() {
		return src, dst, false
	}
	if src.Is4() != dst.Is4() {
		src, dst = netip.AddrFrom16(src.As16()), netip.AddrFrom16(dst.As16())
	}
	return src.WithZone(""), dst.WithZone(""), true
}

// AppendV1 appends the header of version 1, which is UNKNOWN without addresses and for UDP.
func (h Header) AppendV1(b []byte) []byte {
	src, dst, ok := h.ends()
	if !ok || h.Datagram {
		return append(b, "PROXY UNKNOWN\r\n"...)
	}
	family := "PROXY TCP6 "
	if src.Is4() {
		family = "PROXY TCP4 "
	}
	b = append(b, family...)
	b = append(src.AppendTo(b), ' ')
	b = append(dst.AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(h.Source.Port()), 10), ' ')
	b = strconv.AppendUint(b, uint64(h.Destination.Port()), 10)
	return append(b, "\r\n"...)
}

// AppendV2 appends the header of version 2, which is LOCAL without addresses.
func (h Header) AppendV2(b []byte) []byte {
	b = append(b, signature...)
	src, dst, ok := h.ends()
	if !ok {
		return append(b, version2|cmdLocal, 0, 0, 0)
	}
	kind := byte(stream)
	if h.Datagram {
		kind = datagram
	}
	if src.Is4() {
		b = append(b, version2|cmdProxy, familyV4<<4|kind, 0, 12)
	} else {
		b = append(b, version2|cmdProxy, familyV6<<4|kind, 0, 36)
	}
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, h.Source.Port())
	return binary.BigEndian.AppendUint16(b, h.Destination.Port())
}

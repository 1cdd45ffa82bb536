package proxyproto_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"concord/proxy/proxyproto"
)

var equal = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func header(src, dst string, datagram bool) proxyproto.Header {
	return proxyproto.Header{Source: netip.MustParseAddrPort(src), Destination: netip.MustParseAddrPort(dst), Datagram: datagram}
}

const sig = "\r\n\r\n\x00\r\nQUIT\n"

func TestParse(t *testing.T) {
	v4 := header("192.0.2.1:56324", "192.0.2.2:443", false)
	v6 := header("[2001:db8::1]:1", "[::1]:65535", false)
	tcp4 := sig + "\x21\x11\x00\x0c" + "\xc0\x00\x02\x01\xc0\x00\x02\x02\xdc\x04\x01\xbb"
	tlv := "\x04\x00\x03abc"
	for _, c := range []struct {
		name, in string
		want     proxyproto.Header
		n        int
		err      string // a part of it
	}{
		{"v1 TCP4", "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET /", v4, 42, ""},
		{"v1 TCP6", "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", v6, 36, ""},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", proxyproto.Header{}, 15, ""},
		{"v1 UNKNOWN with more", "PROXY UNKNOWN ffff::1 what ever\r\nx", proxyproto.Header{}, 33, ""},
		{"v1 in pieces", "PROXY TCP4 192.0.2.1 192", proxyproto.Header{}, 0, "incomplete"},
		{"v1 first byte", "P", proxyproto.Header{}, 0, "incomplete"},
		{"v1 not", "POST / HTTP/1.1\r\n", proxyproto.Header{}, 0, "does not begin"},
		{"v1 lower case", "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n", proxyproto.Header{}, 0, "family"},
		{"v1 bare LF", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", proxyproto.Header{}, 0, "CR LF"},
		{"v1 two spaces", "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", proxyproto.Header{}, 0, "one space"},
		{"v1 space at the end", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", proxyproto.Header{}, 0, "one space"},
		{"v1 no ports", "PROXY TCP4 192.0.2.1 192.0.2.2\r\n", proxyproto.Header{}, 0, "two ports"},
		{"v1 family and address differ", "PROXY TCP4 ::1 ::1 1 2\r\n", proxyproto.Header{}, 0, "not an address of the family"},
		{"v1 v4 as TCP6", "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", proxyproto.Header{}, 0, "not an address of the family"},
		{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", proxyproto.Header{}, 0, "not an address of the family"},
		{"v1 octet with zero", "PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n", proxyproto.Header{}, 0, "not an address of the family"},
		{"v1 port with zero", "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", proxyproto.Header{}, 0, "not a port"},
		{"v1 port with sign", "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", proxyproto.Header{}, 0, "not a port"},
		{"v1 empty port", "PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n", proxyproto.Header{}, 0, "not a port"},
		{"v1 port too big", "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", proxyproto.Header{}, 0, "not a port"},
		{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n", proxyproto.Header{}, 0, "longer than 107"},
		{"v1 long and without end", "PROXY TCP4 " + strings.Repeat("1", 96), proxyproto.Header{}, 0, "longer than 107"},

		{"v2 TCP4", tcp4 + "GET", v4, 28, ""},
		{"v2 TCP4 with TLV", sig + "\x21\x11\x00\x12" + tcp4[16:] + tlv + "x", v4, 34, ""},
		{"v2 UDP4", sig + "\x21\x12\x00\x0c" + tcp4[16:], header("192.0.2.1:56324", "192.0.2.2:443", true), 28, ""},
		{"v2 TCP6", sig + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + strings.Repeat("\x00", 15) + "\x01\x00\x01\xff\xff", v6, 52, ""},
		{"v2 LOCAL", sig + "\x20\x00\x00\x00rest", proxyproto.Header{}, 16, ""},
		{"v2 LOCAL with addresses", sig + "\x20\x11\x00\x0c" + tcp4[16:], proxyproto.Header{}, 28, ""},
		{"v2 UNSPEC with bytes", sig + "\x21\x00\x00\x03abc", proxyproto.Header{}, 19, ""},
		{"v2 Unix", sig + "\x21\x31\x00\x03abc", proxyproto.Header{}, 19, ""},
		{"v2 signature cut", sig[:5], proxyproto.Header{}, 0, "incomplete"},
		{"v2 addresses cut", tcp4[:27], proxyproto.Header{}, 0, "incomplete"},
		{"v2 short addresses", sig + "\x21\x11\x00\x0b" + tcp4[16:], proxyproto.Header{}, 0, "too short"},
		{"v2 version", sig + "\x11\x11\x00\x0c" + tcp4[16:], proxyproto.Header{}, 0, "version 1"},
		{"v2 command", sig + "\x22\x11\x00\x0c" + tcp4[16:], proxyproto.Header{}, 0, "command 2"},
		{"v2 family", sig + "\x21\x41\x00\x0c" + tcp4[16:], proxyproto.Header{}, 0, "not defined"},
		{"v2 transport", sig + "\x21\x13\x00\x0c" + tcp4[16:], proxyproto.Header{}, 0, "not defined"},
		{"v2 too long", sig + "\x21\x11\xff\xff", proxyproto.Header{}, 0, "more than 4096"},
		{"v2 not", "\r\n\r\nGET", proxyproto.Header{}, 0, "does not begin"},
		{"nothing", "", proxyproto.Header{}, 0, "incomplete"},
		{"HTTP", "GET / HTTP/1.1\r\n", proxyproto.Header{}, 0, "does not begin"},
		{"TLS", "\x16\x03\x01", proxyproto.Header{}, 0, "does not begin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, n, err := proxyproto.Parse([]byte(c.in))
			if d := cmp.Diff(c.want, got, equal); d != "" || n != c.n {
				t.Errorf("%d bytes of %d, %v\n%s", n, c.n, err, d)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			for i := range c.n { // a header that comes in pieces is waited for, and never taken for another one
				if _, _, err := proxyproto.Parse([]byte(c.in[:i])); !errors.Is(err, proxyproto.ErrIncomplete) {
					t.Fatalf("the first %d bytes: %v", i, err)
				}
			}
		})
	}
}

func TestRead(t *testing.T) {
	h := header("192.0.2.1:56324", "192.0.2.2:443", false)
	big := proxyproto.Header{}.AppendV2(nil)
	big[14], big[15] = 0x0f, 0xf0 // the largest
	big = append(big, make([]byte, 0x0ff0)...)
	for name, c := range map[string]struct {
		in   []byte
		want proxyproto.Header
	}{"v1": {h.AppendV1(nil), h}, "v2": {h.AppendV2(nil), h}, "largest": {big, proxyproto.Header{}}} {
		in := append(c.in, "GET / HTTP/1.1"...)
		for way, r := range map[string]io.Reader{"at once": bytes.NewReader(in), "by bytes": iotest.OneByteReader(bytes.NewReader(in)), "with its end": iotest.DataErrReader(bytes.NewReader(in))} {
			got, rest, err := proxyproto.Read(r, nil)
			left, _ := io.ReadAll(r)
			if d := cmp.Diff(c.want, got, equal); d != "" || err != nil || string(rest)+string(left) != "GET / HTTP/1.1" {
				t.Errorf("%s %s: %v, rest %q\n%s", name, way, err, string(rest)+string(left), d)
			}
		}
		if got, rest, err := proxyproto.Read(bytes.NewReader(in[3:]), in[:3]); err != nil || got != c.want || !bytes.HasPrefix([]byte("GET / HTTP/1.1"), rest) {
			t.Errorf("%s with a beginning: %v %v %q", name, got, err, rest)
		}
		if _, _, err := proxyproto.Read(bytes.NewReader(in[:10]), nil); err != io.ErrUnexpectedEOF {
			t.Errorf("%s, cut: %v", name, err)
		}
	}
	if _, _, err := proxyproto.Read(bytes.NewReader(nil), nil); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	if _, _, err := proxyproto.Read(strings.NewReader("GET / HTTP/1.1\r\n"), nil); !errors.Is(err, proxyproto.ErrMissing) {
		t.Errorf("HTTP: %v", err)
	}
	failed := errors.New("deadline")
	if _, _, err := proxyproto.Read(iotest.ErrReader(failed), []byte("PROXY ")); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
}

func TestAppend(t *testing.T) {
	for _, c := range []struct {
		name   string
		h      proxyproto.Header
		v1     string
		reread proxyproto.Header // by version 2
	}{
		{"IPv4", header("192.0.2.1:1", "192.0.2.2:2", false), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", header("192.0.2.1:1", "192.0.2.2:2", false)},
		{"IPv6", header("[2001:db8::1]:1", "[::1]:2", false), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n", header("[2001:db8::1]:1", "[::1]:2", false)},
		{"mapped", header("[::ffff:192.0.2.1]:1", "192.0.2.2:2", false), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", header("192.0.2.1:1", "192.0.2.2:2", false)},
		{"mixed", header("192.0.2.1:1", "[::1]:2", false), "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", header("192.0.2.1:1", "[::1]:2", false)},
		{"zone", header("[fe80::1%eth0]:1", "[::1]:2", false), "PROXY TCP6 fe80::1 ::1 1 2\r\n", header("[fe80::1]:1", "[::1]:2", false)},
		{"UDP", header("192.0.2.1:1", "192.0.2.2:2", true), "PROXY UNKNOWN\r\n", header("192.0.2.1:1", "192.0.2.2:2", true)},
		{"none", proxyproto.Header{}, "PROXY UNKNOWN\r\n", proxyproto.Header{}},
	} {
		if got := string(c.h.AppendV1(nil)); got != c.v1 {
			t.Errorf("%s: %q, want %q", c.name, got, c.v1)
		}
		if _, n, err := proxyproto.Parse([]byte(c.v1)); err != nil || n != len(c.v1) {
			t.Errorf("%s, version 1: %v", c.name, err)
		}
		b := c.h.AppendV2(nil)
		if got, n, err := proxyproto.Parse(b); err != nil || n != len(b) || got != c.reread {
			t.Errorf("%s: %v, %d of %d bytes, %v", c.name, got, n, len(b), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	h := header("192.0.2.1:56324", "[2001:db8::1]:443", false)
	f.Add(h.AppendV1(nil))
	f.Add(h.AppendV2(nil))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(sig + "\x21\x11\x00\x12"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := proxyproto.Parse(b)
		if err != nil {
			if n != 0 || h != (proxyproto.Header{}) || errors.Is(err, proxyproto.ErrIncomplete) && len(b) >= proxyproto.MaxV2 {
				t.Fatalf("%v %d %v", h, n, err)
			}
			return
		}
		if n < 1 || n > len(b) || n > proxyproto.MaxV2 || h.Source.IsValid() != h.Destination.IsValid() {
			t.Fatalf("%v takes %d of %d bytes", h, n, len(b))
		}
		for _, again := range [][]byte{h.AppendV1(nil), h.AppendV2(nil)} {
			got, m, err := proxyproto.Parse(again)
			if err != nil || m != len(again) || got != h && !h.Datagram {
				t.Fatalf("%v is written as %q and read as %v, %v", h, again, got, err)
			}
		}
	})
}

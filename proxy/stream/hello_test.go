package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	var out bytes.Buffer
	c.InsecureSkipVerify = true
	_ = tls.Client(&oneWay{w: &out}, c).Handshake()
	return out.Bytes()
}

// oneWay is a connection whose other side sends r and takes w.
type oneWay struct {
	r io.Reader
	w io.Writer
}

func (h *oneWay) Read(p []byte) (int, error) {
	if h.r == nil {
		return 0, io.EOF
	}
	return h.r.Read(p)
}

func (h *oneWay) Write(p []byte) (int, error) {
	if h.w == nil {
		return len(p), nil
	}
	return h.w.Write(p)
}
func (*oneWay) Close() error                     { return nil }
func (*oneWay) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*oneWay) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*oneWay) SetDeadline(time.Time) error      { return nil }
func (*oneWay) SetReadDeadline(time.Time) error  { return nil }
func (*oneWay) SetWriteDeadline(time.Time) error { return nil }

var errSeen = errors.New("seen")

// oracle is the server name that crypto/tls finds; ok is false when it finds no ClientHello.
func oracle(b []byte) (sni string, ok bool) {
	s := tls.Server(&oneWay{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		sni, ok = i.ServerName, true
		return nil, errSeen
	}})
	_ = s.HandshakeContext(context.Background())
	return sni, ok
}

// refragment spreads a ClientHello of one record over records of n bytes.
func refragment(b []byte, n int) []byte {
	var out []byte
	body := b[recordHeader:]
	for len(body) > 0 {
		k := min(n, len(body))
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(k))
		out = append(out, body[:k]...)
		body = body[k:]
	}
	return out
}

func TestReadHello(t *testing.T) {
	modern := clientHello(t, &tls.Config{ServerName: "A.Example.com", NextProtos: []string{"h2"}})
	old := clientHello(t, &tls.Config{ServerName: "b.example.com", MaxVersion: tls.VersionTLS12})
	none := clientHello(t, &tls.Config{})
	change := func(b []byte, from, to string) []byte {
		if !bytes.Contains(b, []byte(from)) {
			t.Fatalf("no %q in the ClientHello", from)
		}
		return bytes.Replace(b, []byte(from), []byte(to), 1)
	}
	for _, c := range []struct {
		name string
		in   []byte
		sni  string
		err  string
	}{
		{"TLS 1.3", modern, "a.example.com", ""},
		{"TLS 1.2", old, "b.example.com", ""},
		{"no name", none, "", ""},
		{"bytes behind it", append(bytes.Clone(modern), "early data"...), "a.example.com", ""},
		{"records of 100 bytes", refragment(modern, 100), "a.example.com", ""},
		{"records of a few bytes", refragment(old, len(old)/maxRecords+1), "b.example.com", ""},
		{"too many records", refragment(modern, len(modern)/maxRecords/2), "", "more than 64 records"},
		{"nothing", nil, "", "EOF"},
		{"cut short", modern[:len(modern)-1], "", "unexpected EOF"},
		{"half a record header", modern[:3], "", "unexpected EOF"},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), "", "does not begin with a TLS ClientHello"},
		{"an alert", []byte{21, 3, 1, 0, 2, 2, 40}, "", "does not begin with a TLS ClientHello"},
		{"SSL 2", []byte{0x80, 0x2e, 1, 0, 2}, "", "does not begin with a TLS ClientHello"},
		{"an empty record", []byte{22, 3, 1, 0, 0}, "", "empty record"},
		{"a record of 64 KB", []byte{22, 3, 1, 255, 255}, "", "record of 65535 bytes"},
		{"a message of 16 MB", []byte{22, 3, 1, 0, 4, 1, 255, 255, 255}, "", "message of 16777215 bytes"},
		{"a ServerHello", []byte{22, 3, 1, 0, 1, 2}, "", "handshake message 2"},
		{"a NUL in the name", change(modern, "A.Example", "a\x00Example"), "", "not a DNS name"},
		{"a trailing dot", change(modern, "ple.com", "ple.co."), "", "not a DNS name"},
		{"a slash", change(modern, "A.Example", "a/../../b"), "", "not a DNS name"},
		{"UTF-8", change(modern, "A.Example", "ä.Exampl"), "", "not a DNS name"},
	} {
		for how, r := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			t.Run(c.name+", "+how, func(t *testing.T) {
				h, read, err := readHello(r(bytes.NewReader(c.in)), nil)
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				if h.sni != c.sni {
					t.Errorf("server name %q, want %q", h.sni, c.sni)
				}
				if !bytes.HasPrefix(c.in, read) {
					t.Error("what was read is not what was sent")
				}
			})
		}
	}
}

// A client that goes on and on is not listened to beyond the bound.
func TestReadHelloBound(t *testing.T) {
	endless := []byte{22, 3, 1, 64, 0, 1, 0, 63, 0}
	r := io.MultiReader(bytes.NewReader(endless), zeros{})
	_, read, err := readHello(r, nil)
	if err == nil || len(read) > maxHello {
		t.Errorf("read %d bytes, %v", len(read), err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// What this parser takes, crypto/tls must read alike: otherwise a client could be routed by one name and served by another. And what
// crypto/tls takes, this parser takes too, but for what it refuses on purpose.
func FuzzHello(f *testing.F) {
	modern := clientHello(f, &tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2", "http/1.1"}})
	f.Add(modern)
	f.Add(refragment(modern, 100))
	f.Add(refragment(modern, 7))
	f.Add(clientHello(f, &tls.Config{ServerName: "b.example.com", MaxVersion: tls.VersionTLS12}))
	f.Add(clientHello(f, &tls.Config{}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, read, err := readHello(bytes.NewReader(b), nil)
		if !bytes.HasPrefix(b, read) || len(read) > maxHello {
			t.Fatalf("read %d bytes that are not the beginning", len(read))
		}
		again, _, againErr := readHello(iotest.OneByteReader(bytes.NewReader(b)), nil)
		if again != h || (againErr == nil) != (err == nil) {
			t.Fatalf("byte by byte: %+v %v, at once: %+v %v", again, againErr, h, err)
		}
		sni, ok := oracle(b)
		switch {
		case ok && err == nil && !strings.EqualFold(sni, h.sni):
			t.Fatalf("server name %q, crypto/tls reads %q", h.sni, sni)
		case ok && err != nil && !onPurpose(err):
			t.Fatalf("refused, crypto/tls accepts it: %v", err)
		}
	})
}

// onPurpose are refusals beyond those of crypto/tls.
func onPurpose(err error) bool {
	for _, s := range []string{"not a DNS name", "records", "longer than", "record of", "message of", "extensions", "malformed server name", "followed by", "begin with", "empty record", "session id"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

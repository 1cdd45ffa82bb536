package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"concord/proxy/h1"
)

// TLS content types (RFC 8446 §5.1).
const (
	tlsAlert       = 21
	tlsHandshake   = 22
	tlsApplication = 23
)

// sealer makes TLS 1.3 records, so that a test decides what a record holds and what arrives together.
type sealer struct {
	suite  uint16
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    byte
}

// expand is HKDF-Expand-Label (RFC 8446 §7.1).
func expand(secret []byte, label string, n int) []byte {
	info := append([]byte{0, byte(n), byte(len(label) + 6)}, "tls13 "+label+"\x00"...)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return out
}

// newSealer takes the suite that was negotiated: machines without instructions for AES prefer ChaCha20.
func newSealer(suite uint16, secret []byte) *sealer {
	var aead cipher.AEAD
	var err error
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		var block cipher.Block
		if block, err = aes.NewCipher(expand(secret, "key", 16)); err == nil {
			aead, err = cipher.NewGCM(block)
		}
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		aead, err = chacha20poly1305.New(expand(secret, "key", 32))
	default:
		err = errors.New("no sealer for " + tls.CipherSuiteName(suite))
	}
	if err != nil {
		panic(err)
	}
	return &sealer{suite, secret, aead, expand(secret, "iv", 12), 0}
}

func (s *sealer) record(kind byte, text string) string {
	nonce := bytes.Clone(s.iv)
	nonce[11] ^= s.seq
	s.seq++
	n := len(text) + 1 + s.aead.Overhead()
	head := []byte{tlsApplication, 3, 3, byte(n >> 8), byte(n)}
	return string(s.aead.Seal(head, nonce, append([]byte(text), kind), head))
}

func (s *sealer) data(text string) string { return s.record(tlsApplication, text) }

// update makes a KeyUpdate that may ask for another one, in as many records (RFC 8446 §4.6.3).
func (s *sealer) update(ask byte, records int) (out string) {
	message := string([]byte{24, 0, 0, 1, ask})
	for i := range records {
		out += s.record(tlsHandshake, message[i*5/records:(i+1)*5/records])
	}
	*s = *newSealer(s.suite, expand(s.secret, "traffic upd", 32))
	return out
}

func (s *sealer) closeNotify() string { return s.record(tlsAlert, "\x01\x00") }

// TestTLSRecords: requests are answered however their bytes are put into records, and the records into segments, and an end is noticed.
func TestTLSRecords(t *testing.T) {
	t.Parallel()
	post := func(body string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	long := strings.Repeat("b", 40000)
	inRecords := func(s *sealer, text string, size int) (out string) {
		for len(text) > 0 {
			n := min(size, len(text))
			out += s.data(text[:n])
			text = text[n:]
		}
		return out
	}
	fin := "" // in place of bytes: the end of the stream
	tests := []struct {
		name string
		send func(s *sealer) []string // what is written at once, one after the other
		want []string                 // bodies of the answers
		ends bool
	}{
		{"two requests in one segment", func(s *sealer) []string { return []string{s.data(get("/a")) + s.data(get("/b"))} }, []string{"/a", "/b"}, false},
		{"two requests in one record", func(s *sealer) []string { return []string{s.data(get("/a") + get("/b"))} }, []string{"/a", "/b"}, false},
		{"many requests", func(s *sealer) []string {
			var out string
			for i := range 100 {
				out += s.data(get(fmt.Sprint("/", i)))
			}
			return []string{out}
		}, func() (out []string) {
			for i := range 100 {
				out = append(out, fmt.Sprint("/", i))
			}
			return out
		}(), false},
		{"head of a record alone", func(s *sealer) []string { r := s.data(get("/a")); return []string{r[:5], r[5:]} }, []string{"/a"}, false},
		{"record byte by byte", func(s *sealer) []string { return strings.Split(s.data(get("/a")), "") }, []string{"/a"}, false},
		{"one record and a half", func(s *sealer) []string {
			a, b := s.data(get("/a")), s.data(get("/b"))
			return []string{a + b[:9], b[9:]}
		}, []string{"/a", "/b"}, false},
		{"head in two records", func(s *sealer) []string {
			return []string{s.data("GET /a HTTP/1.1\r\n") + s.data("Host: a\r\n\r\n")}
		}, []string{"/a"}, false},
		{"head in two records and segments", func(s *sealer) []string {
			return []string{s.data("GET /a HTTP/1.1\r\n"), s.data("Host: a\r\n\r\n")}
		}, []string{"/a"}, false},
		{"empty records before", func(s *sealer) []string { return []string{s.data("") + s.data(""), s.data("") + s.data(get("/a"))} }, []string{"/a"}, false},
		{"empty record behind", func(s *sealer) []string { return []string{s.data(get("/a")) + s.data(""), s.data(get("/b"))} }, []string{"/a", "/b"}, false},
		{"key update", func(s *sealer) []string { return []string{s.update(0, 1), s.data(get("/a"))} }, []string{"/a"}, false},
		{"key update before a request", func(s *sealer) []string { return []string{s.update(0, 1) + s.data(get("/a"))} }, []string{"/a"}, false},
		{"key update behind a request", func(s *sealer) []string {
			return []string{s.data(get("/a")) + s.update(1, 1), s.data(get("/b"))}
		}, []string{"/a", "/b"}, false},
		{"key update in parts that asks for one", func(s *sealer) []string { return []string{s.update(1, 2), s.data(get("/a"))} }, []string{"/a"}, false},
		{"key update between two requests", func(s *sealer) []string {
			return []string{s.data(get("/a")) + s.update(1, 3) + s.data(get("/b"))}
		}, []string{"/a", "/b"}, false},
		{"body in its own record", func(s *sealer) []string {
			head, body, _ := strings.Cut(post("body"), "\r\n\r\n")
			return []string{s.data(head+"\r\n\r\n") + s.data(body), s.data(get("/a"))}
		}, []string{"body", "/a"}, false},
		{"long body", func(s *sealer) []string { return []string{inRecords(s, post(long)+get("/a"), 16384)} }, []string{long, "/a"}, false},
		{"long body in small records", func(s *sealer) []string { return []string{inRecords(s, post(long)+get("/a"), 900)} }, []string{long, "/a"}, false},
		{"request and close_notify", func(s *sealer) []string { return []string{s.data(get("/a")) + s.closeNotify()} }, []string{"/a"}, true},
		{"request, close_notify and end", func(s *sealer) []string { return []string{s.data(get("/a")) + s.closeNotify(), fin} }, []string{"/a"}, true},
		{"request and end", func(s *sealer) []string { return []string{s.data(get("/a")), fin} }, []string{"/a"}, true},
		{"two requests and end", func(s *sealer) []string { return []string{s.data(get("/a")) + s.data(get("/b")), fin} }, []string{"/a", "/b"}, true},
		{"half a record and end", func(s *sealer) []string { return []string{s.data(get("/a"))[:20], fin} }, nil, true},
		{"half a head and end", func(s *sealer) []string { return []string{s.data("GET /a HT"), fin} }, nil, true},
		{"key update and end", func(s *sealer) []string { return []string{s.update(0, 1), fin} }, nil, true},
		{"forged record", func(s *sealer) []string {
			r := []byte(s.data(get("/a")))
			r[9] ^= 1
			return []string{string(r), s.data(get("/b"))}
		}, nil, true},
	}
	for _, before := range []int{0, 2} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s, after %d requests", tt.name, before), func(t *testing.T) {
				t.Parallel()
				l := newLot(t, true, time.Hour, time.Hour)
				raw := dial(t, l.addr)
				_ = raw.SetDeadline(time.Now().Add(90 * time.Second))
				var keys bytes.Buffer
				tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &keys})
				if err := tc.Handshake(); err != nil {
					t.Fatal(err)
				}
				s := newSealer(tc.ConnectionState().CipherSuite, clientSecret(t, keys.String()))
				c := &client{raw, bufio.NewReader(tc)}
				write := func(p string) {
					if _, err := io.WriteString(raw, p); err != nil {
						t.Fatal(err)
					}
				}
				for range before {
					write(s.data(get("/before")))
					if err := c.answered("/before"); err != nil {
						t.Fatal(err)
					}
				}
				pieces := tt.send(s)
				for i, p := range pieces {
					if p == fin {
						if err := raw.CloseWrite(); err != nil {
							t.Fatal(err)
						}
						continue
					}
					if write(p); i+1 < len(pieces) && pieces[i+1] != fin {
						time.Sleep(time.Millisecond) // so that it is mostly read alone
					}
				}
				for _, want := range tt.want {
					if err := c.answered(want); err != nil {
						t.Fatal(err)
					}
				}
				if tt.ends {
					if b, err := c.in.ReadByte(); err == nil {
						t.Errorf("%q follows", b)
					} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
						t.Error("it does not end")
					}
					waitFor(t, func() bool { return l.open.Load() == 0 })
					return
				}
				write(s.data(get("/after")))
				if err := c.answered("/after"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// clientSecret finds client_application_traffic_secret_0 among what was logged.
func clientSecret(t *testing.T, keys string) []byte {
	t.Helper()
	for line := range strings.Lines(keys) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return secret
		}
	}
	t.Fatal("no secret: ", keys)
	return nil
}

// TestTLSSlowReader: an answer that the socket does not take at once arrives whole, and a client that does not read it is let go of.
func TestTLSSlowReader(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	serve := func(t *testing.T, timeout time.Duration) (c *tls.Conn, ended chan struct{}) {
		ended = make(chan struct{})
		s := h1.New(h1.Options{WriteTimeout: timeout, Handler: fixed(200, string(big))})
		t.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = s.Shutdown(ctx)
		})
		ln := listen(t)
		conf := newLot(t, true, time.Hour, time.Hour).tls
		go func() {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			tc := tls.Server(h1.NewTLSSocket(nc, nil), conf)
			if err := tc.Handshake(); err != nil {
				t.Error(err)
			}
			s.ServeConn(tc, &h1.ConnInfo{Ended: func() { close(ended) }})
		}()
		raw := dial(t, ln.Addr().String())
		_ = raw.SetDeadline(time.Now().Add(90 * time.Second))
		c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		fmt.Fprint(c, get("/"))
		return c, ended
	}
	t.Run("reads", func(t *testing.T) {
		t.Parallel()
		c, _ := serve(t, time.Hour)
		in := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(big))
		for i := 0; i < len(got); i += len(got) / 16 {
			time.Sleep(time.Millisecond)
			if _, err := io.ReadFull(in, got[i:i+len(got)/16]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, big) {
			t.Error("the body differs")
		}
	})
	for _, timeout := range []time.Duration{100 * time.Millisecond, 3 * time.Second} { // by the runtime's timers, and by the coarse clock
		t.Run(fmt.Sprint("does not read for ", timeout), func(t *testing.T) {
			t.Parallel()
			_, ended := serve(t, timeout)
			<-ended
		})
	}
}

// TestTLSSlowRecord: a client that sends a record byte by byte has no more time for it than for a head.
func TestTLSSlowRecord(t *testing.T) {
	t.Parallel()
	for _, before := range []int{0, 2} {
		t.Run(fmt.Sprintf("after %d requests", before), func(t *testing.T) {
			t.Parallel()
			l := newLot(t, true, time.Hour, 3*time.Second)
			c := l.client(t)
			for range before {
				if err := c.ask("/before"); err != nil {
					t.Fatal(err)
				}
			}
			raw := c.Conn.(*tls.Conn).NetConn()
			for _, b := range append([]byte{tlsApplication, 3, 3, 0x40}, make([]byte, 2000)...) { // of a record of 16 KB
				if _, err := raw.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Error("it is still listened to")
		})
	}
}

// broken is a body that ends early.
type broken struct{ sent bool }

func (b *broken) Next() ([]byte, error) {
	if b.sent {
		return nil, io.ErrUnexpectedEOF
	}
	b.sent = true
	return []byte("the beginning"), nil
}
func (*broken) Close() error { return nil }

// TestTLSBrokenAnswer: an answer without framing that could not be sent whole does not end as if it were.
func TestTLSBrokenAnswer(t *testing.T) {
	c := newLot(t, true, time.Hour, time.Hour).client(t)
	fmt.Fprint(c, "GET /broken HTTP/1.0\r\nHost: a\r\n\r\n")
	if got, err := io.ReadAll(c.in); err == nil {
		t.Errorf("%q looks whole", got)
	}
}

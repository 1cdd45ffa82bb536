package h2

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// memConn yields bytes, then nothing until its time is over or it is closed, then the end. It counts what is written.
type memConn struct {
	mu      sync.Mutex
	in      []byte
	piece   int
	written int
	late    bool
	closed  chan struct{}
	once    sync.Once
}

func newMemConn(in []byte, piece int) *memConn {
	return &memConn{in: in, piece: max(1, piece), closed: make(chan struct{})}
}

func (c *memConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late {
		return 0, os.ErrDeadlineExceeded
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.piece)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *memConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += len(p)
	return len(p), nil
}

func (c *memConn) Close() error         { c.once.Do(func() { close(c.closed) }); return nil }
func (c *memConn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (c *memConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }
func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.late = !t.IsZero() && time.Until(t) <= 0
	c.mu.Unlock()
	return nil
}
func (c *memConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return nil }

// seeds are sequences of frames behind the preface.
func seeds() [][]byte {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	block := func(kv ...string) []byte {
		buf.Reset()
		for i := 0; i < len(kv); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return bytes.Clone(buf.Bytes())
	}
	settings := appendSettings(nil, setting{settingWindow, 10}, setting{settingTableSize, 0})
	get := appendHeaders(bytes.Clone(settings), 1, block(getFields...), true, maxFrame)
	post := appendHeaders(bytes.Clone(settings), 1, block(postFields...), false, 10)
	post = appendData(post, 1, []byte("hello"), false)
	post = appendWindowUpdate(post, 1, 100)
	post = appendPing(post, 0, [8]byte{1})
	post = appendHeaders(post, 1, block("x-sum", "1"), true, maxFrame)
	answer := appendHeaders(bytes.Clone(settings), 1, block(":status", "200", "content-length", "5"), false, maxFrame)
	answer = appendData(answer, 1, []byte("hello"), true)
	cancel := appendReset(bytes.Clone(get), 1, Cancel)
	cancel = appendGoAway(cancel, 1, NoError, "bye")
	return [][]byte{settings, get, post, answer, cancel, appendFrameHeader(nil, 0, frameSettings, flagAck, 0)}
}

// FuzzServer: whatever frames come, the server ends, writes no more than its answers, and no handler is left or sees what
// it should not.
func FuzzServer(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(7))
		f.Add(s, uint16(65535))
	}
	f.Add([]byte("\x00\x00\x00\x09\x04\x00\x00\x00\x01"), uint16(100))
	f.Fuzz(func(t *testing.T, in []byte, piece uint16) {
		h := &handlerFunc{serve: func(x *exchange.Exchange) {
			r := &x.Request
			if !h1.ValidToken(r.Method) || !h1.ValidTarget(r.Target) || !h1.ValidHost(r.Host) || r.Path == "" {
				t.Errorf("%q %q %q", r.Method, r.Target, r.Host)
			}
			for _, f := range r.Header.Fields {
				if !h1.ValidToken(f.Name) || !h1.ValidValue(f.Value) {
					t.Errorf("%q: %q", f.Name, f.Value)
				}
			}
			if r.Body != nil && r.Length >= 0 {
				if body, err := readBody(r.Body); err == nil && int64(len(body)) != r.Length {
					t.Errorf("%d bytes of %d passed for all", len(body), r.Length)
				}
			}
			x.Response.Status = 200
			x.Response.SetBody([]byte("hello"))
		}}
		s := New(Options{Handler: h})
		defer s.keep.close()
		defer s.o.Clock.Stop()
		nc := newMemConn(append([]byte(Preface), in...), int(piece))
		s.ServeConn(nc, &h1.ConnInfo{})
		if served, finished := h.counts(); served != finished || s.Conns() != 0 {
			t.Errorf("%d handlers began, %d finished", served, finished)
		}
		if nc.written > 1000+300*len(in) {
			t.Errorf("%d bytes for %d", nc.written, len(in))
		}
	})
}

// FuzzClient: whatever an upstream sends, the exchange ends and nothing wrong is passed on.
func FuzzClient(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(7), true)
		f.Add(s, uint16(65535), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint16, post bool) {
		p := NewPool(PoolOptions{})
		defer p.Close()
		x := &exchange.Exchange{}
		x.Request.Method = "GET"
		x.Upstream.HostHeader, x.Upstream.Scheme, x.Upstream.Path = "a", "http", "/"
		if post {
			x.Request.Method = "POST"
			x.Request.SetBody(make([]byte, 100000))
		}
		var open []*memConn
		err := p.RoundTrip(x, Key{Addr: netip.AddrPort{}}, func() (net.Conn, error) {
			nc := newMemConn(in, int(piece))
			open = append(open, nc)
			return nc, nil
		})
		if err == nil {
			for _, f := range x.Response.Header.Fields {
				if !h1.ValidToken(f.Name) || !h1.ValidValue(f.Value) {
					t.Errorf("%q: %q", f.Name, f.Value)
				}
			}
			if x.Response.Status < 200 || x.Response.Status > 999 {
				t.Error(x.Response.Status)
			}
			if x.Response.Body != nil {
				length := x.Response.Length
				if body, err := readBody(x.Response.Body); err == nil && length >= 0 && int64(len(body)) != length {
					t.Errorf("%d bytes of %d passed for all", len(body), length)
				}
			}
			p.Release(x)
		}
		for _, nc := range open {
			<-nc.closed
		}
		if len(open) > maxDials*(maxStale+1) {
			t.Errorf("%d connections", len(open))
		}
	})
}

// FuzzFrame: the parser agrees with its writer and never reads beyond.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x00\x05"))
	f.Fuzz(func(t *testing.T, in []byte) {
		fr, n, err := parseFrame(in)
		if err != nil || n == 0 {
			return
		}
		again := append(appendFrameHeader(nil, len(fr.payload), fr.kind, fr.flags, fr.id), fr.payload...)
		in = bytes.Clone(in[:n])
		binary.BigEndian.PutUint32(in[5:], binary.BigEndian.Uint32(in[5:])&maxWindow)
		if !bytes.Equal(again, in) {
			t.Errorf("%x became %x", in, again)
		}
		_ = fr.unpad()
	})
}

// FuzzField: what is written is read by the library as it was meant, or not written.
func FuzzField(f *testing.F) {
	f.Add("Content-Type", "text/plain")
	f.Add("x", "a\r\nb")
	f.Add("Set-Cookie", " a=b ")
	f.Fuzz(func(t *testing.T, name, value string) {
		b, ok := appendField(nil, name, value)
		if !ok {
			return
		}
		got, err := hpack.NewDecoder(0, nil).DecodeFull(b)
		if err != nil || len(got) != 1 || !exchange.EqualFold(got[0].Name, name) || got[0].Value != string(bytes.Trim([]byte(value), " \t")) {
			t.Errorf("%q: %q became %v, %v", name, value, got, err)
		}
		h := head{lim: h1.Limits{}.WithDefaults(), response: true, length: -1}
		if h.add(got[0]); h.wrong != nil && !ConnectionField(name) && !exchange.EqualFold(name, "content-length") {
			t.Errorf("%v is refused by the other side: %v", got[0], h.wrong)
		}
	})
}

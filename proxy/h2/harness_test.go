package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// handlerFunc is an exchange.Handler that counts what it finished.
type handlerFunc struct {
	serve    func(x *exchange.Exchange)
	finish   func() // before Finish is counted
	mu       sync.Mutex
	served   int
	finished int
}

func (h *handlerFunc) Serve(x *exchange.Exchange) {
	h.mu.Lock()
	h.served++
	h.mu.Unlock()
	h.serve(x)
}

func (h *handlerFunc) Finish(*exchange.Exchange) {
	if h.finish != nil {
		h.finish()
	}
	h.mu.Lock()
	h.finished++
	h.mu.Unlock()
}

func (h *handlerFunc) counts() (served, finished int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.served, h.finished
}

// echo answers with what it saw.
func echo(x *exchange.Exchange) {
	var b bytes.Buffer
	r := &x.Request
	b.WriteString(r.Method + " " + r.Target + " path=" + r.Path + " host=" + r.Host + "\n")
	for _, f := range r.Header.Fields {
		b.WriteString(f.Name + ": " + f.Value + "\n")
	}
	if r.Body != nil {
		data, err := readBody(r.Body)
		if err != nil {
			x.Response.Status = 400
			return
		}
		b.WriteString("\n" + data)
		for _, f := range r.Trailer.Fields {
			b.WriteString("\n" + f.Name + ": " + f.Value)
		}
	}
	x.Response.Status = 200
	x.Response.Header.Add("Content-Type", "text/plain")
	x.Response.SetBody(b.Bytes())
}

func readBody(b exchange.Body) (string, error) {
	var all []byte
	for {
		p, err := b.Next()
		all = append(all, p...)
		if err == io.EOF {
			return string(all), nil
		}
		if err != nil {
			return string(all), err
		}
	}
}

// startServer serves on loopback and returns the address.
func startServer(t testing.TB, o Options) (*Server, string) {
	t.Helper()
	s := New(o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { s.ServeConn(nc, &h1.ConnInfo{}) })
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-accepting
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
		conns.Wait()
	})
	return s, ln.Addr().String()
}

// rawClient speaks frames.
type rawClient struct {
	t    testing.TB
	nc   net.Conn
	fr   *http2.Framer
	buf  bytes.Buffer
	enc  *hpack.Encoder
	idle time.Duration
	mute bool // answers nothing by itself
}

func dialRaw(t testing.TB, addr string) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return newRaw(t, nc)
}

func newRaw(t testing.TB, nc net.Conn) *rawClient {
	c := &rawClient{t: t, nc: nc, fr: http2.NewFramer(nc, nc), idle: 20 * time.Second}
	c.fr.AllowIllegalWrites = true
	c.fr.ReadMetaHeaders = newDecoder()
	c.enc = hpack.NewEncoder(&c.buf)
	return c
}

func newDecoder() *hpack.Decoder { return hpack.NewDecoder(4096, nil) }

// hello sends the preface and settings.
func (c *rawClient) hello(settings ...http2.Setting) *rawClient {
	c.write([]byte(Preface))
	c.do(c.fr.WriteSettings(settings...))
	return c
}

func (c *rawClient) do(err error) {
	c.t.Helper()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Logf("write: %v", err)
	}
}

func (c *rawClient) write(b []byte) {
	c.t.Helper()
	_, err := c.nc.Write(b)
	c.do(err)
}

// block encodes name, value, name, value…
func (c *rawClient) block(kv ...string) []byte {
	c.buf.Reset()
	for i := 0; i < len(kv); i += 2 {
		c.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(c.buf.Bytes())
}

var getFields = []string{":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/x?y=1"}
var postFields = []string{":method", "POST", ":scheme", "http", ":authority", "a.test", ":path", "/x"}

func (c *rawClient) headers(id uint32, end bool, kv ...string) {
	c.t.Helper()
	c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(kv...), EndStream: end, EndHeaders: true}))
}

func (c *rawClient) data(id uint32, end bool, p string) {
	c.t.Helper()
	c.do(c.fr.WriteData(id, end, []byte(p)))
}

// answer is what came on a stream.
type answer struct {
	status   string
	header   map[string]string
	trailer  map[string]string
	body     string
	infos    []string
	end      bool
	reset    http2.ErrCode
	wasReset bool
	goaway   *http2.GoAwayFrame
	debug    string
	closed   bool // the connection ended
}

// next reads one frame, acknowledging settings and giving windows back.
func (c *rawClient) next() (http2.Frame, error) {
	c.nc.SetReadDeadline(time.Now().Add(c.idle))
	f, err := c.fr.ReadFrame()
	if err != nil {
		return nil, err
	}
	if c.mute {
		return f, nil
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			c.do(c.fr.WriteSettingsAck())
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			c.do(c.fr.WritePing(true, f.Data))
		}
	case *http2.DataFrame:
		if n := uint32(len(f.Data())); n > 0 {
			c.do(c.fr.WriteWindowUpdate(0, n))
			if !f.StreamEnded() {
				c.do(c.fr.WriteWindowUpdate(f.StreamID, n))
			}
		}
	}
	return f, nil
}

// await reads until the stream is over or the connection is.
func (c *rawClient) await(id uint32) *answer {
	a := &answer{header: map[string]string{}, trailer: map[string]string{}}
	for {
		f, err := c.next()
		if err != nil {
			a.closed = !isTimeout(err)
			return a
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			g := *f
			a.goaway, a.debug = &g, string(f.DebugData())
			if f.ErrCode != http2.ErrCodeNo {
				return a
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				a.reset, a.wasReset = f.ErrCode, true
				return a
			}
		case *http2.DataFrame:
			if f.StreamID == id {
				a.body += string(f.Data())
				if a.end = f.StreamEnded(); a.end {
					return a
				}
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID != id {
				continue
			}
			status := f.PseudoValue("status")
			into := a.header
			switch {
			case strings.HasPrefix(status, "1"):
				a.infos = append(a.infos, status)
				continue
			case status != "":
				a.status = status
			default:
				into = a.trailer
			}
			for _, h := range f.RegularFields() {
				into[h.Name] = h.Value
			}
			if a.end = f.StreamEnded(); a.end {
				return a
			}
		}
	}
}

// alive tells whether the connection still serves requests.
func (c *rawClient) alive(id uint32) bool {
	c.t.Helper()
	c.headers(id, true, getFields...)
	a := c.await(id)
	return a.status == "200" && a.end
}

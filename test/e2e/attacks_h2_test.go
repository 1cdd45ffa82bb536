package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2c is a client that sends any frame it likes, over HTTP/2 in plain text.
type h2c struct {
	*testing.T
	net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func dialH2(t *testing.T, addr string) *h2c {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(c, http2.ClientPreface)
	h := &h2c{T: t, Conn: c, fr: http2.NewFramer(c, c)}
	h.fr.AllowIllegalWrites = true
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.buf)
	if err := h.fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *h2c) block(kv ...string) []byte {
	h.buf.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(h.buf.Bytes())
}

func (h *h2c) headers(stream uint32, end bool, kv ...string) error {
	return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.block(kv...), EndHeaders: true, EndStream: end})
}

// outcome reads until the stream has ended: "200", "reset PROTOCOL_ERROR", or "goaway ENHANCE_YOUR_CALM" and the like.
func (h *h2c) outcome(stream uint32) string {
	status := ""
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return strings.TrimSpace(status + " closed")
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.fr.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != 0 {
				return "goaway " + f.ErrCode.String()
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == stream {
				status = f.PseudoValue("status")
				if f.StreamEnded() {
					return status
				}
			}
		case *http2.DataFrame:
			if f.StreamID == stream && f.StreamEnded() {
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return strings.TrimSpace(status + " reset " + f.ErrCode.String())
			}
		}
	}
}

// pseudo is the beginning of a request with changes: "-:path" leaves a field out.
func pseudo(method string, changes ...string) []string {
	out := []string{}
	base := []string{":method", method, ":scheme", "http", ":authority", "gw.example", ":path", "/h2"}
	for i := 0; i < len(base); i += 2 {
		drop := false
		for _, c := range changes {
			drop = drop || c == "-"+base[i]
		}
		if !drop {
			out = append(out, base[i], base[i+1])
		}
	}
	for i := 0; i < len(changes); i++ {
		if !strings.HasPrefix(changes[i], "-") {
			out = append(out, changes[i], changes[i+1])
			i++
		}
	}
	return out
}

// requestFaults are the rows S17, S18 and S20.
var requestFaults = []struct {
	row, name string
	fields    []string
}{
	{"S17", "upper case name", pseudo("GET", "X-Upper", "1")}, {"S17", "CR LF in a name", pseudo("GET", "x\r\nx-evil", "1")}, {"S17", "colon in a name", pseudo("GET", "x:y", "1")},
	{"S17", "space in a name", pseudo("GET", "x y", "1")}, {"S17", "CR LF in a value", pseudo("GET", "x", "1\r\nx-evil: 2")}, {"S17", "LF in a value", pseudo("GET", "x", "1\nx-evil: 2")},
	{"S17", "NUL in a value", pseudo("GET", "x", "1\x00")}, {"S17", "CR LF in a cookie", pseudo("GET", "cookie", "a=1\r\nx-evil: 2")},
	{"S18", "transfer-encoding", pseudo("POST", "transfer-encoding", "chunked")}, {"S18", "connection", pseudo("GET", "connection", "x-forwarded-for")}, {"S18", "proxy-connection", pseudo("GET", "proxy-connection", "close")},
	{"S18", "keep-alive", pseudo("GET", "keep-alive", "1")}, {"S18", "upgrade", pseudo("GET", "upgrade", "websocket")}, {"S18", "te gzip", pseudo("GET", "te", "gzip")}, {"S18", "te trailers, gzip", pseudo("GET", "te", "trailers, gzip")},
	{"S20", "path with a space", pseudo("GET", "-:path", ":path", "/a b")}, {"S20", "path with a request", pseudo("GET", "-:path", ":path", "/a HTTP/1.1\r\nx-evil: y\r\n\r\nGET /admin")},
	{"S20", "method with a request line", pseudo("GET / HTTP/1.1\r\nx-evil: 1\r\n\r\nGET")}, {"S20", "authority and host differ", pseudo("GET", "host", "b.example")}, {"S20", "two hosts", pseudo("GET", "-:authority", "host", "a", "host", "a")},
	{"S20", "authority with CR LF", pseudo("GET", "-:authority", ":authority", "a\r\nx-evil: 1")}, {"S20", "userinfo", pseudo("GET", "-:authority", ":authority", "u@a")}, {"S20", "method twice", pseudo("GET", ":method", "POST")},
	{"S20", "path twice", pseudo("GET", ":path", "/admin")}, {"S20", "pseudo behind a regular field", pseudo("GET", "-:path", "x", "1", ":path", "/")}, {"S20", "unknown pseudo field", pseudo("GET", ":proto", "x")},
	{"S20", "no path", pseudo("GET", "-:path")}, {"S20", "path without slash", pseudo("GET", "-:path", ":path", "admin")}, {"S20", "absolute path", pseudo("GET", "-:path", ":path", "http://b/admin")}, {"S20", "scheme", pseudo("GET", "-:scheme", ":scheme", "http\r\nx: y")},
}

var http2Scenes = map[string]func(*testing.T, *target){
	"S17 S18 S20 malformed requests": func(t *testing.T, g *target) {
		for _, f := range requestFaults {
			t.Run(f.row+" "+f.name, func(t *testing.T) {
				c := dialH2(t, g.Proxy)
				if err := c.headers(1, true, f.fields...); err != nil {
					t.Fatal(err)
				}
				if got := c.outcome(1); got != "reset PROTOCOL_ERROR" && got != "400" {
					t.Errorf("%s", got)
				}
				if got, _ := g.up.take(); got != "" {
					t.Errorf("the upstream received %q", got)
				}
			})
		}
	},
	"S18 te trailers is fine":            http2Fine("te", "trailers"),
	"S20 host equal to the authority is": http2Fine("host", "gw.example"),
	"S17 an odd but valid value is":      http2Fine("x", "a\tb \xff"),
	"S19 length of bodies": func(t *testing.T, g *target) {
		for name, v := range map[string]struct {
			length string
			data   []string
			ok     bool
		}{"right": {"5", []string{"he", "llo"}, true}, "short": {"9", []string{"hello"}, false}, "long": {"4", []string{"hello"}, false}, "nothing": {"1", []string{""}, false}, "something for nothing": {"0", []string{"GET /admin"}, false},
			"twice": {"5\x00", []string{"hello"}, false}, "plus": {"+5", []string{"hello"}, false}, "a request behind the length": {"2", []string{"hiGET /admin HTTP/1.1\r\nHost: a\r\n\r\n"}, false}} {
			c := dialH2(t, g.Proxy)
			if err := c.headers(1, false, pseudo("POST", "content-length", v.length)...); err != nil {
				t.Fatal(err)
			}
			for i, d := range v.data {
				if err := c.fr.WriteData(1, i == len(v.data)-1, []byte(d)); err != nil {
					break
				}
			}
			got := c.outcome(1)
			early := name == "something for nothing" && got == "200" // complete, and answered before the data came
			if !early && (v.ok != (got == "200") || !v.ok && got != "reset PROTOCOL_ERROR" && got != "400") {
				t.Errorf("%s: %s", name, got)
			}
			bytes, seen := g.up.settle()
			for _, s := range seen {
				if whole := name == "something for nothing" && s == "POST /h2" && !strings.Contains(bytes, "GET /admin"); s != "POST /h2 cut" && !v.ok && !whole {
					t.Errorf("%s: the upstream took %q for a whole request: %q", name, s, bytes)
				}
			}
			if v.ok && fmt.Sprint(seen) != "[POST /h2]" {
				t.Errorf("%s: %q", name, seen)
			}
		}
	},
	"D3 floods": func(t *testing.T, g *target) {
		req := pseudo("GET")
		for name, flood := range map[string]func(c *h2c, i uint32) error{
			"rapid reset": func(c *h2c, i uint32) error {
				if err := c.headers(2*i+1, true, req...); err != nil {
					return err
				}
				return c.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			},
			"continuation": func(c *h2c, i uint32) error {
				if i == 0 {
					if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(req...)}); err != nil {
						return err
					}
				}
				return c.fr.WriteContinuation(1, false, c.block("x", strings.Repeat("y", 10000)))
			},
			"settings": func(c *h2c, i uint32) error {
				return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 1000})
			},
			"ping": func(c *h2c, _ uint32) error { return c.fr.WritePing(false, [8]byte{1}) },
			"empty data": func(c *h2c, i uint32) error {
				if i == 0 {
					if err := c.headers(1, false, pseudo("POST")...); err != nil {
						return err
					}
				}
				return c.fr.WriteData(1, false, nil)
			},
			"HPACK bomb": func(c *h2c, i uint32) error {
				kv := pseudo("GET", "x-large", strings.Repeat("a", 3900))
				for range 2000 { // two bytes each, 3,900 when decoded
					kv = append(kv, "x-large", strings.Repeat("a", 3900))
				}
				if i > 50 {
					return errors.New("enough")
				}
				return c.headers(2*i+1, true, kv...)
			},
		} {
			before := rss(t, g.Node)
			c := dialH2(t, g.Proxy)
			ended := make(chan string, 1)
			go func() { ended <- c.outcome(1 << 30) }()
			sent := uint32(0)
			for ; sent < 100_000; sent++ {
				if err := flood(c, sent); err != nil {
					break
				}
			}
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			got := <-ended
			if name != "HPACK bomb" && !strings.HasPrefix(got, "goaway") && (sent == 100_000 || got != "closed") {
				t.Errorf("%s: %s after %d frames", name, got, sent)
			}
			if after := rss(t, g.Node); after > before+64 {
				t.Errorf("%s: from %d to %d MiB", name, before, after)
			}
			if a := g.Get("/after"); a.Status != 200 {
				t.Errorf("%s: others get %d", name, a.Status)
			}
			if _, seen := g.up.settle(); len(seen) > 2000 {
				t.Errorf("%s: %d requests reached the upstream", name, len(seen))
			}
		}
	},
	"D3 a window of 0": func(t *testing.T, g *target) {
		c := dialH2(t, g.second.Proxy) // gives up after a second
		_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for i := range uint32(50) {
			if err := c.headers(2*i+1, true, pseudo("GET")...); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if got := c.outcome(99); !strings.Contains(got, "reset") && !strings.Contains(got, "closed") && !strings.Contains(got, "goaway") {
			t.Errorf("%s after %v", got, time.Since(start))
		}
		g.up.settle()
	},
}

func http2Fine(kv ...string) func(*testing.T, *target) {
	return func(t *testing.T, g *target) {
		c := dialH2(t, g.Proxy)
		if err := c.headers(1, true, pseudo("GET", kv...)...); err != nil {
			t.Fatal(err)
		}
		if got := c.outcome(1); got != "200" {
			t.Error(got)
		}
		if _, seen := g.up.take(); fmt.Sprint(seen) != "[GET /h2]" {
			t.Errorf("the upstream saw %q", seen)
		}
	}
}

package h2

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"concord/proxy/exchange"
)

func TestSniff(t *testing.T) {
	for _, tt := range []struct {
		in        string
		yes, more bool
	}{
		{"", false, true}, {"P", false, true}, {"PRI * HTTP/2.0\r", false, true}, {"PRI * HTTP/2.0\r\n", true, false},
		{Preface + "more", true, false}, {"POST / HTTP/1.1", false, false}, {"PRI * HTTP/1.1\r\n", false, false}, {"G", false, false},
	} {
		if yes, more := Sniff([]byte(tt.in)); yes != tt.yes || more != tt.more {
			t.Errorf("%q: %v, %v", tt.in, yes, more)
		}
	}
}

// fields is a request with changes: "-name" leaves out, "name", "value" appends.
func fields(changes ...string) []string {
	base := []string{":method", "POST", ":scheme", "http", ":authority", "a.test", ":path", "/x"}
	var out []string
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

// TestRefused: what no handler may see. The connection goes on.
func TestRefused(t *testing.T) {
	long := strings.Repeat("a", 9000)
	tests := []struct {
		name   string
		fields []string
		status string // "": the stream is reset with PROTOCOL_ERROR
	}{
		{name: "S17 upper case name", fields: fields("X-Upper", "1")},
		{name: "S17 CR LF in a name", fields: fields("x\r\ny", "1")},
		{name: "S17 colon in a name", fields: fields("x:y", "1")},
		{name: "S17 space in a name", fields: fields("x y", "1")},
		{name: "S17 empty name", fields: fields("", "1")},
		{name: "S17 byte above 0x7f in a name", fields: fields("x\xff", "1")},
		{name: "S17 CR LF in a value", fields: fields("x", "1\r\ny: 2")},
		{name: "S17 LF in a value", fields: fields("x", "1\ny: 2")},
		{name: "S17 CR in a value", fields: fields("x", "1\ry")},
		{name: "S17 NUL in a value", fields: fields("x", "1\x00")},
		{name: "S17 space before a value", fields: fields("x", " 1")},
		{name: "S17 tab behind a value", fields: fields("x", "1\t")},
		{name: "S18 transfer-encoding", fields: fields("transfer-encoding", "chunked")},
		{name: "S18 connection", fields: fields("connection", "close")},
		{name: "S18 proxy-connection", fields: fields("proxy-connection", "keep-alive")},
		{name: "S18 keep-alive", fields: fields("keep-alive", "1")},
		{name: "S18 upgrade", fields: fields("upgrade", "h2c")},
		{name: "S18 te gzip", fields: fields("te", "gzip")},
		{name: "S18 te trailers and gzip", fields: fields("te", "trailers, gzip")},
		{name: "S19 two lengths", fields: fields("content-length", "0", "content-length", "0")},
		{name: "S19 length not a number", fields: fields("content-length", "+5")},
		{name: "S19 length in a list", fields: fields("content-length", "5, 5")},
		{name: "S19 length without body", fields: fields("content-length", "5")},
		{name: "S20 path with a space", fields: fields("-:path", ":path", "/a b"), status: "400"},
		{name: "S20 path with CR LF", fields: fields("-:path", ":path", "/a HTTP/1.1\r\nx: y"), status: "400"},
		{name: "S20 method with a request line", fields: fields("-:method", ":method", "GET / HTTP/1.1"), status: "400"},
		{name: "S20 host differs", fields: fields("host", "b.test")},
		{name: "S20 two hosts", fields: fields("-:authority", "host", "a.test", "host", "a.test")},
		{name: "S20 method twice", fields: fields(":method", "GET")},
		{name: "S20 path twice", fields: fields(":path", "/y")},
		{name: "S20 authority twice", fields: fields(":authority", "a.test")},
		{name: "S20 pseudo behind a regular field", fields: fields("-:path", "x", "1", ":path", "/")},
		{name: "S20 unknown pseudo field", fields: fields(":proto", "x")},
		{name: "S20 status in a request", fields: fields(":status", "200")},
		{name: "S20 no method", fields: fields("-:method")},
		{name: "S20 no scheme", fields: fields("-:scheme")},
		{name: "S20 no path", fields: fields("-:path")},
		{name: "S20 empty path", fields: fields("-:path", ":path", "")},
		{name: "protocol without CONNECT", fields: fields(":protocol", "websocket")},
		{name: "extended CONNECT without path", fields: fields("-:method", "-:path", ":method", "CONNECT", ":protocol", "websocket")},
		{name: "extended CONNECT to something else", fields: fields("-:method", ":method", "CONNECT", ":protocol", "connect-udp"), status: "501"},

		{name: "CONNECT", fields: []string{":method", "CONNECT", ":authority", "a.test:443"}, status: "405"},
		{name: "path without slash", fields: fields("-:path", ":path", "x"), status: "400"},
		{name: "absolute path", fields: fields("-:path", ":path", "http://b.test/"), status: "400"},
		{name: "asterisk", fields: fields("-:path", ":path", "*"), status: "400"},
		{name: "fragment", fields: fields("-:path", ":path", "/a#b"), status: "400"},
		{name: "DEL in the path", fields: fields("-:path", ":path", "/\x7f"), status: "400"},
		{name: "encoded NUL", fields: fields("-:path", ":path", "/a%00b"), status: "400"},
		{name: "backslash", fields: fields("-:path", ":path", `/a\b`), status: "400"},
		{name: "wrong escape", fields: fields("-:path", ":path", "/%zz"), status: "400"},
		{name: "long path", fields: fields("-:path", ":path", "/"+long), status: "414"},
		{name: "no authority", fields: fields("-:authority"), status: "400"},
		{name: "empty authority", fields: fields("-:authority", ":authority", ""), status: "400"},
		{name: "userinfo", fields: fields("-:authority", ":authority", "u@a.test"), status: "400"},
		{name: "authority with a path", fields: fields("-:authority", ":authority", "a.test/x"), status: "400"},
		{name: "other scheme", fields: fields("-:scheme", ":scheme", "ftp"), status: "400"},
		{name: "other expectation", fields: fields("expect", "magic"), status: "417"},
		{name: "large section", fields: fields("x1", long, "x2", long, "x3", long, "x4", long, "x5", long, "x6", long, "x7", long, "x8", long), status: "431"},
		{name: "large field", fields: fields("x", strings.Repeat("a", 100_000)), status: "431"},
		{name: "field of 200 KB, compressed", fields: fields("x", strings.Repeat("a", 320_000), "y", "1"), status: "431"},
		{name: "block of 250 KB", fields: fields("x", strings.Repeat("~", 125_000), "y", "1", "z", strings.Repeat("~", 125_000)), status: "431"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &handlerFunc{serve: echo}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true}))
			rest := c.block(tt.fields...)
			for len(rest) > 16000 {
				c.do(c.fr.WriteContinuation(1, false, rest[:16000]))
				rest = rest[16000:]
			}
			c.do(c.fr.WriteContinuation(1, true, rest))
			a := c.await(1)
			if tt.status == "" && (!a.wasReset || a.reset != http2.ErrCodeProtocol) || a.status != tt.status {
				t.Errorf("%+v", a)
			}
			if n, _ := h.counts(); n != 0 {
				t.Error("a handler saw it")
			}
			if !c.alive(3) {
				t.Error("the connection ended")
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	tests := []struct {
		name   string
		fields []string
		want   exchange.Request // Method, Target, Path, Host, RawQuery, TETrailers, header
	}{
		{name: "host instead of authority", fields: []string{":method", "GET", ":scheme", "https", ":path", "/", "host", "h.test:8"},
			want: exchange.Request{Method: "GET", Target: "/", Path: "/", Host: "h.test:8", Header: header("host", "h.test:8")}},
		{name: "both, alike", fields: append(getFields, "host", "A.test"),
			want: exchange.Request{Method: "GET", Target: "/x?y=1", Path: "/x", RawQuery: "y=1", HasQuery: true, Host: "a.test", Header: header("host", "a.test")}},
		{name: "options", fields: []string{":method", "OPTIONS", ":scheme", "http", ":authority", "a", ":path", "*"},
			want: exchange.Request{Method: "OPTIONS", Target: "*", Path: "*", Host: "a", Header: header("host", "a")}},
		{name: "normalised", fields: []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/a/../%62//c?d=%2f"},
			want: exchange.Request{Method: "GET", Target: "/a/../%62//c?d=%2f", Path: "/b/c", RawQuery: "d=%2f", HasQuery: true, Host: "a", Header: header("host", "a")}},
		{name: "cookies joined", fields: append(getFields, "cookie", "a=1", "x", "y", "cookie", "b=2", "cookie", "c=3"),
			want: exchange.Request{Method: "GET", Target: "/x?y=1", Path: "/x", RawQuery: "y=1", HasQuery: true, Host: "a.test",
				Header: header("host", "a.test", "cookie", "a=1; b=2; c=3", "x", "y")}},
		{name: "dropped", fields: append(getFields, "te", "trailers", "proxy", "x", "proxy-authenticate", "x", "http2-settings", "z"),
			want: exchange.Request{Method: "GET", Target: "/x?y=1", Path: "/x", RawQuery: "y=1", HasQuery: true, Host: "a.test",
				TETrailers: true, Header: header("host", "a.test")}},
		{name: "odd but valid values", fields: append(getFields, "x", "a\tb \xff", "y", ""),
			want: exchange.Request{Method: "GET", Target: "/x?y=1", Path: "/x", RawQuery: "y=1", HasQuery: true, Host: "a.test",
				Header: header("host", "a.test", "x", "a\tb \xff", "y", "")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got exchange.Request
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				r := &x.Request
				got = exchange.Request{Method: r.Method, Target: r.Target, Path: strings.Clone(r.Path), Host: r.Host, RawQuery: r.RawQuery, HasQuery: r.HasQuery,
					TETrailers: r.TETrailers}
				for _, f := range r.Header.Fields {
					got.Header.Add(f.Name, strings.Clone(f.Value))
				}
				if r.Major != 2 || r.Minor != 0 || r.Scheme != "http" || r.Body != nil || r.Length != 0 {
					t.Errorf("%+v", r)
				}
				x.Response.Status = 204
			}}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.headers(1, true, tt.fields...)
			if a := c.await(1); a.status != "204" || !a.end || a.header["content-length"] != "" {
				t.Fatalf("%+v", a)
			}
			if d := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(exchange.Request{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func header(kv ...string) (h exchange.Header) {
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

// TestLengthOfBody is S19: a body that is not as long as announced never passes for a complete one.
func TestLengthOfBody(t *testing.T) {
	tests := []struct {
		name   string
		length string
		data   []string
		trail  bool
		ok     bool
	}{
		{name: "right", length: "5", data: []string{"he", "llo"}, ok: true},
		{name: "right with trailers", length: "5", data: []string{"hello"}, trail: true, ok: true},
		{name: "short", length: "6", data: []string{"he", "llo"}},
		{name: "short with trailers", length: "6", data: []string{"hello"}, trail: true},
		{name: "long", length: "4", data: []string{"he", "llo"}},
		{name: "nothing", length: "1", data: []string{""}},
		{name: "something for nothing", length: "0", data: []string{"x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			complete := make(chan bool, 1)
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				if x.Request.Body != nil {
					_, err := readBody(x.Request.Body)
					complete <- err == nil
				}
				x.Response.Status = 200
			}}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.headers(1, false, append(postFields, "content-length", tt.length)...)
			waitFor(t, "the handler does not begin", func() bool { n, _ := h.counts(); return n == 1 })
			for i, p := range tt.data {
				c.data(1, i == len(tt.data)-1 && !tt.trail, p)
			}
			if tt.trail {
				c.headers(1, true, "x-sum", "1")
			}
			a := c.await(1)
			if (a.status == "200") != tt.ok || a.wasReset == tt.ok || !tt.ok && a.reset != http2.ErrCodeProtocol {
				t.Errorf("%+v", a)
			}
			if got := <-complete; got != tt.ok {
				t.Errorf("the handler took it for complete: %v", got)
			}
			if !c.alive(3) {
				t.Error("the connection ended")
			}
		})
	}
}

// TestConnectionErrors: what ends the connection, and with which code.
func TestConnectionErrors(t *testing.T) {
	headers := func(c *rawClient, id uint32, end bool) {
		c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(postFields...), EndHeaders: true, EndStream: end}))
	}
	tests := []struct {
		name string
		do   func(c *rawClient)
		want http2.ErrCode
	}{
		{"even stream", func(c *rawClient) { headers(c, 2, true) }, http2.ErrCodeProtocol},
		{"stream 0", func(c *rawClient) { headers(c, 0, true) }, http2.ErrCodeProtocol},
		{"old stream", func(c *rawClient) { headers(c, 5, true); headers(c, 3, true) }, http2.ErrCodeStreamClosed},
		{"data on an idle stream", func(c *rawClient) { c.data(1, true, "x") }, http2.ErrCodeProtocol},
		{"data on stream 0", func(c *rawClient) { c.data(0, true, "x") }, http2.ErrCodeProtocol},
		{"reset of an idle stream", func(c *rawClient) { c.do(c.fr.WriteRSTStream(1, 0)) }, http2.ErrCodeProtocol},
		{"window of an idle stream", func(c *rawClient) { c.do(c.fr.WriteWindowUpdate(1, 1)) }, http2.ErrCodeProtocol},
		{"short priority of an idle stream", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FramePriority, 0, 1, make([]byte, 4))) }, http2.ErrCodeFrameSize},
		{"an idle stream depends on itself", func(c *rawClient) { c.do(c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1})) }, http2.ErrCodeProtocol},
		{"window of 0", func(c *rawClient) { c.do(c.fr.WriteWindowUpdate(0, 0)) }, http2.ErrCodeProtocol},
		{"window too large", func(c *rawClient) { c.do(c.fr.WriteWindowUpdate(0, 1<<31-1)) }, http2.ErrCodeFlowControl},
		{"push", func(c *rawClient) {
			c.do(c.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true}))
		}, http2.ErrCodeProtocol},
		{"continuation alone", func(c *rawClient) { c.do(c.fr.WriteContinuation(1, true, nil)) }, http2.ErrCodeProtocol},
		{"frame within a block", func(c *rawClient) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
			c.do(c.fr.WritePing(false, [8]byte{}))
		}, http2.ErrCodeProtocol},
		{"continuation of another stream", func(c *rawClient) {
			c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(getFields...)}))
			c.do(c.fr.WriteContinuation(3, true, nil))
		}, http2.ErrCodeProtocol},
		{"large frame", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16385))) }, http2.ErrCodeFrameSize},
		{"short ping", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7))) }, http2.ErrCodeFrameSize},
		{"ping on a stream", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8))) }, http2.ErrCodeProtocol},
		{"short settings", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5))) }, http2.ErrCodeFrameSize},
		{"settings on a stream", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil)) }, http2.ErrCodeProtocol},
		{"acknowledgement with settings", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6))) }, http2.ErrCodeFrameSize},
		{"setting push", func(c *rawClient) { c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2})) }, http2.ErrCodeProtocol},
		{"setting window", func(c *rawClient) {
			c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, http2.ErrCodeFlowControl},
		{"setting frame", func(c *rawClient) { c.do(c.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})) }, http2.ErrCodeProtocol},
		{"short reset", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameRSTStream, 0, 1, make([]byte, 3))) }, http2.ErrCodeFrameSize},
		{"short goaway", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7))) }, http2.ErrCodeFrameSize},
		{"padding", func(c *rawClient) {
			headers(c, 1, false)
			c.do(c.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1, 2}))
		}, http2.ErrCodeProtocol},
		{"compression", func(c *rawClient) {
			c.do(c.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0x7f}))
		}, http2.ErrCodeCompression},
		{"cut block", func(c *rawClient) {
			c.do(c.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x40, 5, 'a'}))
		}, http2.ErrCodeCompression},
		{"more data than the connection's window", func(c *rawClient) {
			for id := uint32(1); id < 101; id += 2 {
				headers(c, id, false)
				for range 3 {
					c.data(id, false, strings.Repeat("x", 16384))
				}
			}
		}, http2.ErrCodeFlowControl},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stop := make(chan struct{})
			h := &handlerFunc{serve: func(x *exchange.Exchange) { <-stop; x.Response.Status = 204 }}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.mute = true
			go func() { tt.do(c) }()
			a := c.await(99)
			close(stop)
			if a.goaway == nil || a.goaway.ErrCode != tt.want || a.debug == "" {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestHeadersOnAClosedStream: a stream is closed by its two ends, even while its handler has something left to do.
func TestHeadersOnAClosedStream(t *testing.T) {
	stop := make(chan struct{})
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo, finish: func() { <-stop }}})
	defer close(stop)
	c := dialRaw(t, addr).hello()
	c.headers(1, true, getFields...)
	if a := c.await(1); a.status != "200" || !a.end {
		t.Fatalf("%+v", a)
	}
	c.headers(1, true, getFields...)
	if a := c.await(1); a.goaway == nil || a.goaway.ErrCode != http2.ErrCodeStreamClosed {
		t.Errorf("%+v", a)
	}
}

func TestWrongBeginnings(t *testing.T) {
	for name, first := range map[string]string{
		"HTTP/1.1":       "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"almost":         strings.Replace(Preface, "SM", "SN", 1),
		"no settings":    Preface + "\x00\x00\x08\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"acknowledgment": Preface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
			c := dialRaw(t, addr)
			c.write([]byte(first))
			if a := c.await(1); a.goaway == nil || a.goaway.ErrCode != http2.ErrCodeProtocol {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestStreamErrors: what ends one stream only.
func TestStreamErrors(t *testing.T) {
	tests := []struct {
		name string
		do   func(c *rawClient)
		want http2.ErrCode
	}{
		{"data behind the end", func(c *rawClient) { c.data(1, true, ""); c.data(1, true, "x") }, http2.ErrCodeStreamClosed},
		{"headers behind the end", func(c *rawClient) { c.data(1, true, ""); c.headers(1, true, "a", "b") }, http2.ErrCodeStreamClosed},
		{"headers within the body", func(c *rawClient) { c.headers(1, false, "a", "b") }, http2.ErrCodeProtocol},
		{"pseudo field in trailers", func(c *rawClient) { c.headers(1, true, ":path", "/") }, http2.ErrCodeProtocol},
		{"upper case in trailers", func(c *rawClient) { c.headers(1, true, "A", "/") }, http2.ErrCodeProtocol},
		{"window of 0", func(c *rawClient) { c.do(c.fr.WriteWindowUpdate(1, 0)) }, http2.ErrCodeProtocol},
		{"window too large", func(c *rawClient) { c.do(c.fr.WriteWindowUpdate(1, 1<<31-1)) }, http2.ErrCodeFlowControl},
		{"short priority", func(c *rawClient) { c.do(c.fr.WriteRawFrame(http2.FramePriority, 0, 1, make([]byte, 4))) }, http2.ErrCodeFrameSize},
		{"depends on itself", func(c *rawClient) { c.do(c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1})) }, http2.ErrCodeProtocol},
		{"more data than its window", func(c *rawClient) {
			for range 5 {
				c.data(1, false, strings.Repeat("x", 16384))
			}
		}, http2.ErrCodeFlowControl},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stop := make(chan struct{})
			h := &handlerFunc{serve: func(x *exchange.Exchange) {
				if x.Request.Method == "POST" {
					<-stop
				}
				echo(x)
			}}
			_, addr := startServer(t, Options{Handler: h})
			c := dialRaw(t, addr).hello()
			c.headers(1, false, postFields...)
			tt.do(c)
			a := c.await(1)
			close(stop)
			if !a.wasReset || a.reset != tt.want {
				t.Errorf("%+v", a)
			}
			if !c.alive(3) {
				t.Error("the connection ended")
			}
		})
	}
}

// TestHeaderTableSize: a client that wants no dynamic table is told at the first chance that there is none (RFC 7541
// §4.2).
func TestHeaderTableSize(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr)
	c.fr.ReadMetaHeaders = nil
	c.hello(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	for id := uint32(1); id < 5; id += 2 {
		c.headers(id, true, getFields...)
		for {
			f, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			h, ok := f.(*http2.HeadersFrame)
			if !ok {
				continue
			}
			if updated := h.HeaderBlockFragment()[0] == 0x20; updated != (id == 1) {
				t.Errorf("stream %d begins with %#x", id, h.HeaderBlockFragment()[0])
			}
			if _, err := hpack.NewDecoder(0, nil).DecodeFull(h.HeaderBlockFragment()); err != nil {
				t.Error(err)
			}
			break
		}
	}
}

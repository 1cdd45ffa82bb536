package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// framingAttacks are the rows S1 to S23 as far as bytes of HTTP/1.1 make them.
func framingAttacks() []attack {
	post := func(fields, body string) string { return "POST / HTTP/1.1\r\n" + gw + fields + "\r\n" + body }
	chunked := func(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
	ok := "5\r\nhello\r\n"
	list := []attack{
		{row: "S11", name: "the target's host wins", send: "GET http://api.example.com/abs HTTP/1.1\r\nHost: other.example\r\n\r\n", codes: "200", sees: []string{"GET /host/abs"}, not: []string{"other.example"}},
		{row: "S11", name: "the protected path in absolute form", send: "GET http://x/admin HTTP/1.1\r\n" + gw + "\r\n", codes: "401"},
		{row: "S14", name: "a body does not hide the next request", send: "GET /a HTTP/1.1\r\n" + gw + "Content-Length: 5\r\n\r\nhello" + get("/admin"), codes: "200 401", sees: []string{"GET /a"}},
		{row: "S14", name: "a request in a body stays a body", send: "GET /a HTTP/1.1\r\n" + gw + "Content-Length: 45\r\n\r\n" + "GET /admin HTTP/1.1\r\nHost: gw.example.com\r\n\r\n", codes: "200", sees: []string{"GET /a"}},
		{row: "S14", name: "a chunked body before the next request", send: chunked(ok+"0\r\n\r\n") + get("/admin"), codes: "200 401", sees: []string{"POST /"}},
		{row: "S15", name: "no tunnel before 101", send: get("/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13") + get("/admin"), codes: "200 401", sees: []string{"GET /ws"}},
		{row: "S15", name: "an odd version", send: get("/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 777") + get("/admin"), codes: "200 401", sees: []string{"GET /ws"}},
		{row: "S16", name: "h2c", send: get("/x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA") + get("/admin"), codes: "200 401", sees: []string{"GET /x"}, not: []string{"h2c", "http2-settings", "upgrade"}},
		{row: "S16", name: "H2C in a list", send: get("/x", "Connection: Upgrade", "Upgrade: websocket, H2C"), codes: "200", sees: []string{"GET /x"}, not: []string{"h2c"}},
		{row: "S16", name: "h2c not named in Connection", send: get("/x", "Upgrade: h2c"), codes: "200", sees: []string{"GET /x"}, not: []string{"h2c"}},
		{row: "S21", name: "another expectation", send: post("Expect: 200-maybe\r\nContent-Length: 2\r\n", "hi"), codes: "417"},
		{row: "S23", name: "trailers that would be headers", send: chunked(ok + "0\r\nAuthorization: x\r\nX-Consumer-ID: x\r\nx_consumer_username: x\r\nContent-Length: 5\r\nHost: evil\r\nX-Sum: 1\r\n\r\n"),
			codes: "200", sees: []string{"POST /"}, not: []string{"authorization", "onsumer", "evil", "content-length"}},
		{row: "S23", name: "a trailer that names framing", send: chunked(ok+"0\r\nTransfer-Encoding: chunked\r\nConnection: x\r\n\r\n") + get("/admin"), codes: "200 401", sees: []string{"POST /"}},
	}
	for _, v := range []struct{ row, name, send string }{
		{"S1", "length before chunked", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG")},
		{"S1", "chunked before length", post("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nG")},
		{"S1", "length 0", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG")},
		{"S2", "short length", post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "8\r\nSMUGGLED\r\n0\r\n\r\n")},
		{"S2", "a request in a chunk", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n")},
		{"S3", "xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")},
		{"S3", "chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")},
		{"S3", "identity, chunked", post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n")},
		{"S3", "two lines", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")},
		{"S3", "quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")},
		{"S3", "empty", post("Transfer-Encoding:\r\n", "0\r\n\r\n")},
		{"S4", "space before the colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")},
		{"S4", "tab before the colon", post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n")},
		{"S4", "vertical tab before the value", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n")},
		{"S4", "vertical tab in the name", post("Transfer\x0b-Encoding: chunked\r\n", "0\r\n\r\n")},
		{"S4", "NUL in the name", post("Transfer\x00-Encoding: chunked\r\n", "0\r\n\r\n")},
		{"S5", "two lengths", post("Content-Length: 1\r\nContent-Length: 2\r\n", "ab")},
		{"S5", "list", post("Content-Length: 5, 5\r\n", "hello")},
		{"S5", "plus", post("Content-Length: +1\r\n", "a")},
		{"S5", "hexadecimal", post("Content-Length: 0x1\r\n", "a")},
		{"S5", "space behind", post("Content-Length: 1 \r\n", "a")},
		{"S5", "negative", post("Content-Length: -1\r\n", "a")},
		{"S5", "20 digits", post("Content-Length: 99999999999999999999\r\n", "a")},
		{"S7", "bare LF", "GET / HTTP/1.1\nHost: gw.example\n\n"},
		{"S7", "bare LF in one line", "GET / HTTP/1.1\r\n" + gw + "X: y\n\r\n"},
		{"S7", "bare CR", "GET / HTTP/1.1\r\n" + gw + "X: a\rb\r\n\r\n"},
		{"S7", "CR CR LF", "GET / HTTP/1.1\r\r\n" + gw + "\r\n"},
		{"S8", "folded", "GET / HTTP/1.1\r\n" + gw + "X: a\r\n b\r\n\r\n"},
		{"S8", "folded coding", post("Transfer-Encoding:\r\n\tchunked\r\n", "0\r\n\r\n")},
		{"S9", "NUL in a value", "GET / HTTP/1.1\r\n" + gw + "X: a\x00b\r\n\r\n"},
		{"S9", "CR in a value", "GET / HTTP/1.1\r\n" + gw + "X: a\rX-Consumer-ID: 1\r\n\r\n"},
		{"S10", "no Host", "GET / HTTP/1.1\r\n\r\n"},
		{"S10", "two Hosts", "GET / HTTP/1.1\r\n" + gw + "Host: b\r\n\r\n"},
		{"S10", "userinfo", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"},
		{"S10", "path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"},
		{"S10", "space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"},
		{"S12", "CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + gw + "\r\n"},
		{"S12", "authority form", "GET internal:22 HTTP/1.1\r\n" + gw + "\r\n"},
		{"S13", "HTTP/1.0 with chunked", "POST / HTTP/1.0\r\n" + gw + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"S13", "HTTP/0.9", "GET /\r\n\r\n"},
		{"S13", "HTTP/1.10", "GET / HTTP/1.10\r\n" + gw + "\r\n"},
		{"S13", "HTTP/2.0", "GET / HTTP/2.0\r\n" + gw + "\r\n"},
		{"S13", "two spaces", "GET  / HTTP/1.1\r\n" + gw + "\r\n"},
	} {
		list = append(list, attack{row: v.row, name: v.name, send: v.send + get("/second")})
	}
	for _, v := range [][2]string{ // the head is fine: the upstream must never see the whole
		{"1 MB of extensions", "5;" + strings.Repeat("e", 1<<20) + "\r\nhello\r\n0\r\n\r\n"},
		{"many extensions", strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 1000) + "0\r\n\r\n"},
		{"0x5", "0x5\r\nhello\r\n0\r\n\r\n"}, {"negative", "-5\r\nhello\r\n0\r\n\r\n"}, {"bare LF", "5\nhello\r\n0\r\n\r\n"},
		{"bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"}, {"17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"},
		{"no CR LF behind data", "5\r\nhello0\r\n\r\n"}, {"too much data", "5\r\nhello world\r\n0\r\n\r\n"}, {"space behind the size", "5 \r\nhello\r\n0\r\n\r\n"},
	} {
		list = append(list, attack{row: "S6", name: v[0], send: chunked(v[1]) + get("/second"), codes: "400", cut: true})
	}
	return list
}

var framingScenes = map[string]func(*testing.T, *target){
	"S12 no open proxy": func(t *testing.T, g *target) {
		// The Host chooses among routes and nothing else: what answers is the configured upstream.
		raw(t, g.Proxy, "GET http://"+g.Admin+"/services HTTP/1.1\r\nHost: "+g.Admin+"\r\n\r\n")
		if _, seen := g.up.take(); fmt.Sprint(seen) != "[GET /services]" {
			t.Errorf("the upstream saw %q", seen)
		}
	},
	"S21 a client that expects 100 and sends nothing": func(t *testing.T, g *target) {
		c, err := net.Dial("tcp", g.second.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "POST /expect HTTP/1.1\r\n%sExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", gw)
		b, err := io.ReadAll(c)
		if !strings.Contains(string(b), "HTTP/1.1 408 ") || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			g.up.mu.Lock()
			waiting := strings.Contains(g.up.raw.String(), "/expect") && len(g.up.seen) == 0
			g.up.mu.Unlock()
			if !waiting {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the upstream still waits for the body")
			}
		}
		if _, seen := g.up.take(); fmt.Sprint(seen) != "[]" && fmt.Sprint(seen) != "[POST /expect cut]" {
			t.Errorf("the upstream saw %q", seen)
		}
	},
	"S22 upstreams that misbehave": func(t *testing.T, g *target) {
		ok := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
		answers := map[string]struct {
			bytes, want string // the client's status; " cut" when the body must end early
		}{
			"two":       {ok + "good" + ok + "evil", "200 good"},
			"length":    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", "502"},
			"both":      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "502"},
			"short":     {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "200 cut"},
			"chunk":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", "200 cut"},
			"flood":     {strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 5000), "502"},
			"continues": {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5000), "502"},
			"head":      {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", "502"},
			"fields":    {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 20000) + "\r\n", "502"},
			"line":      {"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n", "502"},
			"switch":    {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "502"},
			"garbage":   {"\x16\x03\x01", "502"},
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					br := bufio.NewReader(c)
					for {
						r, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						name := r.URL.Path[1:]
						if _, err := io.WriteString(c, answers[name].bytes); err != nil || name == "short" || name == "garbage" {
							return
						}
					}
				}()
			}
		}()
		if a := g.JSON("POST", "/services", `{"name":"evil","url":"http://`+l.Addr().String()+`","retries":0,"read_timeout":5000}`); a.Status != 201 {
			t.Fatal(a.Body)
		}
		last := g.JSON("POST", "/services/evil/routes", `{"paths":["/evil"]}`)
		g.Get("/", "X-Min-Config-Index", last.Index())
		before := rss(t, g.Node)
		for name, c := range answers {
			for range 3 { // again: nothing of the first answer may be left on a connection
				c0, err := net.Dial("tcp", g.Proxy)
				if err != nil {
					t.Fatal(err)
				}
				c0.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprint(c0, get("/evil/"+name, "Connection: close"))
				br := bufio.NewReader(c0)
				r, err := http.ReadResponse(br, nil)
				for err == nil && r.StatusCode < 200 {
					r, err = http.ReadResponse(br, nil)
				}
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				b, err := io.ReadAll(r.Body)
				got := fmt.Sprint(r.StatusCode)
				switch {
				case err != nil:
					got += " cut"
				case r.StatusCode == 200:
					got += " " + string(b)
				}
				if got != c.want {
					t.Errorf("%s: %s, want %s", name, got, c.want)
				}
				c0.Close()
			}
		}
		if after := rss(t, g.Node); after > before+64 {
			t.Errorf("from %d to %d MiB", before, after)
		}
		g.up.settle()
	},
}

package h1_test

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"concord/proxy/h1"
	"concord/proxy/upstream"
)

const okay = "GET /second HTTP/1.1\r\nHost: second.example\r\n\r\n"

// TestRejected sends messages that parsers are known to read differently. Each must be refused, the connection closed,
// what follows not be served, and nothing reach the upstream.
func TestRejected(t *testing.T) {
	post := func(fields, body string) string { return "POST / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" + body }
	get := func(fields string) string { return "GET / HTTP/1.1\r\n" + fields + "\r\n" }
	path := func(p string) string { return "GET " + p + " HTTP/1.1\r\nHost: a\r\n\r\n" }
	tests := []struct {
		name, raw string
		status    int // 0: 400
	}{
		{"S1 length and chunked", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG"), 0},
		{"S1 chunked and length", post("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nG"), 0},
		{"S2 TE.CL", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n"), 0},
		{"S3 xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 501},
		{"S3 chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 501},
		{"S3 identity, chunked", post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"), 501},
		{"S3 two lines", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 501},
		{"S3 two lines, one identity", post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 501},
		{"S3 quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 501},
		{"S3 empty", post("Transfer-Encoding:\r\n", "0\r\n\r\n"), 501},
		{"S3 gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 501},
		{"S4 space before colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 0},
		{"S4 tab before colon", post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n"), 0},
		{"S4 vertical tab in name", post("Transfer\x0b-Encoding: chunked\r\n", "0\r\n\r\n"), 0},
		{"S4 NUL in name", post("Transfer-Encoding\x00: chunked\r\n", "0\r\n\r\n"), 0},
		{"S4 vertical tab before value", post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), 0},
		{"S4 no colon", post("Transfer-Encoding\r\n", ""), 0},
		{"S4 empty name", post(": chunked\r\n", ""), 0},
		{"S5 different lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), 0},
		{"S5 equal lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), 0},
		{"S5 list", post("Content-Length: 5, 5\r\n", "hello"), 0},
		{"S5 plus", post("Content-Length: +5\r\n", "hello"), 0},
		{"S5 hexadecimal", post("Content-Length: 0x5\r\n", "hello"), 0},
		{"S5 space behind", post("Content-Length: 5 \r\n", "hello"), 0},
		{"S5 minus", post("Content-Length: -1\r\n", "hello"), 0},
		{"S5 20 digits", post("Content-Length: 00000000000000000005\r\n", "hello"), 0},
		{"S5 overflow", post("Content-Length: 18446744073709551621\r\n", "hello"), 0},
		{"S5 empty", post("Content-Length:\r\n", "hello"), 0},
		{"S7 bare LF", "GET / HTTP/1.1\nHost: a\n\n", 0},
		{"S7 bare LF in one line", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 0},
		{"S7 bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", 0},
		{"S7 bare CR", "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 0},
		{"S7 CR CR LF", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 0},
		{"S8 folded", get("Host: a\r\nX: 1\r\n 2\r\n"), 0},
		{"S8 folded with tab", get("Host: a\r\nTransfer-Encoding:\r\n\tchunked\r\n"), 501},
		{"S8 fold first", get(" Host: a\r\n"), 0},
		{"S9 NUL", get("Host: a\r\nX: a\x00b\r\n"), 0},
		{"S9 CR", get("Host: a\r\nX: a\rb\r\n"), 0},
		{"S9 DEL", get("Host: a\r\nX: a\x7fb\r\n"), 0},
		{"S9 control behind eight bytes", get("Host: a\r\nX: 1234567890\x01234567\r\n"), 0},
		{"S10 no Host", get("X: y\r\n"), 0},
		{"S10 two Hosts", get("Host: a\r\nHost: a\r\n"), 0},
		{"S10 Host with path", get("Host: a/b\r\n"), 0},
		{"S10 Host with space", get("Host: a b\r\n"), 0},
		{"S10 Host with user", get("Host: a@b\r\n"), 0},
		{"S10 Host list", get("Host: a,b:80:80\r\n"), 0},
		{"S10 Host with port text", get("Host: a:http\r\n"), 0},
		{"S10 empty Host", get("Host:\r\n"), 0},
		{"S10 open bracket", get("Host: [::1\r\n"), 0},
		{"S10 bracket and tail", get("Host: [::1]x\r\n"), 0},
		{"S10 brackets around no address", get("Host: [1]\r\n"), 0},
		{"S10 IPv4 in brackets", get("Host: [127.0.0.1]\r\n"), 0},
		{"S10 zone", get("Host: [fe80::1%25lo]\r\n"), 0},
		{"S10 bracket and port text", get("Host: [::1]:http\r\n"), 0},
		{"S10 half an escape", get("Host: a%4\r\n"), 0},
		{"S10 escape of no byte", get("Host: a%zz\r\n"), 0},
		{"S11 half an escape in target", "GET http://0%0000%0 HTTP/1.0\r\n\r\n", 0},
		{"S10 fragment", get("Host: a#b\r\n"), 0},
		{"S11 user in target", "GET http://user@b/ HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S11 other scheme", "GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S12 CONNECT", "CONNECT internal:22 HTTP/1.1\r\nHost: internal:22\r\n\r\n", 405},
		{"S12 authority form", "GET internal:22 HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S12 asterisk", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S13 HTTP/1.0 chunked", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0},
		{"S13 HTTP/0.9", "GET /\r\n", 0},
		{"S13 HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", 0},
		{"S13 HTTP/0.9 as a version", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505},
		{"S13 HTTP/1.x", "GET / HTTP/1.x\r\nHost: a\r\n\r\n", 0},
		{"S13 HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
		{"S13 HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		{"S13 lower case", "GET / http/1.1\r\nHost: a\r\n\r\n", 0},
		{"S13 two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S13 space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S13 tab", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S13 space behind", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 0},
		{"S13 method with CTL", "GE\x01T / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"S21 other expectation", post("Expect: 200-maybe\r\nContent-Length: 2\r\n", "hi"), 417},
		{"P1 %00", path("/admin%00"), 0},
		{"P1 backslash", path(`/x\..\admin`), 0},
		{"P1 fragment", path("/admin#x"), 0},
		{"P4 wrong escape", path("/a%zz"), 0},
		{"P4 short escape", path("/a%4"), 0},
		{"P4 DEL", path("/a\x7f"), 0},
		{"P4 NUL", path("/a\x00"), 0},
		{"H10 long target", path("/" + strings.Repeat("a", 64<<10)), 414},
		{"H10 large header", get("Host: a\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n"), 431},
		{"H10 long Connection", get("Host: a\r\nConnection: " + strings.Repeat("x,", 1000) + "\r\n"), 431},
		{"H10 many Connections", get("Host: a\r\n" + strings.Repeat("Connection: x\r\n", 5)), 431},
		{"H10 many headers", get("Host: a\r\n" + strings.Repeat("X: y\r\n", 10_000)), 431},
	}
	for _, tt := range tests {
		want := tt.status
		if want == 0 {
			want = 400
		}
		t.Run(tt.name, func(t *testing.T) {
			backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) { rejected(t, tt.raw, want, set) })
		})
	}
}

func rejected(t *testing.T, raw string, want int, set func(*h1.Options, *upstream.Options, *plain)) {
	rec := newRecorder(t, nil)
	addr, _, _ := start(t, rec.ln.Addr(), set)
	t.Run("at once", func(t *testing.T) {
		got := talk(t, addr, raw+okay)
		codes, _ := statuses(t, got)
		if len(codes) != 1 || codes[0] != want {
			t.Errorf("got statuses %v, want one %d: %.300q", codes, want, got)
		}
		if !strings.Contains(got, "\r\nConnection: close\r\n") {
			t.Errorf("no Connection: close in %.300q", got)
		}
		if b := rec.bytes(); b != "" {
			t.Fatalf("the upstream received %.300q", b)
		}
	})
	// The same bytes one by one: the end of a read must not matter.
	if len(raw) < 500 {
		t.Run("slowly", func(t *testing.T) {
			c := dial(t, addr)
			for i := range len(raw) {
				if _, err := c.Write([]byte{raw[i]}); err != nil {
					break
				}
			}
			_ = c.CloseWrite()
			got, _ := io.ReadAll(c)
			if !strings.HasPrefix(string(got), fmt.Sprintf("HTTP/1.1 %d ", want)) {
				t.Errorf("got %q, want %d", got, want)
			}
			if b := rec.bytes(); b != "" {
				t.Fatalf("the upstream received %.300q", b)
			}
		})
	}
}

// TestBrokenChunks: the head is fine, the body is not: the upstream must never see a complete request.
func TestBrokenChunks(t *testing.T) {
	tests := []struct{ name, body string }{
		{"S6 large extension", "5;" + strings.Repeat("e", 1<<20) + "\r\nhello\r\n0\r\n\r\n"},
		{"S6 many small extensions", strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 1000) + "0\r\n\r\n"},
		{"S6 0x5", "0x5\r\nhello\r\n0\r\n\r\n"},
		{"S6 minus", "-5\r\nhello\r\n0\r\n\r\n"},
		{"S6 plus", "+5\r\nhello\r\n0\r\n\r\n"},
		{"S6 bare LF", "5\nhello\r\n0\r\n\r\n"},
		{"S6 bare LF in extension", "5;a\nhello\r\n0\r\n\r\n"},
		{"S6 bare CR in extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"},
		{"S6 17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"},
		{"S6 space behind size", "5 \r\nhello\r\n0\r\n\r\n"},
		{"S6 space before size", " 5\r\nhello\r\n0\r\n\r\n"},
		{"S6 no CR LF behind data", "5\r\nhello0\r\n\r\n"},
		{"S6 LF behind data", "5\r\nhello\n0\r\n\r\n"},
		{"S6 too much data", "5\r\nhello world\r\n0\r\n\r\n"},
		{"S6 empty size", "\r\nhello\r\n0\r\n\r\n"},
		{"S6 bare LF at the end", "5\r\nhello\r\n0\r\n\n"},
		{"S6 folded trailer", "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n"},
		{"S6 trailer without colon", "5\r\nhello\r\n0\r\nA\r\n\r\n"},
		{"S6 large trailer", "5\r\nhello\r\n0\r\n" + strings.Repeat("A: b\r\n", 5000) + "\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
				rec := newRecorder(t, nil)
				addr, _, _ := start(t, rec.ln.Addr(), set)
				got := talk(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+tt.body+okay)
				codes, _ := statuses(t, got)
				if len(codes) != 1 || codes[0] != 400 && codes[0] != 431 {
					t.Errorf("got statuses %v: %.300q", codes, got)
				}
				if b := rec.bytes(); strings.Contains(b, "\r\n0\r\n") || strings.Contains(b, "second") {
					t.Errorf("the upstream received a whole request: %.300q", b)
				}
			})
		})
	}
}

// TestAccepted checks what does reach the upstream, byte for byte where it matters.
func TestAccepted(t *testing.T) {
	tests := []struct {
		name, raw string
		methods   []string
		codes     []int
		has, not  []string // in what the upstream received
	}{
		{name: "S11 target host wins", raw: "GET http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200},
			has: []string{"GET /x?y HTTP/1.1\r\nHost: b.example:81\r\n"}, not: []string{"Host: a\r\n"}},
		{name: "S11 target without path", raw: "GET http://b.example?y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200},
			has: []string{"GET /?y HTTP/1.1\r\nHost: b.example\r\n"}},
		{name: "S14 GET with body and a second request", raw: "GET /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" +
			"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200, 200}, has: []string{"GET /1 ", "hello", "GET /2 "}},
		{name: "S16 h2c", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n" +
			"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200, 200}, not: []string{"h2c", "HTTP2", "Upgrade", "upgrade"}},
		{name: "S16 H2C in a list", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket, H2C\r\n\r\n", codes: []int{200},
			not: []string{"H2C", "Upgrade"}},
		{name: "S16 h2c with a version in a list", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: foo/2 ,\th2c/1\r\n\r\n", codes: []int{200},
			not: []string{"h2c", "Upgrade"}},
		{name: "S16 HTTP in a list", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: foo,HTTP/2.0\r\n\r\n", codes: []int{200},
			not: []string{"HTTP/2.0", "Upgrade"}},
		{name: "S16 h2c in another field", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: foo\r\nUpgrade: h2c\r\n\r\n", codes: []int{200},
			not: []string{"h2c", "Upgrade"}},
		{name: "protocols in several fields", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: foo/2\r\nUpgrade: bar\r\n\r\n", codes: []int{200},
			has: []string{"Connection: keep-alive, Upgrade\r\nUpgrade: foo/2, bar\r\n"}},
		{name: "a higher minor version", raw: "GET / HTTP/1.2\r\nHost: a\r\n\r\nGET / HTTP/1.9\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200, 200},
			has: []string{"GET / HTTP/1.1\r\n"}, not: []string{"HTTP/1.2", "HTTP/1.9"}},
		{name: "several protocols", raw: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: foo/2, bar\r\n\r\n", codes: []int{200},
			has: []string{"Connection: keep-alive, Upgrade\r\nUpgrade: foo/2, bar\r\n"}},
		{name: "S23 trailers", raw: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
			"2\r\nhi\r\n0\r\nAuthorization: x\r\nX-Consumer-ID: x\r\nx_consumer_id: x\r\nContent-Length: 5\r\nHost: evil\r\nX-Sum: 1\r\n\r\n", codes: []int{200},
			has: []string{"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"}, not: []string{"Authorization", "onsumer", "evil"}},
		{name: "H5 hop by hop", raw: "GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: timeout=5\r\nProxy-Connection: y\r\nTE: gzip\r\n" +
			"Trailer: z\r\nUpgrade: foo\r\nProxy: evil\r\nConnection: close\r\nX: kept\r\n\r\n", codes: []int{200},
			has: []string{"X: kept\r\n"}, not: []string{"Keep-Alive", "Proxy", "TE:", "Trailer", "Upgrade", "foo"}},
		{name: "H3 named in Connection", raw: "GET / HTTP/1.1\r\nHost: a\r\nX-Drop: 1\r\nX-Drop-Too: 1\r\nX-Keep: 1\r\nConnection: close ,\tx-drop, X-DROP-TOO\r\n\r\n",
			codes: []int{200}, has: []string{"X-Keep"}, not: []string{"X-Drop", "x-drop"}},
		{name: "H4 end-to-end fields named in Connection", raw: "POST / HTTP/1.1\r\nHost: a\r\nAuthorization: b\r\nX-Forwarded-For: 1\r\nContent-Length: 2\r\n" +
			"Connection: close, authorization, x-forwarded-for, host, content-length\r\n\r\nhi", codes: []int{200},
			has: []string{"Host: a\r\n", "Authorization: b\r\n", "X-Forwarded-For: 1\r\n", "Content-Length: 2\r\n", "\r\n\r\nhi"}},
		{name: "TE trailers", raw: "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n", codes: []int{200},
			has: []string{"TE: trailers\r\nConnection: keep-alive, TE\r\n"}},
		{name: "empty line before the request", raw: "\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET / "}},
		{name: "HTTP/1.0 without Host", raw: "GET /old HTTP/1.0\r\n\r\n", codes: []int{200}, has: []string{"GET /old HTTP/1.1\r\n"}},
		{name: "OPTIONS asterisk", raw: "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"OPTIONS * HTTP/1.1\r\n"}},
		{name: "HEAD", raw: "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", methods: []string{"HEAD"}, codes: []int{200}, has: []string{"HEAD / "}},
		{name: "POST without body", raw: "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"Content-Length: 0\r\n"}},
		{name: "P1 dot segments", raw: "GET /x/../%61dmin/./b//c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /admin/b/c HTTP/1.1\r\n"}},
		{name: "P1 encoded dot segments", raw: "GET /%2e%2e/a/%2E/b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /a/b HTTP/1.1\r\n"}},
		{name: "P2 double encoding", raw: "GET /%252e%252e/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /%252e%252e/x HTTP/1.1\r\n"}},
		{name: "P1 escaped separators stay escaped", raw: "GET /a%2fb%5cc%23d%3be HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /a%2Fb%5Cc%23d%3Be HTTP/1.1\r\n"}},
		{name: "P4 overlong", raw: "GET /%c0%ae/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /%C0%AE/x HTTP/1.1\r\n"}},
		{name: "P4 bytes above 0x7f", raw: "GET /\xc0\xae\xc0\xae/caf\xc3\xa9?q=\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /%C0%AE%C0%AE/caf%C3%A9?q=%FF HTTP/1.1\r\n"}},
		{name: "P4 newline", raw: "GET /a%0ab HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /a%0Ab HTTP/1.1\r\n"}},
		{name: "P8 query untouched", raw: "GET /?a=%2f&b=;&c=%zz&d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /?a=%2f&b=;&c=%zz&d HTTP/1.1\r\n"}},
		{name: "bare question mark", raw: "GET /a? HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"GET /a? HTTP/1.1\r\n"}},
		{name: "chunked", raw: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\nConnection: close\r\n\r\n3;ext=\"v\"\r\nabc\r\n0A\r\n0123456789\r\n000\r\n\r\n",
			codes: []int{200}, has: []string{"Transfer-Encoding: chunked\r\n", "abc", "0123456789", "0\r\n\r\n"}, not: []string{"ext"}},
		{name: "chunked, then another", raw: "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
			codes: []int{200, 200}, has: []string{"POST /1 ", "GET /2 "}},
		{name: "large head", raw: "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
			codes: []int{200, 200}, has: []string{strings.Repeat("x", 40<<10), "GET /2 "}},
		{name: "duplicates and case kept", raw: "GET / HTTP/1.1\r\nHost: a\r\nx-A: 1\r\nX-a: 2\r\nConnection: close\r\n\r\n", codes: []int{200}, has: []string{"x-A: 1\r\nX-a: 2\r\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
				rec := newRecorder(t, nil)
				addr, _, _ := start(t, rec.ln.Addr(), set)
				got := talk(t, addr, tt.raw)
				codes, _ := statuses(t, got, tt.methods...)
				if fmt.Sprint(codes) != fmt.Sprint(tt.codes) {
					t.Errorf("got statuses %v, want %v: %q", codes, tt.codes, got)
				}
				b := rec.bytes()
				for _, s := range tt.has {
					if !strings.Contains(b, s) {
						t.Errorf("the upstream did not receive %q but %q", s, b)
					}
				}
				for _, s := range tt.not {
					if strings.Contains(b, s) {
						t.Errorf("the upstream received %q in %q", s, b)
					}
				}
			})
		})
	}
}

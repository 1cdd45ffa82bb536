package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

// recorder is an upstream that keeps every byte it receives and answers each request it can make out.
type recorder struct {
	addr string
	mu   sync.Mutex
	got  bytes.Buffer
}

func startRecorder(t *testing.T) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &recorder{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(io.TeeReader(c, writerFunc(func(p []byte) (int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.got.Write(p)
	})))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		// An upgrade is refused with a plain answer: no tunnel may come of it.
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Path: %s\r\n\r\nok", req.URL.RequestURI())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.got.String()
	r.got.Reset()
	return s
}

// raw sends bytes and returns the status codes of the answers until the gateway closes or is quiet.
func raw(t *testing.T, addr, bytes string) (codes []int, text string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	go io.WriteString(c, bytes)
	br := bufio.NewReader(io.TeeReader(c, writerFunc(func(p []byte) (int, error) { text += string(p); return len(p), nil })))
	for {
		c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		tp := textproto.NewReader(br)
		line, err := tp.ReadLine()
		if err != nil {
			return codes, text
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			return codes, text
		}
		code, _ := strconv.Atoi(f[1])
		h, err := tp.ReadMIMEHeader()
		codes = append(codes, code)
		if err != nil {
			return codes, text
		}
		if code >= 200 && code != 204 && code != 304 {
			n, _ := strconv.Atoi(h.Get("Content-Length"))
			io.CopyN(io.Discard, br, int64(n))
		}
	}
}

// TestAttacks sends hostile bytes through a real node and judges by what the upstream received.
func TestAttacks(t *testing.T) {
	t.Parallel()
	up := startRecorder(t)
	n := harness.NewNode(t, "solo")
	n.Start()
	var last harness.Answer
	for _, s := range [][2]string{
		{"/services", `{"name":"open","url":"http://` + up.addr + `"}`},
		{"/services/open/routes", `{"paths":["/"],"name":"open"}`},
		{"/services", `{"name":"closed","url":"http://` + up.addr + `/closed"}`},
		{"/services/closed/routes", `{"paths":["/admin"],"name":"closed"}`},
		{"/services/closed/plugins", `{"name":"key-auth"}`},
		{"/services", `{"name":"strip","url":"http://` + up.addr + `/base"}`},
		{"/services/strip/routes", `{"paths":["/api"],"name":"strip"}`},
		{"/services", `{"name":"host","url":"http://` + up.addr + `/host"}`},
		{"/services/host/routes", `{"hosts":["api.example.com"],"name":"host"}`},
	} {
		if last = n.JSON("POST", s[0], s[1]); last.Status != 201 {
			t.Fatal(s, last.Status, last.Body)
		}
	}
	if a := n.Get("/", "X-Min-Config-Index", last.Index()); a.Status != 200 {
		t.Fatal(a.Status, a.Body)
	}
	up.take()

	const host = "Host: gw.example\r\n"
	reject := []struct{ name, bytes string }{
		{"S1 CL and TE", "POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"},
		{"S2 TE and short CL", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n"},
		{"S3 xchunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
		{"S3 chunked, identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
		{"S3 identity, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"},
		{"S3 two TE lines", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"S4 space before colon", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
		{"S4 tab before colon", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"},
		{"S4 vertical tab in value", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
		{"S4 NUL in name", "POST / HTTP/1.1\r\n" + host + "Transfer\x00-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"S5 two CL", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
		{"S5 +1", "POST / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na"},
		{"S5 hex", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x1\r\n\r\na"},
		{"S5 negative", "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\na"},
		{"S5 20 digits", "POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\na"},
		{"S6 0x5", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"},
		{"S7 bare LF", "GET / HTTP/1.1\n" + "Host: gw.example\n\n"},
		{"S7 bare CR", "GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n"},
		{"S8 folding", "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n"},
		{"S9 NUL in value", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n"},
		{"S10 no Host", "GET / HTTP/1.1\r\n\r\n"},
		{"S10 two Hosts", "GET / HTTP/1.1\r\n" + host + "Host: b\r\n\r\n"},
		{"S10 userinfo", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"},
		{"S10 path in Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"},
		{"S13 1.0 with TE", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"S13 0.9", "GET /\r\n\r\n"},
		{"S13 1.10", "GET / HTTP/1.10\r\n" + host + "\r\n"},
		{"S13 2.0", "GET / HTTP/2.0\r\n" + host + "\r\n"},
		{"S12 CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + host + "\r\n"},
		{"P1 %2f", "GET /admin%2f HTTP/1.1\r\n" + host + "\r\n"},
		{"P1 %00", "GET /admin%00 HTTP/1.1\r\n" + host + "\r\n"},
		{"P1 %5c", "GET /admin%5c HTTP/1.1\r\n" + host + "\r\n"},
		{"P1 fragment", "GET /admin#x HTTP/1.1\r\n" + host + "\r\n"},
		{"P3 encoded slash", "GET /api%2f..%2fadmin HTTP/1.1\r\n" + host + "\r\n"},
		{"P4 bad escape", "GET /%zz HTTP/1.1\r\n" + host + "\r\n"},
		{"H2 space after the name", "GET / HTTP/1.1\r\n" + host + "X-Consumer-ID : 1\r\n\r\n"},
	}
	for _, c := range reject {
		codes, text := raw(t, n.Proxy, c.bytes)
		if len(codes) != 1 || codes[0] < 400 || codes[0] > 501 {
			t.Errorf("%s: answers %v, want one refusal: %q", c.name, codes, text)
		}
		if strings.HasPrefix(c.name, "S6") { // found in the body, when the head is already on its way
			time.Sleep(100 * time.Millisecond)
			if got := up.take(); strings.Contains(got, "hello") {
				t.Errorf("%s: the upstream received %q", c.name, got)
			}
			continue
		}
		if got := up.take(); got != "" {
			t.Errorf("%s: the upstream received %q", c.name, got)
		}
	}

	t.Run("P1 protected paths", func(t *testing.T) {
		for _, p := range []string{"/admin", "/%61dmin", "//admin", "/./admin", "/x/../admin", "/admin/.", "/%2e%2e/admin", "/admin?..", "/x/%2e%2e/admin", "/admin//"} {
			codes, _ := raw(t, n.Proxy, "GET "+p+" HTTP/1.1\r\n"+host+"\r\n")
			if len(codes) != 1 || codes[0] != 401 {
				t.Errorf("%s: %v, want 401", p, codes)
			}
			if got := up.take(); got != "" {
				t.Errorf("%s reached the upstream: %q", p, got)
			}
		}
		// Other spellings may be other paths, but then the upstream must see that other path and never /admin itself.
		for _, p := range []string{"/ADMIN", "/admin;x", "/%2561dmin"} {
			raw(t, n.Proxy, "GET "+p+" HTTP/1.1\r\n"+host+"\r\n")
			if got := up.take(); strings.HasPrefix(got, "GET /admin ") || strings.HasPrefix(got, "GET /closed") {
				t.Errorf("%s reached the protected path: %q", p, got)
			}
		}
	})
	t.Run("P2 double encoding is not decoded twice", func(t *testing.T) {
		raw(t, n.Proxy, "GET /x/%252e%252e/admin HTTP/1.1\r\n"+host+"\r\n")
		if got := up.take(); !strings.HasPrefix(got, "GET /x/%252e%252e/admin ") && !strings.HasPrefix(got, "GET /x/%252E%252E/admin ") {
			t.Errorf("upstream received %q", got)
		}
	})
	t.Run("P3 strip_path stays below the service path", func(t *testing.T) {
		for _, p := range []string{"/api../admin", "/apiadmin", "/api/..%2e/admin", "/api/x/../../api/y"} {
			raw(t, n.Proxy, "GET "+p+" HTTP/1.1\r\n"+host+"\r\n")
			got := up.take()
			if got != "" && !strings.HasPrefix(got, "GET /base/") {
				t.Errorf("%s: upstream received %q", p, got)
			}
			if strings.Contains(strings.SplitN(got, "\r\n", 2)[0], "..") && !strings.Contains(p, "%2e") {
				t.Errorf("%s: dot segment upstream: %q", p, got)
			}
		}
	})
	t.Run("P5 spellings of a host", func(t *testing.T) {
		for _, h := range []string{"api.example.com", "API.Example.COM", "api.example.com.", "api.example.com:8000"} {
			raw(t, n.Proxy, "GET /h HTTP/1.1\r\nHost: "+h+"\r\n\r\n")
			if got := up.take(); !strings.HasPrefix(got, "GET /host/h ") {
				t.Errorf("%s: upstream received %q", h, got)
			}
		}
	})
	t.Run("S11 absolute form: the target's host wins", func(t *testing.T) {
		raw(t, n.Proxy, "GET http://api.example.com/abs HTTP/1.1\r\nHost: other.example\r\n\r\n")
		if got := up.take(); !strings.HasPrefix(got, "GET /host/abs ") || strings.Contains(got, "other.example") {
			t.Errorf("upstream received %q", got)
		}
	})
	t.Run("S12 no open proxy", func(t *testing.T) {
		raw(t, n.Proxy, "GET http://127.0.0.1:"+strings.Split(n.Admin, ":")[1]+"/services HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		if got := up.take(); got != "" && !strings.HasPrefix(got, "GET /services ") {
			t.Errorf("upstream received %q", got)
		}
	})
	t.Run("S14 a body does not hide the next request", func(t *testing.T) {
		codes, _ := raw(t, n.Proxy, "GET /a HTTP/1.1\r\n"+host+"Content-Length: 5\r\n\r\nhelloGET /admin HTTP/1.1\r\n"+host+"\r\n")
		if fmt.Sprint(codes) != "[200 401]" {
			t.Errorf("answers %v", codes)
		}
		if got := up.take(); strings.Contains(got, "/closed") || strings.Contains(got, "GET /admin") {
			t.Errorf("upstream received %q", got)
		}
	})
	t.Run("S15 no tunnel before 101", func(t *testing.T) {
		raw(t, n.Proxy, "GET /ws HTTP/1.1\r\n"+host+"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\nGET /admin HTTP/1.1\r\n"+host+"\r\n")
		if got := up.take(); strings.Contains(got, "/admin") {
			t.Errorf("smuggled behind a refused upgrade: %q", got)
		}
	})
	t.Run("S16 h2c is not forwarded", func(t *testing.T) {
		raw(t, n.Proxy, "GET /x HTTP/1.1\r\n"+host+"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
		if got := strings.ToLower(up.take()); strings.Contains(got, "h2c") || strings.Contains(got, "http2-settings") {
			t.Errorf("upstream received %q", got)
		}
	})
	t.Run("H1-H3 identity headers of clients", func(t *testing.T) {
		for _, h := range []string{"X-Consumer-ID: 1", "X-Consumer-Username: root", "X-Consumer-Custom-ID: 1", "X-Credential-Identifier: 1", "X-Authenticated-Userid: 1",
			"X-Authenticated-Scope: all", "X-Anonymous-Consumer: true", "X-Consumer-Groups: admin", "X_Consumer_Id: 1", "x-consumer-id: 1", "x_consumer_username: root", "X-Userinfo: 1", "X-Access-Token: 1", "X-ID-Token: 1"} {
			codes, _ := raw(t, n.Proxy, "GET /x HTTP/1.1\r\n"+host+h+"\r\n\r\n")
			name := strings.ToLower(strings.ReplaceAll(strings.SplitN(h, ":", 2)[0], "_", "-"))
			if got := strings.ReplaceAll(strings.ToLower(up.take()), "_", "-"); got == "" || strings.Contains(got, name+":") {
				t.Errorf("%s (%v): upstream received %q", h, codes, got)
			}
		}
	})
	t.Run("H4 H5 hop-by-hop", func(t *testing.T) {
		raw(t, n.Proxy, "GET /x HTTP/1.1\r\n"+host+"Connection: close, X-Forwarded-For, x-secret , Host\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic eDp5\r\nProxy-Connection: close\r\nTE: gzip\r\nTrailer: X\r\nUpgrade: foo\r\n\r\n")
		got := strings.ToLower(up.take())
		for _, bad := range []string{"x-secret:", "keep-alive: 5", "proxy-connection:", "proxy-authorization:", "te: gzip", "upgrade: foo"} {
			if strings.Contains(got, bad) {
				t.Errorf("upstream received %s: %q", bad, got)
			}
		}
		if !strings.Contains(got, "x-forwarded-for: 127.0.0.1\r\n") || !strings.Contains(got, "host: ") {
			t.Errorf("lost what the gateway sets: %q", got)
		}
	})
	t.Run("H8 forwarded headers of an untrusted peer", func(t *testing.T) {
		raw(t, n.Proxy, "GET /x HTTP/1.1\r\n"+host+"X-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /evil\r\nX-Forwarded-Path: /evil\r\n\r\n")
		got := strings.ToLower(up.take())
		for _, want := range []string{"x-forwarded-for: 1.2.3.4, 127.0.0.1\r\n", "x-real-ip: 127.0.0.1\r\n", "x-forwarded-proto: http\r\n", "x-forwarded-host: gw.example\r\n", "x-forwarded-path: /x\r\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
		if strings.Contains(got, "evil") {
			t.Errorf("spoofed values reached the upstream: %q", got)
		}
	})
}

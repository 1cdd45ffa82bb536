package h3_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/h3"
	"concord/proxy/listen"
	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

// handler is an exchange.Handler made of functions.
type handler struct {
	serve    func(*exchange.Exchange)
	finished atomic.Int64
}

func (h *handler) Serve(x *exchange.Exchange) { h.serve(x) }

func (h *handler) Finish(*exchange.Exchange) { h.finished.Add(1) }

// gate lets max connections in.
type gate struct{ max, open, serial atomic.Int64 }

func (g *gate) Enter() (uint64, bool) {
	if g.open.Add(1) > g.max.Load() {
		g.open.Add(-1)
		return 0, false
	}
	return uint64(g.serial.Add(1)), true
}

func (g *gate) Leave() { g.open.Add(-1) }

// fixture is a server with a client.
type fixture struct {
	handler  *handler
	gate     *gate
	server   *h3.Server
	listener *h3.Listener
	client   *http3.Transport
	url      string
}

func start(t *testing.T, serve func(*exchange.Exchange), set func(*h3.Options)) *fixture {
	t.Helper()
	f := &fixture{handler: &handler{serve: serve}, gate: &gate{}}
	f.gate.max.Store(1000)
	o := h3.Options{Handler: f.handler}
	if set != nil {
		set(&o)
	}
	f.server = h3.New(o)
	f.client = newClient()
	f.listen(t, nil, nil)
	return f
}

// listen serves on a socket of its own, or on an inherited one.
func (f *fixture) listen(t *testing.T, from *listen.Inherited, tune func(*tls.Config)) {
	t.Helper()
	cert, err := listen.DefaultCertificate(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	specs, err := listen.Parse("127.0.0.1:0 ssl http3")
	if err != nil {
		t.Fatal(err)
	}
	config := listen.TLSConfig(listen.TLSOptions{Default: cert})
	if tune != nil {
		tune(config)
	}
	f.listener, err = h3.Listen(context.Background(), h3.ListenOptions{
		Spec: specs[0], Server: f.server, TLS: config, Gate: f.gate, Secret: []byte("secret"), Inherited: from,
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- f.listener.Serve() }()
	f.url = "https://" + f.listener.Addr().String()
	t.Cleanup(func() {
		_ = f.client.Close()
		f.listener.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := f.server.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		f.listener.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// patient is for clients on a busy machine.
var patient = &quic.Config{HandshakeIdleTimeout: 30 * time.Second, MaxIdleTimeout: 60 * time.Second}

func newClient() *http3.Transport {
	return &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}, QUICConfig: patient, DisableCompression: true}
}

func (f *fixture) do(t *testing.T, r *http.Request) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	res, err := f.client.RoundTrip(r.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, b
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tell answers with what the handler was given.
func tell(x *exchange.Exchange) {
	var b strings.Builder
	q := &x.Request
	fmt.Fprintf(&b, "%s %s %s %s HTTP/%d.%d length %d body %v te %v tls %v sni %s peer %v requests %d\n",
		q.Method, q.Scheme, q.Path, q.RawQuery, q.Major, q.Minor, q.Length, q.Body != nil, q.TETrailers, x.Conn.TLS != nil, x.Conn.SNI, x.Conn.Peer.Addr(), x.Conn.Requests)
	for _, h := range q.Header.Fields {
		if h.Name != "Host" && h.Name != "User-Agent" {
			fmt.Fprintf(&b, "%s: %s\n", h.Name, h.Value)
		}
	}
	x.Response.Status = http.StatusOK
	x.Response.Header.Add("x-A", "1")
	x.Response.Header.Add("X-a", "2")
	x.Response.Header.Add("Connection", "x-b")
	x.Response.SetBody([]byte(b.String()))
}

func TestRequest(t *testing.T) {
	f := start(t, tell, nil)
	r := request(t, "GET", f.url+"/a/./b?q=1", nil)
	r.Header = http.Header{"B": {"1", "2"}, "A": {"3"}, "Te": {"trailers"}, "Cookie": {"a=b", "c=d"}, "Proxy": {"x"}}
	res, body := f.do(t, r)
	want := "GET https /a/b q=1 HTTP/3.0 length 0 body false te true tls true sni localhost peer 127.0.0.1 requests 1\nA: 3\nB: 1\nB: 2\nCookie: a=b; c=d\n"
	if string(body) != want {
		t.Errorf("got\n%s\nwant\n%s", body, want)
	}
	if got := res.Header; got.Get("Date") == "" || fmt.Sprint(got["X-A"]) != "[1 2]" || got["Connection"] != nil || got["Content-Type"] != nil || res.ContentLength != int64(len(want)) {
		t.Errorf("header %v", got)
	}
	if _, body = f.do(t, request(t, "POST", f.url+"/", strings.NewReader("x"))); !strings.Contains(string(body), "length 1 body true") {
		t.Errorf("POST: %s", body)
	}
	if res, body = f.do(t, request(t, "HEAD", f.url+"/", nil)); len(body) > 0 || res.ContentLength < 50 {
		t.Errorf("HEAD: %d bytes, length %d", len(body), res.ContentLength)
	}
	if n := f.handler.finished.Load(); n != 3 {
		t.Errorf("%d exchanges were finished", n)
	}
}

// echo sends the request body back.
func echo(x *exchange.Exchange) {
	x.Response.Status = http.StatusOK
	x.Response.Body, x.Response.Length = x.Request.Body, x.Request.Length
	if x.Request.Header.Has("X-Trailers") {
		x.Response.Body, x.Response.Length = &trailing{x.Request.Body, x}, -1
	}
}

// trailing sends the trailers of the request back.
type trailing struct {
	exchange.Body
	x *exchange.Exchange
}

func (b *trailing) Next() ([]byte, error) {
	p, err := b.Body.Next()
	if err == io.EOF {
		b.x.Response.Trailer.Fields = append(b.x.Response.Trailer.Fields, b.x.Request.Trailer.Fields...)
	}
	return p, err
}

func TestBodies(t *testing.T) {
	f := start(t, echo, nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 10<<20/16)
	res, got := f.do(t, request(t, "POST", f.url, bytes.NewReader(big)))
	if !bytes.Equal(got, big) || res.ContentLength != int64(len(big)) {
		t.Errorf("10 MiB: %d bytes came back, length %d", len(got), res.ContentLength)
	}
	r := request(t, "POST", f.url, io.MultiReader(strings.NewReader("hello "), strings.NewReader("world")))
	r.Header.Set("X-Trailers", "yes")
	r.Trailer = http.Header{"Grpc-Status": {"0"}, "Content-Length": {"7"}}
	res, got = f.do(t, r)
	if string(got) != "hello world" || res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Content-Length") != "" {
		t.Errorf("%q with trailers %v", got, res.Trailer)
	}
	r = request(t, "POST", f.url, strings.NewReader("after 100"))
	r.Header.Set("Expect", "100-continue")
	if _, got = f.do(t, r); string(got) != "after 100" {
		t.Errorf("100-continue: %q", got)
	}
}

func TestGatewayAnswersGRPC(t *testing.T) {
	f := start(t, func(x *exchange.Exchange) {
		x.Response.Status = http.StatusTooManyRequests
		x.Response.SetBody([]byte(`{"message":"API rate limit exceeded"}`))
	}, nil)
	r := request(t, "POST", f.url+"/a.B/C", strings.NewReader("\x00\x00\x00\x00\x00"))
	r.Header.Set("Content-Type", "application/grpc")
	res, body := f.do(t, r)
	if len(body) > 0 || res.Header.Get("Grpc-Status") != "8" || res.Header.Get("Grpc-Message") != "API rate limit exceeded" || res.Header["Content-Length"] != nil {
		t.Errorf("%v %q", res.Header, body)
	}
}

func TestRefused(t *testing.T) {
	f := start(t, tell, func(o *h3.Options) { o.Limits = h1.Limits{HeadBytes: 4096, TargetBytes: 1000, Fields: 50} })
	many := http.Header{}
	for i := range 60 {
		many.Add("X", fmt.Sprint(i))
	}
	for _, c := range []struct {
		name   string
		method string
		path   string
		header http.Header
		want   int
	}{
		{"large head", "GET", "/", http.Header{"X": {strings.Repeat("x", 5000)}}, 431},
		{"larger head", "GET", "/", http.Header{"X": {strings.Repeat("x", 50000)}}, 431},
		{"many fields", "GET", "/", many, 431},
		{"long target", "GET", "/" + strings.Repeat("x", 1000), nil, 414},
		{"escapes", "GET", "/a%00b", nil, 400},
		{"expectation", "GET", "/", http.Header{"Expect": {"more"}}, 417},
		{"fine", "GET", "/", http.Header{"X": {strings.Repeat("x", 3000)}}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, c.method, f.url+c.path, nil)
			if c.header != nil {
				r.Header = c.header
			}
			if res, _ := f.do(t, r); res.StatusCode != c.want {
				t.Errorf("got %d, want %d", res.StatusCode, c.want)
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	var mu sync.Mutex
	running := 0
	all := make(chan struct{})
	f := start(t, func(x *exchange.Exchange) {
		mu.Lock()
		if running++; running == 100 {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
		case <-time.After(60 * time.Second):
		}
		tell(x)
	}, nil)
	var wg sync.WaitGroup
	var good atomic.Int64
	for range 100 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			r, _ := http.NewRequestWithContext(ctx, "GET", f.url, nil)
			if res, err := f.client.RoundTrip(r); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				good.Add(1)
			}
		})
	}
	wg.Wait()
	if good.Load() != 100 || running != 100 {
		t.Errorf("%d of 100 were answered, %d ran", good.Load(), running)
	}
}

// blocked is a response body that ends when it is closed.
type blocked struct {
	once   sync.Once
	closed chan struct{}
}

func (b *blocked) Next() ([]byte, error) {
	<-b.closed
	return nil, errors.New("closed")
}

func (b *blocked) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// TestClientLeaves: what runs for a client that has given up ends.
func TestClientLeaves(t *testing.T) {
	came, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	f := start(t, func(x *exchange.Exchange) {
		if x.Request.Path == "/wait" {
			left := make(chan struct{})
			x.OnGone(func() { close(left) })
			came <- struct{}{}
			<-left
			x.OnGone(nil)
			gone <- struct{}{}
			return
		}
		x.Response.Status = http.StatusOK
		x.Response.Body, x.Response.Length = &blocked{closed: make(chan struct{})}, -1
	}, nil)
	for _, path := range []string{"/wait", "/stream"} {
		ctx, cancel := context.WithCancel(context.Background())
		r, _ := http.NewRequestWithContext(ctx, "GET", f.url+path, nil)
		if path == "/wait" {
			go func() {
				<-came
				cancel()
			}()
			if res, err := f.client.RoundTrip(r); err == nil {
				t.Errorf("answered: %v", res.Status)
			}
			<-gone
			continue
		}
		res, err := f.client.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = res.Body.Close()
	}
	for end := time.Now().Add(60 * time.Second); f.handler.finished.Load() < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 2 exchanges were finished", f.handler.finished.Load())
		}
	}
}

// TestBroken: responses that are not what they announced are no complete ones.
func TestBroken(t *testing.T) {
	f := start(t, func(x *exchange.Exchange) {
		x.Response.Status = http.StatusOK
		switch x.Request.Path {
		case "/short":
			x.Response.SetBody([]byte("abc"))
			x.Response.Length = 5
		case "/long":
			x.Response.SetBody([]byte("abc"))
			x.Response.Length = 2
		case "/injected":
			x.Response.Header.Fields = append(x.Response.Header.Fields, exchange.Field{Name: "A", Value: "b\r\nc: d"})
		case "/panic":
			panic("handler")
		}
	}, nil)
	for _, path := range []string{"/short", "/long", "/panic"} {
		res, err := f.client.RoundTrip(request(t, "GET", f.url+path, nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		if err == nil {
			t.Errorf("%s: taken for complete", path)
		}
	}
	if res, _ := f.do(t, request(t, "GET", f.url+"/injected", nil)); res.StatusCode != 500 || len(res.Header["C"]) > 0 {
		t.Errorf("injection: %d %v", res.StatusCode, res.Header)
	}
}

// TestMalformed: what breaks a rule of HTTP/3 is no request, whatever it may mean to somebody behind.
func TestMalformed(t *testing.T) {
	var complete atomic.Int64
	f := start(t, func(x *exchange.Exchange) {
		if _, err := x.Request.Buffer(1 << 20); err == nil {
			complete.Add(1)
		}
		x.Response.Status = http.StatusNoContent
	}, nil)
	head := []string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/"}
	with := func(more ...string) []byte { return headers(append(append([]string{}, head...), more...)...) }
	for _, c := range []struct {
		name string
		sent []byte
		want http3.ErrCode // 0: it is fine
	}{
		{"fine", append(with("content-length", "3"), data("abc")...), 0},
		{"body is too short", append(with("content-length", "5"), data("abc")...), http3.ErrCodeMessageError},
		{"body is too long", append(with("content-length", "2"), data("abc")...), http3.ErrCodeMessageError},
		{"two lengths", append(with("content-length", "3", "content-length", "4"), data("abc")...), http3.ErrCodeMessageError},
		{"connection", with("connection", "x"), http3.ErrCodeMessageError},
		{"transfer-encoding", with("transfer-encoding", "chunked"), http3.ErrCodeMessageError},
		{"te", with("te", "gzip"), http3.ErrCodeMessageError},
		{"upper case", with("Abc", "x"), http3.ErrCodeMessageError},
		{"line break", with("abc", "x\r\nd: e"), http3.ErrCodeMessageError},
		{"pseudo field behind", with("abc", "x", ":path", "/b"), http3.ErrCodeMessageError},
		{"pseudo field twice", headers(append(head, ":path", "/b")...), http3.ErrCodeMessageError},
		{"status", headers(append(head, ":status", "200")...), http3.ErrCodeMessageError},
		{"no path", headers(head[:6]...), http3.ErrCodeMessageError},
		{"two hosts", with("host", "a", "host", "b"), http3.ErrCodeMessageError},
		{"host differs", with("host", "other"), http3.ErrCodeMessageError},
		{"CONNECT", headers(":method", "CONNECT", ":authority", "a:1"), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := raw(t, f, c.sent)
			if c.want == 0 && err != nil {
				t.Errorf("got %v", err)
			}
			if se, ok := errors.AsType[*quic.StreamError](err); c.want != 0 && (!ok || http3.ErrCode(se.ErrorCode) != c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if n := complete.Load(); n != 1 {
		t.Errorf("%d requests were taken for complete, 1 was", n)
	}
}

// headers is a HEADERS frame (RFC 9114 §7.2.2) of literal fields (RFC 9204 §4.5.6).
func headers(fields ...string) []byte {
	block := []byte{0, 0}
	for i, f := range fields {
		if i%2 == 0 {
			block = integer(block, 0x20, 3, len(f))
		} else {
			block = integer(block, 0, 7, len(f))
		}
		block = append(block, f...)
	}
	return append(quicvarint.Append([]byte{1}, uint64(len(block))), block...)
}

// integer is RFC 7541 §5.1.
func integer(b []byte, first byte, bits, n int) []byte {
	limit := 1<<bits - 1
	if n < limit {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(limit))
	for n -= limit; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(b, byte(n))
}

func data(s string) []byte { return append(quicvarint.Append([]byte{0}, uint64(len(s))), s...) }

// raw sends bytes on a stream, and returns how reading the answer fails.
func raw(t *testing.T, f *fixture, sent []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	qc, err := quic.DialAddr(ctx, f.listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, patient)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = qc.CloseWithError(0, "") }()
	str, err := qc.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := str.Write(sent); err != nil {
		t.Fatal(err)
	}
	_ = str.Close()
	_ = str.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err = io.ReadAll(str)
	return err
}

// TestClientCertificates: the rule for the name in the ClientHello holds, and the exchange tells whether there was one. Sessions are resumed,
// without 0-RTT.
func TestClientCertificates(t *testing.T) {
	f := &fixture{gate: &gate{}, client: newClient()}
	f.gate.max.Store(1000)
	f.handler = &handler{serve: func(x *exchange.Exchange) {
		x.Response.Status = http.StatusOK
		x.Response.SetBody(fmt.Appendf(nil, "%s asked %v, %d certificates, resumed %v", x.Conn.SNI, x.Conn.CertificateAsked, len(x.Conn.TLS.PeerCertificates), x.Conn.TLS.DidResume))
	}}
	f.server = h3.New(h3.Options{Handler: f.handler})
	f.listen(t, nil, func(c *tls.Config) {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName != "mtls.test" {
				return nil, nil
			}
			asking := c.Clone()
			asking.ClientAuth = tls.RequestClientCert
			return asking, nil
		}
	})
	cert, err := listen.DefaultCertificate(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	cache := tls.NewLRUClientSessionCache(8)
	for _, c := range []struct{ name, want string }{
		{"mtls.test", "mtls.test asked true, 1 certificates, resumed false"},
		{"other.test", "other.test asked false, 0 certificates, resumed false"},
		{"other.test", "other.test asked false, 0 certificates, resumed true"},
	} {
		client := newClient()
		client.TLSClientConfig.ServerName, client.TLSClientConfig.ClientSessionCache = c.name, cache
		client.TLSClientConfig.Certificates = []tls.Certificate{cert}
		f.client = client
		_, got := f.do(t, request(t, http3.MethodGet0RTT, f.url, nil))
		if string(got) != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		_ = client.Close()
	}
}

// TestTakenBack: requests that are taken back at once end the connection, and never more run than may.
func TestTakenBack(t *testing.T) {
	var running, most atomic.Int64
	f := start(t, func(x *exchange.Exchange) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(10 * time.Millisecond)
		x.Response.Status = http.StatusNoContent
	}, func(o *h3.Options) { o.MaxStreams, o.TakenBack = 20, 50 })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	qc, err := quic.DialAddr(ctx, f.listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, patient)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = qc.CloseWithError(0, "") }()
	head := headers(":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/")
	for qc.Context().Err() == nil {
		str, err := qc.OpenStreamSync(ctx)
		if err != nil {
			break
		}
		_, _ = str.Write(head)
		time.Sleep(100 * time.Microsecond) // a reset would overtake it
		str.CancelWrite(quic.StreamErrorCode(http3.ErrCodeRequestCanceled))
		str.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestCanceled))
	}
	select {
	case <-qc.Context().Done(): // a little later than a stream that cannot be opened any more
	case <-ctx.Done():
	}
	ended := context.Cause(qc.Context())
	if ae, ok := errors.AsType[*quic.ApplicationError](ended); !ok || http3.ErrCode(ae.ErrorCode) != http3.ErrCodeExcessiveLoad {
		t.Errorf("the connection ended with %v", ended)
	}
	if most.Load() > 20 {
		t.Errorf("%d ran at once", most.Load())
	}
}

// deaf is a socket on which nothing arrives.
type deaf struct{ net.PacketConn }

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if _, _, err := d.PacketConn.ReadFrom(p); err != nil {
			return 0, nil, err
		}
	}
}

// attentive is a socket that sees Retry packets (RFC 9000 §17.2.5).
type attentive struct {
	net.PacketConn
	retries atomic.Int64
}

func (a *attentive) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := a.PacketConn.ReadFrom(p)
	if n > 5 && p[0]&0xf0 == 0xf0 {
		a.retries.Add(1)
	}
	return n, from, err
}

// TestRetry: clients have to show that their address is their own while many handshakes are not completed.
func TestRetry(t *testing.T) {
	f := start(t, tell, nil)
	socket := func() net.PacketConn {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	seen := func() int64 {
		a := &attentive{PacketConn: socket()}
		defer a.Close()
		tr := &quic.Transport{Conn: a}
		defer tr.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		qc, err := tr.Dial(ctx, f.listener.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, patient)
		if err != nil {
			t.Fatal(err)
		}
		_ = qc.CloseWithError(0, "")
		return a.retries.Load()
	}
	if n := seen(); n != 0 {
		t.Errorf("%d Retry packets without need", n)
	}
	d := deaf{socket()}
	defer d.Close()
	tr := &quic.Transport{Conn: d}
	defer tr.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var dials sync.WaitGroup
	defer dials.Wait()
	defer cancel()
	for range 140 {
		dials.Go(func() {
			_, _ = tr.Dial(ctx, f.listener.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, patient)
		})
	}
	for end := time.Now().Add(60 * time.Second); f.gate.open.Load() < 128; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d handshakes", f.gate.open.Load())
		}
	}
	if n := seen(); n == 0 {
		t.Error("no Retry packet")
	}
}

func TestTooManyConnections(t *testing.T) {
	f := start(t, tell, nil)
	f.gate.max.Store(1)
	f.do(t, request(t, "GET", f.url, nil))
	second := newClient()
	defer second.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if _, err := second.RoundTrip(request(t, "GET", f.url, nil).WithContext(ctx)); err == nil || ctx.Err() != nil {
		t.Errorf("the second connection: %v", err)
	}
	f.do(t, request(t, "GET", f.url, nil))
	_ = f.client.Close()
	for end := time.Now().Add(60 * time.Second); f.gate.open.Load() > 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if n := f.gate.open.Load(); n != 0 {
		t.Errorf("%d connections are counted after their end", n)
	}
}

// TestSlow: what does not come in time is not waited for.
func TestSlow(t *testing.T) {
	f := start(t, func(x *exchange.Exchange) {
		_, err := x.Request.Buffer(1 << 20)
		var fault *h1.Fault
		if errors.As(err, &fault) {
			x.Response.Status = fault.Status
		}
	}, func(o *h3.Options) { o.BodyTimeout, o.IdleTimeout = 100*time.Millisecond, 3*time.Second })
	in, out := io.Pipe()
	defer out.Close()
	r := request(t, "POST", f.url, in)
	if res, _ := f.do(t, r); res.StatusCode != 408 {
		t.Errorf("a body that does not come: %d", res.StatusCode)
	}
	for end := time.Now().Add(60 * time.Second); f.server.Conns() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the idle connection stays")
		}
	}
}

// TestSlowHead: a connection that only begins requests is idle, whatever else its client sends.
func TestSlowHead(t *testing.T) {
	f := start(t, tell, func(o *h3.Options) { o.IdleTimeout = 300 * time.Millisecond })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	qc, err := quic.DialAddr(ctx, f.listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, &quic.Config{KeepAlivePeriod: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = qc.CloseWithError(0, "") }()
	head := headers(":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/")
	for range 100 {
		str, err := qc.OpenStreamSync(ctx)
		if err == nil {
			_, err = str.Write(head[:len(head)-1])
		}
		if err != nil { // it has been idle for long enough
			break
		}
	}
	select {
	case <-qc.Context().Done():
	case <-ctx.Done():
		t.Error("the connection stays")
	}
	if n := f.handler.finished.Load(); n != 0 {
		t.Errorf("%d requests were taken for complete", n)
	}
}

// TestShutdown: what runs is finished, and the client goes elsewhere.
func TestShutdown(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := start(t, func(x *exchange.Exchange) {
		close(entered)
		<-leave
		tell(x)
	}, nil)
	answered := make(chan error, 1)
	go func() {
		res, err := f.client.RoundTrip(request(t, "GET", f.url, nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		answered <- err
	}()
	<-entered
	f.listener.Stop()
	down := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	go func() { down <- f.server.Shutdown(ctx) }()
	time.Sleep(50 * time.Millisecond)
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("what was under way: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	other := newClient()
	defer other.Close()
	soon, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if res, err := other.RoundTrip(request(t, "GET", f.url, nil).WithContext(soon)); err == nil {
		t.Errorf("a new connection was served: %v", res.Status)
	}
}

func TestWithoutTLS13(t *testing.T) {
	specs, err := listen.Parse("127.0.0.1:0 ssl quic")
	if err != nil {
		t.Fatal(err)
	}
	_, err = h3.Listen(context.Background(), h3.ListenOptions{Spec: specs[0], TLS: &tls.Config{MaxVersion: tls.VersionTLS12}})
	if err == nil || !strings.Contains(err.Error(), "ssl_protocols") {
		t.Errorf("got %v", err)
	}
}

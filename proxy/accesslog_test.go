package proxy_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/proxy"
	"concord/proxy/exchange"
)

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestAccessLog(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*exchange.Exchange)
		want string
	}{
		{"plain", func(*exchange.Exchange) {}, `127.0.0.1 - - [T] "GET /plain/x HTTP/1.1" 200 5 "-" "test" kong_request_id: "ID"`},
		{"no route", func(x *exchange.Exchange) { x.Request.Path, x.Request.Target = "/none", "/none" }, `127.0.0.1 - - [T] "GET /none HTTP/1.1" 404 103 "-" "test" kong_request_id: "ID"`},
		{"credentials in the query", func(x *exchange.Exchange) {
			x.Request.Path, x.Request.Target = "/key/x", "/key/x?a=1&apikey=b&jwt=e.y.j&API_KEY=2&pass%77ord=3&secret&mykey=4&hidden=5&key="
		}, `127.0.0.1 - - [T] "GET /key/x?a=1&apikey=REDACTED&jwt=REDACTED&API_KEY=REDACTED&pass%77ord=REDACTED&secret&mykey=4&hidden=REDACTED&key=REDACTED HTTP/1.1" 200 5 "-" "test" kong_request_id: "ID"`},
		{"injection", func(x *exchange.Exchange) {
			x.Request.Target = "/plain/\x1b[31m\"é"
			x.Request.Header.Set("User-Agent", "a\"\\\t\x07 b")
			x.Request.Header.Set("Referer", "http://r/?token=t&x=\x80")
		}, `127.0.0.1 - - [T] "GET /plain/\x1B[31m\x22\xC3\xA9 HTTP/1.1" 200 5 "http://r/?token=REDACTED&x=\x80" "a\x22\x5C\x09\x07 b" kong_request_id: "ID"`},
		{"basic-auth user", func(x *exchange.Exchange) {
			x.SetCredential(exchange.Credential{Kind: "basic-auth", Identifier: "al ice"})
		}, `127.0.0.1 - al ice [T] "GET /plain/x HTTP/1.1" 200 5 "-" "test" kong_request_id: "ID"`},
		{"HEAD", func(x *exchange.Exchange) { x.Request.Method = "HEAD" }, `127.0.0.1 - - [T] "HEAD /plain/x HTTP/1.1" 200 0 "-" "test" kong_request_id: "ID"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := &safeBuffer{}
			log := proxy.NewAccessLog(out, false, slog.New(slog.DiscardHandler))
			h := quickHandler(t, log)
			x := &exchange.Exchange{Start: time.Now()}
			x.Conn.Peer = netip.MustParseAddrPort("127.0.0.1:1")
			x.Request.Method, x.Request.Target, x.Request.Path, x.Request.Major, x.Request.Minor = "GET", "/plain/x", "/plain/x", 1, 1
			x.Request.Header.Set("User-Agent", "test")
			x.Request.Header.Set("apikey", "b")
			c.set(x)
			h.Serve(x)
			x.BytesSent = 1000
			h.Finish(x)
			log.Close()
			got := regexp.MustCompile(`\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]`).ReplaceAllString(out.String(), "[T]")
			if got = masked(got); got != c.want+"\n" {
				t.Errorf("got  %swant %s", got, c.want)
			}
		})
	}
}

func TestAccessLogOfRefusedRequest(t *testing.T) {
	out := &safeBuffer{}
	var log *proxy.AccessLog
	g := start(t, func(o *proxy.Options) {
		log = proxy.NewAccessLog(out, false, slog.New(slog.DiscardHandler))
		o.AccessLog = log
	})
	g.do("GET / HTTP/1.1 x")
	for end := time.Now().Add(60 * time.Second); out.String() == "" && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	log.Close()
	if got := out.String(); !strings.HasPrefix(got, "127.0.0.1 - - [") || !strings.Contains(got, `] "" 400 `) {
		t.Errorf("%q", got)
	}
}

// A writer that hangs or fails delays no request.
func TestAccessLogNeverBlocks(t *testing.T) {
	hang := make(chan struct{})
	log := proxy.NewAccessLog(writerFunc(func(p []byte) (int, error) { <-hang; return 0, errors.New("broken") }), false, slog.New(slog.DiscardHandler))
	h := quickHandler(t, log)
	x := new(exchange.Exchange)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 120_000 { // more than is held
			serveOne(h, x, "/plain/x")
		}
	}()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("requests wait for the access log")
	}
	close(hang)
	log.Close()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

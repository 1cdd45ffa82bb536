package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"concord/test/harness"
)

func newHTTP3() *http3.Transport {
	return &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, QUICConfig: &quic.Config{HandshakeIdleTimeout: 30 * time.Second, MaxIdleTimeout: 60 * time.Second}}
}

func overHTTP3(t *testing.T) *http3.Transport {
	tr := newHTTP3()
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// fetch sends a request by whatever version the transport speaks.
func fetch(t *testing.T, tr http.RoundTripper, method, url, body string, header ...string) (harness.Answer, int) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return harness.Answer{Status: res.StatusCode, Header: res.Header, Body: string(b)}, res.ProtoMajor
}

// TestHTTP3 is told of HTTP/3 over TCP, uses it, and goes on over a change of settings.
func TestHTTP3(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	n := harness.NewNode(t, "solo")
	log := filepath.Join(t.TempDir(), "access.log")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + ", " + n.ProxyTLS + " http2 ssl quic", "CONCORD_PROXY_ACCESS_LOG=" + log}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "s", "url", up.URL), 201)
	last := expect(t, "route", n.Form("POST", "/services/s/routes", "paths[]", "/h"), 201)
	_, port, _ := strings.Cut(n.ProxyTLS, ":")
	for _, c := range []struct {
		url, want string
		major     int
	}{{"https://" + n.ProxyTLS, `h3=":` + port + `"; ma=86400`, 2}, {"http://" + n.Proxy, "", 1}} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		a, major := fetch(t, tr, "GET", c.url+"/h", "", "X-Min-Config-Index", last.Index())
		if got := a.Header.Get("Alt-Svc"); got != c.want || major != c.major {
			t.Errorf("%s over HTTP/%d: Alt-Svc %q, want %q", c.url, major, got, c.want)
		}
	}
	h3 := overHTTP3(t)
	body := strings.Repeat("x", 1<<20)
	a, major := fetch(t, h3, "POST", "https://"+n.ProxyTLS+"/h/x?q=1", body, "X-Min-Config-Index", last.Index(), "X-Consumer-Username", "root")
	expect(t, "echo", a, 200, "path", "/x", "query", "q=1", "body", body)
	if major != 3 || a.Saw("X-Consumer-Username") != "" || a.Saw("X-Forwarded-Proto") != "https" || a.Saw("X-Forwarded-Port") != port || a.Saw("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("HTTP/%d, upstream saw %v", major, a.JSON()["headers"])
	}
	if v := a.Header.Get("Alt-Svc"); v != "" {
		t.Errorf("Alt-Svc over HTTP/3: %q", v)
	}
	if a, _ = fetch(t, h3, "GET", "https://"+n.ProxyTLS+"/none", ""); a.Status != 404 {
		t.Errorf("no route: %d %s", a.Status, a.Body)
	}
	var b []byte
	for end := time.Now().Add(30 * time.Second); !strings.Contains(string(b), `"POST /h/x?q=1 HTTP/3.0" 200`); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("access log: %s", b)
		}
		b, _ = os.ReadFile(log)
	}
}

// TestHTTP3Upgrade changes the program under clients of HTTP/3, one of which is in the middle of a request.
func TestHTTP3Upgrade(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.ProxyTLS + " http2 http3 ssl"}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "s", "url", up.URL), 201)
	last := expect(t, "route", n.Form("POST", "/services/s/routes", "paths[]", "/h"), 201)
	url := "https://" + n.ProxyTLS + "/h"
	fetch(t, overHTTP3(t), "GET", url, "", "X-Min-Config-Index", last.Index())

	in, out := io.Pipe()
	defer out.Close()
	slow := make(chan string, 1)
	tr := overHTTP3(t)
	go func() {
		r, _ := http.NewRequest("POST", url, in)
		res, err := tr.RoundTrip(r)
		if err != nil {
			slow <- err.Error()
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		slow <- fmt.Sprintf("%d %d %v", res.StatusCode, strings.Count(string(b), "0123456789"), err)
	}()
	if _, err := io.WriteString(out, "0123456789"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var clients sync.WaitGroup
	var ok atomic.Int64
	for i := range 4 {
		client := overHTTP3(t)
		clients.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				tr := client
				if i%2 == 0 { // a new connection each
					tr = newHTTP3()
				}
				r, _ := http.NewRequest("GET", url, nil)
				res, err := tr.RoundTrip(r)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
				}
				if err != nil {
					t.Errorf("client %d, request %d: %v", i, k, err)
					return
				}
				ok.Add(1)
				if i%2 == 0 {
					_ = tr.Close()
				}
			}
		})
	}
	for range 2 {
		before := ok.Load()
		mustUpgrade(t, n)
		for end := time.Now().Add(60 * time.Second); ok.Load() < before+50 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
	}
	_, _ = io.WriteString(out, strings.Repeat("0123456789", 50000))
	_ = out.Close()
	if got := <-slow; got != "200 50001 <nil>" {
		t.Errorf("the request that was under way: %s", got)
	}
	stop()
	clients.Wait()
	if ok.Load() < 100 {
		t.Errorf("only %d requests", ok.Load())
	}
}

// TestHTTP3GRPC talks gRPC over HTTP/3 to an upstream of HTTP/2: messages go both ways while the call runs, and trailers and deadlines arrive.
func TestHTTP3GRPC(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	pb.RegisterTestServiceServer(srv, grpcUpstream{})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.ProxyTLS + " http3 ssl"}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "g", "url", "grpc://"+l.Addr().String()), 201)
	last := expect(t, "route", n.JSON("POST", "/services/g/routes", `{"protocols":["grpcs"],"paths":["/grpc.testing.TestService/"]}`), 201)
	tr := overHTTP3(t)
	call := func(method string, body io.Reader) *http.Response {
		t.Helper()
		r, err := http.NewRequest("POST", "https://"+n.ProxyTLS+method, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {"20S"}, "X-Min-Config-Index": {last.Index()}}
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	message := func(text string) []byte {
		b, err := proto.Marshal(&pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(text)}}) // the payload of StreamingOutputCallRequest is the same field
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	}
	res := call("/grpc.testing.TestService/UnaryCall", bytes.NewReader(message("hello")))
	b, err := io.ReadAll(res.Body)
	if err != nil || !strings.HasSuffix(string(b), "hello") || res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("X-Trailer") != "end" {
		t.Errorf("unary: %v %q %v", err, b, res.Trailer)
	}
	if res = call("/none", bytes.NewReader(message("hello"))); res.StatusCode != 404 || res.Header.Get("Grpc-Status") != "5" {
		t.Errorf("no route: %d %v", res.StatusCode, res.Header)
	}
	in, out := io.Pipe()
	go func() { _, _ = out.Write(message("0")) }()
	res = call("/grpc.testing.TestService/FullDuplexCall", in)
	for i := range 3 {
		var head [5]byte
		if _, err := io.ReadFull(res.Body, head[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(res.Body, b); err != nil || !strings.HasSuffix(string(b), fmt.Sprint(i)) {
			t.Fatalf("message %d: %v %q", i, err, b)
		}
		if i < 2 {
			_, _ = out.Write(message(fmt.Sprint(i + 1)))
		}
	}
	_ = out.Close()
	if b, err := io.ReadAll(res.Body); err != nil || len(b) > 0 || res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("both ways: %v %q %v", err, b, res.Trailer)
	}
}

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"concord/test/harness"
)

// TestCircuitBreaker: a target that answers with errors is taken out, tried with single requests and taken back; what is above the limit of
// requests is refused at once.
func TestCircuitBreaker(t *testing.T) {
	t.Parallel()
	b := balance(t, 1, `{"name":"app.up","circuit_breaker":{"consecutive_errors":3,"base_ejection_time":600,"max_target_requests":10}}`)
	var sick atomic.Bool
	var served, errs atomic.Int64
	hold := make(chan struct{})
	target := func(f http.HandlerFunc) string {
		s := httptest.NewServer(f)
		t.Cleanup(s.Close)
		addr := s.Listener.Addr().String()
		b.write("POST", "/upstreams/app.up/targets", `{"target":"`+addr+`"}`, 201)
		return addr
	}
	bad := target(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path == "/hold" {
			<-hold
		}
		if sick.Load() {
			errs.Add(1)
			w.WriteHeader(503)
		}
	})
	get := func(path string) int {
		t.Helper()
		a := b.Nodes[0].Get("/app"+path, "X-Min-Config-Index", b.index)
		return a.Status
	}
	circuit := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health", "")
			if strings.Contains(a.Body, `"circuit":"`+want+`"`) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the circuit is not %s: %s", want, a.Body)
			}
		}
	}
	good := target(func(http.ResponseWriter, *http.Request) {})
	sick.Store(true)
	for range 60 {
		get("")
	}
	if n := errs.Load(); n != 3 {
		t.Errorf("%d requests went to the sick target", n)
	}
	circuit("open")
	if a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health?balancer_health=1", ""); !strings.Contains(a.Body, `"ejected":1`) {
		t.Errorf("pool: %s", a.Body)
	}
	b.write("PUT", "/upstreams/app.up/targets/"+bad+"/healthy", "", 204)
	circuit("closed")
	b.write("PATCH", "/upstreams/app.up", `{"circuit_breaker":{"base_ejection_time":0.5,"max_ejection_time":0.5}}`, 200)
	for errs.Store(0); errs.Load() < 3; {
		get("")
	}
	sick.Store(false)
	circuit("half-open")
	for served.Store(0); served.Load() == 0; {
		if s := get(""); s != 200 {
			t.Fatal(s)
		}
	}
	if a := b.Nodes[0].JSON("GET", "/upstreams/app.up/health", ""); strings.Contains(a.Body, `"half-open"`) || strings.Contains(a.Body, `"open"`) {
		t.Errorf("after a good request: %s", a.Body)
	}
	b.write("DELETE", "/upstreams/app.up/targets/"+good, "", 204)
	var busy, fine sync.WaitGroup
	var refused, done atomic.Int64
	count := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); refused.Load() < want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d requests are refused", refused.Load(), want)
			}
		}
	}
	for range 30 {
		busy.Go(func() {
			a, err := harness.Do("GET", "http://"+b.Nodes[0].Proxy+"/app/hold", "", "", "X-Min-Config-Index", b.index)
			switch {
			case err == nil && a.Status == 200:
				done.Add(1)
			case err == nil && a.Status == 503 && strings.Contains(a.Body, "takes no more requests"):
				refused.Add(1)
			default:
				t.Errorf("%d %s %v", a.Status, a.Body, err)
			}
		})
	}
	fine.Go(func() { defer close(hold); count(20) })
	fine.Wait()
	busy.Wait()
	if done.Load() != 10 || refused.Load() != 20 {
		t.Errorf("%s: %d served, %d refused", bad, done.Load(), refused.Load())
	}
	if a, err := harness.Do("GET", "http://"+b.Nodes[0].Status+"/metrics", "", ""); err == nil && a.Status == 200 && !strings.Contains(a.Body, `concord_upstream_rejected_total{upstream="app.up"} 20`) {
		t.Error("the metrics do not tell of the refused requests")
	}
}

// unavailable is a gRPC server that says of every call that it cannot.
type unavailable struct {
	pb.UnimplementedTestServiceServer
	calls atomic.Int64
}

func (u *unavailable) EmptyCall(context.Context, *pb.Empty) (*pb.Empty, error) {
	u.calls.Add(1)
	return nil, status.Error(codes.Unavailable, "no")
}

// StreamingOutputCall begins well and says at the end what became of it.
func (u *unavailable) StreamingOutputCall(_ *pb.StreamingOutputCallRequest, s pb.TestService_StreamingOutputCallServer) error {
	u.calls.Add(1)
	return errors.Join(s.Send(&pb.StreamingOutputCallResponse{}), status.Error(codes.Unavailable, "no"))
}

type available struct {
	pb.UnimplementedTestServiceServer
}

func (available) EmptyCall(context.Context, *pb.Empty) (*pb.Empty, error) { return &pb.Empty{}, nil }
func (available) StreamingOutputCall(_ *pb.StreamingOutputCallRequest, s pb.TestService_StreamingOutputCallServer) error {
	return s.Send(&pb.StreamingOutputCallResponse{})
}

// TestGRPCFailures: a target whose gRPC answers are failures is taken out, by the circuit breaker and by passive checks.
func TestGRPCFailures(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + " http2"}
	n.Start()
	serve := func(s pb.TestServiceServer) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		pb.RegisterTestServiceServer(srv, s)
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(srv.Stop)
		return l.Addr().String()
	}
	var bad unavailable
	sick, well := serve(&bad), serve(available{})
	for _, tt := range []struct{ name, settings, shown string }{
		{"breaker", `"circuit_breaker":{"consecutive_errors":3,"base_ejection_time":600}`, `"circuit":"open"`},
		{"passive", `"healthchecks":{"passive":{"unhealthy":{"http_failures":3}}}`, `"health":"UNHEALTHY"`},
	} {
		for _, kind := range []string{"head", "trailers"} {
			t.Run(tt.name+" "+kind, func(t *testing.T) {
				name := tt.name + "-" + kind
				expect(t, "upstream", n.JSON("POST", "/upstreams", `{"name":"`+name+`.up",`+tt.settings+`}`), 201)
				for _, a := range []string{sick, well} {
					expect(t, "target", n.JSON("POST", "/upstreams/"+name+".up/targets", `{"target":"`+a+`"}`), 201)
				}
				expect(t, "service", n.JSON("POST", "/services", `{"name":"`+name+`","protocol":"grpc","port":80,"host":"`+name+`.up"}`), 201)
				last := expect(t, "route", n.JSON("POST", "/services/"+name+"/routes", `{"protocols":["grpc"],"headers":{"x-case":["`+name+`"]},"paths":["/grpc.testing.TestService/"]}`), 201)
				cc, err := grpc.NewClient(n.Proxy, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					t.Fatal(err)
				}
				defer cc.Close()
				client := pb.NewTestServiceClient(cc)
				ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "x-case", name, "x-min-config-index", last.Index()), 30*time.Second)
				defer cancel()
				call := func() error {
					if kind == "head" {
						_, err := client.EmptyCall(ctx, &pb.Empty{})
						return err
					}
					s, err := client.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{})
					for err == nil {
						_, err = s.Recv()
					}
					if errors.Is(err, io.EOF) {
						return nil
					}
					return err
				}
				bad.calls.Store(0)
				failed := 0
				for range 30 {
					if err := call(); status.Code(err) == codes.Unavailable {
						failed++
					} else if err != nil {
						t.Fatal(err)
					}
				}
				if failed != 3 || bad.calls.Load() != 3 {
					t.Errorf("%d calls failed, %d came to the sick target", failed, bad.calls.Load())
				}
				if a := n.JSON("GET", "/upstreams/"+name+".up/health", ""); !strings.Contains(a.Body, tt.shown) {
					t.Errorf("health: %s", a.Body)
				}
			})
		}
	}
}

// TestNoSecondBody: a request with side effects whose body was begun is not sent again, whatever retries allow; one without is, and elsewhere.
func TestNoSecondBody(t *testing.T) {
	t.Parallel()
	b := balance(t, 1, `{"name":"app.up"}`)
	var mu sync.Mutex
	got := map[string][]string{} // request lines by target
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // reads the head and a byte of the body, and hangs up
					defer c.Close()
					br := bufio.NewReader(c)
					line, _ := br.ReadString('\n')
					mu.Lock()
					got[c.LocalAddr().String()] = append(got[c.LocalAddr().String()], strings.TrimSpace(line))
					mu.Unlock()
					for {
						if h, err := br.ReadString('\n'); err != nil || h == "\r\n" {
							break
						}
					}
					if !strings.HasPrefix(line, "DELETE ") {
						_, _ = br.ReadByte()
					}
				}()
			}
		}()
		b.write("POST", "/upstreams/app.up/targets", `{"target":"`+l.Addr().String()+`"}`, 201)
	}
	b.write("PATCH", "/services/app", `{"retries":1}`, 200)
	for _, tt := range []struct {
		method  string
		body    string
		arrives int
	}{{"POST", "side effect", 1}, {"PATCH", "side effect", 1}, {"PUT", strings.Repeat("x", 1<<20), 1}, {"DELETE", "", 2}} {
		t.Run(tt.method, func(t *testing.T) {
			mu.Lock()
			clear(got)
			mu.Unlock()
			a, err := harness.Do(tt.method, "http://"+b.Nodes[0].Proxy+"/app", "text/plain", tt.body, "X-Min-Config-Index", b.index)
			if err != nil || a.Status != 502 {
				t.Errorf("%d %s %v", a.Status, a.Body, err)
			}
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for addr, list := range got {
				if n += len(list); len(list) != 1 {
					t.Errorf("%s got %v", addr, list)
				}
			}
			if n != tt.arrives {
				t.Errorf("arrived %d times: %v", n, fmt.Sprint(got))
			}
		})
	}
}

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"concord/test/harness"
)

// TestHTTP2 fetches over HTTP/2 by ALPN, over HTTP/2 in plain text, and over HTTP/1.1 on the same listeners.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + " http2, " + n.ProxyTLS + " http2 ssl"}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "s", "url", up.URL), 201)
	last := expect(t, "route", n.Form("POST", "/services/s/routes", "paths[]", "/h"), 201)
	for _, c := range []struct {
		name, url string
		set       func(*http.Protocols)
		major     int
	}{
		{"h2", "https://" + n.ProxyTLS, func(p *http.Protocols) { p.SetHTTP2(true) }, 2},
		{"h2c", "http://" + n.Proxy, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }, 2},
		{"h1 over TLS", "https://" + n.ProxyTLS, func(p *http.Protocols) { p.SetHTTP1(true) }, 1},
		{"h1", "http://" + n.Proxy, func(p *http.Protocols) { p.SetHTTP1(true) }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			c.set(tr.Protocols)
			defer tr.CloseIdleConnections()
			body := strings.Repeat("x", 1<<20)
			req, err := http.NewRequest("POST", c.url+"/h/x?q=1", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Min-Config-Index", last.Index())
			req.Header.Set("X-Consumer-Username", "root")
			r, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			a := harness.Answer{Status: r.StatusCode, Header: r.Header, Body: string(b)}
			expect(t, "echo", a, 200, "path", "/x", "query", "q=1", "body", body)
			if r.ProtoMajor != c.major || a.Saw("X-Consumer-Username") != "" || a.Saw("X-Forwarded-Prefix") != "/h" {
				t.Errorf("HTTP/%d, upstream saw %v", r.ProtoMajor, a.JSON()["headers"])
			}
		})
	}
}

// grpcUpstream answers the interoperability service of gRPC.
type grpcUpstream struct {
	pb.UnimplementedTestServiceServer
}

func (grpcUpstream) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	if _, ok := ctx.Deadline(); !ok {
		return nil, status.Error(codes.InvalidArgument, "the deadline did not arrive")
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "end")); err != nil {
		return nil, err
	}
	return &pb.SimpleResponse{Payload: r.Payload}, nil
}

func (grpcUpstream) StreamingInputCall(s pb.TestService_StreamingInputCallServer) error {
	sum := int32(0)
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: sum})
		}
		if err != nil {
			return err
		}
		sum += int32(len(r.Payload.Body))
	}
}

func (grpcUpstream) StreamingOutputCall(r *pb.StreamingOutputCallRequest, s pb.TestService_StreamingOutputCallServer) error {
	for _, p := range r.ResponseParameters {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.Size)}}); err != nil {
			return err
		}
	}
	return nil
}

func (grpcUpstream) FullDuplexCall(s pb.TestService_FullDuplexCallServer) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: r.Payload}); err != nil {
			return err
		}
	}
}

// TestGRPC sends the four kinds of calls of a real gRPC client through the gateway to a real gRPC server, in plain text
// and over TLS; statuses, trailers and deadlines arrive, and the gateway's own refusals are gRPC statuses.
func TestGRPC(t *testing.T) {
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
	n.Env = []string{"CONCORD_PROXY_LISTEN=" + n.Proxy + " http2, " + n.ProxyTLS + " http2 ssl"}
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "g", "url", "grpc://"+l.Addr().String()), 201, "protocol", "grpc")
	// a grpc URL without a known port gets Kong's 80; the explicit one stays
	expect(t, "route", n.JSON("POST", "/services/g/routes", `{"name":"g","protocols":["grpc","grpcs"],"paths":["/grpc.testing.TestService/"]}`), 201)
	expect(t, "closed route", n.JSON("POST", "/services/g/routes", `{"name":"closed","protocols":["grpc","grpcs"],"headers":{"x-closed":["1"]},"paths":["/grpc.testing.TestService/"]}`), 201)
	last := expect(t, "key-auth", n.JSON("POST", "/routes/closed/plugins", `{"name":"key-auth"}`), 201)
	if a := n.Get("/none", "X-Min-Config-Index", last.Index()); a.Status != 404 {
		t.Fatal(a.Status, a.Body)
	}
	for _, c := range []struct {
		name, addr string
		creds      credentials.TransportCredentials
	}{
		{"plain text", n.Proxy, insecure.NewCredentials()},
		{"TLS", n.ProxyTLS, credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})},
	} {
		t.Run(c.name, func(t *testing.T) {
			cc, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(c.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			client := pb.NewTestServiceClient(cc)
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			payload := &pb.Payload{Body: make([]byte, 300_000)}

			var trailer metadata.MD
			r, err := client.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload}, grpc.Trailer(&trailer))
			if err != nil || len(r.Payload.Body) != len(payload.Body) || len(trailer["x-trailer"]) != 1 {
				t.Fatalf("unary: %v, trailer %v", err, trailer)
			}
			_, err = client.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "lost: 50 %"}})
			if status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "lost: 50 %" {
				t.Errorf("status of the upstream: %v", err)
			}
			_, err = client.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-closed", "1"), &pb.SimpleRequest{})
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("refusal of a plugin: %v", err)
			}

			in, err := client.StreamingInputCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				if err := in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 10_000)}}); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := in.CloseAndRecv(); err != nil || r.AggregatedPayloadSize != 500_000 {
				t.Errorf("client stream: %v %v", r, err)
			}

			req := &pb.StreamingOutputCallRequest{}
			for range 50 {
				req.ResponseParameters = append(req.ResponseParameters, &pb.ResponseParameters{Size: 10_000})
			}
			out, err := client.StreamingOutputCall(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for {
				m, err := out.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got += len(m.Payload.Body)
			}
			if got != 500_000 {
				t.Errorf("server stream: %d bytes", got)
			}

			duplex, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 50 { // each message waits for the answer to the one before
				if err := duplex.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: make([]byte, i)}}); err != nil {
					t.Fatal(err)
				}
				if m, err := duplex.Recv(); err != nil || len(m.Payload.Body) != i {
					t.Fatalf("duplex %d: %v", i, err)
				}
			}
			if err := duplex.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if _, err := duplex.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("end of the duplex stream: %v", err)
			}
		})
	}
}

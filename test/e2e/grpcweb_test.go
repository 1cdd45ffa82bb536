package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"concord/test/harness"
)

// webCall is a gRPC-Web client over HTTP/1.1 as a browser's library is one.
type webCall struct {
	t    *testing.T
	res  *http.Response
	body io.Reader
}

func callWeb(t *testing.T, url string, text bool, messages ...proto.Message) *webCall {
	t.Helper()
	var b bytes.Buffer
	for _, m := range messages {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))))
		b.Write(raw)
	}
	mime, body := "application/grpc-web+proto", b.String()
	if text {
		mime, body = "application/grpc-web-text+proto", base64.StdEncoding.EncodeToString(b.Bytes())
	}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mime)
	req.Header.Set("grpc-timeout", "20S")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if got := res.Header.Get("Content-Type"); got != mime || res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("head of the answer: %d %v", res.StatusCode, res.Header)
	}
	c := &webCall{t: t, res: res, body: res.Body}
	if text {
		c.body = &groups{r: res.Body}
	}
	return c
}

// groups decodes base64 that may have padding anywhere.
type groups struct {
	r    io.Reader
	left []byte
}

func (g *groups) Read(p []byte) (int, error) {
	for len(g.left) == 0 {
		var four [4]byte
		if _, err := io.ReadFull(g.r, four[:]); err != nil {
			return 0, err
		}
		var err error
		if g.left, err = base64.StdEncoding.AppendDecode(nil, four[:]); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.left)
	g.left = g.left[n:]
	return n, nil
}

// next is a frame: a message, or the trailers as text.
func (c *webCall) next(m proto.Message) string {
	c.t.Helper()
	var head [5]byte
	if _, err := io.ReadFull(c.body, head[:]); err != nil {
		c.t.Fatal(err)
	}
	payload := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(c.body, payload); err != nil {
		c.t.Fatal(err)
	}
	if head[0] == 0x80 {
		if n, err := c.body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			c.t.Errorf("something follows the trailers: %v", err)
		}
		return string(payload)
	}
	if err := proto.Unmarshal(payload, m); err != nil {
		c.t.Fatal(err)
	}
	return ""
}

// pacedUpstream sends the messages of a stream only as they are taken.
type pacedUpstream struct {
	grpcUpstream
	taken chan struct{}
}

func (p pacedUpstream) StreamingOutputCall(r *pb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, want := range r.ResponseParameters {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, want.Size)}}); err != nil {
			return err
		}
		<-p.taken
	}
	return nil
}

// TestGRPCWeb calls a real gRPC server through the grpc-web plugin.
func TestGRPCWeb(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))) // a port that nobody gets when it is closed
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	up := pacedUpstream{taken: make(chan struct{}, 1)}
	pb.RegisterTestServiceServer(srv, up)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	n := harness.NewNode(t, "solo")
	n.Start()
	expect(t, "service", n.Form("POST", "/services", "name", "g", "url", "grpc://"+l.Addr().String()), 201)
	expect(t, "route", n.JSON("POST", "/services/g/routes", `{"name":"web","paths":["/grpc.testing.TestService/"]}`), 201)
	expect(t, "proto", n.JSON("POST", "/routes/web/plugins", `{"name":"grpc-web","config":{"proto":"/x.proto"}}`), 400)
	expect(t, "plugin", n.JSON("POST", "/routes/web/plugins", `{"name":"grpc-web"}`), 201)
	expect(t, "closed route", n.JSON("POST", "/services/g/routes", `{"name":"closed","paths":["/closed"]}`), 201)
	expect(t, "key-auth", n.JSON("POST", "/routes/closed/plugins", `{"name":"key-auth"}`), 201)
	last := expect(t, "plugin", n.JSON("POST", "/routes/closed/plugins", `{"name":"grpc-web","config":{"pass_stripped_path":true}}`), 201)
	if a := n.Get("/none", "X-Min-Config-Index", last.Index()); a.Status != 404 {
		t.Fatal(a.Status, a.Body)
	}
	const service = "/grpc.testing.TestService/"
	for _, text := range []bool{false, true} {
		t.Run(fmt.Sprintf("text %v", text), func(t *testing.T) {
			url := "http://" + n.Proxy + service
			c := callWeb(t, url+"UnaryCall", text, &pb.SimpleRequest{Payload: &pb.Payload{Body: make([]byte, 100_000)}})
			var m pb.SimpleResponse
			if c.next(&m); len(m.Payload.GetBody()) != 100_000 {
				t.Errorf("%d bytes", len(m.Payload.GetBody()))
			}
			if got := c.next(nil); !strings.Contains(got, "grpc-status:0\r\n") || !strings.Contains(got, "x-trailer:") || len(c.res.Trailer) != 0 {
				t.Errorf("trailers %q, and of HTTP %v", got, c.res.Trailer)
			}

			c = callWeb(t, url+"UnaryCall", text, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "lost: 50 %"}})
			if c.res.Header.Get("grpc-status") == "" { // else they are in the head
				if got := c.next(nil); !strings.Contains(got, "grpc-status:15\r\n") || !strings.Contains(got, "grpc-message:lost: 50 %25\r\n") {
					t.Errorf("error: %q", got)
				}
			} else if got := c.res.Header.Get("grpc-status"); got != "15" {
				t.Errorf("error: %q", got)
			}

			req := &pb.StreamingOutputCallRequest{}
			for range 5 {
				req.ResponseParameters = append(req.ResponseParameters, &pb.ResponseParameters{Size: 10})
			}
			c = callWeb(t, url+"StreamingOutputCall", text, req)
			for range 5 { // the next is sent when this one was received
				var m pb.StreamingOutputCallResponse
				if c.next(&m); len(m.Payload.GetBody()) != 10 {
					t.Errorf("message of %d bytes", len(m.Payload.GetBody()))
				}
				up.taken <- struct{}{}
			}
			if got := c.next(nil); !strings.Contains(got, "grpc-status:0\r\n") {
				t.Errorf("end of the stream: %q", got)
			}

			c = callWeb(t, "http://"+n.Proxy+"/closed"+service+"UnaryCall", text, &pb.SimpleRequest{})
			if h := c.res.Header; c.res.StatusCode != 401 || h.Get("grpc-status") != "16" {
				t.Errorf("refusal of a plugin: %d %v", c.res.StatusCode, h)
			}
			c = callWeb(t, url+"NoSuchCall", text, &pb.SimpleRequest{})
			if h := c.res.Header; c.res.StatusCode != 200 || h.Get("grpc-status") != "12" {
				t.Errorf("no such method: %d %v", c.res.StatusCode, h)
			}
		})
	}
	if a, err := harness.Do("OPTIONS", "http://"+n.Proxy+service+"UnaryCall", "", ""); err != nil || a.Status != 200 || a.Header.Get("Access-Control-Allow-Methods") != "POST" || a.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("preflight: %v %v", a, err)
	}
	if a, err := harness.Do("POST", "http://"+n.Proxy+service+"UnaryCall", "application/json", "{}"); err != nil || a.Status != 400 {
		t.Errorf("JSON: %v %v", a, err)
	}
	srv.Stop()
	c := callWeb(t, "http://"+n.Proxy+service+"UnaryCall", false, &pb.SimpleRequest{})
	if c.res.Header.Get("grpc-status") != "13" || c.res.StatusCode != 502 {
		t.Errorf("upstream that is gone: %d %v", c.res.StatusCode, c.res.Header)
	}
}

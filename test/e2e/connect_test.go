package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"concord/test/harness"
)

const configService = "/concord.admin.v1.ConfigService/"

// reflectFiles learns a service from the node, as grpcurl does.
func reflectFiles(t *testing.T, conn *grpc.ClientConn, symbol string) *protoregistry.Files {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	have := map[string]bool{}
	ask := func(r *reflection.ServerReflectionRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range res.GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := &descriptorpb.FileDescriptorProto{}
			if err := proto.Unmarshal(raw, f); err != nil {
				t.Fatal(err)
			}
			if !have[f.GetName()] {
				have[f.GetName()] = true
				set.File = append(set.File, f)
			}
		}
	}
	ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}})
	for i := 0; i < len(set.GetFile()); i++ {
		for _, name := range set.GetFile()[i].GetDependency() {
			if !have[name] {
				ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileByFilename{FileByFilename: name}})
			}
		}
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestConnectGRPC: grpc-go, which knows nothing of the gateway but its address, reads and writes over HTTP/2 without TLS.
func TestConnectGRPC(t *testing.T) {
	n := harness.NewNode(t, "n1")
	n.Start()
	conn, err := grpc.NewClient(n.Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d, err := reflectFiles(t, conn, "concord.admin.v1.ConfigService").FindDescriptorByName("concord.admin.v1.ConfigService")
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, in string) (map[string]any, error) {
		t.Helper()
		m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
		req, res := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		if err := protojson.Unmarshal([]byte(in), req); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		if err := conn.Invoke(ctx, configService+method, req, res); err != nil {
			return nil, err
		}
		text, err := protojson.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		return out, json.Unmarshal(text, &out)
	}
	made, err := call("Mutate", `{"verb":"VERB_CREATE","target":{"kind":"services"},"format":"FORMAT_TYPED","entity":{"service":{"host":"example.test","name":"s"}}}`)
	if err != nil || made["index"] == nil {
		t.Fatalf("%v, %v", made, err)
	}
	if got := n.JSON("GET", "/services/s", "").JSON()["host"]; got != "example.test" {
		t.Errorf("Kong's path shows the host %v", got)
	}
	_, err = call("Mutate", `{"verb":"VERB_CREATE","target":{"kind":"services"},"entity":{"service":{"host":"h","name":"s"}}}`)
	if status.Code(err) != codes.AlreadyExists || len(status.Convert(err).Details()) == 0 {
		t.Errorf("the same name again: %v", err)
	}
}

// TestConnectWatch: plain HTTP calls change entities at one node; a watch that is interrupted and goes on at other nodes sees each change once.
func TestConnectWatch(t *testing.T) {
	c := harness.StartCluster(t, 3)
	post := func(n *harness.Node, method, in string) map[string]any {
		t.Helper()
		a := n.JSON("POST", configService+method, in)
		if a.Status != 200 {
			t.Fatalf("%s %s: %d %s", method, in, a.Status, a.Body)
		}
		return a.JSON()
	}
	const changes = 60
	first := post(c.Nodes[0], "Mutate", `{"verb":"VERB_CREATE","target":{"kind":"consumers"},"entity":{"fields":{"username":"first"}}}`)
	index := fmt.Sprint(first["index"])
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	failed := make(chan string, 1)
	done := make(chan bool)
	defer func() { <-done }()
	go func() {
		defer close(done)
		for i := range changes {
			a, err := harness.Do("POST", "http://"+c.Nodes[i%3].Admin+configService+"Mutate", "application/json",
				fmt.Sprintf(`{"verb":"VERB_UPSERT","target":{"kind":"consumers","ref":"u%d"},"entity":{"fields":{"custom_id":"%d"}}}`, i%7, i))
			if err != nil || a.Status != 200 {
				failed <- fmt.Sprintf("change %d: %v %d %s", i, err, a.Status, a.Body)
				return
			}
		}
	}()
	next := 0
	for stint, until := range []int{changes / 3, 2 * changes / 3, changes} {
		w := openWatch(ctx, t, c.Nodes[stint], index)
		for next < until {
			m, err := w.next()
			if err != nil {
				select {
				case why := <-failed:
					t.Error(why)
				default:
				}
				t.Fatalf("the watch ended after change %d: %v", next, err)
			}
			if m.Reset {
				t.Fatalf("a reset after change %d", next)
			}
			for _, x := range m.Changes {
				if want := fmt.Sprint(next); x.Entity.Fields["custom_id"] != want {
					t.Fatalf("got change %v, want %s", x.Entity.Fields["custom_id"], want)
				}
				next++
			}
			index = m.Index
		}
		w.body.Close()
	}
	w := openWatch(ctx, t, c.Nodes[1], index)
	if _, err := w.next(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := w.next(); err != nil {
				ended <- err
				return
			}
		}
	}()
	if code := c.Nodes[1].Stop(); code != 0 {
		t.Errorf("a node that is watched stops with %d", code)
	}
	if err := <-ended; !strings.Contains(err.Error(), "this node is stopping") {
		t.Errorf("the watch at a node that stops ended with %v", err)
	}
}

type watched struct {
	Index   string
	Reset   bool
	Changes []struct {
		Entity struct{ Fields map[string]any }
	}
}

// watch reads Connect's streaming protocol: a flag, a length and JSON, again and again.
type watch struct{ body io.ReadCloser }

func openWatch(ctx context.Context, t *testing.T, n *harness.Node, from string) *watch {
	t.Helper()
	in := fmt.Appendf(nil, `{"fromIndex":%q,"kinds":["consumers"]}`, from)
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(in))), in...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.Admin+configService+"Watch", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("watch: %s", res.Status)
	}
	return &watch{res.Body}
}

func (w *watch) next() (m watched, err error) {
	var head [5]byte
	if _, err := io.ReadFull(w.body, head[:]); err != nil {
		return m, err
	}
	text := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(w.body, text); err != nil {
		return m, err
	}
	if head[0]&2 != 0 {
		return m, fmt.Errorf("end of stream: %s", text)
	}
	return m, json.Unmarshal(text, &m)
}

package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/structpb"

	"concord/admin/auth"
	"concord/admin/rpc"
	"concord/admin/service"
	"concord/admin/service/logtest"
	"concord/cluster"
	adminv1 "concord/proto/concord/admin/v1"
	"concord/proto/concord/admin/v1/adminv1connect"
)

// alone is a cluster of one node that refuses to change.
type alone struct{ rpc.Cluster }

func (alone) ID() string { return "n1" }
func (alone) Status(context.Context) cluster.Status {
	return cluster.Status{ClusterID: "c1", Leader: "n1", Healthy: true, Nodes: []cluster.NodeStatus{{ID: "n1", Name: "one", Alive: true}}}
}
func (alone) Remove(context.Context, string) error { return &cluster.NoLeaderError{Reason: "none"} }

// bench is an API on a socket, over HTTP/1.1 and HTTP/2 without TLS, as the admin listener serves it.
type bench struct {
	*service.Service
	api    *rpc.API
	log    *logtest.Log
	server *httptest.Server
	client *http.Client
}

func start(t *testing.T, o service.Options) bench {
	t.Helper()
	log := logtest.New()
	log.Raise()
	o.Log, o.Machine = log, log.Machine
	s := service.New(o)
	api := rpc.New(rpc.Options{Service: s, Guard: auth.NewGuard(auth.GuardOptions{}), Door: auth.NewDoor(auth.DoorOptions{Tokens: s}), Cluster: alone{}})
	srv := httptest.NewUnstartedServer(api)
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	srv.Config.Protocols = both
	srv.Start()
	t.Cleanup(srv.Close)
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: h2}
	t.Cleanup(transport.CloseIdleConnections)
	return bench{s, api, log, srv, &http.Client{Transport: transport}}
}

func (b bench) config(o ...connect.ClientOption) adminv1connect.ConfigServiceClient {
	return adminv1connect.NewConfigServiceClient(b.client, b.server.URL, o...)
}

func fields(t *testing.T, m map[string]any) *adminv1.Entity {
	t.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return &adminv1.Entity{Value: &adminv1.Entity_Fields{Fields: s}}
}

func create(t *testing.T, c adminv1connect.ConfigServiceClient, kind string, m map[string]any) *adminv1.MutateResponse {
	t.Helper()
	res, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{
		Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: kind}, Entity: fields(t, m),
	}))
	if err != nil {
		t.Fatalf("create %s: %v", kind, err)
	}
	if got, want := res.Header().Get("X-Config-Index"), fmt.Sprint(res.Msg.GetIndex()); got != want || got == "0" {
		t.Errorf("X-Config-Index is %s, the message says %s", got, want)
	}
	return res.Msg
}

// TestProtocols: the same life of an entity in each of the protocols.
func TestProtocols(t *testing.T) {
	for name, options := range map[string][]connect.ClientOption{
		"connect": nil, "connect json": {connect.WithProtoJSON()}, "connect get": {connect.WithHTTPGet()},
		"grpc": {connect.WithGRPC()}, "grpc gzip": {connect.WithGRPC(), connect.WithSendGzip()}, "grpc-web": {connect.WithGRPCWeb()},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, service.Options{})
			c := b.config(options...)
			made := create(t, c, "services", map[string]any{"name": "s", "url": "http://example.test/x"})
			in := &adminv1.Parent{Kind: "services", Ref: "s"}
			route, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{
				Verb: adminv1.Verb_VERB_UPSERT, Target: &adminv1.Target{Kind: "routes", Ref: "r", Parent: in}, Entity: fields(t, map[string]any{"paths": []any{"/r"}}),
			}))
			if err != nil {
				t.Fatal(err)
			}
			if got := route.Msg.GetEntity().GetFields().AsMap()["service"]; !cmp.Equal(got, map[string]any{"id": made.GetEntity().GetId()}) {
				t.Errorf("the route's service is %v", got)
			}
			got, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: &adminv1.Target{Kind: "services", Parent: &adminv1.Parent{Kind: "routes", Ref: "r"}}}))
			if err != nil || got.Msg.GetEntity().GetId() != made.GetEntity().GetId() {
				t.Errorf("the service of the route: %v, %v", got, err)
			}
			list, err := c.List(t.Context(), connect.NewRequest(&adminv1.ListRequest{Target: &adminv1.Target{Kind: "routes", Parent: in}}))
			if err != nil || len(list.Msg.GetEntities()) != 1 || list.Msg.GetNextPageToken() != "" {
				t.Errorf("the routes of the service: %v, %v", list, err)
			}
			gone := &adminv1.Target{Kind: "routes", Ref: "r"}
			if res, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{Verb: adminv1.Verb_VERB_DELETE, Target: gone})); err != nil || res.Msg.GetEntity() != nil {
				t.Errorf("delete: %v, %v", res, err)
			}
			_, err = c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: gone}))
			if connect.CodeOf(err) != connect.CodeNotFound {
				t.Errorf("get after delete: %v", err)
			}
		})
	}
}

// TestPages: tags and pages select as on Kong's paths.
func TestPages(t *testing.T) {
	b := start(t, service.Options{})
	c := b.config()
	for i := range 7 {
		tags := []any{"all"}
		if i%2 == 0 {
			tags = append(tags, "even")
		}
		create(t, c, "consumers", map[string]any{"username": fmt.Sprintf("c%d", i), "custom_id": fmt.Sprintf("x%d", i), "tags": tags})
	}
	count := func(m *adminv1.ListRequest) (n, pages int) {
		m.Target = &adminv1.Target{Kind: "consumers"}
		for {
			res, err := c.List(t.Context(), connect.NewRequest(m))
			if err != nil {
				t.Fatal(err)
			}
			n, pages = n+len(res.Msg.GetEntities()), pages+1
			if m.PageToken = res.Msg.GetNextPageToken(); m.PageToken == "" {
				return n, pages
			}
		}
	}
	for _, x := range []struct {
		name     string
		m        *adminv1.ListRequest
		n, pages int
	}{
		{"all", &adminv1.ListRequest{}, 7, 1},
		{"pages of three", &adminv1.ListRequest{PageSize: 3}, 7, 3},
		{"both tags", &adminv1.ListRequest{Tags: []string{"all", "even"}}, 4, 1},
		{"either tag", &adminv1.ListRequest{Tags: []string{"all", "even"}, TagMatch: adminv1.TagMatch_TAG_MATCH_ANY}, 7, 1},
		{"filter", &adminv1.ListRequest{Filter: map[string]string{"custom_id": "x3"}}, 1, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			if n, pages := count(x.m); n != x.n || pages != x.pages {
				t.Errorf("%d consumers on %d pages, want %d on %d", n, pages, x.n, x.pages)
			}
		})
	}
}

// TestRefusals: what is wrong gets the code that programs act upon, and says why.
func TestRefusals(t *testing.T) {
	b := start(t, service.Options{})
	c := b.config()
	create(t, c, "services", map[string]any{"name": "s", "host": "h"})
	create(t, c, "routes", map[string]any{"name": "r", "paths": []any{"/"}, "service": map[string]any{"name": "s"}})
	deep := map[string]any{}
	for range 200 {
		deep = map[string]any{"a": deep}
	}
	service := func(ref string) *adminv1.Target { return &adminv1.Target{Kind: "services", Ref: ref} }
	for _, x := range []struct {
		name string
		m    *adminv1.MutateRequest
		code connect.Code
		text string
	}{
		{"no verb", &adminv1.MutateRequest{Target: service("s")}, connect.CodeInvalidArgument, "verb"},
		{"no kind", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE}, connect.CodeInvalidArgument, "kind is missing"},
		{"unknown kind", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "servces"}}, connect.CodeInvalidArgument, "no kind"},
		{"the gateway's own rows", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "admin_tokens"}}, connect.CodeInvalidArgument, "no kind"},
		{"no ref", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_UPDATE, Target: service("")}, connect.CodeInvalidArgument, "ref is missing"},
		{"create with a ref", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: service("s")}, connect.CodeInvalidArgument, "VERB_UPSERT"},
		{"update of nothing", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_UPDATE, Target: service("x")}, connect.CodeNotFound, "could not find"},
		{"wrong type", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_UPDATE, Target: service("s"), Entity: fields(t, map[string]any{"retries": "x"})}, connect.CodeInvalidArgument, "retries"},
		{"name taken", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: service(""), Entity: fields(t, map[string]any{"name": "s", "host": "h"})}, connect.CodeAlreadyExists, "UNIQUE"},
		{"in use", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_DELETE, Target: service("s")}, connect.CodeFailedPrecondition, "references"},
		{"too deep", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_UPDATE, Target: service("s"), Entity: fields(t, deep)}, connect.CodeInvalidArgument, "deeper"},
		{"a number that is none", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_UPDATE, Target: service("s"), Entity: &adminv1.Entity{Value: &adminv1.Entity_Fields{
			Fields: &structpb.Struct{Fields: map[string]*structpb.Value{"retries": structpb.NewNumberValue(nan())}}}}}, connect.CodeInvalidArgument, "retries"},
		{"strangers", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "services", Parent: &adminv1.Parent{Kind: "consumers", Ref: "x"}}}, connect.CodeInvalidArgument, "do not refer"},
		{"a field that refers to nothing", &adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "routes", Parent: &adminv1.Parent{Kind: "services", Ref: "s", Field: "name"}}},
			connect.CodeInvalidArgument, "do not refer"},
	} {
		t.Run(x.name, func(t *testing.T) {
			before := b.Index()
			_, err := c.Mutate(t.Context(), connect.NewRequest(x.m))
			if connect.CodeOf(err) != x.code || !strings.Contains(err.Error(), x.text) {
				t.Errorf("%v, want %v and %q", err, x.code, x.text)
			}
			if b.Index() != before {
				t.Error("something was stored")
			}
		})
	}
}

func nan() float64 { var zero float64; return zero / zero }

// TestDetails: programs find out which field is wrong without reading prose.
func TestDetails(t *testing.T) {
	b := start(t, service.Options{})
	_, err := b.config(connect.WithGRPC()).Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{
		Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "services"}, Entity: fields(t, map[string]any{"host": "h", "tags": []any{"ok", 7.0}, "x": 1.0}),
	}))
	var e *connect.Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	got := map[string]string{}
	var refusal *adminv1.Refusal
	for _, d := range e.Details() {
		m, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *errdetails.BadRequest:
			for _, v := range m.GetFieldViolations() {
				got[v.GetField()] = v.GetDescription()
			}
		case *adminv1.Refusal:
			refusal = m
		}
	}
	if want := "unknown field"; got["x"] != want || len(got) != 2 {
		t.Errorf("violations: %v", got)
	}
	if refusal.GetCode() != int32(service.SchemaViolation) || refusal.GetName() != "schema violation" || refusal.GetFields().GetFields()["x"] == nil {
		t.Errorf("refusal: %v", refusal)
	}
	if e.Meta().Get("X-Config-Index") == "" {
		t.Error("the error has no X-Config-Index")
	}
}

// TestDoor: guard, door and roles stand before every service, reflection included.
func TestDoor(t *testing.T) {
	b := start(t, service.Options{RequireToken: true})
	text, _, err := b.CreateToken(t.Context(), map[string]any{"name": "me", "role": "super"}, false)
	if err != nil {
		t.Fatal(err)
	}
	reader, _, err := b.CreateToken(service.WithActor(t.Context(), service.Actor{Token: mustID(t, b, text)}), map[string]any{"name": "reader", "role": "read-only"}, false)
	if err != nil {
		t.Fatal(err)
	}
	post := func(path, body string, header ...string) int {
		r, err := http.NewRequest(http.MethodPost, b.server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	const list, mutate, remove = "/concord.admin.v1.ConfigService/List", "/concord.admin.v1.ConfigService/Mutate", "/concord.admin.v1.ClusterService/Remove"
	const services, made = `{"target":{"kind":"services"}}`, `{"verb":"VERB_CREATE","target":{"kind":"services"},"entity":{"fields":{"host":"h"}}}`
	for _, x := range []struct {
		name, path, body string
		header           []string
		status           int
	}{
		{"no token", list, services, nil, 401},
		{"a wrong token", list, services, []string{"Kong-Admin-Token", "gwat_x"}, 401},
		{"a page elsewhere", list, services, []string{"Origin", "http://evil.example", "Authorization", "Bearer " + text}, 403},
		{"a token", list, services, []string{"Authorization", "Bearer " + text}, 200},
		{"a reader reads", list, services, []string{"Authorization", "Bearer " + reader}, 200},
		{"a reader does not write", mutate, made, []string{"Authorization", "Bearer " + reader}, 403},
		{"a reader does not remove nodes", remove, `{"node":"one"}`, []string{"Authorization", "Bearer " + reader}, 403},
		{"the cluster says why", remove, `{"node":"one"}`, []string{"Authorization", "Bearer " + text}, 503},
		{"no such node", remove, `{"node":"two"}`, []string{"Authorization", "Bearer " + text}, 404},
		{"a future index", list, services, []string{"Authorization", "Bearer " + text, "X-Min-Config-Index", "99999999"}, 400},
		{"no index", list, services, []string{"Authorization", "Bearer " + text, "X-Min-Config-Index", "x"}, 400},
		{"reflection without a token", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "", []string{"Content-Type", "application/grpc"}, 200}, // trailers say no
	} {
		t.Run(x.name, func(t *testing.T) {
			if got := post(x.path, x.body, x.header...); got != x.status {
				t.Errorf("status %d, want %d", got, x.status)
			}
		})
	}
}

func mustID(t *testing.T, b bench, text string) string {
	t.Helper()
	id, err := b.Authenticate(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

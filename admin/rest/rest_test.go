package rest_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"concord/admin/auth"
	"concord/admin/rest"
	"concord/admin/service"
	"concord/admin/service/logtest"
	"concord/cluster"
	"concord/fsm/command"
	"concord/fsm/schema"
	"concord/proxy/balancer"
	"concord/proxy/plugin"
	"concord/proxy/plugins/acme"
	"concord/proxy/plugins/all"
	"concord/proxy/plugins/prometheus"
	"concord/ratelimit"
	"concord/test/transcript"
)

// gateway is an Admin API over a machine in memory.
type gateway struct {
	log     *logtest.Log
	service *service.Service
	api     *rest.API
}

func newGateway() *gateway {
	g := &gateway{log: logtest.New()}
	g.log.Raise()
	var plugins []rest.Plugin
	byName := map[string]*schema.Schema{}
	for _, p := range all.Plugins(prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New()) {
		byName[p.Info.Name] = plugin.SchemaOf(p)
		plugins = append(plugins, rest.Plugin{Name: p.Info.Name, Version: p.Info.Version, Priority: p.Info.Priority, Schema: byName[p.Info.Name]})
	}
	g.service = service.New(service.Options{
		Log: g.log, Machine: g.log.Machine, Timeout: time.Second,
		Plugins: func(name string) (*schema.Schema, bool) { s, ok := byName[name]; return s, ok },
	})
	g.api = rest.New(rest.Options{Service: g.service, Guard: auth.NewGuard(auth.GuardOptions{}), Door: auth.NewDoor(auth.DoorOptions{Tokens: g.service}), Cluster: &fakeCluster{}, Balancer: fakeBalancer{}, Tracer: fakeTracer{}, ACME: noOrders{acme.New()}, Plugins: plugins, Info: rest.Info{
		Hostname: "test", Version: "0.1.0",
		Configuration: func() map[string]any {
			return map[string]any{"proxy_listen": []string{"0.0.0.0:8000", "0.0.0.0:8443 http2 ssl"}, "admin_listen": []string{"off"}, "log_level": "notice"}
		},
		Counters: func() rest.Counters { return rest.Counters{Active: 1, Accepted: 2, Requests: 3} },
	}})
	return g
}

// do serves a request without a socket.
func (g *gateway) do(r *http.Request) (*http.Response, error) {
	s := httptest.NewRequest(r.Method, r.URL.RequestURI(), r.Body)
	s.Header, s.Host, s.RemoteAddr = r.Header, r.Host, "127.0.0.1:40000"
	w := httptest.NewRecorder()
	g.api.ServeHTTP(w, s)
	return w.Result(), nil
}

func (g *gateway) request(method, path, contentType, body string) *http.Response {
	r := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, _ := g.do(r)
	return resp
}

// fakeBalancer knows one upstream.
type fakeBalancer struct{}

func (fakeBalancer) TargetHealth(upstream string) (map[string]map[string]any, bool) {
	return map[string]map[string]any{"22222222-2222-4222-8222-222222222222": {"health": "HEALTHY", "data": map[string]any{"host": "h"}}}, upstream != ""
}

func (fakeBalancer) PoolHealth(upstream string) (map[string]any, bool) {
	return map[string]any{"health": "HEALTHY"}, upstream != ""
}

func (fakeBalancer) SetHealth(upstream, target, address string, _ bool) error {
	switch {
	case upstream == "" || target == "":
		return errors.New("no ids")
	case address == "10.0.0.9:1":
		return balancer.ErrUnknown
	case address == "broken":
		return errors.New("it is broken")
	}
	return nil
}

var _ rest.Balancer = (*balancer.Set)(nil)

// fakeTracer shows what it was asked.
type fakeTracer struct{}

func (fakeTracer) Trace(q rest.TraceQuery) (rest.Trace, error) {
	if q.Path == "/%00" {
		return rest.Trace{}, errors.New("path: contains %00")
	}
	return rest.Trace{Path: q.Path, Notes: []string{fmt.Sprintf("%+v", q)}}, nil
}

// fakeCluster is a cluster of two nodes and a third of the same name.
type fakeCluster struct{}

func (f *fakeCluster) ID() string { return "5d3c0d3e-8c4b-4b8e-9d3a-4e0b1c2d3e4f" }

func (f *fakeCluster) Status(context.Context) cluster.Status {
	return cluster.Status{ClusterID: "c", Leader: "n1", Healthy: true, Nodes: []cluster.NodeStatus{
		{ID: "n1", Name: "alpha", State: "leader"}, {ID: "n2", Name: "beta", State: "follower"}, {ID: "n3", Name: "beta"}}}
}

func (f *fakeCluster) CreateToken(_ context.Context, o cluster.TokenOptions) (string, error) {
	return strings.Join([]string{"CJT1", o.Role, o.TTL.String(), string(rune('0' + o.Uses))}, "."), nil
}

func (f *fakeCluster) Join(_ context.Context, addr, token string, discard bool) error {
	switch {
	case addr == "busy:1" && !discard:
		return cluster.ErrHoldsData
	case token == "bad":
		return &cluster.RefusedError{Reason: "the token has expired"}
	}
	return nil
}

func (f *fakeCluster) Leave(context.Context) error { return nil }

func (f *fakeCluster) Remove(_ context.Context, id string) error {
	if id == "n1" {
		return &cluster.NoLeaderError{Reason: "election"}
	}
	return nil
}

func (f *fakeCluster) TransferLeadership(_ context.Context, to string) error {
	if to == "n2" || to == "" {
		return nil
	}
	return &cluster.RefusedError{Reason: "no voter"}
}

func TestTranscripts(t *testing.T) {
	// Those of this package need its fakes: a cluster, a balancer and a proxy that answer by heart.
	files := []string{"testdata/cluster.txtar", "testdata/health.txtar", "testdata/trace.txtar"}
	if own, _ := filepath.Glob("testdata/*.txtar"); len(own) != len(files) {
		t.Errorf("%v: transcripts that run anywhere belong to test/conformance", own)
	}
	shared, err := filepath.Glob("../../test/conformance/*.txtar")
	if err != nil || len(shared) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	files = append(files, shared...)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			steps, err := transcript.Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			g, vars := newGateway(), transcript.Vars{}
			for _, s := range steps {
				t.Run(s.Name, func(t *testing.T) {
					if err := s.Run(g.do, "http://localhost:8001", vars); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// TestStatusListener: probes ask under any name; nothing but the status is there.
func TestStatusListener(t *testing.T) {
	g := newGateway()
	var unready error
	api := rest.NewStatus(rest.Options{Service: g.service, Info: rest.Info{Ready: func() error { return unready }}})
	get := func(path string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest("GET", path, nil), httptest.NewRecorder()
		r.Host = "10.1.2.3:8007"
		r.Header.Set("Origin", "http://evil.example")
		api.ServeHTTP(w, r)
		return w
	}
	for path, want := range map[string]int{"/status": 200, "/status/ready": 200, "/services": 404, "/": 404, "/metrics": 404} {
		if w := get(path); w.Code != want || w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	unready = errors.New("the node is stopping")
	if w := get("/status/ready"); w.Code != 503 || !strings.Contains(w.Body.String(), "stopping") {
		t.Errorf("not ready: %d %s", w.Code, w.Body)
	}
}

// TestDrain: whoever runs the machine takes the node out of rotation; a web page cannot.
func TestDrain(t *testing.T) {
	g := newGateway()
	api := rest.NewStatus(rest.Options{Service: g.service})
	send := func(method, body, contentType, origin string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest(method, "/status/ready", strings.NewReader(body)), httptest.NewRecorder()
		if body != "" {
			r.Header.Set("Content-Type", contentType)
		}
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		api.ServeHTTP(w, r)
		return w
	}
	const form, object = "application/x-www-form-urlencoded", "application/json"
	for _, c := range []struct {
		method, body, kind, origin string
		status                     int
	}{
		{"POST", "", "", "", 400},
		{"POST", "status=ready", form, "", 400},
		{"POST", `{"status":5}`, object, "", 400},
		{"POST", "status=draining", form, "http://evil.example", 403},
		{"POST", "status=draining", "text/plain", "", 415},
		{"GET", "", "", "", 200},
		{"POST", `{"status":"draining"}`, object, "", 204},
		{"GET", "", "", "", 503},
		{"POST", "status=draining", form, "", 204},
	} {
		if w := send(c.method, c.body, c.kind, c.origin); w.Code != c.status {
			t.Errorf("%s %s: %d %s", c.method, c.body, w.Code, w.Body)
		}
	}
	if w := send("GET", "", "", ""); w.Body.String() != `{"message":"draining"}` {
		t.Errorf("%s", w.Body)
	}
	if resp := g.request("POST", "/status/ready", form, "status=draining"); resp.StatusCode != 405 {
		t.Errorf("the switch is on the status listener only: %d", resp.StatusCode)
	}
}

// TestLogLevel: the level changes for a while and then is what it was.
func TestLogLevel(t *testing.T) {
	g := newGateway()
	level, told := new(slog.LevelVar), ""
	names := map[string]slog.Level{"info": slog.LevelInfo, "debug": slog.LevelDebug, "error": slog.LevelError}
	name := func(l slog.Level) string { return strings.ToLower(l.String()) }
	g.api = rest.New(rest.Options{Service: g.service, Info: rest.Info{LogLevel: &rest.LogLevel{
		Var: level, Name: name, Parse: func(s string) (slog.Level, bool) { l, ok := names[s]; return l, ok },
		Tell: func(name string, seconds int) error {
			if told = fmt.Sprint(name, " ", seconds); name == "error" {
				return errors.New("n2: away")
			}
			return nil
		},
	}}})
	for _, c := range []struct {
		method, path, body string
		status             int
		want, of, told     string
	}{
		{"GET", "", "", 200, "log level: info", "", ""},
		{"PUT", "/nonsense", "", 400, "unknown log level: nonsense", "", ""},
		{"PUT", "/info", "", 200, "log level is already info", "", ""},
		{"PUT", "/debug?timeout=-1", "", 400, "timeout must be greater than or equal to 0", "", ""},
		{"PUT", "/debug?timeout=x", "", 400, "timeout must be a number of seconds", "", ""},
		{"PUT", "/debug", `{"timeout":1e300}`, 400, "timeout must be a number of seconds", "", ""},
		{"GET", "", "", 200, "log level: info", "", ""},
		{"PUT", "/debug", "", 200, "log level changed", "", ""},
		{"GET", "", "", 200, "log level: debug", "", ""},
		{"PUT", "/error", `{"timeout":60}`, 200, "log level changed", "", ""},
		{"PUT", "/debug", "", 200, "log level changed", "cluster", "debug 60"},
		{"PUT", "/debug", `{"timeout":7}`, 200, "log level is already debug", "cluster", "debug 7"},
		{"PUT", "/nonsense", "", 400, "unknown log level: nonsense", "cluster", ""},
		{"PUT", "/error?timeout=5", "", 500, "failed broadcasting to cluster: n2: away", "cluster", "error 5"},
		{"PUT", "/debug?timeout=0", "", 200, "log level changed", "", ""},
	} {
		resp := g.request(c.method, "/debug/"+cmp.Or(c.of, "node")+"/log-level"+c.path, "application/json", c.body)
		var e struct{ Message string }
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != c.status || e.Message != c.want {
			t.Errorf("%s %s: %d %q %v", c.method, c.path, resp.StatusCode, e.Message, err)
		}
		if told != c.told {
			t.Errorf("%s %s: others are told %q", c.method, c.path, told)
		}
		told = ""
	}
	for deadline := time.Now().Add(60 * time.Second); level.Level() != slog.LevelInfo; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the level is still %v", level.Level())
		}
	}
	if resp := newGateway().request("GET", "/debug/node/log-level", "", ""); resp.StatusCode != 404 {
		t.Errorf("without a log to change: %d", resp.StatusCode)
	}
}

// TestUnavailable: without a leader a write is answered 503 with the reason and when to try again.
func TestUnavailable(t *testing.T) {
	g := newGateway()
	g.log.NoLeader = true
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		path := "/consumers/x"
		if method == "POST" {
			path = "/consumers"
		}
		resp := g.request(method, path, "application/json", `{"username":"x"}`)
		var e struct{ Message string }
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(e.Message, "majority") {
			t.Errorf("%s: %d %v %q %v", method, resp.StatusCode, resp.Header, e.Message, err)
		}
	}
	if resp := g.request("GET", "/consumers", "", ""); resp.StatusCode != 200 {
		t.Errorf("reading needs no leader: %d", resp.StatusCode)
	}
}

// TestPanic: a mistake in a handler is a 500 that says nothing about it, and the next request is served.
// Keys stay out of logs where they are part of a path.
func TestLogPath(t *testing.T) {
	api := newGateway().api
	for path, want := range map[string]string{
		"/key-auths/s3cret":          "/key-auths/{keyauth_credentials}",
		"/key-auths/s3cret/consumer": "/key-auths/{keyauth_credentials}/consumer",
		"/consumers/ado/key-auth/0b2aee54-6a4a-4a4d-9f4b-2b8b3fd6d4a5/": "/consumers/ado/key-auth/{keyauth_credentials}",
		"/oauth2_tokens/s%2Fcret": "/oauth2_tokens/{oauth2_tokens}",
		"/consumers/a%20b/jwt":    "/consumers/a%20b/jwt",
		"/":                       "/",
		"/nonsense/%zz":           "/nonsense/%zz",
	} {
		if got := api.LogPath(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestPanic(t *testing.T) {
	g := newGateway()
	g.log.BeforePropose = func(command.Command) error { panic("planted") }
	resp := g.request("POST", "/consumers", "application/json", `{"username":"x"}`)
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 500 || string(body) != `{"message":"An unexpected error occurred"}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp := g.request("GET", "/consumers", "", ""); resp.StatusCode != 200 {
		t.Errorf("after a panic: %d", resp.StatusCode)
	}
}

// noOrders is an acme plugin that is not configured.
type noOrders struct{ *acme.Orders }

func (o noOrders) Certificates(name string) ([]any, error) {
	_, err := o.Orders.Certificates(name)
	return nil, err
}

// BenchmarkCreateAPI: what an API under /apis costs does not grow with how many there are.
func BenchmarkCreateAPI(b *testing.B) {
	for _, have := range []int{1, 2000} {
		g := newGateway()
		n := 0
		create := func() {
			body := fmt.Sprintf(`{"name":"api-%d","upstream_url":"http://127.0.0.1","request_host":"h%[1]d.example","request_path":"/p%[1]d"}`, n)
			if resp := g.request("POST", "/apis", "application/json", body); resp.StatusCode != http.StatusCreated {
				b.Fatalf("%s: %d", body, resp.StatusCode)
			}
			n++
		}
		for range have {
			create()
		}
		b.Run(fmt.Sprint(have), func(b *testing.B) {
			for b.Loop() {
				create()
			}
		})
	}
}

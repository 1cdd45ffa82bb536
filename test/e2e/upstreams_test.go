package e2e

import (
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/test/harness"
)

// backend is a server that answers with its name, and can be killed and brought back on the same port.
type backend struct {
	addr   string
	served atomic.Int64 // requests of clients, not probes
	t      *testing.T
	server *http.Server
}

func startBackend(t *testing.T) *backend {
	b := &backend{addr: fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t)), t: t}
	b.start()
	t.Cleanup(b.kill)
	return b
}

func (b *backend) start() {
	b.t.Helper()
	l, err := net.Listen("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/alive" {
			b.served.Add(1)
		}
		fmt.Fprint(w, b.addr)
	})}
	go b.server.Serve(l)
}

func (b *backend) kill() { b.server.Close() }

// balanced is an upstream with a service and a route on a cluster.
type balanced struct {
	*harness.Cluster
	t     *testing.T
	index string // of the last write
}

func balance(t *testing.T, nodes int, upstream string) *balanced {
	b := &balanced{Cluster: harness.StartCluster(t, nodes), t: t}
	b.write("POST", "/upstreams", upstream, 201)
	b.write("POST", "/services", `{"name":"app","host":"app.up"}`, 201)
	b.write("POST", "/services/app/routes", `{"paths":["/app"]}`, 201)
	return b
}

// write sends a change to a random node.
func (b *balanced) write(method, path, body string, status int) harness.Answer {
	b.t.Helper()
	a := expect(b.t, method+" "+path, b.Any().JSON(method, path, body), status)
	if a.Status < 300 {
		b.index = a.Index()
	}
	return a
}

// add makes n backends targets.
func (b *balanced) add(n int) []*backend {
	b.t.Helper()
	var list []*backend
	for range n {
		s := startBackend(b.t)
		b.write("POST", "/upstreams/app.up/targets", `{"target":"`+s.addr+`"}`, 201)
		list = append(list, s)
	}
	return list
}

// requests sends n GETs, several at a time and each to a random node. It returns the backends that answered, by request, and fails the
// test unless all answers are 200. header is the value of X-User, by request.
func (b *balanced) requests(what string, n int, header func(i int) string) []string {
	b.t.Helper()
	by := make([]string, n)
	var next, failed atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				user := "u"
				if header != nil {
					user = header(i)
				}
				a, err := harness.Do("GET", "http://"+b.Any().Proxy+"/app", "", "", "X-User", user, "X-Min-Config-Index", b.index)
				if (err != nil || a.Status != 200) && failed.Add(1) <= 3 {
					b.t.Errorf("%s: request %d: %d %s %v", what, i, a.Status, a.Body, err)
				}
				by[i] = a.Body
			}
		})
	}
	group.Wait()
	if b.t.Failed() {
		b.t.FailNow()
	}
	return by
}

// share counts the requests of a backend.
func share(by []string, s *backend) int {
	n := 0
	for _, addr := range by {
		if addr == s.addr {
			n++
		}
	}
	return n
}

// health is what a node thinks of a backend.
func (b *balanced) health(n *harness.Node, s *backend) string {
	b.t.Helper()
	a := expect(b.t, "health", n.JSON("GET", "/upstreams/app.up/health", "", "X-Min-Config-Index", b.index), 200)
	list, _ := a.JSON()["data"].([]any)
	for _, item := range list {
		if target := item.(map[string]any); target["target"] == s.addr {
			text, _ := target["health"].(string)
			return text
		}
	}
	b.t.Fatalf("target %s is not listed: %s", s.addr, a.Body)
	return ""
}

// await fails the test unless every node comes to think so of a backend; between looks it calls do.
func (b *balanced) await(s *backend, want string, do func()) {
	b.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for _, n := range b.Nodes {
		for b.health(n, s) != want {
			if time.Now().After(deadline) {
				b.t.Fatalf("%s: %s is %s, want %s", n.Name, s.addr, b.health(n, s), want)
			}
			do()
		}
	}
}

func onOneAndThree(t *testing.T, f func(t *testing.T, nodes int)) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", n), func(t *testing.T) {
			t.Parallel()
			f(t, n)
		})
	}
}

// TestPassiveHealth: a target that dies under load costs no client an answer, leaves the balancer of every node by what the
// nodes see of it, and comes back on all of them by one call of the Admin API.
func TestPassiveHealth(t *testing.T) {
	onOneAndThree(t, func(t *testing.T, nodes int) {
		b := balance(t, nodes, `{"name":"app.up"}`)
		expect(t, "no targets", b.Any().Get("/app", "X-Min-Config-Index", b.index), 503, "message", "failure to get a peer from the ring-balancer")
		targets := b.add(3)
		item := func(s *backend) string { return "/upstreams/app.up/targets/" + s.addr }
		if got := b.health(b.Any(), targets[0]); got != "HEALTHCHECKS_OFF" {
			t.Errorf("health without checks: %s", got)
		}
		b.write("PUT", item(targets[0])+"/healthy", "", 204) // as in Kong, though nobody checks
		b.write("PATCH", "/upstreams/app.up", `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":2}}}}`, 200)

		by := b.requests("all alive", 300, nil)
		for _, s := range targets {
			if n := share(by, s); n < 80 || n > 120 {
				t.Errorf("%s got %d of 300 requests", s.addr, n)
			}
		}
		lost := targets[1]
		kill := time.AfterFunc(50*time.Millisecond, lost.kill) // in the midst of them
		b.requests("one dies", 600, nil)
		if kill.Stop() {
			lost.kill()
		}
		b.await(lost, "UNHEALTHY", func() { b.requests("one is dead", 50, nil) })
		for _, n := range b.Nodes {
			a := expect(t, "balancer health", n.JSON("GET", "/upstreams/app.up/health?balancer_health=1", ""), 200)
			pool, _ := a.JSON()["data"].(map[string]any)
			if pool["health"] != "HEALTHY" || pool["balancer_health"] != "HEALTHY" {
				t.Errorf("%s: %s", n.Name, a.Body)
			}
		}
		lost.start()
		before := lost.served.Load()
		b.requests("nobody has looked whether it is back", 100, nil)
		if n := lost.served.Load() - before; n != 0 {
			t.Errorf("a target that only passive checks look at got %d requests before it was set healthy", n)
		}
		b.write("PUT", item(lost)+"/healthy", "", 204)
		for _, n := range b.Nodes {
			if got := b.health(n, lost); got != "HEALTHY" {
				t.Errorf("%s: %s after it was set healthy", n.Name, got)
			}
		}
		deadline := time.Now().Add(60 * time.Second) // at first it gets less than its share
		for lost.served.Load() == before {
			if time.Now().After(deadline) {
				t.Fatal("no request for the target that is back")
			}
			b.requests("it is back", 50, nil)
		}

		b.write("PUT", item(targets[0])+"/unhealthy", "", 204)
		b.write("POST", item(targets[2])+"/"+targets[2].addr+"/unhealthy", "", 204) // as old clients do, by its address
		for _, addr := range b.requests("one is left", 100, nil) {
			if addr != lost.addr {
				t.Fatalf("%s answers after it was set unhealthy", addr)
			}
		}
		b.write("PUT", item(lost)+"/unhealthy", "", 204)
		for _, n := range b.Nodes {
			expect(t, "all unhealthy", n.Get("/app"), 503, "message", "failure to get a peer from the ring-balancer")
			if a := n.JSON("GET", "/upstreams/app.up/health?balancer_health=1", ""); !strings.Contains(a.Body, `"balancer_health":"UNHEALTHY"`) {
				t.Errorf("%s: %s", n.Name, a.Body)
			}
		}
		b.write("PUT", item(lost)+"/127.0.0.1:1/healthy", "", 404)
		b.write("PUT", "/upstreams/app.up/targets/127.0.0.1:1/healthy", "", 404)

		b.write("PUT", "/debug/cluster/log-level/debug", "", 200) // goes the same way to all nodes
		for _, n := range b.Nodes {
			expect(t, "log level", n.JSON("GET", "/debug/node/log-level", ""), 200, "message", "log level: debug")
		}
	})
}

// TestActiveHealth: probes take a dead target out without any traffic, and bring it back.
func TestActiveHealth(t *testing.T) {
	onOneAndThree(t, func(t *testing.T, nodes int) {
		b := balance(t, nodes, `{"name":"app.up","healthchecks":{"active":{"http_path":"/alive","healthy":{"interval":0.1,"successes":1},
			"unhealthy":{"interval":0.1,"tcp_failures":1,"http_failures":1}}}}`)
		targets := b.add(3)
		lost := targets[2]
		pause := func() { time.Sleep(50 * time.Millisecond) }
		lost.kill()
		b.await(lost, "UNHEALTHY", pause)
		if n := share(b.requests("one is dead", 100, nil), lost); n != 0 {
			t.Errorf("%d answers of a dead target", n)
		}
		lost.start()
		b.await(lost, "HEALTHY", pause)
		deadline := time.Now().Add(60 * time.Second)
		for lost.served.Load() == 0 {
			if time.Now().After(deadline) {
				t.Fatal("no request for the target that is back")
			}
			b.requests("it is back", 50, nil)
		}
	})
}

// TestWeights: of 10,000 requests to random nodes every target gets its share within 2 %.
func TestWeights(t *testing.T) {
	t.Parallel()
	b := balance(t, 3, `{"name":"app.up"}`)
	light, heavy := startBackend(t), startBackend(t)
	b.write("POST", "/upstreams/app.up/targets", `{"target":"`+light.addr+`","weight":10}`, 201)
	b.write("POST", "/upstreams/app.up/targets", `{"target":"`+heavy.addr+`","weight":30}`, 201)
	const n = 10_000
	by := b.requests("weights", n, nil)
	for s, want := range map[*backend]float64{light: 0.25, heavy: 0.75} {
		if got := float64(share(by, s)) / n; math.Abs(got-want) > 0.02*want {
			t.Errorf("%s got %.4f of the requests, want %.2f", s.addr, got, want)
		}
	}
	b.write("PATCH", "/upstreams/app.up/targets/"+heavy.addr, `{"weight":0}`, 200)
	if got := share(b.requests("weight 0", 100, nil), heavy); got != 0 {
		t.Errorf("a target of weight 0 got %d requests", got)
	}
}

// TestConsistentHashing: the same header leads to the same target from every node, and when a target goes, only its
// requests go elsewhere.
func TestConsistentHashing(t *testing.T) {
	t.Parallel()
	b := balance(t, 3, `{"name":"app.up","algorithm":"consistent-hashing","hash_on":"header","hash_on_header":"X-User","slots":50000}`)
	targets := b.add(4)
	const keys = 3000
	user := func(i int) string { return fmt.Sprint("user-", i) }
	first := b.requests("first", keys, user)
	for i, addr := range b.requests("again", keys, user) {
		if addr != first[i] {
			t.Fatalf("%s came to %s, then to %s", user(i), first[i], addr)
		}
	}
	gone := targets[1]
	b.write("DELETE", "/upstreams/app.up/targets/"+gone.addr, "", 204)
	moved := 0
	for i, addr := range b.requests("one is deleted", keys, user) {
		switch {
		case addr == first[i]:
		case first[i] != gone.addr:
			t.Fatalf("%s moved from %s to %s, and neither was deleted", user(i), first[i], addr)
		default:
			moved++
		}
	}
	if limit := 1.2 / float64(len(targets)) * keys; moved == 0 || float64(moved) > limit {
		t.Errorf("%d of %d keys moved, want at most %.0f", moved, keys, limit)
	}
	b.write("DELETE", "/upstreams/app.up/targets/"+gone.addr, "", 404)
}

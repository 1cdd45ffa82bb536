package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"concord/test/harness"
)

// brokenOff is what roundRobin answers when a node went away in the middle of a request: the client has to decide.
const brokenOff = 599

// nextNode sends each request to another node of the cluster, and past those that refuse the connection.
type nextNode struct {
	nodes []*harness.Node
	turn  atomic.Uint64
	dial  http.Transport // without idle connections: only what is under way breaks with a node
}

func (n *nextNode) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	var err error
	if r.Body != nil {
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	var answer *http.Response
	for range n.nodes {
		r.URL.Host = n.nodes[n.turn.Add(1)%uint64(len(n.nodes))].Admin
		r.Body = io.NopCloser(bytes.NewReader(body))
		if answer, err = n.dial.RoundTrip(r); !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return answer, err
}

// roundRobin is the load balancer in front of a cluster's Admin API. It returns its URL.
func roundRobin(t testing.TB, c *harness.Cluster) string {
	t.Helper()
	s := httptest.NewServer(&httputil.ReverseProxy{
		Transport:    &nextNode{nodes: c.Nodes, dial: http.Transport{DisableKeepAlives: true}},
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: c.Nodes[0].Admin}) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { http.Error(w, err.Error(), brokenOff) },
	})
	t.Cleanup(s.Close)
	return s.URL
}

// TestWriters: ten writers do what decK does (parents, then what belongs to them, made by PUT under ids of their own) through a load
// balancer that gives every request to another node, while the leader hands over and is then killed. What was answered is there for whoever asks
// next, nobody is refused, and at the end the configuration is what was written.
func TestWriters(t *testing.T) {
	t.Parallel()
	const writers, rounds = 10, 6
	c := harness.StartCluster(t, 3)
	base := roundRobin(t, c)
	type rec = map[string]any
	type list = []any

	var done, broken, starved atomic.Int64
	var services, consumers, upstreams [writers * rounds]any
	write := func(w, round int) error {
		again := false
		do := func(want int, method, path string, body any) error {
			text := ""
			if body != nil {
				b, err := json.Marshal(body)
				if err != nil {
					return err
				}
				text = string(b)
			}
			for {
				a, err := harness.Do(method, base+path, "application/json", text)
				if err != nil {
					return err
				}
				switch done.Add(1); {
				case a.Status == want:
				case a.Status == brokenOff: // the node that was asked died: the client repeats
					broken.Add(1)
					again = true
					continue
				case a.Status == 503 && strings.Contains(a.Body, "can be reached"): // a machine so busy that nodes take their peers for gone
					starved.Add(1)
					again = true
					continue
				case a.Status == 409 && again && method == "POST": // the first one was stored
				default:
					return fmt.Errorf("%s %s: %d %s", method, path, a.Status, a.Body)
				}
				again = false
				return nil
			}
		}
		name := fmt.Sprintf("w%d-%d", w, round)
		service, route, plugin, consumer, key := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
		services[w*rounds+round] = rec{"id": service, "name": name, "host": name + ".up", "retries": 3, "routes": list{rec{"id": route, "name": name, "paths": list{"/" + name},
			"plugins": list{rec{"id": plugin, "name": "key-auth"}}}}}
		consumers[w*rounds+round] = rec{"id": consumer, "username": name, "keyauth_credentials": list{rec{"id": key, "key": name}}, "acls": list{rec{"group": "all"}}}
		upstreams[w*rounds+round] = rec{"name": name + ".up", "targets": list{rec{"target": "127.0.0.1:1", "weight": 7}}}
		return errors.Join(
			do(200, "PUT", "/services/"+service, rec{"name": name, "host": name + ".up"}),
			do(200, "PUT", "/routes/"+route, rec{"name": name, "paths": list{"/" + name}, "service": rec{"id": service}}),
			do(200, "PUT", "/plugins/"+plugin, rec{"name": "key-auth", "route": rec{"id": route}}),
			do(200, "PUT", "/consumers/"+consumer, rec{"username": name}),
			do(200, "PUT", "/consumers/"+consumer+"/key-auth/"+key, rec{"key": name}),
			do(201, "POST", "/consumers/"+name+"/acls", rec{"group": "all"}),
			do(201, "POST", "/upstreams", rec{"name": name + ".up"}),
			do(201, "POST", "/upstreams/"+name+".up/targets", rec{"target": "127.0.0.1:1", "weight": 7}),
			do(200, "PATCH", "/services/"+name, rec{"retries": 3}),
			do(200, "GET", "/routes/"+route+"/plugins/"+plugin, nil),
			do(200, "GET", "/consumers/"+name+"/key-auth/"+key, nil))
	}

	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for round := range rounds {
				if err := write(w, round); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	reach := func(share int64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); done.Load() < writers*rounds*11*share/10; time.Sleep(5 * time.Millisecond) {
			if t.Failed() || time.Now().After(deadline) {
				t.Fatalf("%d requests were answered", done.Load())
			}
		}
	}
	reach(2)
	if _, err := c.Any().Gwctl("cluster", "transfer-leader"); err != nil {
		t.Error(err)
	}
	reach(5)
	victim := c.Leader(15 * time.Second)
	if victim == nil {
		t.Fatal("no leader")
	}
	victim.Kill()
	reach(8)
	victim.Start()
	wg.Wait()
	t.Logf("%d requests, %d of them broken off with their node, %d without a majority", done.Load(), broken.Load(), starved.Load())

	text, err := json.Marshal(rec{"_format_version": "3.0", "services": services, "consumers": consumers, "upstreams": upstreams})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "written.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if out, err := n.Gwctl("config", "diff", file, "--non-zero-exit-code"); err != nil {
			t.Errorf("%s: %v\n%s", n.Name, err, out)
		}
	}
}

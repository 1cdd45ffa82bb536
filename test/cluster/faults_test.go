package cluster

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"concord/test/harness"
)

// protect makes a service with a key-auth route /p and a consumer whose key is "k-1"; it returns the index of the last write.
func protect(t *testing.T, n *harness.Node, upstream string) string {
	t.Helper()
	var last harness.Answer
	for _, s := range [][3]string{
		{"/services", `{"name":"p","url":"` + upstream + `"}`},
		{"/services/p/routes", `{"name":"p","paths":["/p"]}`},
		{"/services/p/plugins", `{"name":"key-auth"}`},
		{"/consumers", `{"username":"kim"}`},
		{"/consumers/kim/key-auth", `{"key":"k-1"}`},
	} {
		if last = n.JSON("POST", s[0], s[1]); last.Status != 201 {
			t.Fatalf("POST %s: %d %s", s[0], last.Status, last.Body)
		}
	}
	return last.Index()
}

// create makes an entity, again while there is no leader: a busy machine may lose its own. Then the first try may have done it.
func create(n *harness.Node, path, body string) error {
	end := time.Now().Add(time.Minute)
	for try := 0; ; try++ {
		a, err := harness.Do("POST", "http://"+n.Admin+path, "application/json", body)
		switch {
		case err != nil:
			return err
		case a.Status == 201 || a.Status == 409 && try > 0:
			return nil
		case a.Status != 503 || time.Now().After(end):
			return fmt.Errorf("POST %s: %d %s", path, a.Status, a.Body)
		}
	}
}

// list returns name → id of every consumer as node n knows them, without asking the leader.
func list(t *testing.T, n *harness.Node) map[string]string {
	t.Helper()
	out := map[string]string{}
	path := "/consumers?size=1000"
	for path != "" {
		a, err := harness.Do("GET", "http://"+n.Admin+path, "", "")
		if err != nil || a.Status != 200 {
			t.Fatalf("%s list: %v %d %s", n.Name, err, a.Status, a.Body)
		}
		var page struct {
			Data []struct{ ID, Username string }
			Next string
		}
		if err := json.Unmarshal([]byte(a.Body), &page); err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Data {
			out[c.Username] = c.ID
		}
		path = page.Next
		if path != "" && !strings.Contains(path, "size=") {
			path += "&size=1000"
		}
	}
	return out
}

// sameEverywhere waits until all running nodes list the same consumers and returns them.
func sameEverywhere(t *testing.T, c *harness.Cluster) map[string]string {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		var all []map[string]string
		for _, n := range c.Nodes {
			if n.Running() {
				all = append(all, list(t, n))
			}
		}
		same := true
		for _, m := range all[1:] {
			same = same && fmt.Sprint(m) == fmt.Sprint(all[0])
		}
		if same {
			return all[0]
		}
		if time.Now().After(deadline) {
			for i, m := range all {
				t.Logf("node %d: %d consumers", i, len(m))
			}
			t.Fatal("listings differ")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestLeaderKills kills the leader again and again under concurrent writes and deletes: nothing acknowledged is lost,
// nothing deleted comes back, all nodes agree, and the survivors' proxies do not fail a single request.
func TestLeaderKills(t *testing.T) {
	t.Parallel()
	const kills = 20
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	idx := protect(t, c.Nodes[0], up.URL)
	for _, n := range c.Nodes {
		if a := n.Get("/p", "apikey", "k-1", "X-Min-Config-Index", idx); a.Status != 200 {
			t.Fatalf("%s: %d %s", n.Name, a.Status, a.Body)
		}
	}

	var mu sync.Mutex // guards victim and the two ledgers
	var victim *harness.Node
	acked, deleted := map[string]bool{}, map[string]bool{}
	var served, failed atomic.Int64
	var lastFailure atomic.Value
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := c.Nodes[(w+i)%3]
				name := fmt.Sprintf("w%d-%d", w, i)
				a, err := harness.Do("POST", "http://"+n.Admin+"/consumers", "application/json", `{"username":"`+name+`"}`)
				if err != nil || a.Status != 201 {
					continue // not acknowledged: may or may not be there
				}
				mu.Lock()
				acked[name] = true
				mu.Unlock()
				if i%3 != 0 {
					continue
				}
				mu.Lock()
				delete(acked, name) // from here on either state is right, until the delete is acknowledged
				mu.Unlock()
				if a, err := harness.Do("DELETE", "http://"+n.Admin+"/consumers/"+name, "", ""); err == nil && a.Status == 204 {
					mu.Lock()
					deleted[name] = true
					mu.Unlock()
				}
			}
		}()
	}
	for i := range c.Nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			n := c.Nodes[i]
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				mu.Lock()
				dead := victim == n
				mu.Unlock()
				a, err := harness.Do("GET", "http://"+n.Proxy+"/p", "", "", "apikey", "k-1")
				mu.Lock()
				dying := victim == n
				mu.Unlock()
				if dead || dying {
					continue
				}
				served.Add(1)
				if err != nil || a.Status != 200 {
					failed.Add(1)
					lastFailure.Store(fmt.Sprintf("%s: %v %d %s", n.Name, err, a.Status, a.Body))
				}
			}
		}()
	}

	var gaps []time.Duration
	for k := range kills {
		leader := c.Leader(60 * time.Second)
		if leader == nil {
			t.Fatalf("kill %d: no leader", k)
		}
		mu.Lock()
		victim = leader
		mu.Unlock()
		time.Sleep(20 * time.Millisecond) // requests already under way on the victim's proxy are not counted
		leader.Kill()
		began := time.Now()
		for { // the survivors take writes again
			n := c.Any()
			a, err := harness.Do("POST", "http://"+n.Admin+"/consumers", "application/json", fmt.Sprintf(`{"username":"k%d-%d"}`, k, time.Now().UnixNano()))
			if err == nil && a.Status == 201 {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("kill %d: no write for a minute: %v %d %s", k, err, a.Status, a.Body)
			}
			time.Sleep(10 * time.Millisecond)
		}
		gaps = append(gaps, time.Since(began))
		leader.Start()
		c.WaitVoters(3, 60*time.Second)
		mu.Lock()
		victim = nil
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
	got := sameEverywhere(t, c)
	for name := range acked {
		if got[name] == "" {
			t.Errorf("acknowledged write lost: %s", name)
		}
	}
	for name := range deleted {
		if got[name] != "" {
			t.Errorf("deleted entity is back: %s", name)
		}
	}
	if f := failed.Load(); f > 0 {
		t.Errorf("%d of %d proxied requests on survivors failed; last: %v", f, served.Load(), lastFailure.Load())
	}
	sort.Slice(gaps, func(i, j int) bool { return gaps[i] < gaps[j] })
	t.Logf("%d kills, %d acknowledged, %d deleted, %d proxied on survivors; write gap p50 %v max %v", kills, len(acked), len(deleted), served.Load(),
		gaps[len(gaps)/2].Round(time.Millisecond), gaps[len(gaps)-1].Round(time.Millisecond))
}

// TestQuorumLoss kills two of three nodes: the third keeps proxying and authenticating; admin writes are refused within
// two seconds with a reason; when one comes back, writes work again.
func TestQuorumLoss(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	idx := protect(t, c.Nodes[0], up.URL)
	last := c.Nodes[2]
	if a := last.Get("/p", "apikey", "k-1", "X-Min-Config-Index", idx); a.Status != 200 {
		t.Fatalf("before: %d %s", a.Status, a.Body)
	}
	c.Nodes[0].Kill()
	c.Nodes[1].Kill()
	end := time.Now().Add(8 * time.Second)
	requests := 0
	for time.Now().Before(end) {
		if a := last.Get("/p", "apikey", "k-1"); a.Status != 200 {
			t.Fatalf("proxy without quorum: %d %s", a.Status, a.Body)
		}
		if a := last.Get("/p", "apikey", "nope"); a.Status != 401 {
			t.Fatalf("wrong key without quorum: %d %s", a.Status, a.Body)
		}
		requests += 2
		time.Sleep(5 * time.Millisecond)
	}
	within(t, 2*time.Second, "a write without quorum", func() {
		a := last.JSON("POST", "/consumers", `{"username":"late"}`)
		if a.Status != 503 {
			t.Errorf("a write without quorum: %d %s", a.Status, a.Body)
		}
		if msg, _ := a.JSON()["message"].(string); msg == "" || a.Header.Get("Retry-After") == "" {
			t.Errorf("503 without a reason or Retry-After: %v %s", a.Header, a.Body)
		}
	})
	if a := last.JSON("GET", "/consumers/kim", ""); a.Status != 200 {
		t.Errorf("read without quorum: %d %s", a.Status, a.Body)
	}
	c.Nodes[0].Start()
	deadline := time.Now().Add(60 * time.Second)
	for {
		a := last.JSON("POST", "/consumers", fmt.Sprintf(`{"username":"after-%d"}`, time.Now().UnixNano()))
		if a.Status == 201 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no write after quorum came back: %d %s", a.Status, a.Body)
		}
	}
	t.Logf("%d requests served alone", requests)

	// A node that only keeps silent, as one without power does, is not waited for much longer.
	c.Nodes[0].Signal(syscall.SIGSTOP)
	defer c.Nodes[0].Signal(syscall.SIGCONT)
	for _, method := range []string{"POST", "GET"} {
		within(t, 6*time.Second, method+" beside a silent node", func() {
			if a := last.JSON(method, "/consumers", `{"username":"later"}`); (a.Status == 503) != (method == "POST") {
				t.Errorf("%s beside a silent node: %d %s", method, a.Status, a.Body)
			}
		})
	}
}

// within fails the test when f takes longer than that. A machine that is busy may take its time, so the best of some tries counts.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		f()
		if best = min(best, time.Since(began)); best <= limit || t.Failed() {
			t.Logf("%s: answered after %v", what, best.Round(time.Millisecond))
			return
		}
	}
	t.Errorf("%s: answered after %v, want at most %v", what, best, limit)
}

// TestRestart stops all nodes, by SIGTERM and by SIGKILL, and starts them again: everything is there.
func TestRestart(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	protect(t, c.Nodes[0], up.URL)
	for i := range 50 {
		if a := c.Any().JSON("POST", "/consumers", fmt.Sprintf(`{"username":"c%d"}`, i)); a.Status != 201 {
			t.Fatal(a.Status, a.Body)
		}
	}
	before := sameEverywhere(t, c)
	for round, stop := range []func(n *harness.Node){
		func(n *harness.Node) {
			if code := n.Stop(); code != 0 {
				t.Errorf("SIGTERM: exit code %d", code)
			}
		},
		(*harness.Node).Kill,
	} {
		for _, n := range c.Nodes {
			stop(n)
		}
		for _, n := range c.Nodes {
			if err := n.StartProcess(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range c.Nodes {
			n.WaitReady(60 * time.Second)
		}
		c.WaitVoters(3, 60*time.Second)
		if after := sameEverywhere(t, c); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("round %d: %d consumers before, %d after", round, len(before), len(after))
		}
		for _, n := range c.Nodes {
			if a := n.Get("/p", "apikey", "k-1"); a.Status != 200 {
				t.Errorf("round %d, %s: %d %s", round, n.Name, a.Status, a.Body)
			}
		}
	}
}

// TestVisibility measures how soon a write answered by one node is served by the others. The writer's own proxy must
// serve it with the next request; with X-Min-Config-Index no node may ever miss it.
func TestVisibility(t *testing.T) {
	t.Parallel()
	const writes = 500
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	if a := c.Nodes[0].JSON("POST", "/services", `{"name":"v","url":"`+up.URL+`"}`); a.Status != 201 {
		t.Fatal(a.Body)
	}
	var mu sync.Mutex
	var lags []time.Duration
	for i := range writes {
		a, b, d := c.Nodes[i%3], c.Nodes[(i+1)%3], c.Nodes[(i+2)%3]
		path := fmt.Sprintf("/v%d", i)
		w := a.JSON("POST", "/routes", `{"paths":["`+path+`/"],"service":{"name":"v"}}`)
		if w.Status != 201 {
			t.Fatalf("write %d: %d %s", i, w.Status, w.Body)
		}
		answered := time.Now()
		if r := a.Get(path + "/"); r.Status != 200 {
			t.Fatalf("write %d: the answering node does not serve it: %d %s", i, r.Status, r.Body)
		}
		var wg sync.WaitGroup
		for _, n := range []*harness.Node{b, d} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if i%2 == 0 {
					if r := n.Get(path+"/", "X-Min-Config-Index", w.Index()); r.Status != 200 {
						t.Errorf("write %d: missed with X-Min-Config-Index on %s: %d %s", i, n.Name, r.Status, r.Body)
					}
				}
				for {
					if r := n.Get(path + "/"); r.Status == 200 {
						break
					}
					if time.Since(answered) > time.Minute {
						t.Errorf("write %d never served by %s", i, n.Name)
						return
					}
				}
				if i%2 == 1 {
					mu.Lock()
					lags = append(lags, time.Since(answered))
					mu.Unlock()
				}
			}()
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	sort.Slice(lags, func(i, j int) bool { return lags[i] < lags[j] })
	p10, p50, p99 := lags[len(lags)/10], lags[len(lags)/2], lags[len(lags)*99/100]
	t.Logf("write answered → served by the other nodes: p10 %v, p50 %v, p99 %v (n=%d)", p10, p50, p99, len(lags))
	// Without the entry that tells followers of a commit at once, it takes the library's 50 to 100 ms, always. The tail is the
	// machine's: other clusters run beside this one.
	if p10 > 45*time.Millisecond {
		t.Errorf("p10 %v: followers learn of a commit late", p10)
	}
}

// TestCatchUp leaves a node behind by more writes than the log keeps: it comes back by snapshot.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	const writes = 10_500
	c := harness.StartCluster(t, 3, "CONCORD_RAFT_SNAPSHOT_INTERVAL=1", "CONCORD_LOG_LEVEL=debug")
	behind := c.Nodes[2]
	if c.Leader(10*time.Second) == behind {
		behind = c.Nodes[1]
	}
	behind.Kill()
	var live []*harness.Node
	for _, n := range c.Nodes {
		if n != behind {
			live = append(live, n)
		}
	}
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1)
				if i > writes {
					return
				}
				if err := create(live[w%2], "/consumers", fmt.Sprintf(`{"username":"u%d"}`, i)); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d writes at %.0f/s", writes, writes/time.Since(began).Seconds())
	for _, n := range live { // at an interval they look whether a snapshot is due
		for end := time.Now().Add(time.Minute); !strings.Contains(n.Log(), "compacting logs"); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s has made no snapshot:\n%s", n.Name, n.Log())
			}
		}
	}
	began = time.Now()
	behind.Start()
	got := sameEverywhere(t, c)
	if len(got) != writes {
		t.Fatalf("%d consumers after catching up, want %d", len(got), writes)
	}
	if !strings.Contains(behind.Log(), "nstalled remote snapshot") {
		t.Errorf("no snapshot was installed:\n%s", behind.Log())
	}
	t.Logf("caught up %v after its start", time.Since(began).Round(time.Millisecond))
}

// TestLoad fills three nodes with 1,000 routes and 10,000 consumers with keys through the Admin API.
func TestLoad(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	if a := c.Nodes[0].JSON("POST", "/services", `{"name":"l","url":"`+up.URL+`"}`); a.Status != 201 {
		t.Fatal(a.Body)
	}
	if a := c.Nodes[0].JSON("POST", "/services/l/plugins", `{"name":"key-auth"}`); a.Status != 201 {
		t.Fatal(a.Body)
	}
	run := func(n int, f func(node *harness.Node, i int) error) time.Duration {
		began := time.Now()
		var next atomic.Int64
		var wg sync.WaitGroup
		for w := range 64 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					i := int(next.Add(1)) - 1
					if i >= n || t.Failed() {
						return
					}
					if err := f(c.Nodes[w%3], i); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		wg.Wait()
		return time.Since(began)
	}
	total := run(1000, func(n *harness.Node, i int) error {
		return create(n, "/services/l/routes", fmt.Sprintf(`{"name":"r%d","paths":["/load/%d/"]}`, i, i))
	})
	total += run(10_000, func(n *harness.Node, i int) error {
		if err := create(n, "/consumers", fmt.Sprintf(`{"username":"c%d"}`, i)); err != nil {
			return err
		}
		return create(n, fmt.Sprintf("/consumers/c%d/key-auth", i), fmt.Sprintf(`{"key":"key-%d"}`, i))
	})
	if t.Failed() {
		return
	}
	const entities = 1000 + 20_000
	t.Logf("%d entities at %.0f/s", entities, entities/total.Seconds())
	w := c.Any().JSON("PATCH", "/routes/r500", `{"tags":["touched"]}`)
	if w.Status != 200 {
		t.Fatal(w.Status, w.Body)
	}
	for _, n := range c.Nodes {
		if a := n.Get("/load/999/x", "apikey", "key-9999", "X-Min-Config-Index", w.Index()); a.Status != 200 || a.Saw("X-Consumer-Username") != "c9999" {
			t.Errorf("%s: %d %s", n.Name, a.Status, a.Body)
		}
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

// scrape reads /metrics strictly, by the rules of the text format: a family is announced by HELP and TYPE before its samples, which
// stand together; label sets are unique; counters are whole and not negative; buckets grow and end in +Inf with the count.
// It returns the samples by name and labels as they stand.
func scrape(t *testing.T, url string) map[string]float64 {
	t.Helper()
	a, err := harness.Do("GET", url+"/metrics", "", "")
	if err != nil || a.Status != 200 {
		t.Fatalf("%s: %d %v", url, a.Status, err)
	}
	if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
		t.Errorf("Content-Type %q", got)
	}
	samples, err := parseMetrics(a.Body)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return samples
}

var (
	helpLine   = regexp.MustCompile(`^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) \S.*$`)
	typeLine   = regexp.MustCompile(`^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\["\\n])*",?)+)\})? (\S+)$`)
	boundLabel = regexp.MustCompile(`,?le="([^"]*)"`)
)

func parseMetrics(body string) (map[string]float64, error) {
	samples, types := map[string]float64{}, map[string]string{}
	rest, ok := strings.CutSuffix(body, "\n")
	if !ok {
		return nil, fmt.Errorf("the last line does not end")
	}
	family, helped := "", ""
	type series struct{ last, bound float64 }
	open := map[string]*series{}
	for n, line := range strings.Split(rest, "\n") {
		wrong := func(why string) error { return fmt.Errorf("line %d, %s: %s", n+1, why, line) }
		if m := helpLine.FindStringSubmatch(line); m != nil {
			helped = m[1]
			continue
		}
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if m[1] != helped || types[m[1]] != "" {
				return nil, wrong("TYPE without its HELP, or twice")
			}
			family = m[1]
			types[family] = m[2]
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil || strings.HasSuffix(m[2], ",") {
			return nil, wrong("no sample")
		}
		name, labels := m[1], m[2]
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, wrong("no number")
		}
		key := name
		if labels != "" {
			key += "{" + labels + "}"
		}
		if _, twice := samples[key]; twice {
			return nil, wrong("twice")
		}
		samples[key] = v
		kind, suffix := types[family], strings.TrimPrefix(name, family)
		switch {
		case !strings.HasPrefix(name, family) || suffix != "" && kind != "histogram":
			return nil, wrong("not of the family " + family)
		case kind == "counter" && (v < 0 || math.IsNaN(v)):
			return nil, wrong("a counter")
		case kind != "histogram":
			continue
		}
		of := family + "{" + strings.TrimPrefix(boundLabel.ReplaceAllString(labels, ""), ",") + "}"
		switch suffix {
		case "_bucket":
			b := boundLabel.FindStringSubmatch(labels)
			if b == nil {
				return nil, wrong("a bucket without le")
			}
			bound, err := strconv.ParseFloat(b[1], 64)
			if err != nil {
				return nil, wrong("le is no number")
			}
			s := open[of]
			if s == nil {
				s = &series{bound: math.Inf(-1)}
				open[of] = s
			}
			if bound <= s.bound || v < s.last {
				return nil, wrong("buckets must grow")
			}
			s.bound, s.last = bound, v
		case "_count":
			if s := open[of]; s == nil || !math.IsInf(s.bound, 1) || s.last != v {
				return nil, wrong("the count is not that of the bucket +Inf")
			}
		case "_sum":
		default:
			return nil, wrong("no part of a histogram")
		}
	}
	return samples, nil
}

// TestParser: what the other tests trust refuses what is wrong.
func TestParser(t *testing.T) {
	const head = "# HELP a b\n# TYPE a counter\n"
	const hist = "# HELP h b\n# TYPE h histogram\n"
	if _, err := parseMetrics(head + "a{x=\"y\\\"\\\\\\n\"} 1\na 2\n" + hist + "h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_count 2\nh_sum 3.5\n"); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"no end": head + "a 1", "no TYPE": "# HELP a b\na 1\n", "no HELP": "# TYPE a counter\na 1\n", "other family": head + "b 1\n", "twice": head + "a 1\na 1\n",
		"two TYPEs": head + head, "no number": head + "a x\n", "raw quote": head + "a{x=\"y\"z\"} 1\n", "negative": head + "a -1\n", "comma": head + "a{x=\"y\",} 1\n",
		"escape": head + "a{x=\"\\x\"} 1\n", "blank line": head + "\na 1\n", "no +Inf": hist + "h_bucket{le=\"1\"} 1\nh_count 1\nh_sum 1\n",
		"shrinking": hist + "h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_count 1\nh_sum 1\n", "count": hist + "h_bucket{le=\"+Inf\"} 1\nh_count 2\nh_sum 1\n",
	} {
		if _, err := parseMetrics(text); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestMetrics sends 1,000 requests to three nodes: what the nodes count adds up to what was sent and to what the upstream saw.
func TestMetrics(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3, "CONCORD_ACCESS_LOG_FORMAT=json", "CONCORD_PROXY_ACCESS_LOG=/dev/stderr")
	n := c.Nodes[0]
	expect(t, "service", n.Form("POST", "/services", "name", "shop", "url", up.URL), 201)
	expect(t, "route", n.Form("POST", "/services/shop/routes", "name", "orders", "paths[]", "/orders"), 201)
	expect(t, "auth", n.Form("POST", "/routes/orders/plugins", "name", "key-auth"), 201)
	expect(t, "consumer", n.Form("POST", "/consumers", "username", "kim"), 201)
	expect(t, "key", n.Form("POST", "/consumers/kim/key-auth", "key", "opensesame"), 201)
	expect(t, "upstream", n.Form("POST", "/upstreams", "name", "pool"), 201)
	expect(t, "target", n.Form("POST", "/upstreams/pool/targets", "target", "127.0.0.1:1"), 201)
	last := expect(t, "prometheus", n.Form("POST", "/plugins", "name", "prometheus", "config.per_consumer", "true", "config.status_code_metrics", "true",
		"config.latency_metrics", "true", "config.bandwidth_metrics", "true", "config.upstream_health_metrics", "true"), 201)

	// Of every ten requests seven pass, two have no key, one matches no route.
	const total = 1000
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := range total / 10 {
				node := (w + i) % 3
				path, status, headers := "/orders/x?apikey=opensesame", 200, []string{"X-Min-Config-Index", last.Index()}
				switch {
				case w == 7 || w == 8:
					path, status = "/orders/x", 401
				case w == 9:
					path, status = "/none", 404
				}
				a, err := harness.Do("POST", "http://"+c.Nodes[node].Proxy+path, "text/plain", "0123456789", headers...)
				if err != nil || a.Status != status {
					t.Errorf("%s: %d %v, want %d", path, a.Status, err, status)
				}
			}
		})
	}
	wg.Wait()
	if got := up.Count.Load(); got != 700 {
		t.Fatalf("the upstream saw %d requests", got)
	}
	const labels = `service="shop",route="orders"`
	const passed = `kong_http_requests_total{` + labels + `,code="200",source="service",workspace="default",consumer="kim"}`
	const refused = `kong_http_requests_total{` + labels + `,code="401",source="kong",workspace="default",consumer=""}`
	want := map[string]float64{
		passed: 700, refused: 200,
		`kong_request_latency_ms_count{` + labels + `,workspace="default"}`:  900,
		`kong_kong_latency_ms_count{` + labels + `,workspace="default"}`:     900,
		`kong_upstream_latency_ms_count{` + labels + `,workspace="default"}`: 700,
	}
	sum := func() (map[string]float64, []map[string]float64) {
		all, pages := map[string]float64{}, []map[string]float64{}
		for _, node := range c.Nodes {
			page := scrape(t, "http://"+node.Status)
			pages = append(pages, page)
			for k, v := range page {
				all[k] += v
			}
		}
		return all, pages
	}
	var all map[string]float64
	var pages []map[string]float64
	counted := func() bool {
		for k, v := range want {
			if all[k] < v {
				return false
			}
		}
		return all["concord_raft_leader"] == 1 // not while another one is elected
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if all, pages = sum(); counted() { // a response may be there before it is counted
			break
		}
	}
	requests := 0.0
	for k, v := range all {
		if strings.HasPrefix(k, "kong_http_requests_total") {
			requests += v
		}
	}
	if requests != 900 {
		t.Errorf("%v requests counted, want 900: those without a route are not", requests)
	}
	for k, v := range want {
		if all[k] != v {
			t.Errorf("%s: %v, want %v", k, all[k], v)
		}
	}
	// As in nginx, whoever asks for the status is a connection himself.
	if server, _ := n.JSON("GET", "/status", "").JSON()["server"].(map[string]any); server["connections_active"].(float64) < 1 || server["connections_accepted"].(float64) < 1 {
		t.Errorf("status: %v", server)
	}
	// Each request that passed has a body of 10 bytes and a head of more than 100; answers have more than 200.
	const bytes = `kong_bandwidth_bytes{` + labels + `,direction="%s",workspace="default",consumer="kim"}`
	if in, out := all[fmt.Sprintf(bytes, "ingress")], all[fmt.Sprintf(bytes, "egress")]; in < 700*110 || in > 700*1000 || out < 700*200 || out > 700*2000 {
		t.Errorf("bandwidth: %v in, %v out", in, out)
	}
	leaders := 0.0
	for i, page := range pages {
		if page[passed] == 0 {
			t.Errorf("node %d counted nothing", i)
		}
		leaders += page["concord_raft_leader"]
		for k, v := range map[string]float64{
			"kong_datastore_reachable": 1, "concord_raft_members": 3, "concord_ready": 1, "concord_compile_broken_rows": 0, "concord_plugin_panics_total": 0,
			`kong_upstream_target_health{upstream="pool",target="127.0.0.1:1",address="127.0.0.1:1",state="healthchecks_off",subsystem="http"}`: 1,
			`kong_upstream_target_health{upstream="pool",target="127.0.0.1:1",address="127.0.0.1:1",state="unhealthy",subsystem="http"}`:        0,
		} {
			if got, ok := page[k]; !ok || got != v {
				t.Errorf("node %d, %s: %v, want %v", i, k, got, v)
			}
		}
		for _, k := range []string{"concord_raft_term", "concord_raft_commit_index", "concord_raft_applied_index", "concord_config_index", "concord_compile_total",
			"concord_upstream_idle_connections", "go_goroutines", "process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} {
			if page[k] <= 0 {
				t.Errorf("node %d, %s: %v", i, k, page[k])
			}
		}
	}
	if leaders != 1 {
		t.Errorf("%v leaders", leaders)
	}
	if s := scrape(t, "http://"+n.Admin); s[passed] != pages[0][passed] {
		t.Errorf("the Admin API counts %v, the status listener %v", s[passed], pages[0][passed])
	}
	if a, err := harness.Do("POST", "http://"+n.Status+"/metrics", "", ""); err != nil || a.Status != 405 {
		t.Errorf("POST: %d %v", a.Status, err)
	}
	accessLines(t, c, total)
}

// accessLines: every request has its line of JSON on standard error, and none shows the key.
func accessLines(t *testing.T, c *harness.Cluster, want int) {
	t.Helper()
	var lines int
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		lines = 0
		for _, node := range c.Nodes {
			for line := range strings.Lines(node.Log()) {
				if !strings.HasPrefix(line, `{"time":`) || !strings.HasSuffix(line, "\n") { // the last one may be there in part
					continue
				}
				var entry struct {
					Method, URI, Consumer string
					Status                int
				}
				if err := json.Unmarshal([]byte(line), &entry); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				if entry.Method != "POST" || strings.Contains(line, "opensesame") || entry.Status == 200 && (entry.Consumer != "kim" || entry.URI != "/orders/x?apikey=REDACTED") {
					t.Fatalf("line: %s", line)
				}
				lines++
			}
		}
		if lines >= want {
			break
		}
	}
	if lines != want {
		t.Errorf("%d lines in the access logs, want %d", lines, want)
	}
}

// TestReady: a node that was started again is sent no traffic until it has caught up with a leader, says why, and serves what it has.
func TestReady(t *testing.T) {
	t.Parallel()
	up := harness.StartEcho(t)
	c := harness.StartCluster(t, 3)
	n := c.Nodes[0]
	expect(t, "service", n.Form("POST", "/services", "name", "a", "url", up.URL), 201)
	last := expect(t, "route", n.Form("POST", "/services/a/routes", "paths[]", "/a"), 201)
	for _, node := range c.Nodes {
		expect(t, "before", node.Get("/a", "X-Min-Config-Index", last.Index()), 200)
	}
	for _, node := range c.Nodes {
		node.Kill()
	}
	if err := n.StartProcess(); err != nil {
		t.Fatal(err)
	}
	ready := func() (harness.Answer, error) { return harness.Do("GET", "http://"+n.Status+"/status/ready", "", "") }
	var a harness.Answer
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if a, err = ready(); err == nil {
			break
		}
	}
	if reason, _ := a.JSON()["message"].(string); a.Status != 503 || !strings.Contains(reason, "has not caught up") {
		t.Errorf("alone: %d %s, %v", a.Status, a.Body, err)
	}
	if s := scrape(t, "http://"+n.Status); s["concord_ready"] != 0 || s["kong_datastore_reachable"] != 0 {
		t.Errorf("alone: ready %v, reachable %v", s["concord_ready"], s["kong_datastore_reachable"])
	}
	expect(t, "alone", n.Get("/a"), 200)
	if err := c.Nodes[1].StartProcess(); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(30 * time.Second)
	c.Nodes[1].Kill() // once ready it stays so: traffic does not need the others
	for range 5 {
		time.Sleep(300 * time.Millisecond)
		if a, err = ready(); err != nil || a.Status != 200 {
			t.Fatalf("alone again: %d %s, %v", a.Status, a.Body, err)
		}
	}
	if a, err = harness.Do("POST", "http://"+n.Status+"/status/ready", "application/x-www-form-urlencoded", "status=draining"); err != nil || a.Status != 204 {
		t.Errorf("draining: %d %s, %v", a.Status, a.Body, err)
	}
	if a, err = ready(); err != nil || a.Status != 503 || !strings.Contains(a.Body, "draining") {
		t.Errorf("drained: %d %s, %v", a.Status, a.Body, err)
	}
}

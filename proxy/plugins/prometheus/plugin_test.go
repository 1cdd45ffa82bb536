package prometheus

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/test/harness"
)

func everything() schema.Record {
	return schema.Record{"per_consumer": true, "status_code_metrics": true, "latency_metrics": true, "bandwidth_metrics": true, "upstream_health_metrics": true}
}

// request is one that was answered with 200 by the upstream after 30 ms, 4 ms of them the gateway's.
func request(set func(*exchange.Exchange)) *exchange.Exchange {
	x := plugintest.Request("GET", "/")
	x.Start = time.Now().Add(-300 * time.Millisecond)
	x.SentAt, x.HeadersAt = x.Start.Add(4*time.Millisecond), x.Start.Add(34*time.Millisecond)
	x.Route, x.Service = &entity.Route{ID: "r1", Name: "orders"}, &entity.Service{ID: "s1", Name: "shop", Host: "shop.test"}
	x.Response.Status, x.Proxied, x.BytesReceived, x.BytesSent = 200, true, 100, 1000
	if set != nil {
		set(x)
	}
	return x
}

// samples are the lines of the page that are no comment and whose value is not zero, without those of latencies but counts.
func samples(r *Registry) []string {
	var p Page
	r.Write(&p)
	list := []string{}
	for line := range strings.Lines(string(p.Bytes())) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "#") && !strings.HasSuffix(line, " 0") && !strings.Contains(line, "_bucket") && !strings.Contains(line, "_sum") {
			list = append(list, strings.ReplaceAll(line, `,workspace="default"`, ""))
		}
	}
	return list
}

func TestCounts(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		sets   []func(*exchange.Exchange)
		want   []string
	}{
		{"nothing unless asked", schema.Record{}, []func(*exchange.Exchange){nil}, []string{}},
		{"no route", everything(), []func(*exchange.Exchange){func(x *exchange.Exchange) { x.Route = nil }}, []string{}},
		{"codes and sources", schema.Record{"status_code_metrics": true}, []func(*exchange.Exchange){
			nil, nil,
			func(x *exchange.Exchange) { x.Response.Status = 404 },
			func(x *exchange.Exchange) { x.Response.Status, x.Proxied = 404, false },
		}, []string{
			`kong_http_requests_total{service="shop",route="orders",code="200",source="service",consumer=""} 2`,
			`kong_http_requests_total{service="shop",route="orders",code="404",source="kong",consumer=""} 1`,
			`kong_http_requests_total{service="shop",route="orders",code="404",source="service",consumer=""} 1`,
		}},
		{"names", schema.Record{"status_code_metrics": true}, []func(*exchange.Exchange){
			func(x *exchange.Exchange) { x.Route.Name, x.Service.Name = "", "" },
			func(x *exchange.Exchange) { x.Service = nil },
		}, []string{
			`kong_http_requests_total{service="",route="orders",code="200",source="service",consumer=""} 1`,
			`kong_http_requests_total{service="shop.test",route="r1",code="200",source="service",consumer=""} 1`,
		}},
		{"consumer not asked for", schema.Record{"status_code_metrics": true}, []func(*exchange.Exchange){
			func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{ID: "c", Username: "bob"}) },
		}, []string{`kong_http_requests_total{service="shop",route="orders",code="200",source="service",consumer=""} 1`}},
		{"everything", everything(), []func(*exchange.Exchange){
			func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{ID: "c", Username: "bob"}) },
			func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{ID: "c2", CustomID: "x"}) },
			func(x *exchange.Exchange) { x.Proxied = false },
		}, []string{
			`kong_http_requests_total{service="shop",route="orders",code="200",source="kong",consumer=""} 1`,
			`kong_http_requests_total{service="shop",route="orders",code="200",source="service",consumer="bob"} 1`,
			`kong_http_requests_total{service="shop",route="orders",code="200",source="service",consumer="c2"} 1`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="ingress",consumer=""} 100`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="egress",consumer=""} 1000`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="ingress",consumer="bob"} 100`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="egress",consumer="bob"} 1000`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="ingress",consumer="c2"} 100`,
			`kong_bandwidth_bytes{service="shop",route="orders",direction="egress",consumer="c2"} 1000`,
			`kong_request_latency_ms_count{service="shop",route="orders"} 3`,
			`kong_upstream_latency_ms_count{service="shop",route="orders"} 2`,
			`kong_kong_latency_ms_count{service="shop",route="orders"} 3`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := New()
			i := plugintest.New(t).Build(r.Plugin(), c.config).(plugin.Logger)
			for n, set := range c.sets {
				x := request(set)
				x.Conn.Serial = uint64(n) // another shard
				i.Log(x)
			}
			if d := cmp.Diff(c.want, samples(r)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLatency: 4 ms fall under the bound 5, 30 ms under 50, 300 ms and a little under 400.
func TestLatency(t *testing.T) {
	r := New()
	plugintest.New(t).Build(r.Plugin(), everything()).(plugin.Logger).Log(request(nil))
	var p Page
	r.Write(&p)
	for _, want := range []string{
		`kong_kong_latency_ms_bucket{service="shop",route="orders",workspace="default",le="2"} 0`,
		`kong_kong_latency_ms_bucket{service="shop",route="orders",workspace="default",le="5"} 1`,
		`kong_kong_latency_ms_sum{service="shop",route="orders",workspace="default"} 4`,
		`kong_upstream_latency_ms_bucket{service="shop",route="orders",workspace="default",le="25"} 0`,
		`kong_upstream_latency_ms_bucket{service="shop",route="orders",workspace="default",le="50"} 1`,
		`kong_upstream_latency_ms_sum{service="shop",route="orders",workspace="default"} 30`,
		`kong_request_latency_ms_bucket{service="shop",route="orders",workspace="default",le="250"} 0`,
		`kong_request_latency_ms_bucket{service="shop",route="orders",workspace="default",le="+Inf"} 1`,
	} {
		if !strings.Contains(string(p.Bytes()), want+"\n") {
			t.Errorf("no line %s in\n%s", want, p.Bytes())
		}
	}
}

// TestBound: whatever the number of names and codes, the series are bounded and the sum is right.
func TestBound(t *testing.T) {
	r := New()
	r.limit = 20
	i := plugintest.New(t).Build(r.Plugin(), everything()).(plugin.Logger)
	const requests = 1000
	for n := range requests {
		x := request(nil)
		x.Route.Name = fmt.Sprint("r", n%7)
		x.SetConsumer(&entity.Consumer{Username: fmt.Sprint("c", n%50)})
		x.Response.Status = 200 + n%90
		i.Log(x)
	}
	total, lines := 0, 0
	for _, s := range samples(r) {
		if strings.HasPrefix(s, "kong_http_requests_total") {
			var n int
			if _, err := fmt.Sscan(s[strings.LastIndexByte(s, ' '):], &n); err != nil {
				t.Fatal(err)
			}
			total, lines = total+n, lines+1
		}
	}
	if total != requests || lines > 60 || r.lost.Load() == 0 {
		t.Errorf("%d requests in %d lines, %d lost", total, lines, r.lost.Load())
	}
}

// TestConcurrent: nothing is lost between writers and a reader.
func TestConcurrent(t *testing.T) {
	r := New()
	i := plugintest.New(t).Build(r.Plugin(), everything()).(plugin.Logger)
	var wg sync.WaitGroup
	const writers, each = 8, 500
	for w := range writers {
		wg.Go(func() {
			x := request(nil)
			x.Conn.Serial = uint64(w)
			for range each {
				i.Log(x)
			}
		})
	}
	for range 20 {
		samples(r)
	}
	wg.Wait()
	want := fmt.Sprintf(`kong_http_requests_total{service="shop",route="orders",code="200",source="service",consumer=""} %d`, writers*each)
	if got := samples(r); got[0] != want {
		t.Error(got[0])
	}
}

// TestHealthIsShownWhileAsked: the flag ends with the last configuration that has it.
func TestHealthIsShownWhileAsked(t *testing.T) {
	r, g := New(), plugintest.New(t)
	off := g.Build(r.Plugin(), schema.Record{})
	on := g.Build(r.Plugin(), everything())
	if !r.UpstreamHealth() {
		t.Error("not shown")
	}
	for _, i := range []plugin.Instance{off, on} {
		if err := i.(plugin.Closer).Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if r.UpstreamHealth() {
		t.Error("still shown")
	}
}

func TestNoAllocation(t *testing.T) {
	i := plugintest.New(t).Build(New().Plugin(), everything()).(plugin.Logger)
	x := request(func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{Username: "bob"}) })
	harness.NoAllocs(t, "Log", func() { i.Log(x) })
}

// BenchmarkLog is what the plugin adds to a request.
func BenchmarkLog(b *testing.B) {
	i := plugintest.New(b).Build(New().Plugin(), everything()).(plugin.Logger)
	x := request(func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{Username: "bob"}) })
	b.ReportAllocs()
	for b.Loop() {
		i.Log(x)
	}
}

// BenchmarkWrite is a page of 1,000 routes with all
func BenchmarkWrite(b *testing.B) {
	r := New()
	i := plugintest.New(b).Build(r.Plugin(), everything()).(plugin.Logger)
	for n := range 3000 {
		x := request(func(x *exchange.Exchange) { x.Route.Name = fmt.Sprint("route-", n%1000) })
		x.Conn.Serial, x.Response.Status = uint64(n), 200+n/1000
		i.Log(x)
	}
	for b.Loop() {
		var p Page
		r.Write(&p)
	}
}

// Counters outlive rows, whose texts lie in large blocks of the store: one of them would keep its block for ever.
func TestKeepsNoTextOfRows(t *testing.T) {
	g, r := plugintest.New(t), New()
	x := request(func(x *exchange.Exchange) { x.SetConsumer(&entity.Consumer{ID: "c1", Username: "bob"}) })
	g.Build(r.Plugin(), everything()).(plugin.Logger).Log(x)
	own := func(kept, given string) {
		if kept != given || unsafe.StringData(kept) == unsafe.StringData(given) {
			t.Errorf("%q is not a copy of its own", kept)
		}
	}
	for i := range r.shards {
		for key, series := range r.shards[i].routes {
			own(key.service, x.Service.Name)
			own(key.route, x.Route.Name)
			for name := range series.consumers {
				own(name, x.Consumer.Username)
			}
		}
	}
	if n := r.series.Load(); n != 3 {
		t.Errorf("%d label sets", n)
	}
}

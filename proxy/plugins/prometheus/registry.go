package prometheus

import (
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// maxSeries bounds the label sets of a Registry. Names come from the configuration and codes from upstreams; beyond the bound
// requests are counted under the label value "(other)", so that sums stay right.
const (
	maxSeries = 200_000
	other     = "(other)"
)

// Registry holds the counters of one node. They only grow, until the process ends: a deleted route's stay.
type Registry struct {
	shards []shard // a power of two
	series atomic.Int64
	limit  int64
	lost   atomic.Uint64 // requests or codes counted under "(other)"
	health atomic.Int64  // instances that show the health of targets
}

// shard is a part of the counters that one or few processors write, so that its lock is nearly always free.
type shard struct {
	mu     sync.Mutex
	routes map[routeKey]*routeSeries
	_      [64]byte // no two locks in one cache line
}

type routeKey struct{ service, route string }

type routeSeries struct {
	traffic                        // of requests whose consumer is not told apart
	consumers map[string]*traffic  // the others
	latency   [latencies]histogram // over all consumers
}

type traffic struct {
	codes   []codeCount // few, found by looking
	in, out uint64      // bytes
}

type codeCount struct {
	code   int // 0: "(other)"
	own    bool
	stream bool // of sessions, not of requests
	count  uint64
}

// What is measured.
const (
	ofRequest = iota
	ofSession
	ofUpstream
	ofGateway
	latencies
)

// Kong's bounds of the histograms, in milliseconds.
var (
	wideBounds = []float64{25, 50, 80, 100, 250, 400, 700, 1000, 2000, 5000, 10000, 30000, 60000}
	fineBounds = []float64{1, 2, 5, 7, 10, 15, 20, 30, 50, 75, 100, 200, 500, 750, 1000, 3000, 6000}
)

// maxBounds is the length of the longest of them.
const maxBounds = 17

type histogram struct {
	counts [maxBounds + 1]uint64
	sum    time.Duration
}

// New makes a Registry.
func New() *Registry {
	n := min(64, 1<<bits.Len(uint(runtime.GOMAXPROCS(0)-1)))
	r := &Registry{shards: make([]shard, n), limit: maxSeries}
	for i := range r.shards {
		r.shards[i].routes = map[routeKey]*routeSeries{}
	}
	return r
}

// UpstreamHealth tells whether a configuration asks for the health of targets.
func (r *Registry) UpstreamHealth() bool { return r.health.Load() > 0 }

// count adds an exchange. It allocates nothing but the first time for its labels.
func (r *Registry) count(key routeKey, consumer string, total time.Duration, x *exchange.Exchange, c *config) {
	s := &r.shards[x.Conn.Serial&uint64(len(r.shards)-1)]
	s.mu.Lock()
	defer s.mu.Unlock()
	series := s.routes[key]
	if series == nil {
		series = r.addRoute(s, key)
	}
	if c.Latency {
		own, of := total, ofRequest
		switch {
		case x.Stream != nil:
			of = ofSession
			if x.Proxied {
				own = x.Stream.Connect
			}
		case x.Proxied:
			series.latency[ofUpstream].observe(wideBounds, x.HeadersAt.Sub(x.SentAt))
			own = x.SentAt.Sub(x.Start)
		}
		series.latency[of].observe(wideBounds, total)
		series.latency[ofGateway].observe(fineBounds, own)
	}
	t := &series.traffic
	if consumer != "" {
		if t = series.consumers[consumer]; t == nil {
			t = r.addConsumer(series, consumer)
		}
	}
	if c.Bandwidth {
		t.in += uint64(x.BytesReceived)
		t.out += uint64(x.BytesSent)
	}
	if c.StatusCodes {
		r.addCode(t, codeCount{code: x.Response.Status, own: !x.Proxied, stream: x.Stream != nil, count: 1})
	}
}

// room takes the place for one more label set.
func (r *Registry) room() bool {
	if r.series.Add(1) <= r.limit {
		return true
	}
	r.series.Add(-1)
	r.lost.Add(1)
	return false
}

func (r *Registry) addRoute(s *shard, key routeKey) *routeSeries {
	if !r.room() {
		key = routeKey{route: other}
		if old := s.routes[key]; old != nil {
			return old
		}
	}
	series := &routeSeries{}
	s.routes[routeKey{strings.Clone(key.service), strings.Clone(key.route)}] = series // the store's own text would keep what is around it, too
	return series
}

func (r *Registry) addConsumer(series *routeSeries, consumer string) *traffic {
	if !r.room() {
		consumer = other
		if old := series.consumers[consumer]; old != nil {
			return old
		}
	}
	if series.consumers == nil {
		series.consumers = map[string]*traffic{}
	}
	t := &traffic{}
	series.consumers[strings.Clone(consumer)] = t
	return t
}

func (c *codeCount) same(o *codeCount) bool {
	return c.code == o.code && c.own == o.own && c.stream == o.stream
}

func (r *Registry) addCode(t *traffic, one codeCount) {
	for i := range t.codes {
		if c := &t.codes[i]; c.same(&one) {
			c.count++
			return
		}
	}
	if one.code != 0 && !r.room() {
		one.code = 0
		r.addCode(t, one)
		return
	}
	t.codes = append(t.codes, one)
}

func (h *histogram) observe(bounds []float64, d time.Duration) {
	d = max(0, d) // clocks may be set
	ms := d.Seconds() * 1000
	i := 0
	for i < len(bounds) && ms > bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += d
}

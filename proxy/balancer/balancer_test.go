package balancer

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/proxy/exchange"
	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

const upstreamID = "00000000-0000-4000-8000-000000000001"

// upstreamRow is an upstream with Kong's defaults, over which settings (JSON) are laid.
func upstreamRow(t testing.TB, settings string) *entity.Upstream {
	t.Helper()
	u := &entity.Upstream{}
	const defaults = `{"id":"` + upstreamID + `","name":"up","algorithm":"round-robin","hash_on":"none","hash_fallback":"none","slots":10000,"hash_on_cookie_path":"/",
		"healthchecks":{"active":{"type":"http","timeout":1,"concurrency":10,"http_path":"/","https_verify_certificate":true,
		"healthy":{"interval":0,"http_statuses":[200,302],"successes":0},
		"unhealthy":{"interval":0,"http_statuses":[429,404,500,501,502,503,504,505],"tcp_failures":0,"timeouts":0,"http_failures":0}},
		"passive":{"type":"http","healthy":{"http_statuses":[200,201,202],"successes":0},
		"unhealthy":{"http_statuses":[429,500,503],"tcp_failures":0,"timeouts":0,"http_failures":0}},"threshold":0}}`
	const breaker = `{"circuit_breaker":{"consecutive_errors":5,"min_requests":20,"window":10,"http_statuses":[500,502,503,504],
		"base_ejection_time":30,"max_ejection_time":300,"max_ejection_percent":50,"half_open_requests":1,"half_open_successes":1}}`
	list := []string{defaults, settings}
	if strings.Contains(settings, `"circuit_breaker":{`) {
		list = []string{defaults, breaker, settings}
	}
	for _, text := range list {
		if err := json.Unmarshal([]byte(text), u); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// rows are targets from "host:port" or "host:port weight".
func rows(list ...string) []*entity.Target {
	var out []*entity.Target
	for _, s := range list {
		name, weight, _ := strings.Cut(s, " ")
		row := &entity.Target{ID: name, Target: name, Upstream: entity.Ref{ID: upstreamID}}
		if w, err := strconv.Atoi(weight); err == nil {
			row.Weight = &w
		}
		out = append(out, row)
	}
	return out
}

func newSet(t testing.TB, o Options) *Set {
	t.Helper()
	if o.Resolver == nil {
		o.Resolver = &book{}
	}
	s := New(o)
	t.Cleanup(s.Close)
	return s
}

func change(t testing.TB, settings string, targets ...string) []Change {
	t.Helper()
	return []Change{{ID: upstreamID, Upstream: upstreamRow(t, settings), Targets: rows(targets...)}}
}

// newTestPool is a pool of literal addresses without slow start.
func newTestPool(t testing.TB, settings string, targets ...string) *Pool {
	t.Helper()
	s := newSet(t, Options{SlowStart: -1})
	s.Update(true, change(t, settings, targets...))
	return s.Pool("up")
}

func newExchange() *exchange.Exchange {
	x := &exchange.Exchange{ClientIP: netip.MustParseAddr("192.0.2.1")}
	x.Request.Method, x.Request.Path = "GET", "/"
	x.Upstream.Scheme = "http"
	return x
}

// ask sends one request and says to whom it went; the answer has that status.
func (p *Pool) ask(t testing.TB, x *exchange.Exchange, status int) string {
	t.Helper()
	d, err := p.Dispatch(x, false)
	if err != nil {
		t.Fatal(err)
	}
	x.Response.Status = status
	d.Result(x, nil)
	d.End()
	return at(x)
}

func at(x *exchange.Exchange) string {
	return net.JoinHostPort(x.Upstream.Host, strconv.Itoa(x.Upstream.Port))
}

func (p *Pool) count(t testing.TB, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		got[p.ask(t, newExchange(), 200)]++
	}
	return got
}

// fault is an error as the transport returns it.
type fault int

func (f fault) Error() string { return "status " + strconv.Itoa(int(f)) }
func (f fault) Status() int   { return int(f) }

func addresses(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255))
	}
	return list
}

// book is a resolver whose answers the test writes.
type book struct {
	mu    sync.Mutex
	hosts map[string]page
	srv   map[string]page
	asked map[string]int
}

type page struct {
	addrs []netip.Addr
	srv   []*net.SRV
	ttl   time.Duration
	err   error
	delay time.Duration
}

func (b *book) turn(ctx context.Context, m map[string]page, key, name string) (page, error) {
	b.mu.Lock()
	if b.asked == nil {
		b.asked = map[string]int{}
	}
	b.asked[key+name]++
	p, ok := m[name]
	b.mu.Unlock()
	if p.delay > 0 {
		select {
		case <-time.After(p.delay):
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
	if !ok {
		return p, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return p, p.err
}

func (b *book) Addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	p, err := b.turn(ctx, b.hosts, "A ", host)
	return p.addrs, p.ttl, err
}

func (b *book) Services(ctx context.Context, name string) ([]*net.SRV, time.Duration, error) {
	p, err := b.turn(ctx, b.srv, "SRV ", name)
	return p.srv, p.ttl, err
}

// write changes an answer.
func (b *book) write(f func(b *book)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

func (b *book) questions(key string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[key]
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// eventually waits for what other goroutines do.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

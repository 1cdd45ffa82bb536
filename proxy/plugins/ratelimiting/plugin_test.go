package ratelimiting

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/ratelimit"
)

var client = netip.MustParseAddr("198.51.100.7")

// request is one of an unknown client; change may make it another's.
func request(change func(*exchange.Exchange), headers ...string) *exchange.Exchange {
	x := plugintest.Request("GET", "/a", headers...)
	x.ClientIP = client
	x.Service = &entity.Service{ID: "service-1"}
	if change != nil {
		change(x)
	}
	return x
}

// try sends a request through an instance and shows the answer: the status and what headers say.
func try(t testing.TB, i plugin.Instance, x *exchange.Exchange) string {
	t.Helper()
	status := 200
	if e := plugintest.Access(t, x, i); e != nil {
		status = e.Status
	}
	if err := i.(plugin.HeaderFilter).HeaderFilter(x); err != nil {
		t.Fatal(err)
	}
	list := []string{fmt.Sprint(status)}
	for _, f := range x.Response.Header.Fields {
		list = append(list, f.Name+": "+f.Value)
	}
	return strings.Join(list, " | ")
}

// TestWire has the answers of kong-live J, 3-066 to 3-074.
func TestWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its time begins at a year's start
		g := plugintest.New(t)
		for _, c := range []struct {
			name   string
			config schema.Record
			steps  []any // time to wait, or the answer
		}{
			{"minute=3,hour=5", schema.Record{"minute": 3.0, "hour": 5.0}, []any{
				2 * time.Second,
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 2 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 4 | RateLimit-Limit: 3 | RateLimit-Remaining: 2 | RateLimit-Reset: 58",
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 1 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 3 | RateLimit-Limit: 3 | RateLimit-Remaining: 1 | RateLimit-Reset: 58",
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 0 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 2 | RateLimit-Limit: 3 | RateLimit-Remaining: 0 | RateLimit-Reset: 58",
				"429 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 0 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 2 | RateLimit-Limit: 3 | RateLimit-Remaining: 0 | RateLimit-Reset: 58 | Retry-After: 58",
				"429 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 0 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 2 | RateLimit-Limit: 3 | RateLimit-Remaining: 0 | RateLimit-Reset: 58 | Retry-After: 58",
				58 * time.Second,
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 2 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 1 | RateLimit-Limit: 5 | RateLimit-Remaining: 1 | RateLimit-Reset: 3540",
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 1 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 0 | RateLimit-Limit: 5 | RateLimit-Remaining: 0 | RateLimit-Reset: 3540",
				"429 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 1 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 0 | RateLimit-Limit: 5 | RateLimit-Remaining: 0 | RateLimit-Reset: 3540 | Retry-After: 3540",
				59 * time.Minute,
				"200 | X-RateLimit-Limit-Minute: 3 | X-RateLimit-Remaining-Minute: 2 | X-RateLimit-Limit-Hour: 5 | X-RateLimit-Remaining-Hour: 4 | RateLimit-Limit: 3 | RateLimit-Remaining: 2 | RateLimit-Reset: 60",
			}},
			{"second=1", schema.Record{"second": 1.0}, []any{
				time.Second,
				"200 | X-RateLimit-Limit-Second: 1 | X-RateLimit-Remaining-Second: 0 | RateLimit-Limit: 1 | RateLimit-Remaining: 0 | RateLimit-Reset: 1",
				"429 | X-RateLimit-Limit-Second: 1 | X-RateLimit-Remaining-Second: 0 | RateLimit-Limit: 1 | RateLimit-Remaining: 0 | RateLimit-Reset: 1 | Retry-After: 1",
			}},
			{"equally tight: the longest", schema.Record{"day": 1000.0, "month": 1000.0, "year": 1000.0}, []any{
				"200 | X-RateLimit-Limit-Day: 1000 | X-RateLimit-Remaining-Day: 999 | X-RateLimit-Limit-Month: 1000 | X-RateLimit-Remaining-Month: 999 | X-RateLimit-Limit-Year: 1000 | X-RateLimit-Remaining-Year: 999 | RateLimit-Limit: 1000 | RateLimit-Remaining: 999 | RateLimit-Reset: 31532399",
			}},
			{"fractions", schema.Record{"day": 1.5}, []any{
				"200 | X-RateLimit-Limit-Day: 1.5 | X-RateLimit-Remaining-Day: 0.5 | RateLimit-Limit: 1.5 | RateLimit-Remaining: 0.5 | RateLimit-Reset: 82799",
				"200 | X-RateLimit-Limit-Day: 1.5 | X-RateLimit-Remaining-Day: 0 | RateLimit-Limit: 1.5 | RateLimit-Remaining: 0 | RateLimit-Reset: 82799",
				"429 | X-RateLimit-Limit-Day: 1.5 | X-RateLimit-Remaining-Day: 0 | RateLimit-Limit: 1.5 | RateLimit-Remaining: 0 | RateLimit-Reset: 82799 | Retry-After: 82799",
			}},
			{"a month has 30 days", schema.Record{"month": 1e15}, []any{
				31*24*time.Hour - 3601*time.Second,
				"200 | X-RateLimit-Limit-Month: 1e+15 | X-RateLimit-Remaining-Month: 1e+15 | RateLimit-Limit: 1e+15 | RateLimit-Remaining: 1e+15 | RateLimit-Reset: 2592000",
				59*24*time.Hour + 5*time.Second, // to the 31st of March
				"200 | X-RateLimit-Limit-Month: 1e+15 | X-RateLimit-Remaining-Month: 1e+15 | RateLimit-Limit: 1e+15 | RateLimit-Remaining: 1e+15 | RateLimit-Reset: 1",
			}},
			{"hidden", schema.Record{"second": 1.0, "hide_client_headers": true}, []any{"200", "429", "429"}},
			{"other status", schema.Record{"second": 1.0, "hide_client_headers": true, "error_code": 503.0}, []any{"200", "503"}},
		} {
			i := newIn(g, fresh(), "scope", c.config)
			for n, s := range c.steps {
				if d, ok := s.(time.Duration); ok {
					time.Sleep(d)
				} else if got := try(t, i, request(nil)); got != s {
					t.Errorf("%s, step %d at %v:\n%s\nwant\n%s", c.name, n, time.Now().UTC(), got, s)
				}
			}
		}
	})
}

// newIn builds an instance of one plugin in a scope.
func newIn(g *plugintest.Gateway, p plugin.Plugin, scope string, config schema.Record) plugin.Instance {
	i, err := p.New(context.Background(), g.Env, plugin.Config{ID: "p", Scope: scope, Record: g.Complete(p, config)})
	if err != nil {
		panic(err)
	}
	return i
}

func TestRefusal(t *testing.T) {
	g := plugintest.New(t)
	for _, c := range []struct {
		config schema.Record
		want   *plugin.Exit
	}{
		{schema.Record{"hour": 1.0}, plugin.Refuse(429, "API rate limit exceeded", "")},
		{schema.Record{"hour": 1.0, "error_code": 403.0, "error_message": "slow down"}, plugin.Refuse(403, "slow down", "")},
		{schema.Record{"hour": 1.0, "error_code": nil, "error_message": nil}, plugin.Refuse(429, "", "")},
	} {
		i := newIn(g, fresh(), "", c.config)
		first, second := plugintest.Access(t, request(nil), i), plugintest.Access(t, request(nil), i)
		if first != nil || !cmp.Equal(c.want, second) {
			t.Errorf("%v: %v, then %v", c.config, first, second)
		}
	}
}

func consumer(id string) func(*exchange.Exchange) {
	return func(x *exchange.Exchange) { x.Consumer = &entity.Consumer{ID: id} }
}

func credential(id string) func(*exchange.Exchange) {
	return func(x *exchange.Exchange) { x.SetCredential(exchange.Credential{ID: id}) }
}

func address(ip string) func(*exchange.Exchange) {
	return func(x *exchange.Exchange) { x.ClientIP = netip.MustParseAddr(ip) }
}

// TestLimitBy: which requests share a counter.
func TestLimitBy(t *testing.T) {
	g := plugintest.New(t)
	both := func(c, k string) func(*exchange.Exchange) {
		return func(x *exchange.Exchange) { consumer(c)(x); credential(k)(x) }
	}
	service := func(id, ip string) func(*exchange.Exchange) {
		return func(x *exchange.Exchange) { x.Service = &entity.Service{ID: id}; address(ip)(x) }
	}
	path := func(p, ip string) func(*exchange.Exchange) {
		return func(x *exchange.Exchange) { x.Request.Path, x.Request.Target = p, p; address(ip)(x) }
	}
	header := func(ip string, values ...string) func(*exchange.Exchange) {
		return func(x *exchange.Exchange) {
			address(ip)(x)
			for _, v := range values {
				x.Request.Header.Add("x-Id", v)
			}
		}
	}
	for _, c := range []struct {
		name        string
		config      schema.Record
		first, then func(*exchange.Exchange)
		same        bool
	}{
		{"one consumer, two credentials", nil, both("c1", "k1"), both("c1", "k2"), true},
		{"one consumer, two addresses", nil, consumer("c1"), func(x *exchange.Exchange) { consumer("c1")(x); address("::1")(x) }, true},
		{"two consumers", nil, consumer("c1"), consumer("c2"), false},
		{"credential without consumer", nil, credential("k1"), func(x *exchange.Exchange) { credential("k1")(x); address("::1")(x) }, true},
		{"nobody: the address", nil, nil, nil, true},
		{"nobody: two addresses", nil, nil, address("198.51.100.8"), false},
		{"consumer and nobody from the same address", nil, consumer("c1"), nil, false},
		{"a credential is no consumer of the same id", nil, consumer("x"), credential("x"), false},
		{"credential: two of one consumer", schema.Record{"limit_by": "credential"}, both("c1", "k1"), both("c1", "k2"), false},
		{"credential: the same", schema.Record{"limit_by": "credential"}, both("c1", "k1"), credential("k1"), true},
		{"credential: anonymous consumer counts by address", schema.Record{"limit_by": "credential"}, consumer("c1"), nil, true},
		{"ip: two consumers", schema.Record{"limit_by": "ip"}, consumer("c1"), consumer("c2"), true},
		{"ip: two addresses", schema.Record{"limit_by": "ip"}, nil, address("2001:db8::1"), false},
		{"ip: v4 in v6", schema.Record{"limit_by": "ip"}, nil, address("::ffff:198.51.100.7"), true},
		{"service: two addresses", schema.Record{"limit_by": "service"}, nil, address("::1"), true},
		{"service: two services", schema.Record{"limit_by": "service"}, nil, service("service-2", "198.51.100.7"), false},
		{"header", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1", "a"), header("::2", "a"), true},
		{"header: two values", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1", "a"), header("::1", "b"), false},
		{"header: the first of several", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1", "a"), header("::1", "a", "b"), true},
		{"header: an empty one is one", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1", ""), header("::2", ""), true},
		{"header: none, so the address", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1"), header("::1"), true},
		{"header: a value does not pose as an address", schema.Record{"limit_by": "header", "header_name": "X-ID"}, header("::1"), header("::2", string(make([]byte, 15))+"\x01"), false},
		{"path: two addresses", schema.Record{"limit_by": "path", "path": "/p"}, path("/p", "::1"), path("/p", "::2"), true},
		{"path: another path counts by address", schema.Record{"limit_by": "path", "path": "/p"}, path("/q", "::1"), path("/r", "::1"), true},
		{"path: prefix is not enough", schema.Record{"limit_by": "path", "path": "/p"}, path("/p", "::1"), path("/p/q", "::1"), false},
		{"path: compared in the router's form", schema.Record{"limit_by": "path", "path": "/%7Ebob"}, path("/~bob", "::1"), path("/~bob", "::2"), true},
	} {
		config := schema.Record{"hour": 1.0}
		for k, v := range c.config {
			config[k] = v
		}
		i := newIn(g, fresh(), "", config)
		if e := plugintest.Access(t, request(c.first), i); e != nil {
			t.Fatalf("%s: the first is refused", c.name)
		}
		if e := plugintest.Access(t, request(c.then), i); (e != nil) != c.same {
			t.Errorf("%s: refused %v, want %v", c.name, e != nil, c.same)
		}
	}
}

// TestScope: counters belong to a plugin's scope, whichever row it is and whatever route the request takes.
func TestScope(t *testing.T) {
	g, p := plugintest.New(t), fresh()
	service := newIn(g, p, ":s1:", schema.Record{"hour": 2.0})
	route := newIn(g, p, "r1:s1:", schema.Record{"hour": 1.0})
	if plugintest.Access(t, request(nil), service) != nil || plugintest.Access(t, request(nil), route) != nil {
		t.Error("two scopes share a counter")
	}
	changed := newIn(g, p, ":s1:", schema.Record{"hour": 3.0})
	for n, want := range []bool{false, false, true} {
		if e := plugintest.Access(t, request(nil), changed); (e != nil) != want {
			t.Errorf("request %d with the changed limit: refused %v", n+2, e != nil)
		}
	}
	if plugintest.Access(t, request(nil), newIn(g, fresh(), ":s1:", schema.Record{"hour": 1.0})) != nil {
		t.Error("two gateways in one process share counters")
	}
}

type failing struct{}

func (failing) Take(time.Time, ratelimit.Key, []ratelimit.Limit, *ratelimit.Decision) error {
	return errors.New("nobody answers")
}

func TestFaultTolerant(t *testing.T) {
	g := plugintest.New(t)
	tolerant := newIn(g, with(failing{}), "", schema.Record{"hour": 1.0})
	if got := try(t, tolerant, request(nil)); got != "200" {
		t.Errorf("tolerant: %s", got)
	}
	if !strings.Contains(g.Logs.String(), "nobody answers") {
		t.Error("not logged")
	}
	strict := newIn(g, with(failing{}), "", schema.Record{"hour": 1.0, "fault_tolerant": false})
	x := request(nil)
	var exit *plugin.Exit
	if err := strict.(plugin.Accessor).Access(x); err == nil || errors.As(err, &exit) {
		t.Errorf("strict: %v, want an error that is no answer, which the gateway makes a 500", err)
	}
	if err := strict.(plugin.HeaderFilter).HeaderFilter(x); err != nil || len(x.Response.Header.Fields) != 0 {
		t.Errorf("strict: %v, %v", err, x.Response.Header.Fields)
	}
}

// TestHeaders: a request that another plugin has answered is not counted and tells no limits; headers of the upstream do
// not stand beside the gateway's.
func TestHeaders(t *testing.T) {
	i := newIn(plugintest.New(t), fresh(), "", schema.Record{"hour": 2.0})
	x := request(nil)
	if err := i.(plugin.HeaderFilter).HeaderFilter(x); err != nil || len(x.Response.Header.Fields) != 0 {
		t.Errorf("without access: %v %v", err, x.Response.Header.Fields)
	}
	x.Response.Header.Add("ratelimit-limit", "old")
	x.Response.Header.Add("x-ratelimit-remaining-hour", "old")
	if got := try(t, i, x); strings.Contains(got, "old") || !strings.Contains(got, "X-RateLimit-Remaining-Hour: 1") {
		t.Error(got)
	}
}

// TestExact: 64 clients at once, a limit of 1000: exactly 1000 pass.
func TestExact(t *testing.T) {
	i := newIn(plugintest.New(t), fresh(), "", schema.Record{"year": 1000.0, "limit_by": "service"})
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			x := &exchange.Exchange{}
			service := &entity.Service{ID: "s"}
			for range 100 {
				x.Reset()
				x.Service = service
				err := i.(plugin.Accessor).Access(x)
				if err == nil {
					passed.Add(1)
				}
				if e := i.(plugin.HeaderFilter).HeaderFilter(x); e != nil || x.Response.Header.Has("Retry-After") != (err != nil) {
					t.Error("headers do not fit the answer")
				}
			}
		})
	}
	wg.Wait()
	if n := passed.Load(); n != 1000 {
		t.Errorf("%d passed, want 1000", n)
	}
}

func BenchmarkRateLimiting(b *testing.B) {
	for _, c := range []struct {
		name   string
		config schema.Record
		id     func(*exchange.Exchange)
	}{
		{"minute, consumer", schema.Record{"minute": 1e13}, consumer("8d1f7b0a-0000-4000-8000-000000000000")},
		{"minute, ip", schema.Record{"minute": 1e13, "limit_by": "ip"}, nil},
		{"minute and hour, header", schema.Record{"minute": 1e13, "hour": 1e13, "limit_by": "header", "header_name": "x-id"}, nil},
		{"hidden", schema.Record{"minute": 1e13, "hide_client_headers": true}, nil},
		{"refused, year", schema.Record{"year": 1.0}, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := newIn(plugintest.New(b), fresh(), "8d1f7b0a-0000-4000-8000-000000000001:8d1f7b0a-0000-4000-8000-000000000002:", c.config)
			access, filter := i.(plugin.Accessor), i.(plugin.HeaderFilter)
			template := request(c.id, "Host: a", "User-Agent: b", "X-Id: c")
			x := &exchange.Exchange{}
			b.ReportAllocs()
			for b.Loop() {
				x.Reset()
				x.ClientIP, x.Consumer, x.Service = template.ClientIP, template.Consumer, template.Service
				x.Request.Header.Fields = append(x.Request.Header.Fields, template.Request.Header.Fields...)
				x.Response.Header.Fields = append(x.Response.Header.Fields, template.Request.Header.Fields...)
				_ = access.Access(x)
				_ = filter.HeaderFilter(x)
			}
		})
	}
	b.Run("nothing", func(b *testing.B) { // what the loop itself costs
		template := request(nil, "Host: a", "User-Agent: b", "X-Id: c")
		x := &exchange.Exchange{}
		for b.Loop() {
			x.Reset()
			x.ClientIP, x.Consumer, x.Service = template.ClientIP, template.Consumer, template.Service
			x.Request.Header.Fields = append(x.Request.Header.Fields, template.Request.Header.Fields...)
			x.Response.Header.Fields = append(x.Response.Header.Fields, template.Request.Header.Fields...)
		}
	})
}

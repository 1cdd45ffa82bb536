package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestPassive plays outcomes to one target: 200 and so on are statuses, t a timeout, c a failed connection, x a fault of
// the client. Capital letters between say what the target must be by then.
func TestPassive(t *testing.T) {
	const one = `"unhealthy":{"http_failures":3,"tcp_failures":2,"timeouts":2}`
	for _, tt := range []struct{ name, passive, play string }{
		{"nothing counts", `"healthy":{"successes":1}`, "500 500 500 c c c t t t UP"},
		{"three in a row", one, "500 UP 503 UP 429 DOWN"},
		{"a success between", one, "500 500 200 500 500 UP 500 DOWN"},
		{"statuses in no list", one, "500 404 302 500 UP 404 500 DOWN"},
		{"connections", one, "c UP c DOWN"},
		{"timeouts", one, "t UP t DOWN"},
		{"the upstream's own 504", one, "504 UP 504 DOWN"},
		{"a listed 504", `"unhealthy":{"http_failures":3,"timeouts":1,"http_statuses":[504]}`, "504 504 UP 504 DOWN"},
		{"kinds apart", one, "500 c t 500 UP 500 DOWN"},
		{"a success ends all rows", one, "500 500 c t 200 500 500 c t UP c DOWN"},
		{"faults of the client", one, "x x x x UP"},
		{"down for good", one, "c c DOWN 200 200 200 200 DOWN"},
		{"comes back", `"healthy":{"successes":3},` + one, "c c DOWN 200 200 DOWN 201 UP"},
		{"successes in a row", `"healthy":{"successes":3},` + one, "c c DOWN 200 200 500 200 200 DOWN 200 UP"},
		{"counters begin anew", `"healthy":{"successes":1},` + one, "500 500 c c DOWN 200 UP 500 500 c UP c DOWN"},
		{"a good status that is also listed as bad", `"healthy":{"successes":1,"http_statuses":[500]},` + one, "500 500 500 500 UP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestPool(t, `{"healthchecks":{"passive":{`+tt.passive+`}}}`, "10.0.0.1:80")
			pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]
			for i, step := range strings.Fields(tt.play) {
				var status int
				var err error
				switch step {
				case "UP", "DOWN":
					if pe.down.Load() != (step == "DOWN") {
						t.Fatalf("step %d: not %s", i, step)
					}
					continue
				case "c":
					err = fmt.Errorf("wrapped: %w", fault(502))
				case "t":
					err = fault(504)
				case "x":
					err = fault(400)
				default:
					fmt.Sscan(step, &status)
				}
				// Answers of requests that were under way when the target went down count too.
				d := &Dispatch{pool: p, config: p.plan.Load().config, peer: pe}
				x := newExchange()
				x.Response.Status = status
				d.Result(x, err)
			}
		})
	}
}

// TestThreshold: as in Kong, more than the threshold must be available.
func TestThreshold(t *testing.T) {
	for _, tt := range []struct {
		threshold float64
		healthy   []bool // with 4, 3, 2, 1, 0 of four targets
	}{
		{0, []bool{true, true, true, true, false}},
		{25, []bool{true, true, true, false, false}},
		{50, []bool{true, true, false, false, false}},
		{75, []bool{true, false, false, false, false}},
		{99, []bool{true, false, false, false, false}},
		{100, []bool{false, false, false, false, false}},
	} {
		for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
			t.Run(fmt.Sprint(tt.threshold, algorithm), func(t *testing.T) {
				list := addresses(4)
				p := newTestPool(t, fmt.Sprintf(`{"algorithm":%q,"healthchecks":{"threshold":%v,"passive":{"unhealthy":{"tcp_failures":1}}}}`, algorithm, tt.threshold), list...)
				for i, want := range tt.healthy {
					d, err := p.Dispatch(newExchange(), false)
					if (err == nil) != want {
						t.Errorf("%d of 4 available: %v", 4-i, err)
					}
					if err == nil {
						d.End()
					}
					view, _ := p.set.PoolHealth(upstreamID)
					if view["health"] != map[bool]string{true: Healthy, false: Unhealthy}[want] || view["balancer_health"] != view["health"] {
						t.Errorf("%d of 4 available: %v", 4-i, view)
					}
					if i < len(list) {
						if err := p.set.SetHealth(upstreamID, list[i], "", false); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func TestSetHealth(t *testing.T) {
	r := &book{hosts: map[string]page{"a.test": {addrs: addrs("10.0.0.1", "10.0.0.2")}}}
	s := newSet(t, Options{Resolver: r, SlowStart: -1})
	checked := `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`
	s.Update(true, change(t, checked, "a.test:8000", "none.test:80", "10.0.0.9:80"))
	eventually(t, func() bool { return len(s.Pool("up").plan.Load().live) == 3 })
	unhealthy := func() (list string) {
		view, _ := s.TargetHealth(upstreamID)
		for _, id := range []string{"a.test:8000", "10.0.0.9:80"} {
			for _, a := range view[id]["data"].(map[string]any)["addresses"].([]any) {
				if a := a.(map[string]any); a["health"] == Unhealthy {
					list += fmt.Sprint(a["ip"], " ")
				}
			}
		}
		return strings.TrimSpace(list)
	}
	for _, tt := range []struct {
		upstream, target, address string
		healthy                   bool
		err                       error
		unhealthy                 string // afterwards
	}{
		{upstreamID, "a.test:8000", "10.0.0.2:8000", false, nil, "10.0.0.2"},
		{upstreamID, "a.test:8000", "10.0.0.1", false, nil, "10.0.0.1 10.0.0.2"},
		{upstreamID, "a.test:8000", "10.0.0.2:8000", true, nil, "10.0.0.1"},
		{upstreamID, "a.test:8000", "", false, nil, "10.0.0.1 10.0.0.2"},
		{upstreamID, "a.test:8000", "", false, nil, "10.0.0.1 10.0.0.2"},
		{upstreamID, "a.test:8000", "", true, nil, ""},
		{upstreamID, "10.0.0.9:80", "10.0.0.9:80", false, nil, "10.0.0.9"},
		{upstreamID, "10.0.0.9:80", "10.0.0.9:81", true, ErrUnknown, "10.0.0.9"},
		{upstreamID, "10.0.0.9:80", "10.0.0.9:99999", true, ErrUnknown, "10.0.0.9"},
		{upstreamID, "10.0.0.9:80", "name:80", true, ErrUnknown, "10.0.0.9"},
		{upstreamID, "nobody", "", true, ErrUnknown, "10.0.0.9"},
		{"nothing", "10.0.0.9:80", "", true, ErrUnknown, "10.0.0.9"},
		{upstreamID, "none.test:80", "", false, nil, "10.0.0.9"},
	} {
		if err := s.SetHealth(tt.upstream, tt.target, tt.address, tt.healthy); err != tt.err {
			t.Errorf("%+v: %v", tt, err)
		}
		if got := unhealthy(); got != tt.unhealthy {
			t.Errorf("%+v: unhealthy are %q", tt, got)
		}
	}
	var missing interface{ NotFound() bool }
	if err := fmt.Errorf("wrapped: %w", ErrUnknown); !errors.As(err, &missing) || !missing.NotFound() {
		t.Error("the Admin API cannot tell what is missing")
	}
	// Health survives changes that have nothing to do with it.
	s.Update(false, change(t, `{"name":"up","slots":20000,"healthchecks":{"passive":{"unhealthy":{"tcp_failures":2}}}}`, "10.0.0.9:80 7", "a.test:8000", "10.0.0.8:80"))
	if got := unhealthy(); got != "10.0.0.9" {
		t.Errorf("after an unrelated change: %q", got)
	}
	// Without checks nobody would ever find a target healthy again.
	s.Update(false, change(t, `{}`, "10.0.0.9:80", "a.test:8000"))
	if n := len(s.Pool("up").plan.Load().live); n != 3 {
		t.Errorf("%d live without checks", n)
	}
	// What an operator says counts all the same, and through unrelated changes.
	if err := s.SetHealth(upstreamID, "10.0.0.9:80", "", false); err != nil {
		t.Error(err)
	}
	s.Update(false, change(t, `{"slots":20000}`, "10.0.0.9:80", "a.test:8000"))
	if n := len(s.Pool("up").plan.Load().live); n != 2 || unhealthy() != "10.0.0.9" {
		t.Errorf("%d live, unhealthy are %s", n, unhealthy())
	}
	if err := s.SetHealth(upstreamID, "10.0.0.9:80", "", true); err != nil || unhealthy() != "" {
		t.Error(err, unhealthy())
	}
}

// TestViews are the answers of Kong's Admin API.
func TestViews(t *testing.T) {
	r := &book{hosts: map[string]page{"a.test": {addrs: addrs("10.0.0.2", "10.0.0.1")}}}
	s := newSet(t, Options{Resolver: r, SlowStart: -1})
	targets := []string{"127.0.0.1:18977", "a.test:80 10", "none.test:80", "10.0.0.7:80 0"}
	s.Update(true, change(t, `{}`, targets...))
	eventually(t, func() bool {
		view, _ := s.TargetHealth(upstreamID)
		data := view["none.test:80"]["data"].(map[string]any)
		return data["dns"] != "" && len(s.Pool("up").plan.Load().live) == 3
	})
	targetsView := func() any { v, _ := s.TargetHealth(upstreamID); return v }
	poolView := func() any { v, _ := s.PoolHealth(upstreamID); return v }
	want := func(name string, view any, text string) {
		t.Helper()
		got, err := json.Marshal(view)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &b); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b, a); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
	}
	const zero = `"weight":{"total":0,"available":0,"unavailable":0}`
	const none = `"host":"none.test","port":80,"dns":"lookup none.test: no such host","nodeWeight":100,` + zero + `,"addresses":[]`
	want("off", targetsView(), `{
		"127.0.0.1:18977":{"health":"HEALTHCHECKS_OFF","data":{"host":"127.0.0.1","port":18977,"dns":"A","nodeWeight":100,"weight":{"total":100,"available":100,"unavailable":0},
			"addresses":[{"ip":"127.0.0.1","port":18977,"weight":100,"health":"HEALTHCHECKS_OFF"}]}},
		"a.test:80":{"health":"HEALTHCHECKS_OFF","data":{"host":"a.test","port":80,"dns":"A","nodeWeight":10,"weight":{"total":20,"available":20,"unavailable":0},
			"addresses":[{"ip":"10.0.0.1","port":80,"weight":10,"health":"HEALTHCHECKS_OFF"},{"ip":"10.0.0.2","port":80,"weight":10,"health":"HEALTHCHECKS_OFF"}]}},
		"10.0.0.7:80":{"health":"HEALTHCHECKS_OFF","data":{"host":"10.0.0.7","port":80,"dns":"A","nodeWeight":0,`+zero+`,
			"addresses":[{"ip":"10.0.0.7","port":80,"weight":0,"health":"HEALTHCHECKS_OFF"}]}},
		"none.test:80":{"health":"DNS_ERROR","data":{`+none+`}}}`)
	want("pool, off", poolView(), `{"id":"`+upstreamID+`","health":"HEALTHCHECKS_OFF","balancer_health":"HEALTHY","details":{"healthy":true,"weight":{"total":120,"available":120,"unavailable":0},"hosts":[
		{"host":"10.0.0.7","port":80,"dns":"A","nodeWeight":0,`+zero+`,"addresses":[{"ip":"10.0.0.7","port":80,"weight":0,"healthy":true}]},
		{"host":"127.0.0.1","port":18977,"dns":"A","nodeWeight":100,"weight":{"total":100,"available":100,"unavailable":0},"addresses":[{"ip":"127.0.0.1","port":18977,"weight":100,"healthy":true}]},
		{"host":"a.test","port":80,"dns":"A","nodeWeight":10,"weight":{"total":20,"available":20,"unavailable":0},"addresses":[{"ip":"10.0.0.1","port":80,"weight":10,"healthy":true},{"ip":"10.0.0.2","port":80,"weight":10,"healthy":true}]},
		{`+none+`}]}}`)

	s.Update(false, change(t, `{"healthchecks":{"threshold":90,"passive":{"unhealthy":{"tcp_failures":1}}}}`, targets...))
	if err := s.SetHealth(upstreamID, "a.test:80", "10.0.0.2:80", false); err != nil {
		t.Fatal(err)
	}
	if err := s.SetHealth(upstreamID, "127.0.0.1:18977", "", false); err != nil {
		t.Fatal(err)
	}
	want("checked", targetsView(), `{
		"127.0.0.1:18977":{"health":"UNHEALTHY","data":{"host":"127.0.0.1","port":18977,"dns":"A","nodeWeight":100,"weight":{"total":100,"available":0,"unavailable":100},
			"addresses":[{"ip":"127.0.0.1","port":18977,"weight":100,"health":"UNHEALTHY"}]}},
		"a.test:80":{"health":"HEALTHY","data":{"host":"a.test","port":80,"dns":"A","nodeWeight":10,"weight":{"total":20,"available":10,"unavailable":10},
			"addresses":[{"ip":"10.0.0.1","port":80,"weight":10,"health":"HEALTHY"},{"ip":"10.0.0.2","port":80,"weight":10,"health":"UNHEALTHY"}]}},
		"10.0.0.7:80":{"health":"HEALTHCHECKS_OFF","data":{"host":"10.0.0.7","port":80,"dns":"A","nodeWeight":0,`+zero+`,
			"addresses":[{"ip":"10.0.0.7","port":80,"weight":0,"health":"HEALTHCHECKS_OFF"}]}},
		"none.test:80":{"health":"DNS_ERROR","data":{`+none+`}}}`)
	view, _ := s.PoolHealth(upstreamID)
	if view["health"] != Unhealthy || view["balancer_health"] != Unhealthy {
		t.Errorf("pool is %v", view)
	}
	if _, ok := s.PoolHealth("nothing"); ok {
		t.Error("health of no upstream")
	}
	if _, ok := s.TargetHealth("nothing"); ok {
		t.Error("health of no upstream")
	}
}

func TestUpdate(t *testing.T) {
	s := newSet(t, Options{})
	named := func(id, name string, targets ...string) Change {
		c := change(t, `{"name":"`+name+`"}`, targets...)[0]
		c.ID = id
		return c
	}
	s.Update(true, []Change{named("1", "a", "10.0.0.1:80"), named("2", "b")})
	a := s.Pool("a")
	if a == nil || s.Pool("b") == nil || s.Pool("c") != nil {
		t.Fatal("wrong pools")
	}
	s.Update(false, []Change{named("1", "c", "10.0.0.2:80"), {ID: "3"}})
	if s.Pool("a") != nil || s.Pool("c") != a || s.Pool("b") == nil {
		t.Error("renamed pool is another or still there")
	}
	if got := a.ask(t, newExchange(), 200); got != "10.0.0.2:80" {
		t.Errorf("old target %s", got)
	}
	s.Update(false, []Change{named("1", "b"), named("2", "a")}) // swap names
	if s.Pool("b") != a || s.Pool("c") != nil {
		t.Error("names are not swapped")
	}
	s.Update(false, []Change{{ID: "2"}})
	if s.Pool("a") != nil || s.Pool("b") != a {
		t.Error("deleted the wrong one")
	}
	s.Update(true, []Change{named("4", "d")})
	if s.Pool("b") != nil || s.Pool("d") == nil {
		t.Error("reset keeps what is not mentioned")
	}
	s.Close()
	s.Update(true, []Change{named("5", "e")})
	if s.Pool("e") != nil {
		t.Error("a closed set has changed")
	}
}

// TestStateSurvives: whatever the order of unrelated changes, what is known of a target that stays is not lost, and what
// is known of one that left is.
func TestStateSurvives(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := New(Options{Resolver: &book{}, SlowStart: -1})
		defer s.Close()
		list := addresses(6)
		in := map[string]bool{}
		down := map[string]bool{}
		algorithms := []string{"round-robin", "least-connections", "latency", "consistent-hashing"}
		update := func() {
			var now []string
			for _, a := range list {
				if in[a] {
					now = append(now, fmt.Sprint(a, " ", rapid.IntRange(1, 5).Draw(rt, "weight")))
				} else {
					delete(down, a)
				}
			}
			algorithm := rapid.SampledFrom(algorithms).Draw(rt, "algorithm")
			s.Update(rapid.Bool().Draw(rt, "reset"), change(t, `{"algorithm":"`+algorithm+`","healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`, now...))
		}
		update()
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			a := rapid.SampledFrom(list).Draw(rt, "target")
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				in[a] = !in[a]
				update()
			case 1:
				update()
			default:
				healthy := rapid.Bool().Draw(rt, "healthy")
				if err := s.SetHealth(upstreamID, a, "", healthy); (err == nil) != in[a] {
					rt.Fatalf("SetHealth of %s, which is there: %v, says %v", a, in[a], err)
				}
				if in[a] {
					down[a] = !healthy
				}
			}
			view, _ := s.TargetHealth(upstreamID)
			if want := count(in); len(view) != want {
				rt.Fatalf("%d targets, want %d", len(view), want)
			}
			for id, v := range view {
				if (v["health"] == Unhealthy) != down[id] {
					rt.Fatalf("%s is %v, want unhealthy: %v", id, v["health"], down[id])
				}
			}
			plan := s.Pool("up").plan.Load()
			if want := count(in) - count(down); len(plan.live) != want || plan.healthy != (want > 0) {
				rt.Fatalf("%d live, healthy %v, want %d", len(plan.live), plan.healthy, want)
			}
		}
	})
}

func count(m map[string]bool) (n int) {
	for _, v := range m {
		if v {
			n++
		}
	}
	return n
}

// TestFlapping changes everything there is to change while requests run.
func TestFlapping(t *testing.T) {
	for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
		t.Run(algorithm, func(t *testing.T) {
			s := newSet(t, Options{SlowStart: 5 * time.Millisecond})
			settings := `{"algorithm":"` + algorithm + `"` + hashOn(algorithm) + `,"healthchecks":{"passive":{"healthy":{"successes":1},"unhealthy":{"tcp_failures":1,"timeouts":2}}}}`
			list := addresses(8)
			s.Update(true, change(t, settings, list...))
			p := s.Pool("up")
			first := p.plan.Load()
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() { // configuration and health flap, but the first target stays
					for n := i; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						switch a := list[1+n%7]; i {
						case 0:
							s.Update(n%2 == 0, change(t, settings, list[:1+n%8]...))
						case 1:
							_ = s.SetHealth(upstreamID, a, "", n%2 == 0)
						default:
							_, _ = s.PoolHealth(upstreamID)
							_, _ = s.TargetHealth(upstreamID)
						}
					}
				})
			}
			var requests sync.WaitGroup
			for w := range 4 {
				requests.Go(func() {
					x := newExchange()
					for n := range 3000 {
						d, err := p.Dispatch(x, false)
						if err != nil {
							t.Errorf("a target was there all the time: %v", err)
							return
						}
						if x.Upstream.Host == "" {
							t.Error("no address")
						}
						if x.Upstream.Host != "10.0.0.0" && (n+w)%3 == 0 {
							if err := x.Upstream.Retry(x, fault(502)); err != nil {
								t.Errorf("retry: %v", err)
								return
							}
						}
						x.Response.Status = 200
						d.Result(x, nil)
						d.End()
					}
				})
			}
			requests.Wait()
			close(stop)
			wg.Wait()
			for _, m := range append(first.live, p.plan.Load().live...) {
				if n := m.peer.conns.Load(); n != 0 {
					t.Errorf("%s has %d requests for ever", m.ip, n)
				}
			}
		})
	}
}

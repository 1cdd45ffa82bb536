package balancer

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRoundRobinWeights(t *testing.T) {
	for _, tt := range []struct {
		targets []string
		n       int
		want    map[string]int
		within  float64
	}{
		{[]string{"10.0.0.1:80", "10.0.0.2:80"}, 10, map[string]int{"10.0.0.1:80": 5, "10.0.0.2:80": 5}, 0},
		{[]string{"10.0.0.1:80 100", "10.0.0.2:80 300"}, 10000, map[string]int{"10.0.0.1:80": 2500, "10.0.0.2:80": 7500}, 0},
		{[]string{"10.0.0.1:80 1", "10.0.0.2:80 3", "10.0.0.3:80 6"}, 10000, map[string]int{"10.0.0.1:80": 1000, "10.0.0.2:80": 3000, "10.0.0.3:80": 6000}, 0},
		{[]string{"10.0.0.1:80 0", "10.0.0.2:80"}, 100, map[string]int{"10.0.0.2:80": 100}, 0},
		{[]string{"10.0.0.1:80 65535", "10.0.0.2:80 65534", "10.0.0.3:80 32767"}, 1 << 16, map[string]int{"10.0.0.1:80": 26214, "10.0.0.2:80": 26214, "10.0.0.3:80": 13107}, 0.001},
		{[]string{"[::1]:80", "10.0.0.2:443"}, 2, map[string]int{"[::1]:80": 1, "10.0.0.2:443": 1}, 0},
	} {
		t.Run(fmt.Sprint(tt.targets), func(t *testing.T) {
			got := newTestPool(t, `{}`, tt.targets...).count(t, tt.n)
			for k, want := range tt.want {
				if math.Abs(float64(got[k]-want)) > tt.within*float64(want) {
					t.Errorf("%s: %d of %d requests, want %d", k, got[k], tt.n, want)
				}
			}
			if len(got) != len(tt.want) {
				t.Errorf("got %v", got)
			}
		})
	}
}

// TestOrder: in every stretch of the order each member has its share, give or take one turn.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 300), 1, 8).Draw(t, "weights")
		var live []member
		total := 0
		for _, w := range weights {
			live = append(live, member{weight: w})
			total += w
		}
		order := newOrder(live)
		seen := make([]int, len(weights))
		for n, i := range order {
			seen[i]++
			for j, w := range weights {
				share := float64(n+1) * float64(w) / float64(total)
				if d := float64(seen[j]) - share; math.Abs(d) > 1.5+float64(len(weights))/2 {
					t.Fatalf("after %d turns member %d of %v had %d, share %.2f", n+1, j, weights, seen[j], share)
				}
			}
		}
		for j, w := range weights {
			if seen[j]*total != w*len(order) {
				t.Fatalf("member %d of %v has %d of %d turns", j, weights, seen[j], len(order))
			}
		}
	})
}

// TestOrderRounded: weights that do not fit are rounded, by less than 2 % for a thousand peers.
func TestOrderRounded(t *testing.T) {
	var live []member
	total := 0
	for i := range 1000 {
		live = append(live, member{weight: 1000 + i*37%1009})
		total += live[i].weight
	}
	order := newOrder(live)
	seen := make([]int, len(live))
	for _, i := range order {
		seen[i]++
	}
	for i, m := range live {
		want := float64(m.weight) / float64(total)
		if got := float64(seen[i]) / float64(len(order)); math.Abs(got/want-1) > 0.02 {
			t.Errorf("member %d has %.6f, want %.6f", i, got, want)
		}
	}
}

func TestLeastConnections(t *testing.T) {
	p := newTestPool(t, `{"algorithm":"least-connections"}`, "10.0.0.1:80 100", "10.0.0.2:80 300")
	open := map[string]int{}
	var list []*Dispatch
	for range 40 {
		x := newExchange()
		d, err := p.Dispatch(x, false)
		if err != nil {
			t.Fatal(err)
		}
		open[at(x)]++
		list = append(list, d)
	}
	if d := cmp.Diff(map[string]int{"10.0.0.1:80": 10, "10.0.0.2:80": 30}, open); d != "" {
		t.Error(d)
	}
	for _, d := range list {
		d.End()
	}
	for _, m := range p.plan.Load().live {
		if n := m.peer.conns.Load(); n != 0 {
			t.Errorf("%d requests still count", n)
		}
	}
	// The one with nothing to do comes next, whatever happened before.
	x := newExchange()
	busy, err := p.Dispatch(x, false)
	if err != nil || at(x) != "10.0.0.2:80" {
		t.Fatalf("first request went to %s, %v: not the heaviest", at(x), err)
	}
	defer busy.End()
	p.set.Update(false, change(t, `{"algorithm":"least-connections","tags":["unrelated"]}`, "10.0.0.1:80 100", "10.0.0.2:80 100"))
	if got := p.ask(t, newExchange(), 200); got != "10.0.0.1:80" {
		t.Errorf("after an unrelated change the open request is forgotten: %s", got)
	}
}

func TestLeastConnectionsOfMany(t *testing.T) {
	p := newTestPool(t, `{"algorithm":"least-connections"}`, addresses(200)...)
	var list []*Dispatch
	for range 2000 {
		d, err := p.Dispatch(newExchange(), false)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	for _, m := range p.plan.Load().live {
		if n := m.peer.conns.Load(); n < 8 || n > 12 {
			t.Errorf("%s has %d of 2000 requests, 10 would be even", m.ip, n)
		}
	}
	for _, d := range list {
		d.End()
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, `{"algorithm":"latency"}`, "10.0.0.1:80", "10.0.0.2:80")
		took := map[string]time.Duration{"10.0.0.1:80": 10 * time.Millisecond, "10.0.0.2:80": 100 * time.Millisecond}
		run := func(n int) map[string]int {
			got := map[string]int{}
			for range n {
				x := newExchange()
				d, err := p.Dispatch(x, false)
				if err != nil {
					t.Fatal(err)
				}
				got[at(x)]++
				time.Sleep(took[at(x)])
				x.Response.Status = 200
				d.Result(x, nil)
				d.End()
			}
			return got
		}
		if got := run(1000); got["10.0.0.1:80"] < 900 {
			t.Errorf("the fast one got %v", got)
		}
		// The other way round, and it is found out: what was slow is asked again because its latency is forgotten.
		took["10.0.0.1:80"], took["10.0.0.2:80"] = 200*time.Millisecond, 10*time.Millisecond
		if got := run(1000); got["10.0.0.2:80"] < 800 {
			t.Errorf("the one that is fast now got %v", got)
		}
		// A new one begins with the average of the others.
		p.set.Update(false, change(t, `{"algorithm":"latency"}`, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"))
		known := map[string]float64{}
		for _, m := range p.plan.Load().live {
			known[m.ip] = latency(m.peer.ewma.Load(), p.set.millis())
		}
		if want := (known["10.0.0.1"] + known["10.0.0.2"]) / 2; want < 0.005 || math.Abs(known["10.0.0.3"]-want) > 0.001 {
			t.Errorf("latencies are %v", known)
		}
		// Requests under way count: whoever is a little slower still gets some.
		var open []*Dispatch
		got := map[string]int{}
		for range 300 {
			x := newExchange()
			d, err := p.Dispatch(x, false)
			if err != nil {
				t.Fatal(err)
			}
			got[at(x)]++
			open = append(open, d)
		}
		if len(got) != 3 || got["10.0.0.2:80"] < got["10.0.0.3:80"] {
			t.Errorf("300 at once: %v", got)
		}
		for _, d := range open {
			d.End()
		}
	})
}

// TestLatencyOfFailures: a peer that refuses at once is not the fastest.
func TestLatencyOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, `{"algorithm":"latency"}`, "10.0.0.1:80", "10.0.0.2:80")
		got := map[string]int{}
		for range 100 {
			x := newExchange()
			d, err := p.Dispatch(x, false)
			if err != nil {
				t.Fatal(err)
			}
			got[at(x)]++
			var failure error
			if at(x) == "10.0.0.1:80" {
				failure = fault(502)
			} else {
				time.Sleep(50 * time.Millisecond)
			}
			d.Result(x, failure)
			d.End()
		}
		if got["10.0.0.1:80"] > 10 {
			t.Errorf("got %v", got)
		}
	})
}

func TestEWMA(t *testing.T) {
	p := &peer{}
	p.observe(0.1, 1000)
	steps := []struct {
		seconds float64
		now     int64
		want    float64
	}{
		{0.2, 1000, 0.2}, // up at once
		{0.1, 1000, 0.2}, // no time has passed
		{0.1, 11000, 0.2*math.Exp(-1) + 0.1*(1-math.Exp(-1))},
		{0.1, 1<<32 + 11000, 0.1368}, // the clock wrapped around: no age at all
	}
	for _, s := range steps {
		p.observe(s.seconds, s.now)
		if got := latency(p.ewma.Load(), s.now); math.Abs(got-s.want) > 0.001 {
			t.Errorf("after %v at %d: %v, want %v", s.seconds, s.now, got, s.want)
		}
	}
}

// TestTried: retries do not go to who has failed, and begin again when all have.
func TestTried(t *testing.T) {
	for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
		t.Run(algorithm, func(t *testing.T) {
			p := newTestPool(t, `{"algorithm":"`+algorithm+`"}`, addresses(5)...)
			for range 50 {
				x := newExchange()
				d, err := p.Dispatch(x, false)
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]int{at(x): 1}
				for i := range 9 {
					if err := x.Upstream.Retry(x, fault(502)); err != nil {
						t.Fatal(err)
					}
					seen[at(x)]++
					if i == 3 && len(seen) != 5 {
						t.Fatalf("five tries went to %v", seen)
					}
				}
				for k, n := range seen {
					if n != 2 {
						t.Fatalf("ten tries: %s was asked %d times", k, n)
					}
				}
				d.Result(x, fault(502))
				d.End()
			}
			for _, m := range p.plan.Load().live {
				if n := m.peer.conns.Load(); n != 0 {
					t.Errorf("%d requests still count", n)
				}
			}
		})
	}
}

func TestNobody(t *testing.T) {
	for _, tt := range []struct {
		name    string
		targets []string
	}{{"no targets", nil}, {"weight 0", []string{"10.0.0.1:80 0"}}} {
		for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
			t.Run(tt.name+" "+algorithm, func(t *testing.T) {
				p := newTestPool(t, `{"algorithm":"`+algorithm+`"}`, tt.targets...)
				if _, err := p.Dispatch(newExchange(), false); err != ErrNoPeer {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

func TestSlowStart(t *testing.T) {
	for _, algorithm := range []string{"round-robin", "least-connections", "latency"} {
		t.Run(algorithm, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSet(t, Options{SlowStart: 10 * time.Second})
				s.Update(true, change(t, `{"algorithm":"`+algorithm+`","healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`, "10.0.0.1:80", "10.0.0.2:80"))
				p := s.Pool("up")
				// busy keeps 60 requests open, so that all algorithms have something to compare.
				share := func() float64 {
					n := 0
					var open []*Dispatch
					for range 2000 {
						x := newExchange()
						d, err := p.Dispatch(x, false)
						if err != nil {
							t.Fatal(err)
						}
						if at(x) == "10.0.0.1:80" {
							n++
						}
						if open = append(open, d); len(open) == 60 {
							open[0].Result(x, nil)
							open[0].End()
							open = open[1:]
						}
					}
					for _, d := range open {
						d.End()
					}
					return float64(n) / 2000
				}
				near := func(when string, want float64) {
					t.Helper()
					if got := share(); math.Abs(got-want) > 0.06 {
						t.Errorf("%s: share %.3f, want %.3f", when, got, want)
					}
				}
				near("at first", 0.5)
				if err := s.SetHealth(upstreamID, "10.0.0.1:80", "", false); err != nil {
					t.Fatal(err)
				}
				near("unhealthy", 0)
				if err := s.SetHealth(upstreamID, "10.0.0.1:80", "", true); err != nil {
					t.Fatal(err)
				}
				early, half := 0.1/1.1, 0.5/1.5
				if algorithm == "round-robin" { // a turn not taken goes to the next
					early, half = 0.05, 0.25
				}
				near("back", early)
				time.Sleep(5 * time.Second)
				near("halfway", half)
				time.Sleep(5 * time.Second)
				near("warm", 0.5)
			})
		})
	}
}

// TestRoundRobinAfterFailure: the turns of the one that is down are spread over all others, not left to its neighbour.
func TestRoundRobinAfterFailure(t *testing.T) {
	p := newTestPool(t, `{"healthchecks":{"passive":{"unhealthy":{"http_failures":1}}}}`, addresses(4)...)
	p.ask(t, newExchange(), 500)
	got := p.count(t, 300)
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if got[k] != 100 {
			t.Errorf("%s got %d of 300", k, got[k])
		}
	}
	if len(got) != 3 {
		t.Errorf("got %v", got)
	}
}

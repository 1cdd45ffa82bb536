package balancer

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"concord/proxy/exchange"
	"concord/test/harness"
)

// begin sends a request that goes on.
func (p *Pool) begin(t testing.TB) (*exchange.Exchange, *Dispatch) {
	t.Helper()
	x := newExchange()
	d, err := p.Dispatch(x, false)
	if err != nil {
		t.Fatal(err)
	}
	return x, d
}

// circuit is the state of an address as /health shows it.
func circuit(t testing.TB, s *Set, target string) string {
	t.Helper()
	view, _ := s.TargetHealth(upstreamID)
	v := view[target]
	return fmt.Sprint(v["data"].(map[string]any)["addresses"].([]any)[0].(map[string]any)["circuit"], " ", v["health"])
}

// TestBreakerOpens: what takes a target out, and what does not.
func TestBreakerOpens(t *testing.T) {
	for _, tt := range []struct {
		name, settings string
		outcomes       string // of requests to the first of two targets: "." fine, "5" 503, "4" 404, "t" timeout, "c" no connection, "x" the client left
		open           bool
	}{
		{"errors in a row", `"consecutive_errors":3`, "5tc", true},
		{"a success in between", `"consecutive_errors":3`, "55.55", false},
		{"other statuses", `"consecutive_errors":1`, "444", false},
		{"own statuses", `"consecutive_errors":1,"http_statuses":[404]`, "54", true},
		{"not the target's fault", `"consecutive_errors":1`, "xxx", false},
		{"off", `"consecutive_errors":0`, strings.Repeat("5", 50), false},
		{"error rate", `"consecutive_errors":0,"error_rate":50,"min_requests":10,"window":3600`, ".....55555", true},
		{"below the error rate", `"consecutive_errors":0,"error_rate":60,"min_requests":10,"window":3600`, ".....55555", false},
		{"too few requests for a rate", `"consecutive_errors":0,"error_rate":50,"min_requests":10,"window":3600`, "555555555", false},
		{"nobody may be ejected", `"consecutive_errors":1,"max_ejection_percent":0`, "555", false},
	} {
		for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing", "sticky-sessions"} {
			t.Run(tt.name+"/"+algorithm, func(t *testing.T) {
				p := newTestPool(t, `{"algorithm":"`+algorithm+`","sticky_sessions_cookie":"s","circuit_breaker":{"base_ejection_time":3600,"max_ejection_time":7200,`+tt.settings+`}}`, "10.0.0.1:80", "10.0.0.2:80")
				pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]
				for _, o := range tt.outcomes {
					d := &Dispatch{pool: p, config: p.plan.Load().config, peer: pe}
					pe.conns.Add(1)
					x := newExchange()
					var err error
					switch o {
					case '.':
						x.Response.Status = 200
					case '5':
						x.Response.Status = 503
					case '4':
						x.Response.Status = 404
					case 't':
						err = fault(504)
					case 'c':
						err = fault(502)
					case 'x':
						err = fault(499)
					}
					d.Result(x, err)
					d.release()
				}
				state, health := breakerClosed, Healthy
				if tt.open {
					state, health = breakerOpen, Unhealthy
				}
				if got := circuit(t, p.set, "10.0.0.1:80"); got != state+" "+health {
					t.Errorf("got %s", got)
				}
				first := 0
				for range 50 {
					if p.ask(t, newExchange(), 200) == "10.0.0.1:80" {
						first++
					}
				}
				if tt.open && first > 0 {
					t.Errorf("%d requests to an ejected target", first)
				}
			})
		}
	}
}

// TestBreakerTrial: an ejected target is tried with few requests; a failure doubles its time, a success takes it back.
func TestBreakerTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, Options{SlowStart: time.Hour})
		s.Update(true, change(t, `{"circuit_breaker":{"consecutive_errors":1,"base_ejection_time":0.05,"max_ejection_time":0.15,"half_open_requests":2,"half_open_successes":2}}`, "10.0.0.1:80"))
		p := s.Pool("up")
		pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]
		fail := func() {
			x, d := p.begin(t)
			x.Response.Status = 500
			d.Result(x, nil)
			d.End()
		}
		fail()
		for i, want := range []int64{50, 100, 150, 150} { // the last two at the maximum
			if pe.breaker.lasted != want || !pe.breaker.ejected.Load() {
				t.Fatalf("ejection %d lasts %d ms, want %d", i, pe.breaker.lasted, want)
			}
			if _, err := p.Dispatch(newExchange(), false); !errors.Is(err, ErrNoPeer) {
				t.Fatalf("open: %v", err)
			}
			eventually(t, func() bool { return circuit(t, s, "10.0.0.1:80") == "half-open HEALTHY" })
			if i < 3 {
				fail()
			}
		}
		x1, d1 := p.begin(t)
		_, d2 := p.begin(t)
		if _, err := p.Dispatch(newExchange(), false); !errors.Is(err, ErrBusy) {
			t.Fatalf("a third request at once on trial: %v", err)
		}
		d2.End() // without an outcome: the client left
		x3, d3 := p.begin(t)
		x1.Response.Status, x3.Response.Status = 200, 200
		d1.Result(x1, nil)
		if got := circuit(t, s, "10.0.0.1:80"); got != "half-open HEALTHY" {
			t.Errorf("after one success: %s", got)
		}
		d3.Result(x3, nil)
		d1.End()
		d3.End()
		if got := circuit(t, s, "10.0.0.1:80"); got != "closed HEALTHY" || pe.warm.Load() == 0 || pe.breaker.trials.Load() != 0 {
			t.Errorf("after two: %s, slow start %v, %d trials", got, pe.warm.Load() != 0, pe.breaker.trials.Load())
		}
		view, _ := s.PoolHealth(upstreamID)
		if c := view["details"].(map[string]any)["circuit_breaker"].(map[string]any); c["ejections"] != uint64(4) || c["ejected"] != 0 || c["rejected"] != uint64(1) {
			t.Errorf("view %v", c)
		}
		// One that has worked for long enough begins anew.
		pe.breaker.closedSince -= 1000
		fail()
		if pe.breaker.lasted != 50 {
			t.Errorf("the next ejection lasts %d ms", pe.breaker.lasted)
		}
		_ = s.SetHealth(upstreamID, "10.0.0.1:80", "", true)
		s.Update(false, change(t, `{"circuit_breaker":{"consecutive_errors":1}}`, "10.0.0.1:80"))
		fail() // for the default of 30 s
		s.Update(false, change(t, `{"slots":20000,"circuit_breaker":{"consecutive_errors":2}}`, "10.0.0.1:80 7", "10.0.0.2:80"))
		if got := circuit(t, s, "10.0.0.1:80"); got != "open UNHEALTHY" {
			t.Errorf("after an unrelated change: %s", got)
		}
		s.Update(false, change(t, `{"circuit_breaker":{"consecutive_errors":1}}`, "10.0.0.1:80"))
		// An operator knows better; without a breaker nobody is out.
		if err := s.SetHealth(upstreamID, "10.0.0.1:80", "", true); err != nil || circuit(t, s, "10.0.0.1:80") != "closed HEALTHY" {
			t.Error("set healthy:", err, circuit(t, s, "10.0.0.1:80"))
		}
		fail()
		s.Update(false, change(t, `{}`, "10.0.0.1:80"))
		p.ask(t, newExchange(), 200)
		if got := circuit(t, s, "10.0.0.1:80"); got != "<nil> "+Off || len(s.Breakers()) != 0 {
			t.Errorf("without a breaker: %s", got)
		}
	})
}

// TestTrialOfStreams: answers that go on, such as tunnels, do not keep others from deciding.
func TestTrialOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, Options{})
		s.Update(true, change(t, `{"circuit_breaker":{"consecutive_errors":1,"base_ejection_time":0.05,"half_open_requests":1,"half_open_successes":3}}`, "10.0.0.1:80"))
		p := s.Pool("up")
		x, d := p.begin(t)
		x.Response.Status = 500
		d.Result(x, nil)
		d.End()
		eventually(t, func() bool { return circuit(t, s, "10.0.0.1:80") == "half-open HEALTHY" })
		var streams []*Dispatch
		for range 3 {
			x, d := p.begin(t)
			x.Response.Status = 101
			if _, err := p.Dispatch(newExchange(), false); !errors.Is(err, ErrBusy) {
				t.Fatalf("a second one that is undecided: %v", err)
			}
			d.Result(x, nil)
			streams = append(streams, d)
		}
		if got := circuit(t, s, "10.0.0.1:80"); got != "closed HEALTHY" {
			t.Errorf("after three successes: %s", got)
		}
		for _, d := range streams {
			d.End()
		}
		if pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]; pe.breaker.trials.Load() != 0 || pe.conns.Load() != 0 {
			t.Errorf("%d trials, %d requests are left", pe.breaker.trials.Load(), pe.conns.Load())
		}
	})
}

// TestBreakerPercent: however many fail, most stay.
func TestBreakerPercent(t *testing.T) {
	p := newTestPool(t, `{"circuit_breaker":{"consecutive_errors":1,"max_ejection_percent":30}}`, addresses(10)...)
	for range 200 {
		p.ask(t, newExchange(), 500)
	}
	if n := p.set.Breakers()[0].Ejected; n != 3 {
		t.Errorf("%d of 10 are ejected", n)
	}
	if n := len(p.plan.Load().live); n != 7 {
		t.Errorf("%d live", n)
	}
}

// TestBreakerLimits: so many requests and connections at once and not one more, and all room is given back.
func TestBreakerLimits(t *testing.T) {
	for _, tt := range []struct {
		settings string
		room     int // for requests
	}{
		{`"max_requests":5`, 5},
		{`"max_target_requests":3`, 6},
		{`"max_requests":4,"max_target_requests":3`, 4},
	} {
		for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing", "sticky-sessions"} {
			t.Run(tt.settings+algorithm, func(t *testing.T) {
				p := newTestPool(t, `{"algorithm":"`+algorithm+`","sticky_sessions_cookie":"s","circuit_breaker":{`+tt.settings+`}}`, "10.0.0.1:80", "10.0.0.2:80")
				for round := range 2 {
					var ds []*Dispatch
					for {
						d, err := p.Dispatch(newExchange(), false)
						if err != nil {
							if !errors.Is(err, ErrBusy) {
								t.Fatal(err)
							}
							break
						}
						ds = append(ds, d)
					}
					if len(ds) != tt.room {
						t.Fatalf("round %d: %d at once, want %d", round, len(ds), tt.room)
					}
					for _, d := range ds {
						d.End()
					}
				}
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						for range 500 {
							if d, err := p.Dispatch(newExchange(), false); err == nil {
								if n := p.plan.Load().live[0].peer.conns.Load() + p.plan.Load().live[1].peer.conns.Load(); n > 14 { // entering counts before it looks
									t.Errorf("%d at once", n)
								}
								d.End()
							}
						}
					})
				}
				wg.Wait()
				if s := p.breakerStats(p.plan.Load()); s.Requests != 0 || s.Rejected < 2 {
					t.Errorf("in the end: %+v", s)
				}
			})
		}
	}
	p := newTestPool(t, `{"circuit_breaker":{"max_pending_connections":2}}`, "10.0.0.1:80")
	var xs []*exchange.Exchange
	for range 3 {
		x, d := p.begin(t)
		defer d.End()
		xs = append(xs, x)
	}
	for i, x := range xs {
		if err := x.Upstream.Dialing(true); errors.Is(err, ErrBusy) != (i == 2) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	_ = xs[0].Upstream.Dialing(false)
	if err := xs[2].Upstream.Dialing(true); err != nil {
		t.Error(err)
	}
	// Without a breaker there is no limit any more, also for a request that was begun under one.
	p.set.Update(false, change(t, `{}`, "10.0.0.1:80"))
	if err := xs[0].Upstream.Retry(xs[0], fault(502)); err != nil {
		t.Fatal(err)
	}
	if err := xs[0].Upstream.Dialing(true); err != nil {
		t.Error(err)
	}
}

// TestStickySessions: the cookie leads to one target as long as that can take requests, on every node; then to another.
func TestStickySessions(t *testing.T) {
	const settings = `{"algorithm":"sticky-sessions","sticky_sessions_cookie":"sid","sticky_sessions_cookie_path":"/app","healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`
	p, other := newTestPool(t, settings, addresses(3)...), newTestPool(t, settings, addresses(3)...)
	cookies := map[string]string{} // by target
	for range 30 {
		x := newExchange()
		x.Request.Scheme = "https"
		x.Response.Header.Add("Set-Cookie", "sid=theirs")
		to := p.ask(t, x, 200)
		value, rest, _ := strings.Cut(x.Response.Header.Get("Set-Cookie"), ";")
		if rest != " Path=/app; SameSite=Lax; HttpOnly; Secure" || x.Response.Header.Count("Set-Cookie") != 1 {
			t.Fatalf("cookies %v", x.Response.Header)
		}
		if c := cookies[to]; c != "" && c != value {
			t.Fatalf("two cookies of one target: %s %s", c, value)
		}
		cookies[to] = value
	}
	if len(cookies) != 3 {
		t.Fatalf("targets %v", cookies)
	}
	ask := func(p *Pool, cookie string) (to, set string) {
		x := newExchange()
		x.Request.Header.Add("Cookie", "a=b; "+cookie)
		to = p.ask(t, x, 200)
		return to, x.Response.Header.Get("Set-Cookie")
	}
	for to, c := range cookies {
		for range 5 {
			for _, node := range []*Pool{p, other} {
				if got, set := ask(node, c); got != to || set != "" {
					t.Errorf("%s came to %s instead of %s and got %q", c, got, to, set)
				}
			}
		}
		// A try that fails goes elsewhere, and so does the session.
		x := newExchange()
		x.Request.Header.Add("Cookie", c)
		d, err := other.Dispatch(x, false)
		if err != nil || at(x) != to {
			t.Fatal(err, at(x))
		}
		if err := x.Upstream.Retry(x, fault(502)); err != nil || at(x) == to {
			t.Fatal(err, at(x))
		}
		x.Response.Status = 200
		d.Result(x, nil)
		d.End()
		if set := x.Response.Header.Get("Set-Cookie"); !strings.HasPrefix(set, cookies[at(x)]+";") {
			t.Errorf("moved to %s with %q", at(x), set)
		}
		_ = other.set.SetHealth(upstreamID, to, "", true)
	}
	x := newExchange()
	x.Request.Header.Add("Cookie", cookies["10.0.0.0:80"])
	harness.NoAllocs(t, "one who comes back", func() { dispatchOnce(t, p, x) })
	const gone = "10.0.0.0:80"
	p.set.Update(false, change(t, settings, addresses(3)[1:]...))
	if to, set := ask(p, cookies[gone]); to == gone || !strings.HasPrefix(set, cookies[to]+";") {
		t.Errorf("after the target left: %s %q", to, set)
	}
	if to, set := ask(p, "sid=forged"); cookies[to] == "" || !strings.HasPrefix(set, cookies[to]+";") {
		t.Errorf("forged: %s %q", to, set)
	}
}

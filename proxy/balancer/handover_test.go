package balancer

import (
	"encoding/json"
	"testing"
	"time"
)

// TestHandOver: a Set that takes over knows who is unhealthy, whose circuit is open or on trial and how far the counters are, also of
// names that it has yet to look up; and is none the worse for what is not there any more.
func TestHandOver(t *testing.T) {
	const settings = `{"circuit_breaker":{"consecutive_errors":2,"base_ejection_time":3600,"max_ejection_percent":100},"healthchecks":{"passive":{"unhealthy":{"tcp_failures":3}}}}`
	r := &book{hosts: map[string]page{"late.test": {addrs: addrs("10.0.0.9")}}}
	old := newSet(t, Options{Resolver: r, SlowStart: time.Hour})
	old.Update(true, change(t, settings, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80", "late.test:80"))
	eventually(t, func() bool { return len(old.Pool("up").plan.Load().live) == 6 })
	p := old.Pool("up")
	peerOf := func(p *Pool, host, addr string) *peer {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.peers[peerKey{host, addrPort(addr)}]
	}
	answer := func(pe *peer, status int, err error) {
		d := &Dispatch{pool: p, config: p.plan.Load().config, peer: pe}
		pe.conns.Add(1)
		x := newExchange()
		x.Response.Status = status
		d.Result(x, err)
		d.release()
	}
	if err := old.SetHealth(upstreamID, "10.0.0.1:80", "", false); err != nil {
		t.Fatal(err)
	}
	answer(peerOf(p, "10.0.0.2", "10.0.0.2:80"), 500, nil)
	answer(peerOf(p, "10.0.0.2", "10.0.0.2:80"), 500, nil)
	answer(peerOf(p, "late.test", "10.0.0.9:80"), 500, nil)
	answer(peerOf(p, "late.test", "10.0.0.9:80"), 500, nil)
	answer(peerOf(p, "10.0.0.3", "10.0.0.3:80"), 500, nil) // one more and it is out
	trial := peerOf(p, "10.0.0.4", "10.0.0.4:80")
	answer(trial, 500, nil)
	answer(trial, 500, nil)
	p.mu.Lock()
	trial.breaker.until = 0
	p.mu.Unlock()
	p.try(trial)

	b, err := json.Marshal(old.Export())
	if err != nil {
		t.Fatal(err)
	}
	var list []Known
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 5 {
		t.Errorf("%d addresses are not like new ones: %s", len(list), b)
	}
	late := &book{hosts: map[string]page{"late.test": {addrs: addrs("10.0.0.9"), delay: 100 * time.Millisecond}}}
	next := newSet(t, Options{Resolver: late, SlowStart: time.Hour})
	next.Update(true, change(t, settings, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80", "late.test:80"))
	next.Import(append(list, Known{Upstream: "gone", Host: "x"}, Known{Upstream: upstreamID, Host: "gone", Down: true}))
	p = next.Pool("up")
	eventually(t, func() bool { return peerOf(p, "late.test", "10.0.0.9:80") != nil })
	check := func(want map[string]string) {
		t.Helper()
		for target, want := range want {
			if got := circuit(t, next, target); got != want {
				t.Errorf("%s is %s, want %s", target, got, want)
			}
		}
	}
	check(map[string]string{
		"10.0.0.1:80": "closed UNHEALTHY", "10.0.0.2:80": "open UNHEALTHY", "10.0.0.3:80": "closed HEALTHY",
		"10.0.0.4:80": "half-open HEALTHY", "10.0.0.5:80": "closed HEALTHY", "late.test:80": "open UNHEALTHY",
	})
	answer(peerOf(p, "10.0.0.3", "10.0.0.3:80"), 500, nil)
	check(map[string]string{"10.0.0.3:80": "open UNHEALTHY"})
	for range 20 {
		switch to := p.ask(t, newExchange(), 200); to {
		case "10.0.0.4:80", "10.0.0.5:80":
		default:
			t.Fatalf("a request went to %s", to)
		}
	}
	check(map[string]string{"10.0.0.4:80": "closed HEALTHY"}) // its trial went well

	// An ejection ends in the new process when it would have ended in the old one.
	soon := Known{Upstream: upstreamID, Host: "10.0.0.5", Addr: addrPort("10.0.0.5:80"), Circuit: breakerOpen, Left: 20, Lasted: 3_600_000, Times: 1}
	next.Import([]Known{soon})
	eventually(t, func() bool { return circuit(t, next, "10.0.0.5:80") == "half-open HEALTHY" })
}

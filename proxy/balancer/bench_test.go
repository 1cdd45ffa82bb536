package balancer

import (
	"fmt"
	"testing"
)

// BenchmarkDispatch is one request: choose, report, free. It must not allocate.
func BenchmarkDispatch(b *testing.B) {
	for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
		for _, n := range []int{2, 1000} {
			b.Run(fmt.Sprintf("%s/%d", algorithm, n), func(b *testing.B) {
				p := newTestPool(b, `{"algorithm":"`+algorithm+`"`+hashOn(algorithm)+`,"healthchecks":{"passive":{"unhealthy":{"http_failures":5,"tcp_failures":5}}}}`, addresses(n)...)
				x := newExchange()
				b.ReportAllocs()
				for b.Loop() {
					dispatchOnce(b, p, x)
				}
			})
		}
	}
}

// BenchmarkDispatchParallel shares one pool between all processors.
func BenchmarkDispatchParallel(b *testing.B) {
	for _, algorithm := range []string{"round-robin", "least-connections", "latency", "consistent-hashing"} {
		b.Run(algorithm, func(b *testing.B) {
			p := newTestPool(b, `{"algorithm":"`+algorithm+`"`+hashOn(algorithm)+`}`, addresses(2)...)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				x := newExchange()
				for pb.Next() {
					dispatchOnce(b, p, x)
				}
			})
		})
	}
}

func hashOn(algorithm string) string {
	if algorithm == "consistent-hashing" {
		return `,"hash_on":"ip"`
	}
	return ""
}

func BenchmarkPoolByName(b *testing.B) {
	s := newSet(b, Options{})
	var changes []Change
	for i := range 1000 {
		c := change(b, fmt.Sprintf(`{"name":"upstream-%d.internal"}`, i))[0]
		c.ID = fmt.Sprint(i)
		changes = append(changes, c)
	}
	s.Update(true, changes)
	b.ReportAllocs()
	for b.Loop() {
		if s.Pool("upstream-500.internal") == nil || s.Pool("example.com") != nil {
			b.Fatal("wrong pool")
		}
	}
}

// BenchmarkHealthChange is what it costs when one of many targets goes down or comes back.
func BenchmarkHealthChange(b *testing.B) {
	for _, algorithm := range []string{"round-robin", "consistent-hashing"} {
		b.Run(algorithm+"/1000", func(b *testing.B) {
			p := newTestPool(b, `{"algorithm":"`+algorithm+`"`+hashOn(algorithm)+`,"healthchecks":{"passive":{"unhealthy":{"http_failures":5}}}}`, addresses(1000)...)
			b.ReportAllocs()
			for up := false; b.Loop(); up = !up {
				if err := p.set.SetHealth(upstreamID, "10.0.0.7:80", "", up); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNewRing(b *testing.B) {
	p := newTestPool(b, `{"algorithm":"consistent-hashing"}`, addresses(1000)...)
	all := p.plan.Load().all
	b.ReportAllocs()
	for b.Loop() {
		newRing(all, 10000)
	}
}

// BenchmarkUpdate is what a write costs the data plane's compiler, among 10,000 upstreams with two targets each.
func BenchmarkUpdate(b *testing.B) {
	var all []Change
	for i := range 10000 {
		c := change(b, fmt.Sprintf(`{"name":"u%d"}`, i), "10.0.0.1:80", "10.0.0.2:80")[0]
		c.ID = fmt.Sprint(i)
		all = append(all, c)
	}
	extra := change(b, `{"name":"extra"}`, "10.0.0.1:80")[0]
	for _, bb := range []struct {
		name    string
		reset   bool
		changes func(n int) []Change
	}{
		{"a target", false, func(n int) []Change { return all[n%len(all) : n%len(all)+1] }},
		{"a new or deleted upstream", false, func(n int) []Change {
			if n%2 == 0 {
				return []Change{extra}
			}
			return []Change{{ID: extra.ID}}
		}},
		{"all", true, func(int) []Change { return all }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := newSet(b, Options{})
			s.Update(true, all)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				s.Update(bb.reset, bb.changes(n))
			}
		})
	}
}

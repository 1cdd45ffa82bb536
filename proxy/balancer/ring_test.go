package balancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func ringMember(host, addr string, weight int) member {
	return member{peer: &peer{key: peerKey{host, netip.MustParseAddrPort(addr)}}, weight: weight}
}

// owners asks the ring for a number of values and says whose they are.
func owners(r *ring, all []member, keys int) []*peer {
	out := make([]*peer, keys)
	for i := range out {
		out[i] = all[uint32(r.points[r.find(start().text(fmt.Sprint("key ", i)).sum())])].peer
	}
	return out
}

// TestRingGolden: places are part of what the nodes of a cluster agree on, so they may not change with a version.
func TestRingGolden(t *testing.T) {
	if got := start().text("10.0.0.1").text(" ").text("10.0.0.1:80").number(3).sum(); got != goldenPlace {
		t.Errorf("place is %#x", got)
	}
	p := newTestPool(t, `{"algorithm":"consistent-hashing","hash_on":"path"}`, addresses(5)...)
	got := ""
	for i := range 20 {
		x := newExchange()
		x.Request.Path = fmt.Sprint("/", i)
		a := p.ask(t, x, 200)
		got += string(a[len(a)-4]) // last digit of the address
	}
	if got != goldenOwners {
		t.Errorf("owners are %s", got)
	}
}

const (
	goldenPlace  = 0x8527206155224a85
	goldenOwners = "21340420203133443203"
)

func TestRingDisruption(t *testing.T) {
	const keys = 20000
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 40).Draw(t, "members")
		seed := rapid.Uint64().Draw(t, "seed")
		weight := rapid.SampledFrom([]int{1, 10, 100, 1000}).Draw(t, "weight")
		rng := rand.New(rand.NewPCG(seed, 1))
		var all []member
		for i := range n {
			ip := fmt.Sprintf("10.%d.%d.%d:80", i, rng.IntN(256), rng.IntN(256))
			all = append(all, ringMember(ip[:len(ip)-3], ip, weight))
		}
		before := owners(newRing(all, 10000), all, keys)
		gone := rapid.IntRange(0, n-1).Draw(t, "gone")
		rest := slices.Delete(slices.Clone(all), gone, gone+1)
		after := owners(newRing(rest, 10000), rest, keys)
		moved := 0
		for i := range before {
			if before[i] != after[i] {
				moved++
				if before[i] != all[gone].peer {
					t.Fatalf("a value moved that did not belong to the member that left")
				}
			}
		}
		// What moves is the share of the one that left, with the noise of its points and of the keys.
		share := float64(keys) / float64(n)
		if limit := 1.2*share + 5*math.Sqrt(share); float64(moved) > limit {
			t.Fatalf("%d of %d values moved when one of %d members left", moved, keys, n)
		}
	})
}

// TestRingShares: weights count.
func TestRingShares(t *testing.T) {
	for _, weights := range [][]int{{1, 1}, {100, 300}, {1, 2, 3, 4}, {10, 10, 10, 10, 10, 10, 10, 1000}, {65535, 1}} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			var all []member
			total := 0
			for i, w := range weights {
				all = append(all, ringMember("h", fmt.Sprintf("10.0.0.%d:80", i), w))
				total += w
			}
			got := map[*peer]int{}
			for _, p := range owners(newRing(all, 10000), all, 50000) {
				got[p]++
			}
			for i, m := range all {
				want := float64(weights[i]) / float64(total)
				if share := float64(got[m.peer]) / 50000; math.Abs(share-want) > 0.15*want+0.002 {
					t.Errorf("member %d has %.4f, want %.4f", i, share, want)
				}
			}
		})
	}
}

// TestRingOrder: nodes that learn of the targets in another order come to the same ring, and health does not change it.
func TestRingOrder(t *testing.T) {
	list := addresses(10)
	a := newTestPool(t, `{"algorithm":"consistent-hashing","hash_on":"path","healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`, list...)
	slices.Reverse(list)
	b := newTestPool(t, `{"algorithm":"consistent-hashing","hash_on":"path"}`, list...)
	to := func(p *Pool, i int) string {
		x := newExchange()
		x.Request.Path = fmt.Sprint("/", i)
		return p.ask(t, x, 200)
	}
	before := make([]string, 2000)
	for i := range before {
		before[i] = to(a, i)
		if other := to(b, i); other != before[i] {
			t.Fatalf("value %d goes to %s and %s", i, before[i], other)
		}
	}
	ring := a.plan.Load().ring
	if err := a.set.SetHealth(upstreamID, "10.0.0.3:80", "", false); err != nil {
		t.Fatal(err)
	}
	spread := map[string]bool{}
	for i := range before {
		switch now := to(a, i); {
		case before[i] == "10.0.0.3:80":
			spread[now] = true
		case now != before[i]:
			t.Fatalf("value %d moved from %s, which is healthy, to %s", i, before[i], now)
		}
	}
	if len(spread) < 8 || spread["10.0.0.3:80"] {
		t.Errorf("values of the unhealthy one went to %v", spread)
	}
	if err := a.set.SetHealth(upstreamID, "10.0.0.3:80", "", true); err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if now := to(a, i); now != before[i] {
			t.Fatalf("value %d went to %s and is at %s now", i, before[i], now)
		}
	}
	if a.plan.Load().ring != ring {
		t.Error("health made a new ring")
	}
	// What makes a new one: another target in the place of one, another weight, other slots.
	for _, c := range []struct {
		slots  int
		target string
		weight string
	}{{10000, "10.0.0.99:80", "100"}, {10000, "10.0.0.99:80", "300"}, {60000, "10.0.0.99:80", "300"}} {
		a.set.Update(false, change(t, fmt.Sprintf(`{"algorithm":"consistent-hashing","hash_on":"path","slots":%d}`, c.slots), append(list[1:], c.target+" "+c.weight)...))
		if a.plan.Load().ring == ring {
			t.Errorf("%v: the old ring", c)
		}
		ring = a.plan.Load().ring
		asked := map[string]int{}
		for i := range before {
			asked[to(a, i)]++
		}
		if len(asked) != 10 || asked["10.0.0.99:80"] < 100 || asked[list[0]] != 0 {
			t.Errorf("%v: values went to %v", c, asked)
		}
	}
}

func TestRingSlots(t *testing.T) {
	all := []member{ringMember("a", "10.0.0.1:80", 100), ringMember("b", "10.0.0.2:80", 100)}
	small, normal, large := newRing(all, 10), newRing(all, 10000), newRing(all, 65536)
	if len(small.points) != len(normal.points) || len(large.points) < 6*len(normal.points) {
		t.Errorf("%d, %d, %d points", len(small.points), len(normal.points), len(large.points))
	}
}

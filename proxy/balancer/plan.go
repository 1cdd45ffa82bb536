package balancer

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// plan is what requests see of a pool: who there is and whose turn it is. It does not change; a new one replaces it when
// the configuration, an address or somebody's health changes.
type plan struct {
	*config
	set     *Set
	healthy bool     // enough weight is available
	live    []member // healthy ones with weight
	order   []uint32 // round-robin: indexes of live
	all     []member // all with weight, whom the ring refers to
	ring    *ring
	sticky  map[string]*member // sticky-sessions: live ones by the value of the cookie
}

// member is a peer as a request needs it.
type member struct {
	peer   *peer
	weight int
	ip     string
	port   int
	host   [2]string // value of Host over http and https
}

// steps is how often round-robin tries whose turn it is before it takes anybody who can.
const steps = 16

// compared is how many candidates least-connections and latency look at. With more peers it is a random row of so many, whose best
// is among the best 3 % of all on average.
const compared = 32

// pick finds the peer for a request, nil when there is none. turn counts the requests of the pool, hash is of the request's value,
// tried are not asked again.
func (p *plan) pick(turn *atomic.Uint64, hash uint64, tried []*peer) *member {
	if !p.healthy {
		return nil
	}
	switch p.row.Algorithm {
	case "consistent-hashing":
		return p.byHash(hash, tried)
	case "least-connections":
		return p.cheapest(tried, false)
	case "latency":
		return p.cheapest(tried, true)
	}
	return p.byTurn(turn, tried)
}

func (p *plan) usable(pe *peer, tried []*peer) bool {
	return !pe.out() && (len(tried) == 0 || !slices.Contains(tried, pe)) && (p.breaker == nil || pe.admits(p.breaker))
}

func (p *plan) byTurn(turn *atomic.Uint64, tried []*peer) *member {
	n := uint64(len(p.order))
	if n == 0 {
		return nil
	}
	at := turn.Add(1) % n
	for range min(n, steps) {
		m := &p.live[p.order[at]]
		if p.usable(m.peer, tried) && m.peer.takes(p.set) {
			return m
		}
		if at++; at == n {
			at = 0
		}
	}
	return p.anyOf(tried)
}

// anyOf is the first usable member from a random one on.
func (p *plan) anyOf(tried []*peer) *member {
	first := rand.IntN(len(p.live))
	for i := range p.live {
		if m := &p.live[(first+i)%len(p.live)]; p.usable(m.peer, tried) {
			return m
		}
	}
	return nil
}

// cheapest is the member with the least to do for its weight. Ties go to the first from a random one on.
func (p *plan) cheapest(tried []*peer, byLatency bool) *member {
	if len(p.live) == 0 {
		return nil
	}
	var now int64
	if byLatency {
		now = p.set.millis()
	}
	var best *member
	var least float64
	seen := 0
	at := rand.IntN(len(p.live))
	for range p.live {
		m := &p.live[at]
		if at++; at == len(p.live) {
			at = 0
		}
		if !p.usable(m.peer, tried) {
			continue
		}
		// One more than there are, so that the heaviest comes first when nobody has anything to do (Kong).
		cost := float64(m.peer.conns.Load()+1) / (float64(m.weight) * m.peer.share(p.set))
		if byLatency {
			cost *= latency(m.peer.ewma.Load(), now) + 1e-6
		}
		if best == nil || cost < least {
			best, least = m, cost
		}
		if seen++; seen == compared {
			break
		}
	}
	return best
}

func (p *plan) byHash(hash uint64, tried []*peer) *member {
	points := p.ring.points
	at := p.ring.find(hash)
	for range points {
		if m := &p.all[uint32(points[at])]; p.usable(m.peer, tried) {
			return m
		}
		if at--; at < 0 {
			at = len(points) - 1
		}
	}
	return nil
}

// maxOrder bounds the length of an order. Weights that would need more are rounded, by less than 1 % for 1,000 peers.
const maxOrder = 1 << 16

// newOrder lists every index as often as its weight says, each as evenly spread as can be.
func newOrder(live []member) []uint32 {
	weights := make([]int, len(live))
	total, div := 0, 0
	for i, m := range live {
		weights[i] = m.weight
		total += m.weight
		div = gcd(m.weight, div)
	}
	if total == 0 {
		return nil
	}
	sum := 0
	for i, w := range weights {
		if total/div <= maxOrder {
			w /= div
		} else {
			w = max(1, (w*maxOrder+total/2)/total)
		}
		weights[i] = w
		sum += w
	}
	// The k-th of w turns is due at (k+½)/w of the round. A counting sort by that, as fine as the round has turns.
	due := func(k, w int) int { return (2*k + 1) * sum / (2 * w) }
	first := make([]uint32, sum+1)
	for _, w := range weights {
		for k := range w {
			first[due(k, w)+1]++
		}
	}
	for i := range sum {
		first[i+1] += first[i]
	}
	order := make([]uint32, sum)
	for i, w := range weights {
		for k := range w {
			at := &first[due(k, w)]
			order[*at] = uint32(i)
			*at++
		}
	}
	return order
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

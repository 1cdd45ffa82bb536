package balancer

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"
)

// peerKey is what must stay equal for a peer to keep what is known of it.
type peerKey struct {
	host string // of the target: a name, or the address itself
	addr netip.AddrPort
}

// peer is one address of one target of one upstream, as it is known from the requests so far. Plans come and go, peers stay.
type peer struct {
	key peerKey

	conns   atomic.Int64 // requests under way
	pending atomic.Int64 // connections being made; counted only with a limit
	down    atomic.Bool
	warm    atomic.Int64  // end of the slow start in milliseconds of the Set's clock, 0: none
	ewma    atomic.Uint64 // latency: float32 seconds in the high half, milliseconds of the Set's clock in the low
	counts  counts

	breaker breaker
	sticky  string // value of the cookie that leads here; the pool's mu protects it until a plan has it
}

// out tells that the peer gets no requests.
func (p *peer) out() bool { return p.down.Load() || p.breaker.ejected.Load() }

// outcome is what a try or a probe says about a peer.
type outcome uint8

const (
	nothing outcome = iota // a status in no list, or a fault of others
	success
	httpFailure
	tcpFailure
	timeout
)

func (o outcome) String() string {
	return [...]string{"nothing", "successes", "HTTP failures", "TCP failures", "timeouts"}[o]
}

// counts are the counters of the outcomes in one word, 16 bits each. Kinds of failure are counted apart; a success ends all
// their rows, a failure that of the successes.
type counts struct{ v atomic.Uint64 }

// add counts an outcome and returns how many of it there are now. Successes and failures do not meet: a healthy peer's successes
// and an unhealthy one's failures are cleared instead.
func (c *counts) add(o outcome) int {
	shift := 16 * uint(o-success)
	for {
		old := c.v.Load()
		n := old >> shift & 0xffff
		if n == 0xffff || c.v.CompareAndSwap(old, old+1<<shift) {
			return int(min(n+1, 0xffff))
		}
	}
}

// clear writes only when there is something: the common success costs a load.
func (c *counts) clear() {
	if c.v.Load() != 0 {
		c.v.Store(0)
	}
}

// share is the part of its weight that a peer gets: 1, but in its slow start.
func (p *peer) share(s *Set) float64 {
	end := p.warm.Load()
	if end == 0 {
		return 1
	}
	left := end - s.millis()
	if left <= 0 {
		p.warm.CompareAndSwap(end, 0)
		return 1
	}
	return max(0.1, 1-float64(left)/float64(s.o.SlowStart.Milliseconds()))
}

// takes decides whether a peer takes its turn.
func (p *peer) takes(s *Set) bool {
	return p.warm.Load() == 0 || rand.Float64() < p.share(s)
}

// millis is the Set's clock.
func (s *Set) millis() int64 { return time.Since(s.start).Milliseconds() }

const (
	// decay is how fast latency is forgotten: after so many seconds 63 % of it (Kong).
	decay = 10
	// failureCost is the least latency, in seconds, that a failed try counts as, lest a peer that refuses at once be the fastest.
	failureCost = 1
)

// observe takes a latency in seconds into the average, which follows a rise at once and a fall slowly.
func (p *peer) observe(seconds float64, now int64) {
	for {
		old := p.ewma.Load()
		next := seconds
		if last := float64(math.Float32frombits(uint32(old >> 32))); seconds < last {
			w := math.Exp(-age(old, now) / decay)
			next = last*w + seconds*(1-w)
		}
		if p.ewma.CompareAndSwap(old, packed(next, now)) {
			return
		}
	}
}

// latency is the decayed average in seconds.
func latency(v uint64, now int64) float64 {
	avg := float64(math.Float32frombits(uint32(v >> 32)))
	if avg == 0 {
		return 0
	}
	return avg * math.Exp(-age(v, now)/decay)
}

// age is in seconds. The clock's low half wraps around after 49 days, so that is how long a peer may go unused.
func age(v uint64, now int64) float64 {
	d := int32(uint32(now) - uint32(v))
	return float64(max(d, 0)) / 1000
}

func packed(seconds float64, now int64) uint64 {
	return uint64(math.Float32bits(float32(seconds)))<<32 | uint64(uint32(now))
}

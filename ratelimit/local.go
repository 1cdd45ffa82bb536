package ratelimit

import (
	"crypto/rand"
	"sync"
)

const (
	// shards spread the keys over locks. A decision holds one for some 50 ns.
	shards = 64
	// minPerShard is the least number of counters for which the choice of one to forget makes sense.
	minPerShard = 64
	// DefaultMaxBytes is enough for 550,000 counters.
	DefaultMaxBytes = 64 << 20
	// counterBytes is what one counter takes, the index included: the worst seen, just after the index has grown.
	counterBytes = 120
)

// Options of NewLocal.
type Options struct {
	MaxBytes int // memory for counters; 0: DefaultMaxBytes
}

// Local counts the requests of this node in memory. All methods may be called concurrently.
//
// Its memory is bounded. There is one counter for each key and period in use, whose memory the next window reuses; when there
// is no more room, a counter is forgotten for each new one: one whose window is over, else the one that has not been used for
// longest among those below their limit, of the period that has the most, so that a flood of made-up names pushes out its own
// kind. A key that has reached its limit is forgotten only when all others are in that state, too: names that cost nothing
// cannot buy more requests for one that is used up.
type Local struct {
	secret secret
	shards [shards]shard
}

// NewLocal makes a Local without counts.
func NewLocal(o Options) *Local {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	l := &Local{}
	_, _ = rand.Read(l.secret[:]) // never fails
	for i := range l.shards {
		l.shards[i].init(max(minPerShard, o.MaxBytes/counterBytes/shards))
	}
	return l
}

// Stats count since the start.
type Stats struct {
	Counters  int    // held now, those of windows that are over included
	Evicted   uint64 // forgotten before their window was over
	Forgotten uint64 // of them, at their limit: requests may have passed that should not
}

// Stats are the numbers of all shards.
func (l *Local) Stats() (n Stats) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n.Counters += len(s.index)
		n.Evicted += s.evicted
		n.Forgotten += s.forgotten
		s.mu.Unlock()
	}
	return n
}

// id is a key, or with the period added one of its counters.
type id struct{ hi, lo uint64 }

func (i id) of(p Period) id { return id{i.hi, i.lo + uint64(p)} }

// A counter is always in one of these lists, the most recently used first: for each period those with room, and those at
// their limit.
const lists = 2 * Periods

func listOf(p Period, full bool) uint32 {
	if full {
		return Periods + uint32(p)
	}
	return uint32(p)
}

// slot is one counter. The first slots of a shard are no counters but the ends of its lists.
type slot struct {
	id         id
	start, end int64 // of its window
	used       int64
	prev, next uint32
	list       uint32
}

// shard holds the counters of some of the keys, all those of one key together.
type shard struct {
	mu    sync.Mutex
	index map[id]uint32
	slots []slot
	size  [lists]int
	max   int

	evicted, forgotten uint64
	_                  [64]byte // keeps the locks of two shards out of one cache line
}

func (s *shard) init(counters int) {
	s.index = map[id]uint32{}
	s.max = lists + counters
	s.slots = make([]slot, lists)
	for i := range s.slots {
		s.slots[i].prev, s.slots[i].next = uint32(i), uint32(i)
	}
}

// clockSlack is by how many seconds one request may be ahead of another. A counter that is further ahead is from before the
// clock was set back.
const clockSlack = 2

func (s *shard) take(now int64, key id, limits []Limit, d *Decision) {
	var at [Periods]uint32 // slots, 0 for those that are not there yet
	var ends [Periods]int64
	s.mu.Lock()
	defer s.mu.Unlock()
	d.Admitted = true
	for i, l := range limits {
		u := &d.Usage[i]
		at[i] = s.index[key.of(l.Period)]
		// Another request may have begun the next window already: there is no way back.
		if c := &s.slots[at[i]]; at[i] != 0 && now < c.end && c.start <= now+clockSlack {
			*u, ends[i] = Usage{Used: c.used, Start: c.start}, c.end
		} else {
			*u = Usage{}
			u.Start, ends[i] = l.Period.Window(now)
		}
		if u.Used >= l.Max {
			d.Admitted = false
		}
	}
	for i, l := range limits {
		u := &d.Usage[i]
		if d.Admitted {
			u.Used++
		}
		if n := at[i]; n != 0 {
			c := &s.slots[n]
			c.start, c.end, c.used = u.Start, ends[i], u.Used
			s.use(n, listOf(l.Period, u.Used >= l.Max))
		}
	}
	if !d.Admitted {
		return
	}
	// Only now, when the key's other counters are the most recently used ones and stay.
	for i, l := range limits {
		if u := &d.Usage[i]; at[i] == 0 {
			n := s.spare(now)
			c := &s.slots[n]
			c.id, c.start, c.end, c.used = key.of(l.Period), u.Start, ends[i], u.Used
			s.index[c.id] = n
			s.link(n, listOf(l.Period, u.Used >= l.Max))
		}
	}
}

// use makes slot n the first of a list.
func (s *shard) use(n, list uint32) {
	if s.slots[list].next == n {
		return
	}
	s.unlink(n)
	s.link(n, list)
}

func (s *shard) unlink(n uint32) {
	c := &s.slots[n]
	s.slots[c.prev].next, s.slots[c.next].prev = c.next, c.prev
	s.size[c.list]--
}

func (s *shard) link(n, list uint32) {
	c := &s.slots[n]
	c.list, c.prev, c.next = list, list, s.slots[list].next
	s.slots[c.next].prev, s.slots[list].next = n, n
	s.size[list]++
}

// spare finds a slot for a new counter.
func (s *shard) spare(now int64) uint32 {
	for list := range uint32(lists) {
		// A counter's window is that of its last use, so the oldest window is at the end of the list.
		n := s.slots[list].prev
		if n == list {
			continue
		}
		if s.slots[n].end <= now {
			s.remove(n)
			return n
		}
	}
	if n := len(s.slots); n < s.max {
		s.slots = append(s.slots, slot{})
		return uint32(n)
	}
	list := s.longest(0)
	if s.size[list] < 2 { // the only one may be the key's own
		list = s.longest(Periods)
		s.forgotten++
	}
	n := s.slots[list].prev
	s.remove(n)
	s.evicted++
	return n
}

// longest is the longest list of those from the given one up to the one for years.
func (s *shard) longest(from uint32) uint32 {
	best := from
	for list := from + 1; list < from+Periods; list++ {
		if s.size[list] > s.size[best] {
			best = list
		}
	}
	return best
}

func (s *shard) remove(n uint32) {
	s.unlink(n)
	delete(s.index, s.slots[n].id)
}

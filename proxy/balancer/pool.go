package balancer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"concord/fsm/entity"
	"concord/proxy/dns"
)

// Pool is the targets of one upstream. It stays the same while its configuration changes.
type Pool struct {
	set  *Set
	id   string // of the upstream
	plan atomic.Pointer[plan]
	_    [64]byte // turn is written by every request; keep what they only read out of its cache line
	turn atomic.Uint64
	_    [56]byte

	active    atomic.Int64 // requests under way, if they are limited
	pending   atomic.Int64 // connections being made, if they are limited
	ejections atomic.Uint64
	rejected  atomic.Uint64

	ctx    context.Context // until the upstream is gone
	cancel context.CancelFunc

	mu         sync.Mutex
	targets    map[string]*target // by id
	peers      map[peerKey]*peer
	known      map[peerKey]Known  // of addresses that no target has yet, from another process
	probes     context.CancelFunc // ends the running probes; nil: none
	asked      int                // names that have not been looked up yet
	knownUntil int64              // milliseconds of the Set's clock
	waiting    chan struct{}      // closed when there is somebody to ask or nobody to wait for; nil: nobody waits
}

// target is a target with the addresses it stands for.
type target struct {
	row     *entity.Target
	host    string
	port    int
	weight  int
	records []dns.Record
	dns     string             // what kind records are, or why there are none
	stop    context.CancelFunc // of following a name; nil: host is an address
	fresh   bool               // not looked up yet
}

func newPool(s *Set, id string) *Pool {
	p := &Pool{set: s, id: id, targets: map[string]*target{}, peers: map[peerKey]*peer{}}
	p.turn.Store(uint64(s.millis())) // nodes and pools need not begin with the same target
	p.ctx, p.cancel = context.WithCancel(s.ctx)
	return p
}

// update takes over new rows and tells whether the name has changed.
func (p *Pool) update(ch *Change) (renamed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, row := p.plan.Load(), ch.Upstream
	c := newConfig(row)
	c.certificate = ch.ClientCertificate
	otherSRV := old != nil && old.row.UseSRVName != row.UseSRVName
	keep := map[string]bool{}
	for _, t := range ch.Targets {
		p.setTarget(t, c, otherSRV)
		keep[t.ID] = true
	}
	for id, t := range p.targets {
		if !keep[id] {
			p.drop(t)
			delete(p.targets, id)
		}
	}
	p.rebuild(c)
	if old == nil || !old.sameProbes(c) {
		p.startProbes(c)
	}
	return old == nil || old.row.Name != row.Name
}

func (p *Pool) setTarget(row *entity.Target, c *config, otherSRV bool) {
	weight := 100
	if row.Weight != nil {
		weight = *row.Weight
	}
	if t := p.targets[row.ID]; t != nil {
		if t.row.Target == row.Target && !(otherSRV && t.stop != nil) {
			t.row, t.weight = row, weight
			return
		}
		p.drop(t)
	}
	t := &target{row: row, weight: weight}
	p.targets[row.ID] = t
	host, port, err := net.SplitHostPort(row.Target)
	if err != nil {
		t.dns = err.Error() // the schema does not let such a target in
		return
	}
	t.host = host
	t.port, _ = strconv.Atoi(port)
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		t.dns = "A"
		if addr.Is6() {
			t.dns = "AAAA"
		}
		t.records = []dns.Record{{Addr: netip.AddrPortFrom(addr, uint16(t.port))}}
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	t.stop, t.fresh = cancel, true
	p.asked++
	srv := c.row.UseSRVName
	p.set.run(func() { p.follow(ctx, t, srv) })
}

// drop ends what goes on for a target. Its records are not used any more.
func (p *Pool) drop(t *target) {
	if t.stop != nil {
		t.stop()
	}
	if t.fresh {
		t.fresh = false
		p.asked--
	}
}

// rebuild makes the plan anew, after a change of configuration (c), addresses or health. The caller holds the lock.
func (p *Pool) rebuild(c *config) {
	old := p.plan.Load()
	next := &plan{config: c, set: p.set}
	forget := old != nil && old.checked && !c.checked // nobody would ever find those healthy that are not
	peers := map[peerKey]*peer{}
	var all []member
	places := map[*peer]int{}
	for _, t := range p.sorted() {
		for _, r := range t.records {
			pe := p.peer(peerKey{t.host, r.Addr}, peers)
			if forget {
				pe.down.Store(false)
				pe.counts.clear()
			}
			if c.breaker == nil {
				pe.breaker.close()
			}
			w := t.weightOf(r)
			if w == 0 {
				continue
			}
			if i, again := places[pe]; again { // a name may list an address twice
				all[i].weight += w
				continue
			}
			places[pe] = len(all)
			all = append(all, newMember(c, t, r, pe, w))
		}
	}
	p.peers = peers
	total, available := 0, 0
	for _, m := range all {
		total += m.weight
		if !m.peer.out() {
			available += m.weight
			next.live = append(next.live, m)
		}
	}
	// More than the threshold must be available, not as much as it (Kong).
	next.all = all
	next.healthy = total > 0 && float64(available)/float64(total)*100 > c.row.Healthchecks.Threshold
	switch c.row.Algorithm {
	case "consistent-hashing":
		if old != nil && old.ring != nil && old.row.Slots == c.row.Slots && slices.EqualFunc(all, old.all, samePlace) {
			next.ring = old.ring // health does not change the ring
		} else {
			next.ring = newRing(all, c.row.Slots)
		}
	case "latency":
		p.introduce(next.live)
	case "least-connections":
	case "sticky-sessions":
		p.nameSessions(next)
		next.order = newOrder(next.live)
	default:
		next.order = newOrder(next.live)
	}
	p.plan.Store(next)
	if p.waiting != nil && (p.asked == 0 || len(next.live) > 0) {
		close(p.waiting)
		p.waiting = nil
	}
}

// sorted is the targets in an order that is the same on every node, for the ring and the turns.
func (p *Pool) sorted() []*target {
	return slices.SortedFunc(maps.Values(p.targets), func(a, b *target) int {
		return cmp.Or(cmp.Compare(a.host, b.host), a.port-b.port, cmp.Compare(a.row.ID, b.row.ID))
	})
}

func (p *Pool) peer(key peerKey, peers map[peerKey]*peer) *peer {
	pe := peers[key]
	if pe == nil {
		if pe = p.peers[key]; pe == nil {
			pe = &peer{key: key}
			if k, ok := p.known[key]; ok && p.set.millis() < p.knownUntil {
				p.recall(pe, &k)
			}
			delete(p.known, key)
		}
		peers[key] = pe
	}
	return pe
}

// weightOf is the weight of one address: that of the target for each of them, unless the SRV record has its own (Kong).
func (t *target) weightOf(r dns.Record) int {
	if r.Weight == 0 || t.weight == 0 {
		return t.weight
	}
	return r.Weight
}

func samePlace(a, b member) bool { return a.peer == b.peer && a.weight == b.weight }

func newMember(c *config, t *target, r dns.Record, pe *peer, weight int) member {
	m := member{peer: pe, weight: weight, ip: r.Addr.Addr().String(), port: int(r.Addr.Port())}
	host := c.row.HostHeader
	if host == "" {
		host = t.host
		if c.row.UseSRVName && r.Name != "" {
			host = r.Name
		}
	}
	if _, _, err := net.SplitHostPort(host); err == nil { // a host_header that names its port
		m.host = [2]string{host, host}
		return m
	}
	host = inHeader(host)
	withPort := host + ":" + strconv.Itoa(m.port)
	m.host = [2]string{withPort, withPort}
	switch m.port {
	case 80:
		m.host[0] = host
	case 443:
		m.host[1] = host
	}
	return m
}

// inHeader is a host as it stands in a Host field.
func inHeader(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + a.String() + "]"
	}
	return host
}

// introduce lets peers without a latency begin with the average of the others, so that they are neither flooded nor shunned (Kong).
func (p *Pool) introduce(live []member) {
	now := p.set.millis()
	sum, n := 0.0, 0
	for _, m := range live {
		if v := m.peer.ewma.Load(); v != 0 {
			sum += latency(v, now)
			n++
		}
	}
	if n == 0 {
		return
	}
	for _, m := range live {
		m.peer.ewma.CompareAndSwap(0, packed(sum/float64(n), now))
	}
}

// nameSessions gives every live peer the value of the cookie that leads to it: the same on all nodes, and nothing that tells a client about
// addresses, for it takes the upstream's id to compute it.
func (p *Pool) nameSessions(next *plan) {
	next.sticky = make(map[string]*member, len(next.live))
	for i := range next.live {
		m := &next.live[i]
		if m.peer.sticky == "" {
			sum := sha256.Sum256([]byte(p.id + " " + m.peer.key.host + " " + m.peer.key.addr.String()))
			m.peer.sticky = hex.EncodeToString(sum[:16])
		}
		next.sticky[m.peer.sticky] = m
	}
}

// maxWait bounds how long a request waits for the first look-up of a name.
const maxWait = 5 * time.Second

// await waits, when nobody is live, for the addresses of names that are being looked up for the first time. It tells
// whether there may be somebody now.
func (p *Pool) await(limit time.Duration) bool {
	p.mu.Lock()
	live := len(p.plan.Load().live) > 0
	if p.asked == 0 || live {
		p.mu.Unlock()
		return live
	}
	if p.waiting == nil {
		p.waiting = make(chan struct{})
	}
	waiting := p.waiting
	p.mu.Unlock()
	if limit <= 0 || limit > maxWait {
		limit = maxWait
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-waiting:
		return true
	case <-timer.C:
	case <-p.ctx.Done():
	}
	return false
}

// report counts what a try or a probe says about a peer.
func (p *Pool) report(pe *peer, o outcome, r *rules) {
	switch {
	case o == nothing:
	case o == success && !pe.down.Load():
		pe.counts.clear()
	case o != success && pe.down.Load():
		if r.limits[o] > 0 {
			pe.counts.clear() // successes must come in a row
		}
	case r.limits[o] > 0 && pe.counts.add(o) >= r.limits[o]:
		p.setHealth(o == success, o.String(), pe)
	}
}

// byHand is the reason of a change that an operator wants, whether anybody watches health or not.
const byHand = "set by the Admin API"

// setHealth makes peers healthy or not, at once and with counters at zero.
func (p *Pool) setHealth(healthy bool, why string, peers ...*peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.plan.Load().config
	changed := false
	for _, pe := range peers {
		pe.counts.clear()
		if why == byHand && healthy {
			changed = pe.breaker.close() || changed
		}
		if p.peers[pe.key] != pe || !c.checked && why != byHand || pe.down.Load() != healthy {
			continue
		}
		changed = true
		if healthy {
			p.warmUp(pe)
		}
		pe.down.Store(!healthy)
		level := p.set.o.Log.Warn
		if healthy {
			level = p.set.o.Log.Info
		}
		level("health of a target changed", "upstream", c.row.Name, "target", pe.key.host, "address", pe.key.addr.String(), "healthy", healthy, "reason", why)
	}
	if changed {
		p.rebuild(c)
	}
}

// warmUp begins the slow start of a peer.
func (p *Pool) warmUp(pe *peer) {
	if p.set.o.SlowStart > 0 {
		pe.warm.Store(p.set.millis() + p.set.o.SlowStart.Milliseconds())
	}
}

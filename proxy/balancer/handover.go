package balancer

import (
	"net/netip"
	"time"
)

// Known is what a process has found out about one address of a target and tells the one that takes over from it. Times are milliseconds
// from then on.
type Known struct {
	Upstream string // its id
	Host     string // of the target
	Addr     netip.AddrPort

	Down   bool   `json:",omitempty"`
	Counts uint64 `json:",omitempty"`
	Warm   int64  `json:",omitempty"` // left of the slow start

	Circuit string `json:",omitempty"` // open or half-open; "": closed
	Errors  int32  `json:",omitempty"` // in a row; on trial: successes
	Times   int    `json:",omitempty"` // ejected in a row
	Lasted  int64  `json:",omitempty"` // the last ejection
	Left    int64  `json:",omitempty"` // of the ejection
	Closed  int64  `json:",omitempty"` // for how long the circuit has been closed
}

// knownFor is how long a name may take to be found before what was known of its addresses is too old.
const knownFor = time.Minute

// Export tells what is known of all addresses that are not like new ones.
func (s *Set) Export() (list []Known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		list = p.export(list)
	}
	return list
}

func (p *Pool) export(list []Known) []Known {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.set.millis()
	for key, pe := range p.peers {
		b := &pe.breaker
		k := Known{
			Down: pe.down.Load(), Counts: pe.counts.v.Load(), Warm: max(0, pe.warm.Load()-now),
			Errors: b.row.Load(), Times: b.times, Lasted: b.lasted,
		}
		if b.state() != breakerClosed {
			k.Circuit = b.state()
		}
		if k == (Known{}) {
			continue
		}
		if k.Left = max(0, b.until-now); k.Circuit == "" && b.times > 0 {
			k.Closed = now - b.closedSince
		}
		k.Upstream, k.Host, k.Addr = p.id, key.host, key.addr
		list = append(list, k)
	}
	return list
}

// Import goes on with what another process knew. Addresses of names that are still being looked up follow when they are found; what is not
// there any more is forgotten.
func (s *Set) Import(list []Known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := map[*Pool]bool{}
	for _, k := range list {
		p := s.pools[k.Upstream]
		if p == nil {
			continue
		}
		p.mu.Lock()
		key := peerKey{k.Host, k.Addr}
		if pe := p.peers[key]; pe != nil {
			p.recall(pe, &k)
			changed[p] = true
		} else {
			if p.known == nil {
				p.known = map[peerKey]Known{}
			}
			p.known[key], p.knownUntil = k, s.millis()+knownFor.Milliseconds()
		}
		p.mu.Unlock()
	}
	for p := range changed {
		p.mu.Lock()
		p.rebuild(p.plan.Load().config)
		p.mu.Unlock()
	}
}

// recall gives a new peer what is known of its address. The caller holds the lock, and rebuilds the plan.
func (p *Pool) recall(pe *peer, k *Known) {
	now := p.set.millis()
	pe.down.Store(k.Down)
	pe.counts.v.Store(k.Counts)
	if k.Warm > 0 && p.set.o.SlowStart > 0 {
		pe.warm.Store(now + min(k.Warm, p.set.o.SlowStart.Milliseconds()))
	}
	b := &pe.breaker
	b.row.Store(k.Errors)
	b.times, b.lasted, b.until, b.closedSince = k.Times, k.Lasted, now+k.Left, now-k.Closed
	switch k.Circuit {
	case breakerOpen:
		b.ejected.Store(true)
		time.AfterFunc(time.Duration(k.Left)*time.Millisecond, func() { p.try(pe) })
	case breakerHalfOpen:
		b.trial.Store(true)
	}
}

// Package balancer spreads the requests for an upstream over its targets: algorithms, names and their addresses, active
// and passive health.
//
// It chooses where a request goes and learns how that went. It sends nothing but its own probes (package upstream sends
// requests), and knows neither the data plane nor the Admin API: rows come in by Update, and what a health endpoint shows
// goes out as plain values.
package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"concord/fsm/entity"
	"concord/proxy/dns"
)

// ErrNoPeer is Kong's answer, with status 503, when no target of an upstream can take the request.
var ErrNoPeer = errors.New("failure to get a peer from the ring-balancer")

// Options of New. Zero values mean the defaults.
type Options struct {
	Resolver dns.Resolver // of names in targets; nil: the system's
	DNS      dns.Policy   // how they are resolved
	// SlowStart is how long a target that was unhealthy gets less than its share, growing from a tenth; 10 s, negative: not at all.
	// Consistent hashing does without, for it would move keys.
	SlowStart time.Duration
	// Guard is asked before every probe. An error forbids the address: the node's own admin and cluster ports, say.
	Guard func(netip.AddrPort) error
	Roots *x509.CertPool // for https probes that verify; nil: the system's
	Log   *slog.Logger
}

// Change is what an upstream has become.
type Change struct {
	ID       string           // of the upstream
	Upstream *entity.Upstream // nil: it is gone
	Targets  []*entity.Target // all of its targets
	// ClientCertificate is what probes over TLS show to a target that asks for one; nil: nothing.
	ClientCertificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

// Set holds the pools of all upstreams. It is safe for many goroutines.
type Set struct {
	o       Options
	start   time.Time // of the clock of peers
	byName  atomic.Pointer[map[string]*Pool]
	free    sync.Pool     // of *Dispatch
	lookups chan struct{} // one for every look-up under way
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	pools map[string]*Pool // by id of the upstream
}

// maxLookups bounds the look-ups under way, so that the start of a large configuration is no flood for the resolver.
const maxLookups = 32

// New makes an empty Set; Close ends what it started.
func New(o Options) *Set {
	if o.Resolver == nil {
		o.Resolver = &dns.System{}
	}
	o.DNS = o.DNS.WithDefaults()
	if o.SlowStart == 0 {
		o.SlowStart = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{o: o, start: time.Now(), lookups: make(chan struct{}, maxLookups), pools: map[string]*Pool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.byName.Store(&map[string]*Pool{})
	s.free.New = func() any {
		d := &Dispatch{}
		d.retry, d.dialing = d.again, d.dial // bound once, so that a request allocates nothing
		return d
	}
	return s
}

// Update brings the pools to what the changes say; with reset, upstreams that they do not mention are gone. When it returns,
// Pool sees all of it. What is known of targets that stay (health, open requests, latency) stays. It does no I/O.
func (s *Set) Update(reset bool, changes []Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	gone := map[string]*Pool{}
	if reset {
		gone = maps.Clone(s.pools)
	}
	renamed := false
	for _, c := range changes {
		p := s.pools[c.ID]
		delete(gone, c.ID)
		switch {
		case c.Upstream == nil && p != nil:
			gone[c.ID] = p
		case c.Upstream != nil:
			if p == nil {
				p = newPool(s, c.ID)
				s.pools[c.ID] = p
			}
			renamed = p.update(&c) || renamed
		}
	}
	for id, p := range gone {
		p.cancel()
		delete(s.pools, id)
	}
	if !renamed && len(gone) == 0 {
		return
	}
	names := make(map[string]*Pool, len(s.pools))
	for _, p := range s.pools {
		names[p.plan.Load().row.Name] = p
	}
	s.byName.Store(&names)
}

// Pool is that of the upstream called name, nil when there is none. It costs a map look-up and allocates nothing.
func (s *Set) Pool(name string) *Pool { return (*s.byName.Load())[name] }

func (s *Set) pool(id string) *Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pools[id]
}

// Close ends probes and look-ups and returns when they have ended. Requests under way are not disturbed.
func (s *Set) Close() {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
}

// run starts f, which must end with its context.
func (s *Set) run(f func()) {
	s.running.Go(f)
}

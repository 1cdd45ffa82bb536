package dataplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/balancer"
	"concord/proxy/plugin"
	"concord/proxy/vault"
)

// Options of New.
type Options struct {
	Store   *state.Store
	Plugins []plugin.Plugin
	Env     plugin.Env // Store and Log are filled in when nil
	Log     *slog.Logger
	// Pools takes the upstreams and their targets; nil: there are none.
	Pools *balancer.Set
	// Roots verify upstreams of services that have tls_verify and no CA certificates of their own; nil: the system's.
	Roots *x509.CertPool
	// ClientCertificate is shown to upstreams that ask for one when neither service nor upstream name another; may be nil.
	ClientCertificate *tls.Certificate
	// Yield is called now and then while much is compiled, so that requests get their share of the processors. nil: never.
	Yield func()
}

// Stats are counters since the start. Durations are of the compilation, without waiting.
type Stats struct {
	Compilations uint64
	Full         uint64 // of them, rebuilt from nothing (start, restored snapshot)
	Last, Max    time.Duration
	Total        time.Duration
	Broken       int // rows that cannot be built now
	Retired      int // old snapshots still in use
}

// Compiler follows the store and publishes snapshots. One goroutine builds; everything in built belongs to it.
type Compiler struct {
	store  *state.Store
	known  map[string]plugin.Plugin
	env    plugin.Env
	log    *slog.Logger
	holder *Holder
	pools  *balancer.Set
	yield  func()

	tables tables
	cancel func()
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	pending pending
	stats   Stats
	broken  map[string]string // rows that cannot be built, with the reason

	built   built
	retired []retired
	closing sync.WaitGroup // instances whose Close is under way

	tls               tlsState
	names             atomic.Pointer[btree.Map[string, *pair]] // certificates by SNI
	roots             *x509.CertPool
	clientCertificate *tls.Certificate
	vaults            *vault.Resolver
	tickets           atomic.Pointer[tls.Config] // holds the keys of session tickets, nothing else
	rules             atomic.Pointer[ClientRules]
	sources           atomic.Pointer[[]plugin.CertificateSource]
}

type tables struct {
	services *state.Table[entity.Service]
	routes   *state.Table[entity.Route]
	plugins  *state.Table[entity.Plugin]
	groups   *state.Table[entity.ConsumerGroup]
	members  *state.Table[entity.ConsumerGroupConsumer]

	upstreams *state.Table[entity.Upstream]
	targets   *state.Table[entity.Target]

	certificates *state.Table[entity.Certificate]
	snis         *state.Table[entity.SNI]
	cas          *state.Table[entity.CACertificate]
	tickets      *state.Table[entity.TLSTicketKeys]

	serviceNo, routeNo, pluginNo, upstreamNo, targetNo, certificateNo, sniNo, caNo, ticketNo, groupNo, memberNo uint16
}

// pending is what committed since the last compilation, with the view that holds all of it.
type pending struct {
	view     *state.View
	reset    bool
	services map[state.ID]bool
	routes   map[state.ID]bool
	plugins  map[state.ID]bool
	members  map[string]bool // consumers that came into a group or went
	groups   map[string]bool // whose names changed, which say which comes first

	upstreams map[string]bool // changed themselves, or in their targets

	certificates, snis map[state.ID]bool
	needs              map[string]bool // what the TLS of services may depend on, see serviceTLS
	tickets            bool            // the keys of session tickets
}

// retired is a replaced snapshot with the instances that the next one no longer has.
type retired struct {
	snapshot *Snapshot
	closers  []plugin.Closer
}

// sweepInterval is how often it is looked whether replaced snapshots are still in use.
const sweepInterval = 500 * time.Millisecond

// New compiles the store's present content and starts following it until Close.
func New(o Options) *Compiler {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Env.Store == nil {
		o.Env.Store = o.Store
	}
	if o.Env.Log == nil {
		o.Env.Log = o.Log
	}
	c := &Compiler{
		store: o.Store, env: o.Env, log: o.Log, known: map[string]plugin.Plugin{}, broken: map[string]string{},
		holder: &Holder{more: make(chan struct{})}, pools: o.Pools, yield: o.Yield, roots: o.Roots, clientCertificate: o.ClientCertificate,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		tables: tables{
			services: state.TableOf[entity.Service](o.Store), serviceNo: number(o.Store, "services"),
			routes: state.TableOf[entity.Route](o.Store), routeNo: number(o.Store, "routes"),
			plugins: state.TableOf[entity.Plugin](o.Store), pluginNo: number(o.Store, "plugins"),
			groups: state.TableOf[entity.ConsumerGroup](o.Store), groupNo: number(o.Store, entity.ConsumerGroups),
			members: state.TableOf[entity.ConsumerGroupConsumer](o.Store), memberNo: number(o.Store, entity.ConsumerGroupConsumers),
			upstreams: state.TableOf[entity.Upstream](o.Store), upstreamNo: number(o.Store, "upstreams"),
			targets: state.TableOf[entity.Target](o.Store), targetNo: number(o.Store, "targets"),
			certificates: state.TableOf[entity.Certificate](o.Store), certificateNo: number(o.Store, "certificates"),
			snis: state.TableOf[entity.SNI](o.Store), sniNo: number(o.Store, "snis"),
			cas: state.TableOf[entity.CACertificate](o.Store), caNo: number(o.Store, "ca_certificates"),
			tickets: state.TableOf[entity.TLSTicketKeys](o.Store), ticketNo: number(o.Store, "tls_ticket_keys"),
		},
	}
	vaults := state.TableOf[entity.Vault](o.Store)
	c.vaults = &vault.Resolver{Find: func(prefix string) (*entity.Vault, bool) {
		row, ok := vaults.By(o.Store.View(), "prefix", prefix)
		return &row.Val, ok
	}}
	for _, p := range o.Plugins {
		c.known[p.Info.Name] = p
	}
	if c.yield == nil {
		c.yield = func() {}
	}
	c.cancel = o.Store.Subscribe(c.changed)
	c.mu.Lock()
	if c.pending.view == nil {
		c.pending.view = o.Store.View()
	}
	c.pending.reset = true
	c.mu.Unlock()
	c.compile()
	go c.run()
	return c
}

func number(s *state.Store, name string) uint16 {
	t, ok := s.Table(name)
	if !ok {
		panic("dataplane: the store has no table " + name) // a mistake in the program's wiring, found when it starts
	}
	return t.Number()
}

// Holder gives access to the snapshots.
func (c *Compiler) Holder() *Holder { return c.holder }

// Stats returns the counters.
func (c *Compiler) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Close stops following the store and closes all plugin instances. No request may be under way.
func (c *Compiler) Close(ctx context.Context) {
	c.cancel()
	close(c.stop)
	<-c.done
	c.closing.Wait()
	for _, r := range c.retired {
		c.closeAll(ctx, r.closers)
	}
	for _, p := range c.built.plugins {
		if p.step.Closer != nil {
			c.closeAll(ctx, []plugin.Closer{p.step.Closer})
		}
	}
}

// changed is called on the goroutine that applies the log: it only takes notes.
func (c *Compiler) changed(ch state.Changes) {
	view := c.store.View()
	c.mu.Lock()
	p := &c.pending
	p.view = view
	p.reset = p.reset || ch.Reset
	for i := range ch.List {
		x := &ch.List[i]
		switch x.Table {
		case c.tables.serviceNo:
			note(&p.services, x.ID)
		case c.tables.routeNo:
			note(&p.routes, x.ID)
		case c.tables.pluginNo:
			note(&p.plugins, x.ID)
		case c.tables.groupNo:
			old, _ := x.Old.(*entity.ConsumerGroup)
			now, _ := x.New.(*entity.ConsumerGroup)
			if old == nil || now == nil || old.Name != now.Name {
				note(&p.groups, x.ID.String())
			}
		case c.tables.memberNo:
			for _, v := range []any{x.Old, x.New} {
				if m, ok := v.(*entity.ConsumerGroupConsumer); ok && m != nil {
					note(&p.members, m.Consumer.ID)
				}
			}
		case c.tables.upstreamNo:
			note(&p.upstreams, x.ID.String())
			for _, v := range []any{x.Old, x.New} { // one may be renamed
				if u, ok := v.(*entity.Upstream); ok && u != nil {
					note(&p.needs, hostNeed(u.Name))
				}
			}
		case c.tables.certificateNo:
			note(&p.certificates, x.ID)
		case c.tables.sniNo:
			note(&p.snis, x.ID)
		case c.tables.caNo:
			note(&p.needs, x.ID.String())
		case c.tables.ticketNo:
			p.tickets = true
		case c.tables.targetNo:
			for _, v := range []any{x.Old, x.New} { // a target may move
				if t, ok := v.(*entity.Target); ok && t != nil {
					note(&p.upstreams, t.Upstream.ID)
				}
			}
		}
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func note[K comparable](m *map[K]bool, id K) {
	if *m == nil {
		*m = map[K]bool{}
	}
	(*m)[id] = true
}

func (c *Compiler) run() {
	defer close(c.done)
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.wake:
			c.compile()
		case <-tick.C:
			c.sweep()
		case <-c.stop:
			return
		}
	}
}

// compile takes what is pending, however many commits that are, and publishes one snapshot.
func (c *Compiler) compile() {
	c.mu.Lock()
	p := c.pending
	c.pending = pending{}
	c.mu.Unlock()
	if p.view == nil {
		return
	}
	c.applyCertificates(&p)
	c.applyTickets(&p)
	if !p.reset && p.services == nil && p.routes == nil && p.plugins == nil && p.members == nil && p.groups == nil {
		c.applyUpstreams(&p)
		c.holder.publish(nil, p.view.Index()) // credentials, consumers, tokens: read from the store when needed
		return
	}
	start := time.Now()
	if p.reset {
		c.built.restart()
	}
	closers := c.apply(&p)
	c.applyRules(p.view)
	c.applySources()
	c.applyUpstreams(&p)
	old := c.holder.Load()
	c.holder.publish(c.built.snapshot(p.view.Index()), p.view.Index())
	for _, x := range closers {
		if s, ok := x.(plugin.Stopper); ok {
			s.Stop()
		}
	}
	d := time.Since(start)
	if old != nil {
		c.retired = append(c.retired, retired{old, closers})
	}
	c.mu.Lock()
	c.stats.Compilations++
	if p.reset {
		c.stats.Full++
	}
	c.stats.Last = d
	c.stats.Max = max(c.stats.Max, d)
	c.stats.Total += d
	c.stats.Broken = len(c.broken)
	c.mu.Unlock()
	c.sweep()
	c.log.Debug("configuration compiled", "index", p.view.Index(), "duration", d, "full", p.reset)
}

// sweep forgets replaced snapshots that no exchange uses any more and closes the instances that only they had. An instance is in all
// snapshots up to the one it is retired with, so it waits for the oldest that is still in use: a tunnel may hold that one for days,
// which must not keep those in between. Nothing here waits for an instance to close: one that writes what it keeps waits for the data plane to
// have it.
func (c *Compiler) sweep() {
	kept := c.retired[:0]
	for _, r := range c.retired {
		switch {
		case r.snapshot.pinned():
			kept = append(kept, r)
		case len(kept) == 0 && len(r.closers) > 0:
			c.closing.Go(func() { c.closeAll(context.Background(), r.closers) })
		case len(kept) == 0:
		default:
			last := &kept[len(kept)-1]
			last.closers = append(last.closers, r.closers...)
		}
	}
	clear(c.retired[len(kept):])
	c.retired = kept
	c.mu.Lock()
	c.stats.Retired = len(c.retired)
	c.mu.Unlock()
}

// closeTimeout is how long one plugin instance may take to close.
const closeTimeout = 10 * time.Second

func (c *Compiler) closeAll(ctx context.Context, list []plugin.Closer) {
	for _, x := range list {
		one, cancel := context.WithTimeout(ctx, closeTimeout)
		if err := x.Close(one); err != nil {
			c.log.Warn("plugin did not close cleanly", "error", err)
		}
		cancel()
	}
}

// DryBuild builds what the data plane would make of rows that are not committed yet, and throws it away.
func (c *Compiler) DryBuild(ctx context.Context, changes []state.Change) error {
	for _, ch := range changes {
		switch e := ch.New.(type) {
		case *entity.Certificate:
			if e == nil {
				continue
			}
			if inVault(e) {
				continue // what this node's vaults hold says nothing of the others'
			}
			if _, err := parsePair(e); err != nil {
				return err
			}
		case *entity.Route:
			if e == nil {
				continue
			}
			if _, err := compileRoute(e); err != nil {
				return err
			}
		case *entity.Plugin:
			if e == nil || !e.Enabled {
				continue
			}
			s, err := buildStep(ctx, c.known, c.env, e)
			if err != nil {
				return err
			}
			if s.Closer != nil {
				c.closeAll(ctx, []plugin.Closer{s.Closer})
			}
		}
	}
	return nil
}

// report logs what cannot be built, once per reason; a nil err says that the row is fine or gone.
func (c *Compiler) report(kind, id string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.broken, id)
		return
	}
	if text := err.Error(); c.broken[id] != text {
		c.broken[id] = text
		c.log.Error("configuration: a row cannot be built", "kind", kind, "id", id, "error", text)
	}
}

// Broken lists the rows that cannot be built, by id, with the reason. Such a route is not served; such a plugin refuses the requests
// of its scope.
func (c *Compiler) Broken() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.broken)
}

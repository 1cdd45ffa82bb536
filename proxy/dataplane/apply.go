package dataplane

import (
	"context"
	"math"
	"slices"
	"strings"
	"unique"

	"github.com/tidwall/btree"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/balancer"
	"concord/proxy/plugin"
	"concord/proxy/router"
)

// built is what the last snapshot was made of, indexed for changing it. Its cost per change is that of what depends on
// the changed row.
type built struct {
	edit       *router.Edit
	streams    *router.StreamEdit
	routes     map[string]*routeState
	services   map[string]*serviceState
	plugins    map[state.ID]*pluginState
	reuse      map[state.ID]*pluginState // after restart: instances that may still fit
	routeVec   vectorEdit[*Chain]
	serviceVec vectorEdit[serviceSlot]

	// Steps without a consumer by their scope; those with route and service are under the route.
	byRoute   map[string][]*Step
	byService map[string][]*Step
	globals   []*Step
	consumers *btree.Map[string, *identity]
	groups    *btree.Map[string, []*Step]
	global    [subsystems]*Chain

	askers map[state.ID]*Step // plugins that need client certificates
	rules  *ClientRules
}

type routeState struct {
	compiled compiled
	slot     uint32
	service  string
}

// compiled is a route for one of the routers.
type compiled struct {
	http   *router.Route
	stream *router.StreamRoute
}

func compileRoute(e *entity.Route) (c compiled, err error) {
	if subsystemsOf(e.Protocols)[forStreams] {
		c.stream, err = router.CompileStream(e)
	} else {
		c.http, err = router.Compile(e)
	}
	return c, err
}

func (c compiled) subsystem() subsystem {
	if c.stream != nil {
		return forStreams
	}
	return forHTTP
}

func (b *built) addRoute(r *routeState) {
	service := uint32(0)
	if s := b.services[r.service]; s != nil {
		service = s.slot + 1 // as long as the service is there: with it go its routes
	}
	if s := r.compiled.stream; s != nil {
		s.Slot, s.Service = r.slot, service
		b.streams.Add(s)
		return
	}
	h := r.compiled.http
	h.Slot, h.Service = r.slot, service
	b.edit.Add(h)
}

func (b *built) removeRoute(r *routeState) {
	if s := r.compiled.stream; s != nil {
		b.streams.Remove(s)
		return
	}
	b.edit.Remove(r.compiled.http)
}

type serviceState struct {
	service *Service
	slot    uint32
}

type pluginState struct {
	row    *entity.Plugin
	step   *Step
	broken bool
}

// dirty is what has to be derived anew.
type dirty struct {
	routes        map[string]bool // routes to take out of and put into the router
	routeChains   map[string]bool
	serviceChains map[string]bool
	global        bool
	closers       []plugin.Closer
}

// restart forgets everything but the plugin instances.
func (b *built) restart() {
	*b = built{
		edit:     new(router.Router).Edit(),
		streams:  new(router.Streams).Edit(),
		routes:   map[string]*routeState{},
		services: map[string]*serviceState{},
		plugins:  map[state.ID]*pluginState{}, reuse: b.plugins,
		byRoute: map[string][]*Step{}, byService: map[string][]*Step{},
		consumers: &btree.Map[string, *identity]{}, groups: &btree.Map[string, []*Step]{}, askers: map[state.ID]*Step{},
	}
}

func (b *built) snapshot(index uint64) *Snapshot {
	return &Snapshot{
		Index: index, router: b.edit.Router(), streams: b.streams.Streams(), chains: b.routeVec.publish(), services: b.serviceVec.publish(),
		global: b.global, consumers: b.consumers.Copy(), groups: b.groups.Copy(), rules: b.rules,
	}
}

// apply brings built to the pending view and returns the plugin instances that are no longer part of it.
func (c *Compiler) apply(p *pending) []plugin.Closer {
	b, v := &c.built, p.view
	d := &dirty{routes: map[string]bool{}, routeChains: map[string]bool{}, serviceChains: map[string]bool{}, global: p.reset}
	if p.reset {
		for row := range c.tables.plugins.All(v) {
			c.yield()
			c.applyPlugin(v, row.ID, d)
		}
		for _, old := range b.reuse {
			d.close(old)
		}
		b.reuse = nil
		for row := range c.tables.services.All(v) {
			c.yield()
			c.applyService(v, row.ID, d)
		}
		for row := range c.tables.routes.All(v) {
			d.routes[row.ID.String()] = true
		}
		for row := range c.tables.members.All(v) {
			note(&p.members, row.Val.Consumer.ID)
		}
	} else {
		for id := range p.plugins {
			c.yield()
			c.applyPlugin(v, id, d)
		}
		for id := range p.services {
			c.yield()
			c.applyService(v, id, d)
		}
		for id := range p.routes {
			d.routes[id.String()] = true
		}
	}
	for id := range d.routes {
		c.yield()
		c.applyRoute(v, id)
		d.routeChains[id] = true
	}
	for id := range p.groups {
		for row := range c.tables.members.Scan(v, "consumer_group", id) {
			note(&p.members, row.Val.Consumer.ID)
		}
	}
	for id := range p.members {
		c.yield()
		b.identify(id, func(i *identity) { i.groups = c.groupsOf(v, id) })
	}
	b.rechain(d, c.yield)
	return d.closers
}

// applyUpstreams gives the balancer what became of upstreams, just before the snapshot that may need it is published.
func (c *Compiler) applyUpstreams(p *pending) {
	if c.pools == nil || !p.reset && p.upstreams == nil {
		return
	}
	if p.reset {
		for row := range c.tables.upstreams.All(p.view) {
			note(&p.upstreams, row.ID.String())
		}
	}
	changes := make([]balancer.Change, 0, len(p.upstreams))
	for key := range p.upstreams {
		c.yield()
		ch := balancer.Change{ID: key}
		if id, err := state.ParseID(key); err == nil {
			if row, ok := c.tables.upstreams.Get(p.view, id); ok {
				ch.Upstream, ch.ClientCertificate = &row.Val, c.showCertificate(c.tls.pairs[refID(row.Val.ClientCertificate)])
			}
		}
		for row := range c.tables.targets.Scan(p.view, "upstream", key) {
			ch.Targets = append(ch.Targets, &row.Val)
		}
		changes = append(changes, ch)
	}
	c.pools.Update(p.reset, changes)
}

func (d *dirty) close(old *pluginState) {
	if old.step.Closer != nil {
		d.closers = append(d.closers, old.step.Closer)
	}
}

func (c *Compiler) applyPlugin(v *state.View, id state.ID, d *dirty) {
	b := &c.built
	old, indexed := b.plugins[id]
	if !indexed {
		old = b.reuse[id]
		delete(b.reuse, id)
	}
	var next *pluginState
	if row, ok := c.tables.plugins.Get(v, id); ok && row.Val.Enabled {
		next = c.pluginState(&row.Val, old)
	} else {
		c.report("plugin", id.String(), nil)
	}
	same := old != nil && next != nil && old.step == next.step
	if indexed && !same {
		b.index(old.step, d, removeStep)
		delete(b.plugins, id)
	}
	delete(b.askers, id)
	if next != nil {
		if next.step.asks != nil {
			b.askers[id] = next.step
		}
		b.plugins[id] = next
		if !indexed || !same {
			b.index(next.step, d, insertStep)
		}
	}
	if old != nil && !same {
		d.close(old)
	}
}

func (c *Compiler) pluginState(row *entity.Plugin, old *pluginState) *pluginState {
	if old != nil && !old.broken && sameInstance(old.row, row) {
		return &pluginState{row: row, step: old.step}
	}
	step, err := buildStep(context.Background(), c.known, c.env, row)
	c.report("plugin", row.ID, err)
	if err != nil {
		priority := math.MaxInt32
		if p, ok := c.known[row.Name]; ok {
			priority = p.Info.Priority
		}
		return &pluginState{row: row, step: brokenStep(row, priority, err), broken: true}
	}
	return &pluginState{row: row, step: step}
}

// index puts a step into, or takes it out of, the lists of its scope.
func (b *built) index(s *Step, d *dirty, change func([]*Step, *Step) []*Step) {
	switch {
	case (s.consumer != "" || s.group != "") && !s.subsystems[forHTTP]: // streams have no consumers
	case s.consumer != "":
		b.identify(s.consumer, func(i *identity) { i.own = change(i.own, s) })
	case s.group != "":
		list, _ := b.groups.Get(s.group)
		if list = change(list, s); len(list) > 0 {
			b.groups.Set(s.group, list)
		} else {
			b.groups.Delete(s.group)
		}
	case s.route != "":
		if b.byRoute[s.route] = change(b.byRoute[s.route], s); len(b.byRoute[s.route]) == 0 {
			delete(b.byRoute, s.route)
		}
		d.routeChains[s.route] = true
	case s.service != "":
		if b.byService[s.service] = change(b.byService[s.service], s); len(b.byService[s.service]) == 0 {
			delete(b.byService, s.service)
		}
		d.serviceChains[s.service] = true
	default:
		b.globals = change(b.globals, s)
		d.global = true
	}
}

// identify changes what is known of a consumer. Published snapshots share what was.
func (b *built) identify(consumer string, change func(*identity)) {
	next := identity{}
	if old, ok := b.consumers.Get(consumer); ok {
		next = *old
	}
	if change(&next); len(next.own) > 0 || len(next.groups) > 0 {
		b.consumers.Set(strings.Clone(consumer), &next)
	} else {
		b.consumers.Delete(consumer)
	}
}

// groupsOf lists the groups of a consumer by name.
func (c *Compiler) groupsOf(v *state.View, consumer string) []unique.Handle[string] {
	type named struct{ name, id string }
	var list []named
	for row := range c.tables.members.Scan(v, "consumer", consumer) {
		id, err := state.ParseID(row.Val.Group.ID)
		if err != nil {
			continue
		}
		if g, ok := c.tables.groups.Get(v, id); ok {
			list = append(list, named{g.Val.Name, row.Val.Group.ID})
		}
	}
	slices.SortFunc(list, func(a, b named) int { return strings.Compare(a.name, b.name) })
	var ids []unique.Handle[string]
	for _, g := range list {
		ids = append(ids, unique.Make(g.id))
	}
	return ids
}

// insertStep and removeStep return new lists, because published snapshots share the old ones.
func insertStep(list []*Step, s *Step) []*Step {
	i, _ := slices.BinarySearchFunc(list, s, func(a, b *Step) int {
		if c := compareSteps(a, b); c != 0 {
			return c
		}
		return a.level - b.level
	})
	return slices.Insert(slices.Clone(list), i, s)
}

func removeStep(list []*Step, s *Step) []*Step {
	return slices.DeleteFunc(slices.Clone(list), func(x *Step) bool { return x == s })
}

func (c *Compiler) applyService(v *state.View, id state.ID, d *dirty) {
	b, key := &c.built, id.String()
	old, protocol := b.services[key], b.protocolOf(key)
	row, ok := c.tables.services.Get(v, id)
	switch {
	case ok && row.Val.Enabled:
		next := buildService(&row.Val)
		next.Upstream.TLS = c.useTLS(v, id, &row.Val)
		if old != nil {
			old.service = next
		} else {
			b.services[key] = &serviceState{service: next, slot: b.serviceVec.alloc()}
		}
	case old != nil:
		c.useTLS(v, id, nil)
		b.serviceVec.release(old.slot)
		delete(b.services, key)
	}
	d.serviceChains[key] = true
	// A disabled service takes its routes with it (Kong), and one that no longer speaks a stream protocol its stream routes.
	if (old != nil) != (b.services[key] != nil) || protocol != b.protocolOf(key) {
		for r := range c.tables.routes.Scan(v, "service", key) {
			d.routes[r.ID.String()] = true
		}
	}
}

func (b *built) protocolOf(service string) string {
	if s := b.services[service]; s != nil {
		return s.service.Entity.Protocol
	}
	return ""
}

func (c *Compiler) applyRoute(v *state.View, key string) {
	b := &c.built
	old := b.routes[key]
	if old != nil {
		b.removeRoute(old)
		delete(b.routes, key)
	}
	if next := c.routeState(v, key, old); next != nil {
		b.routes[key] = next
		b.addRoute(next)
	} else if old != nil {
		b.routeVec.release(old.slot)
	}
}

// routeState is nil for a route that is not to be served.
func (c *Compiler) routeState(v *state.View, key string, old *routeState) *routeState {
	b := &c.built
	id, err := state.ParseID(key)
	if err != nil {
		return nil
	}
	row, ok := c.tables.routes.Get(v, id)
	if !ok {
		c.report("route", key, nil)
		return nil
	}
	r := &routeState{service: refID(row.Val.Service)}
	if r.service != "" && b.services[r.service] == nil {
		return nil
	}
	if r.compiled, err = compileRoute(&row.Val); err == nil && r.compiled.stream != nil && r.service != "" {
		err = checkStream(b.services[r.service].service.Entity)
	}
	c.report("route", key, err)
	if err != nil {
		return nil
	}
	if old != nil {
		r.slot = old.slot
	} else {
		r.slot = b.routeVec.alloc()
	}
	return r
}

// rechain derives the chains that depend on what changed, and only those.
func (b *built) rechain(d *dirty, yield func()) {
	if d.global {
		b.global = [subsystems]*Chain{newChain(forHTTP, b.globals), newChain(forStreams, b.globals)}
		for id := range b.byService {
			d.serviceChains[id] = true
		}
	}
	if d.global || len(d.serviceChains) > 0 {
		for id := range b.byRoute {
			if r := b.routes[id]; r != nil && (d.global || d.serviceChains[r.service]) {
				d.routeChains[id] = true
			}
		}
	}
	for id := range d.serviceChains {
		yield()
		s := b.services[id]
		if s == nil {
			continue
		}
		slot := serviceSlot{service: s.service}
		if own := b.byService[id]; len(own) > 0 {
			slot.chains = [subsystems]*Chain{newChain(forHTTP, own, b.globals), newChain(forStreams, own, b.globals)}
		}
		b.serviceVec.set(s.slot, slot)
	}
	for id := range d.routeChains {
		yield()
		r := b.routes[id]
		if r == nil {
			continue
		}
		var chain *Chain
		var own []*Step
		for _, s := range b.byRoute[id] {
			if s.applies(id, r.service) {
				own = append(own, s)
			}
		}
		if len(own) > 0 {
			chain = newChain(r.compiled.subsystem(), own, b.byService[r.service], b.globals)
		}
		b.routeVec.set(r.slot, chain)
	}
}

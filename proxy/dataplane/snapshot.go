// Package dataplane turns the store's rows into what a request needs: a Snapshot with the router, the services and the
// ready-made plugin chains. A Compiler follows the store's changes and publishes the next Snapshot through a Holder.
//
// It does not handle requests, and knows neither the log nor the Admin API.
package dataplane

import (
	"slices"
	"strings"
	"sync/atomic"
	"unique"

	"github.com/tidwall/btree"

	"concord/fsm/entity"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/router"
)

// Snapshot is one compiled configuration. It never changes; versions share what is equal.
type Snapshot struct {
	Index uint64 // log index it was compiled from; later entries may have changed nothing of it

	router    *router.Router
	streams   *router.Streams
	chains    vector[*Chain] // of routes; nil: that of the service
	services  vector[serviceSlot]
	global    [subsystems]*Chain
	consumers *btree.Map[string, *identity] // by consumer id: those who have plugins of their own or are in a group
	groups    *btree.Map[string, []*Step]   // plugins of a group's scope by its id, in running order
	rules     *ClientRules

	pins [pinShards]pinCount
}

type serviceSlot struct {
	service *Service
	chains  [subsystems]*Chain // nil: the global one
}

// subsystem tells routes of HTTP from those of streams. They share services, and plugins that are for both.
type subsystem uint8

const (
	forHTTP subsystem = iota
	forStreams
	subsystems
)

// Service is a compiled service.
type Service struct {
	Entity   *entity.Service
	Upstream exchange.Upstream // Path is the service's own
}

// Target is where a request goes.
type Target struct {
	router.Match
	Service *Service // nil: a route without service
	Chain   *Chain
}

// Find routes a request. It allocates nothing.
func (s *Snapshot) Find(q *router.Query) (Target, bool) {
	m, ok := s.router.Find(q)
	if !ok {
		return Target{}, false
	}
	t := Target{Match: m}
	t.Service, t.Chain = s.follow(m.Slot, m.Service, forHTTP)
	return t, true
}

// Explain tells how a request is routed and why; see router.Explain. It is for people, not for traffic.
func (s *Snapshot) Explain(q *router.Query, limit int) []router.Verdict {
	return s.router.Explain(q, limit)
}

// StreamTarget is where a stream session goes.
type StreamTarget struct {
	Route   *router.StreamRoute
	Service *Service // nil: a route without service
	Chain   *Chain
}

// FindStream routes a stream session.
func (s *Snapshot) FindStream(q *router.StreamQuery) (StreamTarget, bool) {
	t := StreamTarget{Route: s.streams.Find(q)}
	if t.Route == nil {
		return t, false
	}
	t.Service, t.Chain = s.follow(t.Route.Slot, t.Route.Service, forStreams)
	return t, true
}

// follow is the service of a route and its plugins, by the numbers of the route and of the service, the latter plus one or 0 if there is none.
func (s *Snapshot) follow(route, number uint32, sub subsystem) (*Service, *Chain) {
	var service *Service
	chain := s.global[sub]
	if number > 0 {
		svc := s.services.at(number - 1)
		service = svc.service
		if c := svc.chains[sub]; c != nil {
			chain = c
		}
	}
	if c := s.chains.at(route); c != nil {
		chain = c
	}
	return service, chain
}

// Global is the chain of requests that have no route (yet).
func (s *Snapshot) Global() *Chain { return s.global[forHTTP] }

// GlobalStreams is the chain of stream sessions whose route is gone.
func (s *Snapshot) GlobalStreams() *Chain { return s.global[forStreams] }

// identity is what plugins know of a consumer.
type identity struct {
	own    []*Step                 // its plugins, in running order
	groups []unique.Handle[string] // ids of its groups, in the order of their names
}

// ConsumerSteps are the plugins configured for a consumer, or for a group that it is in, on any route or service; see Choose. Of two groups with equal
// claims the first by name wins (Kong). buf is memory for the result, if it has to be put together.
func (s *Snapshot) ConsumerSteps(id string, buf *[]*Step) []*Step {
	c, ok := s.consumers.Get(id)
	if !ok {
		return nil
	}
	steps, merged := c.own, false
	if s.groups.Len() == 0 {
		return steps
	}
	for _, g := range c.groups {
		of, _ := s.groups.Get(g.Value())
		if len(steps) == 0 {
			steps = of
			continue
		}
		if len(of) > 0 && !merged {
			*buf, merged = append((*buf)[:0], steps...), true
		}
		for _, x := range of {
			*buf = slices.Insert(*buf, behind(*buf, x), x)
		}
		if merged {
			steps = *buf
		}
	}
	return steps
}

// behind is where a step belongs in a list that is sorted by the order of running, then by scope.
func behind(list []*Step, s *Step) int {
	i := len(list)
	for i > 0 && (compareSteps(list[i-1], s) > 0 || compareSteps(list[i-1], s) == 0 && list[i-1].level > s.level) {
		i--
	}
	return i
}

// Routes is the number of route paths in the router.
func (s *Snapshot) Routes() int { return s.router.Len() }

// Step is one configured plugin. The phases its instance lacks are nil.
type Step struct {
	ID       string // of the plugin row
	Name     string
	Priority int
	Rewriter plugin.Rewriter
	Accessor plugin.Accessor
	Header   plugin.HeaderFilter
	Body     plugin.BodyFilter
	Logger   plugin.Logger
	Closer   plugin.Closer

	StreamAccessor plugin.StreamAccessor
	StreamLogger   plugin.StreamLogger

	subsystems                      [subsystems]bool
	route, service, consumer, group string // scope; "" is any
	level                           int
	secretParams                    []string
	asks                            *ClientRule // nil: it needs no client certificate
	source                          plugin.CertificateSource
}

// Scope says in words what the plugin is configured on.
func (s *Step) Scope() string {
	var parts []string
	for _, p := range []struct{ name, id string }{{"route", s.route}, {"service", s.service}, {"consumer", s.consumer}, {"consumer group", s.group}} {
		if p.id != "" {
			parts = append(parts, p.name)
		}
	}
	if parts == nil {
		return "global"
	}
	return strings.Join(parts, " and ")
}

// scopeLevel is Kong's precedence between several configurations of one plugin; the lowest wins.
func (s *Step) scopeLevel() int {
	consumer, group, route, service := s.consumer != "", s.group != "", s.route != "", s.service != ""
	for level, applies := range []bool{
		consumer && route && service, group && route && service, consumer && route, consumer && service, group && route, group && service, route && service,
		consumer, group, route, service,
	} {
		if applies {
			return level
		}
	}
	return 11
}

// Before is the running order of a phase: higher priority first, then the name descending (Kong).
func (s *Step) Before(o *Step) bool { return compareSteps(s, o) < 0 }

func compareSteps(a, b *Step) int {
	if a.Priority != b.Priority {
		return b.Priority - a.Priority
	}
	return strings.Compare(b.Name, a.Name)
}

// applies tells whether the step's scope covers a route and a service ("" when the route has none).
func (s *Step) applies(route, service string) bool {
	return (s.route == "" || s.route == route) && (s.service == "" || s.service == service)
}

// Chain is the plugins of one pair of route and service, one per name, in running order.
type Chain struct {
	Steps        []*Step
	SecretParams []string // query parameters that carry credentials, to be kept out of logs
}

var noChain = &Chain{}

// newChain picks for every plugin name the step of the most specific scope. The lists hold applicable steps only, of both subsystems.
func newChain(sub subsystem, lists ...[]*Step) *Chain {
	var all []*Step
	for _, l := range lists {
		for _, s := range l {
			if s.subsystems[sub] {
				all = append(all, s)
			}
		}
	}
	if len(all) == 0 {
		return noChain
	}
	slices.SortFunc(all, func(a, b *Step) int {
		if c := compareSteps(a, b); c != 0 {
			return c
		}
		return a.level - b.level
	})
	all = slices.CompactFunc(all, func(a, b *Step) bool { return a.Name == b.Name && a.Priority == b.Priority })
	c := &Chain{Steps: slices.Clip(all)}
	for _, s := range all {
		c.SecretParams = append(c.SecretParams, s.secretParams...)
	}
	slices.Sort(c.SecretParams)
	c.SecretParams = slices.Compact(c.SecretParams)
	return c
}

// Choose appends to dst the steps to run behind after (nil: from the start) for a known consumer: those of the chain, replaced or
// complemented by the consumer's where these are more specific.
func Choose(dst []*Step, chain []*Step, own []*Step, route, service string, after *Step) []*Step {
	i, j := 0, 0
	for i < len(chain) || j < len(own) {
		var s *Step
		switch {
		case j == len(own) || i < len(chain) && compareSteps(chain[i], own[j]) < 0:
			s = chain[i]
			i++
		case i == len(chain) || compareSteps(chain[i], own[j]) > 0:
			s = bestOwn(own, &j, route, service)
		default:
			s = chain[i]
			i++
			if o := bestOwn(own, &j, route, service); o != nil && o.level < s.level {
				s = o
			}
		}
		if s != nil && (after == nil || compareSteps(after, s) < 0) {
			dst = append(dst, s)
		}
	}
	return dst
}

// bestOwn takes all steps of one name from own and returns the most specific that applies. own is sorted by level
// within a name.
func bestOwn(own []*Step, j *int, route, service string) *Step {
	var best *Step
	first := own[*j]
	for *j < len(own) && compareSteps(own[*j], first) == 0 {
		if best == nil && own[*j].applies(route, service) {
			best = own[*j]
		}
		*j++
	}
	return best
}

// pinShards spreads the count of exchanges that use a snapshot over cache lines.
const pinShards = 16

type pinCount struct {
	n atomic.Int64
	_ [56]byte
}

// Unpin ends what Holder.Pin began; shard is the same.
func (s *Snapshot) Unpin(shard uint64) { s.pins[shard%pinShards].n.Add(-1) }

func (s *Snapshot) pinned() bool {
	for i := range s.pins {
		if s.pins[i].n.Load() != 0 {
			return true
		}
	}
	return false
}

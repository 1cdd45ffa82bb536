// Package proxy is the life of one exchange: from the parsed request through routing, plugins and the upstream to the
// response and the log. Handler.Serve is that life, top to bottom.
//
// It does not read or write connections (h1 and upstream do), and holds no configuration (dataplane does).
package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/router"
)

// Upstreams sends requests; package upstream implements it.
type Upstreams interface {
	// RoundTrip sends x.Request to x.Upstream and fills x.Response, whose body still streams.
	RoundTrip(x *exchange.Exchange) error
	// Release is called once per exchange, when the response is over and logged, whether there was a RoundTrip or not.
	Release(x *exchange.Exchange)
}

// Options of New. Zero values are Kong's defaults.
type Options struct {
	Holder    *dataplane.Holder
	Upstreams Upstreams
	// Pools are the upstream entities: a service whose host is the name of one is spread over its targets. nil: there are none.
	Pools *balancer.Set
	Log   *slog.Logger

	// Product is what Server and Via say: "concord/1.0.0".
	Product string
	// TrustedIPs may tell the client's address and the X-Forwarded-* headers; empty: nobody.
	TrustedIPs      []netip.Prefix
	RealIPHeader    string // default X-Real-IP
	RealIPRecursive bool
	// Headers are the tokens of what is added to responses; nil: server_tokens, latency_tokens, X-Kong-Request-Id.
	Headers []string
	// HeadersUpstream are the tokens of what is added to requests; nil: X-Kong-Request-Id.
	HeadersUpstream []string
	// ErrorDefaultType is the media type of gateway errors for clients that name none; default text/plain.
	ErrorDefaultType string
	// ErrorTemplates replace the bodies of gateway errors: a media type's text with two %s, for message and request id.
	ErrorTemplates map[string]string
	// AllowDebugHeader answers Kong-Debug: 1 with the names of route and service.
	AllowDebugHeader bool
	// PathEscapes is what becomes of paths that upstreams may read in two ways.
	PathEscapes PathEscapes
	// MaxBody is the longest request body in bytes, more is a 413; 0: no limit.
	MaxBody int64
	// HeldBody is how many bytes of a request body are awaited before a target is chosen, on routes with request_buffering; a longer body then
	// streams. 0: none.
	HeldBody int64
	// MaxInFlight is how many requests may run at once, more are answered 503; 0: no limit.
	MaxInFlight int64
	// AccessLog receives Kong's access log lines; nil: none.
	AccessLog *AccessLog
	// Stats are where to count; nil: counters of this handler alone.
	Stats *Stats
	// Committed asks the leader for the index it has committed; nil: requests with X-Min-Config-Index just wait. It is called by one
	// goroutine at a time.
	Committed CommittedFunc
	// MinIndexWait is how long such a request may wait for this node to catch up; default 5 s.
	MinIndexWait time.Duration
}

// Handler is an exchange.Handler.
type Handler struct {
	o         Options
	log       *slog.Logger
	holder    *dataplane.Holder
	upstreams Upstreams
	add       additions
	trusted   trust
	templates [typeXML + 1]*template
	gate      *indexGate
	runs      sync.Pool
	stats     *Stats
	inFlight  atomic.Int64 // counted only with MaxInFlight
}

// Stats count since the start.
type Stats struct {
	Panics       atomic.Uint64 // of plugins, each answered with 500
	PluginErrors atomic.Uint64 // plugins that failed, each answered with 500
	Loops        atomic.Uint64 // requests refused with 508
	Overloads    atomic.Uint64 // requests refused because MaxInFlight others were running
}

// New makes a Handler.
func New(o Options) *Handler {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Handler{
		o: o, log: o.Log, holder: o.Holder, upstreams: o.Upstreams,
		add:     newAdditions(o),
		trusted: newTrust(o), templates: newTemplates(o.ErrorTemplates),
		gate: newIndexGate(o.Holder, o.Committed, o.MinIndexWait),
	}
	if h.stats = o.Stats; h.stats == nil {
		h.stats = &Stats{}
	}
	h.runs.New = func() any { return &run{} }
	return h
}

// Stats are the counters.
func (h *Handler) Stats() *Stats { return h.stats }

// run is what the handler keeps about an exchange: x.Pinned points to it.
type run struct {
	snap      *dataplane.Snapshot
	shard     uint64
	target    dataplane.Target
	query     router.Query
	prefix    string            // what strip_path removes
	trusted   bool              // the peer may tell forwarded headers
	steps     []*dataplane.Step // the plugins of this exchange in running order
	own       []*dataplane.Step // memory for steps when the consumer has plugins of its own
	merged    []*dataplane.Step // memory for the plugins of a consumer and its groups
	chain     *dataplane.Chain  // that steps began as
	showIndex bool              // the client asked for a configuration index
	index     uint64            // that it got
	body      filteredBody
	request   limitedBody
	held      []byte             // of the request body
	dispatch  *balancer.Dispatch // nil: the service names its host itself
}

// Serve runs the exchange until its response is complete but for a streaming body.
func (h *Handler) Serve(x *exchange.Exchange) {
	r := h.runs.Get().(*run)
	x.Pinned = r
	x.NewRequestID()
	r.shard = x.Conn.Serial

	waited := h.awaitIndex(x, r)
	r.index = h.holder.PublishedIndex()
	r.snap = h.holder.Pin(r.shard)
	r.follow(r.snap.Global())
	h.identifyClient(x, r)

	err := waited
	if h.o.MaxInFlight > 0 && h.inFlight.Add(1) > h.o.MaxInFlight {
		h.stats.Overloads.Add(1)
		err = errOverload
	}
	if err == nil {
		err = h.proxy(x, r)
	}
	if err != nil {
		h.answer(x, err)
	}
	if err = h.filterHeaders(x, r.steps); err != nil {
		h.answer(x, err)
	}
	h.finishHead(x, r)
	r.filterBody(h, x)
}

// proxy takes a request to its upstream and back; an error says how the gateway answers instead.
func (h *Handler) proxy(x *exchange.Exchange, r *run) error {
	if err := h.refuseLoop(x); err != nil {
		return err
	}
	if err := lastHop(x); err != nil {
		return err
	}
	if err := h.limitBody(x, r); err != nil {
		return err
	}
	if x.Conn.TLS != nil && r.snap.ClientRules().Misdirected(x.Conn.SNI, hostOnly(x.Request.Host)) {
		return errMisdirected
	}
	if err := h.rewrite(x, r.steps); err != nil {
		return err
	}
	r.query = router.Query{
		Method: x.Request.Method, Host: x.Request.Host, Path: x.Request.Path, Header: &x.Request.Header,
		TLS: x.Conn.TLS != nil, SNI: x.Conn.SNI,
	}
	var ok bool
	if r.target, ok = r.snap.Find(&r.query); !ok {
		return errNoRoute
	}
	h.routed(x, r)
	if err := h.refuseAmbiguous(x, r); err != nil {
		return err
	}
	if err := h.checkProtocol(x, r); err != nil {
		return err
	}
	body := x.Request.Body
	if err := h.access(x, r); err != nil {
		return err
	}
	if x.Request.Body != body && !x.Request.InMemory() {
		x.Request.Body = &watchedBody{x.Request.Body, h} // a plugin's code will run where the body is read
	}
	if x.Upstream.Host == "" {
		return errNoService
	}
	h.upstreamHeaders(x, r)
	if err := h.holdBody(x, r); err != nil {
		return err
	}
	if err := h.dispatch(x, r); err != nil {
		return err
	}
	err := h.upstreams.RoundTrip(x)
	if r.dispatch != nil {
		r.dispatch.Result(x, err)
	}
	if err != nil {
		return h.upstreamFailed(x, err)
	}
	x.Proxied = true
	return nil
}

// dispatch chooses a target if the service's host is the name of an upstream.
func (h *Handler) dispatch(x *exchange.Exchange, r *run) (err error) {
	if h.o.Pools == nil {
		return nil
	}
	pool := h.o.Pools.Pool(x.Upstream.Host)
	if pool == nil {
		return nil
	}
	// A Host that the client or a plugin chose stays; the one that comes from the service becomes the target's.
	keep := x.Route.PreserveHost && x.Request.Host != "" || r.target.Service != nil && x.Upstream.HostHeader != r.target.Service.Upstream.HostHeader
	if r.dispatch, err = pool.Dispatch(x, keep); err != nil {
		return &failure{status: 503, message: err.Error()}
	}
	return nil
}

// routed puts the match into the exchange, where plugins may read and change it.
func (h *Handler) routed(x *exchange.Exchange, r *run) {
	t := &r.target
	x.Route = t.Entity
	path := x.Request.Path
	x.Captures = t.AppendCaptures(x.Captures[:0], path)
	if t.StripPath {
		r.prefix = t.Prefix(path)
	}
	if s := t.Service; s != nil {
		x.Service = s.Entity
		x.Upstream = s.Upstream
		x.Upstream.Path = x.Keep(router.AppendUpstreamPath(x.Scratch(), s.Upstream.Path, t.StripPath, r.prefix, path))
		if t.PreserveHost && x.Request.Host != "" { // HTTP/1.0 may come without one
			x.Upstream.HostHeader = x.Request.Host
		}
	}
	r.follow(t.Chain)
}

func (r *run) follow(c *dataplane.Chain) { r.chain, r.steps = c, c.Steps }

// rewrite runs the first phase, of global plugins only: there is no route yet.
func (h *Handler) rewrite(x *exchange.Exchange, steps []*dataplane.Step) (err error) {
	defer h.recovered("rewrite", &err)
	for _, s := range steps {
		if s.Rewriter != nil {
			if err = s.Rewriter.Rewrite(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// access runs the access phase. A consumer that a plugin has found brings its own configurations for the plugins behind that one
// (Kong: below its priority). The list of plugins is complete even if one ends the phase: their later phases still run.
func (h *Handler) access(x *exchange.Exchange, r *run) (err error) {
	defer h.recovered("access", &err)
	for i := 0; i < len(r.steps); i++ {
		s := r.steps[i]
		if s.Accessor == nil {
			continue
		}
		consumer := consumerID(x)
		if err = s.Accessor.Access(x); err != nil {
			return err
		}
		if consumerID(x) != consumer {
			r.adoptConsumer(x, i)
		}
	}
	return nil
}

func consumerID(x *exchange.Exchange) string {
	if x.Consumer == nil {
		return ""
	}
	return x.Consumer.ID
}

// adoptConsumer resolves the steps behind step i for the consumer that is known now.
func (r *run) adoptConsumer(x *exchange.Exchange, i int) {
	var own []*dataplane.Step
	if x.Consumer != nil {
		own = r.snap.ConsumerSteps(x.Consumer.ID, &r.merged)
	}
	plain := len(r.own) == 0
	if plain && len(own) == 0 {
		return
	}
	after := r.steps[i]
	if plain {
		r.own = append(r.own, r.steps[:i+1]...)
	} else {
		r.own = r.own[:i+1]
	}
	service := ""
	if x.Service != nil {
		service = x.Service.ID
	}
	r.own = dataplane.Choose(r.own, r.chain.Steps, own, x.Route.ID, service, after)
	r.steps = r.own
}

func (h *Handler) filterHeaders(x *exchange.Exchange, steps []*dataplane.Step) (err error) {
	defer h.recovered("header_filter", &err)
	for _, s := range steps {
		if s.Header != nil {
			if err = s.Header.HeaderFilter(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// watchedBody makes a panic of a plugin that watches the request body the failure of that body: it may be read by a
// goroutine in which a panic would end the process.
type watchedBody struct {
	exchange.Body
	h *Handler
}

// Next implements exchange.Body.
func (b *watchedBody) Next() (chunk []byte, err error) {
	defer b.h.recovered("request body", &err)
	return b.Body.Next()
}

// Ready implements exchange.Readier.
func (b *watchedBody) Ready() bool { return exchange.Ready(b.Body) }

// Finish is called when the response was written or given up.
func (h *Handler) Finish(x *exchange.Exchange) {
	r, ok := x.Pinned.(*run)
	if !ok {
		return
	}
	for _, s := range r.steps {
		if s.Logger != nil {
			h.logPhase(x, s.Logger)
		}
	}
	if h.o.AccessLog != nil {
		h.o.AccessLog.write(x, r.chain.SecretParams)
	}
	if r.dispatch != nil {
		r.dispatch.End()
	}
	h.upstreams.Release(x) // behind the log: the response's strings may be in the upstream connection's memory
	r.snap.Unpin(r.shard)
	if h.o.MaxInFlight > 0 {
		h.inFlight.Add(-1)
	}
	x.Pinned = nil
	clear(r.own)
	clear(r.merged)
	if cap(r.held) > maxKept {
		r.held = nil
	}
	*r = run{own: r.own[:0], merged: r.merged[:0], held: r.held[:0]}
	h.runs.Put(r)
}

func (h *Handler) logPhase(x *exchange.Exchange, l plugin.Logger) {
	var err error
	defer h.recovered("log", &err)
	l.Log(x)
}

// Refuse answers a request that the front end could not accept.
func (h *Handler) Refuse(x *exchange.Exchange, status int, reason error) {
	x.NewRequestID()
	x.Err = reason
	h.template(x, status, refusal(status), true)
	h.finishHead(x, nil)
	if h.o.AccessLog != nil {
		h.o.AccessLog.write(x, nil)
	}
}

var errPanic = errors.New("a plugin panicked")

// recovered, deferred by every phase, makes a plugin's panic the failure of one request.
func (h *Handler) recovered(phase string, err *error) {
	if p := recover(); p != nil {
		h.stats.Panics.Add(1)
		h.log.Error("plugin panicked", "phase", phase, "panic", p, "stack", string(debug.Stack()))
		*err = errPanic
	}
}

// filteredBody runs the body filters over what the inner body yields.
type filteredBody struct {
	h     *Handler
	x     *exchange.Exchange
	steps []*dataplane.Step
	inner exchange.Body
	done  atomic.Bool // a front end may close the body while it is read
}

// filterBody puts the body filters, if there are any, before the response body.
func (r *run) filterBody(h *Handler, x *exchange.Exchange) {
	p := &x.Response
	if x.Request.Method == "HEAD" || p.Status == 204 || p.Status == 304 || p.Status < 200 {
		return
	}
	for _, s := range r.steps {
		if s.Body != nil {
			r.body = filteredBody{h: h, x: x, steps: r.steps, inner: p.Body}
			p.Body, p.Length = &r.body, -1
			return
		}
	}
}

func (b *filteredBody) Next() (chunk []byte, err error) {
	if b.done.Load() {
		return nil, io.EOF
	}
	var end error = io.EOF
	if b.inner != nil {
		chunk, end = b.inner.Next()
	}
	if end != nil && end != io.EOF {
		return nil, end
	}
	last := end == io.EOF
	if last {
		b.done.Store(true)
	}
	defer b.h.recovered("body_filter", &err)
	for _, s := range b.steps {
		if s.Body != nil {
			if chunk, err = s.Body.BodyFilter(b.x, chunk, last); err != nil {
				return nil, err
			}
		}
	}
	return chunk, end
}

func (b *filteredBody) Close() error {
	b.done.Store(true)
	if b.inner == nil {
		return nil
	}
	return b.inner.Close()
}

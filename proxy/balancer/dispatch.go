package balancer

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"concord/proxy/exchange"
)

// Dispatch is what one exchange and a pool have to do with each other: whom it was sent to, whom not to ask again.
type Dispatch struct {
	pool     *Pool
	config   *config
	peer     *peer // the one that is asked; nil: none
	tried    []*peer
	hash     uint64
	hashed   bool
	keepHost bool
	sent     time.Time // latency only
	cookie   string    // value of the cookie that the client is to get; "": none
	trial    bool      // the request is one that decides about the peer
	counted  bool      // in the pool's active
	answer   grpcAnswer

	retry   func(*exchange.Exchange, error) error
	dialing func(bool) error
}

// Dispatch chooses a peer for x and names it in x.Upstream: Host, Port, HostHeader unless keepHost is set, and Retry, which
// chooses another one for every further try. The error is ErrNoPeer or ErrBusy. A pool whose names are being looked up for the first
// time lets the request wait for that, at most 5 s or its connect timeout.
//
// Without an error, Result must follow when the response head or a final error is there, and End when the response is over.
// Nothing is allocated, but for a hash cookie that the client does not have.
func (p *Pool) Dispatch(x *exchange.Exchange, keepHost bool) (*Dispatch, error) {
	d := p.set.free.Get().(*Dispatch)
	d.pool, d.keepHost = p, keepHost
	if b := p.plan.Load().breaker; b != nil {
		if b.MaxRequests > 0 {
			d.counted = true
			if p.active.Add(1) > int64(b.MaxRequests) {
				p.rejected.Add(1)
				d.End()
				return nil, ErrBusy
			}
		}
		if b.MaxPending > 0 || b.MaxTargetPending > 0 {
			x.Upstream.Dialing = d.dialing
		}
	}
	if err := d.next(x); err != nil {
		d.End()
		return nil, err
	}
	x.Upstream.Retry = d.retry
	return d, nil
}

// dial is exchange.Upstream.Dialing.
func (d *Dispatch) dial(begins bool) error {
	p, pe := d.pool, d.peer
	if !begins {
		p.pending.Add(-1)
		pe.pending.Add(-1)
		return nil
	}
	all, own, b := p.pending.Add(1), pe.pending.Add(1), d.config.breaker
	// The limits may have gone between two tries.
	if b != nil && (b.MaxPending > 0 && all > int64(b.MaxPending) || b.MaxTargetPending > 0 && own > int64(b.MaxTargetPending)) {
		p.pending.Add(-1)
		pe.pending.Add(-1)
		p.rejected.Add(1)
		return ErrBusy
	}
	return nil
}

// next chooses a peer.
func (d *Dispatch) next(x *exchange.Exchange) error {
	p := d.pool
	plan := p.plan.Load()
	d.config = plan.config
	if plan.ring != nil && !d.hashed {
		d.hash, d.hashed = d.valueHash(x), true
	}
	m := d.choose(x, plan)
	if m == nil && len(d.tried) > 0 {
		// Everybody has failed; whoever failed first has had the most time to get better.
		d.tried = d.tried[:0]
		m = d.choose(x, plan)
	}
	if m == nil {
		if len(plan.live) == 0 && p.await(x.Upstream.ConnectTimeout) {
			return d.next(x)
		}
		if plan.breaker != nil && plan.healthy && len(plan.live) > 0 {
			p.rejected.Add(1)
			return ErrBusy
		}
		return ErrNoPeer
	}
	d.peer = m.peer
	if plan.row.Algorithm == "latency" {
		d.sent = time.Now()
	}
	u := &x.Upstream
	u.Host, u.Port = m.ip, m.port
	if !d.keepHost {
		u.HostHeader = m.host[0]
		if u.Scheme == "https" {
			u.HostHeader = m.host[1]
		}
	}
	return nil
}

// choose picks a member and begins a request to it.
func (d *Dispatch) choose(x *exchange.Exchange, plan *plan) *member {
	known := ""
	if plan.sticky != nil {
		if known, _ = x.Request.Cookie(plan.row.StickySessionsCookie); known != "" && plan.healthy {
			if m := plan.sticky[known]; m != nil && plan.usable(m.peer, d.tried) && d.enter(plan, m) {
				d.cookie = ""
				return m
			}
		}
	}
	n := len(d.tried)
	for {
		m := plan.pick(&d.pool.turn, d.hash, d.tried)
		if m == nil || d.enter(plan, m) {
			d.tried = d.tried[:n]
			if m != nil && plan.sticky != nil {
				d.cookie = m.peer.sticky
			}
			return m
		}
		d.tried = append(d.tried, m.peer) // others were faster
	}
}

func (d *Dispatch) enter(plan *plan, m *member) (ok bool) {
	ok, d.trial = m.peer.enter(plan.breaker)
	return ok
}

// again is exchange.Upstream.Retry.
func (d *Dispatch) again(x *exchange.Exchange, cause error) error {
	d.failed(cause)
	return d.next(x)
}

func (d *Dispatch) failed(err error) {
	pe := d.peer
	if pe == nil {
		return
	}
	o := outcomeOf(err)
	if o != nothing && !d.sent.IsZero() {
		pe.observe(max(time.Since(d.sent).Seconds(), failureCost), d.pool.set.millis())
	}
	if o != nothing {
		d.pool.judge(pe, d.config.breaker, d.trial, true)
	}
	d.release()
	d.tried = append(d.tried, pe)
	d.pool.report(pe, o, &d.config.passive)
}

func (d *Dispatch) release() {
	if d.peer != nil {
		d.peer.leave(d.trial)
		d.peer, d.trial = nil, false
	}
}

// Result takes the outcome of the exchange with the upstream: err, if it failed in the end, else the head of x.Response, to which
// it adds the cookie of a client that is new to cookie hashing.
func (d *Dispatch) Result(x *exchange.Exchange, err error) {
	if err != nil {
		d.failed(err)
		return
	}
	if d.peer == nil {
		return
	}
	if !d.sent.IsZero() {
		d.peer.observe(time.Since(d.sent).Seconds(), d.pool.set.millis())
	}
	if status, known := d.statusOf(x); known {
		d.verdict(status)
	}
	if d.cookie != "" {
		d.setCookie(x)
	}
}

// verdict counts what the upstream said. A request on trial has decided then, and gives its place to the next one: its answer may stream for hours.
func (d *Dispatch) verdict(status int) {
	if c := d.config.breaker; c != nil {
		d.pool.judge(d.peer, c, d.trial, fails(c, status))
	}
	if d.trial {
		d.peer.breaker.trials.Add(-1)
		d.trial = false
	}
	d.pool.report(d.peer, d.config.passive.status(status), &d.config.passive)
}

// End frees the peer, once the response is over, and d itself.
func (d *Dispatch) End() {
	d.release()
	if d.counted {
		d.pool.active.Add(-1)
	}
	clear(d.tried)
	*d = Dispatch{tried: d.tried[:0], retry: d.retry, dialing: d.dialing, pool: d.pool}
	free := &d.pool.set.free
	d.pool = nil
	free.Put(d)
}

// outcomeOf says by the status that an error stands for whether the peer is at fault: 504 is a timeout, 502 a failure on the way to
// it or of its protocol, anything else (no such address, a broken client) no fault of the peer.
func outcomeOf(err error) outcome {
	var e interface {
		error
		Status() int
	}
	if !errors.As(err, &e) {
		return nothing
	}
	switch e.Status() {
	case 504:
		return timeout
	case 502:
		return tcpFailure
	}
	return nothing
}

// setCookie adds Kong's cookie, in place of one of the same name that the upstream sets.
func (d *Dispatch) setCookie(x *exchange.Exchange) {
	row := d.config.row
	name, path, rest := row.HashOnCookie, row.HashOnCookiePath, "; Same-Site=Lax; HttpOnly" // what Kong sends; browsers know "SameSite" only and take Lax for granted anyway
	if row.Algorithm == "sticky-sessions" {
		name, path, rest = row.StickySessionsCookie, row.StickySessionsCookiePath, "; SameSite=Lax; HttpOnly"
		if x.Request.Scheme == "https" {
			rest += "; Secure"
		}
	}
	prefix := name + "="
	value := prefix + d.cookie + "; Path=" + cmp.Or(path, "/") + rest
	fields := x.Response.Header.Fields
	for i := range fields {
		if f := &fields[i]; exchange.EqualFold(f.Name, "Set-Cookie") && strings.HasPrefix(f.Value, prefix) {
			f.Value = value
			return
		}
	}
	x.Response.Header.Add("Set-Cookie", value)
}

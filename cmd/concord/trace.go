package main

import (
	"fmt"
	"slices"

	"concord/admin/rest"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/exchange"
	"concord/proxy/router"
)

// maxTraced is how many routes are shown that lost, and how many that did not match.
const maxTraced = 10

// tracer shows the Admin API how the proxy routes.
type tracer struct {
	holder *dataplane.Holder
	pools  *balancer.Set
}

// Trace implements rest.Tracer.
func (t *tracer) Trace(in rest.TraceQuery) (rest.Trace, error) {
	path := in.Path
	if path == "" {
		path = "/"
	}
	path, err := exchange.NormalizePath(path)
	if err != nil {
		return rest.Trace{}, err
	}
	var header exchange.Header
	for _, h := range in.Headers {
		header.Fields = append(header.Fields, exchange.Field{Name: h.Name, Value: h.Value})
	}
	q := router.Query{Method: in.Method, Host: in.Host, Path: path, Header: &header, TLS: in.TLS, SNI: in.SNI}
	snap := t.holder.Load()
	out := rest.Trace{Path: path, Matched: []rest.TracedRoute{}, Near: []rest.TracedRoute{}, Plugins: []rest.TracedPlugin{}, Notes: []string{}}
	for _, v := range snap.Explain(&q, maxTraced) {
		r := rest.TracedRoute{ID: v.Route.Entity.ID, Name: v.Route.Entity.Name, Path: v.Path, Lost: v.Lost, Checks: []rest.TracedCheck{}}
		for _, c := range v.Checks {
			r.Checks = append(r.Checks, rest.TracedCheck(c))
		}
		if v.Matched {
			out.Matched = append(out.Matched, r)
		} else {
			out.Near = append(out.Near, r)
		}
	}
	target, found := snap.Find(&q)
	chain := snap.Global()
	if found {
		chain = target.Chain
		t.follow(&out, target, q)
	} else {
		out.Notes = append(out.Notes, "no route matches: the answer is 404")
	}
	for _, s := range chain.Steps {
		p := rest.TracedPlugin{Name: s.Name, ID: s.ID, Priority: s.Priority, Scope: s.Scope(), Phases: []string{}}
		for _, phase := range []struct {
			name string
			has  bool
		}{{"access", s.Accessor != nil}, {"header_filter", s.Header != nil}, {"body_filter", s.Body != nil}, {"log", s.Logger != nil}} {
			if phase.has {
				p.Phases = append(p.Phases, phase.name)
			}
		}
		if s.Rewriter != nil && s.Scope() == "global" {
			p.Phases = slices.Insert(p.Phases, 0, "rewrite")
		}
		out.Plugins = append(out.Plugins, p)
	}
	return out, nil
}

// follow says where the winner leads.
func (t *tracer) follow(out *rest.Trace, target dataplane.Target, q router.Query) {
	note := func(format string, args ...any) { out.Notes = append(out.Notes, fmt.Sprintf(format, args...)) }
	e := target.Entity
	switch protocols := e.Protocols; {
	case slices.Contains(protocols, "grpc") || slices.Contains(protocols, "grpcs"):
		note("the route takes gRPC over HTTP/2; anything else is answered 415 or 426")
	case !q.TLS && !slices.Contains(protocols, "http"):
		note("the route takes https only: over http the answer is %d, unless a trusted peer says X-Forwarded-Proto: https", e.HTTPSRedirectStatusCode)
	}
	s := target.Service
	if s == nil {
		note("the route has no service: unless a plugin answers, the answer is 503")
		return
	}
	out.Service = s.Entity.Name
	if out.Service == "" {
		out.Service = s.Entity.ID
	}
	prefix := ""
	if e.StripPath {
		prefix = target.Prefix(q.Path)
	}
	out.Upstream = s.Upstream.Scheme + "://" + s.Upstream.HostHeader + string(router.AppendUpstreamPath(nil, s.Upstream.Path, e.StripPath, prefix, q.Path))
	if e.PreserveHost {
		note("the upstream is sent the Host of the request, %s", q.Host)
	}
	if t.pools.Pool(s.Upstream.Host) != nil {
		note("%s is the name of an upstream, whose targets share the requests", s.Upstream.Host)
	}
}

package proxy

import (
	"strconv"
	"strings"
	"time"

	"concord/proxy/exchange"
)

// additions are the headers added to requests and responses, decided once from the settings headers and
// headers_upstream.
type additions struct {
	product         string
	via             [4][2]string // by HTTP major and minor version
	viaResponse     [2]string    // of an answer over HTTP/1.1 and HTTP/2
	server          bool
	proxyLatency    bool
	upstreamLatency bool
	responseLatency bool
	requestID       bool
	upstreamStatus  bool
	requestIDUp     bool
}

func newAdditions(o Options) additions {
	a := additions{product: o.Product}
	if o.Headers == nil {
		o.Headers = []string{"server_tokens", "latency_tokens", "X-Kong-Request-Id"}
	}
	if o.HeadersUpstream == nil {
		o.HeadersUpstream = []string{"X-Kong-Request-Id"}
	}
	for _, t := range o.Headers {
		switch strings.ToLower(strings.TrimSpace(t)) {
		case "server_tokens":
			a.server, a.viaResponse = true, viaOf(o.Product)
		case "server":
			a.server = true
		case "via":
			a.viaResponse = viaOf(o.Product)
		case "latency_tokens":
			a.proxyLatency, a.upstreamLatency, a.responseLatency = true, true, true
		case "x-kong-proxy-latency":
			a.proxyLatency = true
		case "x-kong-upstream-latency":
			a.upstreamLatency = true
		case "x-kong-response-latency":
			a.responseLatency = true
		case "x-kong-request-id":
			a.requestID = true
		case "x-kong-upstream-status":
			a.upstreamStatus = true
		}
	}
	for _, t := range o.HeadersUpstream {
		if strings.EqualFold(strings.TrimSpace(t), "x-kong-request-id") {
			a.requestIDUp = true
		}
	}
	if o.Product == "" {
		a.server, a.viaResponse = false, [2]string{}
		return a
	}
	a.via[1] = [2]string{"1.0 " + o.Product, "1.1 " + o.Product}
	a.via[2] = [2]string{"2 " + o.Product, "2 " + o.Product}
	a.via[3] = [2]string{"3 " + o.Product, "3 " + o.Product}
	return a
}

func viaOf(product string) [2]string { return [2]string{"1.1 " + product, "2 " + product} }

// finishHead adds the gateway's response headers, after all plugins. r is nil for a refused request.
func (h *Handler) finishHead(x *exchange.Exchange, r *run) {
	a, head := &h.add, &x.Response.Header
	if x.Proxied {
		if a.upstreamStatus {
			head.Set("X-Kong-Upstream-Status", h.number(x, int64(x.Response.Status)))
		}
		if a.upstreamLatency {
			head.Set("X-Kong-Upstream-Latency", h.millis(x, x.SentAt, x.HeadersAt))
		}
		if a.proxyLatency {
			head.Set("X-Kong-Proxy-Latency", h.millis(x, x.Start, x.SentAt))
		}
		version := 0
		if x.Upstream.HTTP2 {
			version = 1
		}
		if via := a.viaResponse[version]; via != "" {
			former := ""
			for i := range head.Fields {
				if f := &head.Fields[i]; exchange.EqualFold(f.Name, "Via") {
					former = x.Concat(former, f.Value, ", ")
				}
			}
			if former != "" {
				via = x.Concat(former, via)
			}
			head.Set("Via", via)
		}
		if a.server && !head.Has("Server") {
			head.Add("Server", a.product)
		}
	} else {
		if a.responseLatency {
			head.Set("X-Kong-Response-Latency", h.millis(x, x.Start, x.Now()))
		}
		if a.server {
			head.Set("Server", a.product)
		}
	}
	if a.requestID {
		head.Set("X-Kong-Request-Id", x.RequestID)
	}
	if h.o.AllowDebugHeader && x.Request.Header.Get("Kong-Debug") == "1" {
		debugHeaders(x)
	}
	if r != nil && r.showIndex {
		head.Set("X-Config-Index", h.number(x, int64(r.index)))
	}
}

// debugHeaders tells what the request matched, as Kong does.
func debugHeaders(x *exchange.Exchange) {
	head := &x.Response.Header
	if r := x.Route; r != nil {
		head.Set("Kong-Route-Id", r.ID)
		if r.Name != "" {
			head.Set("Kong-Route-Name", r.Name)
		}
	}
	if s := x.Service; s != nil {
		head.Set("Kong-Service-Id", s.ID)
		if s.Name != "" {
			head.Set("Kong-Service-Name", s.Name)
		}
	}
}

func (h *Handler) millis(x *exchange.Exchange, from, to time.Time) string {
	return h.number(x, max(0, to.Sub(from).Milliseconds()))
}

func (h *Handler) number(x *exchange.Exchange, n int64) string {
	return x.Keep(strconv.AppendInt(x.Scratch(), n, 10))
}

package prometheus

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
)

// workspace is the only one there is.
const workspace = "default"

// Write adds the counters to a page, in a fixed order.
func (r *Registry) Write(p *Page) {
	routes := r.merged()
	keys := slices.SortedFunc(maps.Keys(routes), func(a, b routeKey) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.route, b.route))
	})
	each := func(f func(key routeKey, consumer string, t *traffic)) {
		for _, key := range keys {
			s := routes[key]
			f(key, "", &s.traffic)
			for _, consumer := range slices.Sorted(maps.Keys(s.consumers)) {
				f(key, consumer, s.consumers[consumer])
			}
		}
	}
	codes := func(stream bool) {
		each(func(key routeKey, consumer string, t *traffic) {
			slices.SortFunc(t.codes, func(a, b codeCount) int {
				return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.source(), b.source()))
			})
			for _, c := range t.codes {
				if c.stream != stream {
					continue
				}
				code := other
				if c.code != 0 {
					code = strconv.Itoa(c.code)
				}
				labels := []string{"service", key.service, "route", key.route, "code", code, "source", c.source(), "workspace", workspace}
				if !stream {
					labels = append(labels, "consumer", consumer)
				}
				p.Add(float64(c.count), labels...)
			}
		})
	}
	p.Family("kong_http_requests_total", Counter, "Requests by status code and by who answered: the service or the gateway itself.")
	codes(false)
	p.Family("kong_stream_sessions_total", Counter, "Stream sessions by the status code of their line in the log, and by who ended them: the service or the gateway itself.")
	codes(true)
	p.Family("kong_bandwidth_bytes", Counter, "Bytes received from clients (ingress) and sent to them (egress), heads and bodies.")
	each(func(key routeKey, consumer string, t *traffic) {
		if t.in+t.out == 0 {
			return
		}
		p.Add(float64(t.in), "service", key.service, "route", key.route, "direction", "ingress", "workspace", workspace, "consumer", consumer)
		p.Add(float64(t.out), "service", key.service, "route", key.route, "direction", "egress", "workspace", workspace, "consumer", consumer)
	})
	for of, h := range [latencies]struct {
		name, help string
		bounds     []float64
	}{
		ofRequest:  {"kong_request_latency_ms", "Milliseconds from a request's head to the end of its response.", wideBounds},
		ofSession:  {"kong_session_duration_ms", "Milliseconds from the beginning of a stream session to its end.", wideBounds},
		ofUpstream: {"kong_upstream_latency_ms", "Milliseconds from the request sent to the head of the upstream's response.", wideBounds},
		ofGateway:  {"kong_kong_latency_ms", "Milliseconds the gateway took before it sent the request, or had a stream's upstream, or until its own answer was sent.", fineBounds},
	} {
		p.Family(h.name, Histogram, h.help)
		for _, key := range keys {
			l := &routes[key].latency[of]
			if counts := l.counts[:len(h.bounds)+1]; slices.Max(counts) > 0 {
				p.Buckets(h.bounds, counts, l.sum.Seconds()*1000, "service", key.service, "route", key.route, "workspace", workspace)
			}
		}
	}
	p.One("kong_nginx_metric_errors_total", Counter,
		"Requests and codes counted under \""+other+"\" because there were too many label sets.", float64(r.lost.Load()))
}

func (c codeCount) source() string {
	if c.own {
		return "kong"
	}
	return "service"
}

// merged adds the shards up. A shard's lock is held while it is copied.
func (r *Registry) merged() map[routeKey]*routeSeries {
	sum := map[routeKey]*routeSeries{}
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for key, series := range s.routes {
			to := sum[key]
			if to == nil {
				to = &routeSeries{consumers: map[string]*traffic{}}
				sum[key] = to
			}
			to.traffic.add(&series.traffic)
			for name, t := range series.consumers {
				if to.consumers[name] == nil {
					to.consumers[name] = &traffic{}
				}
				to.consumers[name].add(t)
			}
			for j := range series.latency {
				to.latency[j].add(&series.latency[j])
			}
		}
		s.mu.Unlock()
	}
	return sum
}

func (t *traffic) add(o *traffic) {
	t.in, t.out = t.in+o.in, t.out+o.out
	for _, c := range o.codes {
		at := slices.IndexFunc(t.codes, func(have codeCount) bool { return have.same(&c) })
		if at < 0 {
			t.codes = append(t.codes, c)
			continue
		}
		t.codes[at].count += c.count
	}
}

func (h *histogram) add(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.sum += o.sum
}

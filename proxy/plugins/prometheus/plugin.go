// Package prometheus counts what passed through the gateway, by service, route and consumer, in Kong's metrics.
//
// The plugin is the switch: requests in its scope are counted as its configuration says. The figures belong to a Registry, which
// outlives configurations. The package serves no page and knows nothing of the node around it.
package prometheus

import (
	"context"
	"time"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the prometheus plugin; all its instances count in r.
func (r *Registry) Plugin() plugin.Plugin {
	flag := func(name, text string) schema.Field {
		return schema.Field{Name: name, Type: schema.Boolean, Default: false, Description: text}
	}
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "prometheus", Priority: 13, Streams: true,
			Config: schema.Field{Fields: []schema.Field{
				flag("per_consumer", "Count requests and bytes for every consumer apart."),
				flag("status_code_metrics", "Count requests and stream sessions by status code: kong_http_requests_total, kong_stream_sessions_total."),
				flag("ai_metrics", "Accepted as Kong accepts it; this gateway has no AI plugins, so there is nothing to count."),
				flag("latency_metrics", "Measure latencies: kong_request_latency_ms, kong_upstream_latency_ms, kong_kong_latency_ms, kong_session_duration_ms."),
				flag("bandwidth_metrics", "Count bytes: kong_bandwidth_bytes."),
				flag("upstream_health_metrics", "Show the health of upstreams' targets: kong_upstream_target_health."),
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			i := &instance{config: *c, registry: r}
			if i.UpstreamHealth {
				r.health.Add(1)
			}
			return i, nil
		}),
	}
}

type config struct {
	PerConsumer    bool `json:"per_consumer"`
	StatusCodes    bool `json:"status_code_metrics"`
	Latency        bool `json:"latency_metrics"`
	Bandwidth      bool `json:"bandwidth_metrics"`
	UpstreamHealth bool `json:"upstream_health_metrics"`
}

type instance struct {
	config
	registry *Registry
}

// Log implements plugin.Logger. Like Kong it counts only requests that matched a route.
func (i *instance) Log(x *exchange.Exchange) {
	if x.Route == nil || !i.StatusCodes && !i.Latency && !i.Bandwidth {
		return
	}
	key := keyOf(x)
	consumer := ""
	if i.PerConsumer && x.Consumer != nil {
		if consumer = x.Consumer.Username; consumer == "" {
			consumer = x.Consumer.ID // a consumer may have a custom_id only
		}
	}
	var total time.Duration
	if i.Latency {
		total = time.Since(x.Start)
	}
	i.registry.count(key, consumer, total, x, &i.config)
}

// StreamLog implements plugin.StreamLogger.
func (i *instance) StreamLog(x *exchange.Exchange) {
	if x.Route == nil || !i.StatusCodes && !i.Latency && !i.Bandwidth {
		return
	}
	i.registry.count(keyOf(x), "", x.Stream.Session, x, &i.config)
}

func keyOf(x *exchange.Exchange) routeKey {
	key := routeKey{route: x.Route.Name}
	if key.route == "" {
		key.route = x.Route.ID
	}
	if s := x.Service; s != nil {
		if key.service = s.Name; key.service == "" {
			key.service = s.Host
		}
	}
	return key
}

// Close implements plugin.Closer.
func (i *instance) Close(context.Context) error {
	if i.UpstreamHealth {
		i.registry.health.Add(-1)
	}
	return nil
}

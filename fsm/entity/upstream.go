package entity

import (
	"strings"

	"concord/fsm/schema"
)

// balancing are the entities of load balancing.
func balancing() []Def { return []Def{upstreams, targets} }

// Upstream is a name behind which targets share the requests of the services that have it as their host.
type Upstream struct {
	ID                     string       `json:"id"`
	CreatedAt              float64      `json:"created_at"`
	UpdatedAt              float64      `json:"updated_at"`
	Name                   string       `json:"name"`
	Algorithm              string       `json:"algorithm"`
	HashOn                 string       `json:"hash_on"`
	HashFallback           string       `json:"hash_fallback"`
	HashOnHeader           string       `json:"hash_on_header"`
	HashFallbackHeader     string       `json:"hash_fallback_header"`
	HashOnCookie           string       `json:"hash_on_cookie"`
	HashOnCookiePath       string       `json:"hash_on_cookie_path"`
	HashOnQueryArg         string       `json:"hash_on_query_arg"`
	HashFallbackQueryArg   string       `json:"hash_fallback_query_arg"`
	HashOnURICapture       string       `json:"hash_on_uri_capture"`
	HashFallbackURICapture string       `json:"hash_fallback_uri_capture"`
	Slots                  int          `json:"slots"`
	Healthchecks           Healthchecks `json:"healthchecks"`
	Tags                   []string     `json:"tags"`
	HostHeader             string       `json:"host_header"`
	ClientCertificate      *Ref         `json:"client_certificate"`
	UseSRVName             bool         `json:"use_srv_name"`

	StickySessionsCookie     string          `json:"sticky_sessions_cookie"`
	StickySessionsCookiePath string          `json:"sticky_sessions_cookie_path"`
	CircuitBreaker           *CircuitBreaker `json:"circuit_breaker"`
}

// CircuitBreaker takes targets out whose requests fail, and bounds what an upstream is asked to do at once. Kong has none. 0 is always "not
// looked at" or "no limit".
type CircuitBreaker struct {
	ConsecutiveErrors  int     `json:"consecutive_errors"` // of one target
	ErrorRate          float64 `json:"error_rate"`         // percent of a target's requests within Window
	MinRequests        int     `json:"min_requests"`       // before ErrorRate is looked at
	Window             float64 `json:"window"`             // seconds
	HTTPStatuses       []int   `json:"http_statuses"`      // that are errors, as no answer at all always is
	BaseEjectionTime   float64 `json:"base_ejection_time"` // seconds; doubled each time a target fails again
	MaxEjectionTime    float64 `json:"max_ejection_time"`  // seconds
	MaxEjectionPercent float64 `json:"max_ejection_percent"`
	HalfOpenRequests   int     `json:"half_open_requests"`             // at once to a target on trial
	HalfOpenSuccesses  int     `json:"half_open_successes"`            // that end the trial
	MaxRequests        int     `json:"max_requests"`                   // under way, of the upstream
	MaxTargetRequests  int     `json:"max_target_requests"`            // under way, of each address of a target
	MaxPending         int     `json:"max_pending_connections"`        // being made, of the upstream
	MaxTargetPending   int     `json:"max_target_pending_connections"` // being made, of each address of a target
}

// Healthchecks says how the health of an upstream's targets is found. Counters of 0 are not looked at.
type Healthchecks struct {
	Active    ActiveChecks  `json:"active"`
	Passive   PassiveChecks `json:"passive"`
	Threshold float64       `json:"threshold"` // percent of the weight that more than must be available
}

// ActiveChecks are probes of the gateway's own.
type ActiveChecks struct {
	Type                   string              `json:"type"`
	Timeout                float64             `json:"timeout"` // seconds
	Concurrency            int                 `json:"concurrency"`
	HTTPPath               string              `json:"http_path"`
	HTTPSSNI               string              `json:"https_sni"`
	HTTPSVerifyCertificate bool                `json:"https_verify_certificate"`
	Headers                map[string][]string `json:"headers"`
	Healthy                Successes           `json:"healthy"`
	Unhealthy              Failures            `json:"unhealthy"`
}

// PassiveChecks watch the answers to proxied requests.
type PassiveChecks struct {
	Type      string    `json:"type"`
	Healthy   Successes `json:"healthy"`
	Unhealthy Failures  `json:"unhealthy"`
}

// Successes is what makes a target healthy.
type Successes struct {
	Interval     float64 `json:"interval"` // of probes to healthy targets in seconds, 0: none; active checks only
	HTTPStatuses []int   `json:"http_statuses"`
	Successes    int     `json:"successes"`
}

// Failures is what makes a target unhealthy.
type Failures struct {
	Interval     float64 `json:"interval"` // of probes to unhealthy targets in seconds, 0: none; active checks only
	HTTPStatuses []int   `json:"http_statuses"`
	TCPFailures  int     `json:"tcp_failures"`
	Timeouts     int     `json:"timeouts"`
	HTTPFailures int     `json:"http_failures"`
}

var upstreams = Def{Table: 9, New: func() any { return new(Upstream) }, Schema: &schema.Schema{
	Name:        "upstreams",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		{Name: "name", Type: schema.String, Required: true, Unique: true, Check: checkUpstreamName},
		schema.UpdatedAt(),
		{Name: "algorithm", Type: schema.String, Default: "round-robin",
			OneOf: []any{"consistent-hashing", "least-connections", "round-robin", "latency", "sticky-sessions"}},
		{Name: "hash_on", Type: schema.String, Default: "none", OneOf: hashSources("")},
		{Name: "hash_fallback", Type: schema.String, Default: "none", OneOf: hashSources("")},
		schema.HeaderName("hash_on_header"),
		schema.HeaderName("hash_fallback_header"),
		schema.CookieName("hash_on_cookie"),
		withDefault(schema.Path("hash_on_cookie_path"), "/"),
		{Name: "hash_on_query_arg", Type: schema.String},
		{Name: "hash_fallback_query_arg", Type: schema.String},
		{Name: "hash_on_uri_capture", Type: schema.String},
		{Name: "hash_fallback_uri_capture", Type: schema.String},
		{Name: "slots", Type: schema.Integer, Default: 10000, Between: &[2]float64{10, 1 << 16}},
		{Name: "healthchecks", Type: schema.RecordT, Fields: []schema.Field{
			{Name: "active", Type: schema.RecordT, Fields: []schema.Field{
				checkType(),
				seconds("timeout", 1),
				{Name: "concurrency", Type: schema.Integer, Default: 10, Between: &[2]float64{1, 1 << 31}},
				withDefault(schema.Path("http_path"), "/"),
				schema.SNI("https_sni"),
				{Name: "https_verify_certificate", Type: schema.Boolean, Required: true, Default: true},
				schema.Headers("headers"),
				{Name: "healthy", Type: schema.RecordT, Fields: []schema.Field{
					seconds("interval", 0), statuses(200, 302), counter("successes"),
				}},
				{Name: "unhealthy", Type: schema.RecordT, Fields: []schema.Field{
					seconds("interval", 0), statuses(429, 404, 500, 501, 502, 503, 504, 505),
					counter("tcp_failures"), counter("timeouts"), counter("http_failures"),
				}},
			}},
			{Name: "passive", Type: schema.RecordT, Fields: []schema.Field{
				checkType(),
				{Name: "healthy", Type: schema.RecordT, Fields: []schema.Field{
					statuses(200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308),
					counter("successes"),
				}},
				{Name: "unhealthy", Type: schema.RecordT, Fields: []schema.Field{
					statuses(429, 500, 503),
					counter("tcp_failures"), counter("timeouts"), counter("http_failures"),
				}},
			}},
			{Name: "threshold", Type: schema.Number, Default: 0, Between: &[2]float64{0, 100}},
		}},
		schema.Tags(),
		schema.HostWithPort("host_header"),
		{Name: "client_certificate", Type: schema.Foreign, Ref: "certificates", OnDelete: schema.Restrict},
		{Name: "use_srv_name", Type: schema.Boolean, Default: false},
		schema.CookieName("sticky_sessions_cookie"),
		schema.Path("sticky_sessions_cookie_path"), // null means "/": a default here would be in every upstream, where clients of Kong 3.9 expect none
		circuitBreaker(),
	},
	// Order counts: what algorithm makes of hash_on is what hash_on is then asked about (Kong).
	Shorthands: []schema.Shorthand{
		{Name: "algorithm", Type: schema.String, Expand: algorithmWithoutHash},
		{Name: "hash_on", Type: schema.String, Expand: hashWithAlgorithm},
	},
	Checks: []schema.Check{
		hashNeeds("hash_on", "header", "hash_on_header"),
		hashNeeds("hash_fallback", "header", "hash_fallback_header"),
		hashNeeds("hash_on", "cookie", "hash_on_cookie"),
		hashNeeds("hash_fallback", "cookie", "hash_on_cookie"),
		fallbacks("none", "none"),
		fallbacks("cookie", "none"), // a missing cookie is made, so there is nothing to fall back from
		fallbacks("consumer", hashSources("consumer")...),
		fallbacks("ip", hashSources("ip")...),
		fallbacks("path", "none", "consumer", "header", "cookie", "query_arg", "ip", "uri_capture"), // an order of its own in Kong's message
		schema.Distinct{"hash_on_header", "hash_fallback_header"},
		hashNeeds("hash_on", "query_arg", "hash_on_query_arg"),
		hashNeeds("hash_fallback", "query_arg", "hash_fallback_query_arg"),
		schema.Distinct{"hash_on_query_arg", "hash_fallback_query_arg"},
		hashNeeds("hash_on", "uri_capture", "hash_on_uri_capture"),
		hashNeeds("hash_fallback", "uri_capture", "hash_fallback_uri_capture"),
		schema.Distinct{"hash_on_uri_capture", "hash_fallback_uri_capture"},
		schema.Conditional{IfField: "algorithm", IfMatch: schema.Field{Equal: "sticky-sessions"},
			ThenField: "sticky_sessions_cookie", ThenMatch: schema.Field{Required: true}},
	},
}}

// circuitBreaker is a field of Concord's own. It is null unless it is set.
func circuitBreaker() schema.Field {
	whole := func(name string, def int, from float64) schema.Field {
		return schema.Field{Name: name, Type: schema.Integer, Default: def, Between: &[2]float64{from, 1 << 30}}
	}
	percent := func(name string, def int) schema.Field {
		return schema.Field{Name: name, Type: schema.Number, Default: def, Between: &[2]float64{0, 100}}
	}
	positive := func(name string, def int) schema.Field {
		return schema.Field{Name: name, Type: schema.Number, Default: def, GT: new(float64), Between: &[2]float64{0, 65535}}
	}
	return schema.Field{Name: "circuit_breaker", Type: schema.RecordT, Nullable: true,
		Description: "Takes targets out for a while whose requests fail, and bounds what the upstream is asked to do at once. null: off.",
		Fields: []schema.Field{
			whole("consecutive_errors", 5, 0), percent("error_rate", 0), whole("min_requests", 20, 1), positive("window", 10),
			statuses(500, 502, 503, 504),
			positive("base_ejection_time", 30), positive("max_ejection_time", 300), percent("max_ejection_percent", 50),
			whole("half_open_requests", 1, 1), whole("half_open_successes", 1, 1),
			whole("max_requests", 0, 0), whole("max_target_requests", 0, 0),
			whole("max_pending_connections", 0, 0), whole("max_target_pending_connections", 0, 0),
		}}
}

// hashSources lists what a hash may be made of, in the order of Kong's messages, without one.
func hashSources(without string) []any {
	all := []any{"none", "consumer", "ip", "header", "cookie", "path", "query_arg", "uri_capture"}
	list := all[:0]
	for _, s := range all {
		if s != without {
			list = append(list, s)
		}
	}
	return list
}

func checkType() schema.Field {
	return schema.Field{Name: "type", Type: schema.String, Default: "http", OneOf: []any{"tcp", "http", "https", "grpc", "grpcs"}}
}

func seconds(name string, def any) schema.Field {
	return schema.Field{Name: name, Type: schema.Number, Default: def, Between: &[2]float64{0, 65535}}
}

func counter(name string) schema.Field {
	return schema.Field{Name: name, Type: schema.Integer, Default: 0, Between: &[2]float64{0, 255}}
}

func statuses(def ...int) schema.Field {
	return schema.Field{Name: "http_statuses", Type: schema.Array, Default: def,
		Elem: &schema.Field{Type: schema.Integer, Between: &[2]float64{100, 999}}}
}

// hashNeeds demands the field that says which header, cookie, argument or capture a source takes.
func hashNeeds(field, source, then string) schema.Check {
	return schema.Conditional{IfField: field, IfMatch: schema.Field{Equal: source},
		ThenField: then, ThenMatch: schema.Field{Required: true}}
}

// fallbacks limits hash_fallback for one value of hash_on.
func fallbacks(hashOn string, allowed ...any) schema.Check {
	return schema.Conditional{IfField: "hash_on", IfMatch: schema.Field{Equal: hashOn},
		ThenField: "hash_fallback", ThenMatch: schema.Field{OneOf: allowed}}
}

func algorithmWithoutHash(v any, _ schema.Record) (schema.Record, schema.Errors) {
	if v == "least-connections" || v == "latency" || v == "sticky-sessions" {
		return schema.Record{"algorithm": v, "hash_on": nil}, nil
	}
	return schema.Record{"algorithm": v}, nil
}

func hashWithAlgorithm(v any, _ schema.Record) (schema.Record, schema.Errors) {
	switch v {
	case nil:
		return schema.Record{"hash_on": "none"}, nil
	case "none":
		return schema.Record{"hash_on": v, "algorithm": "round-robin"}, nil
	}
	return schema.Record{"hash_on": v, "algorithm": "consistent-hashing"}, nil
}

// checkUpstreamName accepts what can be the host of a service and is no address.
func checkUpstreamName(v any) string {
	name, _ := v.(string)
	host, port, ok := splitHostPort(name)
	switch {
	case !ok:
		return "Invalid name ('" + name + "'); must be a valid hostname"
	case strings.Contains(host, ":") || isIPv4(host):
		return "Invalid name ('" + name + "'); no ip addresses allowed"
	case port >= 0:
		return "Invalid name ('" + name + "'); no port allowed"
	}
	return ""
}

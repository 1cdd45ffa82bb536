package ratelimiting

import (
	"math"
	"strconv"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/ratelimit"
)

// info describes the plugin. The order of the checks decides which text a client sees first; it is Kong's.
func info() plugin.Info {
	names := make([]string, ratelimit.Periods)
	fields := make([]schema.Field, ratelimit.Periods, 20)
	for p := range ratelimit.Period(ratelimit.Periods) {
		names[p] = "config." + p.String()
		fields[p] = schema.Field{Name: p.String(), Type: schema.Number, GT: new(0.0), Description: "Requests per " + p.String() + "."}
	}
	headerName, path := schema.HeaderName("header_name"), schema.Path("path")
	headerName.Description = "The header whose value is limited, with limit_by header."
	path.Description = "The path that is limited, with limit_by path."
	fields = append(fields,
		schema.Field{Name: "limit_by", Type: schema.String, Default: "consumer",
			OneOf:       []any{"consumer", "credential", "ip", "service", "header", "path"},
			Description: "What has these limits. A request that does not have it is limited by its address."},
		headerName,
		path,
		schema.Field{Name: "policy", Type: schema.String, Default: "local", LenMin: new(0), OneOf: []any{"local", "cluster", "redis"},
			Description: "Where requests are counted: local, on each node by itself."},
		schema.Field{Name: "fault_tolerant", Type: schema.Boolean, Required: true, Default: true,
			Description: "Whether requests pass when they cannot be counted; else they are answered with 500."},
		schema.Field{Name: "redis", Type: schema.RecordT, Fields: redis(), Description: "The server of policy redis."},
		schema.Field{Name: "hide_client_headers", Type: schema.Boolean, Required: true, Default: false,
			Description: "Whether responses do not tell limits and what remains of them."},
		schema.Field{Name: "error_code", Type: schema.Number, Default: 429, GT: new(0.0), Check: errorStatus,
			Description: "The status of refused requests."},
		schema.Field{Name: "error_message", Type: schema.String, Default: "API rate limit exceeded",
			Description: "The message to refused requests."},
		schema.Field{Name: "sync_rate", Type: schema.Number, Required: true, Default: -1,
			Description: "How often counts are exchanged with redis, in seconds; -1: with every request."},
	)
	config := schema.Field{Fields: fields, Check: checkConfig}
	for _, f := range redis() {
		config.Shorthands = append(config.Shorthands, schema.Shorthand{
			Name: "redis_" + f.Name, Type: f.Type, ReplacedWith: []string{"redis", f.Name}, Rule: schema.Field{LenMin: f.LenMin},
		})
	}
	return plugin.Info{
		Name: "rate-limiting", Priority: 910, Config: config,
		Checks: []schema.Check{
			schema.AtLeastOneOf(names),
			needs("policy", "redis", "redis.host"), needs("policy", "redis", "redis.port"), needs("policy", "redis", "redis.timeout"),
			needs("limit_by", "header", "header_name"), needs("limit_by", "path", "path"),
			schema.Custom{Paths: []string{"config.policy", "config.redis.host", "config.redis.port", "config.redis.timeout"}, Run: checkPolicy},
		},
	}
}

func redis() []schema.Field {
	port, timeout := schema.Port("port"), schema.Timeout("timeout")
	port.Default, timeout.Default = 6379, 2000
	return []schema.Field{
		schema.Host("host"),
		port,
		timeout,
		{Name: "username", Type: schema.String, Vault: true},
		{Name: "password", Type: schema.String, Vault: true, Secret: true, LenMin: new(0)},
		{Name: "database", Type: schema.Integer, Default: 0},
		{Name: "ssl", Type: schema.Boolean, Default: false},
		{Name: "ssl_verify", Type: schema.Boolean, Default: false},
		schema.SNI("server_name"),
	}
}

// needs demands a field when another has a value.
func needs(field, value, then string) schema.Check {
	return schema.Conditional{
		IfField: "config." + field, IfMatch: schema.Field{Equal: value},
		ThenField: "config." + then, ThenMatch: schema.Field{Required: true},
	}
}

// checkConfig is Kong's rule over the whole configuration, which reports one violation at a time.
func checkConfig(v any) string {
	c, _ := v.(schema.Record)
	for i := range ratelimit.Period(ratelimit.Periods) {
		for j := i + 1; j < ratelimit.Periods; j++ {
			shorter, ok := c[i.String()].(float64)
			longer, also := c[j.String()].(float64)
			if ok && also && longer < shorter {
				return "The limit for " + j.String() + "(" + oneDecimal(longer) + ") cannot be lower than the limit for " +
					i.String() + "(" + oneDecimal(shorter) + ")"
			}
		}
	}
	rate, _ := c["sync_rate"].(float64)
	switch {
	case rate == -1:
	case c["policy"] != "redis":
		return "sync_rate can only be used with the redis policy"
	case rate < 0.02:
		return "sync_rate must be greater than 0.02, or -1 to disable"
	}
	return ""
}

func oneDecimal(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }

// checkPolicy refuses what would not limit as its name says. Counting on each node instead would let every node admit the
// whole limit.
func checkPolicy(rec schema.Record) schema.Errors {
	config, _ := rec["config"].(schema.Record)
	text := ""
	switch config["policy"] {
	case "cluster":
		text = "limits that all nodes share (cluster) are not built yet; use local, where each node counts by itself: " +
			"divide the limits by the number of nodes"
	case "redis":
		text = "redis is not supported; use local, where each node counts by itself: divide the limits by the number of nodes"
	default:
		return nil
	}
	return schema.Errors{"config": schema.Errors{"policy": text}}
}

// errorStatus refuses what Kong accepts and then fails on, with 500 instead of each refusal.
func errorStatus(v any) string {
	if f, _ := v.(float64); f < 400 || f > 599 || f != math.Trunc(f) {
		return "must be the status of an error, an integer from 400 to 599"
	}
	return ""
}

package entity_test

import (
	"fmt"
	"regexp"
	"strconv"

	"concord/fsm/schema"
)

// testPlugins are plugins that use every part of the mechanism, shaped after Kong's.
func testPlugins(name string) (*schema.Schema, bool) {
	s, ok := pluginSchemas[name]
	return s, ok
}

var periods = []string{"second", "minute", "hour", "day", "month", "year"}

var pluginSchemas = map[string]*schema.Schema{
	"jwt": {Name: "jwt", Fields: []schema.Field{schema.NoConsumer(), schema.Protocols(schema.HTTPProtocols()...), config(
		schema.Field{Name: "uri_param_names", Type: schema.Set, Default: []any{"jwt"}, Elem: &schema.Field{Type: schema.String}},
		schema.Field{Name: "claims_to_verify", Type: schema.Set, Elem: &schema.Field{Type: schema.String, OneOf: []any{"exp", "nbf"}}},
		schema.Field{Name: "maximum_expiration", Type: schema.Number, Default: 0, Between: &[2]float64{0, 31536000}},
	)}, Checks: []schema.Check{schema.Conditional{IfField: "config.maximum_expiration", IfMatch: schema.Field{GT: new(0.0)},
		ThenField: "config.claims_to_verify", ThenMatch: schema.Field{Contains: "exp"}}}},

	"key-auth": {Name: "key-auth", Fields: []schema.Field{schema.NoConsumer(), schema.Protocols(schema.HTTPProtocols()...), config(
		schema.Field{Name: "key_names", Type: schema.Array, Required: true, Default: []any{"apikey"}, Elem: new(schema.HeaderName(""))},
		schema.Field{Name: "hide_credentials", Type: schema.Boolean, Required: true, Default: false},
	)}},

	"acl": {Name: "acl", Fields: []schema.Field{schema.NoConsumer(), config(
		schema.Field{Name: "allow", Type: schema.Array, Elem: &schema.Field{Type: schema.String}},
		schema.Field{Name: "deny", Type: schema.Array, Elem: &schema.Field{Type: schema.String}},
	)}, Checks: []schema.Check{schema.OnlyOneOf{"config.allow", "config.deny"}, schema.AtLeastOneOf{"config.allow", "config.deny"}}},

	"rate-limiting": {Name: "rate-limiting", Fields: []schema.Field{rateLimiting()}, Checks: []schema.Check{
		schema.AtLeastOneOf{"config.second", "config.minute", "config.hour", "config.day", "config.month", "config.year"},
		needsRedis("host"), needsRedis("port"), needsRedis("timeout"),
		schema.Conditional{IfField: "config.limit_by", IfMatch: schema.Field{OneOf: []any{"header"}},
			ThenField: "config.header_name", ThenMatch: schema.Field{Required: true}},
	}},

	"oauth2": {Name: "oauth2", Fields: []schema.Field{oauth2()}},

	"cors": {Name: "cors", Fields: []schema.Field{config(
		schema.Field{Name: "origins", Type: schema.Array, Elem: &schema.Field{Type: schema.String, Check: func(v any) string {
			if _, err := regexp.Compile(v.(string)); err != nil {
				return "'" + v.(string) + "' is not a valid regex"
			}
			return ""
		}}},
	)}},

	"request-transformer": {Name: "request-transformer", Fields: []schema.Field{config(pairs("add"), pairs("append"))}},
}

func config(fields ...schema.Field) schema.Field {
	return schema.Field{Name: "config", Type: schema.RecordT, Fields: fields}
}

func pairs(name string) schema.Field {
	list := func(name string) schema.Field {
		return schema.Field{Name: name, Type: schema.Array, Required: true, Default: []any{}, Elem: &schema.Field{Type: schema.String, Pattern: "^[^:]+:.*$"}}
	}
	return schema.Field{Name: name, Type: schema.RecordT, Fields: []schema.Field{list("headers"), list("body")}}
}

func needsRedis(field string) schema.Check {
	return schema.Conditional{IfField: "config.policy", IfMatch: schema.Field{OneOf: []any{"redis"}},
		ThenField: "config.redis." + field, ThenMatch: schema.Field{Required: true}}
}

func rateLimiting() schema.Field {
	redis := []schema.Field{
		schema.Host("host"),
		{Name: "port", Type: schema.Integer, Default: 6379, Between: &[2]float64{0, 65535}},
		{Name: "timeout", Type: schema.Integer, Default: 2000, Between: &[2]float64{0, 1<<31 - 2}},
		{Name: "password", Type: schema.String, Secret: true, Vault: true, LenMin: new(0)},
	}
	f := config()
	for _, p := range periods {
		f.Fields = append(f.Fields, schema.Field{Name: p, Type: schema.Number, GT: new(0.0)})
	}
	f.Fields = append(f.Fields,
		schema.Field{Name: "limit_by", Type: schema.String, Default: "consumer", OneOf: []any{"consumer", "header"}},
		schema.HeaderName("header_name"),
		schema.Field{Name: "policy", Type: schema.String, Default: "local", LenMin: new(0), OneOf: []any{"local", "cluster", "redis"}},
		schema.Field{Name: "redis", Type: schema.RecordT, Fields: redis},
		schema.Field{Name: "sync_rate", Type: schema.Number, Required: true, Default: -1},
	)
	for _, r := range redis {
		f.Shorthands = append(f.Shorthands, schema.Shorthand{Name: "redis_" + r.Name, Type: r.Type, ReplacedWith: []string{"redis", r.Name},
			Rule: schema.Field{LenMin: r.LenMin}})
	}
	f.Check = func(v any) string {
		rec, lower := v.(schema.Record), ""
		for _, p := range periods {
			limit, ok := rec[p].(float64)
			if !ok {
				continue
			}
			if lower != "" && limit < rec[lower].(float64) {
				show := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
				return fmt.Sprintf("The limit for %s(%s) cannot be lower than the limit for %s(%s)", p, show(limit), lower, show(rec[lower].(float64)))
			}
			lower = p
		}
		return ""
	}
	return f
}

// rateLimitingConfig is the expected config with some values set.
func rateLimitingConfig(set, redis string) string {
	rec, err := schema.Decode([]byte(`{"second":null,"minute":null,"hour":null,"day":null,"month":null,"year":null,"limit_by":"consumer","header_name":null,
		"policy":"local","sync_rate":-1,"redis":` + merged(`{"host":null,"port":6379,"timeout":2000,"password":null}`, "{"+redis+"}") + `}`))
	if err != nil {
		panic(err)
	}
	text, err := schema.Encode(rec)
	if err != nil {
		panic(err)
	}
	return merged(string(text), "{"+set+"}")
}

func merged(base, over string) string {
	a, err := schema.Decode([]byte(base))
	if err != nil {
		panic(err)
	}
	b, err := schema.Decode([]byte(over))
	if err != nil {
		panic(err)
	}
	for k, v := range b {
		a[k] = v
	}
	text, err := schema.Encode(a)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func oauth2() schema.Field {
	grants := []string{"enable_authorization_code", "enable_implicit_grant", "enable_client_credentials", "enable_password_grant"}
	f := config(
		schema.Field{Name: "scopes", Type: schema.Array, Elem: &schema.Field{Type: schema.String}},
		schema.Field{Name: "mandatory_scope", Type: schema.Boolean, Required: true, Default: false},
		schema.Field{Name: "provision_key", Type: schema.String, Required: true, Auto: true, AutoKind: schema.AutoRandom, Secret: true},
	)
	for _, g := range grants {
		f.Fields = append(f.Fields, schema.Field{Name: g, Type: schema.Boolean, Required: true, Default: false})
	}
	f.Checks = []schema.Check{schema.Conditional{IfField: "mandatory_scope", IfMatch: schema.Field{Equal: true},
		ThenField: "scopes", ThenMatch: schema.Field{Required: true}}}
	f.Check = func(v any) string {
		for _, g := range grants {
			if v.(schema.Record)[g] == true {
				return ""
			}
		}
		return "at least one of these fields must be true: enable_authorization_code, enable_implicit_grant, enable_client_credentials, enable_password_grant"
	}
	return f
}

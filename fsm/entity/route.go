package entity

import (
	"strings"

	"concord/fsm/schema"
)

var routes = Def{Table: 2, New: func() any { return new(Route) }, Schema: &schema.Schema{
	Name:        "routes",
	EndpointKey: "name",
	SubKey:      "protocols",
	Subs:        routeRules,
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		schema.UTF8Name("name"),
		{Name: "protocols", Type: schema.Set, Required: true, Default: []any{"http", "https"}, LenMin: new(1),
			Elem:     &schema.Field{Type: schema.String, OneOf: schema.AllProtocols()},
			Disjoint: [][]string{{"http", "https"}, {"tcp", "tls", "udp"}, {"tls_passthrough"}, {"grpc", "grpcs"}}},
		{Name: "https_redirect_status_code", Type: schema.Integer, Required: true, Default: 426, OneOf: []any{426, 301, 302, 307, 308}},
		{Name: "strip_path", Type: schema.Boolean, Required: true, Default: true},
		{Name: "preserve_host", Type: schema.Boolean, Required: true, Default: false},
		{Name: "request_buffering", Type: schema.Boolean, Required: true, Default: true},
		{Name: "response_buffering", Type: schema.Boolean, Required: true, Default: true},
		schema.Tags(),
		{Name: "service", Type: schema.Foreign, Ref: "services", OnDelete: schema.Restrict},
		{Name: "snis", Type: schema.Set, Elem: new(schema.WildcardHost(""))},
		addresses("sources"),
		addresses("destinations"),
		{Name: "methods", Type: schema.Set, Elem: new(schema.Method(""))},
		{Name: "hosts", Type: schema.Array, Elem: new(schema.RouteHost(""))},
		{Name: "paths", Type: schema.Array, Elem: new(schema.RoutePath(""))},
		routeHeaders(),
		{Name: "regex_priority", Type: schema.Integer, Default: 0},
		{Name: "path_handling", Type: schema.String, Default: "v0", OneOf: []any{"v0", "v1"}},
	},
	Checks: []schema.Check{
		schema.Conditional{
			IfField:   "protocols",
			IfMatch:   schema.Field{Elem: &schema.Field{Type: schema.String, NotOneOf: []any{"grpcs", "https", "tls", "tls_passthrough"}}},
			ThenField: "snis",
			ThenMatch: schema.Field{LenEq: new(0)},
			Err:       "'snis' can only be set when 'protocols' is 'grpcs', 'https', 'tls' or 'tls_passthrough'",
		},
	},
}}

// addresses is a set of address and port pairs of stream routes.
func addresses(name string) schema.Field {
	return schema.Field{Name: name, Type: schema.Set, Elem: &schema.Field{
		Type:   schema.RecordT,
		Fields: []schema.Field{schema.IPOrCIDR("ip"), schema.Port("port")},
		Checks: []schema.Check{schema.AtLeastOneOf{"ip", "port"}},
	}}
}

func routeHeaders() schema.Field {
	f := schema.Headers("headers")
	f.Keys.MatchNone = []schema.Match{{
		Pattern: "^(?i:host)$",
		Err:     "cannot contain 'host' header, which must be specified in the 'hosts' attribute",
	}}
	// A single value that begins with "~*" is a regular expression.
	f.Elem.Check = func(v any) string {
		if l, _ := v.([]any); len(l) == 1 {
			if re, ok := strings.CutPrefix(l[0].(string), "~*"); ok {
				return schema.CheckRegex(re)
			}
		}
		return ""
	}
	return f
}

// routeRules are the rules that depend on the first protocol of a route.
func routeRules(protocol string) (*schema.Schema, bool) {
	switch protocol {
	case "http", "https":
		return httpRoutes, true
	case "grpc", "grpcs":
		return grpcRoutes, true
	case "tcp", "tls", "udp", "tls_passthrough":
		return streamRoutes, true
	}
	return nil, false
}

var httpRoutes = &schema.Schema{
	Name: "http",
	Fields: []schema.Field{
		forbidden(addresses("sources"), "'http' or 'https'"),
		forbidden(addresses("destinations"), "'http' or 'https'"),
	},
	Checks: []schema.Check{needOneOf("https", "http", "methods", "hosts", "headers", "paths")},
}

var grpcRoutes = &schema.Schema{
	Name: "grpc",
	Fields: []schema.Field{
		{Name: "strip_path", Type: schema.Boolean, Required: true, Default: false, NotEqual: true,
			Err: "cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs'"},
		forbidden(schema.Field{Name: "methods", Type: schema.Set, Elem: new(schema.Method(""))}, "'grpc' or 'grpcs'"),
		forbidden(addresses("sources"), "'grpc' or 'grpcs'"),
		forbidden(addresses("destinations"), "'grpc' or 'grpcs'"),
	},
	Checks: []schema.Check{needOneOf("grpcs", "grpc", "hosts", "headers", "paths")},
}

var streamRoutes = &schema.Schema{
	Name: "tcp",
	Fields: []schema.Field{
		forbidden(schema.Field{Name: "methods", Type: schema.Set, Elem: new(schema.Method(""))}, streamProtocols),
		forbidden(schema.Field{Name: "hosts", Type: schema.Array, Elem: new(schema.RouteHost(""))}, streamProtocols),
		forbidden(schema.Field{Name: "paths", Type: schema.Array, Elem: new(schema.RoutePath(""))}, streamProtocols),
		forbidden(routeHeaders(), streamProtocols),
	},
	Checks: []schema.Check{
		schema.ConditionalAtLeastOneOf{
			IfField: "protocols",
			IfMatch: schema.Field{Elem: &schema.Field{Type: schema.String, OneOf: []any{"tcp", "tls", "udp"}}},
			Then:    []string{"sources", "destinations", "snis"},
			Err:     "must set one of %s when 'protocols' is 'tcp', 'tls' or 'udp'",
		},
		schema.ConditionalAtLeastOneOf{
			IfField: "protocols",
			IfMatch: schema.Field{Elem: &schema.Field{Type: schema.String, OneOf: []any{"tls_passthrough"}}},
			Then:    []string{"snis"},
			Err:     "must set snis when 'protocols' is 'tls_passthrough'",
		},
	},
}

const streamProtocols = "'tcp', 'tls', 'tls_passthrough' or 'udp'"

func forbidden(f schema.Field, protocols string) schema.Field {
	f.Null = true
	f.Err = "cannot set '" + f.Name + "' when 'protocols' is " + protocols
	return f
}

// needOneOf demands a matching rule of a route: any of the fields, or of a route with the secure protocol also snis.
func needOneOf(secure, plain string, fields ...string) schema.Check {
	return schema.ConditionalAtLeastOneOf{
		IfField:   "protocols",
		IfMatch:   schema.Field{Contains: secure},
		Then:      append(append([]string{}, fields...), "snis"),
		Err:       "must set one of %s when 'protocols' is '" + secure + "'",
		ElseMatch: &schema.Field{Contains: plain},
		Else:      fields,
		ElseErr:   "must set one of %s when 'protocols' is '" + plain + "'",
	}
}

package entity

import "concord/fsm/schema"

var services = Def{Table: 1, New: func() any { return new(Service) }, Schema: &schema.Schema{
	Name:        "services",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		schema.UTF8Name("name"),
		{Name: "retries", Type: schema.Integer, Default: 5, Between: &[2]float64{0, 32767}},
		{Name: "protocol", Type: schema.String, Required: true, Default: "http", OneOf: schema.AllProtocols()},
		required(schema.Host("host")),
		required(withDefault(schema.Port("port"), 80)),
		schema.Path("path"),
		serviceTimeout("connect_timeout"),
		serviceTimeout("write_timeout"),
		serviceTimeout("read_timeout"),
		schema.Tags(),
		{Name: "client_certificate", Type: schema.Foreign, Ref: "certificates", OnDelete: schema.Restrict},
		{Name: "tls_verify", Type: schema.Boolean},
		{Name: "tls_verify_depth", Type: schema.Integer, Between: &[2]float64{0, 64}},
		{Name: "ca_certificates", Type: schema.Array, Elem: &schema.Field{Type: schema.String, UUID: true, Ref: "ca_certificates"}},
		{Name: "enabled", Type: schema.Boolean, Required: true, Default: true},
	},
	Shorthands: []schema.Shorthand{schema.ServiceURL()},
	Checks: []schema.Check{
		schema.Conditional{IfField: "protocol", IfMatch: schema.Field{OneOf: []any{"tcp", "tls", "udp", "grpc", "grpcs"}},
			ThenField: "path", ThenMatch: schema.Field{Null: true}},
		tlsOnly("client_certificate"),
		tlsOnly("tls_verify"),
		tlsOnly("tls_verify_depth"),
		tlsOnly("ca_certificates"),
	},
}}

// serviceTimeout is in milliseconds and, unlike others, not zero.
func serviceTimeout(name string) schema.Field {
	return schema.Field{Name: name, Type: schema.Integer, Default: 60000, Between: &[2]float64{1, 1<<31 - 2}}
}

// tlsOnly forbids a field of services that do not speak TLS.
func tlsOnly(field string) schema.Check {
	return schema.Conditional{IfField: "protocol", IfMatch: schema.Field{NotOneOf: []any{"https", "tls"}},
		ThenField: field, ThenMatch: schema.Field{Null: true}}
}

func required(f schema.Field) schema.Field {
	f.Required = true
	return f
}

func withDefault(f schema.Field, v any) schema.Field {
	f.Default = v
	return f
}

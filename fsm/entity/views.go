package entity

import "concord/fsm/schema"

// Views are the schemas of what the Admin API knows as an entity and no table holds: a tag of an entity, and what Kong's clients ask the
// schema of although there is one workspace, and there are no WebAssembly filters, data planes without a control plane of their own and parameters.
func Views() []*schema.Schema {
	return []*schema.Schema{tags, workspaces, filterChains, dataPlanes, parameters}
}

var tags = &schema.Schema{
	Name:        "tags",
	EndpointKey: "tag",
	Fields: []schema.Field{
		func() schema.Field { f := *schema.Tags().Elem; f.Name = "tag"; return required(f) }(),
		{Name: "entity_name", Type: schema.String, Required: true},
		{Name: "entity_id", Type: schema.String, UUID: true, Required: true},
	},
}

var workspaces = &schema.Schema{
	Name:        "workspaces",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		func() schema.Field {
			f := required(schema.UTF8Name("name"))
			f.NotOneOf = []any{"workspaces", "consumers", "certificates", "services", "routes", "snis", "upstreams", "targets", "plugins", "tags", "ca_certificates",
				"clustering_data_planes", "parameters", "vaults", "key_sets", "keys", "filter_chains"} // Kong's core entities: a name is the first segment of a URL
			return f
		}(),
		{Name: "comment", Type: schema.String},
		schema.CreatedAt(),
		schema.UpdatedAt(),
		{Name: "meta", Type: schema.RecordT},
		{Name: "config", Type: schema.RecordT},
	},
}

var filterChains = &schema.Schema{
	Name:        "filter_chains",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		schema.UTF8Name("name"),
		{Name: "enabled", Type: schema.Boolean, Required: true, Default: true},
		{Name: "route", Type: schema.Foreign, Ref: "routes", OnDelete: schema.Cascade, Unique: true},
		{Name: "service", Type: schema.Foreign, Ref: "services", OnDelete: schema.Cascade, Unique: true},
		{Name: "filters", Type: schema.Array, Required: true, LenMin: new(1), Elem: &schema.Field{Type: schema.RecordT, Fields: []schema.Field{
			{Name: "name", Type: schema.String, Required: true, OneOf: []any{}, Err: "no such filter"},
			{Name: "enabled", Type: schema.Boolean, Required: true, Default: true},
			{Name: "config", Type: "json"},
		}}},
		schema.CreatedAt(),
		schema.UpdatedAt(),
		schema.Tags(),
	},
	Checks: []schema.Check{schema.MutuallyExclusive{"service", "route"}, schema.AtLeastOneOf{"service", "route"}},
}

var dataPlanes = &schema.Schema{
	Name: "clustering_data_planes",
	TTL:  true,
	Fields: []schema.Field{
		required(schema.ID()),
		func() schema.Field { f := schema.UpdatedAt(); f.Name = "last_seen"; return f }(),
		schema.UpdatedAt(),
		required(schema.IP("ip")),
		{Name: "config_hash", Type: schema.String, LenEq: new(32)},
		required(schema.Host("hostname")),
		{Name: "version", Type: schema.String, MatchAny: []string{`^\d`}, MatchAnyErr: "invalid version number: must be in format of X.Y.Z",
			MatchNone: []schema.Match{{Pattern: `\.\.`, Err: "must not have empty version segments"}}},
		{Name: "sync_status", Type: schema.String, Required: true, Default: "unknown", OneOf: []any{"unknown", "normal", "kong_version_incompatible",
			"plugin_set_incompatible", "plugin_version_incompatible", "filter_set_incompatible"}},
		{Name: "labels", Type: schema.Map, Keys: &schema.Field{Type: schema.String}, Elem: &schema.Field{Type: schema.String}},
		{Name: "cert_details", Type: schema.RecordT, Fields: []schema.Field{{Name: "expiry_timestamp", Type: schema.Number, Timestamp: true}}},
		{Name: "rpc_capabilities", Type: schema.Set, Elem: &schema.Field{Type: schema.String}},
	},
}

var parameters = &schema.Schema{
	Name: "parameters",
	Fields: []schema.Field{
		schema.CreatedAt(),
		{Name: "key", Type: schema.String, Required: true, Unique: true},
		{Name: "value", Type: schema.String, Required: true},
	},
}

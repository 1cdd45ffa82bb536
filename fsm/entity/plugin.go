package entity

import "concord/fsm/schema"

var plugins = Def{Table: 4, New: func() any { return new(Plugin) }, Schema: &schema.Schema{
	Name:        "plugins",
	EndpointKey: "instance_name",
	SubKey:      "name",
	SubUnknown:  "plugin '%s' not enabled; add it to the 'plugins' configuration property",
	Unique:      [][]string{{"name", "route", "service", "consumer", "consumer_group"}},
	Fields: []schema.Field{
		schema.ID(),
		{Name: "name", Type: schema.String, Required: true},
		schema.UTF8Name("instance_name"),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		{Name: "route", Type: schema.Foreign, Ref: "routes", OnDelete: schema.Cascade},
		{Name: "service", Type: schema.Foreign, Ref: "services", OnDelete: schema.Cascade},
		{Name: "consumer", Type: schema.Foreign, Ref: "consumers", OnDelete: schema.Cascade},
		{Name: "consumer_group", Type: schema.Foreign, Ref: ConsumerGroups, OnDelete: schema.Cascade, Since: GroupsLevel},
		{Name: "config", Type: schema.RecordT}, // of the plugin's own schema
		{Name: "protocols", Type: schema.Set, Required: true, Default: schema.HTTPProtocols(),
			Elem: &schema.Field{Type: schema.String, OneOf: schema.AllProtocols()}},
		{Name: "enabled", Type: schema.Boolean, Required: true, Default: true},
		schema.Tags(),
	},
	Checks: []schema.Check{schema.MutuallyExclusive{"consumer", "consumer_group"}},
}}

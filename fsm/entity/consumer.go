package entity

import "concord/fsm/schema"

var consumers = Def{Table: 3, New: func() any { return new(Consumer) }, Filters: []string{"custom_id"}, Schema: &schema.Schema{
	Name:        "consumers",
	EndpointKey: "username",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		{Name: "username", Type: schema.String, Unique: true},
		{Name: "custom_id", Type: schema.String, Unique: true},
		schema.Tags(),
	},
	Checks: []schema.Check{schema.AtLeastOneOf{"custom_id", "username"}},
}}

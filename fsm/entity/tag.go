package entity

import "concord/fsm/schema"

// Views are the schemas of what the Admin API shows as an entity and no table holds: a tag of an entity.
func Views() []*schema.Schema { return []*schema.Schema{tags} }

var tags = &schema.Schema{
	Name:        "tags",
	EndpointKey: "tag",
	Fields: []schema.Field{
		func() schema.Field { f := *schema.Tags().Elem; f.Name = "tag"; return required(f) }(),
		{Name: "entity_name", Type: schema.String, Required: true},
		{Name: "entity_id", Type: schema.String, UUID: true, Required: true},
	},
}

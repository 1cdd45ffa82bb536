package entity

import "concord/fsm/schema"

// KeySet is a named set of keys.
type KeySet struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Tags      []string `json:"tags"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
}

var keySets = Def{Table: 16, New: func() any { return new(KeySet) }, Collection: "key-sets", Schema: &schema.Schema{
	Name:        "key_sets",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		{Name: "name", Type: schema.String, Unique: true},
		schema.Tags(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
	},
}}

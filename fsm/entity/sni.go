package entity

import "concord/fsm/schema"

// SNI is a host name, with an optional "*" as its first or last character, for which a certificate is shown. "*" alone stands for all.
type SNI struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	CreatedAt   float64  `json:"created_at"`
	UpdatedAt   float64  `json:"updated_at"`
	Tags        []string `json:"tags"`
	Certificate Ref      `json:"certificate"`
}

var snis = Def{Table: 12, New: func() any { return new(SNI) }, Endpoints: NoOwnerEndpoint, Schema: &schema.Schema{
	Name:        "snis",
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		sniName(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		schema.Tags(),
		{Name: "certificate", Type: schema.Foreign, Ref: "certificates", Required: true, OnDelete: schema.Cascade},
	},
}}

func sniName() schema.Field {
	f := required(schema.WildcardHost("name"))
	f.Unique = true
	return f
}

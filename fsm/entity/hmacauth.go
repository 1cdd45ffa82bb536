package entity

import "concord/fsm/schema"

// HMACAuthCredential is a consumer's name and secret for signed requests.
type HMACAuthCredential struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	Consumer  Ref      `json:"consumer"`
	Username  string   `json:"username"`
	Secret    string   `json:"secret"`
	Tags      []string `json:"tags"`
}

var hmacAuthCredentials = Def{Table: 17, New: func() any { return new(HMACAuthCredential) }, Collection: "hmac-auths", Nested: "hmac-auth", Schema: &schema.Schema{
	Name:        "hmacauth_credentials",
	EndpointKey: "username",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "username", Type: schema.String, Required: true, Unique: true},
		{Name: "secret", Type: schema.String, Secret: true, Auto: true, AutoKind: schema.AutoRandom},
		schema.Tags(),
	},
}}

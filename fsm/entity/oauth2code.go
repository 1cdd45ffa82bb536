package entity

import "concord/fsm/schema"

// OAuth2AuthorizationCode is what an application exchanges for a token, once.
type OAuth2AuthorizationCode struct {
	ID                  string  `json:"id"`
	CreatedAt           float64 `json:"created_at"`
	Service             *Ref    `json:"service"`
	Credential          Ref     `json:"credential"`
	Code                string  `json:"code"`
	AuthenticatedUserID string  `json:"authenticated_userid"`
	Scope               string  `json:"scope"`
	Challenge           string  `json:"challenge"` // of PKCE (RFC 7636)
	ChallengeMethod     string  `json:"challenge_method"`
	Plugin              *Ref    `json:"plugin"` // that issued it
}

var oauth2AuthorizationCodes = Def{Table: 20, Runtime: true, New: func() any { return new(OAuth2AuthorizationCode) }, Endpoints: NoEndpoints, Schema: &schema.Schema{
	Name: "oauth2_authorization_codes",
	TTL:  true,
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		{Name: "service", Type: schema.Foreign, Ref: "services", OnDelete: schema.Cascade},
		{Name: "credential", Type: schema.Foreign, Ref: "oauth2_credentials", Required: true, OnDelete: schema.Cascade},
		{Name: "code", Type: schema.String, Secret: true, Unique: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "authenticated_userid", Type: schema.String},
		{Name: "scope", Type: schema.String},
		{Name: "challenge", Type: schema.String},
		{Name: "challenge_method", Type: schema.String, OneOf: []any{"S256"}},
		{Name: "plugin", Type: schema.Foreign, Ref: "plugins", OnDelete: schema.Cascade},
	},
}}

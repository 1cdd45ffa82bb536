package entity

import "concord/fsm/schema"

// OAuth2Token is an access token and, if it can be renewed, its refresh token. The row lives as long as the longer of the two.
type OAuth2Token struct {
	ID                  string  `json:"id"`
	CreatedAt           float64 `json:"created_at"` // the access token is valid for ExpiresIn from here
	Service             *Ref    `json:"service"`    // nil: of all services with global credentials
	Credential          Ref     `json:"credential"`
	TokenType           string  `json:"token_type"`
	ExpiresIn           int     `json:"expires_in"` // seconds, 0: never
	AccessToken         string  `json:"access_token"`
	RefreshToken        string  `json:"refresh_token"`
	AuthenticatedUserID string  `json:"authenticated_userid"`
	Scope               string  `json:"scope"` // separated by spaces
}

var oauth2Tokens = Def{Table: 19, Runtime: true, New: func() any { return new(OAuth2Token) }, Schema: &schema.Schema{
	Name:        "oauth2_tokens",
	EndpointKey: "access_token",
	TTL:         true,
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		{Name: "service", Type: schema.Foreign, Ref: "services", OnDelete: schema.Cascade},
		{Name: "credential", Type: schema.Foreign, Ref: "oauth2_credentials", Required: true, OnDelete: schema.Cascade},
		{Name: "token_type", Type: schema.String, Required: true, Default: "bearer", OneOf: []any{"bearer"}},
		{Name: "expires_in", Type: schema.Integer, Required: true},
		{Name: "access_token", Type: schema.String, Secret: true, Unique: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "refresh_token", Type: schema.String, Secret: true, Unique: true},
		{Name: "authenticated_userid", Type: schema.String},
		{Name: "scope", Type: schema.String},
	},
}}

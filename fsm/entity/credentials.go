package entity

import (
	"crypto/sha1" //nolint:gosec // Kong's stored form of basic-auth passwords
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"

	"concord/fsm/schema"
)

var jwtSecrets = Def{Table: 5, New: func() any { return new(JWTSecret) }, Collection: "jwts", Nested: "jwt", Schema: &schema.Schema{
	Name:        "jwt_secrets",
	EndpointKey: "key",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "key", Type: schema.String, Unique: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "secret", Type: schema.String, Secret: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "rsa_public_key", Type: schema.String},
		{Name: "algorithm", Type: schema.String, Default: "HS256", OneOf: []any{"HS256", "HS384", "HS512", "RS256", "RS384",
			"RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"}},
		schema.Tags(),
	},
	Checks: []schema.Check{schema.Conditional{
		// Kong lets ES* credentials pass without a key; they fail when used.
		IfField: "algorithm", IfMatch: schema.Field{Pattern: "^([RP]S(256|384|512)|EdDSA)$"},
		ThenField: "rsa_public_key", ThenMatch: schema.Field{Required: true, Check: checkPublicKey},
	}},
}}

// checkPublicKey accepts a public key in PEM form.
func checkPublicKey(v any) string {
	s, _ := v.(string)
	if block, _ := pem.Decode([]byte(s)); block != nil {
		if _, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			return ""
		}
		if _, err := x509.ParsePKCS1PublicKey(block.Bytes); err == nil {
			return ""
		}
	}
	return "invalid key"
}

var keyAuthCredentials = Def{Table: 6, New: func() any { return new(KeyAuthCredential) }, Collection: "key-auths", Nested: "key-auth", Schema: &schema.Schema{
	Name:        "keyauth_credentials",
	EndpointKey: "key",
	TTL:         true,
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "key", Type: schema.String, Secret: true, Unique: true, Auto: true, AutoKind: schema.AutoRandom},
		schema.Tags(),
	},
}}

var basicAuthCredentials = Def{Table: 7, New: func() any { return new(BasicAuthCredential) }, Collection: "basic-auths", Nested: "basic-auth", Schema: &schema.Schema{
	Name:        "basicauth_credentials",
	EndpointKey: "username",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "username", Type: schema.String, Required: true, Unique: true},
		{Name: "password", Type: schema.String, Required: true, Secret: true},
		schema.Tags(),
	},
}, Transform: digestPassword}

// digestPassword replaces a new password by its digest. A password equal to the stored digest is an unchanged one, as
// clients send it back; since the digest depends on the consumer it cannot move to another one.
func digestPassword(rec, current schema.Record) (schema.Record, error) {
	password, _ := rec["password"].(string)
	if current != nil && current["password"] == password {
		if consumerID(rec) == consumerID(current) {
			return rec, nil
		}
		return nil, schema.EntityError("all or none of these fields must be set: 'password', 'consumer.id'")
	}
	out := make(schema.Record, len(rec))
	for k, v := range rec {
		out[k] = v
	}
	out["password"] = PasswordDigest(password, consumerID(rec))
	return out, nil
}

func consumerID(rec schema.Record) string {
	ref, _ := rec["consumer"].(schema.Record)
	id, _ := ref["id"].(string)
	return id
}

// PasswordDigest is the stored form of a basic-auth password: hex SHA-1 of password and consumer id, as in Kong.
func PasswordDigest(password, consumerID string) string {
	sum := sha1.Sum([]byte(password + consumerID)) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

var acls = Def{Table: 8, New: func() any { return new(ACL) }, NestedKey: "group", Schema: &schema.Schema{
	Name:   "acls",
	Unique: [][]string{{"consumer", "group"}},
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "group", Type: schema.String, Required: true},
		schema.Tags(),
	},
}}

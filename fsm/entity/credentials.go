package entity

import (
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // Kong's stored form of basic-auth passwords
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"concord/fsm/schema"
)

var jwtSecrets = Def{Table: 5, New: func() any { return new(JWTSecret) }, Collection: "jwts", Nested: "jwt", Advise: adviseJWT, Schema: &schema.Schema{
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
	if _, err := ParsePublicKey(v.(string)); err != nil {
		return "invalid key"
	}
	return ""
}

// adviseJWT warns about what Kong accepts as well: keys that can be guessed, and the issuer that tokens will not name.
func adviseJWT(rec schema.Record) string {
	var advice []string
	algorithm, _ := rec["algorithm"].(string)
	switch {
	case strings.HasPrefix(algorithm, "HS"):
		if secret, _ := rec["secret"].(string); len(secret) < 32 {
			advice = append(advice, fmt.Sprintf("secret has %d bytes: shorter than 32 it can be guessed from one token and then any token be forged (RFC 7518, 3.2)", len(secret)))
		}
	case strings.HasPrefix(algorithm, "RS"), strings.HasPrefix(algorithm, "PS"):
		text, _ := rec["rsa_public_key"].(string)
		key, _ := ParsePublicKey(text)
		if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			advice = append(advice, fmt.Sprintf("rsa_public_key has %d bits: %s demands 2048 or more (RFC 7518, 3.3)", k.N.BitLen(), algorithm))
		}
	}
	key, _ := rec["key"].(string)
	if u, err := url.Parse(key); err == nil && u.Scheme == "https" && u.Host != "" && u.Path == "" {
		advice = append(advice, fmt.Sprintf("key is compared with the token's iss byte for byte, and many issuers (Auth0 among them) write a trailing slash: if tokens are "+
			"refused with \"No credentials found\", use %q", key+"/"))
	}
	return strings.Join(advice, "; ")
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

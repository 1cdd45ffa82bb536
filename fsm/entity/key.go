package entity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"

	"concord/fsm/schema"
)

// Key is a cryptographic key as a JSON Web Key or in PEM form. Values may be {vault://…} references.
type Key struct {
	ID        string   `json:"id"`
	Set       *Ref     `json:"set"`
	Name      string   `json:"name"`
	KID       string   `json:"kid"`
	JWK       string   `json:"jwk"` // JSON (RFC 7517)
	PEM       *KeyPair `json:"pem"`
	Tags      []string `json:"tags"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
}

// KeyPair holds one or both halves of a key in PEM form.
type KeyPair struct {
	PrivateKey string `json:"private_key"`
	PublicKey  string `json:"public_key"`
}

var keys = Def{Table: 15, New: func() any { return new(Key) }, Schema: &schema.Schema{
	Name:        "keys",
	EndpointKey: "name",
	Unique:      [][]string{{"kid", "set"}},
	Fields: []schema.Field{
		schema.ID(),
		{Name: "set", Type: schema.Foreign, Ref: "key_sets", OnDelete: schema.Cascade},
		{Name: "name", Type: schema.String, Unique: true},
		{Name: "kid", Type: schema.String, Required: true},
		{Name: "jwk", Type: schema.String, Vault: true, Secret: true},
		{Name: "pem", Type: schema.RecordT, Nullable: true, Check: checkKeyPair, Fields: []schema.Field{
			{Name: "private_key", Type: schema.String, Vault: true, Secret: true},
			{Name: "public_key", Type: schema.String, Vault: true},
		}, Checks: []schema.Check{schema.AtLeastOneOf{"private_key", "public_key"}}},
		schema.Tags(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
	},
	Checks: []schema.Check{
		schema.MutuallyExclusive{"jwk", "pem"},
		schema.AtLeastOneOf{"jwk", "pem"},
		schema.Custom{Paths: []string{"jwk", "kid"}, Run: func(rec schema.Record) schema.Errors {
			if text, ok := rec["jwk"].(string); ok {
				if why := checkJWK(text, rec["kid"]); why != "" {
					return schema.EntityError(why)
				}
			}
			return nil
		}},
	},
}}

// checkKeyPair demands keys that can be read and belong together; nothing is said about a pair with a reference.
func checkKeyPair(v any) string {
	rec, _ := v.(schema.Record)
	public, hasPublic := rec["public_key"].(string)
	private, hasPrivate := rec["private_key"].(string)
	if schema.IsVaultReference(public) || schema.IsVaultReference(private) {
		return ""
	}
	if hasPublic {
		if _, err := ParsePublicKey(public); err != nil {
			return "could not load public key"
		}
	}
	if !hasPrivate {
		return ""
	}
	key, err := ParsePrivateKey(private)
	if err != nil {
		return "could not load private key: " + err.Error()
	}
	if k, err := ParsePublicKey(public); err == nil && !matches(k, key.Public()) {
		return "public key does not match private key"
	}
	return ""
}

// checkJWK demands an asymmetric JSON Web Key (RFC 7517, 7518 section 6, 8037) whose kid is the entity's.
func checkJWK(text string, kid any) string {
	var jwk struct{ KID, KTY, CRV, N, E, X, Y, D string }
	if err := json.Unmarshal([]byte(text), &jwk); err != nil {
		return "could not json decode jwk string"
	}
	if jwk.KID != kid {
		return "kid in jwk.kid must be equal to keys.kid"
	}
	bytes := func(s string) []byte {
		b, _ := base64.RawURLEncoding.DecodeString(s) // what cannot be decoded is too short
		return b
	}
	ok := false
	switch jwk.KTY {
	case "RSA":
		ok = len(bytes(jwk.N)) > 0 && len(bytes(jwk.E)) > 0
	case "EC":
		ok = onCurve(jwk.CRV, bytes(jwk.X), bytes(jwk.Y))
	case "OKP":
		size := map[string]int{"Ed25519": 32, "X25519": 32, "Ed448": 57, "X448": 56}[jwk.CRV]
		ok = size > 0 && len(bytes(jwk.X)) == size
	}
	if !ok || jwk.D != "" && len(bytes(jwk.D)) == 0 {
		return "could not load JWK, likely not a valid key"
	}
	return ""
}

// onCurve tells whether the coordinates are those of a point of the named curve.
func onCurve(name string, x, y []byte) bool {
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[name]
	if curve == nil {
		return false
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(x) != size || len(y) != size {
		return false
	}
	point := append(append([]byte{4}, x...), y...) // uncompressed (SEC 1, 2.3.3)
	_, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	return err == nil
}

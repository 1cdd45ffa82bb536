package entity

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"concord/fsm/schema"
)

// OAuth2Credential is an application of a consumer that may ask for tokens.
type OAuth2Credential struct {
	ID           string   `json:"id"`
	CreatedAt    float64  `json:"created_at"`
	Consumer     Ref      `json:"consumer"`
	Name         string   `json:"name"`
	ClientID     string   `json:"client_id"`
	ClientSecret string   `json:"client_secret"` // with HashSecret its hash: see VerifySecret
	HashSecret   bool     `json:"hash_secret"`
	RedirectURIs []string `json:"redirect_uris"`
	Tags         []string `json:"tags"`
	ClientType   string   `json:"client_type"` // confidential, public
}

var oauth2Credentials = Def{Table: 18, New: func() any { return new(OAuth2Credential) }, Collection: "oauth2", Schema: &schema.Schema{
	Name:        "oauth2_credentials",
	EndpointKey: "client_id",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.Consumer(),
		{Name: "name", Type: schema.String, Required: true},
		{Name: "client_id", Type: schema.String, Unique: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "client_secret", Type: schema.String, Secret: true, Auto: true, AutoKind: schema.AutoRandom},
		{Name: "hash_secret", Type: schema.Boolean, Required: true, Default: false},
		{Name: "redirect_uris", Type: schema.Array, Elem: &schema.Field{Type: schema.String, Check: checkRedirectURI}},
		schema.Tags(),
		{Name: "client_type", Type: schema.String, Required: true, Default: "confidential", OneOf: []any{"confidential", "public"}},
	},
}, Transform: hashSecret}

var absoluteURL = schema.URL("").Check

// checkRedirectURI accepts absolute URIs without a fragment (RFC 6749, 3.1.2).
func checkRedirectURI(v any) string {
	s, _ := v.(string)
	switch {
	case absoluteURL(s) != "":
		return "cannot parse '" + s + "'"
	case strings.Contains(s, "#"):
		return "fragment not allowed in '" + s + "'"
	}
	return ""
}

// hashSecret replaces a new secret by its hash. What is a hash already stays, as clients send it back or import it from a dump.
func hashSecret(rec, current schema.Record) (schema.Record, error) {
	secret, _ := rec["client_secret"].(string)
	_, hashed := parseSecretHash(secret)
	if rec["hash_secret"] != true {
		if hashed && current["hash_secret"] == true && current["client_secret"] == secret {
			return nil, schema.Errors{"hash_secret": "only the hash of client_secret is known, so it cannot be compared without hashing: send a new client_secret too"}
		}
		return rec, nil
	}
	if hashed || secret == "" {
		return rec, nil
	}
	// The salt need not be secret, only different for each credential. Made from the row itself it leaves this function pure.
	salt := sha256.Sum256(fmt.Append(nil, rec["id"], rec["client_id"]))
	hash := secretHash{iterations: 10_000, salt: salt[:16]}
	if err := hash.derive(secret, 32); err != nil {
		return nil, err
	}
	out := maps.Clone(rec)
	out["client_secret"] = hash.String()
	return out, nil
}

// VerifySecret compares a secret with a stored hash in constant time.
func VerifySecret(hash, secret string) bool {
	want, ok := parseSecretHash(hash)
	got := secretHash{iterations: want.iterations, salt: want.salt}
	if !ok || got.derive(secret, len(want.hash)) != nil {
		return false
	}
	return subtle.ConstantTimeCompare(got.hash, want.hash) == 1
}

// secretHash is PBKDF2 with SHA-512, written as Kong does: $pbkdf2-sha512$i=10000,l=32$<salt>$<hash>.
type secretHash struct {
	iterations int
	salt, hash []byte
}

func (h *secretHash) derive(secret string, size int) (err error) {
	h.hash, err = pbkdf2.Key(sha512.New, secret, h.salt, h.iterations, size)
	return err
}

const secretHashPrefix = "$pbkdf2-sha512$"

// String is the stored form.
func (h *secretHash) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("%si=%d,l=%d$%s$%s", secretHashPrefix, h.iterations, len(h.hash), b64.EncodeToString(h.salt), b64.EncodeToString(h.hash))
}

// maxIterations bounds what a stored hash can make the gateway compute.
const maxIterations = 1_000_000

func parseSecretHash(s string) (h secretHash, ok bool) {
	rest, ok := strings.CutPrefix(s, secretHashPrefix)
	parts := strings.Split(rest, "$")
	if !ok || len(parts) != 3 {
		return h, false
	}
	i, l, ok := strings.Cut(parts[0], ",")
	if !ok || !strings.HasPrefix(i, "i=") || !strings.HasPrefix(l, "l=") {
		return h, false
	}
	size, err := strconv.Atoi(l[2:])
	if err != nil {
		return h, false
	}
	if h.iterations, err = strconv.Atoi(i[2:]); err != nil || h.iterations < 1 || h.iterations > maxIterations {
		return h, false
	}
	b64 := base64.RawStdEncoding.Strict()
	if h.salt, err = b64.DecodeString(parts[1]); err != nil {
		return h, false
	}
	h.hash, err = b64.DecodeString(parts[2])
	return h, err == nil && len(h.hash) == size && 16 <= size && size <= 64
}

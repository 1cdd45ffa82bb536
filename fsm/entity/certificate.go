package entity

import (
	"fmt"

	"concord/fsm/schema"
)

// Certificate is what the gateway shows to clients that ask for one of its SNIs, or to the upstream of a service. Values may be
// {vault://…} references.
type Certificate struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
	Cert      string   `json:"cert"` // PEM, may be a chain
	Key       string   `json:"key"`  // PEM
	CertAlt   string   `json:"cert_alt"`
	KeyAlt    string   `json:"key_alt"`
	Tags      []string `json:"tags"`
}

var certificates = Def{
	Table: 11, New: func() any { return new(Certificate) },
	Members: &Members{Field: "snis", Entity: "snis", Ref: "certificate", NotFound: "SNI not found"},
	Schema: &schema.Schema{
		Name: "certificates",
		Fields: []schema.Field{
			schema.ID(),
			schema.CreatedAt(),
			schema.UpdatedAt(),
			required(inVault(certificatePEM("cert"))),
			required(inVault(privateKeyPEM("key"))),
			inVault(certificatePEM("cert_alt")),
			inVault(privateKeyPEM("key_alt")),
			schema.Tags(),
			{Name: "snis", Type: schema.Array, Elem: new(schema.WildcardHost("")), Transient: true},
		},
		Checks: []schema.Check{
			schema.MutuallyRequired{"cert_alt", "key_alt"},
			keyMatches("cert", "key", "certificate does not match key"),
			keyMatches("cert_alt", "key_alt", "alternative certificate does not match key"),
			schema.Custom{Paths: []string{"cert", "cert_alt"}, Run: otherKind},
		},
	},
}

func inVault(f schema.Field) schema.Field {
	f.Vault = true
	return f
}

// keyMatches demands that the public key of the certificate belongs to the private key.
func keyMatches(cert, key, text string) schema.Check {
	return schema.Custom{Paths: []string{cert, key}, Run: func(rec schema.Record) schema.Errors {
		c, ok := rec[cert].(string)
		k, both := rec[key].(string)
		if !ok || !both {
			return nil
		}
		chain, err := ParseCertificates(c)
		if err != nil {
			return nil // said of the field
		}
		private, err := ParsePrivateKey(k)
		if err != nil {
			return nil
		}
		if !matches(chain[0].PublicKey, private.Public()) {
			return schema.EntityError(text)
		}
		return nil
	}}
}

// otherKind demands that the alternative certificate has another kind of key, or it would never be chosen.
func otherKind(rec schema.Record) schema.Errors {
	kind := func(field string) string {
		text, _ := rec[field].(string)
		chain, err := ParseCertificates(text)
		if err != nil {
			return field
		}
		return fmt.Sprintf("%T", chain[0].PublicKey)
	}
	if kind("cert") == kind("cert_alt") {
		return schema.EntityError("certificate and alternative certificate need to have different type (e.g. RSA and ECDSA), the provided " +
			"certificates were both of the same type")
	}
	return nil
}

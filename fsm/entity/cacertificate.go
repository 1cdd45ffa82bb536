package entity

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"time"

	"concord/fsm/schema"
)

// CACertificate is a certificate authority that upstreams or clients are verified against.
type CACertificate struct {
	ID         string   `json:"id"`
	CreatedAt  float64  `json:"created_at"`
	UpdatedAt  float64  `json:"updated_at"`
	Cert       string   `json:"cert"`        // PEM
	CertDigest string   `json:"cert_digest"` // hex SHA-256 of the certificate in DER
	Tags       []string `json:"tags"`
}

var caCertificates = Def{Table: 13, New: func() any { return new(CACertificate) }, Schema: &schema.Schema{
	Name: "ca_certificates",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		required(certificatePEM("cert")),
		{Name: "cert_digest", Type: schema.String, Unique: true},
		schema.Tags(),
	},
}, Transform: digestCA}

// digestCA fills in the digest. A certificate that is stored already is not judged again, so that one that has expired can
// still be tagged.
func digestCA(rec, current schema.Record) (schema.Record, error) {
	text, _ := rec["cert"].(string)
	chain, err := ParseCertificates(text)
	if err != nil {
		return nil, schema.Errors{"cert": "invalid certificate: " + err.Error()}
	}
	cert := chain[0]
	if current == nil || current["cert"] != text {
		now, _ := rec["updated_at"].(float64) // of this write
		switch {
		case len(chain) > 1:
			return nil, schema.EntityError("please submit only one certificate at a time")
		case cert.NotAfter.Before(time.Unix(int64(now), 0)):
			return nil, schema.EntityError(`certificate expired, "Not After" time is in the past`)
		case !cert.IsCA:
			return nil, schema.EntityError(`certificate does not appear to be a CA because it is missing the "CA" basic constraint`)
		}
	}
	sum := sha256.Sum256(cert.Raw)
	out := maps.Clone(rec)
	out["cert_digest"] = hex.EncodeToString(sum[:])
	return out, nil
}

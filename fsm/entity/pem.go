package entity

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"concord/fsm/schema"
)

// certificatePEM is a certificate, or a chain that begins with it, in PEM form.
func certificatePEM(name string) schema.Field {
	return schema.Field{Name: name, Type: schema.String, Check: func(v any) string {
		if _, err := ParseCertificates(v.(string)); err != nil {
			return "invalid certificate: " + err.Error()
		}
		return ""
	}}
}

// privateKeyPEM is a private key in PEM form.
func privateKeyPEM(name string) schema.Field {
	return schema.Field{Name: name, Type: schema.String, Secret: true, Check: func(v any) string {
		if _, err := ParsePrivateKey(v.(string)); err != nil {
			return "invalid key: " + err.Error()
		}
		return ""
	}}
}

// ParseCertificates reads the certificates of a text in PEM form, at least one. What else the text holds does not count.
func ParseCertificates(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if chain == nil {
		return nil, errors.New(`there is no PEM block "CERTIFICATE"`)
	}
	return chain, nil
}

// ParsePrivateKey reads the first private key of a text in PEM form: PKCS#8, PKCS#1 or SEC 1.
func ParsePrivateKey(text string) (crypto.Signer, error) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") { // EC keys may come behind their parameters
			continue
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("it is encrypted: take the passphrase away, keys are stored encrypted anyway")
		}
		var key any
		var err error
		switch block.Type {
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a %T cannot sign", key)
		}
		return signer, nil
	}
	return nil, errors.New(`there is no PEM block "PRIVATE KEY"`)
}

// ParsePublicKey reads a public key in PEM form: PKIX or PKCS#1.
func ParsePublicKey(text string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("there is no PEM block")
	}
	if key, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
		return key, nil
	}
	return x509.ParsePKCS1PublicKey(block.Bytes)
}

// matches tells whether two public keys are the same.
func matches(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

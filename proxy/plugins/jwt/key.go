package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"hash"
	"math/big"
	"strings"
	"sync"

	"concord/fsm/entity"
	"concord/fsm/state"
)

// family is the kind of key an algorithm needs.
type family byte

const (
	familyHMAC family = iota
	familyRSA
	familyPSS
	familyECDSA
	familyEd25519
)

// algorithm is one of RFC 7518 §3.1 and RFC 8037 §3.1.
type algorithm struct {
	name   string
	family family
	hash   crypto.Hash
	curve  elliptic.Curve // ECDSA
	size   int            // ECDSA: bytes of r and of s
}

var algorithms = [...]algorithm{
	{name: "HS256", family: familyHMAC, hash: crypto.SHA256},
	{name: "HS384", family: familyHMAC, hash: crypto.SHA384},
	{name: "HS512", family: familyHMAC, hash: crypto.SHA512},
	{name: "RS256", family: familyRSA, hash: crypto.SHA256},
	{name: "RS384", family: familyRSA, hash: crypto.SHA384},
	{name: "RS512", family: familyRSA, hash: crypto.SHA512},
	{name: "PS256", family: familyPSS, hash: crypto.SHA256},
	{name: "PS384", family: familyPSS, hash: crypto.SHA384},
	{name: "PS512", family: familyPSS, hash: crypto.SHA512},
	{name: "ES256", family: familyECDSA, hash: crypto.SHA256, curve: elliptic.P256(), size: 32},
	{name: "ES384", family: familyECDSA, hash: crypto.SHA384, curve: elliptic.P384(), size: 48},
	{name: "ES512", family: familyECDSA, hash: crypto.SHA512, curve: elliptic.P521(), size: 66},
	{name: "EdDSA", family: familyEd25519},
}

// algorithmOf is nil for anything else, "none" in all its spellings included.
func algorithmOf(name []byte) *algorithm {
	for i := range algorithms {
		if algorithms[i].name == string(name) {
			return &algorithms[i]
		}
	}
	return nil
}

// verifier is a credential's key, made ready once per version of the credential.
type verifier struct {
	alg     *algorithm // what the credential is bound to; nil: no known one
	macs    [2]*macs   // HMAC: with the secret as it is, and with the secret decoded from base64
	rsa     *rsa.PublicKey
	pkcs1   *pkcs1 // RSA but not PSS; nil: crypto/rsa checks
	ecdsa   *ecdsa.PublicKey
	ed25519 ed25519.PublicKey
	fault   string // for the operator, why there is no key
}

func newVerifier(_ *state.View, c *entity.JWTSecret) *verifier {
	v := &verifier{alg: algorithmOf([]byte(c.Algorithm))}
	if v.alg == nil {
		return v
	}
	if v.alg.family == familyHMAC {
		v.macs[0] = newMACs(v.alg.hash, []byte(c.Secret))
		if secret, err := decodeSecret(c.Secret); err == nil {
			v.macs[1] = newMACs(v.alg.hash, secret)
		}
		return v
	}
	if c.RSAPublicKey == "" {
		v.fault = "rsa_public_key is empty"
		return v
	}
	key, err := parsePublicKey(c.RSAPublicKey)
	if err != nil {
		v.fault = "rsa_public_key: " + err.Error()
		return v
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if v.alg.family == familyRSA || v.alg.family == familyPSS {
			if v.rsa = k; v.alg.family == familyRSA {
				v.pkcs1 = newPKCS1(k, v.alg.hash)
			}
			return v
		}
	case *ecdsa.PublicKey:
		if v.alg.family == familyECDSA && k.Curve == v.alg.curve {
			v.ecdsa = k
			return v
		}
	case ed25519.PublicKey:
		if v.alg.family == familyEd25519 {
			v.ed25519 = k
			return v
		}
	}
	v.fault = "rsa_public_key does not fit algorithm " + v.alg.name
	return v
}

func parsePublicKey(text string) (any, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errNoPEM
	}
	if key, err := x509.ParsePKCS1PublicKey(block.Bytes); err == nil {
		return key, nil
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// decodeSecret reads both alphabets, with or without padding, as Kong does for secret_is_base64.
func decodeSecret(s string) ([]byte, error) {
	s = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	return base64.RawURLEncoding.DecodeString(s)
}

// usable tells whether there is key material at all.
func (v *verifier) usable(base64Secret bool) bool {
	return v.mac(base64Secret) != nil || v.rsa != nil || v.ecdsa != nil || v.ed25519 != nil
}

func (v *verifier) mac(base64Secret bool) *macs {
	if base64Secret {
		return v.macs[1]
	}
	return v.macs[0]
}

// verify checks the signature over signed. The token's algorithm is the credential's: the caller has compared them.
func (v *verifier) verify(signed, sig []byte, base64Secret bool) bool {
	switch v.alg.family {
	case familyHMAC:
		return v.mac(base64Secret).verify(signed, sig)
	case familyRSA:
		var sum [64]byte
		d := digest(v.alg.hash, signed, &sum)
		if v.pkcs1 != nil {
			return v.pkcs1.verify(d, sig)
		}
		return rsa.VerifyPKCS1v15(v.rsa, v.alg.hash, d, sig) == nil
	case familyPSS:
		// RFC 7518 §3.5: the salt is as long as the hash; other lengths are not JWA.
		var sum [64]byte
		o := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		return rsa.VerifyPSS(v.rsa, v.alg.hash, digest(v.alg.hash, signed, &sum), sig, &o) == nil
	case familyECDSA:
		// RFC 7518 §3.4: r and s, each as long as the curve's order, nothing else (no DER).
		if len(sig) != 2*v.alg.size {
			return false
		}
		var sum [64]byte
		r, s := new(big.Int).SetBytes(sig[:v.alg.size]), new(big.Int).SetBytes(sig[v.alg.size:])
		return ecdsa.Verify(v.ecdsa, digest(v.alg.hash, signed, &sum), r, s)
	case familyEd25519:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(v.ed25519, signed, sig)
	}
	return false
}

func digest(h crypto.Hash, data []byte, to *[64]byte) []byte {
	switch h {
	case crypto.SHA256:
		sum := sha256.Sum256(data)
		return append(to[:0], sum[:]...)
	case crypto.SHA384:
		sum := sha512.Sum384(data)
		return append(to[:0], sum[:]...)
	default:
		sum := sha512.Sum512(data)
		return append(to[:0], sum[:]...)
	}
}

// macs lends keyed hashes of one secret: keying one costs more than hashing a token.
type macs struct{ pool sync.Pool }

type mac struct {
	hash.Hash
	sum [64]byte
}

// newMACs is nil for an empty secret, with which anybody could sign.
func newMACs(h crypto.Hash, secret []byte) *macs {
	if len(secret) == 0 {
		return nil
	}
	return &macs{sync.Pool{New: func() any { return &mac{Hash: hmac.New(h.New, secret)} }}}
}

func (p *macs) verify(signed, sig []byte) bool {
	m := p.pool.Get().(*mac)
	defer p.pool.Put(m)
	m.Reset()
	m.Write(signed)
	return subtle.ConstantTimeCompare(m.Sum(m.sum[:0]), sig) == 1
}

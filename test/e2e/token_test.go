package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"testing"
)

type claims = map[string]any

// mint makes a compact JWS without any JWT library, so that the gateway's own is not its judge.
func mint(t testing.TB, key any, header, payload claims) string {
	t.Helper()
	enc := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	h := claims{"typ": "JWT"}
	var sign func(msg []byte) ([]byte, error)
	switch k := key.(type) {
	case string:
		h["alg"] = "HS256"
		sign = func(msg []byte) ([]byte, error) {
			m := hmac.New(sha256.New, []byte(k))
			m.Write(msg)
			return m.Sum(nil), nil
		}
	case *rsa.PrivateKey:
		h["alg"] = "RS256"
		sign = func(msg []byte) ([]byte, error) {
			d := sha256.Sum256(msg)
			return rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, d[:])
		}
	case *ecdsa.PrivateKey:
		h["alg"] = "ES256"
		sign = func(msg []byte) ([]byte, error) {
			d := sha256.Sum256(msg)
			r, s, err := ecdsa.Sign(rand.Reader, k, d[:])
			if err != nil {
				return nil, err
			}
			out := make([]byte, 64)
			r.FillBytes(out[:32])
			s.FillBytes(out[32:])
			return out, nil
		}
	case ed25519.PrivateKey:
		h["alg"] = "EdDSA"
		sign = func(msg []byte) ([]byte, error) { return ed25519.Sign(k, msg), nil }
	default:
		t.Fatalf("no signer for %T", key)
	}
	for n, v := range header {
		h[n] = v
	}
	msg := enc(h) + "." + enc(payload)
	sig, err := sign([]byte(msg))
	if err != nil {
		t.Fatal(err)
	}
	return msg + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func rsaKey(t testing.TB) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t testing.TB) ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func publicPEM(t testing.TB, key crypto.Signer) string {
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
}

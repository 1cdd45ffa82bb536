//go:build linux

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"
)

const (
	apiKey     = "bench-key-0123456789abcdef"
	hmacSecret = "bench-secret-0123456789abcdef012"
)

var algorithms = []string{"HS256", "RS256", "ES256"}

// signers hold a key for each algorithm.
type signers struct {
	rsa    *rsa.PrivateKey
	ecdsa  *ecdsa.PrivateKey
	public map[string]string // PEM
	serial int
}

func newSigners() (*signers, error) {
	s := &signers{public: map[string]string{}}
	var err error
	if s.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	if s.ecdsa, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	for alg, key := range map[string]crypto.PublicKey{"RS256": s.rsa.Public(), "ES256": s.ecdsa.Public()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, err
		}
		s.public[alg] = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	s.public["HS256"] = s.public["RS256"] // not looked at, but must be a key
	return s, nil
}

// token is a new one each time.
func (s *signers) token(alg string) string {
	s.serial++
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(`{"alg":"`+alg+`","typ":"JWT"}`)) + "." + enc.EncodeToString(fmt.Appendf(nil,
		`{"iss":"iss-%s","sub":"1234567890","jti":"%d","iat":%d,"exp":%d}`, alg, s.serial, time.Now().Unix(), time.Now().Add(24*time.Hour).Unix()))
	return signed + "." + enc.EncodeToString(s.sign(alg, signed))
}

func (s *signers) sign(alg, signed string) []byte {
	sum := sha256.Sum256([]byte(signed))
	switch alg {
	case "RS256":
		sig, err := rsa.SignPKCS1v15(nil, s.rsa, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return sig
	case "ES256":
		r, t, err := ecdsa.Sign(rand.Reader, s.ecdsa, sum[:])
		if err != nil {
			panic(err)
		}
		sig := make([]byte, 64)
		r.FillBytes(sig[:32])
		t.FillBytes(sig[32:])
		return sig
	}
	m := hmac.New(sha256.New, []byte(hmacSecret))
	m.Write([]byte(signed))
	return m.Sum(nil)
}

// checkCost is what the check of one signature alone costs, in microseconds of CPU: by a process of its own, so that it runs where the
// gateways do.
func (b *bench) checkCost(alg string) (us float64, err error) {
	err = b.host.result(b.ctx, b.host.command(gatewayCPU, b.host.self, "verify", alg), &us)
	return us, err
}

// verifyCost prints that figure.
func verifyCost(alg string) error {
	s, err := newSigners()
	if err != nil {
		return err
	}
	text := s.token(alg)
	signed := []byte(text[:strings.LastIndexByte(text, '.')])
	sig := s.sign(alg, string(signed))
	check := func() bool {
		sum := sha256.Sum256(signed)
		if alg == "RS256" {
			return rsa.VerifyPKCS1v15(&s.rsa.PublicKey, crypto.SHA256, sum[:], sig) == nil
		}
		return ecdsa.Verify(&s.ecdsa.PublicKey, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	}
	for range 200 {
		if !check() {
			return errors.New(alg + ": a good signature is refused")
		}
	}
	start, n := cpuTime(os.Getpid()), 0
	for cpuTime(os.Getpid())-start < 200e6 {
		for range 100 {
			check()
		}
		n += 100
	}
	fmt.Printf("%.2f", float64(cpuTime(os.Getpid())-start)/1e3/float64(n))
	return nil
}

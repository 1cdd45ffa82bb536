package jwt

import (
	"crypto"
	"crypto/fips140"
	"crypto/rsa"
	"errors"

	"filippo.io/bigmod"
)

// pkcs1 checks RSASSA-PKCS1-v1_5 signatures of one key. It is rsa.VerifyPKCS1v15 with the arithmetic of crypto/rsa, which bigmod publishes,
// but keeps what that computes anew of the key for each signature: a third of the time and all of the memory that a check takes.
// Everything here is public, and nothing of a signature is parsed: what it must stand for is written out and compared as a whole.
type pkcs1 struct {
	n       *bigmod.Modulus
	e       uint
	message []byte // EM of RFC 8017 §9.2, with zeros for the hash at its end
}

// digestInfo is what stands before the hash: RFC 8017 §9.2, note 1.
var digestInfo = map[crypto.Hash]string{
	crypto.SHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// newPKCS1 is nil where crypto/rsa has to decide: about keys that it refuses, and in FIPS mode, which is about its own code.
func newPKCS1(key *rsa.PublicKey, h crypto.Hash) *pkcs1 {
	zeros := make([]byte, key.Size())
	if err := rsa.VerifyPKCS1v15(key, h, zeros[:min(h.Size(), len(zeros))], zeros); !errors.Is(err, rsa.ErrVerification) || fips140.Enabled() {
		return nil
	}
	n, err := bigmod.NewModulus(key.N.Bytes())
	if err != nil {
		return nil
	}
	em := zeros
	end := len(em) - h.Size() - len(digestInfo[h])
	em[1] = 1
	for i := 2; i < end-1; i++ {
		em[i] = 0xff
	}
	copy(em[end:], digestInfo[h])
	return &pkcs1{n: n, e: uint(key.E), message: em}
}

// verify is RFC 8017 §8.2.2.
func (k *pkcs1) verify(hash, sig []byte) bool {
	if len(sig) != len(k.message) {
		return false
	}
	var buf [512]byte // a key of 4096 bits
	em := append(buf[:0], k.message...)
	copy(em[len(em)-len(hash):], hash)
	want, err := bigmod.NewNat().SetBytes(em, k.n)
	if err != nil {
		return false
	}
	s, err := bigmod.NewNat().SetBytes(sig, k.n)
	if err != nil {
		return false // not below n: another spelling of one that is
	}
	return bigmod.NewNat().ExpShortVarTime(s, k.e, k.n).Equal(want) == 1
}

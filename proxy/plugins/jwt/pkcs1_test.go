package jwt

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"slices"
	"strconv"
	"testing"
)

// TestPKCS1: what crypto/rsa says of a signature, of good ones and of all that forgers try.
func TestPKCS1(t *testing.T) {
	if fips140.Enabled() {
		t.Skip("crypto/rsa alone decides")
	}
	for name, key := range map[string]*rsa.PrivateKey{"2048": rsaKey, "1024": newRSA(t, 1024, 65537), "1031": newRSA(t, 1031, 65537), "e 3": newRSA(t, 1032, 3)} {
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			t.Run(name+" "+h.String(), func(t *testing.T) {
				hash := bytes.Repeat([]byte{0xa5}, h.Size())
				k := newPKCS1(&key.PublicKey, h)
				if k == nil {
					t.Fatal("the key is not used")
				}
				n, size := key.N, key.Size()
				// sign is the private operation on any number.
				sign := func(em []byte) []byte {
					return new(big.Int).Exp(new(big.Int).Mod(new(big.Int).SetBytes(em), n), key.D, n).FillBytes(make([]byte, size))
				}
				good, err := rsa.SignPKCS1v15(nil, key, h, hash)
				if err != nil {
					t.Fatal(err)
				}
				em := slices.Concat(k.message[:size-len(hash)], hash)
				tail := slices.Concat([]byte(digestInfo[h]), hash)
				sigs := map[string][]byte{
					"good": good, "signed here": sign(em), "empty": {}, "zeros": make([]byte, size), "ones": bytes.Repeat([]byte{0xff}, size),
					"short": good[1:], "cut": good[:size-1], "with a zero before": append([]byte{0}, good...), "with a zero behind": append(slices.Clone(good), 0),
					"n": n.FillBytes(make([]byte, size)), "n-1": new(big.Int).Sub(n, big.NewInt(1)).FillBytes(make([]byte, size)), "one": big.NewInt(1).FillBytes(make([]byte, size)),
					// Bleichenbacher's forgery of 2006 and its kin: the hash is not at the end, or something else is beside it.
					"short padding":         sign(slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 8), []byte{0}, tail, make([]byte, size-11-len(tail)))),
					"no padding":            sign(slices.Concat([]byte{0, 1, 0}, tail, make([]byte, size-3-len(tail)))),
					"garbage in parameters": sign(slices.Concat(em[:size-len(tail)-9], []byte{0, 0x30, byte(len(tail) - 2 + 8)}, tail[2:], make([]byte, 8))[:size]),
					"without NULL":          sign(slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, size-len(tail)-1), []byte{0, tail[0], tail[1] - 2, tail[2], tail[3] - 2}, tail[4:15], tail[17:])),
					"hash alone":            sign(hash),
					"type 2":                sign(append([]byte{0, 2}, em[2:]...)),
				}
				if more := new(big.Int).Add(new(big.Int).SetBytes(good), n); more.BitLen() <= 8*size {
					sigs["good plus n"] = more.FillBytes(make([]byte, size))
				}
				for i := range em {
					if i > 2 && i%9 != 0 { // a private operation takes long
						continue
					}
					bad := slices.Clone(em)
					bad[i] ^= 1 << (i % 8)
					sigs["byte "+strconv.Itoa(i)] = sign(bad)
				}
				accepted := 0
				for name, sig := range sigs {
					want := rsa.VerifyPKCS1v15(&key.PublicKey, h, hash, sig) == nil
					if got := k.verify(hash, sig); got != want {
						t.Errorf("%s: %v, crypto/rsa %v", name, got, want)
					}
					if want {
						accepted++
					}
				}
				if accepted != 2 {
					t.Errorf("%d accepted", accepted)
				}
			})
		}
	}
}

func TestPKCS1LeavesKeysToTheLibrary(t *testing.T) {
	n := rsaKey.N
	for name, key := range map[string]rsa.PublicKey{
		"even modulus":  {N: new(big.Int).Add(n, big.NewInt(1)), E: 65537},
		"even exponent": {N: n, E: 65536},
		"exponent 1":    {N: n, E: 1},
		"exponent 0":    {N: n},
		"small":         {N: new(big.Int).SetBit(big.NewInt(1), 511, 1), E: 65537},
	} {
		if newPKCS1(&key, crypto.SHA256) != nil {
			t.Error(name)
		}
	}
}

// FuzzPKCS1 compares with crypto/rsa. Signatures are given as differences from a good one.
func FuzzPKCS1(f *testing.F) {
	hash := make([]byte, 32)
	good, err := rsa.SignPKCS1v15(nil, rsaKey, crypto.SHA256, hash)
	if err != nil {
		f.Fatal(err)
	}
	k := newPKCS1(&rsaKey.PublicKey, crypto.SHA256)
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte{1}, []byte{}, false)
	f.Add([]byte{}, []byte{1}, false)
	f.Add([]byte{}, []byte{}, true)
	f.Fuzz(func(t *testing.T, flip, more []byte, cut bool) {
		if k == nil {
			t.Skip("FIPS mode")
		}
		sig := append(slices.Clone(good), more...)
		for i := range min(len(flip), len(sig)) {
			sig[i] ^= flip[i]
		}
		if cut {
			sig = sig[1:]
		}
		if got, want := k.verify(hash, sig), rsa.VerifyPKCS1v15(&rsaKey.PublicKey, crypto.SHA256, hash, sig) == nil; got != want {
			t.Errorf("%v, crypto/rsa %v", got, want)
		}
	})
}

// newRSA makes a key of any size and exponent.
func newRSA(t *testing.T, size, e int) *rsa.PrivateKey {
	one := big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, size/2)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, size-size/2)
		if err != nil {
			t.Fatal(err)
		}
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: e}, Primes: []*big.Int{p, q}}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		key.D = new(big.Int).ModInverse(big.NewInt(int64(e)), phi)
		if key.D != nil && key.N.BitLen() == size && p.Cmp(q) != 0 {
			key.Precompute()
			return key
		}
	}
}

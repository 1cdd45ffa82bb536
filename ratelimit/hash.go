package ratelimit

import (
	"encoding/binary"
	"math/bits"
)

// secret is the key of the hash: nobody knows it, so nobody can make two keys meet. It goes with the counters from one process to
// the next, which the seeds of hash/maphash cannot.
type secret [16]byte

// hash makes the 128 bits that stand for a key: SipHash-2-4 of kind, lengths and both texts, each filled up with zeros.
func (k *secret) hash(key Key) id {
	h := newSip(k).word(uint64(len(key.Scope))<<8 | uint64(key.Kind)).word(uint64(len(key.ID))).text(key.Scope).text(key.ID)
	return h.end(uint64(16+(len(key.Scope)+7)&^7+(len(key.ID)+7)&^7) << 56)
}

// sip is SipHash-2-4 with 128 bits (Aumasson and Bernstein), fed with whole words. It is passed by value, which stays in registers.
type sip struct{ v0, v1, v2, v3 uint64 }

func newSip(k *secret) sip {
	k0, k1 := binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])
	return sip{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
}

func (h sip) rounds(n int) sip {
	v0, v1, v2, v3 := h.v0, h.v1, h.v2, h.v3
	for range n {
		v0 += v1
		v2 += v3
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 = bits.RotateLeft64(v0, 32) + v3
		v2 += v1
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	return sip{v0, v1, v2, v3}
}

func (h sip) word(m uint64) sip {
	h.v3 ^= m
	h = h.rounds(2)
	h.v0 ^= m
	return h
}

func (h sip) text(s string) sip {
	for ; len(s) >= 8; s = s[8:] {
		h = h.word(uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56)
	}
	if len(s) > 0 {
		h = h.word(tail(s))
	}
	return h
}

// tail is fewer than eight bytes as a word.
func tail(s string) (m uint64) {
	for i := range len(s) {
		m |= uint64(s[i]) << (8 * i)
	}
	return m
}

// end takes the last word: what is left of the message, and its length in the highest byte.
func (h sip) end(last uint64) id {
	h = h.word(last)
	h.v2 ^= 0xee
	h = h.rounds(4)
	lo := h.v0 ^ h.v1 ^ h.v2 ^ h.v3
	h.v1 ^= 0xdd
	h = h.rounds(4)
	return id{hi: h.v0 ^ h.v1 ^ h.v2 ^ h.v3, lo: lo}
}

package state

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// ID is a row's primary key, a UUID in binary.
type ID [16]byte

// idSize is the length of an id's text.
const idSize = 36

// nibbles gives the value of a hexadecimal digit, 0xff for anything else.
var nibbles = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range "0123456789abcdef" {
		t["0123456789abcdef"[i]], t["0123456789ABCDEF"[i]] = byte(i), byte(i)
	}
	return t
}()

// ParseID reads a UUID in its 36-character text form, in either case.
func ParseID(s string) (ID, error) {
	if len(s) == idSize && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		var id ID
		var bad byte
		at := 0
		for i := range id {
			if s[at] == '-' && (i == 4 || i == 6 || i == 8 || i == 10) {
				at++
			}
			hi, lo := nibbles[s[at]], nibbles[s[at+1]]
			id[i], bad = hi<<4|lo, bad|hi|lo
			at += 2
		}
		if bad < 16 {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("id %q is not a UUID (8-4-4-4-12 hexadecimal digits)", s)
}

// readID reads an id's text that is known to be one and in lower case, as it stands before every row.
func readID(b []byte) (id ID) {
	_ = b[idSize-1]
	quarter := func(hi, lo uint32) uint32 { // eight digits at a time
		x := uint64(hi)<<32 | uint64(lo)
		x = x&0x0f0f0f0f0f0f0f0f + x>>6&0x0101010101010101*9
		x = (x | x>>4) & 0x00ff00ff00ff00ff
		x = (x | x>>8) & 0x0000ffff0000ffff
		return uint32(x | x>>16)
	}
	be := binary.BigEndian
	be.PutUint32(id[0:], quarter(be.Uint32(b[0:]), be.Uint32(b[4:])))
	be.PutUint32(id[4:], quarter(be.Uint32(b[9:]), be.Uint32(b[14:])))
	be.PutUint32(id[8:], quarter(be.Uint32(b[19:]), be.Uint32(b[24:])))
	be.PutUint32(id[12:], quarter(be.Uint32(b[28:]), be.Uint32(b[32:])))
	return id
}

// String is the canonical lower-case text form.
func (id ID) String() string {
	b := id.text()
	return string(b[:])
}

func (id ID) text() (b [idSize]byte) {
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return b
}

// IsZero reports the zero ID, which no row has.
func (id ID) IsZero() bool { return id == ID{} }

// Row is one stored entity. It is made when it is read, and so is Val, with the secrets in clear: nothing is kept decoded.
//
// Strings in Val share memory with the store, 64 KiB of which live as long as one of them: what is kept for long should be a strings.Clone.
type Row[T any] struct {
	ID        ID
	Index     uint64 // log index of the entry that wrote it; with the ID it names this version of the row
	ExpiresAt int64  // Unix milliseconds, 0: never
	Val       T
}

// AnyRow is a Row for code that does not know the type.
type AnyRow struct {
	ID        ID
	Index     uint64
	ExpiresAt int64
	Raw       []byte // the replicated truth: canonical JSON, secrets sealed
	Val       any    // a *T
}

package state

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"unsafe"
)

// ID is a row's primary key, a UUID in binary.
type ID [16]byte

// ParseID reads a UUID in its 36-character text form, in either case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, fmt.Errorf("id %q is not a UUID (8-4-4-4-12 hexadecimal digits)", s)
	}
	var digits [32]byte
	copy(digits[0:], s[0:8])
	copy(digits[8:], s[9:13])
	copy(digits[12:], s[14:18])
	copy(digits[16:], s[19:23])
	copy(digits[20:], s[24:36])
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return ID{}, fmt.Errorf("id %q is not a UUID (8-4-4-4-12 hexadecimal digits)", s)
	}
	return id, nil
}

// String is the canonical lower-case text form.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// IsZero reports the zero ID, which no row has.
func (id ID) IsZero() bool { return id == ID{} }

// Row is one stored entity. Rows are immutable: a write makes a new Row.
type Row[T any] struct {
	ID        ID
	Index     uint64 // log index of the entry that wrote it
	ExpiresAt int64  // Unix milliseconds, 0: never
	Raw       []byte // the replicated truth: canonical JSON, secrets sealed
	Val       *T     // decoded once, secrets in clear
}

// AnyRow is a Row for code that does not know the type. Val is a *T.
type AnyRow struct {
	ID        ID
	Index     uint64
	ExpiresAt int64
	Raw       []byte
	Val       any
}

// opaque stands for "some T". A Row[T] holds T by pointer only, so the layout of Row is the same for every T and a
// *row may be viewed as *Row[T] (unsafe.Pointer rule 1). That lets one set of trees, built from definitions known only at run
// time, hand out typed rows without an allocation or a second copy. Only Table, which checked T when it was made,
// and anyOf, which uses the table's own reflect.Type, convert.
type opaque struct{}

type row = Row[opaque]

func typed[T any](r *row) *Row[T] { return (*Row[T])(unsafe.Pointer(r)) }

// value gives a row's decoded value as *T in an any; nil for a nil row.
func (m *meta) value(r *row) any {
	if r == nil {
		return nil
	}
	return reflect.NewAt(m.typ, unsafe.Pointer(r.Val)).Interface()
}

func (m *meta) anyOf(r *row) AnyRow {
	return AnyRow{ID: r.ID, Index: r.Index, ExpiresAt: r.ExpiresAt, Raw: r.Raw, Val: m.value(r)}
}

package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"unicode/utf8"

	"concord/fsm/seal"
)

const (
	refOpening = `{"id":"`
	refClosing = `"}`
)

// errCanonical is the answer to valid JSON in a form that rows do not have. Names beginning with $ are what seals are known by.
var errCanonical = errors.New("not a JSON object without white space whose members have names of printable ASCII, none beginning with $")

// encoder turns a row's JSON into the form it has in a slab.
type encoder struct {
	d      *dict
	row    *AnyRow
	text   [idSize]byte // the row's id
	key    []byte       // of the shape
	values []byte
}

// encode gives the bytes of a row: the text of its id, the length of what follows, the number of its shape, its log index, its expiry
// in varints, and its values. That the JSON can be made of them again to the byte is settled value by value.
// With own, that it decodes is taken for granted.
func (d *dict) encode(r AnyRow, own bool) ([]byte, error) {
	e := encoder{d: d, row: &r, text: r.ID.text(), key: make([]byte, 0, 256), values: make([]byte, 0, len(r.Raw))}
	if err := e.object(r.Raw); err != nil {
		return nil, e.explain(err)
	}
	s := d.shape(e.key)
	if s.err != nil {
		return nil, s.err
	}
	if s.check && !own {
		if err := e.explain(nil); err != nil {
			return nil, err
		}
	}
	if err := e.ownID(s); err != nil {
		return nil, err
	}
	head := make([]byte, 0, 4*binary.MaxVarintLen64)
	head = binary.AppendUvarint(head, s.number)
	head = binary.AppendUvarint(head, r.Index)
	head = binary.AppendUvarint(head, uint64(r.ExpiresAt))
	out := make([]byte, 0, idSize+binary.MaxVarintLen32+len(head)+len(e.values))
	out = binary.AppendUvarint(append(out, e.text[:]...), uint64(len(head)+len(e.values)))
	return append(append(out, head...), e.values...), nil
}

// explain gives the reason that encoding/json or the keyring has to refuse the row; else err.
func (e *encoder) explain(err error) error {
	clear, failed := e.d.keys.Open(e.d.m.def.Table, e.row.ID, e.row.Raw)
	if failed != nil {
		return failed
	}
	if failed = json.Unmarshal(clear, reflect.New(e.d.m.typ).Interface()); failed != nil {
		return failed
	}
	return err
}

// ownID refuses a row whose JSON has another id than the row.
func (e *encoder) ownID(s *shape) error {
	i := s.position("id")
	if i < 0 || s.members[i].kind == kindOwn || s.members[i].set == setNothing {
		return nil
	}
	r := record{shape: s, id: e.text[:], values: e.values}
	if text := r.text(i); text != "" {
		if id, err := ParseID(text); err != nil || id != e.row.ID {
			return fmt.Errorf("field id: is %q, the row's is %s", text, e.row.ID)
		}
	}
	return nil
}

// object reads {"name":value,…} to its end.
func (e *encoder) object(b []byte) error {
	if string(b) == "{}" {
		return nil
	}
	for opening := byte('{'); ; opening = ',' {
		if len(b) < 2 || b[0] != opening || b[1] != '"' {
			return errCanonical
		}
		end := plainString(b[1:])
		if end < 0 || 1+end >= len(b) || b[1+end] != ':' {
			return errCanonical
		}
		name := b[2:end]
		if bytes.HasPrefix(name, []byte("$")) {
			return errCanonical
		}
		kindAt := len(e.key)
		e.key = append(append(append(e.key, 0), name...), 0)
		var k kind
		var err error
		if k, b, err = e.value(name, b[2+end:]); err != nil {
			return err
		}
		e.key[kindAt] = byte(k)
		if string(b) == "}" {
			return nil
		}
	}
}

// value reads one value.
func (e *encoder) value(name, b []byte) (k kind, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, errCanonical
	}
	switch b[0] {
	case 'n':
		return literal(kindNull, b, "null")
	case 't':
		return literal(kindTrue, b, "true")
	case 'f':
		return literal(kindFalse, b, "false")
	case '"':
		return e.string(name, b)
	case '{':
		if text, rest, ok := seal.Cut(b); ok {
			return e.sealed(text, rest)
		}
		if bytes.HasPrefix(b, []byte(refOpening)) {
			quoted := b[len(refOpening)-1:]
			if end := plainString(quoted); end > 0 && len(quoted) > end && quoted[end] == '}' {
				e.put(quoted[1 : end-1])
				return kindRef, quoted[end+1:], nil
			}
		}
	case '[':
		if end := plainList(b); end > 0 {
			e.put(b[:end])
			return kindList, b[end:], nil
		}
	default:
		if n, end := integer(b); end > 0 {
			e.values = binary.AppendVarint(e.values, n)
			return kindInt, b[end:], nil
		}
	}
	return e.json(b)
}

func (e *encoder) put(data []byte) {
	e.values = append(binary.AppendUvarint(e.values, uint64(len(data))), data...)
}

func literal(k kind, b []byte, text string) (kind, []byte, error) {
	rest, ok := bytes.CutPrefix(b, []byte(text))
	if !ok {
		return 0, nil, errCanonical
	}
	return k, rest, nil
}

func (e *encoder) string(name, b []byte) (kind, []byte, error) {
	if end := plainString(b); end > 0 {
		if string(name) == "id" && string(b[1:end-1]) == string(e.text[:]) {
			return kindOwn, b[end:], nil
		}
		e.put(b[1 : end-1])
		return kindText, b[end:], nil
	}
	end := stringEnd(b)
	var s string
	if end < 0 || json.Unmarshal(b[:end], &s) != nil {
		return 0, nil, errCanonical
	}
	if !bytes.Equal(seal.AppendString(nil, s), b[:end]) { // escaped in another way
		return e.json(b)
	}
	e.put([]byte(s))
	return kindText, b[end:], nil
}

func (e *encoder) sealed(text, rest []byte) (kind, []byte, error) {
	x, err := e.d.keys.KeyOf(text)
	if err != nil {
		return 0, nil, err
	}
	opened, err := x.AppendOpened(nil, e.d.m.def.Table, e.row.ID, text)
	if err != nil {
		return 0, nil, err
	}
	if !utf8.Valid(opened[seal.NonceSize:]) { // encoding/json will make something else of it
		return 0, nil, errors.New("sealed value is not UTF-8")
	}
	e.put(opened)
	e.key = append(append(e.key, x.ID()...), 0)
	return kindSealed, rest, nil
}

// json reads a value of any other form, up to the comma or brace behind it.
func (e *encoder) json(b []byte) (kind, []byte, error) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := stringEnd(b[i:])
			if end < 0 {
				return 0, nil, errCanonical
			}
			i += end - 1
			continue
		case '{', '[':
			depth++
			continue
		case ',':
			if depth > 0 {
				continue
			}
		case '}', ']':
			if depth--; depth >= 0 {
				continue
			}
		default:
			continue
		}
		if len(bytes.TrimSpace(b[:i])) != i {
			return 0, nil, errCanonical
		}
		e.put(b[:i])
		if bytes.Contains(b[:i], []byte(seal.Opening)) {
			return kindMixed, b[i:], nil
		}
		return kindJSON, b[i:], nil
	}
	return 0, nil, errCanonical
}

// plainString is the length of the string that b begins with, quotes included; -1 if it is not one of printable ASCII without escapes.
func plainString(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return -1
	}
	for i, c := range b[1:] {
		switch {
		case c == '"':
			return i + 2
		case c == '\\' || c < ' ' || c > '~':
			return -1
		}
	}
	return -1
}

// stringEnd is the length of the string that b begins with, quotes included; -1 if it does not end.
func stringEnd(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// plainList is the length of the list of plain strings that b begins with; -1 if it is none.
func plainList(b []byte) int {
	if bytes.HasPrefix(b, []byte("[]")) {
		return 2
	}
	for i := 1; ; i++ {
		end := plainString(b[i:])
		if i += end; end < 0 || i >= len(b) {
			return -1
		}
		switch b[i] {
		case ']':
			return i + 1
		case ',':
		default:
			return -1
		}
	}
}

// integer reads a number that a varint gives back: up to 15 digits, which a float64 holds exactly.
func integer(b []byte) (n int64, end int) {
	digits := 0
	if b[0] == '-' {
		digits = 1
	}
	for end = digits; end < len(b) && '0' <= b[end] && b[end] <= '9'; end++ {
		n = n*10 + int64(b[end]-'0')
		if end-digits == 15 {
			return 0, -1
		}
	}
	switch {
	case end == digits, end == len(b), b[end] != ',' && b[end] != '}':
		return 0, -1
	case b[digits] == '0' && (end > digits+1 || digits == 1):
		return 0, -1
	case digits == 1:
		n = -n
	}
	return n, end
}

package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// MaxDepth bounds the nesting of JSON that Decode accepts.
const MaxDepth = 100

// Decode parses one JSON object. Numbers become float64, of a repeated key the last value counts. Text that is not UTF-8,
// nested deeper than MaxDepth or followed by more than white space is refused.
func Decode(data []byte) (Record, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("invalid JSON: not UTF-8")
	}
	if rec, ok := plainRecord(data); ok {
		return rec, nil
	}
	return decodeAny(data)
}

// decodeAny is Decode for any JSON.
func decodeAny(data []byte) (Record, error) {
	if err := checkDepth(data); err != nil {
		return nil, err
	}
	if halfSurrogate(data) { // encoding/json would store another character
		return nil, errors.New("invalid JSON: half a surrogate pair in a string (RFC 8259, 8.2)")
	}
	var rec Record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, fmt.Errorf("invalid JSON: %w", err)
	}
	if rec == nil {
		return nil, errors.New("invalid JSON: expected an object, not null")
	}
	return rec, nil
}

// halfSurrogate tells whether there is an escape that is no character without the one that does not follow, or come before.
func halfSurrogate(data []byte) bool {
	unit := func(at int) uint64 {
		if at+6 > len(data) || data[at] != '\\' || data[at+1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(data[at+2:at+6]), 16, 16) // what is none is refused later
		return n
	}
	for i := 0; i < len(data); {
		n := bytes.IndexByte(data[i:], '\\')
		if n < 0 {
			return false
		}
		i += n
		switch u := unit(i); {
		case u>>10 == 0xdc00>>10, u>>10 == 0xd800>>10 && unit(i+6)>>10 != 0xdc00>>10:
			return true
		case u>>10 == 0xd800>>10:
			i += 12
		default:
			i += 2
		}
	}
	return false
}

func checkDepth(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return fmt.Errorf("invalid JSON: nested deeper than %d levels", MaxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Encode renders a record as canonical JSON: keys sorted, no white space, nothing escaped that JSON does not demand.
func Encode(rec Record) ([]byte, error) {
	if text, ok := appendPlain(make([]byte, 0, 256), rec, 0); ok {
		return text, nil
	}
	return encodeAny(rec)
}

// encodeAny is Encode for any record.
func encodeAny(rec Record) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(rec); err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

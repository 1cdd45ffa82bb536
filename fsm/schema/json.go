package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	if err := checkDepth(data); err != nil {
		return nil, err
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
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(rec); err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

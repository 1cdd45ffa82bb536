package schema

import (
	"math"
	"slices"
	"strconv"
)

// Most JSON here is plain: no escapes in strings, no fractions or exponents in numbers. That is read and written in one pass; what
// is not, and what is wrong, is for encoding/json: each function says whether it could do it all, and then does what encoding/json does.

// plainReader reads UTF-8.
type plainReader struct {
	text []byte
	at   int
}

// plainRecord reads an object with nothing but white space around it.
func plainRecord(text []byte) (Record, bool) {
	r := plainReader{text: text}
	if r.next() != '{' {
		return nil, false
	}
	rec, ok := r.object(1)
	return rec, ok && r.next() == 0 && r.at == len(text)
}

// next skips white space and is the byte behind it, 0 at the end.
func (r *plainReader) next() byte {
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *plainReader) value(depth int) (v any, ok bool) {
	switch c := r.next(); c {
	case '"':
		return r.string()
	case '{':
		return r.object(depth + 1)
	case '[':
		return r.list(depth + 1)
	case 't':
		return true, r.word("true")
	case 'f':
		return false, r.word("false")
	case 'n':
		return nil, r.word("null")
	default:
		return r.integer()
	}
}

func (r *plainReader) object(depth int) (Record, bool) {
	rec := Record{}
	for r.at++; ; r.at++ {
		switch c := r.next(); {
		case c == '}' && len(rec) == 0:
			r.at++
			return rec, depth <= MaxDepth
		case c != '"' || depth > MaxDepth:
			return nil, false
		}
		name, ok := r.string()
		if !ok || r.next() != ':' {
			return nil, false
		}
		r.at++
		v, ok := r.value(depth)
		if !ok {
			return nil, false
		}
		rec[name] = v
		switch r.next() {
		case ',':
		case '}':
			r.at++
			return rec, true
		default:
			return nil, false
		}
	}
}

func (r *plainReader) list(depth int) ([]any, bool) {
	list := []any{}
	if r.at++; r.next() == ']' {
		r.at++
		return list, depth <= MaxDepth
	}
	for depth <= MaxDepth {
		v, ok := r.value(depth)
		if !ok {
			return nil, false
		}
		list = append(list, v)
		switch r.next() {
		case ',':
			r.at++
		case ']':
			r.at++
			return list, true
		default:
			return nil, false
		}
	}
	return nil, false
}

func (r *plainReader) string() (string, bool) {
	begin := r.at + 1
	for i := begin; i < len(r.text); i++ {
		switch c := r.text[i]; {
		case c == '"':
			r.at = i + 1
			return string(r.text[begin:i]), true
		case c == '\\' || c < ' ':
			return "", false
		}
	}
	return "", false
}

func (r *plainReader) word(w string) bool {
	if end := r.at + len(w); end <= len(r.text) && string(r.text[r.at:end]) == w {
		r.at = end
		return true
	}
	return false
}

// exactDigits are always an integer that a float64 holds exactly.
const exactDigits = 15

func (r *plainReader) integer() (any, bool) {
	begin := r.at
	if begin < len(r.text) && r.text[begin] == '-' {
		r.at++
	}
	digits, n := r.at, 0
	for ; r.at < len(r.text) && r.text[r.at]-'0' <= 9; r.at++ {
		if n = 10*n + int(r.text[r.at]-'0'); r.at-digits == exactDigits {
			return nil, false
		}
	}
	switch {
	case r.at == digits, r.text[digits] == '0' && (r.at > digits+1 || digits > begin):
		return nil, false
	case r.at < len(r.text) && (r.text[r.at] == '.' || r.text[r.at]|' ' == 'e'):
		return nil, false
	case digits > begin:
		n = -n
	}
	return float64(n), true
}

// appendPlain writes plain data as canonical JSON.
func appendPlain(b []byte, v any, depth int) (_ []byte, ok bool) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), true
	case bool:
		return strconv.AppendBool(b, v), true
	case string:
		return appendPlainString(b, v)
	case float64:
		return appendPlainNumber(b, v)
	case []any:
		return appendPlainList(b, v, depth+1)
	case Record:
		return appendPlainRecord(b, v, depth+1)
	}
	return b, false
}

func appendPlainString(b []byte, s string) ([]byte, bool) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return b, false
		}
	}
	return append(append(append(b, '"'), s...), '"'), true
}

func appendPlainNumber(b []byte, f float64) ([]byte, bool) {
	n := int64(f)
	if float64(n) != f || n == 0 && math.Signbit(f) || n >= 1e15 || n <= -1e15 {
		return b, false
	}
	return strconv.AppendInt(b, n, 10), true
}

func appendPlainList(b []byte, list []any, depth int) (_ []byte, ok bool) {
	if list == nil || depth > MaxDepth {
		return b, false
	}
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if b, ok = appendPlain(b, v, depth); !ok {
			return b, false
		}
	}
	return append(b, ']'), true
}

func appendPlainRecord(b []byte, rec Record, depth int) (_ []byte, ok bool) {
	if rec == nil || depth > MaxDepth {
		return b, false
	}
	var room [32]string
	names := room[:0]
	for name := range rec {
		names = append(names, name)
	}
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		if b, ok = appendPlainString(b, name); !ok {
			return b, false
		}
		if b, ok = appendPlain(append(b, ':'), rec[name], depth); !ok {
			return b, false
		}
	}
	return append(b, '}'), true
}

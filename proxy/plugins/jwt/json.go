package jwt

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of the JSON in a token. Real tokens have a dozen members and two levels.
const (
	maxMembers = 256
	maxDepth   = 64
)

var errJSON = errors.New("not a JSON object a token may hold")

// kind is the type of a JSON value, by the first character that can tell.
type kind byte

const (
	kindString kind = '"'
	kindNumber kind = '0'
	kindObject kind = '{'
	kindArray  kind = '['
	kindTrue   kind = 't'
	kindFalse  kind = 'f'
	kindNull   kind = 'n'
)

// member is one member of a token's header or claims. The bytes point into the decoded token.
type member struct {
	name []byte // unescaped
	raw  []byte // the value's text
	kind kind
}

// text is the value of a string.
func (m *member) text() []byte { return unquote(m.raw) }

// number is the value of a number, false when it is no number or beyond a float64.
func (m *member) number() (float64, bool) {
	if m == nil || m.kind != kindNumber {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(m.raw), 64)
	return f, err == nil
}

func find(list []member, name string) *member {
	for i := range list {
		if string(list[i].name) == name {
			return &list[i]
		}
	}
	return nil
}

// object appends the members of a JSON object to list. It is stricter than RFC 8259 demands: one object and nothing behind it,
// valid UTF-8, no lone surrogates, no duplicate members (RFC 8725 §2.4: two parsers must not see two different
// tokens), bounded depth and number of members.
func object(data []byte, list []member) ([]member, error) {
	if !utf8.Valid(data) {
		return nil, errJSON
	}
	s := scanner{data: data}
	s.space()
	if !s.take('{') {
		return nil, errJSON
	}
	s.space()
	if !s.take('}') {
		for {
			start := s.at
			if !s.string() {
				return nil, errJSON
			}
			name := unquote(data[start:s.at])
			s.space()
			if !s.take(':') {
				return nil, errJSON
			}
			s.space()
			start = s.at
			k := s.value(1)
			if k == 0 || len(list) == maxMembers || find(list, string(name)) != nil {
				return nil, errJSON
			}
			list = append(list, member{name: name, raw: data[start:s.at], kind: k})
			s.space()
			if s.take('}') {
				break
			}
			if !s.take(',') {
				return nil, errJSON
			}
			s.space()
		}
	}
	s.space()
	if s.at != len(data) {
		return nil, errJSON
	}
	return list, nil
}

// wellFormed tells whether data is JSON at all, if not an object to be accepted.
func wellFormed(data []byte) bool {
	s := scanner{data: data}
	s.space()
	k := s.value(1)
	s.space()
	return k != 0 && s.at == len(data)
}

// scanner walks over JSON text. Its methods are false (or zero) when the text is not what they look for.
type scanner struct {
	data []byte
	at   int
}

func (s *scanner) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

func (s *scanner) take(c byte) bool {
	if s.peek() != c || s.at == len(s.data) {
		return false
	}
	s.at++
	return true
}

func (s *scanner) space() {
	for s.at < len(s.data) && (s.data[s.at] == ' ' || s.data[s.at] == '\t' || s.data[s.at] == '\n' || s.data[s.at] == '\r') {
		s.at++
	}
}

func (s *scanner) value(depth int) kind {
	if depth > maxDepth {
		return 0
	}
	switch c := s.peek(); c {
	case '"':
		return either(s.string(), kindString)
	case '{':
		return either(s.list(depth, '}', true), kindObject)
	case '[':
		return either(s.list(depth, ']', false), kindArray)
	case 't':
		return either(s.word("true"), kindTrue)
	case 'f':
		return either(s.word("false"), kindFalse)
	case 'n':
		return either(s.word("null"), kindNull)
	}
	return either(s.number(), kindNumber)
}

func either(ok bool, k kind) kind {
	if ok {
		return k
	}
	return 0
}

func (s *scanner) list(depth int, end byte, named bool) bool {
	s.at++
	s.space()
	if s.take(end) {
		return true
	}
	for {
		if named {
			if !s.string() {
				return false
			}
			s.space()
			if !s.take(':') {
				return false
			}
			s.space()
		}
		if s.value(depth+1) == 0 {
			return false
		}
		s.space()
		if s.take(end) {
			return true
		}
		if !s.take(',') {
			return false
		}
		s.space()
	}
}

func (s *scanner) word(w string) bool {
	if !bytes.HasPrefix(s.data[s.at:], []byte(w)) {
		return false
	}
	s.at += len(w)
	return true
}

func (s *scanner) string() bool {
	if !s.take('"') {
		return false
	}
	for s.at < len(s.data) {
		c := s.data[s.at]
		s.at++
		switch {
		case c == '"':
			return true
		case c < 0x20:
			return false
		case c != '\\':
		case s.take('u'):
			r, ok := s.hex4()
			if !ok {
				return false
			}
			if utf16.IsSurrogate(r) {
				if !s.take('\\') || !s.take('u') {
					return false
				}
				low, ok := s.hex4()
				if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
					return false
				}
			}
		default:
			if bytes.IndexByte([]byte(`"\/bfnrt`), s.peek()) < 0 {
				return false
			}
			s.at++
		}
	}
	return false
}

func (s *scanner) hex4() (rune, bool) {
	if s.at+4 > len(s.data) {
		return 0, false
	}
	var r rune
	for _, c := range s.data[s.at : s.at+4] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	s.at += 4
	return r, true
}

func (s *scanner) number() bool {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return false
	}
	if s.take('.') && !s.digits() {
		return false
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		return s.digits()
	}
	return true
}

func (s *scanner) digits() bool {
	start := s.at
	for '0' <= s.peek() && s.peek() <= '9' {
		s.at++
	}
	return s.at > start
}

// unquote is the value of a string that the scanner found well-formed. Without escapes it is a part of the text itself.
func unquote(quoted []byte) []byte {
	in := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(in, '\\') < 0 {
		return in
	}
	out := make([]byte, 0, len(in))
	for s := (scanner{data: in}); s.at < len(in); {
		c := in[s.at]
		s.at++
		if c != '\\' {
			out = append(out, c)
			continue
		}
		c = in[s.at]
		s.at++
		switch c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, _ := s.hex4()
			if utf16.IsSurrogate(r) {
				s.at += 2
				low, _ := s.hex4()
				r = utf16.DecodeRune(r, low)
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
		}
	}
	return out
}

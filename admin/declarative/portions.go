package declarative

import (
	"bytes"
	"maps"

	"concord/fsm/schema"
)

// portion is how much JSON is decoded at once, in bytes: some 50 µs of work.
const portion = 2 << 10

// portions decodes a large JSON object as schema.Decode does, but a few elements at a time, so that the one who decodes may rest.
// What it refuses is not JSON: schema.Decode says why.
type portions struct {
	text  []byte
	at    int
	limit int // portion, but in tests
	rest  func()
	buf   []byte
}

// decodePortions is schema.Decode with rests; nil for what schema.Decode refuses.
func decodePortions(text []byte, limit int, rest func()) schema.Record {
	p := &portions{text: text, limit: limit, rest: rest}
	if p.space() != '{' {
		return nil
	}
	v, _ := p.container(1)
	rec, _ := v.(schema.Record)
	if p.at++; p.space() != 0 || p.at < len(text) {
		return nil
	}
	return rec
}

// space skips white space and is the byte behind it, 0 at the end.
func (p *portions) space() byte {
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// container decodes the array or object that begins here, and stays at the byte that ends it.
func (p *portions) container(depth int) (any, bool) {
	open := p.text[p.at]
	p.at++
	list, rec := []any{}, schema.Record{}
	for first := true; ; first = false {
		p.rest()
		end, deep := p.cut(p.limit)
		if depth+deep > schema.MaxDepth {
			return nil, false
		}
		if end >= 0 {
			if !p.elements(open, p.text[p.at:end], &list, rec) || blank(p.text[p.at:end]) && !(first && p.text[end] != ',') {
				return nil, false
			}
			p.at = end
		} else if !p.large(open, depth, &list, rec) {
			return nil, false
		}
		switch c := p.space(); {
		case c == ',':
			p.at++
		case open == '[' && c == ']':
			return list, true
		case open == '{' && c == '}':
			return rec, true
		default:
			return nil, false
		}
	}
}

// cut finds the end of the elements that fit into so many bytes from here on, which is that of the first one if the limit is 0, and how
// deep they are nested; -1 if not even one fits.
func (p *portions) cut(limit int) (end, deep int) {
	depth, quoted := 0, false
	end = -1
	for i := p.at; i < len(p.text) && (i-p.at < limit || limit == 0); i++ {
		switch c := p.text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ',' && depth == 0:
			if end = i; limit == 0 {
				return end, deep
			}
		case c == '{' || c == '[':
			depth++
			deep = max(deep, depth)
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return i, deep
			}
		}
	}
	return end, deep
}

// elements decodes what stands between the brackets, or a part of it. It has no bracket whose other end is outside.
func (p *portions) elements(open byte, text []byte, list *[]any, rec schema.Record) bool {
	head, tail := "{", "}"
	if open == '[' {
		head, tail = `{"":[`, `]}`
	}
	p.buf = append(append(append(p.buf[:0], head...), text...), tail...)
	got, err := schema.Decode(p.buf)
	if err != nil {
		return false
	}
	if open == '{' {
		maps.Copy(rec, got)
		return true
	}
	more, ok := got[""].([]any)
	*list = append(*list, more...)
	return ok
}

// large decodes one element that is no portion: a container by its elements.
func (p *portions) large(open byte, depth int, list *[]any, rec schema.Record) bool {
	begin, name := p.at, ""
	if open == '{' {
		var ok bool
		if name, ok = p.name(); !ok || p.space() != ':' {
			return false
		}
		p.at++
	}
	if c := p.space(); c != '{' && c != '[' {
		p.at = begin
		end, deep := p.cut(0)
		if end < 0 || depth+deep > schema.MaxDepth || blank(p.text[begin:end]) || !p.elements(open, p.text[begin:end], list, rec) {
			return false
		}
		p.at = end
		return true
	}
	v, ok := p.container(depth + 1)
	if p.at++; !ok {
		return false
	}
	if open == '[' {
		*list = append(*list, v)
	} else {
		rec[name] = v
	}
	return true
}

// name decodes the member's name that begins here.
func (p *portions) name() (string, bool) {
	if p.space() != '"' {
		return "", false
	}
	for i := p.at + 1; i < len(p.text); i++ {
		switch p.text[i] {
		case '\\':
			i++
		case '"':
			p.buf = append(append(append(p.buf[:0], '{'), p.text[p.at:i+1]...), ":0}"...)
			p.at = i + 1
			got, err := schema.Decode(p.buf)
			for name := range got {
				return name, err == nil
			}
			return "", false
		}
	}
	return "", false
}

func blank(text []byte) bool { return len(bytes.Trim(text, " \t\r\n")) == 0 }

package exchange

import (
	"iter"
	"strings"
)

// Queries are read as Kong's nginx does: parameters are separated by '&' only, '+' is a space, a wrong escape stands for
// itself, and there is no limit on their number, so that plugins never see less than the upstream.

// Query returns the first value of a query parameter. A parameter without '=' has the value "".
func (r *Request) Query(name string) (string, bool) {
	for v := range r.QueryValues(name) {
		return v, true
	}
	return "", false
}

// QueryValues yields all values of a query parameter in order. Values without escapes are not copied.
func (r *Request) QueryValues(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		rest := r.RawQuery
		for rest != "" {
			var pair string
			pair, rest, _ = strings.Cut(rest, "&")
			k, v, _ := strings.Cut(pair, "=")
			if pair != "" && queryEqual(k, name) && !yield(QueryUnescape(v)) {
				return
			}
		}
	}
}

// QueryAll yields all query parameters in order.
func (r *Request) QueryAll() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		rest := r.RawQuery
		for rest != "" {
			var pair string
			pair, rest, _ = strings.Cut(rest, "&")
			k, v, _ := strings.Cut(pair, "=")
			if pair != "" && !yield(QueryUnescape(k), QueryUnescape(v)) {
				return
			}
		}
	}
}

// DelQuery removes all parameters of that name, leaving the others byte for byte as they were.
func (r *Request) DelQuery(name string) bool {
	if _, ok := r.Query(name); !ok {
		return false
	}
	var b strings.Builder
	rest := r.RawQuery
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if k, _, _ := strings.Cut(pair, "="); pair != "" && queryEqual(k, name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pair)
	}
	r.SetRawQuery(b.String())
	return true
}

// AddQuery appends a parameter.
func (r *Request) AddQuery(name, value string) {
	b := make([]byte, 0, len(r.RawQuery)+len(name)+len(value)+8)
	b = append(b, r.RawQuery...)
	if len(b) > 0 {
		b = append(b, '&')
	}
	b = appendQueryEscaped(b, name)
	b = append(b, '=')
	r.SetRawQuery(string(appendQueryEscaped(b, value)))
}

// SetQuery makes value the only value of a parameter.
func (r *Request) SetQuery(name, value string) {
	r.DelQuery(name)
	r.AddQuery(name, value)
}

// SetRawQuery replaces the whole query string.
func (r *Request) SetRawQuery(query string) {
	r.RawQuery, r.HasQuery = query, query != ""
}

// queryEqual compares an escaped name with a clear one.
func queryEqual(raw, name string) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] == '%' || raw[i] == '+' {
			return QueryUnescape(raw) == name
		}
	}
	return raw == name
}

// QueryUnescape decodes a query component. It returns s itself when there is nothing to decode.
func QueryUnescape(s string) string {
	i := 0
	for i < len(s) && s[i] != '%' && s[i] != '+' {
		i++
	}
	if i == len(s) {
		return s
	}
	b := make([]byte, i, len(s))
	copy(b, s)
	for ; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			c = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
		}
		b = append(b, c)
	}
	return string(b)
}

func appendQueryEscaped(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// Cookie returns the value of the first cookie of that name, without surrounding quotes (RFC 6265 §4.1.1).
func (r *Request) Cookie(name string) (string, bool) {
	for list := range r.Header.Values("Cookie") {
		for list != "" {
			var pair string
			pair, list, _ = strings.Cut(list, ";")
			k, v, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if !ok || k != name {
				continue
			}
			if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			return v, true
		}
	}
	return "", false
}

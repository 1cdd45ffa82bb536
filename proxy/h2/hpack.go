package h2

import (
	"strconv"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// Header blocks are written without the dynamic table (RFC 7541 §4.2 leaves that to the encoder; nginx does the same): a
// block then depends on nothing but its fields, so that streams make theirs at the same time and outside the connection's
// lock. Reading, where the other side decides, is golang.org/x/net/http2/hpack's.

// staticNames are the names of the static table from index 15 on (RFC 7541 appendix A).
var staticNames = [...]string{
	"accept-charset", "accept-encoding", "accept-language", "accept-ranges", "accept", "access-control-allow-origin", "age",
	"allow", "authorization", "cache-control", "content-disposition", "content-encoding", "content-language", "content-length",
	"content-location", "content-range", "content-type", "cookie", "date", "etag", "expect", "expires", "from", "host",
	"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "link", "location",
	"max-forwards", "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after", "server",
	"set-cookie", "strict-transport-security", "transfer-encoding", "user-agent", "vary", "via", "www-authenticate",
}

// Indices of the static table.
const (
	staticFirst         = 15
	staticAuthority     = 1
	staticGET           = 2
	staticPOST          = 3
	staticPath          = 4
	staticHTTP          = 6
	staticHTTPS         = 7
	staticStatus        = 8
	staticContentLength = 28
	staticDate          = 33
)

// staticBy lists the indices of the names of each length.
var staticBy = func() (t [32][]uint8) {
	for i, n := range staticNames {
		t[len(n)] = append(t[len(n)], uint8(staticFirst+i))
	}
	return t
}()

func staticIndex(name string) uint8 {
	if len(name) >= len(staticBy) {
		return 0
	}
	for _, i := range staticBy[len(name)] {
		if n := staticNames[i-staticFirst]; n[0] == name[0]|0x20 && exchange.EqualFold(n, name) {
			return i
		}
	}
	return 0
}

// How a literal is marked (RFC 7541 §6.2).
const (
	literal      = 0x00
	literalNever = 0x10 // for secrets: whoever compresses further must not index it (§7.1.3)
)

func appendInt(b []byte, prefix uint, mark byte, n int) []byte {
	limit := 1<<prefix - 1
	if n < limit {
		return append(b, mark|byte(n))
	}
	b = append(b, mark|byte(limit))
	n -= limit
	for n >= 0x80 {
		b = append(b, 0x80|byte(n))
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte { return append(appendInt(b, 7, 0, len(s)), s...) }

// appendIndexed appends a field whose name has an index in the static table.
func appendIndexed(b []byte, index int, value string) []byte {
	return appendString(appendInt(b, 4, literal, index), value)
}

func appendStatus(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x80|8)
	case 204:
		return append(b, 0x80|9)
	case 206:
		return append(b, 0x80|10)
	case 304:
		return append(b, 0x80|11)
	case 400:
		return append(b, 0x80|12)
	case 404:
		return append(b, 0x80|13)
	case 500:
		return append(b, 0x80|14)
	}
	return append(b, literal|staticStatus, 3, '0'+byte(status/100%10), '0'+byte(status/10%10), '0'+byte(status%10))
}

func appendLength(b []byte, n int64) []byte {
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], n, 10)
	b = appendInt(b, 4, literal, staticContentLength)
	return append(appendInt(b, 7, 0, len(d)), d...)
}

// appendField appends a field with its name in lower case. It reports false when name or value may not be sent
// (RFC 9113 §8.2.1): a receiver that translates to HTTP/1.1 would read further fields out of them.
func appendField(b []byte, name, value string) ([]byte, bool) {
	if name == "" || !h1.ValidValue(value) {
		return b, false
	}
	for value != "" && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for value != "" && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	if i := staticIndex(name); i != 0 {
		mark := byte(literal)
		switch staticNames[i-staticFirst] {
		case "authorization", "proxy-authorization", "cookie", "set-cookie":
			mark = literalNever
		}
		return appendString(appendInt(b, 4, mark, int(i)), value), true
	}
	b = append(b, literal)
	b = appendInt(b, 7, 0, len(name))
	for i := 0; i < len(name); i++ {
		c := lowerToken[name[i]]
		if c == 0 {
			return b, false
		}
		b = append(b, c)
	}
	return appendString(b, value), true
}

// lowerToken is the lower case of what may stand in a field name, 0 for everything else.
var lowerToken = func() (t [256]byte) {
	for c := range 256 {
		if h1.ValidToken(string([]byte{byte(c)})) {
			t[c] = byte(c)
			if 'A' <= c && c <= 'Z' {
				t[c] |= 0x20
			}
		}
	}
	return t
}()

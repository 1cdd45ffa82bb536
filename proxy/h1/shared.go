package h1

import "concord/proxy/exchange"

// What follows is the part of the rules that does not depend on the version of HTTP. Both front ends and both upstream
// protocols use these functions, so that no request is refused on one and let through on the other.

// ValidToken tells whether s is a token (RFC 9110 §5.6.2): a method or a field name.
func ValidToken(s string) bool { return allOf(bytesOf(s), isToken) }

// ValidTarget tells whether s may be a request target: no control characters, spaces or '#'.
func ValidTarget(s string) bool { return allOf(bytesOf(s), isTarget) }

// ValidHost accepts what may stand in Host or an authority: host and host:port.
func ValidHost(s string) bool { return validHost(s) }

// ValidValue tells whether s may be a field value (RFC 9110 §5.5).
func ValidValue(s string) bool { return validValue(bytesOf(s)) }

// ParseLength reads the value of Content-Length.
func ParseLength(s string) (int64, bool) { return parseLength(bytesOf(s)) }

// ForbiddenTrailer tells whether a field is dropped from trailers.
func ForbiddenTrailer(name string) bool { return forbiddenTrailers.Has(name) }

// ExpectsLength tells whether a request without body announces that: Content-Length 0 (RFC 9110 §8.6).
func ExpectsLength(method string) bool { return expectsLength(method) }

// AppendTarget appends the origin-form target of the upstream request.
func AppendTarget(b []byte, r *exchange.Request, u *exchange.Upstream) []byte {
	return appendTarget(b, r, u)
}

// WithDefaults replaces zero limits by the defaults.
func (l Limits) WithDefaults() Limits {
	l.setDefaults()
	return l
}

// Date is the value of the Date field now.
func (c *Clock) Date() string { return *c.date.Load() }

package h1

import (
	"strconv"

	"concord/proxy/exchange"
)

// appendRequest writes the head of the upstream request: framing fields and Host are the gateway's own, whatever the
// header says. It reports false when a value would have forged a line.
func appendRequest(b []byte, x *exchange.Exchange) ([]byte, bool) {
	r, u := &x.Request, &x.Upstream
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = appendTarget(b, r, u)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, u.HostHeader...)
	b = append(b, '\r', '\n')
	lines := 2
	for i := range r.Header.Fields {
		f := &r.Header.Fields[i]
		switch len(f.Name) {
		case 2, 7, 10, 14, 16, 17:
			if framingField(f.Name) {
				continue
			}
		case 4:
			if exchange.EqualFold(f.Name, "Host") {
				continue
			}
		}
		b = appendField(b, f.Name, f.Value)
		lines++
	}
	switch {
	case r.Body != nil && r.Length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		lines++
	case r.Body != nil, expectsLength(r.Method):
		b = append(b, "Content-Length: "...)
		n := r.Length
		if r.Body == nil {
			n = 0
		}
		b = strconv.AppendInt(b, n, 10)
		b = append(b, '\r', '\n')
		lines++
	}
	switch {
	case r.Upgrade != "":
		b = append(b, "Connection: keep-alive, Upgrade\r\n"...)
		b = appendField(b, "Upgrade", r.Upgrade)
		lines += 2
	case r.TETrailers:
		b = append(b, "TE: trailers\r\nConnection: keep-alive, TE\r\n"...)
		lines += 2
	default:
		b = append(b, "Connection: keep-alive\r\n"...)
		lines++
	}
	return append(b, '\r', '\n'), wellFormed(b, lines)
}

// expectsLength: RFC 9110 §8.6 asks for Content-Length: 0 with methods that anticipate content.
func expectsLength(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

func appendTarget(b []byte, r *exchange.Request, u *exchange.Upstream) []byte {
	switch p := u.Path; {
	case p == "":
		b = append(b, '/')
	case allOf(bytesOf(p), isURI):
		if p[0] != '/' && p != "*" {
			b = append(b, '/')
		}
		b = append(b, p...)
	default:
		if p[0] != '/' {
			b = append(b, '/')
		}
		b = exchange.AppendEscapedPath(b, p)
	}
	if r.HasQuery || r.RawQuery != "" {
		b = append(b, '?')
		if r.RawQuery == "" || allOf(bytesOf(r.RawQuery), isURI) {
			b = append(b, r.RawQuery...)
		} else {
			b = exchange.AppendEscapedQuery(b, r.RawQuery)
		}
	}
	return b
}

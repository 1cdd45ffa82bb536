package proxy

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"concord/proxy/exchange"
)

// appendJSONLine is the access log's line of an exchange as one JSON object. Members that do not apply are left out; times are
// in milliseconds.
func appendJSONLine(b []byte, x *exchange.Exchange, secret []string) []byte {
	r, p := &x.Request, &x.Response
	b = append(b, `{"time":"`...)
	b = x.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","client_ip":"`...)
	b = clientOf(x).AppendTo(b)
	b = append(b, '"')
	b = appendMember(b, "user", userOf(x))
	if r.Method != "" {
		b = appendMember(b, "method", r.Method)
		b = appendMember(b, "scheme", r.Scheme)
		b = appendMember(b, "host", r.Host)
		b = append(b, `,"uri":"`...)
		b = appendURL(b, r.Target, secret, appendJSONText)
		b = append(b, `","protocol":"HTTP/`...)
		b = strconv.AppendInt(b, int64(r.Major), 10)
		b = append(b, '.')
		b = strconv.AppendInt(b, int64(r.Minor), 10)
		b = append(b, '"')
	}
	b = appendNumber(b, "status", int64(p.Status))
	b = appendNumber(b, "body_bytes_sent", bodySent(x))
	b = appendNumber(b, "bytes_received", x.BytesReceived)
	b = appendMillis(b, "duration_ms", time.Since(x.Start))
	if x.Proxied {
		b = appendMillis(b, "upstream_ms", x.HeadersAt.Sub(x.SentAt))
	}
	if x.Peer != (netip.AddrPort{}) {
		b = append(b, `,"upstream":"`...)
		b = x.Peer.AppendTo(b)
		b = append(b, '"')
		b = appendNumber(b, "tries", int64(x.Tries))
	}
	if s := x.Service; s != nil {
		b = appendMember(b, "service", either(s.Name, s.ID))
	}
	if t := x.Route; t != nil {
		b = appendMember(b, "route", either(t.Name, t.ID))
	}
	if c := x.Consumer; c != nil {
		b = appendMember(b, "consumer", either(c.Username, c.ID))
	}
	if from := r.Header.Get("Referer"); from != "" {
		b = append(b, `,"referer":"`...)
		b = appendURL(b, from, secret, appendJSONText)
		b = append(b, '"')
	}
	b = appendMember(b, "user_agent", r.Header.Get("User-Agent"))
	b = appendMember(b, "request_id", x.RequestID)
	return append(b, '}', '\n')
}

func either(name, id string) string {
	if name != "" {
		return name
	}
	return id
}

// appendMember writes a text, if there is any.
func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":"`...)
	b = appendJSONText(b, value)
	return append(b, '"')
}

func appendNumber(b []byte, name string, n int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, n, 10)
}

func appendMillis(b []byte, name string, d time.Duration) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendFloat(b, float64(max(0, d).Microseconds())/1000, 'f', 3, 64)
}

// appendJSONText writes text as the inside of a JSON string. Besides what JSON demands it escapes all that is not ASCII, so that the
// log can neither be broken into other lines by a reader that knows more line ends, nor talk to a terminal. Bytes that are no
// UTF-8 become U+FFFD.
func appendJSONText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	unit := func(r rune) {
		b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f:
			unit(rune(c))
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r > 0xffff {
				r -= 0x10000
				unit(0xd800 + r>>10)
				r = 0xdc00 + r&0x3ff
			}
			unit(r)
			i += n
			continue
		}
		i++
	}
	return b
}

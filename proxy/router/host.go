package router

import "strings"

// hostKind says which tree a host pattern lives in.
type hostKind uint8

const (
	plainHost    hostKind = iota // key: the name
	leadingHost                  // "*.example.com": key is ".example.com" reversed
	trailingHost                 // "example.*": key is "example."
)

// hostPattern is one element of a route's hosts. An empty port matches any.
type hostPattern struct {
	kind hostKind
	key  string
	port string
}

// maxHost is the longest name that is looked up; longer ones cannot be DNS names and match no host.
const maxHost = 255

func parseHostPattern(s string) hostPattern {
	name, port := splitPort(strings.ToLower(s))
	name = strings.TrimSuffix(name, ".")
	switch {
	case strings.HasPrefix(name, "*"):
		return hostPattern{leadingHost, reversed(name[1:]), port}
	case strings.HasSuffix(name, "*"):
		return hostPattern{trailingHost, name[:len(name)-1], port}
	}
	return hostPattern{plainHost, name, port}
}

// splitPort separates a decimal port; brackets around an IPv6 address are removed.
func splitPort(s string) (name, port string) {
	if strings.HasPrefix(s, "[") {
		if i := strings.IndexByte(s, ']'); i > 0 {
			if rest := s[i+1:]; rest == "" || rest == ":" {
				return s[1:i], ""
			} else if rest[0] == ':' && allDigits(rest[1:]) {
				return s[1:i], rest[1:]
			}
		}
		return s, ""
	}
	i := strings.IndexByte(s, ':')
	if i < 0 || !allDigits(s[i+1:]) {
		return s, ""
	}
	return s[:i], s[i+1:]
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func reversed(s string) string {
	var buf [maxHost]byte
	if len(s) > maxHost {
		b := make([]byte, len(s))
		return string(reverseInto(b, s))
	}
	return string(reverseInto(buf[:len(s)], s))
}

func reverseInto(b []byte, s string) []byte {
	for i := range len(s) {
		b[len(s)-1-i] = s[i]
	}
	return b[:len(s)]
}

package cors

import (
	"net/netip"
	"regexp"
	"strings"
)

// plain tells whether a configured origin stands for itself; any other is a regular expression (Kong).
func plain(entry string) bool {
	for i := range len(entry) {
		switch c := entry[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == ':', c == '/', c == '-':
		default:
			return false
		}
	}
	return entry != ""
}

// list is a set of configured origins.
type list struct {
	all     bool                // one of them is "*"
	plain   map[string]struct{} // in normal form
	origins []*regexp.Regexp    // against the whole origin
	hosts   []*regexp.Regexp    // against its host: those without a colon
}

func newList(entries []string) (*list, error) {
	l := &list{plain: map[string]struct{}{}}
	for _, e := range entries {
		if e == "*" {
			l.all = true
			continue
		}
		if plain(e) {
			normal, _ := normalize(withoutPath(e))
			l.plain[normal] = struct{}{}
			continue
		}
		re, err := regexp.Compile("^(?:" + e + ")$")
		if err != nil {
			return nil, err
		}
		if strings.Contains(e, ":") {
			l.origins = append(l.origins, re)
		} else {
			l.hosts = append(l.hosts, re)
		}
	}
	return l, nil
}

// withoutPath forgives the slash that people copy along with an origin.
func withoutPath(entry string) string {
	if i := strings.Index(entry, "://"); i >= 0 {
		i += len("://")
		if j := strings.IndexByte(entry[i:], '/'); j >= 0 {
			return entry[:i+j]
		}
	}
	return entry
}

// match tells whether an origin is in the list, and its normal form.
func (l *list) match(origin string) (normal string, ok bool) {
	normal, host := normalize(origin)
	if normal == "" {
		return "", false
	}
	if _, ok := l.plain[normal]; ok {
		return normal, true
	}
	for _, re := range l.origins {
		if re.MatchString(normal) {
			return normal, true
		}
	}
	for _, re := range l.hosts {
		if re.MatchString(host) {
			return normal, true
		}
	}
	return "", false
}

// normalize cuts the port that the scheme implies off an origin and finds its host. What is no URL, such as "null", is its own
// host (Kong). What has more than scheme, host and port is no origin (RFC 6454 §7): user names, paths and the like could make
// one host look like another. It has no normal form.
func normalize(origin string) (normal, host string) {
	scheme, authority, ok := strings.Cut(origin, "://")
	if !ok {
		return origin, origin
	}
	host, port := authority, "0"
	if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
		host, port = authority[:i], authority[i+1:]
	}
	if host == "" || strings.ContainsAny(host, "@/?#\\ \t,") || strings.ContainsAny(host, ":[]") && !bracketed(host) ||
		port == "" || strings.Trim(port, "0123456789") != "" {
		return "", ""
	}
	if scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		origin = origin[:len(scheme)+len("://")+len(host)]
	}
	return origin, host
}

// bracketed tells whether host is an IPv6 address as URLs have it.
func bracketed(host string) bool {
	inner, ok := strings.CutPrefix(host, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	ip, err := netip.ParseAddr(inner)
	return ok && closed && err == nil && ip.Is6()
}

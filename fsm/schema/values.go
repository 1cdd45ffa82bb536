package schema

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// The rules for single texts. Each returns Kong's error text, "" when the value is fine.

var (
	nameRE     = regexp.MustCompile(`^[\w.~\x{80}-\x{10FFFF}-]+$`)
	tagRE      = regexp.MustCompile(`^[ !-+\-.0-~\x{80}-\x{10FFFF}]+$`)
	pathRE     = regexp.MustCompile(`^/[A-Za-z0-9.\-_~/%:@!$&'()*+,;=]*$`)
	headerRE   = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	hostnameRE = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	ipv4RE     = regexp.MustCompile(`^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$`)
	schemeRE   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+.-]*:`)
)

func checkUTF8Name(s string) string {
	if !nameRE.MatchString(s) {
		return "invalid value '" + s + "': the only accepted ascii characters are alphanumerics or ., -, _, and ~"
	}
	return ""
}

func checkID(s string) string {
	if strings.Trim(s, "0-") == "" {
		return "the nil UUID is no id"
	}
	return ""
}

func checkTag(s string) string {
	if !tagRE.MatchString(s) {
		return "invalid tag '" + s + "': expected printable ascii (except `,` and `/`) or valid utf-8 sequences"
	}
	return ""
}

func checkHeaderName(s string) string {
	if !headerRE.MatchString(s) {
		return "bad header name '" + s + "', allowed characters are A-Z, a-z, 0-9, '_', and '-'"
	}
	return ""
}

func checkToken(s string) string {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 127 || strings.IndexByte(`()<>@,;:\"/?={}[]`, s[i]) >= 0 {
			return "contains one or more invalid characters. ASCII control characters (0-31;127), space, tab and the characters " +
				`()<>@,;:\"/?={}[] are not allowed.`
		}
	}
	return ""
}

// hostKind is what the form of a host text says it is; whether it is a valid one is another matter.
type hostKind int

const (
	hostName hostKind = iota
	hostIPv4
	hostIPv6
)

// splitHost tells the kind of a host and whether it has a port. err is "invalid port number" or what else is wrong.
func splitHost(s string) (kind hostKind, port bool, err string) {
	colons := strings.Count(s, ":")
	switch {
	case colons > 1:
		kind = hostIPv6
	case strings.Trim(s, "0123456789.:") == "" && strings.Trim(s, ":") != "":
		kind = hostIPv4
	}
	rest := ""
	switch host := s; kind {
	case hostIPv6:
		if strings.HasPrefix(host, "[") {
			var closed bool
			if host, rest, closed = strings.Cut(host[1:], "]"); !closed || rest != "" && rest[0] != ':' {
				return kind, false, "invalid ipv6 address: " + s
			}
			rest = strings.TrimPrefix(rest, ":")
		}
		if a, e := netip.ParseAddr(host); e != nil || a.Zone() != "" || strings.Contains(host, ".") {
			return kind, false, "invalid ipv6 address: " + s
		}
	case hostIPv4:
		host, rest, port = strings.Cut(host, ":")
		m := ipv4RE.FindStringSubmatch(host)
		if m == nil || port && rest == "" {
			return kind, false, "invalid ipv4 address: " + s
		}
		for _, part := range m[1:] {
			if n, _ := strconv.Atoi(part); n > 255 {
				return kind, false, "invalid ipv4 address: " + s
			}
		}
	default:
		if i := strings.LastIndexByte(host, ':'); i >= 0 && i+1 < len(host) && strings.Trim(host[i+1:], "0123456789") == "" {
			host, rest = host[:i], host[i+1:]
		}
		if !validHostname(host) {
			return kind, false, "invalid hostname: " + s
		}
	}
	if rest == "" {
		return kind, false, ""
	}
	if strings.Trim(rest, "0123456789") != "" {
		return kind, false, "invalid host: " + s
	}
	if n, e := strconv.Atoi(rest); e != nil || n > 65535 {
		return kind, true, "invalid port number"
	}
	return kind, true, ""
}

func validHostname(s string) bool {
	if !hostnameRE.MatchString(s) {
		return false
	}
	labels := strings.Split(s, ".")
	for i, label := range labels {
		if strings.HasSuffix(label, "-") || label == "" && i != len(labels)-1 {
			return false
		}
	}
	return true
}

func checkHost(s string) string {
	_, port, err := splitHost(s)
	switch {
	case port:
		return "must not have a port"
	case err != "":
		return "invalid value: " + s
	}
	return ""
}

func checkHostWithPort(s string) string {
	_, _, err := splitHost(s)
	return err
}

func checkSNI(s string) string {
	kind, port, err := splitHost(s)
	switch {
	case err != "" && !port:
		return "invalid value: " + s
	case kind != hostName && err == "":
		return "must not be an IP"
	case port:
		return "must not have a port"
	}
	return ""
}

func checkWildcardHost(s string) string {
	if i := strings.IndexByte(s, '*'); i >= 0 {
		if i != 0 && i != len(s)-1 {
			return "wildcard must be leftmost or rightmost character"
		}
		if strings.Count(s, "*") > 1 {
			return "only one wildcard must be specified"
		}
	}
	return checkSNI(strings.Replace(s, "*", "wildcard", 1))
}

func checkRouteHost(s string) string { return checkHostWithPort(strings.ReplaceAll(s, "*", "abc")) }

func validIP(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func checkIP(s string) string {
	if !validIP(s) {
		return "not an ip address: " + s
	}
	return ""
}

func checkIPOrCIDR(s string) string {
	if _, err := netip.ParsePrefix(s); err != nil && !validIP(s) {
		return "invalid ip or cidr range: '" + s + "'"
	}
	return ""
}

func checkPath(s string) string {
	if !pathRE.MatchString(s) {
		return "invalid path: '" + s + "' (characters outside of the reserved list of RFC 3986 found)"
	}
	return badEscape(s)
}

// badEscape names the first percent sign that does not begin an escape; Kong shows good escapes blanked out.
func badEscape(s string) string {
	s = goodEscapeRE.ReplaceAllString(s, "___")
	if i := strings.IndexByte(s, '%'); i >= 0 {
		return "invalid url-encoded value: '" + s[i:min(i+3, len(s))] + "'"
	}
	return ""
}

var goodEscapeRE = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// checkRoutePath demands of a prefix that it is in the form in which the router sees request paths, and of a regular
// expression that it compiles.
func checkRoutePath(s string) string {
	if re, ok := strings.CutPrefix(s, "~"); ok {
		return CheckRegex(re)
	}
	if pathRE.MatchString(s) {
		if err := badEscape(s); err != "" {
			return err
		}
	}
	if n := normalPath(s); n != s {
		return "non-normalized path, consider use '" + n + "' instead"
	}
	return ""
}

// CheckRegex returns Kong's error text for a regular expression of a route, "" when it compiles. Syntax is RE2, with
// named groups as (?<name>…) or (?P<name>…).
func CheckRegex(re string) string {
	if err := compileError(re); err != "" {
		return "invalid regex: '" + re + "' (PCRE returned: " + err + ")"
	}
	return ""
}

// normalPath removes dot segments, merges slashes and decodes escapes except those of RFC 3986's reserved characters,
// whose digits become capitals.
func normalPath(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			b.WriteByte(s[i])
			continue
		}
		n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if strings.IndexByte("!*'();:@&=+$,/?%#[]", byte(n)) >= 0 {
			b.WriteString(strings.ToUpper(s[i : i+3]))
		} else {
			b.WriteByte(byte(n))
		}
		i += 2
	}
	var out []string
	parts := strings.Split(b.String(), "/")
	for i, part := range parts[1:] {
		last := i == len(parts)-2
		switch part {
		case "", ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, part)
			continue
		}
		if last {
			out = append(out, "") // keeps the final slash
		}
	}
	return "/" + strings.Join(out, "/")
}

// parsedURL holds the parts of a URL as Kong (LuaSocket) cuts them; port includes the colon.
type parsedURL struct{ scheme, host, port, path string }

func parseURL(s string) parsedURL {
	var u parsedURL
	if m := schemeRE.FindString(s); m != "" {
		u.scheme, s = m[:len(m)-1], s[len(m):]
	}
	if rest, ok := strings.CutPrefix(s, "//"); ok {
		authority := rest
		if i := strings.IndexAny(rest, "/?#"); i >= 0 {
			authority = rest[:i]
		}
		s = rest[len(authority):]
		if i := strings.IndexByte(authority, '@'); i >= 0 {
			authority = authority[i+1:]
		}
		if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.Contains(authority[i:], "]") {
			u.port, authority = authority[i:], authority[:i]
		}
		u.host = authority
		if len(authority) > 2 && authority[0] == '[' && authority[len(authority)-1] == ']' {
			u.host = authority[1 : len(authority)-1]
		}
	}
	for _, sep := range []string{"#", "?", ";"} {
		s, _, _ = strings.Cut(s, sep)
	}
	u.path = s
	return u
}

func checkURL(s string) string {
	switch u := parseURL(s); {
	case u.host == "":
		return "missing host in url"
	case u.scheme == "":
		return "missing scheme in url"
	}
	return ""
}

// ServiceURL is the shorthand "url" of services: it sets protocol, host, port and path at once, overriding what else the
// client sends. Absent parts become null, http or the port of the scheme, for validation to judge.
func ServiceURL() Shorthand {
	return Shorthand{Name: "url", Type: String, Expand: func(v any, _ Record) (Record, Errors) {
		s, ok := v.(string)
		if !ok {
			return nil, nil // null, as clients send it for "not given"
		}
		u := parseURL(s)
		var port any
		if u.port != "" {
			port = u.port[1:] // text stays text and is refused as a port
			if n, ok := luaNumber(u.port[1:]); ok {
				port = n
			}
		}
		protocol := u.scheme
		if protocol == "" {
			protocol = "http"
			if port == 443.0 {
				protocol = "https"
			}
		}
		if port == nil {
			port = 80.0
			if protocol == "https" {
				port = 443.0
			}
		}
		return Record{"protocol": protocol, "host": orNull(u.host), "port": port, "path": orNull(u.path)}, nil
	}}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

package router

import (
	"strconv"
	"strings"
)

// Prefix is the part of path, the query's, that the route's path matched; "" for a route without paths.
func (m Match) Prefix(path string) string {
	if !m.certain && m.re != nil {
		return m.re.FindString(path)
	}
	return path[:m.matched]
}

// AppendCaptures appends the regex captures of path to dst, alternating name and value: every group under its number,
// named groups under their name too.
func (m Match) AppendCaptures(dst []string, path string) []string {
	if m.certain {
		return dst
	}
	re := m.re
	if re == nil || re.NumSubexp() == 0 {
		return dst
	}
	names := re.SubexpNames()
	for i, v := range re.FindStringSubmatch(path) {
		if i == 0 {
			continue
		}
		dst = append(dst, strconv.Itoa(i), v)
		if names[i] != "" {
			dst = append(dst, names[i], v)
		}
	}
	return dst
}

// AppendUpstreamPath appends the path to send to the upstream: service is the service's path ("" counts as "/"),
// prefix what the route matched ("" counts as "/"), path the normalised request path. Kong's path handling v0, which it
// uses for v1 routes too.
func AppendUpstreamPath(dst []byte, service string, strip bool, prefix, path string) []byte {
	if service == "" {
		service = "/"
	}
	if path == "*" { // OPTIONS * is about all there is, which of a service is what its path leads to
		path = "/"
	}
	base, slash := strings.CutSuffix(service, "/")
	rest := path
	if strip {
		rest = postfix(path, max(len(prefix), 1))
		if rest == "" {
			// The request's trailing slash decides, not the service's.
			if strings.HasSuffix(path, "/") && (slash || len(path) > 1) || service == "/" {
				base += "/"
			}
			return append(dst, base...)
		}
	} else if path == "/" && !slash {
		return append(dst, service...)
	}
	dst = append(dst, base...)
	dst = append(dst, '/')
	return append(dst, strings.TrimPrefix(rest, "/")...)
}

// postfix is the path after n bytes, without a leading dot segment: stripping "/a" from "/a../b" must not make a
// step up out of the service's path.
func postfix(path string, n int) string {
	rest := path[min(n, len(path)):]
	switch {
	case rest == "." || rest == "..":
		return ""
	case strings.HasPrefix(rest, "../"):
		return rest[3:]
	case strings.HasPrefix(rest, "./"):
		return rest[2:]
	}
	return rest
}

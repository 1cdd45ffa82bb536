// Package apis translates between the "API" objects of Kong before 1.0 and today's services and routes: field names, defaults, derived
// names, error texts, in both directions. It reads and writes nothing; admin/rest has the endpoints.
//
// An API is a service that carries one of the tags below and the routes of that service that carry it too. The tag tells which
// of the two shapes the API was made in; unlike an id it survives a dump and a sync.
package apis

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"concord/fsm/schema"
)

// The shapes of an API, as tags of its service and routes.
const (
	TagHostPath = "kong-api-0.9"  // request_host, request_path: a host decides alone, the path only for other hosts
	TagLists    = "kong-api-0.10" // hosts, uris, methods: a request must match all that are given
)

// API is one object of /apis.
type API struct {
	ID                             string
	Created                        int64 // Unix milliseconds
	Name, UpstreamURL              string
	Hosts, Paths, Methods          []string // with Lists false at most one host and one path
	Strip, PreserveHost, HTTPSOnly bool
	Lists                          bool // the shape of 0.10 to 0.14
	Retries                        int
	Connect, Send, Read            int // timeouts in milliseconds
}

// New is an API with the defaults of its shape, which the fields of body tell.
func New(body schema.Record) API {
	a := API{Retries: 5, Connect: 60_000, Send: 60_000, Read: 60_000}
	for _, name := range []string{"hosts", "uris", "methods", "strip_uri", "https_only", "http_if_terminated", "retries"} {
		if _, given := body[name]; given {
			a.Lists = true
		}
	}
	for _, name := range []string{"request_host", "request_path", "strip_request_path"} {
		if _, given := body[name]; given {
			a.Lists = false
		}
	}
	a.Strip = a.Lists
	return a
}

// Set takes the client's fields over, text values as well as typed ones, and reports what is wrong with them by field.
func (a *API) Set(body schema.Record) map[string]any {
	errs := map[string]any{}
	set := func(name string, into any) bool {
		v, given := body[name]
		if !given {
			return false
		}
		if text := assign(into, v); text != "" {
			errs[name] = name + " " + text
		}
		return true
	}
	known := []string{"id", "created_at"}
	field := func(name string, into any) bool {
		known = append(known, name)
		return set(name, into)
	}
	field("name", &a.Name)
	field("upstream_url", &a.UpstreamURL)
	field("preserve_host", &a.PreserveHost)
	if a.Lists {
		field("hosts", &a.Hosts)
		field("uris", &a.Paths)
		field("methods", &a.Methods)
		field("strip_uri", &a.Strip)
		field("https_only", &a.HTTPSOnly)
		field("retries", &a.Retries)
		field("upstream_connect_timeout", &a.Connect)
		field("upstream_send_timeout", &a.Send)
		field("upstream_read_timeout", &a.Read)
		terminated := true
		if field("http_if_terminated", &terminated) && !terminated {
			errs["http_if_terminated"] = "cannot be false: X-Forwarded-Proto is believed from the addresses in trusted_ips, and from no others"
		}
	} else {
		var host, path string
		if field("request_host", &host) {
			a.Hosts = one(host)
		}
		if field("request_path", &path) {
			a.Paths = one(path)
		}
		field("strip_request_path", &a.Strip)
	}
	for name := range body {
		if !slices.Contains(known, name) {
			errs[name] = name + " is an unknown field"
		}
	}
	if id, given := body["id"]; given && a.ID == "" {
		if text := assign(&a.ID, id); text != "" {
			errs["id"] = "id " + text
		}
	}
	return errs
}

// boolean reads one as clients in Python write it, too: True.
func boolean(text string) (value, ok bool) {
	text = strings.ToLower(strings.TrimSpace(text))
	return text == "true", text == "true" || text == "false"
}

// assign converts a JSON or form value to the type of into; lists may come as text with commas.
func assign(into, v any) string {
	text, isText := v.(string)
	text = strings.TrimSpace(text)
	switch p := into.(type) {
	case *string:
		if v != nil && !isText {
			return "is not a string"
		}
		*p = text
	case *bool:
		b, ok := v.(bool)
		if isText {
			b, ok = boolean(text)
		}
		if !ok {
			return "is not a boolean"
		}
		*p = b
	case *int:
		n, ok := v.(float64)
		if isText {
			i, err := strconv.Atoi(text)
			n, ok = float64(i), err == nil
		}
		if !ok || n != float64(int(n)) || n < 0 {
			return "is not a number"
		}
		*p = int(n)
	case *[]string:
		*p = nil
		list, ok := v.([]any)
		if isText {
			var part []byte
			for i := 0; i <= len(text); i++ {
				switch {
				case i == len(text) || text[i] == ',':
					list, part = append(list, string(part)), part[:0]
				case strings.HasPrefix(text[i:], `\,`): // a pattern escapes its commas
					part, i = append(part, ','), i+1
				default:
					part = append(part, text[i])
				}
			}
			ok = true
		}
		if !ok && v != nil {
			return "is not an array"
		}
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return "is not an array"
			}
			if s = strings.TrimSpace(s); s != "" {
				*p = append(*p, s)
			}
		}
	}
	return ""
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

var (
	nameChars = regexp.MustCompile(`^[A-Za-z0-9_.~-]+$`)
	badChars  = regexp.MustCompile(`[^A-Za-z0-9_.~-]`)
	pathChars = regexp.MustCompile(`^[A-Za-z0-9._~/%-]*$`)
	hostChars = regexp.MustCompile(`^[0-9A-Za-z._-]+$`)
)

// Check completes the API (a derived name, paths without a slash at the end) and reports by field what is wrong with it.
func (a *API) Check() map[string]any {
	errs := map[string]any{}
	host, path := "request_host", "request_path"
	if a.Lists {
		host, path = "hosts", "uris"
	}
	switch {
	case len(a.Hosts)+len(a.Paths)+len(a.Methods) > 0:
	case a.Lists:
		for _, name := range []string{"hosts", "uris", "methods"} {
			errs[name] = "at least one of 'hosts', 'uris' or 'methods' must be specified"
		}
	default:
		for _, name := range []string{"request_host", "request_path"} {
			errs[name] = "At least a 'request_host' or a 'request_path' must be specified"
		}
	}
	for _, h := range a.Hosts {
		if text := checkHost(h); text != "" {
			errs[host] = text
		}
	}
	for i, p := range a.Paths {
		if a.Lists && isRegex(p) {
			if text := schema.CheckRegex(p); text != "" {
				errs[path] = text
			}
		} else if text := checkPath(p); text != "" {
			errs[path] = text
		} else if p != "/" {
			a.Paths[i] = strings.TrimSuffix(p, "/")
		}
	}
	for i, m := range a.Methods {
		if a.Methods[i] = strings.ToUpper(m); badChars.MatchString(m) {
			errs["methods"] = "invalid value"
		}
	}
	switch u, err := url.Parse(a.UpstreamURL); {
	case a.UpstreamURL == "":
		errs["upstream_url"] = "upstream_url is required"
	case err != nil || u.Host == "":
		errs["upstream_url"] = "upstream_url is not a url"
	case u.Scheme != "http" && u.Scheme != "https":
		errs["upstream_url"] = "Supported protocols are HTTP and HTTPS"
	}
	switch {
	case a.Name == "" && a.Lists:
		errs["name"] = "name is required"
	case a.Name == "" && len(a.Hosts) > 0:
		a.Name = badChars.ReplaceAllString(a.Hosts[0], "-")
	case a.Name == "" && len(a.Paths) > 0:
		a.Name = badChars.ReplaceAllString(strings.ReplaceAll(strings.TrimPrefix(a.Paths[0], "/"), "/", "-"), "-")
	case a.Name != "" && !nameChars.MatchString(a.Name):
		errs["name"] = "name must only contain alphanumeric and '., -, _, ~' characters"
	}
	if a.Name == "" && errs["name"] == nil && len(errs) == 0 {
		errs["name"] = "name is required"
	}
	return errs
}

func checkHost(h string) string {
	plain := h
	if n := strings.Count(h, "*"); n > 1 {
		return "Only one wildcard is allowed: " + h
	} else if n == 1 {
		start, end := strings.HasPrefix(h, "*."), strings.HasSuffix(h, ".*")
		if !start && !end {
			return "Invalid wildcard placement: " + h
		}
		plain = strings.TrimSuffix(strings.TrimPrefix(h, "*."), ".*")
	}
	if !hostChars.MatchString(plain) {
		return "Invalid value: " + h
	}
	return ""
}

// isRegex tells whether one of uris is a pattern and no prefix: Kong from 0.11 on knew them by their characters.
func isRegex(p string) bool { return strings.HasPrefix(p, "/") && !pathChars.MatchString(p) }

func checkPath(p string) string {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Sprintf("must be prefixed with slash: '%s'", p)
	case strings.Contains(p, "//"):
		return fmt.Sprintf("invalid: '%s'", p)
	case !pathChars.MatchString(p):
		return "must only contain alphanumeric and '., -, _, ~, /, %' characters"
	}
	if _, err := url.PathUnescape(p); err != nil {
		return fmt.Sprintf("invalid url-encoded value: '%s'", p)
	}
	return ""
}

// Tag is what the API's rows carry.
func (a *API) Tag() string {
	if a.Lists {
		return TagLists
	}
	return TagHostPath
}

// Service is the row of the API's service: stored, which may be nil, with what the API says.
func (a *API) Service(stored schema.Record) schema.Record {
	rec := schema.Record{"path": nil}
	maps.Copy(rec, stored)
	u, err := url.Parse(a.UpstreamURL)
	if err != nil {
		return rec // Check has refused it
	}
	port := 80.0
	if u.Scheme == "https" {
		port = 443
	}
	if n, err := strconv.Atoi(u.Port()); err == nil {
		port = float64(n)
	}
	rec["id"], rec["name"], rec["protocol"], rec["host"], rec["port"], rec["path"] = a.ID, a.Name, u.Scheme, u.Hostname(), port, nil
	if p := strings.TrimSuffix(u.EscapedPath(), "/"); p != "" {
		rec["path"] = p
	}
	rec["retries"], rec["connect_timeout"], rec["write_timeout"], rec["read_timeout"] = float64(a.Retries), float64(a.Connect), float64(a.Send), float64(a.Read)
	rec["tags"] = tagged(stored, a.Tag())
	return rec
}

// Routes are the rows of the API's routes, without their service. Stored rows are taken over. In the shape of 0.9 a host wins whatever the path, and
// only what matched by path is stripped: that takes two routes. Their names say what no two APIs may share, so that the index of names finds and
// keeps apart who has it.
func (a *API) Routes(stored []schema.Record) []schema.Record {
	var out []schema.Record
	route := func(hosts, paths []string) {
		rec := schema.Record{}
		for _, r := range stored {
			if a.Lists || (r["hosts"] != nil) == (hosts != nil) {
				maps.Copy(rec, r)
				break
			}
		}
		protocols := []any{"http", "https"}
		if a.HTTPSOnly {
			protocols = []any{"https"}
		}
		rec["tags"] = tagged(rec, a.Tag())
		rec["hosts"], rec["paths"], rec["methods"], rec["protocols"] = list(hosts), list(paths), list(a.Methods), protocols
		rec["strip_path"], rec["preserve_host"] = a.Strip, a.PreserveHost
		switch {
		case !a.Lists:
			rec["name"] = RouteName(hosts, paths)
		case made(rec["name"]):
			rec["name"] = nil
		}
		out = append(out, rec)
	}
	if a.Lists {
		var paths []string
		for _, p := range a.Paths {
			if isRegex(p) {
				p = "~" + p // a route says it so
			}
			paths = append(paths, p)
		}
		route(a.Hosts, paths)
		return out
	}
	if len(a.Hosts) > 0 {
		route(a.Hosts, nil)
	}
	if len(a.Paths) > 0 {
		route(nil, a.Paths)
	}
	return out
}

// RouteName is the name of the route of a request_host or request_path. It is a digest, because names of routes have fewer characters.
func RouteName(hosts, paths []string) string {
	sum := sha256.Sum256([]byte(strings.Join(hosts, "") + " " + strings.Join(paths, "")))
	return TagHostPath + "-" + hex.EncodeToString(sum[:16])
}

func made(name any) bool {
	text, _ := name.(string)
	return strings.HasPrefix(text, TagHostPath+"-")
}

func list(values []string) any {
	if len(values) == 0 {
		return nil
	}
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

func tagged(stored schema.Record, tag string) []any {
	tags, _ := stored["tags"].([]any)
	tags = slices.DeleteFunc(slices.Clone(tags), func(t any) bool { return t == TagHostPath || t == TagLists })
	return append(tags, tag)
}

// Of reads an API back from its rows; ok is false for a service that is none.
func Of(service schema.Record, routes []schema.Record) (a API, ok bool) {
	tags, _ := service["tags"].([]any)
	a.Lists = slices.Contains(tags, any(TagLists))
	if !a.Lists && !slices.Contains(tags, any(TagHostPath)) {
		return a, false
	}
	a.ID, _ = service["id"].(string)
	a.Name, _ = service["name"].(string)
	created, _ := service["created_at"].(float64)
	a.Created = int64(created * 1000)
	scheme, _ := service["protocol"].(string)
	host, _ := service["host"].(string)
	port, _ := service["port"].(float64)
	path, _ := service["path"].(string)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	a.UpstreamURL = scheme + "://" + host
	if !(scheme == "http" && port == 80 || scheme == "https" && port == 443) {
		a.UpstreamURL += ":" + strconv.Itoa(int(port))
	}
	a.UpstreamURL += path
	for field, into := range map[string]*int{"retries": &a.Retries, "connect_timeout": &a.Connect, "write_timeout": &a.Send, "read_timeout": &a.Read} {
		n, _ := service[field].(float64)
		*into = int(n)
	}
	for _, r := range routes {
		assign(&a.Methods, r["methods"])
		var hosts, paths, protocols []string
		assign(&hosts, r["hosts"])
		assign(&paths, r["paths"])
		assign(&protocols, r["protocols"])
		a.Hosts = append(a.Hosts, hosts...)
		for _, p := range paths {
			a.Paths = append(a.Paths, strings.TrimPrefix(p, "~"))
		}
		a.PreserveHost, _ = r["preserve_host"].(bool)
		a.HTTPSOnly = len(protocols) > 0 && !slices.Contains(protocols, "http")
		a.Strip, _ = r["strip_path"].(bool)
	}
	return a, true
}

// JSON is the API as a client of its time sees it: absent fields are left out.
func (a *API) JSON() schema.Record {
	rec := schema.Record{"id": a.ID, "name": a.Name, "upstream_url": a.UpstreamURL, "preserve_host": a.PreserveHost, "created_at": float64(a.Created)}
	if !a.Lists {
		rec["strip_request_path"] = a.Strip
		if len(a.Hosts) > 0 {
			rec["request_host"] = a.Hosts[0]
		}
		if len(a.Paths) > 0 {
			rec["request_path"] = a.Paths[0]
		}
		return rec
	}
	rec["strip_uri"], rec["https_only"], rec["http_if_terminated"], rec["retries"] = a.Strip, a.HTTPSOnly, true, float64(a.Retries)
	rec["upstream_connect_timeout"], rec["upstream_send_timeout"], rec["upstream_read_timeout"] = float64(a.Connect), float64(a.Send), float64(a.Read)
	for name, values := range map[string][]string{"hosts": a.Hosts, "uris": a.Paths, "methods": a.Methods} {
		if len(values) > 0 {
			rec[name] = list(values)
		}
	}
	return rec
}

// Known tells whether an API may have the field.
func Known(field string) bool {
	for _, a := range []API{{Hosts: []string{"h"}, Paths: []string{"/"}}, {Lists: true, Hosts: []string{"h"}, Paths: []string{"/"}, Methods: []string{"GET"}}} {
		if _, ok := a.JSON()[field]; ok {
			return true
		}
	}
	return false
}

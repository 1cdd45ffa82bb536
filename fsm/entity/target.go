package entity

import (
	"net/netip"
	"strconv"
	"strings"

	"concord/fsm/schema"
)

// Target is one server, or one name of servers, of an upstream. Times are Unix seconds with milliseconds.
type Target struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
	Upstream  Ref      `json:"upstream"`
	Target    string   `json:"target"` // host:port, IPv6 addresses spelled out in brackets
	Weight    *int     `json:"weight"` // share of requests, 0: none
	Tags      []string `json:"tags"`
}

// DefaultTargetPort is the port of a target that is given without one (Kong).
const DefaultTargetPort = 8000

var targets = Def{Table: 10, New: func() any { return new(Target) }, Endpoints: NestedEndpoints, PutUpdates: true, NewestFirst: true, NestedKey: "target", Schema: &schema.Schema{
	Name:   "targets",
	Unique: [][]string{{"upstream", "target"}},
	Fields: []schema.Field{
		schema.ID(),
		{Name: "created_at", Type: schema.Number, Timestamp: true, Auto: true, AutoKind: schema.AutoNowMS},
		{Name: "updated_at", Type: schema.Number, Timestamp: true, Auto: true, AutoKind: schema.AutoTouchMS},
		{Name: "upstream", Type: schema.Foreign, Ref: "upstreams", Required: true, OnDelete: schema.Cascade},
		{Name: "target", Type: schema.String, Required: true, Check: checkTarget},
		{Name: "weight", Type: schema.Integer, Default: 100, Between: &[2]float64{0, 65535}},
		schema.Tags(),
	},
}, Transform: normalTarget}

func checkTarget(v any) string {
	s, _ := v.(string)
	if _, _, ok := splitHostPort(s); !ok {
		return "Invalid target; not a valid hostname or ip address"
	}
	return ""
}

// normalTarget gives a target the one form in which it is unique, looked up and shown: Kong's.
func normalTarget(rec, _ schema.Record) (schema.Record, error) {
	s, _ := rec["target"].(string)
	host, port, ok := splitHostPort(s)
	if !ok {
		return nil, schema.Errors{"target": checkTarget(s)}
	}
	if port < 0 {
		port = DefaultTargetPort
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + a.StringExpanded() + "]"
	}
	out := make(schema.Record, len(rec))
	for k, v := range rec {
		out[k] = v
	}
	out["target"] = host + ":" + strconv.Itoa(port)
	return out, nil
}

var hostWithPort = schema.HostWithPort("").Check

// splitHostPort cuts a valid host, IPv4 or IPv6 address with optional port; port is -1 when there is none. IPv4 addresses lose
// their leading zeros.
func splitHostPort(s string) (host string, port int, ok bool) {
	if hostWithPort(s) != "" {
		return "", 0, false
	}
	host, digits := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		host, digits, _ = strings.Cut(s[1:], "]")
		digits = strings.TrimPrefix(digits, ":")
	case strings.Count(s, ":") == 1:
		host, digits, _ = strings.Cut(s, ":")
	}
	port = -1
	if digits != "" {
		port, _ = strconv.Atoi(digits) // digits only, and not too many: checked above
	}
	if isIPv4(host) {
		parts := strings.Split(host, ".")
		for i, p := range parts {
			n, _ := strconv.Atoi(p)
			parts[i] = strconv.Itoa(n)
		}
		host = strings.Join(parts, ".")
	}
	return host, port, true
}

// isIPv4 tells addresses among valid hosts: names have other characters.
func isIPv4(host string) bool { return strings.Trim(host, "0123456789.") == "" }

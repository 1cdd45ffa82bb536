package schema

// The fields that entities and plugins share. Each call returns a new value that the caller may refine; name is "" for
// elements of lists and keys or values of maps.

// ID is the primary key. Kong takes the nil UUID for one as well; here it stands for no id.
func ID() Field {
	return Field{Name: "id", Type: String, UUID: true, Auto: true, AutoKind: AutoUUID, Check: text(checkID)}
}

// CreatedAt is set once, in Unix seconds; a client's own value is kept.
func CreatedAt() Field {
	return Field{Name: "created_at", Type: Integer, Timestamp: true, Auto: true, AutoKind: AutoNow}
}

// UpdatedAt is set on every write, in Unix seconds, whatever the client says.
func UpdatedAt() Field {
	return Field{Name: "updated_at", Type: Integer, Timestamp: true, Auto: true, AutoKind: AutoTouch}
}

// Tags is the set of tags of an entity.
func Tags() Field {
	return Field{Name: "tags", Type: Set, Elem: &Field{Type: String, Check: text(checkTag)}}
}

// UTF8Name is a unique name that may be part of a URL.
func UTF8Name(name string) Field {
	return Field{Name: name, Type: String, Unique: true, Check: text(checkUTF8Name)}
}

// Host is a host name or IP address without a port.
func Host(name string) Field { return Field{Name: name, Type: String, Check: text(checkHost)} }

// HostWithPort is a host name or IP address with an optional port.
func HostWithPort(name string) Field {
	return Field{Name: name, Type: String, Check: text(checkHostWithPort)}
}

// WildcardHost is a host name, no IP, in which one "*" may stand as the first or last character.
func WildcardHost(name string) Field {
	return Field{Name: name, Type: String, Check: text(checkWildcardHost)}
}

// SNI is a host name, no IP, without a port.
func SNI(name string) Field { return Field{Name: name, Type: String, Check: text(checkSNI)} }

// RouteHost is a host of a route: with an optional port and one "*" as its first or last label.
func RouteHost(name string) Field {
	return Field{Name: name, Type: String,
		MatchAll:    []Match{{`^[^*]*\*?[^*]*$`, "invalid wildcard: must have at most one wildcard"}},
		MatchAny:    []string{`^\*\.`, `\.\**$`, `^[^*]*$`},
		MatchAnyErr: "invalid wildcard: must be placed at leftmost or rightmost label",
		Check:       text(checkRouteHost)}
}

// IP is an IPv4 or IPv6 address.
func IP(name string) Field { return Field{Name: name, Type: String, Check: text(checkIP)} }

// IPOrCIDR is an address or a range of addresses.
func IPOrCIDR(name string) Field { return Field{Name: name, Type: String, Check: text(checkIPOrCIDR)} }

// Port is a TCP or UDP port.
func Port(name string) Field {
	return Field{Name: name, Type: Integer, Between: &[2]float64{0, 65535}}
}

// Timeout is in milliseconds; zero is allowed.
func Timeout(name string) Field {
	return Field{Name: name, Type: Integer, Between: &[2]float64{0, 1<<31 - 2}}
}

// Path is an absolute URL path without query.
func Path(name string) Field {
	return Field{Name: name, Type: String, StartsWith: "/",
		MatchNone: []Match{{"//", "must not have empty segments"}}, Check: text(checkPath)}
}

// RoutePath is a prefix ("/a") or, after "~", a regular expression ("~/a/\d+").
func RoutePath(name string) Field {
	return Field{Name: name, Type: String,
		MatchAny: []string{"^/", "^~/"}, MatchAnyErr: "should start with: / (fixed path) or ~/ (regex path)",
		MatchNone: []Match{{"//", "must not have empty segments"}}, Check: text(checkRoutePath)}
}

// URL is an absolute URL with scheme and host.
func URL(name string) Field { return Field{Name: name, Type: String, Check: text(checkURL)} }

// Method is an HTTP method in capitals.
func Method(name string) Field { return Field{Name: name, Type: String, Pattern: "^[A-Z]+$"} }

// HeaderName is the name of a header as Kong accepts it: letters, digits, "_" and "-".
func HeaderName(name string) Field {
	return Field{Name: name, Type: String, Check: text(checkHeaderName)}
}

// CookieName is a token of RFC 2616.
func CookieName(name string) Field { return Field{Name: name, Type: String, Check: text(checkToken)} }

// Headers maps header names to lists of values.
func Headers(name string) Field {
	return Field{Name: name, Type: Map, Keys: new(HeaderName("")), Elem: &Field{Type: Array, Elem: &Field{Type: String}}}
}

// Consumer is the owner of a credential, which is deleted with it.
func Consumer() Field {
	return Field{Name: "consumer", Type: Foreign, Ref: "consumers", Required: true, OnDelete: Cascade}
}

// AllProtocols lists every protocol of services and routes, in the order of Kong's messages.
func AllProtocols() []any {
	return []any{"grpc", "grpcs", "http", "https", "tcp", "tls", "tls_passthrough", "udp"}
}

// HTTPProtocols are the protocols of plugins that understand HTTP.
func HTTPProtocols() []string { return []string{"grpc", "grpcs", "http", "https"} }

// Protocols is the protocols field of a plugin that runs on these protocols only.
func Protocols(protocols ...string) Field {
	l := canonical(protocols).([]any)
	return Field{Name: "protocols", Type: Set, Required: true, Default: l, Elem: &Field{Type: String, OneOf: l}}
}

// NoConsumer, NoConsumerGroup, NoRoute and NoService forbid a scope in a plugin's schema.
func NoConsumer() Field { return noScope("consumer") }

// NoConsumerGroup forbids the scope of consumer groups.
func NoConsumerGroup() Field { return noScope("consumer_group") }

// NoRoute forbids the route scope.
func NoRoute() Field { return noScope("route") }

// NoService forbids the service scope.
func NoService() Field { return noScope("service") }

func noScope(name string) Field {
	return Field{Name: name, Type: Foreign, Ref: name + "s", OnDelete: Cascade, Null: true}
}

// text makes a Check of a rule for strings.
func text(check func(string) string) func(any) string {
	return func(v any) string {
		s, _ := v.(string)
		return check(s)
	}
}

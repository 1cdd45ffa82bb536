// Package settings reads a node's settings the way Kong reads kong.conf: a file of key = value lines, CONCORD_* and KONG_*
// variables and command line arguments, each key with a type and a default.
//
// It knows the keys and their values; it opens nothing but the settings file and starts nothing. The table in keys.go is
// the only list of keys: parsing, defaults, the reference page and the sample file are made from it.
package settings

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"
)

// Settings is the typed result of Load. Every field belongs to the key of the same name in snake case.
type Settings struct {
	// File is the settings file that was read, "" when there was none.
	File string

	Prefix   string // absolute
	NodeName string

	LogLevel       slog.Level
	ProxyAccessLog string // absolute path, "" for off
	AdminAccessLog string
	ErrorLog       string // of a daemonised node

	ProxyListen  []Listener
	AdminListen  []Listener
	GUIListen    []Listener
	StatusListen []Listener

	ClusterListen    string // host:port
	ClusterAdvertise string // "": chosen by the node
	GossipListen     string
	GossipAdvertise  string

	AdminAllowedHosts   []string
	AdminAllowedOrigins []string

	SSLCert, AdminSSLCert       string // path or PEM; "" for a self-signed one made in the prefix
	SSLCertKey, AdminSSLCertKey Secret

	TrustedIPs       []netip.Prefix
	RealIPHeader     string
	RealIPRecursive  bool
	Headers          []string // what the gateway adds to responses
	HeadersUpstream  []string // what it adds to upstream requests
	ErrorDefaultType string

	UpstreamKeepalivePoolSize    int
	UpstreamKeepaliveMaxRequests int
	UpstreamKeepaliveIdleTimeout time.Duration

	Plugins []string // names; "bundled" is already resolved by the caller that knows the list

	DrainTimeout time.Duration // how long SIGTERM lets running exchanges finish

	keys map[string][32]byte // hash of each key's text, to see what a reload changed without keeping secrets twice
}

// Listener is one address of a *_listen key with its flags.
type Listener struct {
	Host string // IP address, without brackets
	Port int
	SSL, HTTP2, ProxyProtocol,
	ReusePort bool
	Backlog int // 0: the system's
}

// Addr is the address in the form net.Listen takes.
func (l Listener) Addr() string { return net.JoinHostPort(l.Host, strconv.Itoa(l.Port)) }

// String is the listener as it is written in a settings file.
func (l Listener) String() string {
	s := l.Addr()
	for _, f := range []struct {
		on   bool
		name string
	}{{l.HTTP2, "http2"}, {l.SSL, "ssl"}, {l.ProxyProtocol, "proxy_protocol"}, {l.ReusePort, "reuseport"}} {
		if f.on {
			s += " " + f.name
		}
	}
	if l.Backlog > 0 {
		s += " backlog=" + strconv.Itoa(l.Backlog)
	}
	return s
}

// Secret is a value that prints redacted in every format, JSON and slog included. Use Reveal to get at it.
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(v string) Secret { return Secret{v} }

// Reveal returns the clear value.
func (s Secret) Reveal() string { return s.value }

// String is "" for an empty secret and a fixed mask otherwise, so that logs show whether it was set.
func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return "******"
}

// Format keeps %+v, %#v, %q and the like from looking inside.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText is used by encoding/json and yaml.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is used by slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Path returns name inside the prefix.
func (s *Settings) Path(name ...string) string {
	return filepath.Join(append([]string{s.Prefix}, name...)...)
}

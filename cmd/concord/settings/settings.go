// Package settings reads a node's settings the way Kong reads kong.conf: a file of key = value lines, CONCORD_* and KONG_*
// variables and command line arguments, each key with a type and a default.
//
// It knows the keys and their values; it opens nothing but the settings file and the error templates and starts nothing. The table in keys.go is
// the only list of keys: parsing, defaults, the reference page and the sample file are made from it.
package settings

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"concord/proxy"
	"concord/proxy/dns"
	"concord/proxy/listen"
)

// Settings is the typed result of Load. Every field belongs to the key of the same name in snake case.
type Settings struct {
	// File is the settings file that was read, "" when there was none.
	File string

	Prefix   string // absolute
	NodeName string

	LogLevel       slog.Level
	ProxyAccessLog string // absolute path, "" for off
	StreamLog      string // likewise
	AccessLogJSON  bool
	AdminAccessLog string
	ErrorLog       string // of a daemonised node

	ProxyListen  []listen.Spec
	StreamListen []listen.Spec
	AdminListen  []listen.Spec
	GUIListen    []listen.Spec
	StatusListen []listen.Spec

	ClusterListen    string // host:port
	ClusterAdvertise string // "": chosen by the node
	GossipListen     string
	GossipAdvertise  string

	SnapshotThreshold int           // log entries since the last snapshot
	SnapshotInterval  time.Duration // between looks at SnapshotThreshold
	TrailingLogs      int           // log entries kept behind a snapshot
	AuditRecords      int           // of the audit log that are kept
	AuditDays         int           // for how many days at most; 0: however long

	AdminAllowedHosts   []string
	AdminRequireToken   bool
	AdminAllowedOrigins []string

	SSLCert, AdminSSLCert       string // path or PEM; "" for a self-signed one made in the prefix
	SSLCertKey, AdminSSLCertKey Secret
	SSLCipherSuite              string        // modern, intermediate, old or custom
	SSLCiphers                  []uint16      // of custom
	SSLSessionTimeout           time.Duration // for which TLS sessions can be resumed
	SSLMin, SSLMax              uint16        // versions as crypto/tls has them; 0 for those of the suite
	ClientSSL                   bool
	ClientSSLCert               string // path or PEM
	ClientSSLCertKey            Secret
	TrustedCertificates         []string // "system", paths, PEM

	TrustedIPs       []netip.Prefix
	RealIPHeader     string
	RealIPRecursive  bool
	Headers          []string // what the gateway adds to responses
	HeadersUpstream  []string // what it adds to upstream requests
	ErrorDefaultType string
	ErrorTemplates   map[string]string // by media type: the text
	AllowDebugHeader bool
	PathEscapes      proxy.PathEscapes

	MaxBody             int64 // of requests, bytes; 0: no limit
	HeldBody            int64 // of requests, bytes that are awaited before they are sent on; 0: none
	MaxHead             int   // of requests, bytes
	MaxTarget           int   // of the request line, bytes
	ClientHeaderTimeout time.Duration
	ClientBodyTimeout   time.Duration
	SendTimeout         time.Duration
	KeepaliveTimeout    time.Duration
	KeepaliveRequests   int
	MaxConns            int // of clients
	MaxInFlight         int // requests; 0: no limit
	StreamMaxConns      int
	StreamMaxClients    int // of UDP

	DNS          dns.Policy // TTLs of 0 as they are written: none
	DNSServers   []string   // host:port
	DNSHostsFile string
	DNSCacheSize int

	UpstreamKeepalivePoolSize    int
	UpstreamKeepaliveMaxRequests int
	UpstreamKeepaliveIdleTimeout time.Duration

	Plugins []string // names; "bundled" is already resolved by the caller that knows the list

	DrainTimeout        time.Duration // how long SIGTERM lets running exchanges finish
	UpgradeTimeout      time.Duration // how long a new process may take to be ready
	UpgradeDrainTimeout time.Duration // how long the old one goes on serving what has begun

	shown map[string]any
	keys  map[string][32]byte // hash of each key's text, to see what a reload changed without keeping secrets twice
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

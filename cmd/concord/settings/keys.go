package settings

import (
	"math"
	"net/netip"
	"time"

	"concord/proxy/listen"
)

// Key is one setting.
type Key struct {
	Name    string
	Default string
	Form    string // kind of value, for the reference page
	Doc     string
	Live    bool // a reload takes it over; the others take an upgrade or a restart
	Secret  bool
	Also    string // Kong's other name for it, which wins

	set setter
}

// group is a heading of the reference page with its keys.
type group struct {
	Title string
	Keys  []Key
}

func groups() []group {
	return []group{
		{"The node", []Key{
			{Name: "prefix", Default: "/var/lib/concord", Form: "path", set: text(func(s *Settings) *string { return &s.Prefix }),
				Doc: "Directory of everything the node writes: the log of the cluster, snapshots, keys, certificates, its logs and its pid file. One node per directory; a relative path starts at the working directory."},
			{Name: "node_name", Form: "name", set: name,
				Doc: "How the node is called in `gwctl cluster status` and in logs. Empty: the host's name."},
			{Name: "log_level", Default: "notice", Form: "debug, info, notice, warn, error, crit, alert, emerg", Live: true, set: level,
				Doc: "The least serious messages that are logged. Of lines with the same message 20 are written in a second, and how many more there were; with `debug` all of them."},
			{Name: "proxy_error_log", Default: "logs/error.log", Form: "path", set: path(func(s *Settings) *string { return &s.ErrorLog }),
				Doc: "Where `concord start` sends the node's log. `concord run` logs on standard error. A reload opens the file anew."},
			{Name: "proxy_access_log", Default: "logs/access.log", Form: "path or off", Live: true, set: path(func(s *Settings) *string { return &s.ProxyAccessLog }),
				Doc: "One line for each proxied request; `/dev/stdout` and `/dev/stderr` work. A reload opens the file anew, for log rotation."},
			{Name: "proxy_stream_access_log", Default: "logs/access.log basic", Form: "path or off", Live: true, set: streamLog,
				Doc: "One line for each stream session, in Kong's format `basic` or, with `access_log_format = json`, as JSON."},
			{Name: "access_log_format", Default: "combined", Form: "combined or json", Live: true, set: logFormat,
				Doc: "How the lines of `proxy_access_log` look: Kong's combined format, or one JSON object per line. Values of query parameters that carry credentials are replaced in both."},
			{Name: "admin_access_log", Default: "logs/admin_access.log", Form: "path or off", Live: true, set: path(func(s *Settings) *string { return &s.AdminAccessLog }),
				Doc: "One line for each request to the Admin API. A reload opens the file anew."},
			{Name: "shutdown_timeout", Default: "10", Form: "seconds", Live: true, set: seconds(func(s *Settings) *time.Duration { return &s.DrainTimeout }),
				Doc: "How long running requests may take to finish when the node is stopped."},
			{Name: "upgrade_timeout", Default: "60", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.UpgradeTimeout }),
				Doc: "How long the new process of `concord upgrade` may take to be ready; then it is ended, and the old one goes on."},
			{Name: "upgrade_drain_timeout", Default: "60", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.UpgradeDrainTimeout }),
				Doc: "How long the old process goes on serving requests, tunnels and streams that began before an upgrade; then they are cut."},
			{Name: "plugins", Default: "bundled", Form: "list", set: list(func(s *Settings) *[]string { return &s.Plugins }),
				Doc: "The plugins that may be used: names, `bundled` for all that come with the gateway, or `off`."},
		}},
		{"Listeners", []Key{
			{Name: "proxy_listen", Default: "0.0.0.0:8000, 0.0.0.0:8443 http2 ssl", Form: "listeners or off", Live: true, set: listeners(true, func(s *Settings) *[]listen.Spec { return &s.ProxyListen }),
				Doc: "Where clients send their requests. The flags are explained in [Listeners](listeners.md)."},
			{Name: "stream_listen", Default: off, Form: "listeners or off", Live: true, set: streamListeners(func(s *Settings) *[]listen.Spec { return &s.StreamListen }),
				Doc: "Where stream routes are served: TCP, with the flag `ssl` TLS (ended here or passed through), with the flag `udp` datagrams. See [streams](streams.md)."},
			{Name: "admin_listen", Default: "127.0.0.1:8001, 127.0.0.1:8444 http2 ssl", Form: "listeners or off", Live: true, set: listeners(false, func(s *Settings) *[]listen.Spec { return &s.AdminListen }),
				Doc: "The Admin API. Programs on this machine need no credentials (but see `admin_require_token`). Listeners on addresses that others can reach must have `ssl`, and always ask for an admin token."},
			{Name: "admin_gui_listen", Default: "127.0.0.1:8002", Form: "listeners or off", set: listeners(false, func(s *Settings) *[]listen.Spec { return &s.GUIListen }),
				Doc: "Kept for the web console; this version has none and opens nothing."},
			{Name: "status_listen", Default: "127.0.0.1:8007", Form: "listeners or off", Live: true, set: listeners(false, func(s *Settings) *[]listen.Spec { return &s.StatusListen }),
				Doc: "`GET /status`, `GET /status/ready` and `GET /metrics` for load balancers and monitoring."},
			{Name: "ssl_cert", Form: "path or PEM", Live: true, set: func(s *Settings, v string) error { s.SSLCert = certificate(s, v); return nil },
				Doc: "Certificate chain shown for names without a certificate of their own. Without it the node makes a self-signed one in the prefix. A reload reads the files anew."},
			{Name: "ssl_cert_key", Form: "path or PEM", Live: true, Secret: true, set: func(s *Settings, v string) error { s.SSLCertKey = NewSecret(certificate(s, v)); return nil },
				Doc: "Key of `ssl_cert`."},
			{Name: "ssl_cipher_suite", Default: "intermediate", Form: "modern, intermediate, old, custom", Live: true, set: cipherSuite,
				Doc: "What TLS listeners speak: `modern` is TLS 1.3 only, `intermediate` adds TLS 1.2 with forward secrecy and authenticated encryption, `old` also serves clients of TLS 1.0 and 1.1, `custom` is TLS 1.2 with `ssl_ciphers` and TLS 1.3."},
			{Name: "ssl_ciphers", Form: "names separated by colons", Live: true, set: ciphers,
				Doc: "Cipher suites of TLS 1.2 and older for `ssl_cipher_suite = custom`, by OpenSSL's or IANA's names; without `custom` it has no effect (Kong). The order has none either: the suite that is fastest on both sides' hardware is preferred. Suites with finite-field DHE do not exist here and are passed over."},
			{Name: "ssl_protocols", Form: "TLSv1, TLSv1.1, TLSv1.2, TLSv1.3", Live: true, set: protocols,
				Doc: "Versions of TLS that listeners speak, without gaps. Empty: those of `ssl_cipher_suite`."},
			{Name: "ssl_session_timeout", Default: "1d", Form: "time such as 600, 10m, 12h, 1d", Live: true, set: sslTime(func(s *Settings) *time.Duration { return &s.SSLSessionTimeout }),
				Doc: "How long a client may resume its TLS session, on any node of the cluster. The keys of session tickets live 12 hours in use and 12 hours after it, which bounds it too."},
			{Name: "admin_ssl_cert", Form: "path or PEM", Live: true, set: func(s *Settings, v string) error { s.AdminSSLCert = certificate(s, v); return nil },
				Doc: "Certificate chain of the TLS Admin listeners."},
			{Name: "admin_ssl_cert_key", Form: "path or PEM", Secret: true, Live: true, set: func(s *Settings, v string) error { s.AdminSSLCertKey = NewSecret(certificate(s, v)); return nil },
				Doc: "Key of `admin_ssl_cert`."},
		}},
		{"Admin API", []Key{
			{Name: "admin_require_token", Default: off, Form: "on or off", set: boolean(func(s *Settings) *bool { return &s.AdminRequireToken }),
				Doc: "Ask programs on this machine for an admin token too. While the cluster has none, they may make the first: `gwctl token create`."},
			{Name: "admin_allowed_hosts", Form: "list", set: list(func(s *Settings) *[]string { return &s.AdminAllowedHosts }),
				Doc: "Host names, besides localhost and the listeners' addresses, under which browsers may call the Admin API."},
			{Name: "admin_gui_url", Form: "list of URLs", set: origins(func(s *Settings) *[]string { return &s.AdminAllowedOrigins }),
				Doc: "Where web consoles are, such as `https://manager.example.com:8445/manager`: pages of their origins may call the Admin API from a browser, as those of this machine may."},
		}},
		{"Cluster", []Key{
			{Name: "cluster_listen", Default: "0.0.0.0:7373", Form: "address", set: address(true, func(s *Settings) *string { return &s.ClusterListen }),
				Doc: "TCP address for the other nodes; always TLS 1.3 with certificates of the cluster."},
			{Name: "cluster_advertise", Form: "address", set: address(false, func(s *Settings) *string { return &s.ClusterAdvertise }),
				Doc: "The address under which other nodes reach `cluster_listen`. Empty: found from the interfaces."},
			{Name: "gossip_listen", Default: "0.0.0.0:7946", Form: "address", set: address(true, func(s *Settings) *string { return &s.GossipListen }),
				Doc: "TCP and UDP address of the encrypted gossip among nodes."},
			{Name: "gossip_advertise", Form: "address", set: address(false, func(s *Settings) *string { return &s.GossipAdvertise }),
				Doc: "The address under which other nodes reach `gossip_listen`."},
			{Name: "raft_snapshot_threshold", Default: "8192", Form: "number", set: integer(1, math.MaxInt32, func(s *Settings) *int { return &s.SnapshotThreshold }),
				Doc: "Writes after which the state is written to a snapshot and the log before it may go."},
			{Name: "raft_snapshot_interval", Default: "30", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.SnapshotInterval }),
				Doc: "How often the node looks whether a snapshot is due."},
			{Name: "raft_trailing_logs", Default: "4096", Form: "number", set: integer(1, math.MaxInt32, func(s *Settings) *int { return &s.TrailingLogs }),
				Doc: "Log entries kept behind a snapshot. A node that is further behind catches up by snapshot, one that is less far behind by the log."},
			{Name: "audit_records", Default: "50000", Form: "number", set: integer(1, 10_000_000, func(s *Settings) *int { return &s.AuditRecords }),
				Doc: "How many records of the [audit log](admin-security.md#the-audit-log) are kept, up to 1 % more. A record takes about 600 bytes of every node's memory. What is kept is decided by the leader for all nodes: give them the same value."},
			{Name: "audit_days", Default: "0", Form: "days", set: integer(0, 36_500, func(s *Settings) *int { return &s.AuditDays }),
				Doc: "Records of the audit log that are older than so many days are dropped, however few there are; `0`: they are not. The newest record always stays. As above, the leader decides."},
		}},
		{"Proxy", []Key{
			{Name: "trusted_ips", Form: "list of addresses and ranges", Live: true, set: networks(func(s *Settings) *[]netip.Prefix { return &s.TrustedIPs }),
				Doc: "Peers whose X-Forwarded-* headers and real_ip_header are believed. `0.0.0.0/0,::/0` trusts everybody."},
			{Name: "real_ip_header", Default: "X-Real-IP", Form: "header name, or proxy_protocol", Live: true, set: text(func(s *Settings) *string { return &s.RealIPHeader }),
				Doc: "Where a trusted peer says whose request it passes on; `proxy_protocol` on listeners with that flag."},
			{Name: "real_ip_recursive", Default: off, Form: "on or off", Live: true, set: boolean(func(s *Settings) *bool { return &s.RealIPRecursive }),
				Doc: "Take the last address in that header that is not trusted itself, instead of the last one."},
			{Name: "headers", Default: "server_tokens, latency_tokens, X-Kong-Request-Id", Form: "list or off", Live: true,
				set: list(func(s *Settings) *[]string { return &s.Headers }, "server_tokens", "latency_tokens", "Server", "Via", "X-Kong-Proxy-Latency", "X-Kong-Response-Latency", "X-Kong-Admin-Latency", "X-Kong-Upstream-Latency", "X-Kong-Upstream-Status", "X-Kong-Request-Id"),
				Doc: "Headers the gateway adds to responses."},
			{Name: "headers_upstream", Default: "X-Kong-Request-Id", Form: "list or off", Live: true, set: list(func(s *Settings) *[]string { return &s.HeadersUpstream }, "X-Kong-Request-Id"),
				Doc: "Headers the gateway adds to upstream requests."},
			{Name: "error_default_type", Default: "text/plain", Form: "text/plain, text/html, application/json, application/xml", Live: true, set: errorType,
				Doc: "Type of the gateway's own error bodies when the client accepts anything."},
			{Name: "error_template_html", Form: "path", Live: true, set: template("error_template_html", "text/html"), Doc: "File with the gateway's own error bodies as HTML. Each of these templates holds `%s` twice, for the message and the request id, and `%%` for any other percent sign."},
			{Name: "error_template_json", Form: "path", Live: true, set: template("error_template_json", "application/json"), Doc: "The same as JSON; the quotes around the message belong to the template."},
			{Name: "error_template_xml", Form: "path", Live: true, set: template("error_template_xml", "application/xml"), Doc: "The same as XML."},
			{Name: "error_template_plain", Form: "path", Live: true, set: template("error_template_plain", "text/plain"), Doc: "The same as plain text."},
			{Name: "allow_debug_header", Default: off, Form: "on or off", Live: true, set: boolean(func(s *Settings) *bool { return &s.AllowDebugHeader }),
				Doc: "Answer requests with `Kong-Debug: 1` with the headers Kong-Route-Id, Kong-Route-Name, Kong-Service-Id and Kong-Service-Name."},
			{Name: "path_escapes", Default: "check", Form: "check, refuse, pass", Live: true, set: pathEscapes,
				Doc: "What becomes of paths with escaped separators (`%2F`, `%5C`, `%23`, `%3B`, `%3F`) or parameters (`;`), which upstreams read in different ways. `check`: passed on, still escaped, if they lead to the same route when they are decoded, and 400 if they do not or if that brings `..` to light. `refuse`: 400 for every escaped separator. `pass`: passed on, as Kong does. `%00` is always refused."},
			{Name: "client_ssl", Default: off, Form: "on or off", set: boolean(func(s *Settings) *bool { return &s.ClientSSL }),
				Doc: "Show `client_ssl_cert` to upstreams that ask for a certificate, when neither the service nor the upstream entity names another."},
			{Name: "client_ssl_cert", Form: "path or PEM", set: func(s *Settings, v string) error { s.ClientSSLCert = certificate(s, v); return nil },
				Doc: "The certificate of `client_ssl`."},
			{Name: "client_ssl_cert_key", Form: "path or PEM", Secret: true, set: func(s *Settings, v string) error { s.ClientSSLCertKey = NewSecret(certificate(s, v)); return nil },
				Doc: "Key of `client_ssl_cert`."},
			{Name: "lua_ssl_trusted_certificate", Default: "system", Form: "list of system, paths or PEM", set: trusted,
				Doc: "Certificate authorities against which upstreams are verified by services with `tls_verify` and without `ca_certificates`, and by health checks. `system` stands for those of the operating system."},
			{Name: "dns_resolver", Also: "resolver_address", Form: "list of addresses", set: resolvers,
				Doc: "Name servers to ask, the next when one fails, with port 53 unless they say otherwise. Empty: those of the system (resolv.conf), whose search domains are used in any case."},
			{Name: "dns_hostsfile", Also: "resolver_hosts_file", Default: "/etc/hosts", Form: "path", set: text(func(s *Settings) *string { return &s.DNSHostsFile }),
				Doc: "Names in this file are not asked for; a change is noticed within five seconds."},
			{Name: "dns_order", Also: "resolver_family", Default: "LAST, SRV, A, CNAME", Form: "list of LAST, SRV, A, AAAA, CNAME", set: dnsOrder,
				Doc: "Kinds of records to ask for; the first that there are count. LAST is the kind that was found the last time. CNAMEs are always followed. Names without IPv4 addresses get their IPv6 ones even if AAAA is not listed."},
			{Name: "dns_valid_ttl", Also: "resolver_valid_ttl", Default: "0", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.DNS.ValidTTL }),
				Doc: "How long every answer is used, instead of what it says itself; 0: as it says."},
			{Name: "dns_stale_ttl", Also: "resolver_stale_ttl", Default: "3600", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.DNS.StaleTTL }),
				Doc: "How long an old answer serves while the name servers fail."},
			{Name: "dns_error_ttl", Also: "resolver_error_ttl", Default: "1", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.DNS.ErrorTTL }),
				Doc: "How long a failure of the name servers is remembered; for targets it doubles with every further one."},
			{Name: "dns_not_found_ttl", Default: "30", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.DNS.NotFoundTTL }),
				Doc: "How long it is remembered that there is no such name."},
			{Name: "dns_cache_size", Also: "resolver_lru_cache_size", Default: "10000", Form: "number", set: integer(1000, 1<<24, func(s *Settings) *int { return &s.DNSCacheSize }),
				Doc: "How many hosts of services are remembered. Those of targets always are."},
			{Name: "upstream_keepalive_pool_size", Default: "512", Form: "number", set: integer(0, 1<<20, func(s *Settings) *int { return &s.UpstreamKeepalivePoolSize }),
				Doc: "Idle connections kept for each upstream address; 0 keeps none."},
			{Name: "upstream_keepalive_max_requests", Default: "10000", Form: "number", set: integer(0, 1<<30, func(s *Settings) *int { return &s.UpstreamKeepaliveMaxRequests }),
				Doc: "Requests after which an upstream connection is closed; 0 for no limit."},
			{Name: "upstream_keepalive_idle_timeout", Default: "60", Form: "seconds", set: seconds(func(s *Settings) *time.Duration { return &s.UpstreamKeepaliveIdleTimeout }),
				Doc: "Idle time after which an upstream connection is closed; 0 for no limit."},
		}},
		{"Limits of clients", []Key{
			{Name: "nginx_http_client_max_body_size", Also: "nginx_proxy_client_max_body_size", Default: "0", Form: "size", Live: true, set: size(func(s *Settings) *int64 { return &s.MaxBody }),
				Doc: "The longest request body, as bytes or with `k`, `m` or `g`; more is a 413. 0 for no limit. Long bodies are never held as a whole, so this protects upstreams, not the gateway."},
			{Name: "nginx_http_client_body_buffer_size", Also: "nginx_proxy_client_body_buffer_size", Default: "8k", Form: "size", Live: true, set: size(func(s *Settings) *int64 { return &s.HeldBody }),
				Doc: "How much of a request body is awaited, in memory, before a target is chosen, on routes with `request_buffering`; what is longer then streams. 0 for nothing: bodies stream from their first byte."},
			{Name: "nginx_http_large_client_header_buffers", Also: "nginx_proxy_large_client_header_buffers", Default: "8 8k", Form: "number and size", Live: true, set: headerBuffers,
				Doc: "Limits of a request's head: the size is that of the request line (more is a 414), size times number that of the whole head (more is a 431)."},
			{Name: "nginx_http_client_header_timeout", Also: "nginx_proxy_client_header_timeout", Default: "60", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.ClientHeaderTimeout }),
				Doc: "How long a client may take for the head of a request, from its first byte to its last; then it gets a 408."},
			{Name: "nginx_http_client_body_timeout", Also: "nginx_proxy_client_body_timeout", Default: "60", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.ClientBodyTimeout }),
				Doc: "How long a client may pause within a request body; then it gets a 408."},
			{Name: "nginx_http_send_timeout", Default: "60", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.SendTimeout }),
				Doc: "How long a client may take nothing of a response that waits for it; then it is cut off and the upstream is freed."},
			{Name: "nginx_http_keepalive_timeout", Also: "nginx_proxy_keepalive_timeout", Default: "75", Form: "seconds", Live: true, set: timeout(func(s *Settings) *time.Duration { return &s.KeepaliveTimeout }),
				Doc: "How long a connection may stay open between two requests."},
			{Name: "nginx_http_keepalive_requests", Also: "nginx_proxy_keepalive_requests", Default: "10000", Form: "number", Live: true, set: integer(1, math.MaxInt32, func(s *Settings) *int { return &s.KeepaliveRequests }),
				Doc: "Requests after which a connection is closed."},
			{Name: "nginx_events_worker_connections", Default: "65536", Form: "number, or auto", set: connections,
				Doc: "Connections of clients at once, over all proxy listeners; one more is closed at once. `auto` is the default. Never more than three quarters of the files that the process may open (`ulimit -n`), with connections to upstreams seven eighths; the rest stays for the Admin API and other nodes."},
			{Name: "max_requests_in_flight", Default: "0", Form: "number", Live: true, set: integer(0, math.MaxInt32, func(s *Settings) *int { return &s.MaxInFlight }),
				Doc: "Requests that may run at once; one more is answered 503 and counted. 0 for no limit. A WebSocket counts as long as it is open."},
			{Name: "stream_max_connections", Default: "16384", Form: "number", Live: true, set: integer(1, math.MaxInt32, func(s *Settings) *int { return &s.StreamMaxConns }),
				Doc: "Connections of clients at once over all listeners of `stream_listen`; one more is closed at once and counted. Those that are open when the limit falls stay. The files that the process may open bound it as well."},
			{Name: "stream_max_udp_clients", Default: "8192", Form: "number", Live: true, set: integer(1, math.MaxInt32, func(s *Settings) *int { return &s.StreamMaxClients }),
				Doc: "UDP clients that `stream_listen` remembers at once, each with a socket of its own to the upstream; one that was never answered gives way to one more, else its datagrams are dropped and counted."},
		}},
	}
}

// Keys is every key, in the order of the reference page.
func Keys() []Key {
	var out []Key
	for _, g := range groups() {
		out = append(out, g.Keys...)
	}
	return out
}

package settings

import "strings"

// An ignored entry names keys of Kong that mean nothing here. Names ending in "*" stand for all that begin so.
type ignored struct {
	Why  string
	Keys []string
}

func ignoredKeys() []ignored {
	return []ignored{
		{"the cluster keeps the configuration, there is no database", []string{"database", "pg_*", "cassandra_*", "db_*", "declarative_config_encryption_mode", "migrations_*"}},
		{"every node does everything", []string{"role", "cluster_control_plane", "cluster_telemetry_*", "cluster_mtls", "cluster_cert", "cluster_cert_key", "cluster_ca_cert",
			"cluster_server_name", "cluster_data_plane_purge_delay", "cluster_ocsp", "cluster_use_proxy", "cluster_dp_labels", "cluster_max_payload", "cluster_rpc*", "dedicated_config_processing", "proxy_server*"}},
		{"there is no nginx inside", []string{"nginx_*", "status_access_log", "status_error_log", "admin_error_log", "proxy_stream_*", "ssl_dhparam", "ssl_session_cache_size", "ssl_prefer_server_ciphers",
			"upstream_keepalive", "client_max_body_size", "client_body_buffer_size", "mem_cache_size", "lmdb_*", "lua_*", "untrusted_lua*", "wasm*", "worker_*", "request_debug*", "host_port*", "port_maps", "kic"}},
		{"changes are visible at once", []string{"worker_consistency", "worker_state_update_frequency"}},
		{"a name is looked up once for all who ask", []string{"dns_no_sync", "dns_stale_refresh*", "new_dns_client", "resolver_mem_cache_size"}},
		{"nothing is ever reported to anybody", []string{"anonymous_reports"}},
		{"not in this version", []string{"nginx_admin_client_max_body_size", "lua_ssl_verify_depth", "declarative_config", "declarative_config_string", "admin_gui_*", "status_ssl_*",
			"router_flavor", "tracing_*", "opentelemetry_tracing*", "node_id", "vaults", "vault_*", "pluginserver_*", "enforce_rbac", "admin_gui_auth*", "portal*",
			"status_listen_ssl", "license_*", "stream_proxy_ssl*", "route_validation_strategy", "log_dynamic*", "konnect_mode", "analytics_*", "debug_listen*"}},
	}
}

// whyIgnored finds the reason for a key of Kong. An exact name wins over a pattern.
func whyIgnored(key string) (string, bool) {
	why, best := "", -1
	for _, g := range ignoredKeys() {
		for _, k := range g.Keys {
			p, wild := strings.CutSuffix(k, "*")
			switch {
			case key == k:
				return g.Why, true
			case wild && strings.HasPrefix(key, p) && len(p) > best:
				why, best = g.Why, len(p)
			}
		}
	}
	return why, best >= 0
}

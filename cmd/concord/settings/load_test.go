package settings

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/proxy"
	"concord/proxy/listen"
)

func load(t *testing.T, conf string, env ...string) (*Settings, []Warning, error) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "kong.conf")
	if err := os.WriteFile(f, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(Args{Conf: f}, env)
}

func TestDefaults(t *testing.T) {
	s, warnings, err := load(t, "")
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	type fixed struct {
		Prefix, Cluster, Gossip, AccessLog string
		Proxy, Admin, GUI, Status          []listen.Spec
		Level                              slog.Level
		Keepalive                          time.Duration
	}
	want := fixed{
		Prefix: "/var/lib/concord", Cluster: "0.0.0.0:7373", Gossip: "0.0.0.0:7946", AccessLog: "/var/lib/concord/logs/access.log",
		Proxy:  []listen.Spec{{Address: "0.0.0.0:8000"}, {Address: "0.0.0.0:8443", SSL: true, HTTP2: true}},
		Admin:  []listen.Spec{{Address: "127.0.0.1:8001"}, {Address: "127.0.0.1:8444", SSL: true, HTTP2: true}},
		GUI:    []listen.Spec{{Address: "127.0.0.1:8002"}},
		Status: []listen.Spec{{Address: "127.0.0.1:8007"}},
		Level:  slog.LevelInfo + 2, Keepalive: time.Minute,
	}
	got := fixed{s.Prefix, s.ClusterListen, s.GossipListen, s.ProxyAccessLog, s.ProxyListen, s.AdminListen, s.GUIListen, s.StatusListen, s.LogLevel,
		s.UpstreamKeepaliveIdleTimeout}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s.NodeName == "" {
		t.Error("node_name has no default")
	}
}

func TestPrecedence(t *testing.T) {
	conf := "log_level = warn\nnode_name = file\nprefix = from-file # comment\n"
	tests := []struct {
		name  string
		args  Args
		env   []string
		level slog.Level
		node  string
	}{
		{"file over default", Args{}, nil, slog.LevelWarn, "file"},
		{"KONG over file", Args{}, []string{"KONG_LOG_LEVEL=error", "KONG_NODE_NAME=kong"}, slog.LevelError, "kong"},
		{"CONCORD over KONG, whatever the order", Args{}, []string{"CONCORD_LOG_LEVEL=info", "KONG_LOG_LEVEL=error"}, slog.LevelInfo, "file"},
		{"arguments over all", Args{LogLevel: "debug"}, []string{"CONCORD_LOG_LEVEL=info"}, slog.LevelDebug, "file"},
		{"an empty variable means the default", Args{}, []string{"CONCORD_LOG_LEVEL="}, LevelNotice, "file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := filepath.Join(t.TempDir(), "c.conf")
			if err := os.WriteFile(f, []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			tt.args.Conf = f
			s, _, err := Load(tt.args, tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if s.LogLevel != tt.level || s.NodeName != tt.node || !filepath.IsAbs(s.Prefix) || filepath.Base(s.Prefix) != "from-file" {
				t.Errorf("level %v, node %q, prefix %q", s.LogLevel, s.NodeName, s.Prefix)
			}
		})
	}
}

func TestConfSyntax(t *testing.T) {
	got, err := parseConf("kong.conf", strings.Join([]string{
		"# a comment", "", "  ssl_cert_key =  a\\#b  # trailing", "proxy_listen=0.0.0.0:80, 0.0.0.0:443 ssl\r", "empty =", "twice = 1", "twice = 2",
		"equals = a=b", "back = c:\\dir"}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"ssl_cert_key": "a#b", "proxy_listen": "0.0.0.0:80, 0.0.0.0:443 ssl", "empty": "", "twice": "2", "equals": "a=b", "back": "c:\\dir"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"no equals sign", "= value", "two words = 1"} {
		if _, err := parseConf("kong.conf", "\n"+bad); err == nil || !strings.Contains(err.Error(), "kong.conf:2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestValues(t *testing.T) {
	tests := []struct {
		name, line string
		got        func(*Settings) any
		want       any
	}{
		{"off", "proxy_listen = off", func(s *Settings) any { return len(s.ProxyListen) }, 0},
		{"flags", "proxy_listen = [::]:8000 reuseport, localhost:0 http2 ssl", func(s *Settings) any { return s.ProxyListen },
			[]listen.Spec{{Address: "[::]:8000", ReusePort: true}, {Address: "localhost:0", SSL: true, HTTP2: true}}},
		{"networks", "trusted_ips = 10.1.2.3/8, ::1, unix:,192.168.0.1", func(s *Settings) any { return fmt.Sprint(s.TrustedIPs) }, "[10.0.0.0/8 ::1/128 192.168.0.1/32]"},
		{"boolean", "real_ip_recursive = on", func(s *Settings) any { return s.RealIPRecursive }, true},
		{"seconds", "upstream_keepalive_idle_timeout = 1.5", func(s *Settings) any { return s.UpstreamKeepaliveIdleTimeout }, 1500 * time.Millisecond},
		{"seconds with unit", "upstream_keepalive_idle_timeout = 5m", func(s *Settings) any { return s.UpstreamKeepaliveIdleTimeout }, 5 * time.Minute},
		{"log off", "proxy_access_log = off", func(s *Settings) any { return s.ProxyAccessLog }, ""},
		{"absolute log", "proxy_access_log = /dev/stdout", func(s *Settings) any { return s.ProxyAccessLog }, "/dev/stdout"},
		{"name servers", "dns_resolver = 10.0.0.2, 127.0.0.1:8600, ::1, [::1]:54", func(s *Settings) any { return s.DNSServers }, []string{"10.0.0.2:53", "127.0.0.1:8600", "[::1]:53", "[::1]:54"}},
		{"order of records", "dns_order = last,A, AAAA", func(s *Settings) any { return s.DNS.Order }, []string{"LAST", "A", "AAAA"}},
		{"Kong's new resolver", "resolver_stale_ttl = 7", func(s *Settings) any { return s.DNS.StaleTTL }, 7 * time.Second},
		{"headers off", "headers = off", func(s *Settings) any { return len(s.Headers) }, 0},
		{"size", "nginx_http_client_max_body_size = 10m", func(s *Settings) any { return s.MaxBody }, int64(10 << 20)},
		{"size in bytes", "nginx_http_client_max_body_size = 8192", func(s *Settings) any { return s.MaxBody }, int64(8192)},
		{"held bodies", "nginx_proxy_client_body_buffer_size = 16k", func(s *Settings) any { return s.HeldBody }, int64(16 << 10)},
		{"held bodies by default", "", func(s *Settings) any { return s.HeldBody }, int64(8 << 10)},
		{"Kong's other name", "nginx_proxy_client_max_body_size = 1G\nnginx_http_client_max_body_size = 1", func(s *Settings) any { return s.MaxBody }, int64(1 << 30)},
		{"header buffers", "nginx_http_large_client_header_buffers = 4  16k", func(s *Settings) any { return []int{s.MaxTarget, s.MaxHead} }, []int{16 << 10, 64 << 10}},
		{"header buffers by default", "", func(s *Settings) any { return []int{s.MaxTarget, s.MaxHead} }, []int{8 << 10, 64 << 10}},
		{"timeout", "nginx_http_client_body_timeout = 500ms", func(s *Settings) any { return s.ClientBodyTimeout }, 500 * time.Millisecond},
		{"connections", "nginx_events_worker_connections = auto", func(s *Settings) any { return s.MaxConns }, 65536},
		{"path escapes", "path_escapes = pass", func(s *Settings) any { return s.PathEscapes }, proxy.PassPathEscapes},
		{"crit", "log_level = emerg", func(s *Settings) any { return LevelName(s.LogLevel) }, "crit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := load(t, tt.line)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, tt.got(s)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestBadValues(t *testing.T) {
	tests := []struct{ name, line, reason string }{
		{"level", "log_level = zz", `"zz" is not a log level (debug, info, notice, warn, error, crit, alert, emerg)`},
		{"port", "proxy_listen = 0.0.0.0:99999", "not a number between 0 and 65535"},
		{"no port", "status_listen = 127.0.0.1", "write host:port"},
		{"bare IPv6", "proxy_listen = ::1:8000", "write host:port"},
		{"flag", "admin_listen = 127.0.0.1:8001 tls", `unknown flag "tls"`},
		{"cluster port", "cluster_listen = 0.0.0.0:99999", "is not an address such as 0.0.0.0:8000"},
		{"gossip without port", "gossip_listen = ::1", "is not an address"},
		{"network", "trusted_ips = 10.0.0.0/33", "range such as 10.0.0.0/8"},
		{"boolean", "real_ip_recursive = maybe", "neither on nor off"},
		{"seconds", "upstream_keepalive_idle_timeout = soon", "number of seconds"},
		{"negative seconds", "upstream_keepalive_idle_timeout = -1", "number of seconds"},
		{"not a number", "upstream_keepalive_idle_timeout = NaN", "number of seconds"},
		{"integer", "upstream_keepalive_pool_size = 1e3", "whole number"},
		{"advertise any", "cluster_advertise = 0.0.0.0:7373", "nobody can connect to"},
		{"name", "node_name = a b", "not a node name"},
		{"name server by name", "dns_resolver = ns.example", `"ns.example" is not the address of a name server`},
		{"kind of record", "dns_order = A, MX", `"MX" is not a kind of record`},
		{"no addresses", "dns_order = LAST,SRV", "lacks A and AAAA"},
		{"headers", "headers = X-Other", `"X-Other" is not known`},
		{"error type", "error_default_type = text/csv", "text/html"},
		{"size", "nginx_http_client_max_body_size = 10mb", "is not a size such as"},
		{"size without number", "nginx_http_client_max_body_size = m", "is not a size such as"},
		{"size overflow", "nginx_http_client_max_body_size = 9999999999999g", "is not a size such as"},
		{"header buffers", "nginx_http_large_client_header_buffers = 4", "a number and a size"},
		{"huge header buffers", "nginx_http_large_client_header_buffers = 1000000 1m", "out of range"},
		{"timeout 0", "nginx_http_send_timeout = 0", "not above 0"},
		{"path escapes", "path_escapes = maybe", "check, refuse or pass"},
		{"template that is not there", "error_template_html = /nonexistent/e.html", "cannot be read"},
		{"vault without the value", "node_name = {vault://env/name-of-node}", "no variable NAME_OF_NODE"},
		{"vault that is an entity", "node_name = {vault://files/name}", "vault env only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, tt.line)
			key, _, _ := strings.Cut(tt.line, " ")
			if err == nil || !strings.Contains(err.Error(), tt.reason) || !strings.HasPrefix(err.Error(), key+" has an invalid value: ") {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("all at once, with their source", func(t *testing.T) {
		_, _, err := load(t, "log_level = zz", "KONG_NODE_NAME=a b")
		if err == nil || !strings.Contains(err.Error(), "kong.conf)") || !strings.Contains(err.Error(), "(set by KONG_NODE_NAME)") {
			t.Errorf("%v", err)
		}
	})
	t.Run("certificate without key", func(t *testing.T) {
		if _, _, err := load(t, "ssl_cert = a.pem"); err == nil || !strings.Contains(err.Error(), "ssl_cert_key go together") {
			t.Errorf("%v", err)
		}
	})
	t.Run("one address twice", func(t *testing.T) {
		if _, _, err := load(t, "status_listen = 127.0.0.1:8001"); err == nil || !strings.Contains(err.Error(), "already used by admin_listen") {
			t.Errorf("%v", err)
		}
	})
	t.Run("file that is not there", func(t *testing.T) {
		if _, _, err := Load(Args{Conf: "/nonexistent/kong.conf"}, nil); err == nil || !strings.Contains(err.Error(), "/nonexistent/kong.conf") {
			t.Errorf("%v", err)
		}
	})
}

func TestIgnored(t *testing.T) {
	_, warnings, err := load(t, "pg_host = db\npg_password = planted-secret\nlog_lvl = debug\nanonymous_reports = off\nnginx_worker_processes = 2\n", "KONG_DATABASE=off", "CONCORD_FOO_BAR=1")
	if err != nil {
		t.Fatal(err)
	}
	want := []Warning{"ignored settings: anonymous_reports: nothing is ever reported to anybody; database, pg_host, pg_password: the cluster keeps the configuration, there is no database; " +
		"nginx_worker_processes: there is no nginx inside; foo_bar, log_lvl (did you mean log_level?): unknown"}
	if d := cmp.Diff(want, warnings); d != "" {
		t.Error(d)
	}
}

func TestIgnoredKeysAreNotKeys(t *testing.T) {
	for _, k := range Keys() {
		for _, g := range ignoredKeys() {
			for _, i := range g.Keys {
				if i == k.Name {
					t.Errorf("%s is both a key and ignored", i)
				}
			}
		}
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	const planted = "-----BEGIN PRIVATE KEY-----planted"
	s, _, err := load(t, "", "CONCORD_SSL_CERT=-----BEGIN CERTIFICATE-----", "CONCORD_SSL_CERT_KEY="+planted)
	if err != nil {
		t.Fatal(err)
	}
	if s.SSLCertKey.Reveal() != planted {
		t.Fatalf("revealed %q", s.SSLCertKey.Reveal())
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", s.SSLCertKey, *s)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("settings", "key", s.SSLCertKey, "all", s)
	if err := json.NewEncoder(&out).Encode(s); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out.Bytes(), []byte("planted")) {
		t.Errorf("secret shown: %s", out.String())
	}
	_, _, err = load(t, "node_name = {vault://env/my-name}", "MY_NAME=planted secret")
	if err == nil || strings.Contains(err.Error(), "planted") || !strings.Contains(err.Error(), "{vault://env/my-name}") {
		t.Errorf("error shows the secret or is missing: %v", err)
	}
	s, _, err = load(t, "ssl_cert = /c.pem\nssl_cert_key = {vault://env/my-key}", "MY_KEY=/planted.pem")
	if err != nil || s.SSLCertKey.Reveal() != "/planted.pem" {
		t.Errorf("resolved to %q: %v", s.SSLCertKey.Reveal(), err)
	}
}

func TestChanged(t *testing.T) {
	a, _, err := load(t, "prefix = /p\ntrusted_ips = 10.0.0.0/8\nssl_cert=a\nssl_cert_key=b")
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := load(t, "prefix = /p\ntrusted_ips = 10.0.0.1\nssl_cert=a\nssl_cert_key=c\nlog_level=debug\nplugins=off\nnode_name=x")
	if err != nil {
		t.Fatal(err)
	}
	live, restart := a.Changed(b)
	if d := cmp.Diff([]string{"log_level", "ssl_cert_key", "trusted_ips"}, live); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"node_name", "plugins"}, restart); d != "" {
		t.Error(d)
	}
}

func TestErrorTemplates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.html")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"", "%s", "%s %s %s", "%s %d", "%s %s 100%"} {
		write(bad)
		if _, _, err := load(t, "error_template_html = "+file); err == nil || !strings.Contains(err.Error(), "must hold %s twice") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	write("<b style='width:100%%'>%s</b> %s")
	a, _, err := load(t, "error_template_html = "+file)
	if err != nil || len(a.ErrorTemplates) != 1 {
		t.Fatal(err)
	}
	write("other %s %s")
	b, _, err := load(t, "error_template_html = "+file)
	if err != nil {
		t.Fatal(err)
	}
	if live, _ := a.Changed(b); len(live) != 1 {
		t.Errorf("a new text in the same file is not taken over: %v", live)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("proxy_listen = 0.0.0.0:8000 ssl, [::1]:9", "10.0.0.0/8")
	f.Add("a=\\#b#c\r\n=\n[x]", "::1,unix:")
	f.Add("upstream_keepalive_idle_timeout = 1e9", "")
	f.Fuzz(func(t *testing.T, conf, env string) {
		keys, err := parseConf("c", conf)
		if err != nil {
			return
		}
		var environ []string
		for k, v := range keys {
			environ = append(environ, "KONG_"+strings.ToUpper(k)+"="+v)
		}
		s, warnings, err := Load(Args{Conf: os.DevNull}, append(environ, "CONCORD_TRUSTED_IPS="+env))
		if err != nil {
			return
		}
		if len(warnings) > 1 || !filepath.IsAbs(s.Prefix) {
			t.Errorf("%q, prefix %q", warnings, s.Prefix)
		}
		for _, p := range s.TrustedIPs {
			if p != p.Masked() || p == (netip.Prefix{}) {
				t.Errorf("network %v", p)
			}
		}
	})
}

// TestShown: what GET / says of the settings has their types, Kong's other names for them, and no secret.
func TestShown(t *testing.T) {
	s, _, err := Load(Args{Conf: os.DevNull, Prefix: "/p"}, []string{
		"KONG_ADMIN_LISTEN=127.0.0.1:8001, 127.0.0.1:8444 ssl", "KONG_STREAM_LISTEN=off", "KONG_UPSTREAM_KEEPALIVE_POOL_SIZE=7", "KONG_DNS_RESOLVER=127.0.0.1:53",
		"KONG_ADMIN_REQUIRE_TOKEN=off", "KONG_SSL_CERT=/c.pem", "KONG_SSL_CERT_KEY=/secret.pem", "KONG_PLUGINS=bundled",
	})
	if err != nil {
		t.Fatal(err)
	}
	shown := s.Shown()
	for key, want := range map[string]any{
		"prefix": "/p", "admin_listen": []string{"127.0.0.1:8001", "127.0.0.1:8444 ssl"}, "stream_listen": []string{"off"}, "upstream_keepalive_pool_size": 7.0,
		"dns_resolver": []string{"127.0.0.1:53"}, "resolver_address": []string{"127.0.0.1:53"}, "admin_require_token": false, "ssl_cert": "/c.pem", "ssl_cert_key": "******",
		"plugins": []string{"bundled"}, "log_level": "notice", "node_name": nil,
	} {
		if diff := cmp.Diff(want, shown[key]); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
	if text, err := json.Marshal(shown); err != nil || strings.Contains(string(text), "secret.pem") {
		t.Errorf("%s %v", text, err)
	}
}

package all

import (
	"crypto/sha1"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/proxy/plugins/acme"
	"concord/proxy/plugins/prometheus"
	"concord/ratelimit"
)

func TestPriorities(t *testing.T) {
	got := map[string]int{}
	for _, p := range Plugins(prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New()) {
		got[p.Info.Name] = p.Info.Priority
	}
	want := map[string]int{
		"acme": 1705, "correlation-id": 100001, "jwt": 1450, "key-auth": 1250, "basic-auth": 1100, "request-size-limiting": 951, "acl": 950, "request-termination": 2,
		"bot-detection": 2500, "cors": 2000, "ip-restriction": 990, "rate-limiting": 910, "prometheus": 13, "grpc-web": 3, "proxy-protocol": 5, "mtls-auth": 1600,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSchemas(t *testing.T) {
	defaults := map[string]schema.Record{
		"jwt": {"uri_param_names": []any{"jwt"}, "cookie_names": []any{}, "key_claim_name": "iss", "secret_is_base64": false, "claims_to_verify": nil,
			"anonymous": nil, "run_on_preflight": true, "maximum_expiration": 0.0, "header_names": []any{"authorization"}, "realm": nil},
		"key-auth": {"key_names": []any{"apikey"}, "hide_credentials": false, "anonymous": nil, "key_in_header": true, "key_in_query": true,
			"key_in_body": false, "run_on_preflight": true, "realm": nil},
		"basic-auth":            {"anonymous": nil, "hide_credentials": false, "realm": "service"},
		"acl":                   {"allow": []any{"g"}, "deny": nil, "hide_groups_header": false, "always_use_authenticated_groups": false},
		"correlation-id":        {"header_name": "Kong-Request-ID", "generator": "uuid#counter", "echo_downstream": false},
		"request-size-limiting": {"allowed_payload_size": 128.0, "size_unit": "megabytes", "require_content_length": false},
		"request-termination":   {"status_code": 503.0, "message": nil, "content_type": nil, "body": nil, "echo": false, "trigger": nil},
		"bot-detection":         {"allow": []any{}, "deny": []any{}},
		"cors": {"origins": nil, "headers": nil, "exposed_headers": nil, "max_age": nil, "credentials": false, "private_network": false, "preflight_continue": false,
			"methods": []any{"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT"}},
		"ip-restriction": {"allow": []any{"::1"}, "deny": nil, "status": nil, "message": nil},
		"grpc-web":       {"proto": nil, "pass_stripped_path": nil, "allow_origin_header": "*"},
		"acme": {"account_email": "a@b.example", "account_key": nil, "api_uri": "https://acme-v02.api.letsencrypt.org/directory", "tos_accepted": true, "eab_kid": nil,
			"eab_hmac_key": nil, "cert_type": "rsa", "rsa_key_size": 4096.0, "renew_threshold_days": 14.0, "domains": nil, "allow_any_domain": false,
			"fail_backoff_minutes": 5.0, "storage": "shm", "storage_config": schema.Record{"shm": schema.Record{"shm_name": "kong"}, "kong": nil},
			"preferred_chain": nil, "enable_ipv4_common_name": true},
		"mtls-auth": {"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000002"}, "skip_consumer_lookup": false, "consumer_by": []any{"username", "custom_id"},
			"default_consumer": nil, "anonymous": nil, "authenticated_group_by": "CN", "allow_partial_chain": false, "send_ca_dn": false, "cert_cache_ttl": 60000.0,
			"cache_ttl": 60.0, "revocation_check_mode": "SKIP", "http_timeout": 30000.0, "http_proxy_host": nil, "http_proxy_port": nil, "https_proxy_host": nil,
			"https_proxy_port": nil},
		"prometheus": {"per_consumer": false, "status_code_metrics": false, "ai_metrics": false, "latency_metrics": false, "bandwidth_metrics": false,
			"upstream_health_metrics": false},
		"proxy-protocol": {"version": 1.0},
		"rate-limiting": {"second": nil, "minute": 5.0, "hour": nil, "day": nil, "month": nil, "year": nil, "limit_by": "consumer", "header_name": nil, "path": nil,
			"policy": "local", "fault_tolerant": true, "hide_client_headers": false, "error_code": 429.0, "error_message": "API rate limit exceeded", "sync_rate": -1.0,
			"redis": schema.Record{"host": nil, "port": 6379.0, "timeout": 2000.0, "username": nil, "password": nil, "database": 0.0, "ssl": false, "ssl_verify": false, "server_name": nil}},
	}
	needed := map[string]schema.Record{"acme": {"account_email": "a@b.example", "tos_accepted": true}, "acl": {"allow": []any{"g"}}, "ip-restriction": {"allow": []any{"::1"}}, "rate-limiting": {"minute": 5.0},
		"mtls-auth": {"ca_certificates": []any{"4e3e5c5e-0000-4000-8000-000000000002"}}}
	protocols := map[string][]any{"ip-restriction": {"http", "https", "tcp", "tls", "grpc", "grpcs"}, "proxy-protocol": {"http", "https", "tcp", "tls", "tls_passthrough"}}
	for _, p := range Plugins(prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New()) {
		t.Run(p.Info.Name, func(t *testing.T) {
			rec, errs := plugintest.Validate(p, needed[p.Info.Name])
			if errs != nil {
				t.Fatal(errs.Message())
			}
			if diff := cmp.Diff(defaults[p.Info.Name], rec["config"]); diff != "" {
				t.Error(diff)
			}
			want := protocols[p.Info.Name]
			if want == nil {
				want = []any{"grpc", "grpcs", "http", "https"}
			}
			if diff := cmp.Diff(want, rec["protocols"]); diff != "" {
				t.Error(diff)
			}
			s := plugin.SchemaOf(p)
			noConsumer := slices.Contains([]string{"jwt", "key-auth", "basic-auth", "acl", "cors", "bot-detection", "proxy-protocol", "mtls-auth", "acme"}, p.Info.Name)
			forbidden := slices.ContainsFunc(s.Fields, func(f schema.Field) bool { return f.Name == "consumer" && f.Null })
			if s.Name != p.Info.Name || noConsumer != forbidden {
				t.Errorf("schema %s, consumer scope forbidden: %v", s.Name, forbidden)
			}
		})
	}
}

// bench has bob with a key, a password and a token, alice with a key, and the consumer anon.
type bench struct {
	*plugintest.Gateway
	plugins    []plugin.Plugin
	bob, alice string
	anon       string
	token      string
}

func newBench(t testing.TB) *bench {
	b := &bench{Gateway: plugintest.New(t), plugins: Plugins(prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New())}
	b.bob, b.alice, b.anon = b.Consumer("bob"), b.Consumer("alice"), b.Consumer("anon")
	b.Put("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(b.bob), "key": "bobkey"})
	b.Put("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(b.alice), "key": "alicekey"})
	sum := sha1.Sum([]byte("pw" + b.bob))
	b.Put("basicauth_credentials", schema.Record{"consumer": plugintest.Ref(b.bob), "username": "bobu", "password": hex.EncodeToString(sum[:])})
	b.Put("jwt_secrets", schema.Record{"consumer": plugintest.Ref(b.bob), "key": "bobiss", "algorithm": "HS256", "secret": "s"})
	b.token, _ = jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"iss": "bobiss"}).SignedString([]byte("s"))
	return b
}

// chain builds instances in the order of their priorities.
func (b *bench) chain(t testing.TB, configs map[string]schema.Record) (list []plugin.Instance) {
	t.Helper()
	order := slices.Clone(b.plugins)
	slices.SortFunc(order, func(x, y plugin.Plugin) int { return y.Info.Priority - x.Info.Priority })
	for _, p := range order {
		if c, ok := configs[p.Info.Name]; ok {
			list = append(list, b.Build(p, c))
		}
	}
	return list
}

// A5: AND, OR, and the ways garbage could be a way past them.
func TestSeveralAuthentications(t *testing.T) {
	b := newBench(t)
	and := map[string]schema.Record{"jwt": {}, "key-auth": {}}
	or := map[string]schema.Record{"jwt": {"anonymous": "anon"}, "key-auth": {"anonymous": "anon"}}
	orReject := map[string]schema.Record{"jwt": {"anonymous": "anon"}, "key-auth": {"anonymous": "anon"}, "acl": {"allow": []any{"members"}}}
	mixed := map[string]schema.Record{"jwt": {"anonymous": "anon"}, "key-auth": {}}
	last := map[string]schema.Record{"jwt": {}, "key-auth": {"anonymous": "anon"}}
	b.Put("acls", schema.Record{"consumer": plugintest.Ref(b.bob), "group": "members"})
	good, bad := "Authorization: Bearer "+b.token, "Authorization: Bearer x.y.z"
	for _, c := range []struct {
		name     string
		configs  map[string]schema.Record
		headers  []string
		status   int
		username string
	}{
		{"AND, both", and, []string{good, "apikey: bobkey"}, 200, "bob"},
		{"AND, both, the last one gives the identity", and, []string{good, "apikey: alicekey"}, 200, "alice"},
		{"AND, token only", and, []string{good}, 401, ""},
		{"AND, key only", and, []string{"apikey: bobkey"}, 401, ""},
		{"AND, garbage and key", and, []string{bad, "apikey: bobkey"}, 401, ""},
		{"OR, token", or, []string{good}, 200, "bob"},
		{"OR, key", or, []string{"apikey: alicekey"}, 200, "alice"},
		{"OR, garbage and key", or, []string{bad, "apikey: alicekey"}, 200, "alice"},
		{"OR, token and garbage key: the first one wins", or, []string{good, "apikey: zz"}, 200, "bob"},
		{"OR, token and another's key: the first one wins", or, []string{good, "apikey: alicekey"}, 200, "bob"},
		{"OR, nothing", or, nil, 200, "anon"},
		{"OR, garbage", or, []string{bad, "apikey: zz"}, 200, "anon"},
		{"OR with acl, garbage", orReject, []string{bad, "apikey: zz"}, 401, ""},
		{"OR with acl, not a member", orReject, []string{"apikey: alicekey"}, 403, ""},
		{"OR with acl, member", orReject, []string{"apikey: bobkey"}, 200, "bob"},
		{"anonymous first, then a required key: none", mixed, nil, 401, ""},
		{"anonymous first, then a required key", mixed, []string{"apikey: alicekey"}, 200, "alice"},
		{"anonymous first, then a required key: token only", mixed, []string{good}, 401, ""},
		{"required token, then anonymous: token only", last, []string{good}, 200, "bob"},
		{"required token, then anonymous: none", last, nil, 401, ""},
		{"required token, then anonymous: garbage token, good key", last, []string{bad, "apikey: alicekey"}, 401, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.Request("GET", "/", c.headers...)
			status := 200
			if e := plugintest.Access(t, x, b.chain(t, c.configs)...); e != nil {
				status = e.Status
			}
			if status != c.status {
				t.Fatalf("status %d, want %d", status, c.status)
			}
			if status != 200 {
				return
			}
			h := &x.Request.Header
			if got := h.Get("X-Consumer-Username"); got != c.username || x.Consumer.Username != c.username || h.Count("X-Consumer-Username") != 1 {
				t.Errorf("consumer %q, want %q", got, c.username)
			}
			anonymous := c.username == "anon"
			if (x.Credential == nil) != anonymous || h.Has("X-Anonymous-Consumer") != anonymous || h.Has("X-Credential-Identifier") == anonymous {
				t.Errorf("credential %v, headers %v", x.Credential, h)
			}
		})
	}
}

// An instance is used by many goroutines while rows change.
func TestConcurrentUse(t *testing.T) {
	b := newBench(t)
	b.Put("acls", schema.Record{"consumer": plugintest.Ref(b.bob), "group": "members"})
	chain := b.chain(t, map[string]schema.Record{"jwt": {"anonymous": "anon"}, "key-auth": {}, "basic-auth": {}, "acl": {"allow": []any{"members"}}, "correlation-id": {"echo_downstream": true}})
	stop := make(chan struct{})
	done := make(chan *plugin.Exit)
	const workers = 4
	for range workers {
		go func() {
			x := &exchange.Exchange{}
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				x.Reset()
				x.Request.Method = "GET"
				x.Request.RawQuery = "jwt=" + b.token
				x.Request.Header.Add("apikey", "bobkey")
				x.Request.Header.Add("Authorization", "Basic Ym9idTpwdw==")
				if e := plugintest.Access(t, x, chain...); e != nil {
					done <- e
					return
				}
			}
		}()
	}
	for n := range 300 {
		b.Put("jwt_secrets", schema.Record{"id": "00000000-0000-4000-8000-000000000001", "consumer": plugintest.Ref(b.alice), "key": "k", "algorithm": "HS256", "secret": string(rune('a' + n%26))})
		b.Put("consumers", schema.Record{"id": b.bob, "username": "bob"})
		id := b.Put("acls", schema.Record{"consumer": plugintest.Ref(b.bob), "group": "more"})
		b.Delete("acls", id)
	}
	close(stop)
	for range workers {
		if e := <-done; e != nil {
			t.Errorf("refused: %+v", e)
		}
	}
}

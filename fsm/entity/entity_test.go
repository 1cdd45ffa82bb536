package entity_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

const (
	newID   = "6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f"
	otherID = "11111111-1111-4111-8111-111111111111"
	random  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
)

// auto makes fixed values; the clock shows half a second past a second.
var auto = schema.Auto{
	Now:    func() float64 { return 1700000000.5 },
	UUID:   func() string { return newID },
	Random: func() string { return random },
}

func decode(t testing.TB, text string) schema.Record {
	t.Helper()
	rec, err := schema.Decode([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return rec
}

func prepare(t testing.TB, name string, mode schema.Mode, current, body string) (schema.Record, schema.Errors) {
	t.Helper()
	def, ok := entity.Lookup(name)
	if !ok {
		t.Fatalf("no entity %q", name)
	}
	o := schema.Options{Mode: mode, Auto: auto, Sub: testPlugins}
	if current != "" {
		rec, errs := def.Schema.Prepare(decode(t, current), schema.Options{Auto: auto, Sub: testPlugins})
		if errs != nil {
			t.Fatalf("current: %s", errs.Message())
		}
		o.Current = rec
	}
	return def.Schema.Prepare(decode(t, body), o)
}

// vector is one answer of Kong. A message that ends in "…" is compared up to there; want holds fields of the result.
type vector struct {
	name, entity  string
	current, body string // current: PATCH
	message       string
	fields        string
	want          string
}

func (v vector) run(t *testing.T) {
	t.Helper()
	mode := schema.Insert
	if v.current != "" {
		mode = schema.Update
	}
	rec, errs := prepare(t, v.entity, mode, v.current, v.body)
	got := ""
	if errs != nil {
		got = errs.Message()
	}
	if want, cut := strings.CutSuffix(v.message, "…"); cut {
		if !strings.HasPrefix(got, want) {
			t.Errorf("message\n got %s\nwant %s", got, v.message)
		}
	} else if got != v.message {
		t.Errorf("message\n got %s\nwant %s", got, v.message)
	}
	if v.fields != "" {
		var want, got any
		text, err := json.Marshal(errs)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(v.fields), &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("fields (-want +got)\n%s", d)
		}
	}
	if v.want != "" {
		for k, want := range decode(t, v.want) {
			if d := cmp.Diff(want, rec[k]); d != "" {
				t.Errorf("%s (-want +got)\n%s", k, d)
			}
		}
	}
}

func service(extra string) string { return `{"name":"s","host":"h"` + extra + `}` }

// TestKongVectors repeats what Kong 3.9's schema engine answers.
func TestKongVectors(t *testing.T) {
	const nameRule = "the only accepted ascii characters are alphanumerics or ., -, _, and ~"
	for _, v := range []vector{
		{name: "service with three faults", entity: "services", body: `{"name":"a b","host":"h:80","path":"x//"}`,
			message: "3 schema violations (host: must not have a port; name: invalid value 'a b': " + nameRule + "; path: should start with: /)",
			fields:  `{"host":"must not have a port","name":"invalid value 'a b': ` + nameRule + `","path":"should start with: /"}`},
		{name: "url without host", entity: "services", body: `{"url":"foo"}`,
			message: "2 schema violations (host: required field missing; path: should start with: /)"},
		{name: "path on tcp", entity: "services", body: `{"host":"h","protocol":"tcp","path":"/x"}`,
			message: "2 schema violations (failed conditional validation given value of field 'protocol'; path: value must be null)",
			fields:  `{"@entity":["failed conditional validation given value of field 'protocol'"],"path":"value must be null"}`},
		{name: "retries and unknown", entity: "services", body: `{"host":"h","retries":99999,"foo":1}`,
			message: "2 schema violations (foo: unknown field; retries: value should be between 0 and 32767)"},
		{name: "url with query", entity: "services", body: `{"url":"https://h.example/x?y=1"}`,
			want: `{"protocol":"https","host":"h.example","port":443,"path":"/x"}`},
		{name: "url grpc", entity: "services", body: `{"url":"grpc://h"}`, want: `{"protocol":"grpc","port":80,"path":null}`},
		{name: "patch enabled null", entity: "services", current: service(""), body: `{"enabled":null}`,
			message: "schema violation (enabled: required field missing)"},
		{name: "patch retries null", entity: "services", current: service(""), body: `{"retries":null}`, want: `{"retries":null,"host":"h"}`},
		{name: "patch url clears path", entity: "services", current: service(`,"path":"/a"`), body: `{"url":"http://x:8080"}`,
			want: `{"path":null,"port":8080,"host":"x","name":"s"}`},
		{name: "route without rules", entity: "routes", body: `{}`,
			message: "schema violation (must set one of 'methods', 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'https')",
			fields:  `{"@entity":["must set one of 'methods', 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'https'"]}`},
		{name: "methods with comma", entity: "routes", body: `{"methods":["GET,POST"]}`,
			message: "schema violation (methods.1: invalid value: GET,POST)", fields: `{"methods":["invalid value: GET,POST"]}`},
		{name: "path and wildcard", entity: "routes", body: `{"paths":["a"],"hosts":["*.a.*"]}`,
			message: "2 schema violations (hosts.1: invalid wildcard: must have at most one wildcard; paths.1: should start with: / (fixed path) or ~/ (regex path))"},
		{name: "empty segment", entity: "routes", body: `{"paths":["/a//b"]}`, message: "schema violation (paths.1: must not have empty segments)"},
		{name: "grpc strip_path", entity: "routes", body: `{"protocols":["grpc"],"strip_path":true,"paths":["/a"]}`,
			message: "schema violation (strip_path: cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs')"},
		{name: "mixed protocols", entity: "routes", body: `{"protocols":["http","tcp"],"paths":["/a"]}`,
			message: "schema violation (protocols: these sets are mutually exclusive: ('http', 'https'), ('tcp', 'tls', 'udp'))"},
		{name: "host header", entity: "routes", body: `{"headers":{"host":["a"]}}`,
			message: "schema violation (headers: cannot contain 'host' header, which must be specified in the 'hosts' attribute)"},
		{name: "consumer without names", entity: "consumers", body: `{}`,
			message: "schema violation (at least one of these fields must be non-empty: 'custom_id', 'username')",
			fields:  `{"@entity":["at least one of these fields must be non-empty: 'custom_id', 'username'"]}`},
		{name: "patch consumer without names", entity: "consumers", current: `{"username":"u"}`, body: `{"username":null}`,
			message: "schema violation (when updating, at least one of these fields must be non-empty: 'custom_id', 'username')"},
		{name: "unknown plugin", entity: "plugins", body: `{"name":"nope"}`,
			message: "schema violation (name: plugin 'nope' not enabled; add it to the 'plugins' configuration property)"},
		{name: "jwt deep and unknown", entity: "plugins", body: `{"name":"jwt","config":{"foo":1,"claims_to_verify":["exp","zzz"]}}`,
			message: "2 schema violations (config.claims_to_verify: {\n  [2] = \"expected one of: exp, nbf\"\n}; config.foo: unknown field)",
			fields:  `{"config":{"foo":"unknown field","claims_to_verify":[null,"expected one of: exp, nbf"]}}`},
		{name: "jwt maximum_expiration", entity: "plugins", body: `{"name":"jwt","config":{"maximum_expiration":5,"claims_to_verify":["nbf"]}}`,
			message: "2 schema violations (failed conditional validation given value of field 'config.maximum_expiration'; config.claims_to_verify: expected to contain: exp)"},
		{name: "jwt maximum_expiration without claims", entity: "plugins", body: `{"name":"jwt","config":{"maximum_expiration":5}}`},
		{name: "jwt on a consumer", entity: "plugins", body: `{"name":"jwt","consumer":{"id":"` + otherID + `"}}`,
			message: "schema violation (consumer: value must be null)"},
		{name: "ordering", entity: "plugins", body: `{"name":"jwt","ordering":{}}`, message: "schema violation (ordering: unknown field)"},
		{name: "rate-limiting without limits", entity: "plugins", body: `{"name":"rate-limiting"}`,
			message: "schema violation (at least one of these fields must be non-empty: 'config.second', 'config.minute', 'config.hour', 'config.day', 'config.month', 'config.year')",
			fields:  `{"@entity":["at least one of these fields must be non-empty: 'config.second', 'config.minute', 'config.hour', 'config.day', 'config.month', 'config.year'"]}`},
		{name: "rate-limiting order", entity: "plugins", body: `{"name":"rate-limiting","config":{"second":5,"minute":3}}`,
			message: "schema violation (config: The limit for minute(3.0) cannot be lower than the limit for second(5.0))",
			fields:  `{"config":"The limit for minute(3.0) cannot be lower than the limit for second(5.0)"}`},
		{name: "rate-limiting redis", entity: "plugins", body: `{"name":"rate-limiting","config":{"hour":5,"policy":"redis"}}`,
			message: "2 schema violations (failed conditional validation given value of field 'config.policy'; config.redis: {\n  host = \"required field missing\"\n})",
			fields:  `{"@entity":["failed conditional validation given value of field 'config.policy'"],"config":{"redis":{"host":"required field missing"}}}`},
		{name: "rate-limiting alias clash", entity: "plugins", body: `{"name":"rate-limiting","config":{"hour":5,"redis_host":"a","redis":{"host":"b"}}}`,
			message: "schema violation (redis_host: both deprecated and new field are used but their values mismatch: redis_host = a vs redis.host = b)"},
		{name: "rate-limiting alias agrees", entity: "plugins", body: `{"name":"rate-limiting","config":{"hour":5,"redis_host":"a","redis":{"host":"a","port":1}}}`,
			want: `{"config":` + rateLimitingConfig(`"hour":5`, `"host":"a","port":1`) + `}`},
		{name: "patch rate-limiting", entity: "plugins", current: `{"name":"rate-limiting","config":{"hour":5}}`, body: `{"config":{"minute":2}}`,
			want: `{"config":` + rateLimitingConfig(`"hour":5,"minute":2`, "") + `}`},
		{name: "oauth2 without grants", entity: "plugins", body: `{"name":"oauth2"}`,
			message: "schema violation (config: at least one of these fields must be true: enable_authorization_code, enable_implicit_grant, enable_client_credentials, enable_password_grant)"},
		{name: "oauth2 scopes", entity: "plugins", current: `{"name":"oauth2","config":{"enable_implicit_grant":true}}`, body: `{"config":{"scopes":null,"mandatory_scope":true}}`,
			message: "2 schema violations (config.@entity: {\n  \"failed conditional validation given value of field 'mandatory_scope'\"\n}; config.scopes: required field missing)",
			fields:  `{"config":{"@entity":["failed conditional validation given value of field 'mandatory_scope'"],"scopes":"required field missing"}}`},
		{name: "acl without lists", entity: "plugins", body: `{"name":"acl"}`,
			message: "2 schema violations (exactly one of these fields must be non-empty: 'config.allow', 'config.deny'; at least one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{name: "acl old name", entity: "plugins", body: `{"name":"acl","config":{"whitelist":["a"]}}`,
			message: "3 schema violations (exactly one of these fields must be non-empty: 'config.allow', 'config.deny'; at least one of these fields must be non-empty: 'config.allow', 'config.deny'; config.whitelist: unknown field)"},
		{name: "cors bad regex", entity: "plugins", body: `{"name":"cors","config":{"origins":["(("]}}`,
			message: "schema violation (config.origins: {\n  \"'((' is not a valid regex\"\n})"},
		{name: "request-transformer pair", entity: "plugins", body: `{"name":"request-transformer","config":{"add":{"headers":["x"]}}}`,
			message: "schema violation (config.add: {\n  headers = {\n    \"invalid value: x\"\n  }\n})",
			fields:  `{"config":{"add":{"headers":["invalid value: x"]}}}`},

		// On the wire, Kong 2.8 (only what 3.9 answers alike).
		{name: "1-020", entity: "services", body: `{"host":"exa mple","port":70000}`,
			message: "2 schema violations (host: invalid value: exa mple; port: value should be between 0 and 65535)"},
		{name: "1-021", entity: "plugins", body: `{"name":"key-auth","config":{"key_names":"x","foo":1}}`,
			message: "2 schema violations (config.foo: unknown field; config.key_names: expected an array)"},
		{name: "1-022", entity: "plugins", body: `{"name":"key-auth"}`},
		{name: "1-030", entity: "services", body: `{"name":"s1","url":"http://127.0.0.1:18977/base","tags":["a","b"]}`,
			want: `{"host":"127.0.0.1","protocol":"http","path":"/base","retries":5,"enabled":true,"port":18977,"client_certificate":null,"name":"s1","id":"` + newID + `",
				"write_timeout":60000,"created_at":1700000000,"updated_at":1700000000,"connect_timeout":60000,"tls_verify":null,"read_timeout":60000,"tags":["a","b"],"ca_certificates":null,"tls_verify_depth":null}`},
		{name: "1-037", entity: "services", body: `{"name":"s3"}`, message: "schema violation (host: required field missing)"},
		{name: "1-039", entity: "services", body: `{"name":"bad name!","host":"exa mple","port":70000,"protocol":"ftp","foo":1,"retries":"x"}`,
			message: "6 schema violations (foo: unknown field; host: invalid value: exa mple; name: invalid value 'bad name!': " + nameRule + "; port: value should be between 0 and 65535; protocol: expected one of: grpc, grpcs, http, https, tcp, tls, tls_passthrough, udp; retries: expected an integer)"},
		{name: "1-040", entity: "services", body: `{"name":7,"host":"h"}`, message: "schema violation (name: expected a string)"},
		{name: "1-041", entity: "services", body: `{"name":"s3","url":"not a url"}`, message: "2 schema violations (host: required field missing; path: should start with: /)"},
		{name: "1-042", entity: "services", body: `{"name":"s3","url":"ftp://h"}`,
			message: "schema violation (protocol: expected one of: grpc, grpcs, http, https, tcp, tls, tls_passthrough, udp)"},
		{name: "1-043", entity: "services", body: `{"name":"s3","host":"h","path":"nopath"}`, message: "schema violation (path: should start with: /)"},
		{name: "1-048", entity: "services", body: `{"name":"s4","host":"h","created_at":5,"id":"not-uuid"}`, message: "schema violation (id: expected a valid UUID)"},
		{name: "1-057", entity: "services", current: service(`,"path":"/p"`), body: `{"retries":2,"path":"/base2"}`, want: `{"retries":2,"path":"/base2","host":"h"}`},
		{name: "1-060", entity: "services", current: service(""), body: `{}`, want: `{"host":"h","port":80}`},
		{name: "1-061", entity: "services", current: service(""), body: `{"port":-1}`, message: "schema violation (port: value should be between 0 and 65535)"},
		{name: "1-083", entity: "services", body: service(`,"tags":["a,b","ok","sla/sh"]`),
			message: "2 schema violations (tags.1: invalid tag 'a,b': expected printable ascii (except `,` and `/`) or valid utf-8 sequences; tags.3: invalid tag 'sla/sh': expected printable ascii (except `,` and `/`) or valid utf-8 sequences)",
			fields:  "{\"tags\":[\"invalid tag 'a,b': expected printable ascii (except `,` and `/`) or valid utf-8 sequences\",null,\"invalid tag 'sla/sh': expected printable ascii (except `,` and `/`) or valid utf-8 sequences\"]}"},
		{name: "1-087", entity: "routes", body: `{"name":"r1","paths":["/x"],"service":{"id":"` + otherID + `"}}`,
			want: `{"preserve_host":false,"path_handling":"v0","strip_path":true,"paths":["/x"],"methods":null,"sources":null,"destinations":null,"service":{"id":"` + otherID + `"},"https_redirect_status_code":426,"name":"r1","protocols":["http","https"],"request_buffering":true,"hosts":null,"snis":null,"response_buffering":true,"regex_priority":0,"tags":null,"headers":null}`},
		{name: "1-099", entity: "routes", body: `{"paths":["nope","/ok","/a b","/("],"methods":["get"],"protocols":["ftp"]}`, message: "schema violation (protocols: unknown type: ftp)", fields: `{"protocols":"unknown type: ftp"}`},
		{name: "1-100", entity: "routes", body: `{"paths":"/scalar"}`, message: "schema violation (paths: expected an array)"},
		{name: "1-111", entity: "routes", current: `{"paths":["/a"]}`, body: `{"paths":null}`,
			message: "schema violation (must set one of 'methods', 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'https')"},
		{name: "1-116", entity: "plugins", body: `{"config":{}}`, message: "schema violation (name: required field missing)"},
		{name: "1-117", entity: "plugins", body: `{"name":"rate-limiting","config":{"minute":"x","foo":2,"policy":"zz"}}`,
			message: "3 schema violations (config.foo: unknown field; config.minute: expected a number; config.policy: expected one of: local, cluster, redis)"},
		{name: "1-123", entity: "plugins", body: `{"name":"key-auth","consumer":{"id":"` + otherID + `"}}`, message: "schema violation (consumer: value must be null)"},
		{name: "1-125", entity: "plugins", body: `{"name":"rate-limiting","config":{"hour":5},"consumer_id":"` + otherID + `"}`, message: "schema violation (consumer_id: unknown field)"},
		{name: "1-138", entity: "plugins", body: `{"name":"key-auth","protocols":["tcp"]}`,
			message: "schema violation (protocols.1: expected one of: grpc, grpcs, http, https)", fields: `{"protocols":["expected one of: grpc, grpcs, http, https"]}`},
		{name: "2-061", entity: "plugins", body: `{"name":"acl","config":{"allow":["a"],"deny":["b"]}}`,
			message: "schema violation (exactly one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{name: "2-100", entity: "plugins", current: `{"name":"jwt","config":{"maximum_expiration":60,"claims_to_verify":["exp"]}}`, body: `{"config":{"claims_to_verify":["aud"]}}`,
			message: "2 schema violations (failed conditional validation given value of field 'config.maximum_expiration'; config.claims_to_verify: {\n  \"expected one of: exp, nbf\"\n})",
			fields:  `{"config":{"claims_to_verify":["expected one of: exp, nbf"]},"@entity":["failed conditional validation given value of field 'config.maximum_expiration'"]}`},
		{name: "3-080", entity: "plugins", body: `{"name":"rate-limiting","config":{"minute":10,"limit_by":"header"}}`,
			message: "2 schema violations (failed conditional validation given value of field 'config.limit_by'; config.header_name: required field missing)"},
		{name: "3-081", entity: "plugins", body: `{"name":"rate-limiting","config":{"minute":0}}`, message: "schema violation (config.minute: value must be greater than 0)"},
		{name: "1-155", entity: "basicauth_credentials", body: `{"consumer":{"id":"` + otherID + `"}}`, message: "2 schema violations (password: required field missing; username: required field missing)"},
		{name: "1-156", entity: "jwt_secrets", body: `{"consumer":{"id":"` + otherID + `"}}`,
			want: `{"secret":"` + random + `","key":"` + random + `","algorithm":"HS256","tags":null,"rsa_public_key":null,"created_at":1700000000}`},
		{name: "1-159", entity: "acls", body: `{"consumer":{"id":"` + otherID + `"}}`, message: "schema violation (group: required field missing)"},
		{name: "1-177", entity: "jwt_secrets", body: `{"consumer":{"id":"` + otherID + `"},"key":"rsa","algorithm":"RS256"}`,
			message: "2 schema violations (failed conditional validation given value of field 'algorithm'; rsa_public_key: required field missing)",
			fields:  `{"rsa_public_key":"required field missing","@entity":["failed conditional validation given value of field 'algorithm'"]}`},
		{name: "1-178", entity: "jwt_secrets", body: `{"consumer":{"id":"` + otherID + `"},"key":"rsa","algorithm":"RS256","rsa_public_key":"zzz"}`,
			message: "2 schema violations (failed conditional validation given value of field 'algorithm'; rsa_public_key: invalid key)"},
		{name: "1-179", entity: "jwt_secrets", body: `{"consumer":{"id":"` + otherID + `"},"key":"rsa","algorithm":"none"}`,
			message: "schema violation (algorithm: expected one of: HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512, EdDSA)"},
	} {
		t.Run(v.name, v.run)
	}
}

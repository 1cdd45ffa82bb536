package ratelimiting

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/ratelimit"
)

func TestDefaults(t *testing.T) {
	rec, errs := plugintest.Validate(fresh(), schema.Record{"hour": 5.0})
	if errs != nil {
		t.Fatal(errs.Message())
	}
	want := schema.Record{
		"second": nil, "minute": nil, "hour": 5.0, "day": nil, "month": nil, "year": nil,
		"limit_by": "consumer", "header_name": nil, "path": nil, "policy": "local", "fault_tolerant": true,
		"redis": schema.Record{"host": nil, "port": 6379.0, "timeout": 2000.0, "username": nil, "password": nil, "database": 0.0,
			"ssl": false, "ssl_verify": false, "server_name": nil},
		"hide_client_headers": false, "error_code": 429.0, "error_message": "API rate limit exceeded", "sync_rate": -1.0,
	}
	if diff := cmp.Diff(want, rec["config"]); diff != "" {
		t.Error(diff)
	}
}

// TestAliases: clients read the old flat names as well (kong-spec, end of appendix A).
func TestAliases(t *testing.T) {
	p := fresh()
	sub := func(string) (*schema.Schema, bool) { return plugin.SchemaOf(p), true }
	rec, errs := plugintest.Validate(p, schema.Record{"hour": 5.0, "redis_host": "r", "redis_password": ""})
	if errs != nil {
		t.Fatal(errs.Message())
	}
	def, _ := entity.Lookup("plugins")
	got := def.Schema.Present(rec, sub)["config"].(schema.Record)
	want := map[string]any{"redis_host": "r", "redis_port": 6379.0, "redis_timeout": 2000.0, "redis_database": 0.0, "redis_ssl": false,
		"redis_ssl_verify": false, "redis_username": nil, "redis_password": "", "redis_server_name": nil}
	for name, v := range want {
		if shown, ok := got[name]; !ok || shown != v {
			t.Errorf("%s: %v (present %v), want %v", name, shown, ok, v)
		}
	}
	if got["redis"].(schema.Record)["host"] != "r" {
		t.Errorf("redis: %v", got["redis"])
	}
	if len(got) != len(rec["config"].(schema.Record))+len(want) {
		t.Errorf("more names than expected: %v", got)
	}
}

func TestValidation(t *testing.T) {
	for _, c := range []struct{ name, config, want string }{
		{"nothing", `{}`, "schema violation (at least one of these fields must be non-empty: 'config.second', 'config.minute', 'config.hour', 'config.day', 'config.month', 'config.year')"},
		{"order", `{"second":5,"minute":3}`, "schema violation (config: The limit for minute(3.0) cannot be lower than the limit for second(5.0))"},
		{"order of periods that are no neighbours", `{"second":5,"minute":10,"year":4.25}`, "schema violation (config: The limit for year(4.2) cannot be lower than the limit for second(5.0))"},
		{"redis without host", `{"hour":5,"policy":"redis"}`, "2 schema violations (failed conditional validation given value of field 'config.policy'; config.redis: {\n  host = \"required field missing\"\n})"},
		{"redis", `{"hour":5,"policy":"redis","redis_host":"a"}`, "schema violation (config.policy: redis is not supported; use local, where each node counts by itself: divide the limits by the number of nodes)"},
		{"cluster", `{"hour":5,"policy":"cluster"}`, "schema violation (config.policy: limits that all nodes share (cluster) are not built yet; use local, where each node counts by itself: divide the limits by the number of nodes)"},
		{"unknown policy", `{"hour":5,"policy":"zz"}`, "schema violation (config.policy: expected one of: local, cluster, redis)"},
		{"alias that differs", `{"hour":5,"redis_host":"a","redis":{"host":"b"}}`, "schema violation (redis_host: both deprecated and new field are used but their values mismatch: redis_host = a vs redis.host = b)"},
		{"header without name", `{"minute":10,"limit_by":"header"}`, "2 schema violations (failed conditional validation given value of field 'config.limit_by'; config.header_name: required field missing)"},
		{"path without path", `{"minute":10,"limit_by":"path"}`, "2 schema violations (failed conditional validation given value of field 'config.limit_by'; config.path: required field missing)"},
		{"bad path", `{"minute":10,"limit_by":"path","path":"a"}`, "2 schema violations (failed conditional validation given value of field 'config.limit_by'; config.path: should start with: /)"},
		{"bad header name", `{"minute":10,"limit_by":"header","header_name":"a b"}`, "2 schema violations (failed conditional validation given value of field 'config.limit_by'; config.header_name: bad header name 'a b', allowed characters are A-Z, a-z, 0-9, '_', and '-')"},
		{"limit_by", `{"minute":10,"limit_by":"x"}`, "schema violation (config.limit_by: expected one of: consumer, credential, ip, service, header, path)"},
		{"zero", `{"minute":0}`, "schema violation (config.minute: value must be greater than 0)"},
		{"text", `{"minute":"x","foo":2,"policy":"zz"}`, "3 schema violations (config.foo: unknown field; config.minute: expected a number; config.policy: expected one of: local, cluster, redis)"},
		{"sync_rate with local", `{"minute":1,"sync_rate":1}`, "schema violation (config: sync_rate can only be used with the redis policy)"},
		{"sync_rate too short", `{"minute":1,"sync_rate":0.01,"policy":"redis","redis":{"host":"h"}}`, "schema violation (config: sync_rate must be greater than 0.02, or -1 to disable)"},
		{"sync_rate null", `{"minute":1,"sync_rate":null}`, "schema violation (config.sync_rate: required field missing)"},
		{"error_code zero", `{"minute":1,"error_code":0}`, "schema violation (config.error_code: value must be greater than 0)"},
		{"error_code 200", `{"minute":1,"error_code":200}`, "schema violation (config.error_code: must be the status of an error, an integer from 400 to 599)"},
		{"error_code 429.5", `{"minute":1,"error_code":429.5}`, "schema violation (config.error_code: must be the status of an error, an integer from 400 to 599)"},
		{"redis port", `{"minute":1,"redis":{"port":70000}}`, "schema violation (config.redis: {\n  port = \"value should be between 0 and 65535\"\n})"},
		{"all", `{"second":1,"minute":1,"hour":1.5,"day":2,"month":3,"year":4,"limit_by":"header","header_name":"x-id","path":"/a","policy":"local","fault_tolerant":false,
			"hide_client_headers":true,"error_code":503,"error_message":"no","redis":{"host":"127.0.0.1","username":"u","password":"p","database":3,"ssl":true,"ssl_verify":true,"server_name":"r.example"}}`, ""},
	} {
		config, err := schema.Decode([]byte(c.config))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if _, errs := plugintest.Validate(fresh(), config); errs != nil {
			got = errs.Message()
		}
		if got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func fresh() plugin.Plugin { return Plugin(ratelimit.NewLocal(ratelimit.Options{})) }

package entity

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
)

func balancingAuto() schema.Auto {
	return schema.Auto{
		Now:    func() float64 { return 1700000000.1239 },
		UUID:   func() string { return "6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f" },
		Random: func() string { return "" },
	}
}

func mustDecode(t testing.TB, text string) schema.Record {
	t.Helper()
	rec, err := schema.Decode([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return rec
}

// prepared is the record of a body and the message of its faults; current makes it a PATCH.
func prepared(t testing.TB, name, current, body string) (schema.Record, string) {
	t.Helper()
	var def Def
	for _, d := range balancing() {
		if d.Schema.Name == name {
			def = d
		}
	}
	o := schema.Options{Auto: balancingAuto()}
	if current != "" {
		rec, errs := def.Schema.Prepare(mustDecode(t, current), o)
		if errs != nil {
			t.Fatalf("current: %s", errs.Message())
		}
		o.Mode, o.Current = schema.Update, rec
	}
	rec, errs := def.Schema.Prepare(mustDecode(t, body), o)
	if errs != nil {
		return nil, errs.Message()
	}
	if def.Transform != nil {
		var err error
		if rec, err = def.Transform(rec, o.Current); err != nil {
			return nil, err.Error()
		}
	}
	return rec, ""
}

// TestUpstreamRules repeats what Kong 3.9's schema answers.
func TestUpstreamRules(t *testing.T) {
	const cond = "failed conditional validation given value of field "
	for _, v := range []struct {
		name, current, body string
		message             string // ending in "…": up to there
		want                string // fields of the result
	}{
		{name: "address as name", body: `{"name":"1.2.3.4"}`, message: "schema violation (name: Invalid name ('1.2.3.4'); no ip addresses allowed)"},
		{name: "IPv6 as name", body: `{"name":"[::1]:80"}`, message: "schema violation (name: Invalid name ('[::1]:80'); no ip addresses allowed)"},
		{name: "name with port", body: `{"name":"a.b:80"}`, message: "schema violation (name: Invalid name ('a.b:80'); no port allowed)"},
		{name: "no hostname", body: `{"name":"a b"}`, message: "schema violation (name: Invalid name ('a b'); must be a valid hostname)"},
		{name: "no name", body: `{}`, message: "schema violation (name: required field missing)"},
		{name: "header without name", body: `{"name":"u","hash_on":"header"}`,
			message: "2 schema violations (" + cond + "'hash_on'; hash_on_header: required field missing)"},
		{name: "ip twice", body: `{"name":"u","hash_on":"ip","hash_fallback":"ip"}`,
			message: "2 schema violations (" + cond + "'hash_on'; hash_fallback: expected one of: none, consumer, header, cookie, path, query_arg, uri_capture)"},
		{name: "consumer twice", body: `{"name":"u","hash_on":"consumer","hash_fallback":"consumer"}`,
			message: "2 schema violations (" + cond + "'hash_on'; hash_fallback: expected one of: none, ip, header, cookie, path, query_arg, uri_capture)"},
		{name: "path twice", body: `{"name":"u","hash_on":"path","hash_fallback":"path"}`, message: "2 schema violations (" + cond + "'hash_on'; hash_fallback: expected one of: none, consumer, header, cookie, query_arg, ip, uri_capture)"},
		{name: "fallback of nothing", body: `{"name":"u","hash_fallback":"ip"}`,
			message: "2 schema violations (" + cond + "'hash_on'; hash_fallback: expected one of: none)"},
		{name: "fallback of a cookie", body: `{"name":"u","hash_on":"cookie","hash_on_cookie":"c","hash_fallback":"ip"}`,
			message: "2 schema violations (" + cond + "'hash_on'; hash_fallback: expected one of: none)"},
		{name: "cookie as fallback", body: `{"name":"u","hash_on":"ip","hash_fallback":"cookie"}`,
			message: "2 schema violations (" + cond + "'hash_fallback'; hash_on_cookie: required field missing)"},
		{name: "cookie as fallback, named", body: `{"name":"u","hash_on":"ip","hash_fallback":"cookie","hash_on_cookie":"c"}`, want: `{"hash_on_cookie_path":"/"}`},
		{name: "argument without name", body: `{"name":"u","hash_on":"query_arg"}`, message: "2 schema violations (" + cond + "'hash_on'; hash_on_query_arg: required field missing)"},
		{name: "capture without name", body: `{"name":"u","hash_on":"ip","hash_fallback":"uri_capture"}`,
			message: "2 schema violations (" + cond + "'hash_fallback'; hash_fallback_uri_capture: required field missing)"},
		{name: "same header twice", body: `{"name":"u","hash_on":"header","hash_on_header":"x","hash_fallback":"header","hash_fallback_header":"x"}`,
			message: "schema violation (values of these fields must be distinct: 'hash_on_header', 'hash_fallback_header')"},
		{name: "same argument twice", body: `{"name":"u","hash_on":"query_arg","hash_on_query_arg":"x","hash_fallback":"query_arg","hash_fallback_query_arg":"x"}`,
			message: "schema violation (values of these fields must be distinct: 'hash_on_query_arg', 'hash_fallback_query_arg')"},
		{name: "same capture twice", body: `{"name":"u","hash_on":"uri_capture","hash_on_uri_capture":"x","hash_fallback":"uri_capture","hash_fallback_uri_capture":"x"}`,
			message: "schema violation (values of these fields must be distinct: 'hash_on_uri_capture', 'hash_fallback_uri_capture')"},
		{name: "two headers", body: `{"name":"u","hash_on":"header","hash_on_header":"x","hash_fallback":"header","hash_fallback_header":"y"}`,
			want: `{"algorithm":"consistent-hashing"}`},
		{name: "bad header name", body: `{"name":"u","hash_on_header":"x y"}`,
			message: "schema violation (hash_on_header: bad header name 'x y', allowed characters are A-Z, a-z, 0-9, '_', and '-')"},
		{name: "unknown algorithm", body: `{"name":"u","algorithm":"x"}`,
			message: "schema violation (algorithm: expected one of: consistent-hashing, least-connections, round-robin, latency, sticky-sessions)"},
		{name: "hash decides the algorithm", body: `{"name":"u","algorithm":"round-robin","hash_on":"ip"}`, want: `{"algorithm":"consistent-hashing","hash_on":"ip"}`},
		{name: "no hash decides it too", body: `{"name":"u","algorithm":"consistent-hashing","hash_on":"none"}`, want: `{"algorithm":"round-robin"}`},
		{name: "the algorithm alone", body: `{"name":"u","algorithm":"consistent-hashing"}`, want: `{"algorithm":"consistent-hashing","hash_on":"none"}`},
		{name: "least-connections drop the hash", body: `{"name":"u","algorithm":"least-connections","hash_on":"ip"}`, want: `{"algorithm":"least-connections","hash_on":"none"}`},
		{name: "latency drops the hash", current: `{"name":"u","hash_on":"ip"}`, body: `{"algorithm":"latency"}`, want: `{"algorithm":"latency","hash_on":"none"}`},
		{name: "sticky sessions drop the hash", body: `{"name":"u","algorithm":"sticky-sessions","sticky_sessions_cookie":"s","hash_on":"ip"}`,
			want: `{"algorithm":"sticky-sessions","hash_on":"none","sticky_sessions_cookie_path":null}`},
		{name: "sticky sessions without cookie", body: `{"name":"u","algorithm":"sticky-sessions"}`,
			message: "2 schema violations (" + cond + "'algorithm'; sticky_sessions_cookie: required field missing)"},
		{name: "circuit breaker", body: `{"name":"u","circuit_breaker":{"error_rate":50}}`, want: `{"circuit_breaker":{"consecutive_errors":5,"error_rate":50,
			"min_requests":20,"window":10,"http_statuses":[500,502,503,504],"base_ejection_time":30,"max_ejection_time":300,"max_ejection_percent":50,
			"half_open_requests":1,"half_open_successes":1,"max_requests":0,"max_target_requests":0,"max_pending_connections":0,"max_target_pending_connections":0}}`},
		{name: "circuit breaker off again", current: `{"name":"u","circuit_breaker":{}}`, body: `{"circuit_breaker":null}`, want: `{"circuit_breaker":null}`},
		{name: "circuit breaker out of range", body: `{"name":"u","circuit_breaker":{"window":0,"error_rate":101}}`,
			message: "2 schema violations (circuit_breaker.error_rate: value should be between 0 and 100; circuit_breaker.window: value must be greater than 0)"},
		{name: "null hash", current: `{"name":"u","hash_on":"ip"}`, body: `{"hash_on":null}`, want: `{"algorithm":"consistent-hashing","hash_on":"none"}`},
		{name: "too few slots", body: `{"name":"u","slots":9}`, message: "schema violation (slots: value should be between 10 and 65536)"},
		{name: "one counter", current: `{"name":"u","healthchecks":{"active":{"healthy":{"interval":2.5}}}}`, body: `{"healthchecks":{"passive":{"unhealthy":{"timeouts":3}}}}`,
			want: `{"healthchecks":` + healthchecks(`"interval":2.5`, `"timeouts":3`) + `}`},
		{name: "counter out of range", body: `{"name":"u","healthchecks":{"active":{"healthy":{"successes":256}}}}`,
			message: "schema violation (healthchecks.active: {\n  healthy = {\n    successes = \"value should be between 0 and 255\"\n  }\n})"},
		{name: "status out of range", body: `{"name":"u","healthchecks":{"passive":{"healthy":{"http_statuses":[200,99]}}}}`,
			message: "schema violation (healthchecks.passive: {\n  healthy = {\n    http_statuses = {\n      [2] = \"value should be between 100 and 999\"\n    }\n  }\n})"},
		{name: "threshold", body: `{"name":"u","healthchecks":{"threshold":101}}`, message: "schema violation (healthchecks.threshold: value should be between 0 and 100)"},
		{name: "certificate", body: `{"name":"u","client_certificate":{"id":"6B6D1A4E-5b3f-4a41-9d5c-0f4b3c2d1e0f"}}`, want: `{"client_certificate":{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f"}}`},
		{name: "no certificate", body: `{"name":"u","client_certificate":{"id":"x"}}`, message: "schema violation (client_certificate.id: expected a valid UUID)"},
		{name: "host header", body: `{"name":"u","host_header":"a.b:x"}`, message: "schema violation (host_header: invalid hostname: a.b:x)"},
	} {
		t.Run(v.name, func(t *testing.T) { checkVector(t, "upstreams", v.current, v.body, v.message, v.want) })
	}
}

func checkVector(t *testing.T, entity, current, body, message, want string) {
	t.Helper()
	rec, got := prepared(t, entity, current, body)
	if start, cut := strings.CutSuffix(message, "…"); cut && !strings.HasPrefix(got, start) || !cut && got != message {
		t.Errorf("message\n got %s\nwant %s", got, message)
	}
	if want == "" {
		return
	}
	for k, v := range mustDecode(t, want) {
		if d := cmp.Diff(v, rec[k]); d != "" {
			t.Errorf("%s (-want +got)\n%s", k, d)
		}
	}
}

// healthchecks is the default record with two fields replaced.
func healthchecks(replace ...string) string {
	text := `{"active":{"type":"http","timeout":1,"concurrency":10,"http_path":"/","https_sni":null,"https_verify_certificate":true,"headers":null,
		"healthy":{"interval":0,"http_statuses":[200,302],"successes":0},
		"unhealthy":{"interval":0,"http_statuses":[429,404,500,501,502,503,504,505],"tcp_failures":0,"timeouts":0,"http_failures":0}},
		"passive":{"type":"http",
		"healthy":{"http_statuses":[200,201,202,203,204,205,206,207,208,226,300,301,302,303,304,305,306,307,308],"successes":0},
		"unhealthy":{"http_statuses":[429,500,503],"tcp_failures":0,"timeouts":0,"http_failures":0}},"threshold":0}`
	for _, r := range replace {
		name, _, _ := strings.Cut(r, ":")
		at := strings.Index(text, name+":0")
		if name == `"timeouts"` { // the passive one
			at = strings.LastIndex(text, name+":0")
		}
		text = text[:at] + r + text[at+len(name)+2:]
	}
	return text
}

// TestUpstreamDefaults: everything a client reads back of an upstream with nothing but a name.
func TestUpstreamDefaults(t *testing.T) {
	checkVector(t, "upstreams", "", `{"name":"bal.up"}`, "", `{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f","created_at":1700000000,
		"updated_at":1700000000,"name":"bal.up","algorithm":"round-robin","hash_on":"none","hash_fallback":"none","hash_on_header":null,
		"hash_fallback_header":null,"hash_on_cookie":null,"hash_on_cookie_path":"/","hash_on_query_arg":null,"hash_fallback_query_arg":null,
		"hash_on_uri_capture":null,"hash_fallback_uri_capture":null,"slots":10000,"tags":null,"host_header":null,"client_certificate":null,
		"use_srv_name":false,"sticky_sessions_cookie":null,"sticky_sessions_cookie_path":null,"circuit_breaker":null,"healthchecks":`+healthchecks()+`}`)
}

func TestTargets(t *testing.T) {
	const owner = `"upstream":{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f"}`
	for _, v := range []struct{ name, target, want, message string }{
		{name: "host and port", target: "a.b:80", want: "a.b:80"},
		{name: "host", target: "a.b", want: "a.b:8000"},
		{name: "case stays", target: "A.b", want: "A.b:8000"},
		{name: "IPv4", target: "10.0.0.1", want: "10.0.0.1:8000"},
		{name: "IPv4 with zeros", target: "010.000.0.001:080", want: "10.0.0.1:80"},
		{name: "IPv6", target: "::1", want: "[0000:0000:0000:0000:0000:0000:0000:0001]:8000"},
		{name: "IPv6 in brackets", target: "[FE80::1]", want: "[fe80:0000:0000:0000:0000:0000:0000:0001]:8000"},
		{name: "IPv6 and port", target: "[fe80::1]:81", want: "[fe80:0000:0000:0000:0000:0000:0000:0001]:81"},
		{name: "port 0", target: "a:0", want: "a:0"},
		{name: "space", target: "a b", message: "schema violation (target: Invalid target; not a valid hostname or ip address)"},
		{name: "bad address", target: "1.2.3.400", message: "schema violation (target: Invalid target; not a valid hostname or ip address)"},
		{name: "port out of range", target: "a:65536", message: "schema violation (target: Invalid target; not a valid hostname or ip address)"},
		{name: "empty", target: "", message: "schema violation (target: length must be at least 1)"},
	} {
		t.Run(v.name, func(t *testing.T) {
			want := ""
			if v.message == "" {
				want = `{"target":"` + v.want + `"}`
			}
			checkVector(t, "targets", "", `{`+owner+`,"target":"`+v.target+`"}`, v.message, want)
		})
	}
	checkVector(t, "targets", "", `{`+owner+`,"target":"a"}`, "", `{"weight":100,"tags":null,"created_at":1700000000.123,"updated_at":1700000000.123}`)
	checkVector(t, "targets", "", `{`+owner+`,"target":"a","weight":65536}`, "schema violation (weight: value should be between 0 and 65535)", "")
	checkVector(t, "targets", "", `{"target":"a"}`, "schema violation (upstream: required field missing)", "")
	checkVector(t, "targets", `{`+owner+`,"target":"a"}`, `{"weight":0}`, "", `{"target":"a:8000","weight":0}`)
}

// TestBalancingStructs: the structs hold every field of the schemas and nothing else.
func TestBalancingStructs(t *testing.T) {
	bodies := map[string]string{
		"upstreams": `{"name":"u","hash_on_header":"a","hash_fallback_header":"b","hash_on_cookie":"c","hash_on_query_arg":"d","hash_fallback_query_arg":"e",
			"hash_on_uri_capture":"f","hash_fallback_uri_capture":"g","tags":["t"],"host_header":"h:1","use_srv_name":true,"sticky_sessions_cookie":"k","sticky_sessions_cookie_path":"/","circuit_breaker":{"max_requests":7},
			"healthchecks":{"active":{"https_sni":"s","headers":{"X":["1","2"]}}}}`,
		"targets": `{"upstream":{"id":"6b6d1a4e-5b3f-4a41-9d5c-0f4b3c2d1e0f"},"target":"a:1","weight":7,"tags":["t"]}`,
	}
	for _, d := range balancing() {
		t.Run(d.Schema.Name, func(t *testing.T) {
			rec, message := prepared(t, d.Schema.Name, "", bodies[d.Schema.Name])
			if message != "" {
				t.Fatal(message)
			}
			text, err := schema.Encode(rec)
			if err != nil {
				t.Fatal(err)
			}
			val := d.New()
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.DisallowUnknownFields()
			if err := dec.Decode(val); err != nil {
				t.Fatal(err)
			}
			// Health checks have one struct for two records: the passive ones have no interval.
			back, err := json.Marshal(val)
			if err != nil {
				t.Fatal(err)
			}
			got := mustDecode(t, string(back))
			if h, ok := got["healthchecks"].(schema.Record); ok {
				p := h["passive"].(schema.Record)
				delete(p["healthy"].(schema.Record), "interval")
				delete(p["unhealthy"].(schema.Record), "interval")
			}
			if d := cmp.Diff(rec, got); d != "" {
				t.Errorf("(-record +struct)\n%s", d)
			}
			if reflect.ValueOf(val).Elem().IsZero() {
				t.Error("nothing was decoded")
			}
		})
	}
}

func FuzzSplitHostPort(f *testing.F) {
	for _, s := range []string{"a", "a.b:80", "[::1]:80", "::1", "1.2.3.4", "001.2.3.4:08", "[::1]:", "a:", ":80", "a:99999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rec, err := normalTarget(schema.Record{"target": s}, nil)
		if err != nil {
			if checkTarget(s) == "" {
				t.Fatalf("%q passes the check but is refused: %v", s, err)
			}
			return
		}
		once := rec["target"].(string)
		again, err := normalTarget(rec, nil)
		if err != nil || again["target"] != once {
			t.Fatalf("%q becomes %q and then %v, %v", s, once, again["target"], err)
		}
	})
}

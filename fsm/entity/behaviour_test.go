package entity_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

const owner = `"consumer":{"id":"` + otherID + `"}`

func TestRoutes(t *testing.T) {
	for _, v := range []vector{
		{name: "grpc", body: `{"protocols":["grpc"],"paths":["/a"]}`, want: `{"strip_path":false}`},
		{name: "grpc with methods", body: `{"protocols":["grpc","grpcs"],"paths":["/a"],"methods":["GET"]}`,
			message: "schema violation (methods: cannot set 'methods' when 'protocols' is 'grpc' or 'grpcs')"},
		{name: "grpc without rules", body: `{"protocols":["grpc"]}`, message: "schema violation (must set one of 'hosts', 'headers', 'paths' when 'protocols' is 'grpc')"},
		{name: "grpcs without rules", body: `{"protocols":["grpcs"]}`, message: "schema violation (must set one of 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'grpcs')"},
		{name: "grpcs by sni", body: `{"protocols":["grpcs"],"snis":["a.b"]}`},
		{name: "http without rules", body: `{"protocols":["http"]}`, message: "schema violation (must set one of 'methods', 'hosts', 'headers', 'paths' when 'protocols' is 'http')"},
		{name: "http with sources", body: `{"paths":["/a"],"sources":[{"ip":"10.0.0.0/8"}]}`,
			message: "schema violation (sources: cannot set 'sources' when 'protocols' is 'http' or 'https')"},
		{name: "http with snis", body: `{"protocols":["http"],"paths":["/a"],"snis":["a.b"]}`,
			message: "2 schema violations ('snis' can only be set when 'protocols' is 'grpcs', 'https', 'tls' or 'tls_passthrough'; snis: length must be 0)"},
		{name: "https by wildcard sni", body: `{"protocols":["https"],"snis":["*.b"]}`},
		{name: "sni with an IP", body: `{"protocols":["https"],"snis":["1.2.3.4"]}`, message: "schema violation (snis.1: must not be an IP)"},
		{name: "tcp without rules", body: `{"protocols":["tcp"]}`, message: "schema violation (must set one of 'sources', 'destinations', 'snis' when 'protocols' is 'tcp', 'tls' or 'udp')"},
		{name: "tcp with paths", body: `{"protocols":["tcp"],"paths":["/a"],"sources":[{"port":80}]}`,
			message: "schema violation (paths: cannot set 'paths' when 'protocols' is 'tcp', 'tls', 'tls_passthrough' or 'udp')"},
		{name: "tcp", body: `{"protocols":["tcp","udp"],"sources":[{"ip":"10.0.0.1"},{"port":80}]}`,
			want: `{"sources":[{"ip":"10.0.0.1","port":null},{"ip":null,"port":80}]}`},
		{name: "empty address", body: `{"protocols":["tcp"],"sources":[{}]}`,
			message: "schema violation (sources.1: {\n  [\"@entity\"] = {\n    \"at least one of these fields must be non-empty: 'ip', 'port'\"\n  }\n})"},
		{name: "bad address", body: `{"protocols":["tcp"],"sources":[{"port":80},{"ip":"x","port":-1}]}`,
			message: "schema violation (sources.2: {\n  ip = \"invalid ip or cidr range: 'x'\",\n  port = \"value should be between 0 and 65535\"\n})"},
		{name: "tls_passthrough", body: `{"protocols":["tls_passthrough"]}`, message: "schema violation (must set snis when 'protocols' is 'tls_passthrough')"},
		{name: "no protocols", body: `{"protocols":[],"paths":["/a"]}`, message: "schema violation (protocols: length must be at least 1)"},
		{name: "protocols null", body: `{"protocols":null,"paths":["/a"]}`, message: "schema violation (protocols: required field missing)"},
		{name: "protocols as text", body: `{"protocols":"http","paths":["/a"]}`, message: "schema violation (protocols: expected a set)"},
		{name: "one bad protocol", body: `{"protocols":["http","ftp"],"paths":["/a"]}`,
			message: "schema violation (protocols.2: expected one of: grpc, grpcs, http, https, tcp, tls, tls_passthrough, udp)"},
		{name: "protocols of numbers", body: `{"protocols":[1],"paths":["/a"]}`, message: "schema violation (protocols.1: expected a string)"},
		{name: "patch to grpc", current: `{"paths":["/a"]}`, body: `{"protocols":["grpc"]}`,
			message: "schema violation (strip_path: cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs')"},
		{name: "headers", body: `{"headers":{"X-Env":["prod","test"]}}`},
		{name: "headers, bad name", body: `{"headers":{"x y":["a"]}}`, message: "schema violation (headers: bad header name 'x y', allowed characters are A-Z, a-z, 0-9, '_', and '-')"},
		{name: "headers, text", body: `{"headers":{"x":"a"}}`, message: "schema violation (headers: expected an array)"},
		{name: "headers, number", body: `{"headers":{"x":[1]}}`, message: "schema violation (headers.1: expected a string)"},
		{name: "headers, HOST", body: `{"headers":{"HOST":["a"]}}`, message: "schema violation (headers: cannot contain 'host' header, which must be specified in the 'hosts' attribute)"},
		{name: "headers, regex", body: `{"headers":{"x":["~*^a+$"]}}`},
		{name: "headers, bad regex", body: `{"headers":{"x":["~*("]}}`, message: "schema violation (headers: invalid regex: '(' (PCRE returned: missing closing ): `(`))"},
		{name: "headers, two values are no regex", body: `{"headers":{"x":["~*(","b"]}}`},
		{name: "redirect status", body: `{"paths":["/a"],"https_redirect_status_code":303}`, message: "schema violation (https_redirect_status_code: expected one of: 426, 301, 302, 307, 308)"},
		{name: "duplicates", body: `{"methods":["GET","PUT","GET"],"hosts":["a","a"]}`, want: `{"methods":["GET","PUT"],"hosts":["a","a"]}`},
		{name: "regex path", body: `{"paths":["~/a/(?<id>\\d+)$"]}`},
		{name: "bad regex path", body: `{"paths":["/ok","~/["]}`, message: "schema violation (paths.2: invalid regex: '/[' (PCRE returned: missing closing ]: `[`))"},
	} {
		v.entity = "routes"
		t.Run(v.name, v.run)
	}
}

func TestServices(t *testing.T) {
	for _, v := range []vector{
		{name: "certificate", body: service(`,"protocol":"https","client_certificate":{"id":"` + strings.ToUpper(newID) + `"}`), want: `{"client_certificate":{"id":"` + newID + `"}}`},
		{name: "certificate without TLS", body: service(`,"client_certificate":{"id":"` + newID + `"}`),
			message: "2 schema violations (failed conditional validation given value of field 'protocol'; client_certificate: value must be null)"},
		{name: "tls fields need https", body: service(`,"tls_verify":true,"tls_verify_depth":1,"ca_certificates":[]`),
			message: "6 schema violations (failed conditional validation given value of field 'protocol'; failed conditional validation given value of field 'protocol'; failed conditional validation given value of field 'protocol'; ca_certificates: value must be null; tls_verify: value must be null; tls_verify_depth: value must be null)"},
		{name: "tls fields", body: service(`,"protocol":"tls","tls_verify":true,"tls_verify_depth":1,"ca_certificates":["` + strings.ToUpper(newID) + `"]`),
			want: `{"tls_verify":true,"tls_verify_depth":1,"ca_certificates":["` + newID + `"]}`},
		{name: "bad ca certificates", body: service(`,"protocol":"https","ca_certificates":["x"]`), message: "schema violation (ca_certificates.1: expected a valid UUID)"},
		{name: "timeout zero", body: service(`,"read_timeout":0`), message: "schema violation (read_timeout: value should be between 1 and 2147483646)"},
		{name: "timeout null", body: service(`,"read_timeout":null`), want: `{"read_timeout":null}`},
		{name: "path with query", body: service(`,"path":"/a?b=c"`), message: "schema violation (path: invalid path: '/a?b=c' (characters outside of the reserved list of RFC 3986 found))"},
		{name: "url overrides", body: service(`,"url":"http://other:81","port":5,"path":"/x"`), want: `{"host":"other","port":81,"path":null}`},
		{name: "url no text", body: `{"url":5}`, message: "schema violation (url: expected a string)"},
		{name: "url empty", body: `{"url":""}`, message: "schema violation (url: length must be at least 1)"},
		{name: "url null", body: service(`,"url":null`), want: `{"host":"h"}`},
		{name: "url with a word for a port", body: `{"url":"http://h:x"}`, message: "schema violation (port: expected an integer)"},
		{name: "host null", body: `{"host":null}`, message: "schema violation (host: required field missing)"},
		{name: "created_at kept", body: service(`,"created_at":5,"updated_at":"whatever"`), want: `{"created_at":5,"updated_at":1700000000}`},
		{name: "created_at bad", body: service(`,"created_at":-5`), message: "schema violation (created_at: expected a valid timestamp)"},
		{name: "ttl", body: service(`,"ttl":5`), message: "schema violation (ttl: unknown field)"},
	} {
		v.entity = "services"
		t.Run(v.name, v.run)
	}
}

// upstreams as Kong declares the part that its vectors are about.
var upstreams = func() *schema.Schema {
	kinds := []any{"none", "consumer", "ip", "header", "cookie", "path", "query_arg", "uri_capture"}
	except := func(kind string) schema.Check {
		var rest []any
		for _, k := range kinds {
			if k != kind {
				rest = append(rest, k)
			}
		}
		return schema.Conditional{IfField: "hash_on", IfMatch: schema.Field{Pattern: "^" + kind + "$"}, ThenField: "hash_fallback", ThenMatch: schema.Field{OneOf: rest}}
	}
	return &schema.Schema{Name: "upstreams", Fields: []schema.Field{
		{Name: "name", Type: schema.String, Required: true, Unique: true, Check: func(v any) string {
			if v == "1.2.3.4" {
				return "Invalid name ('1.2.3.4'); no ip addresses allowed"
			}
			return ""
		}},
		{Name: "hash_on", Type: schema.String, Default: "none", OneOf: kinds},
		{Name: "hash_fallback", Type: schema.String, Default: "none", OneOf: kinds},
		schema.HeaderName("hash_on_header"),
	}, Checks: []schema.Check{
		schema.Conditional{IfField: "hash_on", IfMatch: schema.Field{Pattern: "^header$"}, ThenField: "hash_on_header", ThenMatch: schema.Field{Required: true}},
		except("ip"),
	}}
}()

func TestUpstreamVectors(t *testing.T) {
	for in, want := range map[string]string{
		`{"name":"1.2.3.4"}`:              "schema violation (name: Invalid name ('1.2.3.4'); no ip addresses allowed)",
		`{"name":"u","hash_on":"header"}`: "2 schema violations (failed conditional validation given value of field 'hash_on'; hash_on_header: required field missing)",
		`{"name":"u","hash_on":"ip","hash_fallback":"ip"}`: "2 schema violations (failed conditional validation given value of field 'hash_on'; " +
			"hash_fallback: expected one of: none, consumer, header, cookie, path, query_arg, uri_capture)",
	} {
		if _, errs := upstreams.Prepare(decode(t, in), schema.Options{}); errs == nil || errs.Message() != want {
			t.Errorf("%s\n got %v\nwant %s", in, errs, want)
		}
	}
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestJWTKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix := publicPEM(t, &rsaKey.PublicKey)
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)}))
	private := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}))
	for _, c := range []struct {
		name, algorithm string
		key             any
		want            string
	}{
		{"RS256", "RS256", pkix, ""},
		{"RS256, PKCS#1", "RS256", pkcs1, ""},
		{"PS512", "PS512", "  \n" + pkix, ""},
		{"EdDSA", "EdDSA", publicPEM(t, edKey), ""},
		{"private key", "RS256", private, "invalid key"},
		{"text", "PS256", "zzz", "invalid key"},
		{"no key", "EdDSA", nil, "required field missing"},
		{"ES256 without a key", "ES256", nil, ""},
		{"HS512 with any text", "HS512", "zzz", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			def, _ := entity.Lookup("jwt_secrets")
			_, errs := def.Schema.Prepare(schema.Record{"consumer": schema.Record{"id": otherID}, "algorithm": c.algorithm, "rsa_public_key": c.key}, schema.Options{Auto: auto})
			got, _ := errs["rsa_public_key"].(string)
			if got != c.want || (errs == nil) != (c.want == "") {
				t.Errorf("got %v, want %q", errs, c.want)
			}
		})
	}
}

func TestBasicAuthDigest(t *testing.T) {
	// Seen on the wire: consumer bd3737e0-…, passwords pw and pw2.
	const consumer = "bd3737e0-0ae2-4e81-8c37-abfd50ca196a"
	const pw, pw2 = "fb5c57a2790f7fc99ca4a4d6442d6cfdc388ce6e", "eb08ea9d47a9708c6fe1a0718af6881cb8755ae7"
	def, _ := entity.Lookup("basicauth_credentials")
	write := func(mode schema.Mode, current schema.Record, body string) (schema.Record, error) {
		rec, errs := def.Schema.Prepare(decode(t, body), schema.Options{Mode: mode, Current: current, Auto: auto})
		if errs != nil {
			t.Fatal(errs)
		}
		before, _ := schema.Encode(rec)
		out, err := def.Transform(rec, current)
		if after, _ := schema.Encode(rec); string(after) != string(before) {
			t.Error("Transform changed its input")
		}
		return out, err
	}
	created, err := write(schema.Insert, nil, `{"consumer":{"id":"`+consumer+`"},"username":"bobu","password":"pw"}`)
	if err != nil || created["password"] != pw {
		t.Fatalf("insert: %v %v", created, err)
	}
	for _, c := range []struct {
		name, body, want string
		mode             schema.Mode
	}{
		{"patch password", `{"password":"pw2"}`, pw2, schema.Update},
		{"patch name", `{"username":"other"}`, pw, schema.Update},
		{"patch with the digest", `{"password":"` + pw + `"}`, pw, schema.Update},
		{"put password", `{"consumer":{"id":"` + consumer + `"},"username":"bobu","password":"pw2"}`, pw2, schema.Upsert},
		{"patch consumer and password", `{"consumer":{"id":"` + otherID + `"},"password":"pw"}`, entity.PasswordDigest("pw", otherID), schema.Update},
	} {
		if rec, err := write(c.mode, created, c.body); err != nil || rec["password"] != c.want {
			t.Errorf("%s: %v %v", c.name, rec, err)
		}
	}
	_, err = write(schema.Update, created, `{"consumer":{"id":"`+otherID+`"}}`)
	var violation schema.Errors
	if !errors.As(err, &violation) || violation.Message() != "schema violation (all or none of these fields must be set: 'password', 'consumer.id')" {
		t.Errorf("moved without password: %v", err)
	}
}

// full has a body with every field of an entity set to something else than its zero value.
var full = map[string]string{
	"services": `{"name":"s","retries":3,"protocol":"https","host":"h","port":8443,"path":"/p","connect_timeout":1,"write_timeout":2,"read_timeout":3,
		"tags":["a"],"tls_verify":true,"tls_verify_depth":2,"ca_certificates":["` + otherID + `"],"enabled":true}`,
	"routes": `{"name":"r","protocols":["https"],"https_redirect_status_code":301,"strip_path":true,"preserve_host":true,"tags":["a"],"service":{"id":"` + otherID + `"},
		"snis":["a.b"],"methods":["GET"],"hosts":["a"],"paths":["/a"],"headers":{"x":["y"]},"regex_priority":5,"path_handling":"v1"}`,
	"consumers":             `{"username":"u","custom_id":"c","tags":["a"]}`,
	"plugins":               `{"name":"rate-limiting","instance_name":"i","route":{"id":"` + otherID + `"},"service":{"id":"` + otherID + `"},"consumer":{"id":"` + otherID + `"},"config":{"minute":5},"tags":["a"]}`,
	"jwt_secrets":           `{` + owner + `,"rsa_public_key":"p","tags":["a"]}`,
	"keyauth_credentials":   `{` + owner + `,"tags":["a"],"ttl":60}`,
	"basicauth_credentials": `{` + owner + `,"username":"u","password":"p","tags":["a"]}`,
	"acls":                  `{` + owner + `,"group":"g","tags":["a"]}`,
	"certificates":          strings.Replace(body("cert", "rsa", "key", "rsa key", "cert_alt", "ec", "key_alt", "ec key"), "{", `{"tags":["a"],"snis":["a.b"],`, 1),
	"snis":                  `{"name":"*.a","certificate":{"id":"` + otherID + `"},"tags":["a"]}`,
	"ca_certificates":       strings.Replace(body("cert", "ca"), "{", `{"tags":["a"],"cert_digest":"d",`, 1),
	"vaults":                `{"prefix":"my-env","name":"env","description":"d","config":{"prefix":"P_"},"tags":["a"]}`,
	"keys":                  `{"set":{"id":"` + otherID + `"},"name":"n","kid":"k","pem":` + body("private_key", "ec key", "public_key", "ec public") + `,"tags":["a"]}`,
	"key_sets":              `{"name":"n","tags":["a"]}`,
	"hmacauth_credentials":  `{` + owner + `,"username":"u","tags":["a"]}`,
	"oauth2_credentials":    `{` + owner + `,"name":"n","hash_secret":true,"redirect_uris":["http://a/b"],"client_type":"public","tags":["a"]}`,
	"oauth2_tokens": `{"service":{"id":"` + otherID + `"},"credential":{"id":"` + otherID + `"},"expires_in":5,"refresh_token":"r","authenticated_userid":"u",
		"scope":"s","ttl":5}`,
	"oauth2_authorization_codes": `{"service":{"id":"` + otherID + `"},"credential":{"id":"` + otherID + `"},"authenticated_userid":"u","scope":"s","challenge":"c",
		"challenge_method":"S256","plugin":{"id":"` + otherID + `"},"ttl":5}`,
	"sessions":     `{"session_id":"s","expires":1900000000,"data":"d","ttl":5}`,
	"acme_storage": `{"key":"k","value":"v","ttl":5}`,

	"consumer_groups":          `{"name":"g","tags":["a"]}`,
	"consumer_group_consumers": `{` + owner + `,"consumer_group":{"id":"` + otherID + `"}}`,
}

// TestStructs: the struct of an entity holds all that its record holds, and every field of the schema has its place.
func TestStructs(t *testing.T) {
	for name, body := range full {
		t.Run(name, func(t *testing.T) {
			def, _ := entity.Lookup(name)
			minimal := map[string]string{"services": `{"host":"h"}`, "routes": `{"protocols":["tcp"],"sources":[{"port":1}],"destinations":[{"ip":"::1"}]}`, "consumers": `{"username":"u"}`,
				"plugins": `{"name":"rate-limiting","consumer_group":{"id":"` + otherID + `"},"config":{"minute":5}}`}[name]
			for _, text := range []string{body, minimal} {
				if text == "" {
					continue
				}
				rec, errs := prepare(t, name, schema.Insert, "", text)
				if errs != nil {
					t.Fatal(errs)
				}
				fields := slices.DeleteFunc(slices.Clone(def.Schema.Fields), func(f schema.Field) bool { return f.Since > 0 && rec[f.Name] == nil })
				if len(rec) != len(fields) {
					t.Errorf("%d fields in the record, want %d", len(rec), len(fields))
				}
				for _, f := range def.Schema.Fields {
					if f.Transient {
						delete(rec, f.Name)
					}
				}
				row, err := schema.Encode(rec)
				if err != nil {
					t.Fatal(err)
				}
				v := def.New()
				dec := json.NewDecoder(strings.NewReader(string(row)))
				dec.DisallowUnknownFields()
				if err := dec.Decode(v); err != nil {
					t.Fatal(err)
				}
				back, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(dense(rec), dense(decode(t, string(back)))); d != "" {
					t.Errorf("(-record +struct)\n%s", d)
				}
			}
		})
	}
}

// dense leaves out what is null or a zero value, which a struct cannot tell apart.
func dense(v any) any {
	switch v := v.(type) {
	case schema.Record:
		out := schema.Record{}
		for k, e := range v {
			if e = dense(e); e != nil {
				out[k] = e
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = dense(v[i])
		}
		return out
	}
	if v == "" || v == 0.0 || v == false {
		return nil
	}
	return v
}

func TestAll(t *testing.T) {
	tables := map[uint16]string{}
	for _, d := range entity.All() {
		if other, taken := tables[d.Table]; taken {
			t.Errorf("table %d of %s and %s", d.Table, other, d.Schema.Name)
		}
		tables[d.Table] = d.Schema.Name
		if _, err := schema.Encode(d.Schema.Describe()); err != nil {
			t.Errorf("%s: %v", d.Schema.Name, err)
		}
		if k := d.Schema.EndpointKey; k != "" {
			if f, ok := d.Schema.Field(k); !ok || !f.Unique {
				t.Errorf("%s: look-up key %q is no unique field", d.Schema.Name, k)
			}
		}
	}
	want := map[uint16]string{1: "services", 2: "routes", 3: "consumers", 4: "plugins", 5: "jwt_secrets", 6: "keyauth_credentials", 7: "basicauth_credentials", 8: "acls",
		11: "certificates", 12: "snis", 13: "ca_certificates", 14: "vaults", 15: "keys", 16: "key_sets", 17: "hmacauth_credentials", 18: "oauth2_credentials",
		19: "oauth2_tokens", 20: "oauth2_authorization_codes", 21: "sessions", 22: "acme_storage"}
	for n, name := range want {
		if tables[n] != name {
			t.Errorf("table %d is %q, want %q", n, tables[n], name)
		}
	}
	if _, ok := entity.Lookup("nothing"); ok {
		t.Error("found nothing")
	}
	for name, fields := range map[string][]string{"jwt_secrets": {"secret"}, "keyauth_credentials": {"key"}, "basicauth_credentials": {"password"},
		"certificates": {"key", "key_alt"}, "keys": {"jwk"}, "hmacauth_credentials": {"secret"}, "oauth2_credentials": {"client_secret"},
		"oauth2_tokens": {"access_token", "refresh_token"}, "oauth2_authorization_codes": {"code"}, "sessions": {"session_id", "data"}, "acme_storage": {"value"}} {
		def, _ := entity.Lookup(name)
		for _, field := range fields {
			if f, _ := def.Schema.Field(field); !f.Secret {
				t.Errorf("%s.%s is not secret", name, field)
			}
		}
	}
	for _, d := range entity.All() {
		m := d.Members
		if m == nil {
			continue
		}
		list, ok := d.Schema.Field(m.Field)
		other, known := entity.Lookup(m.Entity)
		if !ok || !list.Transient || !known || other.Schema.EndpointKey == "" {
			t.Errorf("%s: members %+v", d.Schema.Name, m)
			continue
		}
		if ref, ok := other.Schema.Field(m.Ref); !ok || ref.Ref != d.Schema.Name || ref.OnDelete != schema.Cascade {
			t.Errorf("%s: members refer by %+v", d.Schema.Name, ref)
		}
	}
}

// TestWrongInput puts every kind of wrong value into every field of every entity: all are refused by name or are fine,
// and nothing panics.
func TestWrongInput(t *testing.T) {
	deep := any("x")
	for range 90 {
		deep = []any{schema.Record{"a": deep}}
	}
	values := []any{nil, true, 0.0, -1.0, 1e300, 0.5, "", "x", "\xff", strings.Repeat("a", 1<<16), []any{}, []any{nil}, []any{1.0, "\xff", []any{}}, []any{schema.Record{}},
		schema.Record{}, schema.Record{"id": "x"}, schema.Record{"": nil}, schema.Record{"\xff": "\xff"}, schema.Record{"$sealed": "x"}, deep}
	for name, body := range full {
		def, _ := entity.Lookup(name)
		base := decode(t, body)
		current, errs := prepare(t, name, schema.Insert, "", body)
		if errs != nil {
			t.Fatal(errs)
		}
		for _, f := range append([]schema.Field{{Name: "nope"}, {Name: "$x"}, {Name: "url"}}, def.Schema.Fields...) {
			for i, v := range values {
				for _, mode := range []schema.Mode{schema.Insert, schema.Update, schema.Upsert} {
					in := schema.Record{}
					for k, x := range base {
						in[k] = x
					}
					in[f.Name] = v
					rec, errs := def.Schema.Prepare(in, schema.Options{Mode: mode, Current: current, Auto: auto, Sub: testPlugins})
					if (rec == nil) == (errs == nil) {
						t.Fatalf("%s.%s value %d: record %v, errors %v", name, f.Name, i, rec, errs)
					}
					if errs != nil {
						if !strings.Contains(errs.Message(), "schema violation") {
							t.Fatalf("%s.%s value %d: %s", name, f.Name, i, errs.Message())
						}
						continue
					}
					row, err := schema.Encode(rec)
					if err != nil {
						t.Fatalf("%s.%s value %d: %v", name, f.Name, i, err)
					}
					if err := json.Unmarshal(row, def.New()); err != nil {
						t.Fatalf("%s.%s value %d does not fit the struct: %v", name, f.Name, i, err)
					}
				}
			}
		}
	}
}

// FuzzPrepare: any JSON is prepared or refused; what was prepared is stable under a second pass and fits its struct.
func FuzzPrepare(f *testing.F) {
	for name, body := range full {
		f.Add(name, body)
	}
	f.Add("routes", `{"protocols":["tcp"],"sources":[{"ip":"::/0","port":1}]}`)
	f.Add("services", `{"url":"http://u:p@[::1]:80/a;b?c#d"}`)
	f.Add("plugins", `{"name":"rate-limiting","config":{"redis_host":"a","second":1,"redis":{"password":"{vault://env/x}"}}}`)
	f.Add("plugins", `{"name":"request-transformer","config":{"add":{"headers":["a:b"]}}}`)
	f.Fuzz(func(t *testing.T, name, body string) {
		def, ok := entity.Lookup(name)
		if !ok || def.Schema.Internal {
			return
		}
		in, err := schema.Decode([]byte(body))
		if err != nil {
			return
		}
		o := schema.Options{Auto: auto, Sub: testPlugins}
		first, errs := def.Schema.Prepare(in, o)
		if errs != nil {
			if errs.Message() == "" {
				t.Fatal("violations without a message")
			}
			return
		}
		second, errs := def.Schema.Prepare(first, o)
		if errs != nil {
			t.Fatalf("refuses its own result: %s", errs.Message())
		}
		if d := cmp.Diff(first, second); d != "" {
			t.Fatalf("not stable\n%s", d)
		}
		o.Mode, o.Current = schema.Update, first
		patched, errs := def.Schema.Prepare(schema.Record{}, o)
		if d := cmp.Diff(first, patched); d != "" || errs != nil {
			t.Fatalf("an empty PATCH changes it: %v\n%s", errs, d)
		}
		row, err := schema.Encode(first)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(row, def.New()); err != nil {
			t.Fatalf("%s: %v", row, err)
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	for _, name := range []string{"services", "routes", "consumers", "plugins", "keyauth_credentials"} {
		b.Run(name, func(b *testing.B) {
			def, _ := entity.Lookup(name)
			body := []byte(full[name])
			b.ReportAllocs()
			for b.Loop() {
				in, err := schema.Decode(body)
				if err != nil {
					b.Fatal(err)
				}
				rec, errs := def.Schema.Prepare(in, schema.Options{Auto: auto, Sub: testPlugins})
				if errs != nil {
					b.Fatal(errs)
				}
				if _, err := schema.Encode(rec); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entities/s")
		})
	}
}

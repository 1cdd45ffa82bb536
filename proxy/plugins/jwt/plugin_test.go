package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	golangjwt "github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

const hsSecret = "a-secret-of-more-than-thirty-two-bytes"

// keys of the tests, made once: RSA keys are slow to make.
var (
	rsaKey, _   = rsa.GenerateKey(rand.Reader, 2048)
	ecKeys      = map[string]*ecdsa.PrivateKey{"ES256": ecKey(elliptic.P256()), "ES384": ecKey(elliptic.P384()), "ES512": ecKey(elliptic.P521())}
	_, edKey, _ = ed25519.GenerateKey(rand.Reader)
)

func ecKey(c elliptic.Curve) *ecdsa.PrivateKey {
	k, _ := ecdsa.GenerateKey(c, rand.Reader)
	return k
}

func publicPEM(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// signingKey is the private key of an algorithm and the text of its public key.
func signingKey(t testing.TB, alg string) (any, string) {
	t.Helper()
	switch {
	case strings.HasPrefix(alg, "HS"):
		return []byte(hsSecret), ""
	case strings.HasPrefix(alg, "ES"):
		return ecKeys[alg], publicPEM(t, ecKeys[alg])
	case alg == "EdDSA":
		return edKey, publicPEM(t, edKey)
	}
	return rsaKey, publicPEM(t, rsaKey)
}

// mint signs claims with the algorithm's test key.
func mint(t testing.TB, alg string, header, claims map[string]any) string {
	t.Helper()
	key, _ := signingKey(t, alg)
	return mintWith(t, alg, key, header, claims)
}

func mintWith(t testing.TB, alg string, key any, header, claims map[string]any) string {
	t.Helper()
	tok := golangjwt.NewWithClaims(golangjwt.GetSigningMethod(alg), golangjwt.MapClaims(claims))
	for k, v := range header {
		tok.Header[k] = v
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// raw signs a header and claims given as text with HMAC.
func raw(header, claims string) string {
	text := enc(header) + "." + enc(claims)
	sig, _ := golangjwt.SigningMethodHS256.Sign(text, []byte(hsSecret))
	return text + "." + enc(string(sig))
}

func enc(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// bench is a gateway with one consumer, bob, who has a credential for every algorithm: its key is "iss-<alg>".
type bench struct {
	*plugintest.Gateway
	bob string
}

func newBench(t testing.TB) *bench {
	b := &bench{Gateway: plugintest.New(t)}
	b.bob = b.Consumer("bob")
	for _, a := range algorithms {
		_, pub := signingKey(t, a.name)
		b.credential("iss-"+a.name, a.name, hsSecret, pub)
	}
	return b
}

func (b *bench) credential(key, alg, secret, pub string) string {
	rec := schema.Record{"consumer": plugintest.Ref(b.bob), "key": key, "algorithm": alg, "secret": secret, "rsa_public_key": nil}
	if pub != "" {
		rec["rsa_public_key"] = pub
	}
	return b.Put("jwt_secrets", rec)
}

// answer is what the client sees of an Exit.
type answer struct {
	Status    int
	Body      any
	Challenge string
}

func answerOf(e *plugin.Exit) answer {
	if e == nil {
		return answer{Status: 200}
	}
	a := answer{Status: e.Status, Body: e.Body}
	for _, f := range e.Header {
		if f.Name == "WWW-Authenticate" {
			a.Challenge = f.Value
		}
	}
	return a
}

const invalid = `Bearer error="invalid_token"`

func refused(message string) answer {
	return answer{401, map[string]string{"message": message}, invalid}
}

func claimFault(pairs ...string) answer {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return answer{401, m, invalid}
}

func auth(token string) []string { return []string{"Authorization: Bearer " + token} }

func TestAlgorithms(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{})
	for _, a := range algorithms {
		t.Run(a.name, func(t *testing.T) {
			tok := mint(t, a.name, nil, map[string]any{"iss": "iss-" + a.name})
			for range 2 { // the second use finds the key ready
				x := plugintest.Request("GET", "/", auth(tok)...)
				if e := plugintest.Access(t, x, i); e != nil {
					t.Fatalf("refused: %+v", e)
				}
				if x.Consumer == nil || x.Consumer.ID != b.bob || x.Credential.Identifier != "iss-"+a.name {
					t.Fatalf("consumer %v, credential %v", x.Consumer, x.Credential)
				}
			}
			// Every changed byte of the signature counts.
			last := strings.LastIndexByte(tok, '.') + 1
			sig, _ := base64.RawURLEncoding.DecodeString(tok[last:])
			for _, at := range []int{0, len(sig) / 2, len(sig) - 1} {
				bad := append([]byte(nil), sig...)
				bad[at] ^= 1
				e := plugintest.Access(t, plugintest.Request("GET", "/", auth(tok[:last]+enc(string(bad)))...), i)
				if diff := cmp.Diff(refused("Invalid signature"), answerOf(e)); diff != "" {
					t.Error(diff)
				}
			}
			for _, bad := range []string{"", string(sig[:len(sig)-1]), string(sig) + "\x00"} {
				e := plugintest.Access(t, plugintest.Request("GET", "/", auth(tok[:last]+enc(bad))...), i)
				if diff := cmp.Diff(refused("Invalid signature"), answerOf(e)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	b := newBench(t)
	now := time.Now().Unix()
	valid := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256", "exp": now + 600, "nbf": now - 60})
	with := func(claims map[string]any) string {
		if _, ok := claims["iss"]; !ok {
			claims["iss"] = "iss-HS256"
		}
		return mint(t, "HS256", nil, claims)
	}
	b.credential("nokey", "ES256", hsSecret, "")
	b.credential("badkey", "ES256", hsSecret, publicPEM(t, rsaKey))
	b.credential("b64", "HS256", base64.URLEncoding.EncodeToString([]byte(hsSecret)), "")
	b.credential("b64std", "HS256", base64.StdEncoding.EncodeToString([]byte("\xff\xfe\xfd>>>???")), "")
	b.credential("notb64", "HS256", "!!!", "")
	nokid := mint(t, "HS256", nil, map[string]any{"name": "x"})
	both := schema.Record{"claims_to_verify": []any{"exp", "nbf"}}
	ok := answer{Status: 200}

	for _, c := range []struct {
		name    string
		config  schema.Record
		method  string
		target  string
		headers []string
		want    answer
	}{
		{"missing token", nil, "GET", "/", nil, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"missing token with realm", schema.Record{"realm": "r"}, "GET", "/", nil, answer{401, map[string]string{"message": "Unauthorized"}, `Bearer realm="r"`}},
		{"bad token with realm", schema.Record{"realm": "r"}, "GET", "/", auth("abc"), answer{401, map[string]string{"message": "Bad token; invalid JSON"}, `Bearer realm="r" error="invalid_token"`}},
		{"valid", nil, "GET", "/", auth(valid), ok},
		{"lower-case bearer", nil, "GET", "/", []string{"Authorization: bearer " + valid}, ok},
		{"tab after bearer", nil, "GET", "/", []string{"Authorization: Bearer\t" + valid}, ok},
		{"upper-case bearer is no bearer", nil, "GET", "/", []string{"Authorization: BEARER " + valid}, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"bearer without token", nil, "GET", "/", []string{"Authorization: Bearer "}, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"query", nil, "GET", "/?jwt=" + valid, nil, ok},
		{"query with escapes", nil, "GET", "/?a=1&j%77t=" + strings.ReplaceAll(valid, ".", "%2E"), nil, ok},
		{"query behind 10,001 others", nil, "GET", "/?" + strings.Repeat("a=1&", 10001) + "jwt=" + valid, nil, ok},
		{"other query parameter", schema.Record{"uri_param_names": []any{"token"}}, "GET", "/?token=" + valid, nil, ok},
		{"cookie while cookie_names is empty", nil, "GET", "/", []string{"Cookie: jwt=" + valid}, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"cookie", schema.Record{"cookie_names": []any{"tok"}}, "GET", "/", []string{"Cookie: a=b; tok=" + valid}, ok},
		{"other header", schema.Record{"header_names": []any{"X-Token"}}, "GET", "/", []string{"x-token: Bearer " + valid}, ok},
		{"basic scheme", nil, "GET", "/", []string{"Authorization: Basic abc"}, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"bad signature", nil, "GET", "/", auth(mintWith(t, "HS256", []byte("other"), nil, map[string]any{"iss": "iss-HS256"})), refused("Invalid signature")},
		{"unknown iss", nil, "GET", "/", auth(with(map[string]any{"iss": "zz"})), refused("No credentials found for given 'iss'")},
		{"no iss", nil, "GET", "/", auth(nokid), refused("No mandatory 'iss' in claims")},
		{"empty iss", nil, "GET", "/", auth(with(map[string]any{"iss": ""})), refused("Invalid 'iss' in claims")},
		{"iss is a number", nil, "GET", "/", auth(with(map[string]any{"iss": 1})), refused("Invalid 'iss' in claims")},
		{"iss is null", nil, "GET", "/", auth(with(map[string]any{"iss": nil})), refused("Invalid 'iss' in claims")},
		{"iss is an object", nil, "GET", "/", auth(with(map[string]any{"iss": map[string]any{"$ne": 1}})), refused("Invalid 'iss' in claims")},
		{"garbage", nil, "GET", "/", auth("abc"), refused("Bad token; invalid JSON")},
		{"garbage in three parts", nil, "GET", "/", auth("a.b.c"), refused("Bad token; invalid JSON")},
		{"two parts", nil, "GET", "/", auth(valid[:strings.LastIndexByte(valid, '.')]), refused("Bad token; invalid JSON")},
		{"claims are an array", nil, "GET", "/", auth(raw(`{"alg":"HS256"}`, `[]`)), refused("Bad token; invalid claims")},
		{"claims are false", nil, "GET", "/", auth(raw(`{"alg":"HS256"}`, `false`)), refused("Bad token; invalid claims")},
		{"signature is not base64url", nil, "GET", "/", auth(valid + "*"), refused("Bad token; invalid signature")},
		{"alg mismatch", nil, "GET", "/", auth(mint(t, "RS256", nil, map[string]any{"iss": "iss-HS256"})), refused("Invalid algorithm")},
		{"alg HS512 for HS256", nil, "GET", "/", auth(mint(t, "HS512", nil, map[string]any{"iss": "iss-HS256"})), refused("Invalid algorithm")},
		{"alg none", nil, "GET", "/", auth(enc(`{"alg":"none"}`) + "." + enc(`{"iss":"iss-HS256"}`) + "."), refused("Bad token; invalid alg")},
		{"no key material", nil, "GET", "/", auth(mint(t, "ES256", nil, map[string]any{"iss": "nokey"})), refused("Invalid key/secret")},
		{"key of another kind", nil, "GET", "/", auth(mint(t, "ES256", nil, map[string]any{"iss": "badkey"})), refused("Invalid key/secret")},
		{"expired, not verified by default", nil, "GET", "/", auth(with(map[string]any{"exp": now - 100})), ok},
		{"two tokens differ", nil, "GET", "/?jwt=a.b.c", auth(valid), refused("Multiple tokens provided")},
		{"two tokens in the query", nil, "GET", "/?jwt=a&jwt=b", nil, refused("Multiple tokens provided")},
		{"same token twice", nil, "GET", "/?jwt=" + valid, auth(valid), ok},
		{"OPTIONS", nil, "OPTIONS", "/", nil, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
		{"OPTIONS, run_on_preflight false", schema.Record{"run_on_preflight": false}, "OPTIONS", "/", nil, ok},
		{"expired", both, "GET", "/", auth(with(map[string]any{"exp": now - 1, "nbf": now - 1})), claimFault("exp", "token expired")},
		{"expires now", both, "GET", "/", auth(with(map[string]any{"exp": now, "nbf": now})), claimFault("exp", "token expired")},
		{"early", both, "GET", "/", auth(with(map[string]any{"exp": now + 600, "nbf": now + 300})), claimFault("nbf", "token not valid yet")},
		{"expired and early", both, "GET", "/", auth(with(map[string]any{"exp": now - 1, "nbf": now + 300})), claimFault("exp", "token expired", "nbf", "token not valid yet")},
		{"exp and nbf missing", both, "GET", "/", auth(with(map[string]any{})), claimFault("exp", "must be a number", "nbf", "must be a number")},
		{"exp string", schema.Record{"claims_to_verify": []any{"exp"}}, "GET", "/", auth(with(map[string]any{"exp": "1"})), claimFault("exp", "must be a number")},
		{"exp negative", both, "GET", "/", auth(with(map[string]any{"exp": -1, "nbf": -1})), claimFault("exp", "token expired")},
		{"exp fraction", both, "GET", "/", auth(with(map[string]any{"exp": float64(now) + 100.5, "nbf": 0.5})), ok},
		{"exp 1e400", schema.Record{"claims_to_verify": []any{"exp"}}, "GET", "/", auth(raw(`{"alg":"HS256"}`, `{"iss":"iss-HS256","exp":1e400}`)), claimFault("exp", "must be a number")},
		{"over maximum_expiration", schema.Record{"claims_to_verify": []any{"exp"}, "maximum_expiration": 300.0}, "GET", "/", auth(with(map[string]any{"exp": now + 1000})), claimFault("exp", "exceeds maximum allowed expiration")},
		{"under maximum_expiration", schema.Record{"claims_to_verify": []any{"exp"}, "maximum_expiration": 300.0}, "GET", "/", auth(with(map[string]any{"exp": now + 200})), ok},
		{"maximum_expiration without exp", schema.Record{"maximum_expiration": 300.0}, "GET", "/", auth(with(map[string]any{})), claimFault("exp", "exceeds maximum allowed expiration")},
		{"key_claim_name kid in the header", schema.Record{"key_claim_name": "kid"}, "GET", "/", auth(mint(t, "HS256", map[string]any{"kid": "iss-HS256"}, map[string]any{})), ok},
		{"key_claim_name kid in the claims", schema.Record{"key_claim_name": "kid"}, "GET", "/", auth(with(map[string]any{"kid": "iss-HS256"})), ok},
		{"claims come before the header", nil, "GET", "/", auth(mint(t, "HS256", map[string]any{"iss": "iss-HS256"}, map[string]any{"iss": "zz"})), refused("No credentials found for given 'iss'")},
		{"kid missing", schema.Record{"key_claim_name": "kid"}, "GET", "/", auth(valid), refused("No mandatory 'kid' in claims")},
		{"kid unknown", schema.Record{"key_claim_name": "kid"}, "GET", "/", auth(mint(t, "HS256", map[string]any{"kid": "zz"}, map[string]any{})), refused("No credentials found for given 'kid'")},
		{"base64 secret", schema.Record{"secret_is_base64": true}, "GET", "/", auth(with(map[string]any{"iss": "b64"})), ok},
		{"base64 secret in the other alphabet", schema.Record{"secret_is_base64": true}, "GET", "/",
			auth(mintWith(t, "HS256", []byte("\xff\xfe\xfd>>>???"), nil, map[string]any{"iss": "b64std"})), ok},
		{"base64 expected of a plain secret", schema.Record{"secret_is_base64": true}, "GET", "/", auth(with(map[string]any{"iss": "notb64"})), refused("Invalid key/secret")},
		{"base64 does not concern public keys", schema.Record{"secret_is_base64": true}, "GET", "/", auth(mint(t, "RS256", nil, map[string]any{"iss": "iss-RS256"})), ok},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config == nil {
				c.config = schema.Record{}
			}
			e := plugintest.Access(t, plugintest.Request(c.method, c.target, c.headers...), b.Build(Plugin(), c.config))
			if diff := cmp.Diff(c.want, answerOf(e)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{})
	header := auth(mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256"}))
	x := plugintest.Request("GET", "/", append(header, "X-Anonymous-Consumer: true", "x-consumer-id: forged", "X-Consumer-ID: twice")...)
	if e := plugintest.Access(t, x, i); e != nil {
		t.Fatal(e)
	}
	want := map[string][]string{
		"X-Consumer-ID": {b.bob}, "X-Consumer-Username": {"bob"}, "X-Consumer-Custom-ID": {"c-bob"},
		"X-Credential-Identifier": {"iss-HS256"}, "X-Anonymous-Consumer": nil, "Authorization": {strings.TrimPrefix(header[0], "Authorization: ")},
	}
	for name, values := range want {
		var got []string
		for v := range x.Request.Header.Values(name) {
			got = append(got, v)
		}
		if diff := cmp.Diff(values, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestCredentialChanges(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{})
	try := func(secret string) answer {
		tok := mintWith(t, "HS256", []byte(secret), nil, map[string]any{"iss": "changing"})
		return answerOf(plugintest.Access(t, plugintest.Request("GET", "/", auth(tok)...), i))
	}
	rec := schema.Record{"consumer": plugintest.Ref(b.bob), "key": "changing", "algorithm": "HS256", "secret": "one"}
	id := b.Put("jwt_secrets", rec)
	if a := try("one"); a.Status != 200 {
		t.Fatal(a)
	}
	rec["secret"] = "two"
	b.Put("jwt_secrets", rec)
	if diff := cmp.Diff(refused("Invalid signature"), try("one")); diff != "" {
		t.Error(diff)
	}
	if a := try("two"); a.Status != 200 {
		t.Error(a)
	}
	b.Delete("jwt_secrets", id)
	if diff := cmp.Diff(refused("No credentials found for given 'iss'"), try("two")); diff != "" {
		t.Error(diff)
	}
}

func TestAnonymous(t *testing.T) {
	b := newBench(t)
	anon := b.Consumer("anon")
	for _, name := range []string{anon, "anon"} {
		i := b.Build(Plugin(), schema.Record{"anonymous": name})
		for _, headers := range [][]string{nil, auth("garbage"), auth(mintWith(t, "HS256", []byte("x"), nil, map[string]any{"iss": "iss-HS256"}))} {
			x := plugintest.Request("GET", "/", headers...)
			if e := plugintest.Access(t, x, i); e != nil {
				t.Fatal(e)
			}
			h := &x.Request.Header
			if x.Consumer.ID != anon || x.Credential != nil || h.Get("X-Anonymous-Consumer") != "true" || h.Get("X-Consumer-Username") != "anon" || h.Has("X-Credential-Identifier") {
				t.Errorf("%v: %v", headers, h)
			}
		}
	}
	e := plugintest.Access(t, plugintest.Request("GET", "/"), b.Build(Plugin(), schema.Record{"anonymous": "nobody"}))
	want := answer{Status: 500, Body: "anonymous consumer nobody is configured but doesn't exist"}
	if diff := cmp.Diff(want, answerOf(e)); diff != "" || !e.Templated {
		t.Error(diff)
	}
}

func TestHints(t *testing.T) {
	b := newBench(t)
	b.credential("https://issuer.test/", "HS256", hsSecret, "")
	b.credential("the-kid", "HS256", hsSecret, "")
	b.credential("nokey", "ES256", hsSecret, "")
	for _, c := range []struct {
		name, token, want string
	}{
		{"trailing slash", mint(t, "HS256", nil, map[string]any{"iss": "https://issuer.test"}), "trailing slash"},
		{"kid without iss", mint(t, "HS256", map[string]any{"kid": "the-kid"}, map[string]any{}), "key_claim_name"},
		{"kid is a key", mint(t, "HS256", map[string]any{"kid": "the-kid"}, map[string]any{"iss": "zz"}), "key_claim_name"},
		{"no usable key", mint(t, "ES256", nil, map[string]any{"iss": "nokey"}), "rsa_public_key is empty"},
		{"nothing to say", mint(t, "HS256", nil, map[string]any{"iss": "zz"}), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := b.Build(Plugin(), schema.Record{})
			before := len(b.Logs.String())
			for range 3 {
				e := plugintest.Access(t, plugintest.Request("GET", "/", auth(c.token)...), i)
				for _, v := range e.Body.(map[string]string) {
					if strings.Contains(v, "slash") || strings.Contains(v, "key_claim_name") {
						t.Errorf("client is told %q", v)
					}
				}
			}
			lines := strings.Split(strings.TrimSpace(b.Logs.String()[before:]), "\n")
			if len(lines) != 1 || !strings.Contains(lines[0], c.want) || (c.want == "") != (lines[0] == "") {
				t.Errorf("logged %q, want one line with %q", lines, c.want)
			}
			if strings.Contains(b.Logs.String(), c.token) || strings.Contains(b.Logs.String(), hsSecret) {
				t.Error("a secret was logged")
			}
		})
	}
}

func TestConfigChecks(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		want   string
	}{
		{"maximum_expiration needs exp", schema.Record{"maximum_expiration": 300.0, "claims_to_verify": []any{"nbf"}},
			"2 schema violations (failed conditional validation given value of field 'config.maximum_expiration'; config.claims_to_verify: expected to contain: exp)"},
		{"maximum_expiration over a year", schema.Record{"maximum_expiration": 31536001.0, "claims_to_verify": []any{"exp"}},
			"schema violation (config.maximum_expiration: value should be between 0 and 31536000)"},
		{"unknown field", schema.Record{"secret": "x"}, "schema violation (config.secret: unknown field)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs := plugintest.Validate(Plugin(), c.config)
			if diff := cmp.Diff(c.want, errs.Message()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

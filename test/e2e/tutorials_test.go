package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// expect fails the test unless the answer has the status and, for want "k=v", the JSON members.
func expect(t *testing.T, what string, a harness.Answer, status int, members ...string) harness.Answer {
	t.Helper()
	if a.Status != status {
		t.Fatalf("%s: status %d, want %d: %s", what, a.Status, status, a.Body)
	}
	m := a.JSON()
	for i := 0; i+1 < len(members); i += 2 {
		got, _ := m[members[i]].(string)
		if got != members[i+1] {
			t.Fatalf("%s: %s = %q, want %q: %s", what, members[i], got, members[i+1], a.Body)
		}
	}
	return a
}

// TestJWTTutorial is the tutorial "Kong JWT Authentication": service, route, jwt plugin, consumer, credential, tokens by
// header and query, then the "user API" example, with the corrections that Kong itself needs (the second plugin on the
// same service is a PATCH; kid is looked up only with key_claim_name=kid).
func TestJWTTutorial(t *testing.T) {
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		up := harness.StartEcho(t)
		svc := expect(t, "service", pick().Form("POST", "/services", "name", "my-api", "url", up.URL), 201, "name", "my-api", "protocol", "http")
		if svc.JSON()["retries"] != 5.0 || svc.JSON()["path"] != nil {
			t.Fatalf("defaults: %s", svc.Body)
		}
		expect(t, "route", pick().Form("POST", "/services/my-api/routes", "paths[]", "/api"), 201)
		jwt := expect(t, "plugin", pick().Form("POST", "/services/my-api/plugins", "name", "jwt"), 201, "name", "jwt")
		expect(t, "consumer", pick().Form("POST", "/consumers", "username", "john"), 201, "username", "john")
		cred := expect(t, "credential", pick().Form("POST", "/consumers/john/jwt", "key", "user-issuer", "secret", "secret-key"), 201,
			"key", "user-issuer", "secret", "secret-key", "algorithm", "HS256")

		byIss := mint(t, "secret-key", nil, claims{"iss": "user-issuer", "sub": "1234567890", "name": "John Doe"})
		byKid := mint(t, "secret-key", claims{"kid": "user-issuer"}, claims{"sub": "1234567890", "name": "John Doe", "iat": time.Now().Unix()})

		get := func(path string, h ...string) harness.Answer {
			return pick().Get(path, append(h, "X-Min-Config-Index", cred.Index())...)
		}
		a := expect(t, "no token", get("/api"), 401, "message", "Unauthorized")
		if got := a.Header.Get("WWW-Authenticate"); got != "Bearer" {
			t.Errorf("WWW-Authenticate %q", got)
		}
		expect(t, "kid with the default configuration", get("/api", "Authorization", "Bearer "+byKid), 401, "message", "No mandatory 'iss' in claims")
		a = expect(t, "iss", get("/api", "Authorization", "Bearer "+byIss), 200, "path", "/")
		if a.Saw("X-Consumer-Username") != "john" || a.Saw("X-Credential-Identifier") != "user-issuer" || a.Saw("X-Consumer-Id") != cred.JSON()["consumer"].(map[string]any)["id"] {
			t.Errorf("identity headers: %s", a.Body)
		}
		if a.Saw("Authorization") != "Bearer "+byIss {
			t.Errorf("the token must be forwarded: %s", a.Body)
		}
		expect(t, "iss in the query", get("/api?jwt="+byIss), 200)

		// "Advanced configuration" posts the plugin a second time: Kong answers 409; here with a hint at the existing one.
		id := jwt.JSON()["id"].(string)
		dup := expect(t, "second plugin", pick().Form("POST", "/services/my-api/plugins", "name", "jwt", "config.claims_to_verify", "exp",
			"config.key_claim_name", "kid", "config.secret_is_base64", "false"), 409)
		if hint, _ := dup.JSON()["hint"].(string); !strings.Contains(hint, id) {
			t.Errorf("409 without a hint at plugin %s: %s", id, dup.Body)
		}
		patched := expect(t, "patch", pick().Form("PATCH", "/plugins/"+id, "config.claims_to_verify", "exp", "config.key_claim_name", "kid",
			"config.secret_is_base64", "false"), 200)
		cfg := patched.JSON()["config"].(map[string]any)
		if cfg["key_claim_name"] != "kid" || cfg["secret_is_base64"] != false {
			t.Fatalf("patched config: %s", patched.Body)
		}
		get = func(path string, h ...string) harness.Answer {
			return pick().Get(path, append(h, "X-Min-Config-Index", patched.Index())...)
		}

		expect(t, "exp missing", get("/api", "Authorization", "Bearer "+byKid), 401, "exp", "must be a number")
		exp := func(d time.Duration) claims { return claims{"sub": "1", "exp": time.Now().Add(d).Unix()} }
		kid := claims{"kid": "user-issuer"}
		expect(t, "kid", get("/api", "Authorization", "Bearer "+mint(t, "secret-key", kid, exp(time.Hour))), 200)
		expect(t, "expired", get("/api", "Authorization", "Bearer "+mint(t, "secret-key", kid, exp(-time.Hour))), 401, "exp", "token expired")
		expect(t, "wrong secret", get("/api", "Authorization", "Bearer "+mint(t, "other", kid, exp(time.Hour))), 401, "message", "Invalid signature")
		expect(t, "unknown kid", get("/api", "Authorization", "Bearer "+mint(t, "secret-key", claims{"kid": "nobody"}, exp(time.Hour))), 401,
			"message", "No credentials found for given 'kid'")

		// "Protecting a user API".
		expect(t, "user-api", pick().Form("POST", "/services", "name", "user-api", "url", up.URL), 201)
		expect(t, "users route", pick().Form("POST", "/services/user-api/routes", "paths[]", "/users"), 201)
		expect(t, "jwt on user-api", pick().Form("POST", "/services/user-api/plugins", "name", "jwt", "config.key_claim_name", "kid"), 201)
		expect(t, "admin", pick().Form("POST", "/consumers", "username", "admin"), 201)
		last := expect(t, "admin-api", pick().Form("POST", "/consumers/admin/jwt", "key", "admin-api", "secret", "super-secure-secret"), 201)
		tok := mint(t, "super-secure-secret", claims{"kid": "admin-api"}, claims{"sub": "admin", "role": "administrator",
			"permissions": []string{"users:read", "users:write"}, "exp": time.Now().Add(time.Hour).Unix()})
		a = expect(t, "users", pick().Get("/users", "Authorization", "Bearer "+tok, "X-Min-Config-Index", last.Index()), 200)
		if a.Saw("X-Consumer-Username") != "admin" {
			t.Errorf("identity headers: %s", a.Body)
		}
	})
}

// TestConsumerHeaders is the question "Authentication with Kong": a user service stores the consumer and mints tokens;
// the upstream learns who called by X-Consumer-* and the token itself, whatever the client claims to be.
func TestConsumerHeaders(t *testing.T) {
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		up := harness.StartEcho(t)
		expect(t, "service", pick().Form("POST", "/services", "name", "users", "url", up.URL), 201)
		expect(t, "route", pick().JSON("POST", "/routes", `{"paths":["/me"],"service":{"name":"users"}}`), 201)
		expect(t, "jwt", pick().JSON("POST", "/plugins", `{"name":"jwt","service":{"name":"users"}}`), 201)
		c := expect(t, "sign-up", pick().Form("POST", "/consumers", "username", "my-test-user", "custom_id", "245"), 201)
		cred := expect(t, "generated credential", pick().JSON("POST", "/consumers/my-test-user/jwt", ""), 201)
		key, secret := cred.JSON()["key"].(string), cred.JSON()["secret"].(string)
		if len(key) != 32 || len(secret) != 32 {
			t.Fatalf("generated key and secret: %s", cred.Body)
		}
		tok := mint(t, secret, nil, claims{"iss": key, "user_id": 245, "email": "u@example.com"})
		a := expect(t, "me", pick().Get("/me", "Authorization", "Bearer "+tok, "X-Consumer-Username", "root", "X_Consumer_Id", "1",
			"X-Consumer-Custom-ID", "0", "X-Min-Config-Index", cred.Index()), 200)
		for h, want := range map[string]string{"X-Consumer-Id": c.JSON()["id"].(string), "X-Consumer-Custom-Id": "245", "X-Consumer-Username": "my-test-user",
			"Authorization": "Bearer " + tok, "X_consumer_id": ""} {
			if got := a.Saw(h); got != want {
				t.Errorf("%s = %q, want %q", h, got, want)
			}
		}
		got := expect(t, "list", pick().JSON("GET", "/consumers?custom_id=245", "", "X-Min-Config-Index", cred.Index()), 200)
		if data, _ := got.JSON()["data"].([]any); len(data) != 1 {
			t.Errorf("custom_id filter: %s", got.Body)
		}
		del := pick().JSON("DELETE", "/consumers/my-test-user/jwt/"+key, "")
		expect(t, "revoke", del, 204)
		expect(t, "revoked", pick().Get("/me", "Authorization", "Bearer "+tok, "X-Min-Config-Index", del.Index()), 401,
			"message", "No credentials found for given 'iss'")
	})
}

// TestMachineToMachine is the machine-to-machine part of "integrating kong api gateway with Auth0": an issuer's public
// key becomes a jwt credential whose key is the issuer URL with its trailing slash; its tokens then pass.
func TestMachineToMachine(t *testing.T) {
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		up := harness.StartEcho(t)
		const issuer = "https://example.auth0.com/"
		expect(t, "service", pick().Form("POST", "/services", "name", "m2m", "url", up.URL+"/anything"), 201)
		expect(t, "route", pick().Form("POST", "/services/m2m/routes", "paths[]", "/m2m"), 201)
		jwt := expect(t, "jwt", pick().Form("POST", "/services/m2m/plugins", "name", "jwt", "config.claims_to_verify", "exp"), 201)
		expect(t, "401", pick().Get("/m2m", "X-Min-Config-Index", jwt.Index()), 401, "message", "Unauthorized")

		type alg struct {
			name string
			key  any
			pem  string
		}
		r, e, d := rsaKey(t), ecKey(t), edKey(t)
		for i, alg := range []alg{{"RS256", r, publicPEM(t, r)}, {"ES256", e, publicPEM(t, e)}, {"EdDSA", d, publicPEM(t, d)}} {
			name := "auth0-" + strings.ToLower(alg.name)
			iss := issuer
			if i > 0 {
				iss = "https://issuer-" + strconv.Itoa(i) + ".example/"
			}
			expect(t, "consumer", pick().Form("POST", "/consumers", "username", name, "custom_id", "cid-"+name), 201)
			cred := expect(t, alg.name, pick().Multipart("POST", "/consumers/"+name+"/jwt", "key", iss, "algorithm", alg.name, "rsa_public_key@", alg.pem), 201,
				"key", iss, "algorithm", alg.name, "rsa_public_key", alg.pem)
			get := func(tok string) harness.Answer {
				return pick().Get("/m2m/x", "Authorization", "Bearer "+tok, "X-Min-Config-Index", cred.Index())
			}
			good := claims{"iss": iss, "sub": "abc@clients", "aud": "https://api", "exp": time.Now().Add(time.Hour).Unix(), "https://foo.com/claim": "bar"}
			a := expect(t, alg.name+" good", get(mint(t, alg.key, nil, good)), 200, "path", "/anything/x")
			if a.Saw("X-Consumer-Username") != name || a.Saw("X-Consumer-Custom-Id") != "cid-"+name || a.Saw("X-Credential-Identifier") != iss {
				t.Errorf("identity headers: %s", a.Body)
			}
			noSlash := claims{"iss": strings.TrimSuffix(iss, "/"), "exp": good["exp"]}
			expect(t, alg.name+" issuer without slash", get(mint(t, alg.key, nil, noSlash)), 401, "message", "No credentials found for given 'iss'")
			expect(t, alg.name+" signed as HS256 with the public key", get(mint(t, alg.pem, nil, good)), 401, "message", "Invalid algorithm")
		}
		expect(t, "other RSA key", pick().Get("/m2m", "Authorization", "Bearer "+mint(t, rsaKey(t), nil, claims{"iss": issuer, "exp": time.Now().Add(time.Hour).Unix()})),
			401, "message", "Invalid signature")
	})
}

package e2e

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestAPITutorial is the tutorial "Use Kong and Auth0 to Authenticate API Clients" of 2016, from POST /apis/ to the PATCH of the plugin. Corrected
// is what Kong 0.9 itself did not take: consumers are addressed by their exact username, the plugin under its own API, and the
// first token is signed with the secret as it is, since secret_is_base64 is set only at the end.
func TestAPITutorial(t *testing.T) {
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		up := harness.StartEcho(t)
		api := expect(t, "api", pick().Form("POST", "/apis/", "name", "node-api", "upstream_url", up.URL, "request_host", "localhost"), 201,
			"name", "node-api", "request_host", "localhost", "upstream_url", up.URL)
		index := api.Index()
		get := func(n *harness.Node, path string, h ...string) harness.Answer {
			if !slices.Contains(h, "User-Agent") {
				h = append(h, "User-Agent", "curl/7.50.1") // Go's own name is on the list of bots
			}
			return n.Get(path, append(h, "Host", "localhost:8000", "X-Min-Config-Index", index)...)
		}
		for _, path := range []string{"/", "/api/leads", "/api/employees", "/api/user?q=1"} {
			a := expect(t, path, get(pick(), path), 200)
			if want, _, _ := strings.Cut(path, "?"); a.JSON()["path"] != want {
				t.Errorf("%s arrived as %v", path, a.JSON()["path"])
			}
		}

		limit := expect(t, "rate-limiting", pick().Form("POST", "/apis/node-api/plugins", "name", "rate-limiting", "config.hour", "5"), 201, "name", "rate-limiting")
		index = limit.Index()
		one := pick() // the policy local counts on each node
		hour, admitted := time.Now().Truncate(time.Hour), 0
		a := get(one, "/")
		for ; a.Status == 200; a = get(one, "/") {
			if admitted++; admitted > 10 {
				break
			}
		}
		expect(t, "above the limit", a, 429, "message", "API rate limit exceeded")
		if admitted != 5 && hour.Equal(time.Now().Truncate(time.Hour)) {
			t.Errorf("%d requests were admitted, want 5", admitted)
		}
		if a.Header.Get("X-RateLimit-Limit-Hour") != "5" || a.Header.Get("X-RateLimit-Remaining-Hour") != "0" {
			t.Errorf("rate limit headers: %v", a.Header)
		}
		index = expect(t, "a higher limit", pick().Form("PATCH", "/apis/node-api/plugins/"+limit.JSON()["id"].(string), "name", "rate-limiting", "config.hour", "5000"), 200).Index()

		index = expect(t, "bot-detection", pick().Form("POST", "/apis/node-api/plugins", "name", "bot-detection"), 201).Index()
		expect(t, "a crawler", get(pick(), "/", "User-Agent", "Googlebot/2.1 (+http://www.google.com/bot.html)"), 403)
		expect(t, "a browser", get(pick(), "/", "User-Agent", "Mozilla/5.0"), 200)

		jwt := expect(t, "jwt", pick().Form("POST", "/apis/node-api/plugins", "name", "jwt"), 201, "name", "jwt")
		index = jwt.Index()
		expect(t, "no token", get(pick(), "/"), 401, "message", "Unauthorized")

		expect(t, "consumer", pick().Form("POST", "/consumers", "username", "Ado", "custom_id", "ado"), 201)
		wrong := expect(t, "the tutorial's name", pick().Form("POST", "/consumers/ado/jwt", "key", "adokey", "secret", "supersecret"), 404)
		if hint, _ := wrong.JSON()["hint"].(string); !strings.Contains(hint, "Ado") {
			t.Errorf("no hint at the consumer meant: %s", wrong.Body)
		}
		index = expect(t, "credential", pick().Form("POST", "/consumers/Ado/jwt", "key", "adokey", "secret", "supersecret"), 201).Index()
		a = expect(t, "token in the query", get(pick(), "/?jwt="+mint(t, "supersecret", nil, claims{"iss": "adokey", "name": "Ado"})), 200)
		if a.Saw("X-Consumer-Username") != "Ado" || a.Saw("X-Consumer-Custom-Id") != "ado" || !strings.HasPrefix(a.JSON()["query"].(string), "jwt=") {
			t.Errorf("the upstream got %s", a.Body)
		}

		const issuer, secret = "https://ado.auth0.com/", "aFGFzo9dRvT_jkw5ghisfnP_48NaBrovcJsq0M550eJnzujeb8Jr2tREoNePO1yQ"
		expect(t, "consumer Auth0", pick().Form("POST", "/consumers", "username", "Auth0", "custom_id", "auth0"), 201)
		expect(t, "credential of Auth0", pick().Form("POST", "/consumers/Auth0/jwt", "key", issuer, "secret", secret), 201)
		id := jwt.JSON()["id"].(string)
		lost := expect(t, "plugin under another name", pick().Form("PATCH", "/apis/api/plugins/"+id, "name", "jwt", "config.secret_is_base64", "true"), 404)
		if hint, _ := lost.JSON()["hint"].(string); !strings.Contains(hint, "node-api") {
			t.Errorf("no hint at the API meant: %s", lost.Body)
		}
		patched := expect(t, "base64", pick().Form("PATCH", "/apis/node-api/plugins/"+id, "name", "jwt", "config.secret_is_base64", "true"), 200)
		if patched.JSON()["config"].(map[string]any)["secret_is_base64"] != true {
			t.Fatalf("patched: %s", patched.Body)
		}
		index = patched.Index()
		raw, err := base64.RawURLEncoding.DecodeString(secret)
		if err != nil {
			t.Fatal(err)
		}
		token := mint(t, string(raw), nil, claims{"iss": issuer, "sub": "auth0|1"})
		a = expect(t, "Auth0's token", get(pick(), "/api/user?jwt="+token), 200, "path", "/api/user")
		if a.Saw("X-Consumer-Username") != "Auth0" {
			t.Errorf("the upstream got %s", a.Body)
		}
		expect(t, "the secret as text", get(pick(), "/api/user?jwt="+mint(t, secret, nil, claims{"iss": issuer})), 401, "message", "Invalid signature")
	})
}

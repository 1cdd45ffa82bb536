package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"concord/test/harness"
)

// browser does what a web browser does with fetch(url, {credentials: "include"}) of a page (Fetch standard, sections 3.2 and 4.8), and asks for permission
// before every request, also where a browser would not have to.
type browser struct {
	t      *testing.T
	api    string
	origin string
	header http.Header // of every request of the page
}

// list are the words of a header in lower case.
func list(h http.Header, name string) []string {
	words := strings.Split(strings.ToLower(strings.Join(h.Values(name), ",")), ",")
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	return words
}

// shares checks that the page may read an answer that was made with credentials: the wildcard would not do.
func (b *browser) shares(h http.Header) error {
	if v := h.Values("Access-Control-Allow-Origin"); len(v) != 1 || v[0] != b.origin {
		return fmt.Errorf("Access-Control-Allow-Origin is %q, the page is of %s", v, b.origin)
	}
	if v := h.Values("Access-Control-Allow-Credentials"); len(v) != 1 || v[0] != "true" {
		return fmt.Errorf("Access-Control-Allow-Credentials is %q", v)
	}
	if !slices.Contains(list(h, "Vary"), "origin") {
		return fmt.Errorf("Vary is %q: a cache would give the answer to another page", h.Values("Vary"))
	}
	return nil
}

// preflight asks for permission, without credentials.
func (b *browser) preflight(method, path string, headers []string) error {
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodOptions, b.api+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Origin", b.origin)
	req.Header.Set("Access-Control-Request-Method", method)
	req.Header.Set("Access-Control-Request-Headers", strings.Join(headers, ","))
	req.Header.Set("Sec-Fetch-Mode", "cors")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("preflight: status %d", res.StatusCode)
	}
	if err := b.shares(res.Header); err != nil {
		return fmt.Errorf("preflight: %w", err)
	}
	if simple := method == "GET" || method == "HEAD" || method == "POST"; !simple && !slices.Contains(list(res.Header, "Access-Control-Allow-Methods"), strings.ToLower(method)) {
		return fmt.Errorf("preflight: %s is not allowed, only %q", method, res.Header.Values("Access-Control-Allow-Methods"))
	}
	for _, h := range headers {
		if !slices.Contains(list(res.Header, "Access-Control-Allow-Headers"), h) {
			return fmt.Errorf("preflight: header %s is not allowed, only %q", h, res.Header.Values("Access-Control-Allow-Headers"))
		}
	}
	return nil
}

// fetch sends a request with the page's credentials and gives what the page may read.
func (b *browser) fetch(method, path, body string) (harness.Answer, error) {
	var headers []string
	for name := range b.header {
		headers = append(headers, strings.ToLower(name))
	}
	if body != "" {
		headers = append(headers, "content-type")
	}
	slices.Sort(headers)
	if err := b.preflight(method, path, headers); err != nil {
		return harness.Answer{}, err
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.api+path, strings.NewReader(body))
	if err != nil {
		return harness.Answer{}, err
	}
	for name, v := range b.header {
		req.Header[name] = v
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json;charset=UTF-8")
	}
	req.Header.Set("Origin", b.origin)
	req.Header.Set("Cookie", "session=of-the-page")
	req.Header.Set("Sec-Fetch-Mode", "cors")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return harness.Answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return harness.Answer{}, err
	}
	if err := b.shares(res.Header); err != nil {
		return harness.Answer{}, err
	}
	seen := http.Header{}
	for name, v := range res.Header {
		if safe := []string{"Cache-Control", "Content-Language", "Content-Length", "Content-Type", "Expires", "Last-Modified", "Pragma"}; slices.Contains(safe, name) ||
			slices.Contains(list(res.Header, "Access-Control-Expose-Headers"), strings.ToLower(name)) {
			seen[name] = v
		}
	}
	return harness.Answer{Status: res.StatusCode, Header: seen, Body: string(text)}, nil
}

// consoleCalls are the requests of Kong Manager: its overview, its lists and forms, and what saving and deleting an entity sends.
func consoleCalls() (calls [][4]string) {
	add := func(status, method, path, body string) { calls = append(calls, [4]string{status, method, path, body}) }
	add("200", "GET", "/", "")
	add("200", "GET", "/status", "")
	add("200", "GET", "/endpoints", "")
	add("200", "GET", "/plugins/enabled", "")
	for _, kind := range []string{"services", "routes", "consumers", "plugins", "upstreams", "certificates", "ca_certificates", "snis", "keys", "key-sets", "vaults"} {
		add("200", "GET", "/"+kind+"?sort_desc=1&size=30", "")
	}
	for _, kind := range []string{"services", "routes", "consumers", "plugins", "upstreams", "targets", "certificates", "vaults", "plugins/jwt", "plugins/rate-limiting", "plugins/cors"} {
		add("200", "GET", "/schemas/"+kind, "")
	}
	add("200", "POST", "/schemas/services/validate", `{"name":"c","host":"h"}`)
	add("201", "POST", "/services", `{"name":"c","host":"h","tags":["t"]}`)
	add("409", "POST", "/services", `{"name":"c","host":"h"}`)
	add("400", "POST", "/services", `{"name":"c d","host":"h"}`)
	add("200", "GET", "/services/c", "")
	add("200", "PATCH", "/services/c", `{"port":81}`)
	add("200", "PUT", "/services/c", `{"host":"i"}`)
	add("201", "POST", "/services/c/routes", `{"name":"cr","paths":["/c"]}`)
	add("200", "GET", "/services/c/routes?sort_desc=1&size=30", "")
	add("201", "POST", "/routes/cr/plugins", `{"name":"cors"}`)
	add("201", "POST", "/consumers", `{"username":"cu"}`)
	add("201", "POST", "/consumers/cu/key-auth", `{"key":"ck"}`)
	add("200", "GET", "/consumers/cu/key-auth?sort_desc=1&size=30", "")
	add("200", "GET", "/tags/t?sort_desc=1&size=30", "")
	add("204", "DELETE", "/consumers/cu", "")
	add("204", "DELETE", "/routes/cr", "")
	add("204", "DELETE", "/services/c", "")
	add("404", "GET", "/services/c", "")
	return calls
}

// TestConsole: a web console of another origin works with the Admin API through a browser, with credentials, and pages of no known origin do not.
func TestConsole(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "n", "CONCORD_ADMIN_REQUIRE_TOKEN=on", "CONCORD_ADMIN_GUI_URL=https://Console.example:443/manager/, http://10.1.2.3:8002")
	n.Start()
	token, err := n.Gwctl("token", "create", "--name", "console", "--role", "admin")
	if err != nil {
		t.Fatal(err)
	}
	for _, origin := range []string{"http://localhost:8002", "http://127.0.0.1:8002", "https://console.example", "http://10.1.2.3:8002"} {
		for _, name := range []string{"Kong-Admin-Token", "Authorization"} {
			t.Run(origin+" "+name, func(t *testing.T) {
				b := &browser{t: t, api: "http://" + n.Admin, origin: origin, header: http.Header{"Accept": {"application/json"}, name: {token}}}
				if name == "Authorization" {
					b.header.Set(name, "Bearer "+token)
				}
				for _, c := range consoleCalls() {
					a, err := b.fetch(c[1], c[2], c[3])
					if err != nil || fmt.Sprint(a.Status) != c[0] {
						t.Errorf("%s %s: %v, status %d, want %s: %s", c[1], c[2], err, a.Status, c[0], a.Body)
					} else if a.Header.Get("X-Config-Index") == "" {
						t.Errorf("%s %s: the page does not see X-Config-Index", c[1], c[2])
					}
				}
				// A page must be able to read why it was refused.
				b.header.Del(name)
				if a, err := b.fetch("GET", "/services?sort_desc=1&size=30", ""); err != nil || a.Status != 401 || !strings.Contains(a.Body, "no admin token") {
					t.Errorf("without a token: %v %d %s", err, a.Status, a.Body)
				}
			})
		}
	}
	for _, origin := range []string{"http://evil.example", "https://console.example:8443", "http://console.example", "https://console.example.evil.example", "http://10.1.2.3", "null"} {
		t.Run("refused "+origin, func(t *testing.T) {
			b := &browser{t: t, api: "http://" + n.Admin, origin: origin, header: http.Header{"Kong-Admin-Token": {token}}}
			if err := b.preflight("GET", "/services", []string{"kong-admin-token"}); err == nil {
				t.Error("the preflight was allowed")
			}
			a, err := harness.Do("POST", "http://"+n.Admin+"/services", "application/json", `{"name":"bad","host":"h"}`, "Origin", origin, "Kong-Admin-Token", token)
			if err != nil || a.Status != 403 || a.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%v %d %v", err, a.Status, a.Header)
			}
		})
	}
	status := n.JSON("GET", "/status", "", "Kong-Admin-Token", token)
	if hash, _ := status.JSON()["configuration_hash"].(string); len(hash) != 32 {
		t.Errorf("configuration_hash %q: %s", hash, status.Body)
	}
}

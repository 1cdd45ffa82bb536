package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// pathAttacks are the rows P1 to P8: /admin needs a key, /exact/admin exactly too, / is open, /api is stripped.
func pathAttacks() []attack {
	var list []attack
	for _, p := range []string{
		"/admin", "/%61dmin", "//admin", "/./admin", "/x/../admin", "/admin/.", "/%2e%2e/admin", "/admin?..", "/x/%2e%2e/admin", "/admin//", "/admin;x", "/admin%2f", "/admin%2Fx",
		"/admin%5c", "/admin%5Cx", "/admin%23", "/admin%23x", "/admin%3bx", "/admin%3F", "/admin/a%2fb", "/exact/admin", "/exact/./admin", "/exact//admin", "/x/../exact/admin", "/exact/%61dmin",
	} {
		list = append(list, attack{row: "P1", name: p, send: get(p), codes: "401"})
	}
	for _, p := range []string{
		"/admin%00", "/x%00/../admin", "/admin#x", `/x\..\admin`, `/\admin`, "/x%2f..%2fadmin", "/x/..%2fadmin", "/..%2fadmin", "/%2fadmin", "/%5cadmin", "/%2e%2e%2fadmin", "/x%5c..%5cadmin", "/x/..;/admin",
		"/x/..;a=b/admin", "/x/..%3b/admin", "/;/admin", "/;x/admin", "/x/.;/../admin%2f..", "/%2f%2fadmin", "/exact%2fadmin", "/exact/admin%23x", "/exact/admin;x", "/exact/admin%3bx", "/exact/admin%3fx", "/exact%5cadmin",
	} {
		list = append(list, attack{row: "P1", name: p, send: get(p)})
	}
	// Other spellings are other paths: the upstream sees what was routed. Escaped separators are data where that changes nothing.
	for sent, sees := range map[string]string{
		"/ADMIN": "/ADMIN", "/%2561dmin": "/%2561dmin", "/projects/group%2fname/issues": "/projects/group%2Fname/issues", "/@scope%2fname": "/@scope%2Fname", "/tags/c%23": "/tags/c%23",
		"/to/https%3A%2F%2Fa.example%2Fx": "/to/https%3A%2F%2Fa.example%2Fx", "/x;v=1/y": "/x;v=1/y", "/a%2f%2fb": "/a%2F%2Fb", "/..a%2fb": "/..a%2Fb",
	} {
		list = append(list, attack{row: "P1", name: sent, send: get(sent), codes: "200", sees: []string{"GET " + sees}})
	}
	for _, p := range []string{"/x/%252e%252e/admin", "/%252e%252e%252fadmin", "/x%252f..%252fadmin", "/admin-%252f"} {
		code, sees := "200", []string{"GET " + p}
		if strings.HasPrefix(p, "/admin") {
			code, sees = "401", nil
		}
		list = append(list, attack{row: "P2", name: p, send: get(p), codes: code, sees: sees})
	}
	for sent, sees := range map[string]string{
		"/api../admin": "/base/admin", "/apiadmin": "/base/admin", "/api/x/../../api/y": "/base/y", "/api/..%2e/admin": "/base/.../admin", "/api./x": "/base/x",
		"/api%2fadmin": "/base/%2Fadmin", "/api/a%2fb": "/base/a%2Fb", "/api%5cadmin": "/base/%5Cadmin",
	} {
		list = append(list, attack{row: "P3", name: sent, send: get(sent), codes: "200", sees: []string{"GET " + sees}})
	}
	for _, p := range []string{"/api%2f..%2fadmin", "/api/%2e%2e%2fadmin", "/api..%2fadmin", "/api/..%5cadmin", "/api%2f..", "/api..;/admin", "/api;/..;/admin"} {
		list = append(list, attack{row: "P3", name: p, send: get(p)})
	}
	list = append(list, attack{row: "P3", name: "dots behind the prefix", send: get("/api/../admin"), codes: "401"})
	for _, p := range []string{"/%zz", "/%4", "/%", "/a\x00", "/a\x7f", "/a\nb", "/re/a%0"} {
		list = append(list, attack{row: "P4", name: fmt.Sprintf("%q", p), send: get(p)})
	}
	for sent, sees := range map[string]string{
		"/%c0%ae%c0%ae/admin": "/%C0%AE%C0%AE/admin", "/\xc0\xae\xc0\xae/admin": "/%C0%AE%C0%AE/admin", "/caf\xc3\xa9?q=\xc3\xbc": "/caf%C3%A9?q=%C3%BC", "/re/abc": "/re/abc", "/re/abc%0a": "/re/abc%0A", "/re/abc%0d%0aX-Evil:%201": "/re/abc%0D%0AX-Evil:%201", "/%e0%80%af..": "/%E0%80%AF..",
	} {
		list = append(list, attack{row: "P4", name: sent, send: get(sent), codes: "200", sees: []string{"GET " + sees}})
	}
	for _, h := range []string{"api.example.com", "API.Example.COM", "api.example.com.", "api.example.com:8000", "API.EXAMPLE.COM.:80"} {
		list = append(list, attack{row: "P5", name: h, send: "GET /h HTTP/1.1\r\nHost: " + h + "\r\n\r\n", codes: "200", sees: []string{"GET /host/h"}})
	}
	for _, h := range []string{"h149.example.com", "H0.example.com", "h77.EXAMPLE.com.:1"} {
		list = append(list, attack{row: "P5", name: h + " among 150", send: "GET /h HTTP/1.1\r\nHost: " + h + "\r\n\r\n", codes: "200", sees: []string{"GET /host"}})
	}
	list = append(list, attack{row: "P5", name: "a host that only begins alike", send: "GET /h HTTP/1.1\r\nHost: api.example.com.evil\r\n\r\n", codes: "200", sees: []string{"GET /h"}})
	list = append(list, attack{row: "P5", name: "not IDN", send: "GET /h HTTP/1.1\r\nHost: \xc3\xa4pi.example.com\r\n\r\n"})
	// The route /m takes GET only; what it does not take falls to the open route.
	for _, v := range []struct{ name, line, sees string }{
		{"GET", "GET /m/x", "GET /host/m/x"}, {"override", "POST /m/x", "POST /m/x"}, {"lower case", "get /m/x", "get /m/x"}, {"custom", "FROB /m/x", "FROB /m/x"},
	} {
		list = append(list, attack{row: "P7", name: v.name, send: v.line + " HTTP/1.1\r\n" + gw + "X-HTTP-Method-Override: GET\r\nX-HTTP-Method: GET\r\nX-Method-Override: GET\r\n\r\n", codes: "200", sees: []string{v.sees}})
	}
	many := strings.Repeat("a&", 10001)
	for _, v := range []struct {
		name, query, codes string
		second             bool
	}{
		{"the key", "apikey=k1", "200", false}, {"an escaped name", "%61pikey=k1", "200", false}, {"twice", "apikey=bad&apikey=k1", "401", false}, {"twice, the good one first", "apikey=k1&apikey=bad", "401", false},
		{"semicolon", "x;apikey=k1", "401", false}, {"semicolon behind", "apikey=k1;x", "401", false}, {"bad escape in the name", "%zzapikey=k1", "401", false}, {"bad escape in the value", "apikey=k1%zz", "401", false},
		{"10,001 parameters, default limits", many + "apikey=k1", "414", false}, {"10,001 parameters before", many + "apikey=k1", "200", true}, {"10,001 parameters behind", "apikey=k1&" + many, "200", true},
		{"10,001 parameters between two", "apikey=k1&" + many + "apikey=bad", "401", true},
	} {
		a := attack{row: "P8", name: v.name, send: get("/admin?" + v.query), codes: v.codes, second: v.second}
		if v.codes == "200" { // the upstream sees the very query the plugin has read
			a.sees = []string{"GET /closed?" + v.query}
			a.has = []string{"X-Consumer-Username: alice\r\n"}
		}
		list = append(list, a)
	}
	return list
}

var pathScenes = map[string]func(*testing.T, *target){
	"P7 a route for one method is not widened": func(t *testing.T, g *target) {
		last := g.JSON("POST", "/services/closed/routes", `{"hosts":["methods.example"],"methods":["GET"],"name":"methods"}`)
		if last.Status != 201 {
			t.Fatal(last.Body)
		}
		last = g.JSON("POST", "/routes/methods/plugins", `{"name":"request-termination","config":{"status_code":418}}`)
		g.Get("/", "X-Min-Config-Index", last.Index())
		g.up.take()
		for line, want := range map[string]string{"GET /": "[401]", "get /": "[200]", "POST /": "[200]", "Get /": "[200]"} {
			codes, _ := raw(t, g.Proxy, line+" HTTP/1.1\r\nHost: methods.example\r\nX-HTTP-Method-Override: GET\r\n\r\n")
			if fmt.Sprint(codes) != want {
				t.Errorf("%s: %v, want %s", line, codes, want)
			}
		}
		g.up.take()
	},
}

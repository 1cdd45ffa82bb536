package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// headerAttacks are the rows H1 to H14 as far as one request makes them.
func headerAttacks() []attack {
	var list []attack
	add := func(row, name, codes string, sees []string, has, not []string, path string, lines ...string) {
		list = append(list, attack{row: row, name: name, send: get(path, lines...), codes: codes, sees: sees, has: has, not: not})
	}
	open, closed := []string{"GET /x"}, []string{"GET /closed"}
	for _, h := range []string{"X-Consumer-ID", "X-Consumer-Username", "X-Consumer-Custom-ID", "X-Consumer-Groups", "X-Credential-Identifier", "X-Credential-Username", "X-Authenticated-Userid",
		"X-Authenticated-Scope", "X-Authenticated-Groups", "X-Anonymous-Consumer", "X-Userinfo", "X-Access-Token", "X-ID-Token"} {
		for _, alias := range []string{h, strings.ToLower(h), strings.ReplaceAll(h, "-", "_"), strings.ToUpper(strings.Replace(h, "-", "_", 1))} {
			row := "H1"
			if strings.Contains(alias, "_") {
				row = "H2"
			}
			add(row, alias+" on an open route", "200", open, nil, []string{"forged", alias + ":"}, "/x", alias+": forged")
		}
		add("H1", h+" on a closed route", "200", closed, []string{"X-Consumer-Username: alice\r\n"}, []string{"forged"}, "/admin", "apikey: k1", h+": forged", h+": forged too")
	}
	add("H2", "space behind the name", "", nil, nil, nil, "/x", "X-Consumer-ID : 1")
	add("H2", "mixed separators", "200", closed, []string{"X-Consumer-Username: alice\r\n"}, []string{"forged"}, "/admin", "apikey: k1", "x-consumer_username: forged", "X_CONSUMER-USERNAME: forged")
	for _, c := range []string{"X-Consumer-ID", "close, x-consumer-id", "x-consumer-username ,\tX-CONSUMER-ID", "X-Credential-Identifier,X-Consumer-Username"} {
		add("H3", "Connection: "+c, "200", closed, []string{"X-Consumer-Username: alice\r\n", "X-Consumer-ID: "}, nil, "/admin", "apikey: k1", "Connection: "+c)
	}
	add("H4", "X-Forwarded-For, Host", "200", open, []string{"X-Forwarded-For: 127.0.0.1\r\n", "Host: "}, nil, "/x", "Connection: close, X-Forwarded-For, Host")
	add("H4", "what carries a credential", "200", closed, []string{"X-Consumer-Username: alice"}, nil, "/admin", "apikey: k1", "Connection: Authorization, X-Forwarded-For, X-Real-IP")
	add("H4", "taking the key away does not open", "401", nil, nil, nil, "/admin", "Connection: apikey", "apikey: k1")
	list = append(list, attack{row: "H4", name: "Content-Length", send: "POST /x HTTP/1.1\r\n" + gw + "Connection: close, content-length\r\nContent-Length: 2\r\n\r\nhi", codes: "200", sees: []string{"POST /x"}, has: []string{"Content-Length: 2\r\n", "\r\n\r\nhi"}})
	add("H5", "hop by hop", "200", open, nil, []string{"x-secret:", "keep-alive: 5", "proxy-connection", "proxy-authorization", "te:", "trailer:", "upgrade:", "proxy: evil"}, "/x",
		"Connection: x-secret", "X-Secret: 1", "Keep-Alive: 5", "Proxy-Authorization: Basic eDp5", "Proxy-Connection: close", "TE: gzip", "Trailer: X", "Upgrade: foo", "Proxy: evil")
	for _, h := range []string{"X-Forwarded-For: 10.0.0.1", "X-Real-IP: 10.0.0.1", "Forwarded: for=10.0.0.1", "X_Forwarded_For: 10.0.0.1", "True-Client-IP: 10.0.0.1", "X-Forwarded-For: 10.0.0.1, 127.0.0.1"} {
		add("H6", h+" against ip-restriction", "403", nil, nil, nil, "/ip", h)
	}
	for _, v := range []struct{ name, value, codes, client string }{ // through the second gateway, which trusts 127.0.0.0/8 and 10.0.0.0/8
		{"the right-most that is not trusted", "10.9.9.9, 1.2.3.4, 10.1.1.1", "403", ""},
		{"all trusted", "10.1.1.1, 10.1.1.2", "200", "10.1.1.1"},
		{"IPv4 in IPv6 form", "10.2.2.2, [::ffff:10.0.0.1]", "200", "10.2.2.2"},
		{"IPv4 in IPv6 form, not trusted", "10.2.2.2, ::ffff:1.2.3.4", "403", ""},
		{"garbage ends the search", "10.0.0.1, evil", "403", ""},
		{"garbage behind a trusted one", "10.0.0.9, evil, 10.0.0.1", "200", "10.0.0.1"},
		{"500 entries", strings.Repeat("1.2.3.4, ", 499) + "10.0.0.3", "403", ""},
		{"500 trusted entries", strings.Repeat("10.0.0.2, ", 499) + "10.0.0.3", "200", "10.0.0.2"},
		{"a zone", "10.0.0.1%eth0", "403", ""},
	} {
		a := attack{row: "H7", name: v.name, send: get("/ip", "X-Forwarded-For: "+v.value), codes: v.codes, second: true}
		if v.codes == "200" {
			a.sees, a.has = []string{"GET /ip"}, []string{"X-Real-IP: " + v.client + "\r\n"}
		}
		list = append(list, a)
	}
	add("H8", "forwarded headers of an untrusted peer", "200", open,
		[]string{"x-forwarded-for: 1.2.3.4, 127.0.0.1\r\n", "x-real-ip: 127.0.0.1\r\n", "x-forwarded-proto: http\r\n", "x-forwarded-host: gw.example\r\n", "x-forwarded-path: /x\r\n"}, []string{"evil", "https", "port: 1\r\n"}, "/x",
		"X-Forwarded-For: 1.2.3.4", "X-Real-IP: 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil", "X-Forwarded-Path: /evil", "X_Forwarded_Host: evil")
	for _, v := range []string{"for=1.2.3.4", `for="evil\"; by=x"`, `for="_x, for=10.0.0.1"`, "proto=https;host=evil"} {
		add("H9", v, "200", open, nil, []string{"forwarded: for", "forwarded: proto", "evil"}, "/x", "Forwarded: "+v)
	}
	list = append(list, attack{row: "H9", name: "a line break", send: "GET /x HTTP/1.1\r\n" + gw + "Forwarded: for=1\nX-Consumer-ID: 1\r\n\r\n"})
	for _, v := range []struct{ name, send, codes string }{
		{"10,000 headers", "GET /x HTTP/1.1\r\n" + gw + strings.Repeat("X: y\r\n", 10_000) + "\r\n", "431"},
		{"1,001 short headers", "GET /x HTTP/1.1\r\n" + gw + strings.Repeat("X: y\r\n", 1001) + "\r\n", "431"},
		{"a header of 1 MB", get("/x", "X: "+strings.Repeat("a", 1<<20)), "431"},
		{"a target of 64 KB", get("/" + strings.Repeat("a", 64<<10)), "414"},
		{"a query of 64 KB", get("/x?" + strings.Repeat("a=b&", 16<<10)), "414"},
		{"100,000 cookies", get("/x", "Cookie: "+strings.Repeat("a=b; ", 100_000)), "431"},
		{"a head without end", "GET /x HTTP/1.1\r\n" + strings.Repeat("a", 8<<20), "431"},
		{"a line without end", strings.Repeat("a", 8<<20), "414"},
		{"a long Connection", get("/x", "Connection: "+strings.Repeat("x,", 1000)), "431"},
	} {
		list = append(list, attack{row: "H10", name: v.name, send: v.send, codes: v.codes})
	}
	via := strings.TrimSuffix(strings.Repeat("1.1 concord/1, ", 10), ", ")
	add("H14", "ten gateways", "508", nil, nil, nil, "/x", "Via: "+via)
	add("H14", "ten gateways in ten lines", "508", nil, nil, nil, "/x", strings.Split("Via: "+strings.ReplaceAll(via, ", ", "\nVia: "), "\n")...)
	add("H14", "other gateways", "200", open, nil, nil, "/x", "Via: "+strings.ReplaceAll(via, "concord", "nginx"))
	list = append(list,
		attack{row: "H14", name: "OPTIONS that may go no further", send: "OPTIONS /x HTTP/1.1\r\n" + gw + "Max-Forwards: 0\r\n\r\n", codes: "200"},
		attack{row: "H14", name: "OPTIONS that may go three steps", send: "OPTIONS /x HTTP/1.1\r\n" + gw + "Max-Forwards: 3\r\n\r\n", codes: "200", sees: []string{"OPTIONS /x"}, has: []string{"Max-Forwards: 2\r\n"}})
	for _, more := range []string{"", "Max-Forwards: 0\r\n", "Max-Forwards: 3\r\n", "Authorization: Basic eDp5\r\n"} {
		list = append(list, attack{row: "H14", name: "TRACE " + more, send: "TRACE /x HTTP/1.1\r\n" + gw + more + "\r\n", codes: "405"})
	}
	add("H14", "Max-Forwards does not concern GET", "200", open, []string{"Max-Forwards: 0"}, nil, "/x", "Max-Forwards: 0")
	return list
}

// cut at the first occurrence, for messages.
func head(s string, n int) string { return s[:min(n, len(s))] }

var headerScenes = map[string]func(*testing.T, *target){
	"H11 origins": func(t *testing.T, g *target) {
		for origin, allowed := range map[string]bool{
			"https://a.example": true, "https://x.b.example": true, "null": false, "https://evil.example": false, "https://a.example.evil": false, "https://xa.example": false, "http://a.example": false,
			"https://a.example:8443": false, "https://xXb.example": false, "https://x.b.example.evil": false, "https://x.b_example": false, "https://a.example/": false, "https://u@a.example": false,
			"HTTPS://A.EXAMPLE": false, "https://evil.example/.b.example": false,
		} {
			for _, preflight := range []bool{false, true} {
				send := get("/cors", "Origin: "+origin)
				if preflight {
					send = "OPTIONS /cors HTTP/1.1\r\n" + gw + "Origin: " + origin + "\r\nAccess-Control-Request-Method: PUT\r\n\r\n"
				}
				_, text := raw(t, g.Proxy, send)
				if got := strings.Contains(text, "Access-Control-Allow-Origin: "); got != allowed || allowed && !strings.Contains(text, "Access-Control-Allow-Origin: "+origin+"\r\n") || !strings.Contains(text, "Vary: Origin\r\n") {
					t.Errorf("%s, preflight %v: %.500q", origin, preflight, text)
				}
				if _, seen := g.up.take(); preflight == (len(seen) > 0) {
					t.Errorf("%s, preflight %v: the upstream saw %q", origin, preflight, seen)
				}
			}
		}
	},
	"H12 line breaks from stored and sent values": func(t *testing.T, g *target) {
		// A name with a line break is refused when it is written, or the request is, but it never becomes a line upstream.
		for i, name := range []string{"eve\r\nX-Evil: 1", "eve\nX-Evil: 1", "eve\rX-Evil: 1", "eve\x00X-Evil: 1"} {
			body, _ := json.Marshal(map[string]string{"username": name})
			a := g.JSON("POST", "/consumers", string(body))
			if a.Status == 400 {
				continue
			}
			id, _ := a.JSON()["id"].(string)
			last := g.JSON("POST", "/consumers/"+id+"/key-auth", fmt.Sprintf(`{"key":"evil%d"}`, i))
			if last.Status != 201 {
				t.Fatal(a.Body, last.Body)
			}
			g.Get("/", "X-Min-Config-Index", last.Index())
			g.up.take()
			codes, _ := raw(t, g.Proxy, get("/admin", fmt.Sprintf("apikey: evil%d", i)))
			got, seen := g.up.take()
			if strings.Contains(got, "\nX-Evil:") || strings.Contains(got, "\rX-Evil:") || strings.Contains(got, "\x00") {
				t.Errorf("%q (%v): the upstream received %q", name, codes, got)
			}
			if len(seen) == 0 && (len(codes) != 1 || codes[0] < 500) {
				t.Errorf("%q: %v", name, codes)
			}
		}
		// Escaped line breaks of the path stay escaped in the headers and in the request line made of them.
		raw(t, g.Proxy, get("/api/%0d%0aX-Evil:%201?x=%0d%0aX-Evil:1"))
		if got, _ := g.up.take(); strings.Contains(got, "\nX-Evil") || !strings.Contains(got, "%0D%0A") {
			t.Errorf("the upstream received %q", got)
		}
	},
	"H13 log injection": func(t *testing.T, g *target) {
		for _, bytes := range []string{"\x1b[31mred", "a\x07", "a\x9b\x00"} {
			if codes, _ := raw(t, g.Proxy, get("/log", "User-Agent: "+bytes)); fmt.Sprint(codes) != "[400]" {
				t.Errorf("%q: %v", bytes, codes)
			}
		}
		for _, bytes := range []string{"\x9b31mred", `quote" 200 0 "`, `back\slash`, "nel\u0085line\u2028sep", "tab\tbed"} {
			codes, _ := raw(t, g.Proxy, get("/log?x=%0a%22", "User-Agent: "+bytes+" MARK1", "Referer: "+bytes))
			again, _ := raw(t, g.second.Proxy, get("/log?x=%0a%22", "User-Agent: "+bytes+" MARK1", "Referer: "+bytes))
			if fmt.Sprint(codes, again) != "[200] [200]" {
				t.Errorf("%q: %v %v", bytes, codes, again)
			}
		}
		for _, target := range []string{"/\x1b]0;x\x07", "/\"quote"} {
			raw(t, g.Proxy, get(target))
			raw(t, g.second.Proxy, get(target))
		}
		raw(t, g.Proxy, get("/end", "User-Agent: MARK2"))
		raw(t, g.second.Proxy, get("/end", "User-Agent: MARK2"))
		g.up.take()
		for i, line := range strings.Split(strings.TrimSuffix(accessLog(t, g.Node, "MARK2"), "\n"), "\n") {
			if strings.Count(line, `"`)%2 != 0 || strings.Count(line, `"`) != 8 || !strings.Contains(line, " - ") || !printable(line) {
				t.Errorf("line %d of the combined log: %q", i, head(line, 500))
			}
		}
		for i, line := range strings.Split(strings.TrimSuffix(accessLog(t, g.second, "MARK2"), "\n"), "\n") {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil || m["status"] == nil || !printable(line) {
				t.Errorf("line %d of the JSON log: %v: %q", i, err, head(line, 500))
			}
		}
	},
	"H14 the gateway as its own upstream": func(t *testing.T, g *target) {
		start := time.Now()
		codes, text := raw(t, g.Proxy, get("/self/x", "Connection: close"))
		if fmt.Sprint(codes) != "[508]" || !strings.Contains(text, "Loop detected") {
			t.Errorf("%v %.500q after %v", codes, text, time.Since(start))
		}
		if got, seen := g.up.take(); len(seen) > 0 {
			t.Errorf("the upstream received %q", got)
		}
	},
}

func printable(line string) bool {
	for i := range len(line) {
		if line[i] < 0x20 || line[i] >= 0x7f {
			return false
		}
	}
	return true
}

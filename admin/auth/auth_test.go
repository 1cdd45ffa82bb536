package auth

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCheckBind(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:8001":                   true,
		"127.0.0.1:8444 http2 ssl":         true,
		"127.8.9.1:0":                      true,
		"[::1]:8001":                       true,
		"[::ffff:127.0.0.1]:8001":          true,
		"localhost:8001":                   true,
		"off":                              true,
		"unix:/run/admin.sock":             true,
		"":                                 true,
		"0.0.0.0:8001":                     false,
		":8001":                            false,
		"[::]:8001":                        false,
		"10.0.0.1:8001":                    false,
		"localhost.example.com:8001":       false,
		"example.com:8001":                 false,
		"8001":                             false,
		"127.0.0.1":                        false,
		"0.0.0.0:8444 http2 ssl":           true,
		"[::]:8444 ssl":                    true,
		"10.0.0.1:8444 http2":              false,
		"10.0.0.1:8444 ssl proxy_protocol": false,
		"10.0.0.1:8444 nossl":              false,
	} {
		exposed, err := CheckBind([]string{"127.0.0.1:8001", addr})
		if (err == nil) != ok {
			t.Errorf("CheckBind(%q) = %v, want ok %t", addr, err, ok)
		}
		if want := ok && strings.HasSuffix(addr, "ssl") && !strings.HasPrefix(addr, "127."); exposed != want {
			t.Errorf("CheckBind(%q): exposed %t, want %t", addr, exposed, want)
		}
		if err != nil && strings.Contains(addr, ":8001") && !strings.Contains(err.Error(), "add ssl") {
			t.Errorf("CheckBind(%q) does not say what to do: %v", addr, err)
		}
	}
}

func TestGuard(t *testing.T) {
	g := NewGuard(GuardOptions{Hosts: []string{"Admin.Example"}, Origins: []string{"https://Console.example:8445"}})
	for _, c := range []struct {
		name, method, host, origin, site string
		pass                             bool
	}{
		{"curl", "POST", "localhost:8001", "", "", true},
		{"curl by address", "POST", "127.0.0.1:8001", "", "", true},
		{"IPv6", "GET", "[::1]:8001", "", "", true},
		{"configured host", "GET", "admin.example:8001", "", "", true},
		{"DNS rebinding", "GET", "evil.example:8001", "", "", false},
		{"rebinding by a look-alike", "GET", "localhost.evil.example", "", "", false},
		{"address of this host elsewhere", "GET", "10.0.0.5:8001", "", "", false},
		{"console on loopback", "POST", "localhost:8001", "http://localhost:8002", "same-site", true},
		{"configured origin", "POST", "localhost:8001", "https://console.example:8445", "cross-site", true},
		{"foreign page", "POST", "localhost:8001", "http://evil.example", "cross-site", false},
		{"foreign page reads", "GET", "localhost:8001", "http://evil.example", "", false},
		{"sandboxed page", "POST", "localhost:8001", "null", "", false},
		{"file page", "POST", "localhost:8001", "file://", "", false},
		{"origin with user info", "POST", "localhost:8001", "http://localhost@evil.example", "", false},
		{"cross-site without origin", "POST", "localhost:8001", "", "cross-site", false},
		{"link followed to a read", "GET", "localhost:8001", "", "cross-site", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, "/services", strings.NewReader("name=x"))
			r.Host = c.host
			r.Header.Set("Content-Type", "text/plain")
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if c.site != "" {
				r.Header.Set("Sec-Fetch-Site", c.site)
			}
			if err := g.Check(r); (err == nil) != c.pass {
				t.Errorf("Check = %v, want passed %t", err, c.pass)
			}
		})
	}
}

// What cannot be an admin token may be passed over, so it does not spare a request the question for its Host.
func TestGuardCredentials(t *testing.T) {
	for header, pass := range map[string]bool{"gwat_x": true, "kong": false, "": false} {
		r := httptest.NewRequest("GET", "http://evil.example:8001/services", nil)
		r.Header.Set("Kong-Admin-Token", header)
		if err := NewGuard(GuardOptions{}).Check(r); (err == nil) != pass {
			t.Errorf("Kong-Admin-Token %q: %v, want passed %t", header, err, pass)
		}
		r.Header.Set("Kong-Admin-Token", "")
		r.Header.Set("Authorization", "Bearer "+header)
		if err := NewGuard(GuardOptions{}).Check(r); (err == nil) != pass {
			t.Errorf("Authorization %q: %v, want passed %t", header, err, pass)
		}
	}
}

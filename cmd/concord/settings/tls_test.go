package settings

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"concord/proxy/listen"
)

func TestTLSSettings(t *testing.T) {
	for _, c := range []struct {
		name, conf     string
		oldest, newest uint16
		refused        string
	}{
		{"default", "", tls.VersionTLS12, 0, ""},
		{"modern", "ssl_cipher_suite = modern", tls.VersionTLS13, 0, ""},
		{"old", "ssl_cipher_suite = old", tls.VersionTLS10, 0, ""},
		{"versions of nginx", "ssl_protocols = TLSv1.1 TLSv1.2", tls.VersionTLS11, tls.VersionTLS12, ""},
		{"narrower than the suite", "ssl_cipher_suite = old\nssl_protocols = TLSv1.3", tls.VersionTLS13, tls.VersionTLS13, ""},
		{"gap", "ssl_protocols = TLSv1.1, TLSv1.3", 0, 0, "leaves out a version"},
		{"SSLv3", "ssl_protocols = SSLv3 TLSv1.2", 0, 0, `"SSLv3" is none of`},
		{"custom without ciphers", "ssl_cipher_suite = custom", 0, 0, "name the suites in ssl_ciphers"},
		{"custom", "ssl_cipher_suite = custom\nssl_ciphers = ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256", tls.VersionTLS12, 0, ""},
		{"only suites that are not there", "ssl_cipher_suite = custom\nssl_ciphers = DHE-RSA-AES128-GCM-SHA256", 0, 0, "names no cipher suite"},
		{"selection", "ssl_ciphers = HIGH:!aNULL", 0, 0, `"HIGH", which selects suites`},
		{"exclusion", "ssl_ciphers = ECDHE-RSA-AES128-GCM-SHA256:!MD5", 0, 0, `"!MD5", which selects suites`},
		{"RC4", "ssl_ciphers = RC4-SHA", 0, 0, "RFC 7465"},
		{"unknown suite", "ssl_cipher_suite = fips", 0, 0, "is none of modern, intermediate, old, custom"},
		{"session timeout of nginx", "ssl_session_timeout = 1d", tls.VersionTLS12, 0, ""},
		{"session timeout without number", "ssl_session_timeout = d", 0, 0, "is not a time"},
		{"session timeout with unknown unit", "ssl_session_timeout = 5y", 0, 0, "is not a time"},
		{"client certificate without file", "client_ssl = on", 0, 0, "set client_ssl_cert and client_ssl_cert_key too"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, err := load(t, c.conf)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %v, want %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if oldest, newest := s.TLSVersions(); oldest != c.oldest || newest != c.newest {
				t.Errorf("got %#x to %#x, want %#x to %#x", oldest, newest, c.oldest, c.newest)
			}
		})
	}
}

func TestCipherSuites(t *testing.T) {
	has := map[string]map[uint16]bool{}
	for _, suite := range []string{"intermediate", "old"} {
		s, _, err := load(t, "ssl_cipher_suite = "+suite)
		if err != nil {
			t.Fatal(err)
		}
		has[suite] = map[uint16]bool{}
		for _, id := range s.CipherSuites() {
			has[suite][id] = true
		}
	}
	for _, c := range []struct {
		id                uint16
		intermediate, old bool
	}{
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true, true},
		{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, true, true},
		{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, false, true},
		{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, false, true},
		{tls.TLS_RSA_WITH_RC4_128_SHA, false, false},
	} {
		if has["intermediate"][c.id] != c.intermediate || has["old"][c.id] != c.old {
			t.Errorf("%s: intermediate %v, old %v", tls.CipherSuiteName(c.id), has["intermediate"][c.id], has["old"][c.id])
		}
	}
}

func TestCustomCiphers(t *testing.T) {
	s, _, err := load(t, "ssl_cipher_suite = custom\nssl_ciphers = ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-AES256-SHA:TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:AES128-SHA256:DES-CBC3-SHA:TLS_AES_128_GCM_SHA256\nssl_session_timeout = 2h")
	if err != nil {
		t.Fatal(err)
	}
	want := []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA256, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_AES_128_GCM_SHA256,
	}
	if got := s.CipherSuites(); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if s.SSLSessionTimeout != 2*time.Hour {
		t.Errorf("session timeout %v", s.SSLSessionTimeout)
	}
}

func TestRoots(t *testing.T) {
	dir := t.TempDir()
	if _, err := listen.DefaultCertificate(dir, ""); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for conf, refused := range map[string]string{
		"":                                "",
		filepath.Join(dir, "default.crt"): "",
		"system, " + filepath.Join(dir, "default.crt"): "",
		empty:                          "holds no certificate",
		filepath.Join(dir, "none.pem"): "no such file",
	} {
		s, _, err := load(t, "lua_ssl_trusted_certificate = "+conf)
		if err != nil {
			t.Fatal(err)
		}
		pool, err := s.Roots()
		if refused == "" && (err != nil || pool == nil) || refused != "" && (err == nil || !strings.Contains(err.Error(), refused)) {
			t.Errorf("%q: got %v, want %q", conf, err, refused)
		}
	}
}

package settings

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cipherSuite takes a level of Mozilla's recommendations, which are what Kong's names stand for.
func cipherSuite(s *Settings, v string) error {
	if !slices.Contains([]string{"modern", "intermediate", "old", "custom"}, v) {
		return errors.New("is none of modern, intermediate, old, custom")
	}
	s.SSLCipherSuite = v
	return nil
}

// ciphers takes OpenSSL's or IANA's names of suites, separated by colons. Suites that crypto/tls does not have (finite-field DHE, CCM) are
// passed over, as OpenSSL passes over those it was built without; those of TLS 1.3 are always on. What selects suites by their
// properties is refused: it would mean something else here than with OpenSSL.
func ciphers(s *Settings, v string) error {
	s.SSLCiphers = nil
	known := map[string]uint16{}
	for _, c := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		known[c.Name], known[opensslName(c.Name)] = c.ID, c.ID
	}
	for _, name := range strings.FieldsFunc(v, func(r rune) bool { return r == ':' || r == ',' || r == ' ' }) {
		id, ok := known[name]
		switch {
		case strings.ContainsAny(name[:1], "!-+@") || !strings.ContainsAny(name, "-_") || strings.Contains(name, "+"):
			return fmt.Errorf("holds %q, which selects suites by their properties: name each suite, such as ECDHE-RSA-AES128-GCM-SHA256", name)
		case strings.Contains(name, "RC4"):
			return fmt.Errorf("holds %q, which must not be used (RFC 7465): take it out", name)
		case ok:
			s.SSLCiphers = append(s.SSLCiphers, id)
		}
	}
	if v != "" && len(s.SSLCiphers) == 0 {
		return errors.New("names no cipher suite that this gateway has: name at least one such as ECDHE-RSA-AES128-GCM-SHA256")
	}
	return nil
}

// opensslName turns IANA's name of a suite of TLS 1.2 into OpenSSL's: TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 is ECDHE-RSA-AES128-GCM-SHA256.
func opensslName(name string) string {
	kx, cipher, ok := strings.Cut(strings.TrimPrefix(name, "TLS_"), "_WITH_")
	if !ok {
		return name
	}
	r := strings.NewReplacer("AES_128", "AES128", "AES_256", "AES256", "_CBC", "", "_POLY1305_SHA256", "_POLY1305", "3DES_EDE", "DES_CBC3")
	out := r.Replace(cipher)
	if kx != "RSA" {
		out = kx + "_" + out
	}
	return strings.ReplaceAll(out, "_", "-")
}

// sslTime takes nginx's times: a number with s, m, h, d or w, or without a unit for seconds.
func sslTime(f func(*Settings) *time.Duration) setter {
	units := map[string]time.Duration{"": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}
	return func(s *Settings, v string) error {
		number := strings.TrimRight(v, "smhdw")
		n, err := strconv.ParseUint(number, 10, 20)
		unit, known := units[v[len(number):]]
		if err != nil || !known || n == 0 {
			return errors.New("is not a time such as 600, 10m, 12h or 1d")
		}
		*f(s) = time.Duration(n) * unit
		return nil
	}
}

// protocols takes versions of TLS, separated by spaces (nginx) or commas.
func protocols(s *Settings, v string) error {
	known := []string{"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"} // successive numbers on the wire
	s.SSLMin, s.SSLMax = 0, 0
	var given []int
	for _, word := range strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' }) {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, word) })
		if i < 0 {
			return fmt.Errorf("%q is none of %s", word, strings.Join(known, ", "))
		}
		given = append(given, i)
	}
	slices.Sort(given)
	given = slices.Compact(given)
	if len(given) == 0 {
		return nil
	}
	first, last := given[0], given[len(given)-1]
	if last-first >= len(given) {
		return errors.New("leaves out a version between others, which cannot be negotiated: name all from the oldest to the newest")
	}
	s.SSLMin, s.SSLMax = tls.VersionTLS10+uint16(first), tls.VersionTLS10+uint16(last)
	return nil
}

// TLSVersions is what ssl_protocols, or else ssl_cipher_suite, allows; 0 as the newest stands for the newest there is.
func (s *Settings) TLSVersions() (oldest, newest uint16) {
	if s.SSLMin != 0 {
		return s.SSLMin, s.SSLMax
	}
	switch s.SSLCipherSuite {
	case "modern":
		return tls.VersionTLS13, 0
	case "old":
		return tls.VersionTLS10, 0
	}
	return tls.VersionTLS12, 0
}

// CipherSuites are those of TLS 1.2 and older; TLS 1.3 has only good ones, which are not chosen. They all have forward
// secrecy and authenticated encryption, unless ssl_cipher_suite is old.
func (s *Settings) CipherSuites() (ids []uint16) {
	if s.SSLCipherSuite == "custom" {
		return s.SSLCiphers
	}
	old := s.SSLCipherSuite == "old"
	for _, c := range tls.CipherSuites() {
		if old || !strings.Contains(c.Name, "_CBC_") {
			ids = append(ids, c.ID)
		}
	}
	if old {
		for _, c := range tls.InsecureCipherSuites() {
			if !strings.Contains(c.Name, "_RC4_") { // RFC 7465
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}

// trusted takes where certificate authorities are to be found.
func trusted(s *Settings, v string) error {
	s.TrustedCertificates = nil
	for _, e := range splitList(v) {
		if e != "system" {
			e = certificate(s, e)
		}
		s.TrustedCertificates = append(s.TrustedCertificates, e)
	}
	return nil
}

// Roots reads the certificate authorities of lua_ssl_trusted_certificate.
func (s *Settings) Roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if slices.Contains(s.TrustedCertificates, "system") {
		var err error
		if pool, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
	}
	for _, e := range s.TrustedCertificates {
		if e == "system" {
			continue
		}
		text, err := ReadPEM(e)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, errors.New("holds no certificate in PEM form: name a file with at least one, or system")
		}
	}
	return pool, nil
}

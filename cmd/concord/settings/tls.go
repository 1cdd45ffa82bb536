package settings

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// cipherSuite takes a level of Mozilla's recommendations, which are what Kong's names stand for.
func cipherSuite(s *Settings, v string) error {
	if !slices.Contains([]string{"modern", "intermediate", "old"}, v) {
		return errors.New("is none of modern, intermediate, old; lists of ciphers are not read")
	}
	s.SSLCipherSuite = v
	return nil
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

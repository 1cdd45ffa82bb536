package listen

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// defaultCertYears is long, as Kong's: nothing checks this certificate, and one that runs out would stop clients all the
// same.
const defaultCertYears = 10

// DefaultCertificate loads the self-signed certificate for names without one of their own from dir (prefix/ssl), and
// makes it if neither of its files exists. A file that is damaged or alone is an error that names it.
func DefaultCertificate(dir string, hostname string) (tls.Certificate, error) {
	certFile, keyFile := filepath.Join(dir, "default.crt"), filepath.Join(dir, "default.key")
	_, certErr := os.Stat(certFile)
	_, keyErr := os.Stat(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		if err := makeCertificate(dir, certFile, keyFile, hostname); err != nil {
			return tls.Certificate{}, fmt.Errorf("make default certificate: %w", err)
		}
	}
	c, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("default certificate %s with %s: %w; repair them, or remove both to have new ones made", certFile, keyFile, err)
	}
	return c, nil
}

func makeCertificate(dir, certFile, keyFile, hostname string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	now := time.Now()
	names := []string{"localhost"}
	if hostname != "" && hostname != "localhost" {
		names = append(names, hostname)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost", Organization: []string{"concord"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(defaultCertYears, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a crash between the two is then named by the next start instead of leaving a certificate without key.
	if err := writePEM(keyFile, "PRIVATE KEY", keyDER, 0o600); err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", der, 0o644)
}

// writePEM never leaves half a file under the final name.
func writePEM(name, kind string, der []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// TLSOptions configure TLSConfig.
type TLSOptions struct {
	Default tls.Certificate // for names without a certificate of their own
	// Choose returns the certificate for a client, nil for the default. It is asked for each handshake; nil: there is only the
	// default.
	Choose       func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Min, Max     uint16   // versions; 0: TLS 1.2 and the newest
	CipherSuites []uint16 // of TLS 1.2 and older; nil: those crypto/tls takes for safe
}

// TLSConfig serves TLS to clients.
func TLSConfig(o TLSOptions) *tls.Config {
	if o.Min == 0 {
		o.Min = tls.VersionTLS12
	}
	return &tls.Config{
		MinVersion: o.Min, MaxVersion: o.Max, CipherSuites: o.CipherSuites,
		NextProtos: []string{"http/1.1", "http/1.0"}, // as nginx: curl --http1.0 offers nothing else
		// Not in Certificates: then Choose would not be asked about clients without SNI.
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if o.Choose != nil {
				if c, err := o.Choose(hello); c != nil || err != nil {
					return c, err
				}
			}
			return &o.Default, nil
		},
	}
}

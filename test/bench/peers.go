//go:build linux

package main

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// peer is a gateway that Concord is compared with.
type peer struct {
	name, plain, tls string
	pid              int
}

// startPeers starts nginx and HAProxy, one worker each.
func (b *bench) startPeers() error {
	for _, p := range []struct {
		name, conf string
		command    []string
	}{
		{"nginx", nginxConf, []string{"nginx", "-e", filepath.Join(b.host.dir, "nginx.err"), "-c", "@CONF@"}},
		{"haproxy", haproxyConf, []string{"haproxy", "-f", "@CONF@"}},
	} {
		at, err := b.ports(2)
		if err != nil {
			return err
		}
		file := filepath.Join(b.host.dir, p.name+".conf")
		text := strings.NewReplacer("@DIR@", b.host.dir, "@UP@", b.up, "@PLAIN@", at[0], "@TLS@", at[1], "@CERT@", b.certFile, "@KEY@", b.keyFile, "@BOTH@", b.bothFile, "@MAXCONN@", fmt.Sprint(b.haproxyConns())).Replace(p.conf)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		for i, a := range p.command {
			p.command[i] = strings.ReplaceAll(a, "@CONF@", file)
		}
		pid, err := b.host.start(gatewayCPU, p.name, nil, p.command[0], p.command[1:]...)
		if err != nil {
			return err
		}
		if err := until(b.ctx, "http://"+at[0]+"/get", 10*time.Second); err != nil {
			return fmt.Errorf("%s: %w\n%s", p.name, err, b.host.log(p.name))
		}
		b.peers = append(b.peers, &peer{p.name, at[0], at[1], pid})
	}
	return nil
}

// haproxyConns is how many connections HAProxy can have, for each of which it wants two descriptors.
func (b *bench) haproxyConns() int { return min(16384, (b.files-500)/2) }

// makeCertificate writes a P-256 certificate for localhost.
func (b *bench) makeCertificate(s *signers) error {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.ecdsa.Public(), s.ecdsa)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.ecdsa)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	b.certFile, b.keyFile, b.bothFile = filepath.Join(b.host.dir, "cert.pem"), filepath.Join(b.host.dir, "key.pem"), filepath.Join(b.host.dir, "both.pem")
	return errors.Join(os.WriteFile(b.certFile, cert, 0o600), os.WriteFile(b.keyFile, private, 0o600), os.WriteFile(b.bothFile, append(cert, private...), 0o600))
}

// handshakes opens TLS connections without resumption for a while, asks once on each, and prints how many there were.
func handshakes(addr string, d time.Duration) error {
	config := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", SessionTicketsDisabled: true, MinVersion: tls.VersionTLS13}
	var count atomic.Int64
	var failure error
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range 8 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := handshake(addr, config); err != nil {
					mu.Lock()
					failure = err
					mu.Unlock()
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Print(count.Load())
	return failure
}

func handshake(addr string, config *tls.Config) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, config)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /get HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
		err = errors.New(http.StatusText(http.StatusBadGateway) + ": " + string(b))
	}
	return err
}

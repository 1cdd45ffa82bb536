// Package pki is the cluster's own small certificate authority: the CA, the certificates of nodes, and the tokens with which
// new nodes join.
//
// It makes and checks; it stores nothing but a node's own key and certificates (Credentials.Save), and it knows neither who
// is a member nor how bytes travel. Every certificate is meant for the peer port only: a chain to the CA is not enough, the
// peer must carry the URI of a node of the same cluster.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// caLife is how long a cluster's CA is valid. Nodes renew theirs long before; the CA's end is the cluster's end.
const caLife = 20 * 365 * 24 * time.Hour

// backdate is how far behind the leader's clock a node's clock may be.
const backdate = time.Hour

// CA signs the certificates of a cluster's nodes.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes the CA of a cluster: ECDSA P-256.
func NewCA(clusterID string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Concord cluster " + clusterID},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// ParseCA reads what CertificatePEM and KeyPEM gave.
func ParseCA(certPEM, keyPEM string) (*CA, error) {
	cert, err := ParseCertificate([]byte(certPEM))
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, err := parseKey([]byte(keyPEM))
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	return &CA{cert, key}, nil
}

// CertificatePEM is the CA's certificate.
func (ca *CA) CertificatePEM() string { return string(certPEM(ca.cert.Raw)) }

// KeyPEM is the CA's private key in clear: it may only go into a sealed field.
func (ca *CA) KeyPEM() (string, error) {
	b, err := keyPEM(ca.key)
	return string(b), err
}

// Sign issues a certificate for a node with the public key of a request. Nothing else of the request is taken over.
func (ca *CA) Sign(csrDER []byte, clusterID, nodeID string, now time.Time, life time.Duration) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key must be ECDSA P-256")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(life)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: nodeID},
		NotBefore: now.Add(-backdate), NotAfter: end,
		URIs:                  []*url.URL{nodeURI(clusterID, nodeID)},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
}

func nodeURI(clusterID, nodeID string) *url.URL {
	return &url.URL{Scheme: "concord", Host: clusterID, Path: "/node/" + nodeID}
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// Key is a node's private key.
type Key struct{ signer crypto.Signer }

// NewKey makes a node key: ECDSA P-256.
func NewKey() (Key, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return Key{k}, err
}

// Request is a certificate request (DER) for the key.
func (k Key) Request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.signer)
}

// Credentials is what a node shows to the others and checks them by.
type Credentials struct {
	ClusterID string
	NodeID    string
	CA        *x509.Certificate
	Leaf      *x509.Certificate
	Key       Key
}

// NewCredentials puts together a node's key, its certificate (DER) and the CA (PEM), and checks that they belong together.
func NewCredentials(clusterID, nodeID string, key Key, leafDER []byte, caPEM string) (*Credentials, error) {
	ca, err := ParseCertificate([]byte(caPEM))
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	c := &Credentials{ClusterID: clusterID, NodeID: nodeID, CA: ca, Leaf: leaf, Key: key}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(key.signer.Public()) {
		return nil, errors.New("node certificate: it does not belong to the node's key")
	}
	// Judged at its own start: an expired certificate is still the node's, it only has to be renewed.
	if id, err := c.verify([]*x509.Certificate{leaf}, leaf.NotBefore.Add(time.Second)); err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	} else if id != nodeID {
		return nil, fmt.Errorf("node certificate: it is for node %s, this is node %s", id, nodeID)
	}
	return c, nil
}

// TLS is the certificate with its chain: the CA is sent along so that a joining node can compare its pin.
func (c *Credentials) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{c.Leaf.Raw, c.CA.Raw}, PrivateKey: c.Key.signer, Leaf: c.Leaf}
}

// RenewAt is when two thirds of the certificate's life are over.
func (c *Credentials) RenewAt() time.Time {
	issued := c.Leaf.NotBefore.Add(backdate)
	return issued.Add(c.Leaf.NotAfter.Sub(issued) * 2 / 3)
}

// Expired says whether the certificate is of no use any more.
func (c *Credentials) Expired(now time.Time) bool { return now.After(c.Leaf.NotAfter) }

// Verify checks the chain that a peer presented and returns the id of the node.
func (c *Credentials) Verify(chain []*x509.Certificate, now time.Time) (nodeID string, err error) {
	return c.verify(chain, now)
}

func (c *Credentials) verify(chain []*x509.Certificate, now time.Time) (string, error) {
	return verifyNode(chain, c.CA, c.ClusterID, now)
}

func verifyNode(chain []*x509.Certificate, ca *x509.Certificate, clusterID string, now time.Time) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("the peer shows no certificate")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// Both usages are demanded: a certificate of this CA that was made for one direction only was not made for a node.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return "", err
		}
	}
	id := NodeID(chain[0])
	if id == "" {
		return "", errors.New("the certificate names no node")
	}
	if host := chain[0].URIs[0].Host; host != clusterID {
		return "", fmt.Errorf("the certificate is of cluster %s, this is cluster %s", host, clusterID)
	}
	return id, nil
}

// NodeID is the node that a certificate names, "" if it names none. It says nothing about who issued the certificate.
func NodeID(cert *x509.Certificate) string {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "concord" {
		return ""
	}
	id, ok := strings.CutPrefix(cert.URIs[0].Path, "/node/")
	if !ok || uuid.Validate(id) != nil {
		return ""
	}
	return id
}

// ParseCertificate reads one PEM certificate.
func ParseCertificate(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("not one PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not a PEM private key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return key, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Pin is the fingerprint of a CA that tokens carry: SHA-256 of its public key (SubjectPublicKeyInfo).
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return base32Lower.EncodeToString(sum[:])
}

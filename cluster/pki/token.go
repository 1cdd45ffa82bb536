package pki

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	tokenPrefix  = "CJT1"
	secretSize   = 20 // 160 bits
	exporterName = "EXPORTER-concord-join-1"
)

// Token lets a node join: CJT1.<cluster id>.<pin of the CA>.<token id>.<secret>. The secret never crosses the wire.
type Token struct {
	ClusterID string
	Pin       string
	ID        string // UUID
	secret    []byte
}

// NewToken makes a token for the cluster with this CA.
func NewToken(clusterID string, ca *x509.Certificate) (Token, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return Token{}, err
	}
	t := Token{ClusterID: clusterID, Pin: Pin(ca), ID: id.String(), secret: make([]byte, secretSize)}
	_, err = rand.Read(t.secret)
	return t, err
}

// Text is the token in clear, for whoever is to bring it to the new node.
func (t Token) Text() string {
	return strings.Join([]string{tokenPrefix, t.ClusterID, t.Pin, t.ID, base32Lower.EncodeToString(t.secret)}, ".")
}

// String names the token without its secret, so that a log cannot spill it.
func (t Token) String() string { return "join token " + t.ID }

// ParseToken reads what Text gave.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if parts[0] != tokenPrefix || len(parts) != 5 {
		return Token{}, errors.New("not a join token: it has the form CJT1.<cluster id>.<CA pin>.<id>.<secret>, as `gwctl cluster token` prints it")
	}
	t := Token{ClusterID: parts[1], Pin: parts[2], ID: parts[3]}
	if uuid.Validate(t.ClusterID) != nil || uuid.Validate(t.ID) != nil {
		return Token{}, errors.New("join token: the cluster id or token id is damaged: copy the whole token")
	}
	if b, err := base32Lower.DecodeString(t.Pin); err != nil || len(b) != sha256.Size {
		return Token{}, errors.New("join token: the CA pin is damaged: copy the whole token")
	}
	secret, err := base32Lower.DecodeString(parts[4])
	if err != nil || len(secret) != secretSize {
		return Token{}, errors.New("join token: the secret is damaged: copy the whole token")
	}
	t.secret = secret
	return t, nil
}

// ProofKey is what the cluster keeps of the secret: enough to verify a proof, useless to anyone who has only the token's id.
func (t Token) ProofKey() []byte {
	h := sha256.New()
	h.Write([]byte("concord join proof 1\x00"))
	h.Write(t.secret)
	return h.Sum(nil)
}

// Proof shows knowledge of the secret for one message on one TLS connection: who relays it to another connection, or changes the
// message, has nothing.
func Proof(proofKey []byte, conn tls.ConnectionState, message []byte) ([]byte, error) {
	binding, err := conn.ExportKeyingMaterial(exporterName, nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("binding the proof to the connection: %w", err)
	}
	mac := hmac.New(sha256.New, proofKey)
	mac.Write(binding)
	mac.Write(message)
	return mac.Sum(nil), nil
}

// CheckProof verifies what Proof made at the other end of the connection.
func CheckProof(proofKey, proof []byte, conn tls.ConnectionState, message []byte) error {
	want, err := Proof(proofKey, conn, message)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(want, proof) != 1 {
		return errors.New("the secret of the join token is wrong")
	}
	return nil
}

// VerifyServer checks that a server is a node of the token's cluster, by the pin alone: the chain it presented must contain the
// pinned CA. It is to run inside the handshake, before anything is sent.
func (t Token) VerifyServer(chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 {
		return errors.New("the server shows no certificate of a cluster: is this the cluster_listen address of a node?")
	}
	got := Pin(chain[1])
	if subtle.ConstantTimeCompare([]byte(got), []byte(t.Pin)) != 1 {
		return fmt.Errorf("the CA pin does not match: the server's is %s, the token demands %s; wrong address, wrong token, or someone in between. Nothing was sent", got, t.Pin)
	}
	_, err := verifyNode(chain, chain[1], t.ClusterID, now)
	return err
}

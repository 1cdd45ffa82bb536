package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// Keys of rows.
const certificatePrefix = "cert:"

func certificateKey(name string) string { return certificatePrefix + name }
func challengeKey(token string) string  { return "http-01:" + token }
func lockKey(name string) string        { return "lock:" + name }
func backoffKey(name string) string     { return "backoff:" + name }

func (i *instance) accountKey() string {
	sum := sha256.Sum256([]byte(i.APIURI + " " + i.AccountEmail + " " + i.EABKID))
	return "account:" + hex.EncodeToString(sum[:16])
}

const (
	orderLimit   = 4 * time.Minute          // for one order
	lockLife     = orderLimit + time.Minute // an order whose node died ends with it
	visibleDelay = 500 * time.Millisecond   // until all nodes surely have a challenge, on a busy machine too
	maxOrders    = 4                        // at once, on one node
)

// kept is a certificate as it is stored.
type kept struct {
	Cert string `json:"cert"` // PEM chain
	Key  string `json:"key"`  // PEM
}

// shown is a certificate as it is shown.
type shown struct {
	index uint64 // of its row
	cert  *tls.Certificate
}

func parse(value string) (*tls.Certificate, error) {
	var k kept
	if err := json.Unmarshal([]byte(value), &k); err != nil {
		return nil, errors.New("the stored certificate is damaged")
	}
	c, err := tls.X509KeyPair([]byte(k.Cert), []byte(k.Key))
	return &c, err
}

// due tells whether it is time to renew a certificate.
func (i *instance) due(c *tls.Certificate) bool {
	ahead := min(time.Duration(i.RenewThresholdDays*24*float64(time.Hour)), c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)/3)
	return time.Until(c.Leaf.NotAfter) < ahead
}

// Certificate implements plugin.CertificateSource. A name without a certificate gets one in the background.
func (i *instance) Certificate(hello *tls.ClientHelloInfo) *tls.Certificate {
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if !i.allowed(name) {
		return nil
	}
	value, index, ok := i.load(certificateKey(name))
	if !ok {
		i.order(name)
		return nil
	}
	i.mu.Lock()
	found := i.shown[name]
	i.mu.Unlock()
	if found == nil || found.index != index {
		c, err := parse(value)
		if err != nil {
			i.log(slog.LevelError, "a certificate cannot be used", name, "error", err)
			return nil
		}
		found = &shown{index, c}
		i.mu.Lock()
		i.shown[name] = found
		i.mu.Unlock()
	}
	if time.Now().After(found.cert.Leaf.NotAfter) {
		i.order(name)
	}
	return found.cert
}

// order gets a certificate for a name in the background, if it is needed, nobody else does it, and this node is not busy with others.
func (i *instance) order(name string) {
	if _, _, wait := i.load(backoffKey(name)); wait || i.env.Keep == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || i.ordering[name] || len(i.ordering) >= maxOrders {
		return
	}
	i.ordering[name] = true
	i.background.Go(func() {
		defer func() {
			i.mu.Lock()
			defer i.mu.Unlock()
			delete(i.ordering, name)
		}()
		_ = i.obtain(i.ctx, name, false) // logged there
	})
}

// errBusy says that somebody else has the order.
var errBusy = errors.New("a node of the cluster is ordering it already")

// obtain gets a certificate if it is needed and nobody else does it; at once also after a failure a while ago.
func (i *instance) obtain(ctx context.Context, name string, atOnce bool) error {
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	defer context.AfterFunc(i.ctx, cancel)()
	keep := i.env.Keep
	mine, err := keep.Create(ctx, lockKey(name), i.env.NodeID(), lockLife)
	if err != nil || !mine {
		if err != nil {
			i.log(slog.LevelWarn, "no certificate can be ordered now", name, "error", err)
			return err
		}
		return errBusy
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := keep.Delete(ctx, lockKey(name)); err != nil {
			i.log(slog.LevelWarn, "the lock is left until it expires", name, "error", err)
		}
	}()
	// What another node did before it gave the lock away is in this node's store by now.
	if value, _, ok := i.load(certificateKey(name)); ok {
		if c, err := parse(value); err == nil && !i.due(c) {
			return nil
		}
	}
	if _, _, failed := i.load(backoffKey(name)); failed && !atOnce {
		return nil
	}
	i.log(slog.LevelInfo, "ordering a certificate", name)
	value, err := i.issue(ctx, name)
	if err == nil {
		err = keep.Put(ctx, certificateKey(name), value, 0)
	}
	if err == nil {
		i.log(slog.LevelInfo, "a certificate was issued", name)
		return nil
	}
	i.log(slog.LevelError, "no certificate was issued", name, "error", err, "again_in_minutes", i.FailBackoffMinutes)
	if life := time.Duration(i.FailBackoffMinutes * float64(time.Minute)); life >= time.Second && i.ctx.Err() == nil {
		if err := keep.Put(context.WithoutCancel(ctx), backoffKey(name), err.Error(), life); err != nil {
			i.log(slog.LevelWarn, "the failure could not be noted for the other nodes", name, "error", err)
		}
	}
	return err
}

// issue runs one order and returns the certificate as it is stored.
func (i *instance) issue(ctx context.Context, name string) (string, error) {
	client := &acmez.Client{
		Client:           &acme.Client{Directory: i.APIURI, HTTPClient: i.client, UserAgent: "concord", Logger: slog.New(slog.DiscardHandler), PollTimeout: orderLimit},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeHTTP01: solver{i}},
	}
	account, err := i.account(ctx, client)
	if err != nil {
		return "", fmt.Errorf("account: %w", err)
	}
	key, err := i.newKey()
	if err != nil {
		return "", err
	}
	chains, err := client.ObtainCertificateForSANs(ctx, account, key, []string{name})
	if err != nil {
		return "", err
	}
	if len(chains) == 0 {
		return "", errors.New("the server issued nothing")
	}
	chosen := chains[0].ChainPEM
	for _, c := range chains {
		if i.PreferredChain != "" && lastIssuer(c.ChainPEM) == i.PreferredChain {
			chosen = c.ChainPEM
			break
		}
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(kept{Cert: string(chosen), Key: keyPEM})
	if err == nil {
		_, err = parse(string(out))
	}
	return string(out), err
}

func lastIssuer(chain []byte) (name string) {
	for {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			return name
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			name = c.Issuer.CommonName
		}
	}
}

func (i *instance) newKey() (crypto.Signer, error) {
	if i.CertType == "ecc" {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, int(i.RSAKeySize))
}

func encodeKey(key crypto.Signer) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), err
}

// keptAccount is an account as it is stored.
type keptAccount struct {
	Key      string       `json:"key"` // PEM
	Accounts acme.Account `json:"account"`
}

// account is the cluster's account with the server, made when there is none. Of two that were made at once the first one stays.
func (i *instance) account(ctx context.Context, client *acmez.Client) (acme.Account, error) {
	if value, _, ok := i.load(i.accountKey()); ok {
		return readAccount(value)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	account := acme.Account{Contact: []string{"mailto:" + i.AccountEmail}, TermsOfServiceAgreed: i.TOSAccepted, PrivateKey: key}
	if i.EABKID != "" {
		if err := account.SetExternalAccountBinding(ctx, client.Client, acme.EAB{KeyID: i.EABKID, MACKey: i.EABHMACKey}); err != nil {
			return account, err
		}
	}
	if account, err = client.NewAccount(ctx, account); err != nil {
		return account, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return account, err
	}
	value, err := json.Marshal(keptAccount{keyPEM, account})
	if err != nil {
		return account, err
	}
	made, err := i.env.Keep.Create(ctx, i.accountKey(), string(value), 0)
	if other, _, ok := i.load(i.accountKey()); err == nil && !made && ok {
		return readAccount(other)
	}
	return account, err
}

func readAccount(value string) (acme.Account, error) {
	var k keptAccount
	damaged := errors.New("the stored account is damaged: delete its row in /acme_storage")
	if json.Unmarshal([]byte(value), &k) != nil {
		return acme.Account{}, damaged
	}
	block, _ := pem.Decode([]byte(k.Key))
	if block == nil {
		return acme.Account{}, damaged
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return acme.Account{}, damaged
	}
	k.Accounts.PrivateKey = signer
	return k.Accounts, nil
}

// solver leaves the answers to challenges where all nodes find them.
type solver struct{ i *instance }

// Present implements acmez.Solver.
func (s solver) Present(ctx context.Context, c acme.Challenge) error {
	return s.i.env.Keep.Put(ctx, challengeKey(c.Token), c.KeyAuthorization, time.Hour)
}

// Wait implements acmez.Waiter.
func (s solver) Wait(ctx context.Context, _ acme.Challenge) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(visibleDelay):
		return nil
	}
}

// CleanUp implements acmez.Solver.
func (s solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.i.env.Keep.Delete(ctx, challengeKey(c.Token))
}

func httpClient(roots *x509.CertPool) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 20 * time.Second, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: 30 * time.Second,
	}}
}

package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"concord/proxy/plugin"
)

// Orders is the plugin as an operator sees it: what Kong's has in the Admin API.
type Orders struct {
	mu   sync.Mutex
	live []*instance
}

// New makes Orders; their Plugin is what serves.
func New() *Orders { return &Orders{} }

// Plugin is the acme plugin.
func (o *Orders) Plugin() plugin.Plugin { return newPlugin(o) }

func (o *Orders) add(i *instance) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = append(o.live, i)
}

func (o *Orders) remove(i *instance) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = slices.DeleteFunc(o.live, func(l *instance) bool { return l == i })
}

// off says that the plugin is not configured.
type off struct{}

func (off) Error() string { return "the acme plugin is not configured" }

// NotFound marks the error for the Admin API.
func (off) NotFound() bool { return true }

func (o *Orders) now() (*instance, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.live) == 0 {
		return nil, off{}
	}
	return o.live[len(o.live)-1], nil
}

func (o *Orders) forName(name string) (*instance, string, error) {
	i, err := o.now()
	if err != nil {
		return nil, "", err
	}
	if name = strings.TrimSuffix(strings.ToLower(name), "."); !i.allowed(name) {
		return nil, "", errors.New("the name is not among the domains of the acme plugin")
	}
	return i, name, nil
}

// Obtain gets a certificate for a name, unless there is one that is not due, and returns when it is there. A failure a while ago does not keep it from
// trying.
func (o *Orders) Obtain(ctx context.Context, name string) error {
	i, name, err := o.forName(name)
	if err != nil {
		return err
	}
	if i.env.Keep == nil {
		return errors.New("nothing can be stored")
	}
	return i.obtain(ctx, name, true)
}

// Test asks for a challenge that there is not, by the name's own address, as an ACME server would: what answers must be this cluster.
func (o *Orders) Test(ctx context.Context, name string) error {
	i, name, err := o.forName(name)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+challenges+"x", nil)
	if err != nil {
		return err
	}
	res, err := i.client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusNotFound:
		return fmt.Errorf("unexpected status code %d, want 404", res.StatusCode)
	case string(b) != notFound:
		return errors.New("another server answers: unexpected response")
	}
	return nil
}

// Renew begins to renew certificates that are due.
func (o *Orders) Renew() error {
	i, err := o.now()
	if err == nil {
		i.renew()
	}
	return err
}

// Certificate is one that is kept, as Kong shows it.
type Certificate struct {
	Host         string `json:"host"`
	Digest       string `json:"digest"` // SHA-256
	IssuerCN     string `json:"issuer_cn"`
	NotBefore    string `json:"not_before"`
	NotAfter     string `json:"not_after"`
	Valid        bool   `json:"valid"`
	SerialNumber string `json:"serial_number"`
	PubkeyType   string `json:"pubkey_type"`
}

// Certificates lists those that are kept, by name, or that of one name.
func (o *Orders) Certificates(name string) ([]Certificate, error) {
	i, err := o.now()
	if err != nil {
		return nil, err
	}
	list := []Certificate{}
	for row := range i.rows.All(i.env.Store.View()) {
		host, ok := strings.CutPrefix(row.Val.Key, certificatePrefix)
		if !ok || name != "" && host != strings.ToLower(name) {
			continue
		}
		c, err := parse(row.Val.Value)
		if err != nil {
			continue // the log of whoever needs it says so
		}
		sum, leaf, now := sha256.Sum256(c.Leaf.Raw), c.Leaf, time.Now()
		kind := "unknown"
		switch leaf.PublicKey.(type) {
		case *rsa.PublicKey:
			kind = "rsaEncryption"
		case *ecdsa.PublicKey:
			kind = "id-ecPublicKey"
		case ed25519.PublicKey:
			kind = "ED25519"
		}
		list = append(list, Certificate{
			Host: host, Digest: hex.EncodeToString(sum[:]), IssuerCN: leaf.Issuer.CommonName, SerialNumber: leaf.SerialNumber.Text(16), PubkeyType: kind,
			NotBefore: leaf.NotBefore.UTC().Format(time.DateTime), NotAfter: leaf.NotAfter.UTC().Format(time.DateTime), Valid: now.After(leaf.NotBefore) && now.Before(leaf.NotAfter),
		})
	}
	slices.SortFunc(list, func(a, b Certificate) int { return strings.Compare(a.Host, b.Host) })
	return list, nil
}

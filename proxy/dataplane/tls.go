package dataplane

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/vault"
)

// tlsState is what the compiler keeps of certificates. Handshakes see only copies of names, which they find by one atomic load.
type tlsState struct {
	pairs    map[string]*pair // by id of the certificate
	bound    map[state.ID]string
	names    *btree.Map[string, *pair]    // by name of the SNI, wildcards included
	services map[state.ID]*serviceTLS     // those that speak TLS to their upstream
	users    map[string]map[state.ID]bool // services by what their configuration is made of, see serviceTLS.needs
	configs  map[configKey]*sharedConfig
}

// serviceTLS is what a service has taken from the tlsState.
type serviceTLS struct {
	key   configKey
	needs []string // ids of certificates, and the service's host as a name of an upstream
}

// configKey is what makes client configurations differ. Services with equal ones share it, and with it their connections
// and TLS sessions.
type configKey struct {
	client *pair // nil: the node's own certificate, if it has one
	verify bool
	depth  int
	roots  string // digests of the CA certificates; "": the node's bundle
}

type sharedConfig struct {
	config *tls.Config
	users  int
}

func newTLSState() tlsState {
	return tlsState{
		pairs: map[string]*pair{}, bound: map[state.ID]string{}, names: &btree.Map[string, *pair]{},
		services: map[state.ID]*serviceTLS{}, users: map[string]map[state.ID]bool{}, configs: map[configKey]*sharedConfig{},
	}
}

// pair is a certificate entity: a certificate with its key, and perhaps an alternative of another kind. It is parsed when it
// is first needed: thousands may be stored, and DryBuild has seen to it that they can be.
type pair struct {
	row  *entity.Certificate
	load func() ([]tls.Certificate, error)
}

func newPair(row *entity.Certificate, vaults *vault.Resolver) *pair {
	if inVault(row) {
		return &pair{row, fromVault(row, vaults)}
	}
	return &pair{row, sync.OnceValues(func() ([]tls.Certificate, error) { return parsePair(row) })}
}

// vaultLife is how long what a vault gave is used before it is asked again: a file may have been renewed.
const vaultLife = time.Minute

// inVault tells whether a certificate is kept elsewhere, at least in part.
func inVault(e *entity.Certificate) bool {
	return slices.ContainsFunc([]string{e.Cert, e.Key, e.CertAlt, e.KeyAlt}, schema.IsVaultReference)
}

// fromVault loads a certificate that is kept elsewhere. What was good stays in use while the vault has nothing better.
func fromVault(row *entity.Certificate, vaults *vault.Resolver) func() ([]tls.Certificate, error) {
	var (
		mu   sync.Mutex
		next time.Time
		list []tls.Certificate
		err  error
	)
	return func() ([]tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Now().Before(next) {
			return list, err
		}
		next = time.Now().Add(vaultLife)
		fresh, lost := resolvePair(row, vaults)
		if lost == nil || list == nil {
			list, err = fresh, lost
		}
		return list, err
	}
}

func resolvePair(row *entity.Certificate, vaults *vault.Resolver) ([]tls.Certificate, error) {
	clear := *row
	for _, field := range []*string{&clear.Cert, &clear.Key, &clear.CertAlt, &clear.KeyAlt} {
		if !schema.IsVaultReference(*field) {
			continue
		}
		value, err := vaults.Resolve(*field)
		if err != nil {
			return nil, err
		}
		*field = value
	}
	return parsePair(&clear)
}

// parsePair puts an ECDSA certificate first: it costs both sides less than RSA.
func parsePair(e *entity.Certificate) ([]tls.Certificate, error) {
	c, err := keyPair("cert", e.Cert, "key", e.Key)
	if err != nil {
		return nil, err
	}
	list := []tls.Certificate{c}
	if e.CertAlt == "" {
		return list, nil
	}
	if c, err = keyPair("cert_alt", e.CertAlt, "key_alt", e.KeyAlt); err != nil {
		return nil, err
	}
	if _, ok := c.PrivateKey.(*ecdsa.PrivateKey); ok {
		return []tls.Certificate{c, list[0]}, nil
	}
	return append(list, c), nil
}

func keyPair(certField, cert, keyField, key string) (tls.Certificate, error) {
	c, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return c, fmt.Errorf("%s: cannot be used with %s: %w", certField, keyField, err)
	}
	return c, nil
}

// choose returns the first certificate that the other side can deal with, else the first.
func (p *pair) choose(supported func(*tls.Certificate) error) (*tls.Certificate, error) {
	list, err := p.load()
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", p.row.ID, err)
	}
	for i := range list {
		if supported(&list[i]) == nil {
			return &list[i], nil
		}
	}
	return &list[0], nil
}

// Certificate is what to show to a client: of the SNI with exactly the name asked for, else "*.suffix", "prefix.*" or "*" (Kong);
// or that of a plugin, nil when there is none. It is meant for tls.Config.GetCertificate.
func (c *Compiler) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	names := c.names.Load()
	name := strings.ToLower(hello.ServerName)
	candidates := [4]string{name, "", "", "*"}
	if i := strings.IndexByte(name, '.'); i >= 0 {
		candidates[1], candidates[2] = "*"+name[i:], name[:strings.LastIndexByte(name, '.')+1]+"*"
	}
	for _, n := range candidates {
		p, ok := names.Get(n)
		if !ok {
			continue
		}
		nameless := *hello
		nameless.ServerName = "" // whether the certificate bears the SNI's name is the administrator's business
		found, err := p.choose(nameless.SupportsCertificate)
		if err != nil {
			c.report("certificate", p.row.ID, err)
		}
		return found, err
	}
	return c.sourced(hello), nil
}

// applyCertificates brings certificates and SNIs up to date and adds to p the services that have to be built again.
func (c *Compiler) applyCertificates(p *pending) {
	t := &c.tls
	if p.reset {
		*t = newTLSState()
		for row := range c.tables.certificates.All(p.view) {
			note(&p.certificates, row.ID)
		}
		for row := range c.tables.snis.All(p.view) {
			note(&p.snis, row.ID)
		}
	}
	for id := range p.certificates {
		c.yield()
		key := id.String()
		row, ok := c.tables.certificates.Get(p.view, id)
		old := t.pairs[key]
		switch {
		case !ok:
			delete(t.pairs, key)
		case old == nil || !samePair(old.row, &row.Val): // tags, say, are no reason to shake hands again
			t.pairs[key] = newPair(&row.Val, c.vaults)
		default:
			continue
		}
		c.report("certificate", key, nil)
		note(&p.needs, key)
		for up := range c.tables.upstreams.Scan(p.view, "client_certificate", key) { // their probes
			note(&p.upstreams, up.Val.ID)
		}
		for sni := range c.tables.snis.Scan(p.view, "certificate", key) {
			note(&p.snis, sni.ID)
		}
	}
	for id := range p.snis { // all old names before the new ones: two SNIs may have exchanged theirs
		t.names.Delete(t.bound[id])
		delete(t.bound, id)
	}
	for id := range p.snis {
		if row, ok := c.tables.snis.Get(p.view, id); ok {
			if pair := t.pairs[row.Val.Certificate.ID]; pair != nil {
				t.bound[id] = strings.ToLower(row.Val.Name)
				t.names.Set(t.bound[id], pair)
			}
		}
	}
	if p.snis != nil || p.reset {
		c.names.Store(t.names.Copy())
	}
	for key := range p.needs {
		for service := range t.users[key] {
			note(&p.services, service)
		}
	}
}

func samePair(a, b *entity.Certificate) bool {
	return a.Cert == b.Cert && a.Key == b.Key && a.CertAlt == b.CertAlt && a.KeyAlt == b.KeyAlt
}

// useTLS returns the client configuration of a service, nil for one without TLS or (e is nil) that is gone.
func (c *Compiler) useTLS(v *state.View, id state.ID, e *entity.Service) *tls.Config {
	t := &c.tls
	old := t.services[id]
	delete(t.services, id)
	if old != nil {
		for _, need := range old.needs {
			if delete(t.users[need], id); len(t.users[need]) == 0 {
				delete(t.users, need)
			}
		}
	}
	var config *tls.Config
	if e != nil && (e.Protocol == "https" || e.Protocol == "grpcs" || e.Protocol == "tls") {
		next, roots := c.serviceTLS(v, e)
		t.services[id] = next
		for _, need := range next.needs {
			users := t.users[need]
			note(&users, id)
			t.users[need] = users
		}
		shared := t.configs[next.key]
		if shared == nil {
			shared = &sharedConfig{config: c.clientConfig(next.key, roots)}
			t.configs[next.key] = shared
		}
		shared.users++
		config = shared.config
	}
	if old != nil { // after the new one was taken: it may be the same
		if shared := t.configs[old.key]; shared.users > 1 {
			shared.users--
		} else {
			delete(t.configs, old.key)
		}
	}
	return config
}

// defaultDepth is how many intermediate certificates a chain may have unless tls_verify_depth says otherwise (nginx's
// proxy_ssl_verify_depth).
const defaultDepth = 1

// serviceTLS finds out what a service's configuration is made of.
func (c *Compiler) serviceTLS(v *state.View, e *entity.Service) (*serviceTLS, []*entity.CACertificate) {
	s := &serviceTLS{}
	client := refID(e.ClientCertificate)
	if client == "" {
		s.needs = append(s.needs, hostNeed(e.Host))
		if up, ok := c.tables.upstreams.By(v, "name", e.Host); ok {
			client = refID(up.Val.ClientCertificate)
		}
	}
	if client != "" {
		s.needs = append(s.needs, client)
		s.key.client = c.tls.pairs[client]
	}
	if e.TLSVerify == nil || !*e.TLSVerify {
		return s, nil
	}
	s.key.verify, s.key.depth = true, defaultDepth
	if e.TLSVerifyDepth != nil {
		s.key.depth = *e.TLSVerifyDepth
	}
	var roots []*entity.CACertificate
	var digests []string
	for _, id := range e.CACertificates {
		s.needs = append(s.needs, id)
		digest := "-" // of one that is gone: it must not open the door to the node's bundle
		if parsed, err := state.ParseID(id); err == nil {
			if row, ok := c.tables.cas.Get(v, parsed); ok {
				roots = append(roots, &row.Val)
				digest = row.Val.CertDigest
			}
		}
		digests = append(digests, digest)
	}
	slices.Sort(digests)
	s.key.roots = strings.Join(slices.Compact(digests), " ")
	return s, roots
}

// hostNeed is a service's dependency on the upstream of its host's name. It cannot be taken for an id.
func hostNeed(name string) string { return "host " + name }

// sessions is how many TLS sessions a client configuration keeps for resumption, one for each server name.
const sessions = 1024

func (c *Compiler) clientConfig(k configKey, roots []*entity.CACertificate) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(sessions),
		InsecureSkipVerify: !k.verify, //nolint:gosec // tls_verify is off unless the service says otherwise (Kong)
	}
	config.GetClientCertificate = c.showCertificate(k.client)
	if !k.verify {
		return config
	}
	if config.RootCAs = c.roots; k.roots != "" {
		config.RootCAs = x509.NewCertPool()
		for _, ca := range roots {
			if chain, err := entity.ParseCertificates(ca.Cert); err == nil { // one that is left out makes verification fail, not pass
				config.RootCAs.AddCert(chain[0])
			}
		}
	}
	config.VerifyConnection = func(s tls.ConnectionState) error { return checkDepth(s.VerifiedChains, k.depth) }
	return config
}

// showCertificate chooses what to show to a server that asks for a certificate: of client, or if it is nil the node's own; nil when there is none.
func (c *Compiler) showCertificate(client *pair) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	own := c.clientCertificate
	switch {
	case client != nil:
		return func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return client.choose(r.SupportsCertificate)
		}
	case own != nil:
		return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	}
	return nil
}

// checkDepth demands a chain with at most depth certificates between that of the server and that of the CA, which is how
// OpenSSL counts.
func checkDepth(chains [][]*x509.Certificate, depth int) error {
	shortest := -1
	for _, chain := range chains {
		if n := max(len(chain)-2, 0); shortest < 0 || n < shortest {
			shortest = n
		}
	}
	switch {
	case shortest < 0:
		return errors.New("the certificate of the upstream was not verified")
	case shortest > depth:
		return fmt.Errorf("the chain of the upstream's certificate has %d intermediate certificates, tls_verify_depth of the service allows %d", shortest, depth)
	}
	return nil
}

package dataplane

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/plugin"
)

// ClientRules say of which clients a certificate is asked in the handshake, by the name they ask for (SNI). They come from the
// plugins that need client certificates: the names are the SNIs of the routes that a plugin applies to, or all names when one of
// these routes has no SNIs (Kong). nil: nobody is asked. They never change.
type ClientRules struct {
	patterns map[string]*ClientRule // by name, "*.suffix", "prefix.*" or "*"
}

// ClientRule is what is said to the client when it is asked. Whether its certificate is any good is judged by the plugin.
type ClientRule struct {
	CAs    []string // ids of CA certificates, sorted
	SendDN bool     // whether their names are sent
	text   string
}

// key is equal for equal rules, and "" for none.
func (r *ClientRule) key() string {
	if r == nil {
		return ""
	}
	return r.text
}

func newClientRule(cas []string, send bool) *ClientRule {
	r := &ClientRule{CAs: slices.Clone(cas), SendDN: send}
	slices.Sort(r.CAs)
	r.CAs = slices.Compact(r.CAs)
	r.text = "asked " + strings.Join(r.CAs, " ")
	if send {
		r.text += " sent"
	}
	return r
}

// and is the rule for names to which both apply. Names of CAs are sent only if that leaves nobody out.
func (r *ClientRule) and(o *ClientRule) *ClientRule {
	if r.key() == o.key() || o == nil {
		return r
	}
	if r == nil {
		return o
	}
	return newClientRule(slices.Concat(r.CAs, o.CAs), r.SendDN && o.SendDN)
}

// maxName bounds what is looked up: no name in the DNS is longer (RFC 1035 §2.3.4).
const maxName = 255

// For is the rule for a server name or, without its port, a Host; nil when no certificate is asked for. All patterns that match count, and
// a wildcard stands for any number of labels, as for routes.
func (r *ClientRules) For(name string) *ClientRule {
	if r == nil {
		return nil
	}
	rule := r.patterns["*"]
	var memory [2 + maxName]byte
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName || name == "" {
		return rule
	}
	at := memory[1 : 1+len(name)] // leaves room for a "*" on both sides
	for i := range len(name) {
		at[i] = name[i]
		if 'A' <= name[i] && name[i] <= 'Z' {
			at[i] += 'a' - 'A'
		}
	}
	rule = rule.and(r.patterns[string(at)])
	for i, b := range at {
		if b != '.' {
			continue
		}
		before, after := memory[i], memory[i+2] // around the dot, which is at i+1
		memory[i] = '*'
		rule = rule.and(r.patterns[string(memory[i:1+len(name)])])
		memory[i], memory[i+2] = before, '*'
		rule = rule.and(r.patterns[string(memory[1:i+3])])
		memory[i+2] = after
	}
	return rule
}

// Misdirected tells whether a request for host came over a connection whose handshake was made under another rule than that of host: its
// client was asked for no certificate, or for another one (RFC 9110 §15.5.20).
func (r *ClientRules) Misdirected(sni, host string) bool {
	return r != nil && !strings.EqualFold(sni, host) && r.For(sni).key() != r.For(host).key()
}

// ClientRules are those of the snapshot.
func (s *Snapshot) ClientRules() *ClientRules { return s.rules }

// applyRules derives the rules anew when what they depend on may have changed.
func (c *Compiler) applyRules(v *state.View) {
	b := &c.built
	if len(b.askers) == 0 {
		b.rules = nil
		c.rules.Store(nil)
		return
	}
	rules := &ClientRules{patterns: map[string]*ClientRule{}}
	for _, s := range b.askers {
		add := func(name string) { rules.patterns[name] = s.asks.and(rules.patterns[name]) }
		ofRoute := func(r *entity.Route) {
			if len(r.SNIs) == 0 {
				add("*")
			}
			for _, name := range r.SNIs {
				add(strings.ToLower(strings.TrimSuffix(name, ".")))
			}
		}
		switch {
		case s.route != "":
			if id, err := state.ParseID(s.route); err == nil {
				if row, ok := c.tables.routes.Get(v, id); ok && s.applies(s.route, refID(row.Val.Service)) {
					ofRoute(&row.Val)
				}
			}
		case s.service != "":
			for row := range c.tables.routes.Scan(v, "service", s.service) {
				ofRoute(&row.Val)
			}
		default:
			add("*")
		}
	}
	b.rules = rules
	c.rules.Store(rules)
}

// asks is the rule of a plugin that needs client certificates, nil for the others.
func asks(instance plugin.Instance) *ClientRule {
	a, ok := instance.(plugin.CertificateAsker)
	if !ok {
		return nil
	}
	return newClientRule(a.ClientCAs())
}

// ConfigForClient is base for clients that are asked for a certificate, nil for the others. It is meant for
// tls.Config.GetConfigForClient.
func (c *Compiler) ConfigForClient(base *tls.Config, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	rule := c.rules.Load().For(hello.ServerName)
	if rule == nil {
		return nil, nil
	}
	asking := base.Clone()
	asking.ClientAuth = tls.RequestClientCert // what becomes of it is up to the plugin: a refusal in HTTP says why
	if rule.SendDN {
		asking.ClientCAs = c.pool(rule.CAs)
	}
	return asking, nil
}

// applySources takes over the plugins that have certificates.
func (c *Compiler) applySources() {
	var list []plugin.CertificateSource
	for _, s := range c.built.globals {
		if s.source != nil {
			list = append(list, s.source)
		}
	}
	c.sources.Store(&list)
}

// sourced is the certificate that a plugin has for a client, nil when none has.
func (c *Compiler) sourced(hello *tls.ClientHelloInfo) *tls.Certificate {
	for _, s := range *c.sources.Load() {
		if found := s.Certificate(hello); found != nil {
			return found
		}
	}
	return nil
}

// pool is the CA certificates that there are.
func (c *Compiler) pool(ids []string) *x509.CertPool {
	pool, v := x509.NewCertPool(), c.store.View()
	for _, id := range ids {
		if parsed, err := state.ParseID(id); err == nil {
			if row, ok := c.tables.cas.Get(v, parsed); ok {
				pool.AppendCertsFromPEM([]byte(row.Val.Cert))
			}
		}
	}
	return pool
}

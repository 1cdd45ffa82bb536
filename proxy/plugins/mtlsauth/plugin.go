// Package mtlsauth authenticates clients by the certificate they show in the TLS handshake. Its settings are those of Kong's plugin of
// that name, as far as they make sense without revocation checks.
//
// The handshake only asks for a certificate, as the data plane's rules have it; here it is verified, for each request, against the CA
// certificates of the configuration as they are now. So neither a connection nor a resumed session outlives the trust in its CA.
package mtlsauth

import (
	"context"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the mtls-auth plugin.
func Plugin() plugin.Plugin {
	one := 1
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "mtls-auth", Priority: 1600, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "ca_certificates", Type: schema.Array, Required: true, LenMin: &one, Elem: &schema.Field{Type: schema.String, UUID: true, Ref: "ca_certificates"},
					Description: "Ids of the CA certificates that a client's certificate must come from."},
				{Name: "skip_consumer_lookup", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether a verified certificate is enough, without a consumer for it. Its names go upstream in X-Client-Cert-DN and X-Client-Cert-SAN."},
				{Name: "consumer_by", Type: schema.Array, Default: []any{"username", "custom_id"}, Elem: &schema.Field{Type: schema.String, OneOf: []any{"username", "custom_id"}},
					Description: "Which fields of consumers are compared with the certificate's alternative names and then its common name."},
				{Name: "default_consumer", Type: schema.String,
					Description: "Id or username of the consumer of verified certificates without one of their own."},
				{Name: "anonymous", Type: schema.String,
					Description: "Id or username of the consumer that requests without a good certificate are given to."},
				{Name: "authenticated_group_by", Type: schema.String, Default: "CN", OneOf: []any{"CN", "DN"},
					Description: "What of the subject becomes the authenticated group when skip_consumer_lookup is on; null: nothing."},
				{Name: "allow_partial_chain", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether a chain may end at a CA certificate that is not self-signed."},
				{Name: "send_ca_dn", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether clients are told in the handshake which CAs are accepted."},
				{Name: "cert_cache_ttl", Type: schema.Number, Required: true, Default: 60000.0, Between: &[2]float64{0, 86400000},
					Description: "For how many milliseconds the verification of a certificate is remembered, unless a CA changes."},
				{Name: "cache_ttl", Type: schema.Number, Required: true, Default: 60.0, Description: "Without effect: consumers are found in memory."},
				{Name: "revocation_check_mode", Type: schema.String, Default: "SKIP", Check: func(v any) string {
					if v != "SKIP" {
						return "must be SKIP: this gateway does not check whether certificates were revoked"
					}
					return ""
				}, Description: "Only SKIP: revocation is not checked."},
				{Name: "http_timeout", Type: schema.Number, Default: 30000.0, Description: "Without effect, as are the proxies: nobody is asked about revocation."},
				schema.Host("http_proxy_host"), schema.Port("http_proxy_port"), schema.Host("https_proxy_host"), schema.Port("https_proxy_port"),
			}},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			i := &instance{
				config: *c, auth: plugin.NewAuth(env, c.Anonymous), verifier: newVerifier(env, c),
				consumers: state.TableOf[entity.Consumer](env.Store),
			}
			return i, nil
		}),
	}
}

type config struct {
	CACertificates       []string `json:"ca_certificates"`
	SkipConsumerLookup   bool     `json:"skip_consumer_lookup"`
	ConsumerBy           []string `json:"consumer_by"`
	DefaultConsumer      string   `json:"default_consumer"`
	Anonymous            string   `json:"anonymous"`
	AuthenticatedGroupBy string   `json:"authenticated_group_by"`
	AllowPartialChain    bool     `json:"allow_partial_chain"`
	SendCADN             bool     `json:"send_ca_dn"`
	CertCacheTTL         float64  `json:"cert_cache_ttl"` // milliseconds
}

type instance struct {
	config
	auth      *plugin.Auth
	verifier  *verifier
	consumers *state.Table[entity.Consumer]
}

// ClientCAs implements plugin.CertificateAsker.
func (i *instance) ClientCAs() ([]string, bool) { return i.CACertificates, i.SendCADN }

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error { return i.auth.Access(x, i) }

// The headers for upstreams when there is no consumer.
const (
	headerDN  = "X-Client-Cert-DN"
	headerSAN = "X-Client-Cert-SAN"
)

// Authenticate implements plugin.Authenticator.
func (i *instance) Authenticate(x *exchange.Exchange, v *state.View) *plugin.Exit {
	c := &x.Conn
	switch {
	case c.TLS != nil && !c.CertificateAsked:
		// The handshake is older than the rule, or was made for another name: a new connection can do better (RFC 9110 §15.5.20).
		return plugin.Refuse(421, plugin.Message(421), "")
	case c.TLS == nil || len(c.TLS.PeerCertificates) == 0:
		return plugin.Refuse(401, "No required TLS certificate was sent", "")
	}
	s := i.verifier.verify(v, c.TLS.PeerCertificates)
	if s == nil {
		return plugin.Refuse(401, "TLS certificate failed verification", "")
	}
	if i.SkipConsumerLookup {
		x.SetCredential(exchange.Credential{ID: s.digest, Identifier: s.dn, Kind: "mtls-auth"})
		x.Request.Header.Add(headerDN, s.dn)
		if s.san != "" {
			x.Request.Header.Add(headerSAN, s.san)
		}
		if group := s.group(i.AuthenticatedGroupBy); group != "" {
			x.Groups = append(x.Groups, group)
		}
		return nil
	}
	credential := exchange.Credential{ID: s.digest, Identifier: s.dn, Kind: "mtls-auth"}
	for _, name := range s.names {
		for _, by := range i.ConsumerBy {
			if row, ok := i.consumers.By(v, by, name); ok {
				credential.Identifier = printable(name)
				if i.auth.Accept(x, v, entity.Ref{ID: row.Val.ID}, credential) {
					return nil
				}
			}
		}
	}
	if id, ok := i.defaultConsumer(v); ok && i.auth.Accept(x, v, entity.Ref{ID: id}, credential) {
		return nil
	}
	return plugin.Refuse(401, plugin.Message(401), "")
}

func (i *instance) defaultConsumer(v *state.View) (string, bool) {
	if i.DefaultConsumer == "" {
		return "", false
	}
	if id, err := state.ParseID(i.DefaultConsumer); err == nil {
		if row, ok := i.consumers.Get(v, id); ok {
			return row.Val.ID, true
		}
	}
	row, ok := i.consumers.By(v, "username", i.DefaultConsumer)
	return row.Val.ID, ok
}

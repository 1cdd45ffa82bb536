// Package acme gets certificates from an ACME server (RFC 8555) for names that clients ask for, and renews them. Its settings are those
// of Kong's plugin of that name.
//
// Accounts, certificates, challenges and locks are rows of acme_storage: whichever node a client, or the ACME server, comes to
// has them, and each certificate is ordered by one node. Orders run in the background; meanwhile the default certificate is shown.
package acme

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

func newPlugin(o *Orders) plugin.Plugin {
	return plugin.Plugin{Info: plugin.Info{
		Name: "acme", Priority: 1705, Scopes: plugin.ScopeGlobal,
		Config: schema.Field{Fields: fields()},
		Checks: []schema.Check{schema.Conditional{
			IfField: "config.api_uri", IfMatch: schema.Field{Pattern: `^https://[a-z0-9-]+\.api\.letsencrypt\.org(/|$)`},
			ThenField: "config.tos_accepted", ThenMatch: schema.Field{Equal: true},
			Err: "terms of service must be accepted, see https://letsencrypt.org/repository/",
		}},
	}, New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
		ctx, stop := context.WithCancel(context.Background())
		i := &instance{
			config: *c, orders: o, env: env, rows: state.TableOf[entity.ACMEStorage](env.Store), ctx: ctx, stop: stop,
			shown: map[string]*shown{}, ordering: map[string]bool{}, client: httpClient(env.Roots),
		}
		o.add(i)
		i.background.Go(i.renewals)
		return i, nil
	})}
}

type config struct {
	AccountEmail       string   `json:"account_email"`
	APIURI             string   `json:"api_uri"`
	TOSAccepted        bool     `json:"tos_accepted"`
	EABKID             string   `json:"eab_kid"`
	EABHMACKey         string   `json:"eab_hmac_key"`
	CertType           string   `json:"cert_type"`
	RSAKeySize         float64  `json:"rsa_key_size"`
	RenewThresholdDays float64  `json:"renew_threshold_days"`
	Domains            []string `json:"domains"`
	AllowAnyDomain     bool     `json:"allow_any_domain"`
	FailBackoffMinutes float64  `json:"fail_backoff_minutes"`
	PreferredChain     string   `json:"preferred_chain"`
}

type instance struct {
	config
	orders *Orders
	env    plugin.Env
	rows   *state.Table[entity.ACMEStorage]
	client *http.Client

	ctx        context.Context
	stop       context.CancelFunc
	background sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	shown    map[string]*shown // certificates by name, as they were last parsed
	ordering map[string]bool   // names for which this node has an order under way
}

// Stop implements plugin.Stopper: challenges are still answered, nothing is ordered.
func (i *instance) Stop() {
	i.orders.remove(i)
	i.mu.Lock()
	i.closed = true
	i.mu.Unlock()
	i.stop()
}

// Close implements plugin.Closer.
func (i *instance) Close(context.Context) error {
	i.Stop()
	i.background.Wait()
	return nil
}

// allowed tells whether certificates are got for a name: a host name with at least two labels that is among the domains.
func (i *instance) allowed(name string) bool {
	if len(name) > 253 || !strings.Contains(name, ".") || strings.HasPrefix(name, ".") || strings.Contains(name, "..") {
		return false
	}
	for _, b := range []byte(name) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && b != '.' {
			return false
		}
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; last == "" || last[0] >= '0' && last[0] <= '9' { // an address
		return false
	}
	if i.AllowAnyDomain {
		return true
	}
	for _, d := range i.Domains {
		d = strings.ToLower(d)
		if suffix, wild := strings.CutPrefix(d, "*"); d == name || wild && strings.HasSuffix(name, suffix) && len(name) > len(suffix) {
			return true
		}
	}
	return false
}

// challenges is the path of http-01 challenges (RFC 8555 §8.3).
const challenges = "/.well-known/acme-challenge/"

// notFound is the answer to a challenge that there is not (Kong).
const notFound = "Not found\n"

// Rewrite implements plugin.Rewriter: challenges are answered before routing, so that no route is needed for them, on any node.
func (i *instance) Rewrite(x *exchange.Exchange) error {
	token, ok := strings.CutPrefix(x.Request.Path, challenges)
	if !ok {
		return nil
	}
	host, _, _ := strings.Cut(strings.ToLower(x.Request.Host), ":")
	if !i.allowed(host) {
		return nil
	}
	answer := []exchange.Field{{Name: "Content-Type", Value: "text/plain; charset=utf-8"}}
	if value, _, ok := i.load(challengeKey(token)); ok {
		return &plugin.Exit{Status: 200, Body: []byte(value), Header: answer}
	}
	return &plugin.Exit{Status: 404, Body: []byte(notFound), Header: answer}
}

// load reads a row that has not expired, with the index it was written at.
func (i *instance) load(key string) (string, uint64, bool) {
	row, ok := i.rows.By(i.env.Store.View(), "key", key)
	if !ok || row.ExpiresAt != 0 && row.ExpiresAt <= time.Now().UnixMilli() {
		return "", 0, false
	}
	return row.Val.Value, row.Index, true
}

// renewEvery is how often a node looks for certificates that are due; the first time soon after its start.
const renewEvery = time.Hour

func (i *instance) renewals() {
	for wait := time.Minute; ; wait = renewEvery {
		t := time.NewTimer(wait/2 + rand.N(wait)) // so that the nodes do not all look at once
		select {
		case <-i.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		i.renew()
	}
}

// renew orders anew what is due.
func (i *instance) renew() {
	for row := range i.rows.All(i.env.Store.View()) {
		name, ok := strings.CutPrefix(row.Val.Key, certificatePrefix)
		if !ok || !i.allowed(name) {
			continue
		}
		if c, err := parse(row.Val.Value); err != nil || i.due(c) {
			i.order(name)
		}
	}
}

func (i *instance) log(level slog.Level, msg, name string, args ...any) {
	i.env.Log.Log(i.ctx, level, "acme: "+msg, append([]any{"name", name, "server", i.APIURI}, args...)...)
}

func fields() []schema.Field {
	only := func(why string, good ...any) func(any) string {
		return func(v any) string {
			for _, g := range good {
				if v == g {
					return ""
				}
			}
			return fmt.Sprintf("%v %s", v, why)
		}
	}
	given := func(v any) string {
		if text, ok := v.(string); ok && schema.IsVaultReference(text) {
			return "must be the value itself: references to vaults are resolved in certificates only"
		}
		return ""
	}
	return []schema.Field{
		{Name: "account_email", Type: schema.String, Required: true, Pattern: "^[^@ ]+@[^@ ]+$", Description: "Where the ACME server may write to."},
		{Name: "account_key", Type: schema.Map, Keys: &schema.Field{Type: schema.String}, Elem: &schema.Field{Type: schema.String},
			Check: func(any) string { return "is not supported: the cluster makes and keeps the key of the account itself" }},
		{Name: "api_uri", Type: schema.String, Default: letsEncrypt, Check: schema.URL("").Check, Description: "Directory of the ACME server."},
		{Name: "tos_accepted", Type: schema.Boolean, Default: false, Description: "Whether you agree to the server's terms of service."},
		{Name: "eab_kid", Type: schema.String, Secret: true, Check: given, Description: "Key id of an external account (RFC 8555 §7.3.4)."},
		{Name: "eab_hmac_key", Type: schema.String, Secret: true, Check: given, Description: "Its MAC key, in base64url."},
		{Name: "cert_type", Type: schema.String, Default: "rsa", OneOf: []any{"rsa", "ecc"}, Description: "Kind of the certificates' keys."},
		{Name: "rsa_key_size", Type: schema.Number, Default: 4096.0, OneOf: []any{2048.0, 3072.0, 4096.0}, Description: "Bits of RSA keys."},
		{Name: "renew_threshold_days", Type: schema.Number, Default: 14.0, Description: "Days before its end at which a certificate is renewed; at the latest in the last third of its life."},
		{Name: "domains", Type: schema.Array, Elem: &schema.Field{Type: schema.String, Check: schema.WildcardHost("").Check}, Description: "Names to get certificates for; * may stand for the first labels."},
		{Name: "allow_any_domain", Type: schema.Boolean, Default: false, Description: "Whether certificates are got for every name that a client asks for. Clients can then cause orders as they like."},
		{Name: "fail_backoff_minutes", Type: schema.Number, Default: 5.0, Description: "Minutes until a name is tried again after a failure, by any node."},
		{Name: "storage", Type: schema.String, Default: "shm", Check: only("is not supported: with kong, and with shm, certificates are kept by the cluster", "kong", "shm"),
			Description: "kong and shm are the same here: rows of the cluster."},
		{Name: "storage_config", Type: schema.RecordT, Fields: []schema.Field{
			{Name: "shm", Type: schema.RecordT, Fields: []schema.Field{{Name: "shm_name", Type: schema.String, Default: "kong"}}},
			{Name: "kong", Type: schema.RecordT, Nullable: true, Fields: []schema.Field{}},
		}, Description: "Without effect."},
		{Name: "preferred_chain", Type: schema.String, Description: "Common name of the issuer at the end of the chain, if the server offers several."},
		{Name: "enable_ipv4_common_name", Type: schema.Boolean, Default: true, Description: "Without effect: an address is never the name of a handshake."},
	}
}

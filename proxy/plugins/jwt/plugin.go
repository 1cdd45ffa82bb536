// Package jwt authenticates requests by JSON Web Tokens that consumers sign with their credential's key.
//
// Parsing is strict and bounded, verification uses the standard library or its arithmetic (see pkcs1), and the algorithm and the key are
// always those of the credential. The package fetches nothing and issues nothing.
package jwt

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the jwt plugin. All its instances share the parsed keys and the memory of verified tokens.
func Plugin() plugin.Plugin {
	var once sync.Once
	var keys *plugin.Derived[entity.JWTSecret, verifier]
	var known *cache
	var instances atomic.Uint64
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "jwt", Priority: 1450, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "uri_param_names", Type: schema.Set, Elem: &schema.Field{Type: schema.String}, Default: []any{"jwt"},
					Description: "Query parameters that are inspected for tokens."},
				{Name: "cookie_names", Type: schema.Set, Elem: &schema.Field{Type: schema.String}, Default: []any{},
					Description: "Cookies that are inspected for tokens."},
				{Name: "key_claim_name", Type: schema.String, Default: "iss",
					Description: "The claim, or else the header parameter, that holds the key of the credential."},
				{Name: "secret_is_base64", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether the credentials' secrets are base64-encoded."},
				{Name: "claims_to_verify", Type: schema.Set, Elem: &schema.Field{Type: schema.String, OneOf: []any{"exp", "nbf"}},
					Description: "Registered claims that must be present and valid."},
				{Name: "anonymous", Type: schema.String,
					Description: "Id or username of the consumer that requests without a valid token are given to."},
				{Name: "run_on_preflight", Type: schema.Boolean, Required: true, Default: true,
					Description: "Whether OPTIONS requests need a token."},
				{Name: "maximum_expiration", Type: schema.Number, Default: 0.0, Between: &[2]float64{0, 31536000},
					Description: "Longest time, in seconds, that a token may still be valid. 0: any."},
				{Name: "header_names", Type: schema.Set, Elem: &schema.Field{Type: schema.String}, Default: []any{"authorization"},
					Description: "Headers that are inspected for bearer tokens."},
				{Name: "realm", Type: schema.String, Description: "Realm of the WWW-Authenticate header."},
			}},
			Checks: []schema.Check{schema.Conditional{
				IfField: "config.maximum_expiration", IfMatch: schema.Field{GT: new(float64)},
				ThenField: "config.claims_to_verify", ThenMatch: schema.Field{Contains: "exp"},
			}},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, cfg plugin.Config, c *config) (plugin.Instance, error) {
			once.Do(func() {
				id := func(c *entity.JWTSecret) string { return c.ID }
				keys = plugin.NewDerived(env.Store, id, newVerifier, nil)
				known = newCache()
			})
			i := newInstance(env, cfg, c, keys)
			i.known, i.number = known, instances.Add(1)
			return i, nil
		}),
	}
}

type config struct {
	URIParamNames     []string `json:"uri_param_names"`
	CookieNames       []string `json:"cookie_names"`
	HeaderNames       []string `json:"header_names"`
	KeyClaimName      string   `json:"key_claim_name"`
	SecretIsBase64    bool     `json:"secret_is_base64"`
	ClaimsToVerify    []string `json:"claims_to_verify"`
	Anonymous         string   `json:"anonymous"`
	RunOnPreflight    bool     `json:"run_on_preflight"`
	MaximumExpiration float64  `json:"maximum_expiration"`
	Realm             string   `json:"realm"`
}

type instance struct {
	config
	auth      *plugin.Auth
	secrets   *state.Table[entity.JWTSecret]
	consumers *state.Table[entity.Consumer]
	keys      *plugin.Derived[entity.JWTSecret, verifier]
	tokens    sync.Pool // *token
	known     *cache
	number    uint64 // of the instance

	challenge string // without a token
	invalid   string // with a bad one

	log      *slog.Logger
	lastHint atomic.Int64 // Unix seconds
}

func newInstance(env plugin.Env, cfg plugin.Config, c *config, keys *plugin.Derived[entity.JWTSecret, verifier]) *instance {
	i := &instance{
		config: *c, auth: plugin.NewAuth(env, c.Anonymous), keys: keys,
		secrets: state.TableOf[entity.JWTSecret](env.Store), consumers: state.TableOf[entity.Consumer](env.Store),
		tokens: sync.Pool{New: func() any { return new(token) }},
		log:    env.Log.With("plugin", "jwt", "plugin_id", cfg.ID),
	}
	i.challenge = "Bearer"
	if c.Realm != "" {
		i.challenge += ` realm="` + c.Realm + `"`
	}
	// Without a comma, as Kong 3.9 writes it.
	i.invalid = i.challenge + ` error="invalid_token"`
	return i
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	if !i.RunOnPreflight && x.Request.Method == "OPTIONS" {
		return nil
	}
	return i.auth.Access(x, i)
}

// Authenticate implements plugin.Authenticator.
func (i *instance) Authenticate(x *exchange.Exchange, v *state.View) *plugin.Exit {
	text, several := i.find(x)
	switch {
	case several:
		return i.refuse("Multiple tokens provided")
	case text == "":
		return exit(map[string]string{"message": "Unauthorized"}, i.challenge)
	}
	if k := i.known.get(i.number, text); k != nil && k.holds(i, v) {
		return i.admit(x, k)
	}
	t := i.tokens.Get().(*token)
	defer i.tokens.Put(t)
	if err := t.parse(text); err != nil {
		return i.refuse("Bad token; " + err.Error())
	}

	name := find(t.claims, i.KeyClaimName)
	if name == nil {
		name = find(t.header, i.KeyClaimName)
	}
	if name == nil {
		i.hintNoKey(t)
		return i.refuse("No mandatory '" + i.KeyClaimName + "' in claims")
	}
	if name.kind != kindString || len(name.text()) == 0 {
		return i.refuse("Invalid '" + i.KeyClaimName + "' in claims")
	}
	// The table compares the key and does not keep it.
	key := unsafe.String(unsafe.SliceData(name.text()), len(name.text()))
	row, ok := i.secrets.By(v, "key", key)
	if !ok {
		i.hintUnknownKey(v, t, key)
		return i.refuse("No credentials found for given '" + i.KeyClaimName + "'")
	}
	cred := &row.Val
	ver := i.keys.Of(v, cred.ID, cred)
	if ver.alg != t.alg {
		return i.refuse("Invalid algorithm")
	}
	if !ver.usable(i.SecretIsBase64) {
		i.hint("credential has no usable key", "credential", cred.ID, "reason", ver.fault)
		return i.refuse("Invalid key/secret")
	}
	if !ver.verify(t.signed, t.sig, i.SecretIsBase64) {
		return i.refuse("Invalid signature")
	}
	consumer, ok := i.auth.Consumer(v, cred.Consumer)
	if !ok {
		return exit(map[string]string{"message": "Could not find consumer for '" + i.KeyClaimName + "=" + cred.Key + "'"}, "")
	}
	good := &verified{
		instance: i.number, text: text, times: t.times(),
		credential: exchange.Credential{ID: cred.ID, Identifier: cred.Key, Kind: "jwt"}, consumer: consumer.Val,
		rows: rows{version{row.ID, row.Index}, version{consumer.ID, consumer.Index}},
	}
	exit := i.admit(x, good)
	if exit == nil {
		i.known.put(good, v)
	}
	return exit
}

// admit judges each time what a good signature does not say: whether it is the token's time.
func (i *instance) admit(x *exchange.Exchange, t *verified) *plugin.Exit {
	if e := i.checkTimes(x, &t.times); e != nil {
		return e
	}
	i.auth.AcceptAs(x, &t.consumer, t.credential)
	return nil
}

// find looks for tokens in query, cookies and headers, as Kong does, and tells whether there are several different ones. Beyond
// Kong it looks at all lines of a header: a token that is not verified must not reach the upstream beside one that is.
func (i *instance) find(x *exchange.Exchange) (text string, several bool) {
	add := func(t string) {
		if t != "" && t != text {
			several = text != ""
			text = t
		}
	}
	for _, name := range i.URIParamNames {
		for t := range x.Request.QueryValues(name) {
			if add(t); several {
				return text, true
			}
		}
	}
	for _, name := range i.CookieNames {
		t, _ := x.Request.Cookie(name)
		if add(t); several {
			return text, true
		}
	}
	for _, name := range i.HeaderNames {
		for value := range x.Request.Header.Values(name) {
			if add(bearer(value)); several {
				return text, true
			}
		}
	}
	return text, false
}

// bearer is the token of a header value with the scheme Bearer or bearer, "" for any other.
func bearer(value string) string {
	value = trimBlanks(value)
	if len(value) < 8 || value[0]|0x20 != 'b' || value[1:6] != "earer" || value[6] != ' ' && value[6] != '\t' {
		return ""
	}
	return trimBlanks(value[7:])
}

func trimBlanks(s string) string {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

func (i *instance) refuse(message string) *plugin.Exit {
	return exit(map[string]string{"message": message}, i.invalid)
}

func exit(body map[string]string, challenge string) *plugin.Exit {
	e := &plugin.Exit{Status: 401, Body: body}
	if challenge != "" {
		e.Header = plugin.Challenge(challenge)
	}
	return e
}

// times are the claims that say when a token is good.
type times struct{ exp, nbf number }

// number is a claim that should be one.
type number struct {
	value float64
	ok    bool
}

func (t *token) times() (out times) {
	out.exp.value, out.exp.ok = find(t.claims, "exp").number()
	out.nbf.value, out.nbf.ok = find(t.claims, "nbf").number()
	return out
}

// checkTimes judges exp and nbf, without leeway.
func (i *instance) checkTimes(x *exchange.Exchange, t *times) *plugin.Exit {
	if len(i.ClaimsToVerify) == 0 && i.MaximumExpiration <= 0 {
		return nil
	}
	now := float64(x.Now().Unix())
	var bad map[string]string
	for _, name := range i.ClaimsToVerify {
		at := t.exp
		if name == "nbf" {
			at = t.nbf
		}
		fault := ""
		switch {
		case !at.ok:
			fault = "must be a number"
		case name == "exp" && at.value <= now:
			fault = "token expired"
		case name == "nbf" && at.value > now:
			fault = "token not valid yet"
		default:
			continue
		}
		if bad == nil {
			bad = make(map[string]string)
		}
		bad[name] = fault
	}
	if bad != nil {
		return exit(bad, i.invalid)
	}
	if i.MaximumExpiration > 0 && (!t.exp.ok || t.exp.value-now > i.MaximumExpiration) {
		return exit(map[string]string{"exp": "exceeds maximum allowed expiration"}, i.invalid)
	}
	return nil
}

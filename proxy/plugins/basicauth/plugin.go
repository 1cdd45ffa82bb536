// Package basicauth authenticates requests by user name and password (RFC 7617).
//
// Passwords are stored as Kong stores them: the SHA-1 digest of password and consumer id, made by the Admin API. The package only
// compares.
package basicauth

import (
	"context"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the basic-auth plugin.
func Plugin() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "basic-auth", Priority: 1100, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "anonymous", Type: schema.String,
					Description: "Id or username of the consumer that requests without valid credentials are given to."},
				{Name: "hide_credentials", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether the credentials are removed before the request is proxied."},
				{Name: "realm", Type: schema.String, Required: true, Default: "service",
					Description: "Realm of the WWW-Authenticate header."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			return &instance{
				auth:        plugin.NewAuth(env, c.Anonymous),
				credentials: state.TableOf[entity.BasicAuthCredential](env.Store),
				hide:        c.HideCredentials,
				challenge:   `Basic realm="` + c.Realm + `"`,
			}, nil
		}),
	}
}

type config struct {
	Anonymous       string `json:"anonymous"`
	HideCredentials bool   `json:"hide_credentials"`
	Realm           string `json:"realm"`
}

type instance struct {
	auth        *plugin.Auth
	credentials *state.Table[entity.BasicAuthCredential]
	hide        bool
	challenge   string
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error { return i.auth.Access(x, i) }

// Authenticate implements plugin.Authenticator. Proxy-Authorization comes first; Authorization is looked at only when the former
// names no known user (Kong's order).
func (i *instance) Authenticate(x *exchange.Exchange, v *state.View) *plugin.Exit {
	h := &x.Request.Header
	user, password, ok := decode(x, h.Get("Proxy-Authorization"))
	if i.hide {
		h.Del("Proxy-Authorization")
	}
	row, known := i.credential(v, user, ok)
	if !known {
		user, password, ok = decode(x, h.Get("Authorization"))
		if i.hide {
			h.Del("Authorization")
		}
		if row, known = i.credential(v, user, ok); !ok {
			return plugin.Refuse(401, "Unauthorized", i.challenge)
		}
	}
	// An unknown user costs the same work as a wrong password, so that names cannot be found out by timing.
	consumer, stored := nobody, noDigest
	if known {
		consumer, stored = row.Val.Consumer.ID, row.Val.Password
	}
	if !matches(password, consumer, stored) || !known ||
		!i.auth.Accept(x, v, row.Val.Consumer, exchange.Credential{ID: row.Val.ID, Identifier: row.Val.Username, Kind: "basic-auth"}) {
		return plugin.Refuse(401, "Unauthorized", i.challenge)
	}
	return nil
}

func (i *instance) credential(v *state.View, user string, ok bool) (state.Row[entity.BasicAuthCredential], bool) {
	if !ok {
		return state.Row[entity.BasicAuthCredential]{}, false
	}
	return i.credentials.By(v, "username", user)
}

// What an unknown user's password is compared with.
const (
	nobody   = "00000000-0000-0000-0000-000000000000"
	noDigest = "0000000000000000000000000000000000000000"
)

func matches(password, consumer, stored string) bool {
	var buf [128]byte
	sum := sha1.Sum(append(append(buf[:0], password...), consumer...))
	var text [2 * sha1.Size]byte
	hex.Encode(text[:], sum[:])
	return subtle.ConstantTimeCompare(text[:], []byte(stored)) == 1
}

// maxEncoded bounds the encoded credentials in bytes.
const maxEncoded = 4096

// decode reads "Basic <base64 of user:password>"; the user ends at the first colon (RFC 7617 §2).
func decode(x *exchange.Exchange, value string) (user, password string, ok bool) {
	value = strings.TrimLeft(value, " \t")
	if len(value) < 6 || value[0]|0x20 != 'b' || value[1:5] != "asic" {
		return "", "", false
	}
	value = strings.TrimRight(strings.Trim(value[5:], " \t"), "=")
	if len(value) > maxEncoded {
		return "", "", false
	}
	plain, err := base64.RawStdEncoding.AppendDecode(x.Scratch(), []byte(value))
	if err != nil {
		return "", "", false
	}
	user, password, ok = strings.Cut(x.Keep(plain), ":")
	return user, password, ok && user != ""
}

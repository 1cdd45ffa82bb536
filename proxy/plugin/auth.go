package plugin

import (
	"fmt"
	"log/slog"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/exchange"
)

// The headers that tell an upstream who the client is. Clients' own copies are removed before plugins run.
const (
	HeaderConsumerID           = "X-Consumer-ID"
	HeaderConsumerCustomID     = "X-Consumer-Custom-ID"
	HeaderConsumerUsername     = "X-Consumer-Username"
	HeaderCredentialIdentifier = "X-Credential-Identifier"
	HeaderAnonymous            = "X-Anonymous-Consumer"
	HeaderConsumerGroups       = "X-Consumer-Groups"
	HeaderAuthenticatedGroups  = "X-Authenticated-Groups"
)

// Authenticator is the part of an authentication plugin that differs: find a credential in the request and, if it is good, call
// Auth.Accept. The result says how to refuse the request; nil is success.
type Authenticator interface {
	Authenticate(x *exchange.Exchange, v *state.View) *Exit
}

// Auth is the part of all authentication plugins that is the same: Kong's AND (no anonymous consumer configured: every plugin
// must succeed, the last one gives the identity) and OR (an anonymous consumer configured: the plugin is skipped when
// another succeeded, and when this one answers 401 the request goes on as the anonymous consumer).
type Auth struct {
	store     *state.Store
	consumers *state.Table[entity.Consumer]
	log       *slog.Logger
	anonymous string // id or username; "": AND
	id        state.ID
	isID      bool
}

// NewAuth prepares it; anonymous is the plugin's setting of that name.
func NewAuth(env Env, anonymous string) *Auth {
	id, err := state.ParseID(anonymous)
	return &Auth{
		store: env.Store, consumers: state.TableOf[entity.Consumer](env.Store), log: env.Log,
		anonymous: anonymous, id: id, isID: err == nil,
	}
}

// Access runs the plugin's access phase on one view of the store.
func (a *Auth) Access(x *exchange.Exchange, how Authenticator) error {
	if a.anonymous != "" && x.Credential != nil {
		return nil
	}
	v := a.store.View()
	exit := how.Authenticate(x, v)
	if exit == nil {
		return nil
	}
	if a.anonymous == "" || exit.Status != 401 {
		return exit
	}
	c, ok := a.anonymousConsumer(v)
	if !ok {
		msg := fmt.Sprintf("anonymous consumer %s is configured but doesn't exist", a.anonymous)
		a.log.Error(msg)
		return Refuse(500, msg, "")
	}
	x.Credential = nil
	identify(x, &c.Val)
	x.Request.Header.Add(HeaderAnonymous, "true")
	return nil
}

func (a *Auth) anonymousConsumer(v *state.View) (state.Row[entity.Consumer], bool) {
	if a.isID {
		if row, ok := a.consumers.Get(v, a.id); ok {
			return row, true
		}
	}
	return a.consumers.By(v, "username", a.anonymous)
}

// Consumer finds the consumer that a credential names.
func (a *Auth) Consumer(v *state.View, ref entity.Ref) (row state.Row[entity.Consumer], ok bool) {
	if id, err := state.ParseID(ref.ID); err == nil {
		row, ok = a.consumers.Get(v, id)
	}
	return row, ok
}

// Accept gives the exchange the identity of a credential's consumer. It is false, and nothing is changed, when there is no such consumer.
func (a *Auth) Accept(x *exchange.Exchange, v *state.View, consumer entity.Ref, c exchange.Credential) bool {
	row, ok := a.Consumer(v, consumer)
	if ok {
		a.AcceptAs(x, &row.Val, c)
	}
	return ok
}

// AcceptAs is Accept for a consumer that has been found with the credential.
func (*Auth) AcceptAs(x *exchange.Exchange, consumer *entity.Consumer, c exchange.Credential) {
	x.SetCredential(c)
	identify(x, consumer)
	x.Request.Header.Add(HeaderCredentialIdentifier, c.Identifier)
}

// identity are the headers that one identity sets and the next one replaces.
var identity = exchange.NewNameSet(HeaderConsumerID, HeaderConsumerCustomID, HeaderConsumerUsername, HeaderCredentialIdentifier, HeaderAnonymous)

// identify makes c the consumer. What else belongs to an identity is removed.
func identify(x *exchange.Exchange, c *entity.Consumer) {
	x.SetConsumer(c)
	h := &x.Request.Header
	h.DelSet(identity)
	h.Add(HeaderConsumerID, c.ID)
	if c.CustomID != "" {
		h.Add(HeaderConsumerCustomID, c.CustomID)
	}
	if c.Username != "" {
		h.Add(HeaderConsumerUsername, c.Username)
	}
}

// Challenge is a WWW-Authenticate header.
func Challenge(value string) []exchange.Field {
	return []exchange.Field{{Name: "WWW-Authenticate", Value: value}}
}

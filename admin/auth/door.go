package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"concord/admin/service"
)

// What an address may get wrong: a burst, then one attempt every so often. More than addresses at a time are not remembered.
const (
	burst     = 10
	refill    = 5 * time.Second
	addresses = 4096
)

// Tokens knows admin tokens; *service.Service does.
type Tokens interface {
	// Authenticate returns the id of a valid token, or a *service.Error of the kind Unauthenticated.
	Authenticate(ctx context.Context, token string) (string, error)
	HasTokens() bool
}

// DoorOptions of NewDoor. Tokens is required.
type DoorOptions struct {
	Tokens Tokens
	Log    *slog.Logger
	Now    func() time.Time // default time.Now
}

// Door finds out on whose behalf a request is made. What that one may do is decided in the service, for each entity touched.
type Door struct {
	o  DoorOptions
	mu sync.Mutex
	by map[netip.Prefix]*failures

	refused, limited atomic.Uint64
}

// Counts are how many requests a Door turned away since the start.
type Counts struct {
	Refused uint64 // for their credentials
	Limited uint64 // unseen, for what their address had sent before
}

// Counts tells how many requests were turned away. Nothing but these numbers grows with them: no log entry of the cluster is made of one.
func (d *Door) Counts() Counts { return Counts{d.refused.Load(), d.limited.Load()} }

// failures of an address: how many attempts it has left at a time.
type failures struct {
	left float64
	at   time.Time
}

// LimitedError refuses credentials of an address that sent too many wrong ones, unseen.
type LimitedError struct{ Wait time.Duration }

func (e *LimitedError) Error() string {
	return fmt.Sprintf("Too many wrong admin tokens from this address: try again in %d seconds", int(e.Wait.Seconds()+0.999))
}

// NewDoor makes a Door.
func NewDoor(o DoorOptions) *Door {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Door{o: o, by: map[netip.Prefix]*failures{}}
}

// Enter returns the actor of a request: that of its token, or the anonymous one of its address. Without a token nothing is decided
// here. The error is a *service.Error or a *LimitedError. While there is no admin token at all, what cannot be one is passed over as Kong does
// without RBAC: clients send headers that others ask for.
func (d *Door) Enter(r *http.Request) (service.Actor, error) {
	from := clientIP(r.RemoteAddr)
	actor := service.Actor{From: from}
	token, err := credential(r.Header)
	if token == "" && err == nil || !HasCredential(r.Header) && !d.o.Tokens.HasTokens() {
		return actor, nil
	}
	at := network(from)
	if wait := d.blocked(at); wait > 0 {
		d.limited.Add(1)
		return service.Actor{}, &LimitedError{wait}
	}
	if err == nil {
		actor.Token, err = d.o.Tokens.Authenticate(r.Context(), token)
	}
	if err != nil {
		d.failed(at)
		d.refused.Add(1)
		head, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // what follows may be an API key
		d.o.Log.Warn("admin credentials refused", "from", from, "method", r.Method, "path", "/"+head, "reason", err.Error())
		return service.Actor{}, err
	}
	return actor, nil
}

// credential is the token of a request, "" without.
func credential(h http.Header) (string, error) {
	bad := func(why string) error {
		return &service.Error{Kind: service.Unauthenticated, Message: "Unauthorized: " + why}
	}
	var found []string
	for _, v := range h.Values("Authorization") {
		scheme, token, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", bad("Authorization must be Bearer gwat_…")
		}
		found = append(found, strings.TrimSpace(token))
	}
	found = append(found, h.Values("Kong-Admin-Token")...)
	switch {
	case len(found) == 0:
		return "", nil
	case found[0] == "":
		return "", bad("the admin token is empty")
	}
	for _, t := range found[1:] {
		if t != found[0] {
			return "", bad("several admin tokens")
		}
	}
	return found[0], nil
}

// HasCredential tells whether a request carries what looks like an admin token, and so is not served unless it is one.
func HasCredential(h http.Header) bool {
	for _, v := range append(h.Values("Kong-Admin-Token"), h.Values("Authorization")...) {
		if strings.Contains(v, service.TokenPrefix) {
			return true
		}
	}
	return false
}

// clientIP is the address of a peer without its port; "" for a unix socket. Headers say nothing about it: any client could write them.
func clientIP(remote string) string {
	if remote == "@" {
		return ""
	}
	if host, _, err := net.SplitHostPort(remote); err == nil {
		return host
	}
	return remote
}

// network is what counts as one address: of IPv6 a /64, all of which a single host has.
func network(ip string) netip.Prefix {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the bits fit
	return p
}

// blocked is how long an address has to wait.
func (d *Door) blocked(p netip.Prefix) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.by[p]
	if f == nil {
		return 0
	}
	f.settle(d.o.Now())
	if f.left >= 1 {
		return 0
	}
	return time.Duration((1 - f.left) * float64(refill))
}

func (f *failures) settle(now time.Time) {
	f.left = min(burst, f.left+float64(now.Sub(f.at))/float64(refill))
	f.at = now
}

func (d *Door) failed(p netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.o.Now()
	f := d.by[p]
	if f == nil {
		d.makeRoom(now)
		f = &failures{left: burst, at: now}
		d.by[p] = f
	}
	f.settle(now)
	f.left = max(0, f.left-1)
}

// makeRoom forgets addresses that have all their attempts again, and then any, down to three quarters: looking at all of them must not be what
// each new address of a flood costs.
func (d *Door) makeRoom(now time.Time) {
	if len(d.by) < addresses {
		return
	}
	for p, f := range d.by {
		if f.settle(now); f.left >= burst {
			delete(d.by, p)
		}
	}
	for p := range d.by {
		if len(d.by) <= addresses*3/4 {
			return
		}
		delete(d.by, p)
	}
}

// ErrNoCredentials is why an Admin API that others can reach does not start.
var ErrNoCredentials = errors.New("it can be reached from other machines and there is no admin token: create one on this machine first " +
	"(listen on loopback, gwctl token create --name me --role super), or set admin_require_token = on, with which the first token is made on loopback")

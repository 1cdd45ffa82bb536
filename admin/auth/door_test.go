package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"concord/admin/service"
)

// oneToken knows the token "good".
type oneToken struct{}

func (oneToken) Authenticate(_ context.Context, token string) (string, error) {
	if token == "good" {
		return "id", nil
	}
	return "", &service.Error{Kind: service.Unauthenticated, Message: "unknown"}
}

func (oneToken) HasTokens() bool { return true }

// door is a Door with a clock and a log of its own.
type door struct {
	*Door
	now time.Time
	log strings.Builder
}

func newDoor() *door {
	d := &door{now: time.Unix(1e9, 0)}
	d.Door = NewDoor(DoorOptions{Tokens: oneToken{}, Now: func() time.Time { return d.now }, Log: slog.New(slog.NewTextHandler(&d.log, nil))})
	return d
}

func (d *door) enter(from string, headers ...string) (service.Actor, error) {
	r := httptest.NewRequest(http.MethodGet, "/services", nil)
	r.RemoteAddr = from
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return d.Enter(r)
}

func TestDoor(t *testing.T) {
	const auth, kong = "Authorization", "Kong-Admin-Token"
	for _, c := range []struct {
		name    string
		from    string
		headers []string
		want    service.Actor
		ok      bool
	}{
		{"nobody", "10.0.0.1:5", nil, service.Actor{From: "10.0.0.1"}, true},
		{"bearer", "10.0.0.1:5", []string{auth, "bearer good"}, service.Actor{Token: "id", From: "10.0.0.1"}, true},
		{"as Kong's clients", "[::1]:5", []string{kong, "good"}, service.Actor{Token: "id", From: "::1"}, true},
		{"both, the same", "10.0.0.1:5", []string{auth, "Bearer good", kong, "good"}, service.Actor{Token: "id", From: "10.0.0.1"}, true},
		{"a unix socket", "@", []string{kong, "good"}, service.Actor{Token: "id"}, true},
		{"two tokens", "10.0.0.1:5", []string{auth, "Bearer good", kong, "other"}, service.Actor{}, false},
		{"basic", "10.0.0.1:5", []string{auth, "Basic Z29vZA=="}, service.Actor{}, false},
		{"empty", "10.0.0.1:5", []string{kong, ""}, service.Actor{}, false},
		{"unknown", "10.0.0.1:5", []string{kong, "bad"}, service.Actor{}, false},
		{"who claims to be near", "10.0.0.1:5", []string{"X-Forwarded-For", "127.0.0.1", "X-Real-IP", "::1"}, service.Actor{From: "10.0.0.1"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDoor()
			got, err := d.enter(c.from, c.headers...)
			var refused *service.Error
			if got != c.want || (err == nil) != c.ok || err != nil && (!errors.As(err, &refused) || refused.Kind != service.Unauthenticated) {
				t.Errorf("%+v %v, want %+v", got, err, c.want)
			}
			if want := (Counts{}); c.ok && d.Counts() != want || !c.ok && d.Counts() != (Counts{Refused: 1}) {
				t.Errorf("counts %+v", d.Counts())
			}
			for _, secret := range []string{"good", "bad", "Z29vZA"} {
				if strings.Contains(d.log.String(), secret) {
					t.Errorf("a credential is in the log: %s", d.log.String())
				}
			}
		})
	}
}

// TestDoorLimits: ten wrong tokens at once and one in five seconds, by address, of IPv6 by network; who has a good one does not get past it either.
func TestDoorLimits(t *testing.T) {
	d := newDoor()
	try := func(from, token string) (wait time.Duration) {
		t.Helper()
		_, err := d.enter(from, "Kong-Admin-Token", token)
		var limited *LimitedError
		if errors.As(err, &limited) {
			return limited.Wait
		}
		if (err == nil) != (token == "good") {
			t.Fatalf("%s from %s: %v", token, from, err)
		}
		return 0
	}
	for i := range burst {
		if w := try(fmt.Sprintf("[2001:db8::%x]:%d", i, i), "bad"); w != 0 {
			t.Fatalf("attempt %d has to wait %v", i, w)
		}
	}
	for _, token := range []string{"bad", "good"} {
		if w := try("[2001:db8::ffff]:1", token); w <= 0 || w > refill {
			t.Errorf("%s is not limited: %v", token, w)
		}
	}
	for _, other := range []string{"[2001:db8:0:1::1]:1", "10.0.0.1:1", "@"} {
		if w := try(other, "good"); w != 0 {
			t.Errorf("%s has to wait for what others did", other)
		}
	}
	if _, err := d.enter("[2001:db8::1]:1"); err != nil {
		t.Errorf("without a token: %v", err) // what nobody may do is decided elsewhere
	}
	if c := d.Counts(); c != (Counts{Refused: burst, Limited: 2}) {
		t.Errorf("counts %+v", c)
	}
	d.now = d.now.Add(refill)
	if try("[2001:db8::1]:1", "bad") != 0 || try("[2001:db8::1]:1", "bad") == 0 {
		t.Error("not one attempt after the time for one")
	}
	d.now = d.now.Add(burst * refill)
	for range burst {
		if try("[2001:db8::1]:1", "bad") != 0 {
			t.Error("not all attempts are back")
		}
	}
	for i := range 2 * addresses { // a flood from everywhere
		try(fmt.Sprintf("10.%d.%d.1:1", i/256, i%256), "bad")
	}
	if len(d.by) > addresses {
		t.Errorf("%d addresses are remembered", len(d.by))
	}
}

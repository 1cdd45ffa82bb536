package service

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"concord/admin/service/logtest"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// What another member forwards is judged by the leader's own rows: an actor that is unknown, or may less than it claims, is refused, and
// finished commands cannot reach the cluster's own tables, the tokens or the audit log.
func TestForgedForward(t *testing.T) {
	log := logtest.New()
	log.Raise()
	s := New(Options{Log: log, Machine: log.Machine, RequireToken: true})
	ctx := context.Background()
	first, res, err := s.CreateToken(ctx, schema.Record{"name": "first", "role": "super"}, false)
	if err != nil {
		t.Fatal(err)
	}
	super, err := s.Authenticate(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	_, res, err = s.CreateToken(WithActor(ctx, Actor{Token: super}), schema.Record{"name": "r", "role": entity.RoleReadOnly}, false)
	if err != nil {
		t.Fatal(err)
	}
	var reader struct{ ID string }
	if err := json.Unmarshal(res.Row, &reader); err != nil {
		t.Fatal(err)
	}
	put := func(table uint16, ops ...command.Op) []byte {
		c := command.Command{Level: 2, Op: command.Txn{Puts: []command.Put{{Table: table, ID: state.ID{1}, Raw: []byte(`{"id":"01000000-0000-0000-0000-000000000000"}`)}}}}
		if len(ops) > 0 {
			c.Op = ops[0]
		}
		return command.Encode(c)
	}
	create := Mutation{Verb: Create, Target: Target{Entity: "services"}, Body: schema.Record{"host": "h"}}
	as := func(a Actor) request { m := create; m.Actor = a; return request{Mutation: m} }
	for _, c := range []struct {
		name string
		req  request
		want Kind
	}{
		{"nobody", as(Actor{}), Unauthenticated},
		{"from this machine", as(Actor{From: "127.0.0.1"}), Unauthenticated},
		{"an unknown token", as(Actor{Token: "11111111-1111-4111-8111-111111111111"}), Unauthenticated},
		{"a token that may only read", as(Actor{Token: reader.ID}), Forbidden},
		{"a command of one that may only read", request{Command: put(1), Actor: Actor{Token: reader.ID}}, Forbidden},
		{"a command of nobody", request{Command: put(1)}, Unauthenticated},
		{"a node that writes what plugins do not keep", as(Actor{Program: true}), Forbidden},
		{"a token by command", request{Command: put(entity.TableAdminTokens), Actor: Actor{Token: super}}, Forbidden},
		{"a join token by command", request{Command: put(entity.TableClusterTokens), Actor: Actor{Token: super}}, Forbidden},
		{"an audit record by command", request{Command: put(entity.TableAuditRecords), Actor: Actor{Token: super}}, Forbidden},
		{"a level by command", request{Command: put(0, command.SetLevel{Level: 2}), Actor: Actor{Token: super}}, Forbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := c.req.encode()
			if err != nil {
				t.Fatal(err)
			}
			before := s.Index()
			answer, err := s.handle(ctx, raw)
			var r response
			if err != nil || json.Unmarshal(answer, &r) != nil || r.Error == nil || r.Error.Kind != c.want || s.Index() != before {
				t.Errorf("%v %s", err, answer)
			}
		})
	}
}

// TestForwardedRequest: what another node sends is what this one gets, and what is cut off or longer than it says is refused.
func TestForwardedRequest(t *testing.T) {
	q := request{ID: uuid.New(), Command: []byte{0, 1, '{', 0xff}, Actor: Actor{Token: "t"}}
	raw, err := q.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRequest(raw)
	if err != nil || got.ID != q.ID || !bytes.Equal(got.Command, q.Command) || got.Actor.Token != "t" {
		t.Errorf("%+v %v", got, err)
	}
	for n := range len(raw) - len(q.Command) {
		if _, err := decodeRequest(raw[:n]); err == nil {
			t.Errorf("%d bytes of %d are taken", n, len(raw))
		}
	}
	if _, err := decodeRequest([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'}); err == nil {
		t.Error("a head of 4 GiB is taken")
	}
	if none, err := (request{Index: true}).encode(); err != nil {
		t.Error(err)
	} else if got, err := decodeRequest(none); err != nil || got.Command != nil || !got.Index {
		t.Errorf("%+v %v", got, err)
	}
}

package service

import (
	"context"
	"time"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/state"
)

// sign writes into a command who is behind it, as the leader knows the actor: from it the machine makes the record of the audit log.
func (s *Service) sign(c *command.Command, a Actor, verb, entityName string) {
	c.Actor = a.From
	if s.o.Machine.Level() < entity.AdminLevel {
		return
	}
	g, _ := s.grant(s.store.View().At(time.Now().UnixMilli()), a) // it was asked for its rights before
	c.Level = max(c.Level, entity.AdminLevel)
	if a.Program {
		g.name = "concord"
	}
	c.Actor = fsm.Cause{Token: a.Token, Name: g.name, From: a.From, Verb: verb, Entity: entityName}.Actor()
}

// Audit is a part of the audit log.
type Audit struct {
	Index   uint64
	Head    []byte   // where the log begins and ends: seq, first, prev, hash; nil while it is empty
	Records [][]byte // as JSON, by number
}

// Audit returns up to size records behind the number after.
func (s *Service) Audit(ctx context.Context, after uint64, size int) (Audit, error) {
	view := s.fresh(ctx)
	g, err := s.grant(view, actorOf(ctx))
	if err == nil {
		err = g.may(ReadAudit)
	}
	table, ok := s.store.Table(entity.AuditRecords)
	if err != nil || !ok {
		return Audit{}, err
	}
	out := Audit{Index: view.Index()}
	if head, ok := table.Get(view, fsm.AuditHead); ok {
		out.Head = head.Raw
	}
	from := state.ID{}
	if after > 0 {
		from = fsm.AuditID(after)
	}
	for row := range table.Scan(view, "", "", from) {
		if len(out.Records) == size || row.ID == fsm.AuditHead {
			break
		}
		out.Records = append(out.Records, row.Raw)
	}
	return out, nil
}

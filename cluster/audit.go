package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
)

type causeKey struct{}

// WithCause says on whose behalf the verbs of membership are called with the context, for the audit log.
func WithCause(ctx context.Context, c fsm.Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

func causeOf(ctx context.Context) fsm.Cause {
	c, _ := ctx.Value(causeKey{}).(fsm.Cause)
	return c
}

// ours is the cause of what the cluster does by itself.
func ours(verb, detail string) fsm.Cause {
	return fsm.Cause{Name: "cluster", Verb: verb, Entity: "cluster_nodes", Detail: detail}
}

// sign makes a command leave a record in the audit log, as far as all nodes can do that.
func (m *membership) sign(c *command.Command, cause fsm.Cause) {
	level := m.machine.Level()
	if level < entity.AdminLevel {
		return
	}
	if level < command.AuditLevel {
		cause.Detail = ""
	}
	if cause.Token != "" && cause.Name == "" {
		cause.Name = m.rows.tokenName(cause.Token)
	}
	c.Level, c.Actor = min(level, command.AuditLevel), cause.Actor()
}

// note appends an entry that is nothing but a record, about what changes the cluster without changing a row. cause must have a Detail.
func (m *membership) note(ctx context.Context, cause fsm.Cause) error {
	if m.machine.Level() < command.AuditLevel {
		return nil
	}
	c := command.Command{Op: command.Noop{}}
	m.sign(&c, cause)
	_, err := m.propose(ctx, c)
	return err
}

// Note leaves a record in the audit log about what this node did, and the rows do not tell. cause must have a Detail.
func (n *Node) Note(ctx context.Context, cause fsm.Cause) error {
	cause.Name = "node " + n.opt.Name
	return n.leaderCall(ctx, opNote, cause, nil)
}

func (m *membership) leadNote(ctx context.Context, _ string, cause fsm.Cause) (none, error) {
	return none{}, m.note(ctx, cause)
}

// maxRefused bounds the join tokens whose refusal is remembered; refusedEvery is how often that of one is recorded.
const (
	maxRefused   = 1000
	refusedEvery = time.Minute
)

// refusals counts joins that were refused, and says which to record: only those who have a token can make the log grow, and not by much.
type refusals struct {
	count atomic.Uint64
	mu    sync.Mutex
	last  map[string]time.Time // by token
}

func (r *refusals) due(token string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.last[token]) < refusedEvery {
		return false
	}
	if r.last == nil || len(r.last) >= maxRefused {
		r.last = map[string]time.Time{}
	}
	r.last[token] = now
	return true
}

// trimSize bounds the records that one log entry drops.
const trimSize = 1000

// trimAudit drops records that are too many or too old. Only the leader's settings count, so that all nodes keep the same.
func (d *duties) trimAudit(ctx context.Context) error {
	if d.machine.Level() < command.AuditLevel {
		return nil
	}
	for ctx.Err() == nil {
		view := d.rows.store.View()
		row, ok := d.rows.audit.Get(view, fsm.AuditHead)
		if !ok {
			return nil
		}
		head, keep := row.Val, d.opt.Tuning.AuditRecords
		first := head.First
		if n := head.Seq - head.First + 1; n > float64(keep+keep/100) { // not one by one
			first = head.Seq - float64(keep) + 1
		}
		if age := d.opt.Tuning.AuditAge; age > 0 {
			end := float64(time.Now().Add(-age).UnixMilli())
			for r := range d.rows.audit.All(view) {
				if r.ID == fsm.AuditHead || r.Val.Time >= end || r.Val.Seq >= head.First+trimSize {
					break
				}
				first = max(first, r.Val.Seq+1)
			}
		}
		if first = min(first, head.Seq); first <= head.First { // the newest always stays
			return nil
		}
		res, err := d.propose(ctx, command.Command{Level: command.AuditLevel, Actor: "cluster", Op: command.TrimAudit{First: uint64(first), Limit: trimSize}})
		if err := errors.Join(err, res.Err); err != nil {
			return err
		}
	}
	return nil
}

package service

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"

	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
)

// attempts is how often the leader plans a mutation anew when other writes got between its view and its log entry.
const attempts = 4

// request and response travel between the node that was asked and the leader, which may be the same.
type request struct {
	ID       uuid.UUID `json:"id"` // the machine remembers it once the write succeeded: a repeated forward is answered from there
	Mutation Mutation  `json:"mutation,omitzero"`
	Command  []byte    `json:"-"`               // instead of Mutation: a finished log entry of a bulk change
	Actor    Actor     `json:"actor,omitzero"`  // of Command
	Index    bool      `json:"index,omitempty"` // instead of both: how far the leader is
}

// encode is what goes to the leader: the length of the head as four bytes, the head in JSON, and the command as it is, since there are
// hundreds in a large change and JSON costs most where there is much of it.
func (r request) encode() ([]byte, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	raw := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(head)+len(r.Command)), uint32(len(head)))
	return append(append(raw, head...), r.Command...), nil
}

func decodeRequest(raw []byte) (r request, err error) {
	if len(raw) < 4 || uint64(len(raw)-4) < uint64(binary.BigEndian.Uint32(raw)) {
		return r, errors.New("it ends too soon")
	}
	head, rest := raw[4:][:binary.BigEndian.Uint32(raw)], raw[4:][binary.BigEndian.Uint32(raw):]
	if len(rest) > 0 {
		r.Command = rest
	}
	return r, json.Unmarshal(head, &r)
}

type response struct {
	Index uint64          `json:"index,omitempty"`
	Row   json.RawMessage `json:"row,omitempty"`
	Tag   string          `json:"tag,omitempty"`
	Hint  string          `json:"hint,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Lost  string          `json:"lost,omitempty"` // other writes got in between a bulk change: why it has to be planned anew
}

// Mutate executes m on the leader and returns once this node's machine holds the change and its data plane serves it. A
// refusal is an *Error.
func (s *Service) Mutate(ctx context.Context, m Mutation) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	m.Actor = actorOf(ctx)
	r, err := s.ask(ctx, request{ID: uuid.New(), Mutation: m})
	if err != nil {
		return Result{}, unavailable(ctx, err)
	}
	return s.finish(ctx, r)
}

// ask has the leader answer, which may be this node.
func (s *Service) ask(ctx context.Context, q request) (response, error) {
	req, err := q.encode()
	if err != nil {
		return response{}, refuse(Malformed, nil, "the body cannot be forwarded: %v", err)
	}
	raw, err := s.o.Log.Forward(ctx, req)
	if err != nil {
		return response{}, err
	}
	var r response
	if err := json.Unmarshal(raw, &r); err != nil {
		return response{}, fmt.Errorf("answer of the leader: %w", err)
	}
	return r, nil
}

// finish waits until this node serves the committed write. A write that is committed is never reported as failed: if
// the node cannot follow in time, the answer carries the index and the node's log says so.
func (s *Service) finish(ctx context.Context, r response) (Result, error) {
	if r.Error != nil {
		return Result{}, r.Error
	}
	err := s.o.Log.Wait(ctx, r.Index)
	if err == nil && s.o.Published != nil {
		err = s.o.Published(ctx, r.Index)
	}
	if err != nil {
		s.o.Logger.Warn("answered a committed write before this node serves it", slog.Uint64("index", r.Index), slog.Any("err", err))
	}
	return Result{Index: r.Index, Row: r.Row, Tag: r.Tag, Hint: r.Hint}, nil
}

// unavailable says why nothing came of a mutation, and whether that is certain.
func unavailable(ctx context.Context, err error) error {
	var lost *cluster.NoLeaderError
	switch known := errors.As(err, &lost); {
	case known && !lost.Uncertain, errors.Is(err, cluster.ErrClosed):
		return &Error{Kind: Unavailable, Message: fmt.Sprintf("no change is possible now, nothing was stored: %v", err)}
	case known, ctx.Err() != nil:
		return &Error{Kind: Unknown, Message: fmt.Sprintf("the cluster did not confirm the write (%v): it may or may not take effect", err),
			Hint: "read the entity before repeating a POST; PUT, PATCH and DELETE may simply be repeated"}
	}
	return err
}

// handle is the forward handler: it runs on the leader. Refusals are answers; an error means that another leader should be
// asked, which the log does with the same request id.
func (s *Service) handle(ctx context.Context, raw []byte) ([]byte, error) {
	r, err := decodeRequest(raw)
	if err != nil {
		return json.Marshal(response{Error: refuse(Malformed, nil, "forwarded mutation: %v", err)})
	}
	var res response
	if r.Index {
		res.Index = s.store.View().Index()
	} else if r.Command != nil {
		res, err = s.propose(ctx, r)
	} else {
		res, err = s.execute(ctx, r)
	}
	if lostLeader(err) {
		return nil, err
	}
	if err != nil {
		res = response{Error: asError(err)}
	}
	return json.Marshal(res)
}

// execute plans the mutation against the newest view and appends it; on a conflict with another write it plans anew.
func (s *Service) execute(ctx context.Context, r request) (response, error) {
	var last error
	for range attempts {
		p, recalled, err := s.planVerified(ctx, r)
		if p == nil || err != nil {
			return recalled, err
		}
		if len(p.puts) == 0 {
			return response{Index: p.index}, nil
		}
		c := command.Command{Level: max(1, p.level), RequestID: r.ID, LeaderTime: p.now, Op: command.Txn{Puts: p.puts}}
		s.sign(&c, r.Mutation.Actor, string(r.Mutation.Verb), r.Mutation.Target.Entity)
		res, err := s.o.Log.Propose(ctx, c)
		if err != nil {
			return response{}, err
		}
		if res.Err == nil {
			return response{Index: res.Index, Row: p.answer, Tag: tagOf(res.Index, p.members), Hint: p.hint}, nil
		}
		last = res.Err
	}
	return response{}, applyError(last)
}

// planVerified plans against the local view, or answers a repeated request with its first result. A refusal, or nothing to
// do, is believed only once this node has proved that it still leads and its view holds everything committed; a write
// needs no such proof, its entry carries it.
func (s *Service) planVerified(ctx context.Context, r request) (*plan, response, error) {
	for verified := false; ; verified = true {
		view := s.store.View()
		if res, ok := s.o.Machine.Remembered(r.ID); ok {
			return nil, s.recall(r, res), nil
		}
		p, err := s.plan(ctx, view, r.Mutation)
		if verified || err == nil && len(p.puts) > 0 {
			return p, response{}, err
		}
		index, lost := s.o.Log.ReadIndex(ctx)
		if lost == nil {
			lost = s.o.Log.Wait(ctx, index)
		}
		if lost != nil {
			return nil, response{}, cluster.ErrNotLeader // nothing was appended: let the next leader judge
		}
		if view == s.store.View() {
			return p, response{}, err
		}
	}
}

// recall answers a repeated forward with what the first one wrote.
func (s *Service) recall(r request, res fsm.Result) response {
	out := response{Index: res.Index}
	table, ok := s.tables[r.Mutation.Target.Entity]
	if !ok || r.Mutation.Verb == Delete {
		return out
	}
	for _, k := range res.Keys {
		if k.Table != table.Number() {
			continue
		}
		if row, ok := table.Get(s.store.View(), k.ID); ok {
			out.Row, out.Error = s.lookup(s.store.View()).show(table, row)
			out.Tag = s.lookup(s.store.View()).tag(table, row)
			return out
		}
	}
	out.Error = refuse(Missing, nil, "the entity was written at index %d and has been deleted since", res.Index)
	return out
}

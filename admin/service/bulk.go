package service

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// How much of a transaction goes into one log entry, in bytes: all of it up to raft's SuggestedMaxDataSize. What is larger is cut into pieces
// that keep no node busy for longer than a millisecond or two. Half of that is the same for smaller ones: the disks of three nodes.
const (
	entrySize = 512 << 10
	pieceSize = 64 << 10
)

// bulkTimeout bounds one Apply, retries included.
const bulkTimeout = 3 * time.Minute

// Wanted is one row of a configuration. References of Body are text (an id, or the alternative key) or records.
type Wanted struct {
	Entity string
	Body   schema.Record
	Parent int    // index of the row it belongs to, -1: none
	Field  string // its field that refers to that row

	Conditions Conditions // of the stored row that it becomes

	packed []byte // Body as JSON, after Bulk.Pack
}

// Record is the row's Body, packed or not.
func (w *Wanted) Record() schema.Record {
	if w.packed == nil {
		return w.Body
	}
	rec, _ := schema.Decode(w.packed) // Pack wrote it
	return rec
}

// Removal is one row that goes, and with it what the deletion of its kind deletes. One that is gone already is no mistake.
type Removal struct {
	Entity     string
	Ref        string // id or alternative key
	Conditions Conditions
}

// Bulk is a configuration to be brought about in one transaction. A parent comes before its children.
type Bulk struct {
	Rows     []Wanted
	Removals []Removal
	// Merge leaves alone what is in neither Rows nor Removals; else it is deleted, except for rows that expire and runtime rows (entity.Def.Runtime).
	Merge bool
	// SelectTags restrict what may be deleted to the entities that have all of the tags, and are added to all Rows.
	SelectTags []string
	Hashed     bool  // passwords and secrets are stored as they are
	DryRun     bool  // write nothing
	Diff       bool  // answer with Changes
	Show       bool  // answer with Rows
	Pace       *Pace // of the work on it so far; nil: it begins with Apply
}

// Pack takes the bodies of the rows out of their maps. As maps hundred thousand bodies are a million things in memory, which the
// collector would visit again and again while they are compared; packed they are a few hundred.
func (b *Bulk) Pack() error {
	pace := cmp.Or(b.Pace, &Pace{})
	var kept blocks
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	for i := range b.Rows {
		pace.Rest()
		text.Reset()
		if err := enc.Encode(b.Rows[i].Body); err != nil {
			return fmt.Errorf("pack a row: %w", err)
		}
		b.Rows[i].packed, b.Rows[i].Body = kept.keep(text.Bytes()), nil
	}
	return nil
}

// blocks holds small texts one behind the other. On its own each would have room behind it and be a thing for the collector to visit.
type blocks struct{ last []byte }

func (b *blocks) keep(text []byte) []byte {
	if len(text) > cap(b.last)-len(b.last) {
		b.last = make([]byte, 0, max(32<<10, len(text)))
	}
	begin := len(b.last)
	b.last = append(b.last, text...)
	return b.last[begin:len(b.last):len(b.last)]
}

// BulkResult is what Apply did, or with DryRun would do.
type BulkResult struct {
	Index                                uint64
	Created, Updated, Deleted, Unchanged int
	Changes                              []BulkChange
	Rows                                 [][]byte   // the entities as JSON, in the order of Bulk.Rows
	IDs                                  []state.ID // and their ids
}

// BulkChange is one row that changes. Before and After hold secrets only as marks that tell whether they differ.
type BulkChange struct {
	Action string          `json:"action"` // create, update, delete
	Entity string          `json:"entity"`
	ID     string          `json:"id"`
	Name   string          `json:"name,omitempty"`
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// BulkError says what is wrong with which of Bulk.Rows. Nothing was stored.
type BulkError struct{ Rows map[int]schema.Errors }

func (e *BulkError) Error() string { return fmt.Sprintf("%d entities are invalid", len(e.Rows)) }

// Apply makes the stored configuration what b says, all of it in one transaction or nothing. It compares on this node: each row that
// it writes is written only if it is still as it was compared, else everything is compared anew.
func (s *Service) Apply(ctx context.Context, b Bulk) (BulkResult, error) {
	if err := s.mayApply(ctx, &b); err != nil {
		return BulkResult{}, err
	}
	turn := turn{of: &s.bulk}
	defer turn.end()
	if !b.Merge || len(b.Rows)+len(b.Removals) > fewRows {
		if err := turn.take(); err != nil {
			return BulkResult{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	var last error
	if b.Pace == nil {
		b.Pace = s.NewPace()
	}
	for range attempts {
		index, err := s.o.Log.ReadIndex(ctx)
		if err == nil {
			err = s.o.Log.Wait(ctx, index)
		}
		if err != nil {
			return BulkResult{}, unavailable(ctx, err)
		}
		p, err := s.planBulk(ctx, b)
		if err == nil {
			err = s.mayPut(p.view, actorOf(ctx), p.puts, b.DryRun)
		}
		if err != nil {
			return BulkResult{}, err
		}
		if b.DryRun || len(p.puts) == 0 {
			p.res.Index = p.view.Index()
			return p.res, nil
		}
		pieces := cut(p.puts)
		if len(pieces) > 1 {
			if err := turn.take(); err != nil {
				return BulkResult{}, err
			}
		}
		r, err := s.append(ctx, pieces, max(1, p.level), b.Pace)
		if err != nil {
			return BulkResult{}, unavailable(ctx, err)
		}
		if r.Lost == "" {
			res, err := s.finish(ctx, r)
			p.res.Index = res.Index
			return p.res, err
		}
		last = &Error{Kind: Unavailable, Message: "nothing was stored: " + r.Lost}
	}
	return BulkResult{}, last
}

// fewRows are so few that they are compared and written like single mutations, any number of them at once.
const fewRows = 64

// turn is that of a large configuration: a node works on one at a time.
type turn struct {
	of    *sync.Mutex
	taken bool
}

func (t *turn) take() error {
	if t.taken = t.taken || t.of.TryLock(); !t.taken {
		return &Error{Kind: Busy, Message: "Currently loading previous configuration"}
	}
	return nil
}

func (t *turn) end() {
	if t.taken {
		t.of.Unlock()
	}
}

// append has the leader append the pieces: one as it is, more so that one more entry makes them visible. level is what the puts need.
func (s *Service) append(ctx context.Context, pieces [][]command.Put, level uint32, pace *Pace) (response, error) {
	if len(pieces) == 1 {
		return s.step(ctx, command.Command{Level: level, RequestID: uuid.New(), Op: command.Txn{Puts: pieces[0]}})
	}
	if s.o.Machine.Level() < command.StageLevel {
		return response{Error: &Error{Kind: Unavailable, Message: "so large a change needs all nodes at the version of this one",
			Hint: "wait until the cluster has raised its level after an upgrade, or send less at once"}}, nil
	}
	id := uuid.New()
	level = max(level, command.StageLevel)
	for i, piece := range pieces {
		begun := time.Now()
		r, err := s.step(ctx, command.Command{Level: level, Op: command.Stage{ID: id, Seq: uint32(i), Puts: piece}})
		if err != nil || r.Error != nil || r.Lost != "" {
			s.forget(ctx, id)
			return r, err
		}
		clear(piece) // a retry plans anew
		pace.RestAfter(time.Since(begun))
	}
	return s.step(ctx, command.Command{Level: level, RequestID: uuid.New(), Op: command.Commit{ID: id, Pieces: uint32(len(pieces))}})
}

// forget drops a stage that will not be committed; if that fails it is dropped by its age.
func (s *Service) forget(ctx context.Context, id uuid.UUID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = s.step(ctx, command.Command{Level: command.StageLevel, Op: command.Commit{ID: id}})
}

// cut divides a transaction into what goes into one entry each.
func cut(puts []command.Put) [][]command.Put {
	const overhead = 48 // id, table, lengths
	size := func(p command.Put) int { return len(p.Raw) + overhead }
	all := 0
	for i := range puts {
		all += size(puts[i])
	}
	if all <= entrySize {
		return [][]command.Put{puts}
	}
	var pieces [][]command.Put
	from, full := 0, 0
	for i := range puts {
		n := size(puts[i])
		if full+n > pieceSize && i > from {
			pieces, from, full = append(pieces, puts[from:i]), i, 0
		}
		full += n
	}
	return append(pieces, puts[from:])
}

// step has the leader append one finished command. It may be repeated on the next leader: commands with effect carry a request id, and a
// piece that is staged already is ignored.
func (s *Service) step(ctx context.Context, c command.Command) (response, error) {
	return s.ask(ctx, request{ID: c.RequestID, Command: command.Encode(c), Actor: actorOf(ctx)})
}

// propose runs on the leader: it appends a command that another node finished, if the actor may do what is in it.
func (s *Service) propose(ctx context.Context, r request) (response, error) {
	c, err := command.Decode(r.Command)
	if err != nil {
		return response{}, refuse(Malformed, nil, "forwarded command: %v", err)
	}
	if c.Level > s.o.Machine.Level() {
		return response{}, refuse(Unavailable, nil, "the leader is not at level %d yet", c.Level)
	}
	var puts []command.Put
	switch op := c.Op.(type) {
	case command.Txn:
		puts = op.Puts
	case command.Stage:
		puts = op.Puts
	case command.Commit: // what was staged was looked at then
	default:
		return response{}, forbidden("%T is not for other nodes to propose", op)
	}
	if err := s.mayPut(s.store.View().At(time.Now().UnixMilli()), r.Actor, puts, false); err != nil {
		return response{}, err
	}
	if _, piece := c.Op.(command.Stage); piece && s.o.Busy != nil && s.o.Busy() {
		time.Sleep(pauseFor) // between this and what all nodes do at the same moment
	}
	c.LeaderTime = 0 // the leader's own
	s.sign(&c, r.Actor, "apply", "")
	res, err := s.o.Log.Propose(ctx, c)
	switch {
	case err != nil:
		return response{}, err
	case res.Err == nil:
		return response{Index: res.Index}, nil
	}
	var restricted *fsm.RestrictedError
	if errors.As(res.Err, &restricted) {
		return response{}, referenced(restricted.Table, restricted.By).withHint(restricted.Error())
	}
	return response{Lost: res.Err.Error()}, nil
}

// lostLeader tells errors after which the log asks another leader.
func lostLeader(err error) bool {
	return errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, cluster.ErrOutcomeUnknown)
}

// Export calls f with every row of the configuration, by entity and id, secrets in clear. With tags, only with those that have all of them.
func (s *Service) Export(ctx context.Context, tags []string, f func(entity string, rec schema.Record) error) (uint64, error) {
	l, err := s.reader(ctx)
	if err != nil {
		return 0, err
	}
	for _, table := range s.store.Tables() {
		def := table.Def()
		if def.Schema.Internal || def.Runtime || l.grant.reads(def) != nil {
			continue
		}
		for row := range l.within(table, table.Scan(l.view, "", "", state.ID{})) {
			if row.ExpiresAt != 0 || !l.carries(table, row, tags) {
				continue
			}
			rec, err := s.record(table, row)
			if err == nil {
				rec, err = l.grant.blank(s, def, rec)
			}
			if err != nil {
				return 0, err
			}
			if err := f(table.Name(), rec); err != nil {
				return 0, err
			}
		}
	}
	return l.view.Index(), nil
}

func hasTags(row state.AnyRow, tags []string) bool {
	if len(tags) == 0 {
		return true
	}
	have := tagsOf(row)
	return !slices.ContainsFunc(tags, func(t string) bool { return !slices.Contains(have, t) })
}

// nameOf is what people call a record.
func nameOf(def entity.Def, rec schema.Record) string {
	for _, key := range []string{def.Schema.EndpointKey, "name", "target", "group", "custom_id", "kid"} {
		f, _ := def.Schema.Field(key)
		if text, ok := rec[key].(string); ok && key != "" && !f.Secret {
			return strings.Clone(text)
		}
	}
	return ""
}

package service

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"concord/fsm/entity"
	"concord/fsm/state"
)

// Bounds of watching.
const (
	maxWatchers = 256
	// watchChunk is how many rows are sent at once. Those of one entry may be more in several pieces.
	watchChunk     = 256
	watchHeartbeat = 10 * time.Second
)

// WatchOptions say what to follow.
type WatchOptions struct {
	// From is the index of the last Batch that was received whole; nil: begin with the whole state.
	From  *uint64
	Kinds []string // plural names; none: all that the actor may read
	// Heartbeat is how long there is silence at most. Default 10 s.
	Heartbeat time.Duration
}

// Batch is a part of what Watch tells.
type Batch struct {
	// Index of the entry of the log, or with Reset of the state: what to go on from, unless More.
	Index uint64
	// More: the next Batch belongs to the same index. Who is cut in between gets all of them again.
	More bool
	// Reset: forget what you have. This batch and those that follow up to the first without More are the whole state.
	Reset   bool
	Changes []Happened // none: a sign of life
}

// Happened is one change of one row as the actor may see it.
type Happened struct {
	Kind, ID string
	// Before and After tell whether the row existed, for the actor, before and after the change.
	Before, After bool
	Row           []byte // After: the entity as JSON
	Tag           string // After: its entity tag
}

// watching is what the service keeps for Watch.
type watching struct {
	history *history
	names   map[uint16]string
	count   atomic.Int64
}

func newWatching(store *state.Store) *watching {
	w := &watching{names: map[uint16]string{}}
	var numbers []uint16
	for _, t := range store.Tables() {
		if watchable(t.Def()) {
			w.names[t.Number()] = t.Name()
			numbers = append(numbers, t.Number())
		}
	}
	w.history = newHistory(store, numbers)
	return w
}

// watchable tells whether rows are configuration, rather than the gateway's own or made while it serves.
func watchable(def entity.Def) bool { return !def.Schema.Internal && !def.Runtime }

// Watch calls send with every change behind an index, in the order of the log, each exactly once, until ctx ends or send fails. What cannot be
// told any more, because it is too long ago or the state was replaced, begins anew with the whole state. Who takes too long to
// send is cut off with the kind Busy: the history does not wait.
func (s *Service) Watch(ctx context.Context, o WatchOptions, send func(Batch) error) error {
	if s.watching.count.Add(1) > maxWatchers {
		s.watching.count.Add(-1)
		return &Error{Kind: Busy, Message: fmt.Sprintf("%d clients watch this node already", maxWatchers), Hint: "ask another node"}
	}
	defer s.watching.count.Add(-1)
	if o.Heartbeat <= 0 {
		o.Heartbeat = watchHeartbeat
	}
	w := watcher{s: s, o: o, actor: actorOf(ctx), send: send}
	if err := w.begin(ctx); err != nil {
		return err
	}
	beat := time.NewTicker(o.Heartbeat)
	defer beat.Stop()
	for {
		writes, upTo, news, fate := s.watching.history.next(&w.cursor, watchChunk)
		var err error
		switch {
		case fate == behind:
			err = (&Error{Kind: Busy, Message: "too slow: the changes that come next are no longer held"}).withHint("watch again from the last index; take the changes faster, or fewer kinds")
		case fate == replaced:
			err = w.whole()
		case len(writes) > 0:
			err = w.tell(writes)
		default:
			select {
			case <-news:
				continue
			case <-beat.C:
				_, err = w.lookup()
				if err == nil {
					err = send(Batch{Index: upTo})
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
	}
}

// watcher is one call of Watch.
type watcher struct {
	s      *Service
	o      WatchOptions
	actor  Actor
	send   func(Batch) error
	kinds  []string
	cursor cursor
}

// lookup has the rights that the actor has now.
func (w *watcher) lookup() (lookup, error) {
	l := lookup{s: w.s, view: w.s.store.View().At(time.Now().UnixMilli())}
	var err error
	if l.grant, err = w.s.grant(l.view, w.actor); err == nil && l.grant.first {
		err = unauthenticated("no admin token")
	}
	if err != nil {
		return l, err
	}
	w.kinds = w.kinds[:0]
	for _, t := range w.s.store.Tables() {
		name := t.Name()
		if !watchable(t.Def()) || len(w.o.Kinds) > 0 && !slices.Contains(w.o.Kinds, name) {
			continue
		}
		switch err := l.grant.reads(t.Def()); {
		case err == nil:
			w.kinds = append(w.kinds, name)
		case len(w.o.Kinds) > 0:
			return l, err
		}
	}
	return l, nil
}

// begin goes on from the wanted index, or else begins with the whole state.
func (w *watcher) begin(ctx context.Context) error {
	for _, k := range w.o.Kinds {
		if t, ok := w.s.tables[k]; !ok || !watchable(t.Def()) {
			return refuse(InvalidOptions, nil, "%q is no kind of entity that can be watched", k)
		}
	}
	if _, err := w.lookup(); err != nil {
		return err
	}
	if w.o.From == nil {
		return w.whole()
	}
	if err := w.s.WaitIndex(ctx, *w.o.From); err != nil { // another node may have told it
		return err
	}
	var ok bool
	if w.cursor, ok = w.s.watching.history.resume(*w.o.From); !ok {
		return w.whole()
	}
	return w.send(Batch{Index: *w.o.From})
}

// whole sends the state of one moment.
func (w *watcher) whole() error {
	w.cursor = w.s.watching.history.end() // of a view as old as the next one, or older
	l, err := w.lookup()
	if err != nil {
		return err
	}
	index := l.view.Index()
	batch := Batch{Index: index, More: true, Reset: true}
	for _, name := range w.kinds {
		table := w.s.tables[name]
		for row := range l.within(table, table.Scan(l.view, "", "", state.ID{})) {
			h, err := l.happened(table, state.AnyRow{}, row)
			if err != nil {
				return err
			}
			if batch.Changes = append(batch.Changes, h); len(batch.Changes) == watchChunk {
				if err := w.send(batch); err != nil {
					return err
				}
				batch.Changes, batch.Reset = nil, false
			}
		}
	}
	batch.More = false
	w.cursor.index = max(w.cursor.index, index)
	return w.send(batch)
}

// tell sends writes, in one batch for each entry or more.
func (w *watcher) tell(writes []state.Write) error {
	l, err := w.lookup()
	if err != nil {
		return err
	}
	var batch Batch
	flush := func(more bool) error {
		if batch.More = more; len(batch.Changes) == 0 && !more {
			return nil
		}
		err := w.send(batch)
		batch.Changes = nil
		return err
	}
	for i := range writes {
		x := &writes[i]
		name := w.s.watching.names[x.Table]
		if i > 0 && x.Index != writes[i-1].Index {
			if err := flush(false); err != nil {
				return err
			}
		}
		batch.Index = x.Index
		if !slices.Contains(w.kinds, name) {
			continue
		}
		table := w.s.tables[name]
		var before, after state.AnyRow
		if x.Old.Exists() {
			before = x.Old.Row()
		}
		if x.New.Exists() {
			after = x.New.Row()
		}
		h, err := l.happened(table, before, after)
		if err != nil {
			return err
		}
		if !h.Before && !h.After {
			continue // out of the actor's reach
		}
		if len(batch.Changes) == watchChunk {
			if err := flush(true); err != nil {
				return err
			}
		}
		batch.Changes = append(batch.Changes, h)
	}
	return flush(false)
}

// happened is a change as the actor sees it: a row that comes within its reach is new to it, one that leaves it is gone.
func (l lookup) happened(table state.AnyTable, before, after state.AnyRow) (Happened, error) {
	h := Happened{Kind: table.Name()}
	if before.Index > 0 && l.sees(table, before) {
		h.ID, h.Before = before.ID.String(), true
	}
	if after.Index > 0 && l.sees(table, after) {
		h.ID, h.After = after.ID.String(), true
		row, refusal := l.show(table, after)
		if refusal != nil {
			return h, refusal
		}
		h.Row, h.Tag = row, l.tag(table, after)
	}
	return h, nil
}

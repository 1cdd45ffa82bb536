package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"concord/admin/service"
	"concord/admin/service/logtest"
	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// follower is a second node: its machine applies the entries of the first one's log, put together to commits in its own way.
type follower struct {
	*logtest.Log
	machine *fsm.Machine
	pending []fsm.Entry
	random  *rand.Rand
}

func (f *follower) take(e fsm.Entry, last bool) {
	f.pending = append(f.pending, e)
	if last || f.random.IntN(5) == 0 {
		f.machine.ApplyAll(f.pending)
		f.pending = nil
	}
}

func (f *follower) Wait(ctx context.Context, index uint64) error {
	for f.machine.Store().View().Index() < index {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

var errEnough = errors.New("enough")

// TestWatchExactlyOnce: 10,000 changes, made while they are watched, arrive once each and in their order, although the watcher is interrupted
// twice and goes on at the other node.
func TestWatchExactlyOnce(t *testing.T) {
	const changes = 10_000
	leader, log := newService(service.Options{})
	log.Raise()
	random := rand.New(rand.NewPCG(1, 2))
	other := &follower{Log: log, machine: fsm.New(fsm.Options{Defs: entity.All(), Keys: log.Machine.Keys()}), random: random}
	start := log.Machine.Store().View().Index()
	other.machine.ApplyAll([]fsm.Entry{{Index: start, Data: command.Encode(command.Command{Level: 1, Op: command.SetLevel{Level: fsm.MaxLevel}})}})
	second := service.New(service.Options{Log: struct{ service.Log }{other}, Machine: other.machine})
	log.HandleForward(func(context.Context, []byte) ([]byte, error) { return nil, cluster.ErrNotLeader }) // the test writes entries itself

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		table := tableOf(t, log, "consumers")
		versions := map[int]bool{}
		for i := 1; i <= changes; i++ {
			n := random.IntN(50)
			id := idOf(n)
			put := command.Put{Table: table, ID: id}
			if !versions[n] || random.IntN(3) > 0 {
				put.Raw = fmt.Appendf(nil, `{"created_at":1,"custom_id":"%d","id":"%s","tags":["n%d"],"updated_at":1,"username":null}`, i, id, n)
			}
			versions[n] = put.Raw != nil
			c := command.Command{Level: 1, Op: command.Txn{Puts: []command.Put{put}}}
			res, err := log.Propose(ctx, c)
			if err != nil || res.Err != nil {
				t.Errorf("change %d: %v %v", i, err, res.Err)
				return
			}
			other.take(fsm.Entry{Index: res.Index, Data: command.Encode(c)}, i == changes)
		}
	})

	from, next := start, start+1
	have := map[string]bool{}
	for stint, s := range []*service.Service{second, leader, second} {
		stop := start + uint64(stint+1)*changes/3
		if stint == 2 {
			stop = start + changes
		}
		err := s.Watch(ctx, service.WatchOptions{From: &from}, func(b service.Batch) error {
			switch {
			case b.Reset || b.More:
				t.Errorf("at %d: reset %t, more %t", b.Index, b.Reset, b.More)
			case len(b.Changes) == 0 && b.Index >= next:
				t.Errorf("a sign of life says %d before change %d", b.Index, next)
			case len(b.Changes) == 0:
				return nil
			case len(b.Changes) != 1 || b.Index != next:
				t.Errorf("%d changes at %d, want one at %d", len(b.Changes), b.Index, next)
			}
			next++
			h := b.Changes[0]
			var rec struct {
				CustomID string `json:"custom_id"`
			}
			if h.Before != have[h.ID] {
				t.Errorf("at %d: %s existed before: %t, want %t", b.Index, h.ID, h.Before, have[h.ID])
			}
			if h.After && (json.Unmarshal(h.Row, &rec) != nil || rec.CustomID != fmt.Sprint(b.Index-start) || h.Tag != fmt.Sprintf("%q", fmt.Sprint(b.Index))) {
				t.Errorf("at %d: %s with the tag %s", b.Index, h.Row, h.Tag)
			}
			have[h.ID] = h.After
			if from = b.Index; t.Failed() || from >= stop {
				return errEnough
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			t.Fatalf("stint %d ended at %d: %v", stint, from, err)
		}
		if t.Failed() {
			return
		}
	}
	if next != start+changes+1 {
		t.Errorf("the last change was %d, want %d", next-1, start+changes)
	}
}

// collect watches until the state that is reached at index and returns what happened.
func collect(t *testing.T, s *service.Service, ctx context.Context, o service.WatchOptions, index uint64) (all []service.Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	o.Heartbeat = 10 * time.Millisecond
	err := s.Watch(ctx, o, func(b service.Batch) error {
		if len(b.Changes) > 0 || b.Reset {
			all = append(all, b)
		}
		if b.Index >= index && !b.More {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("watch: %v", err)
	}
	return all
}

// TestWatchWhole: without an index, after a state that was replaced, and with an index from before this node's history, the whole state comes first.
func TestWatchWhole(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	for i := range 600 {
		mutate(t, s, service.Create, "consumers", "", schema.Record{"username": fmt.Sprintf("u%03d", i)})
	}
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	again := service.New(service.Options{Log: log, Machine: log.Machine}) // a node that has just started
	early, none := uint64(3), []string(nil)
	for _, c := range []struct {
		name  string
		s     *service.Service
		from  *uint64
		kinds []string
		rows  int
		reset bool
	}{
		{"no index", s, nil, none, 601, true},
		{"one kind", s, nil, []string{"services"}, 1, true},
		{"an index before the history", again, &early, none, 601, true},
		{"an index within", s, &early, []string{"services"}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows, all := 0, collect(t, c.s, t.Context(), service.WatchOptions{From: c.from, Kinds: c.kinds}, s.Index())
			for i, b := range all {
				if b.Reset != (c.reset && i == 0) || b.More != (c.reset && i < len(all)-1) {
					t.Errorf("batch %d of %d: reset %t, more %t", i, len(all), b.Reset, b.More)
				}
				rows += len(b.Changes)
			}
			if rows != c.rows {
				t.Errorf("%d rows, want %d", rows, c.rows)
			}
		})
	}
	t.Run("replaced meanwhile", func(t *testing.T) {
		resets := 0
		err := s.Watch(t.Context(), service.WatchOptions{Kinds: []string{"services"}}, func(b service.Batch) error {
			if b.Reset {
				if resets++; resets == 2 {
					return errEnough
				}
				go log.Machine.Reset()
			}
			return nil
		})
		if !errors.Is(err, errEnough) || resets != 2 {
			t.Errorf("%d resets, %v", resets, err)
		}
	})
}

// TestWatchTransaction: what one entry did comes together, however much it is.
func TestWatchTransaction(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	service0, _ := mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	from := s.Index()
	var rows []service.Wanted
	for i := range 700 {
		rows = append(rows, service.Wanted{Entity: "consumers", Body: schema.Record{"username": fmt.Sprintf("u%d", i)}, Parent: -1})
	}
	res, err := s.Apply(t.Context(), service.Bulk{Rows: rows, Merge: true})
	if err != nil {
		t.Fatal(err)
	}
	_, last := mutate(t, s, service.Delete, "services", "s", nil)
	all := collect(t, s, t.Context(), service.WatchOptions{From: &from}, last)
	total := 0
	for i, b := range all[:len(all)-1] {
		total += len(b.Changes)
		if b.Index != res.Index || b.More != (i < len(all)-2) {
			t.Errorf("batch %d of %d has index %d, more %t", i, len(all), b.Index, b.More)
		}
	}
	gone := all[len(all)-1]
	if total != 700 || gone.More || len(gone.Changes) != 1 || gone.Changes[0].ID != service0["id"] || gone.Changes[0].After || !gone.Changes[0].Before {
		t.Errorf("%d consumers, then %+v", total, gone)
	}
}

// TestWatchRights: a watcher is told what its role may see, and only as long as it may.
func TestWatchRights(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	actor := func(name string, more schema.Record) context.Context {
		body := schema.Record{"name": name, "role": "admin"}
		for k, v := range more {
			body[k] = v
		}
		text, _, err := s.CreateToken(t.Context(), body, false)
		if err != nil {
			t.Fatal(err)
		}
		id, err := s.Authenticate(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		return service.WithActor(t.Context(), service.Actor{Token: id, From: "10.0.0.1"})
	}
	reader := actor("reader", schema.Record{"role": "read-only"})
	narrow := actor("narrow", schema.Record{"entities": []any{"consumers"}})
	tagged := actor("tagged", schema.Record{"tags": []any{"mine"}})
	from := s.Index()
	consumer, _ := mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u", "tags": []any{"mine"}})
	mutate(t, s, service.Create, "jwt_secrets", "", schema.Record{"consumer": schema.Record{"id": consumer["id"]}, "key": "k", "secret": "very-secret"})
	_, last := mutate(t, s, service.Update, "consumers", "u", schema.Record{"tags": []any{"others"}})

	seen := func(all []service.Batch) (list []string) {
		for _, b := range all {
			for _, h := range b.Changes {
				list = append(list, fmt.Sprintf("%s %t>%t", h.Kind, h.Before, h.After))
			}
		}
		return list
	}
	for name, c := range map[string]struct {
		ctx  context.Context
		want string
	}{
		"all":    {t.Context(), "[consumers false>true jwt_secrets false>true consumers true>true]"},
		"reader": {reader, "[consumers false>true jwt_secrets false>true consumers true>true]"},
		"narrow": {narrow, "[consumers false>true consumers true>true]"},
		"tagged": {tagged, "[consumers false>true consumers true>false]"},
	} {
		t.Run(name, func(t *testing.T) {
			all := collect(t, s, c.ctx, service.WatchOptions{From: &from}, last)
			if got := fmt.Sprint(seen(all)); got != c.want {
				t.Errorf("saw %s, want %s", got, c.want)
			}
			for _, b := range all {
				for _, h := range b.Changes {
					var rec schema.Record
					if h.Kind == "jwt_secrets" && (json.Unmarshal(h.Row, &rec) != nil || (rec["secret"] == nil) != (name == "reader")) {
						t.Errorf("%s sees %s", name, h.Row)
					}
				}
			}
		})
	}
	if err := s.Watch(narrow, service.WatchOptions{Kinds: []string{"services"}}, nil); kind(err) != service.Forbidden {
		t.Errorf("watch of a kind out of reach: %v", err)
	}
	for _, k := range []string{"admin_tokens", "oauth2_tokens", "nothing"} {
		if err := s.Watch(t.Context(), service.WatchOptions{Kinds: []string{k}}, nil); kind(err) != service.InvalidOptions {
			t.Errorf("watch of %s: %v", k, err)
		}
	}
	done := make(chan error, 1)
	go func() {
		revoked := false
		done <- s.Watch(reader, service.WatchOptions{Heartbeat: time.Millisecond}, func(service.Batch) error {
			if !revoked {
				revoked = true
				_, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Delete, Target: service.Target{Entity: "admin_tokens", Ref: "reader"}})
				return err
			}
			return nil
		})
	}()
	select {
	case err := <-done:
		if kind(err) != service.Unauthenticated {
			t.Errorf("a revoked token's watch ended with %v", err)
		}
	case <-time.After(60 * time.Second):
		t.Error("a revoked token goes on watching")
	}
}

func tableOf(t *testing.T, log *logtest.Log, name string) uint16 {
	t.Helper()
	table, ok := log.Machine.Store().Table(name)
	if !ok {
		t.Fatalf("no table %s", name)
	}
	return table.Number()
}

func idOf(n int) (id state.ID) {
	copy(id[:], fmt.Sprintf("%016d", n))
	return id
}

package service

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/seal"
	"concord/fsm/state"
)

// lonely is the log of a machine that the test feeds itself.
type lonely struct{ Log }

func (lonely) HandleForward(func(context.Context, []byte) ([]byte, error)) {}
func (lonely) Wait(context.Context, uint64) error                          { return nil }

// TestHistoryIsBounded: what is kept does not grow; who is too slow for it is cut off, and who comes back too late begins anew.
func TestHistoryIsBounded(t *testing.T) {
	keys, err := seal.New("k", map[string][]byte{"k": make([]byte, seal.KeySize)})
	if err != nil {
		t.Fatal(err)
	}
	m := fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})
	s := New(Options{Log: lonely{}, Machine: m})
	h := s.watching.history
	h.maxWrites, h.maxBytes = 100, 10_000
	index := uint64(0)
	write := func(n int) {
		for range n {
			index++
			id := state.ID([]byte(fmt.Sprintf("%016d", index)))
			raw := fmt.Appendf(nil, `{"created_at":1,"custom_id":null,"id":"%s","tags":null,"updated_at":1,"username":"u%d"}`, id, index)
			c := command.Command{Level: 1, Op: command.Txn{Puts: []command.Put{{Table: s.tables["consumers"].Number(), ID: id, Raw: raw}}}}
			if res := m.ApplyAll([]fsm.Entry{{Index: index, Data: command.Encode(c)}}); res[0].Err != nil {
				t.Fatal(res[0].Err)
			}
		}
	}
	write(1000)
	if n := len(h.writes); n == 0 || n > 100 || h.bytes > 10_000 || h.floor != index-uint64(n) {
		t.Errorf("%d writes of %d bytes behind %d are kept of %d", len(h.writes), h.bytes, h.floor, index)
	}
	from := index
	err = s.Watch(t.Context(), WatchOptions{From: &from}, func(b Batch) error {
		if b.Index == from {
			write(1000) // while the client reads
		}
		return nil
	})
	var e *Error
	if !errors.As(err, &e) || e.Kind != Busy {
		t.Errorf("a slow watcher ended with %v", err)
	}
	enough := errors.New("enough")
	err = s.Watch(t.Context(), WatchOptions{From: &from}, func(b Batch) error {
		if !b.Reset {
			t.Errorf("too late, and there is no reset but %+v", b)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

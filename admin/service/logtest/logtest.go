// Package logtest is a log of one node in memory, for tests: it applies what is proposed to a real machine, one entry at
// a time, and has no raft, no disk and no network. Switches make it fail as a cluster can.
package logtest

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/seal"
)

// Log implements service.Log.
type Log struct {
	Machine *fsm.Machine

	mu      sync.Mutex
	index   uint64
	handler func(context.Context, []byte) ([]byte, error)

	// NoLeader makes everything that needs a leader fail.
	NoLeader bool
	// Behind is how many entries the leader has that this node will not get in time.
	Behind uint64
	// BeforePropose runs before an entry is appended, outside the lock: a chance to write something else first, or to fail.
	BeforePropose func(command.Command) error
	// AfterPropose runs once an entry is applied; its error is returned instead of the result, as when leadership is lost between
	// commit and answer.
	AfterPropose func() error
}

// New makes a log over an empty machine with all entities.
func New() *Log {
	keys, err := seal.Generate(rand.Reader)
	if err != nil {
		panic(err)
	}
	return &Log{Machine: fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})}
}

// Raise lifts the cluster's level to the highest, as the leader of a new cluster does.
func (l *Log) Raise() { l.apply(command.Command{Level: 1, Op: command.SetLevel{Level: fsm.MaxLevel}}) }

// Propose applies c.
func (l *Log) Propose(_ context.Context, c command.Command) (fsm.Result, error) {
	if l.NoLeader {
		return fsm.Result{}, cluster.ErrNotLeader
	}
	if l.BeforePropose != nil {
		if err := l.BeforePropose(c); err != nil {
			return fsm.Result{}, err
		}
	}
	res := l.apply(c)
	if l.AfterPropose != nil {
		if err := l.AfterPropose(); err != nil {
			return fsm.Result{}, err
		}
	}
	return res, nil
}

func (l *Log) apply(c command.Command) fsm.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	return l.Machine.ApplyAll([]fsm.Entry{{Index: l.index, Data: command.Encode(c)}})[0]
}

// HandleForward sets the handler that Forward runs.
func (l *Log) HandleForward(f func(context.Context, []byte) ([]byte, error)) { l.handler = f }

// Forward runs the handler, and again while it reports that leadership was lost.
func (l *Log) Forward(ctx context.Context, req []byte) ([]byte, error) {
	lost := &cluster.NoLeaderError{Waited: time.Second, Reason: "a majority of the nodes cannot be reached"}
	for range 100 {
		if l.NoLeader {
			break
		}
		answer, err := l.handler(ctx, req)
		if errors.Is(err, cluster.ErrOutcomeUnknown) {
			lost.Uncertain = true
		} else if !errors.Is(err, cluster.ErrNotLeader) {
			return answer, err
		}
	}
	return nil, lost
}

// ReadIndex is the index applied.
func (l *Log) ReadIndex(context.Context) (uint64, error) {
	if l.NoLeader {
		return 0, &cluster.NoLeaderError{Reason: "no leader is elected"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index + l.Behind, nil
}

// Wait knows at once whether the index exists, unless there is no leader to say so.
func (l *Log) Wait(ctx context.Context, index uint64) error {
	at := l.Machine.Store().View().Index()
	switch {
	case at >= index:
		return nil
	case l.NoLeader:
		<-ctx.Done()
		return ctx.Err()
	}
	return &cluster.FutureIndexError{Index: index, Committed: at}
}

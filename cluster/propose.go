package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"concord/fsm"
	"concord/fsm/command"
)

// maxWaiters bounds how many requests wait for an index.
const maxWaiters = 4096

// patience is how long Wait trusts the index to be on its way before it asks the leader whether it exists.
const patience = 25 * time.Millisecond

// Propose appends a command to the log and returns once this node's machine has applied it. It works on the leader only. What the
// machine says about the command is in the result's Err; the error is about the log: ErrNotLeader (nothing happened) or
// ErrOutcomeUnknown. Once the entry is on its way, ctx cannot call it back; a leader without a majority gives up after its lease.
func (n *Node) Propose(ctx context.Context, c command.Command) (fsm.Result, error) {
	m, err := n.membership()
	if err != nil || !m.ready.Load() { // a node that has just let go of its part leads no more: Forward finds who does
		return fsm.Result{}, ErrNotLeader
	}
	return m.propose(ctx, c)
}

func (m *membership) propose(ctx context.Context, c command.Command) (fsm.Result, error) {
	if err := ctx.Err(); err != nil {
		return fsm.Result{}, err
	}
	if c.LeaderTime == 0 {
		c.LeaderTime = max(time.Now().UnixMilli(), m.machine.LeaderTime())
	}
	m.inflight.Add(1)
	f := m.raft.Apply(command.Encode(c), 0)
	err := m.await(f)
	if m.inflight.Add(-1) == 0 {
		wake(m.nudges)
	}
	if err != nil {
		return fsm.Result{}, leaderError(err)
	}
	res, ok := f.Response().(fsm.Result)
	if !ok {
		return fsm.Result{}, fmt.Errorf("log entry %d was not applied", f.Index())
	}
	return res, nil
}

// await waits for one of raft's futures, or until raft has stopped: what was on its way to the state machine then is never answered
// (hashicorp/raft v1.7.3 leaves the queue of its goroutine behind).
func (m *membership) await(f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-m.ended.Done():
		return raft.ErrRaftShutdown
	}
}

// leaderError translates raft's errors into those of this package.
func leaderError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrNotLeader
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return ErrOutcomeUnknown
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrOutcomeUnknown
	}
	return err
}

// nudger appends one barrier behind the last pending write: followers learn that an entry is committed only from the next one, and
// without it that is a heartbeat later.
func (m *membership) nudger() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.nudges:
			if m.inflight.Load() == 0 && !m.alone() {
				_ = m.await(m.raft.Barrier(time.Second)) // best effort: the next entry or heartbeat tells the same
			}
		}
	}
}

// ReadIndex asks the leader for the index that a linearizable read must wait for.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) {
	var answer readIndexAnswer
	err := n.leaderCall(ctx, opReadIndex, nil, &answer)
	return answer.Index, err
}

type readIndexAnswer struct {
	Index uint64 `json:"index"`
}

func (m *membership) leadReadIndex(context.Context, string, struct{}) (readIndexAnswer, error) {
	index := m.machine.index() // before the question, so that whoever leads later has at least this
	if err := m.await(m.raft.VerifyLeader()); err != nil {
		return readIndexAnswer{}, ErrNotLeader
	}
	return readIndexAnswer{index}, nil
}

// Wait returns once the local machine has applied the index. An index that does not exist is a *FutureIndexError, soon and at little
// cost, whoever makes it up.
func (n *Node) Wait(ctx context.Context, index uint64) error {
	m := n.machine
	if m.index() >= index {
		return nil
	}
	m.mu.Lock()
	if m.waiters >= maxWaiters {
		m.mu.Unlock()
		return ErrTooManyWaiters
	}
	m.waiters++
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.waiters--
		m.mu.Unlock()
	}()
	doubt := time.NewTimer(patience)
	defer doubt.Stop()
	var newest chan uint64
	for {
		m.mu.Lock()
		applied, moved := m.applied, m.moved
		m.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-moved:
		case <-doubt.C:
			newest = n.readIndex.ask(ctx, n.ReadIndex)
		case have, ok := <-newest:
			if ok && have < index {
				return &FutureIndexError{Index: index, Committed: have}
			}
			newest = nil // it exists, or nobody knows: wait on
		}
	}
}

// coalesced lets many share one question.
type coalesced struct {
	mu      sync.Mutex
	asking  bool
	waiting []chan uint64
}

// ask gives the answer to a question that is asked after this call begins, or closes the channel when there is none.
func (c *coalesced) ask(ctx context.Context, question func(context.Context) (uint64, error)) chan uint64 {
	ch := make(chan uint64, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, ch)
	if !c.asking {
		c.asking = true
		go c.run(context.WithoutCancel(ctx), question)
	}
	return ch
}

func (c *coalesced) run(ctx context.Context, question func(context.Context) (uint64, error)) {
	for {
		c.mu.Lock()
		list := c.waiting
		c.waiting = nil
		if len(list) == 0 {
			c.asking = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		answer, err := question(ctx)
		for _, ch := range list {
			if err == nil {
				ch <- answer
			}
			close(ch)
		}
	}
}

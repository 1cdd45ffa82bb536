package cluster

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"concord/fsm"
	"concord/fsm/state"
)

// machine lets raft drive fsm.Machine, and wakes those who wait for an index.
type machine struct {
	*fsm.Machine
	fatal func(error)

	mu      sync.Mutex
	applied uint64        // index of the last command applied
	moved   chan struct{} // closed and replaced when applied changes
	waiters int
}

func newMachine(m *fsm.Machine, fatal func(error)) *machine {
	return &machine{Machine: m, fatal: fatal, applied: m.Store().View().Index(), moved: make(chan struct{})}
}

// index is that of the last command applied. Entries of raft itself do not count: two nodes with the same commands have the same
// index, whatever elections came after.
func (m *machine) index() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applied
}

func (m *machine) move(to uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = to
	close(m.moved)
	m.moved = make(chan struct{})
}

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	entries := make([]fsm.Entry, 0, len(logs))
	at := make([]int, 0, len(logs))
	have := m.index()
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		if l.Index <= have { // replayed before raft knew that it was committed
			results[i] = fsm.Result{Index: l.Index}
			continue
		}
		entries = append(entries, fsm.Entry{Index: l.Index, Data: l.Data})
		at = append(at, i)
	}
	if len(entries) == 0 {
		return results
	}
	for i, r := range m.ApplyAll(entries) {
		results[at[i]] = r
		var stop *fsm.FatalError
		if errors.As(r.Err, &stop) {
			m.fatal(stop)
			return results // the index stays where the state is
		}
	}
	m.move(entries[len(entries)-1].Index)
	return results
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{m.Machine, m.Store().View()}, nil
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := m.Machine.Restore(r); err != nil {
		// raft would only log it and go on with a machine that is behind its log.
		err = fmt.Errorf("restoring a snapshot: %w", err)
		m.fatal(err)
		return err
	}
	m.move(m.Store().View().Index())
	return nil
}

type snapshot struct {
	machine *fsm.Machine
	view    *state.View
}

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.machine.Persist(s.view, sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) Release() {}

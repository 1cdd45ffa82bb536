package fsm

import (
	"fmt"
	"slices"

	"concord/fsm/command"
)

// The bounds of what is staged. A stage whose owner stopped half-way is dropped by log entry (command.ExpireBefore) once it is
// StageLife old by leader time.
const (
	MaxStages      = 4
	MaxStagedBytes = 128 << 20 // of all stages together
	StageLife      = 60_000    // milliseconds since the last piece
)

// putOverhead is what a staged put takes beside its row, in bytes.
const putOverhead = 64

// stage is the part of a large transaction that has come so far. It is part of the view, so it is never changed: a new piece makes
// a new value, whose puts share memory with the old one's.
type stage struct {
	id      [16]byte
	touched int64 // leader time of the last piece
	next    uint32
	bytes   int
	puts    []command.Put
}

// StageError says why a piece or a commit of a large transaction was refused. Nothing was written: it can be staged anew.
type StageError struct{ Reason string }

func (e *StageError) Error() string { return "large transaction: " + e.Reason }

func sizeOf(puts []command.Put) (n int) {
	for i := range puts {
		n += len(puts[i].Raw) + putOverhead
	}
	return n
}

// stage adds a piece.
func (a *aux) stage(op command.Stage, now int64) error {
	a.dropStages(now)
	i := slices.IndexFunc(a.stages, func(s stage) bool { return s.id == op.ID })
	s := stage{id: op.ID}
	if i >= 0 {
		s = a.stages[i]
	}
	total := sizeOf(op.Puts)
	for _, other := range a.stages {
		total += other.bytes
	}
	switch {
	case op.Seq < s.next:
		return nil
	case op.Seq > s.next:
		return &StageError{fmt.Sprintf("piece %d came, %d was expected: what was staged before has been dropped", op.Seq, s.next)}
	case i < 0 && len(a.stages) == MaxStages:
		return &StageError{fmt.Sprintf("%d others are under way", MaxStages)}
	case total > MaxStagedBytes:
		return &StageError{fmt.Sprintf("more than %d bytes would be staged at once", MaxStagedBytes)}
	}
	s.touched, s.next, s.bytes, s.puts = now, s.next+1, s.bytes+sizeOf(op.Puts), append(s.puts, op.Puts...)
	a.stages = slices.Clone(a.stages)
	if i < 0 {
		a.stages = append(a.stages, s)
	} else {
		a.stages[i] = s
	}
	return nil
}

// unstage takes a whole stage out.
func (a *aux) unstage(op command.Commit) ([]command.Put, error) {
	i := slices.IndexFunc(a.stages, func(s stage) bool { return s.id == op.ID })
	if i < 0 {
		if op.Pieces == 0 {
			return nil, nil
		}
		return nil, &StageError{"what was staged has been dropped"}
	}
	s := a.stages[i]
	a.stages = slices.Delete(slices.Clone(a.stages), i, i+1)
	switch op.Pieces {
	case 0:
		return nil, nil
	case s.next:
		return s.puts, nil
	}
	return nil, &StageError{fmt.Sprintf("%d of %d pieces are there", s.next, op.Pieces)}
}

// dropStages forgets the stages that nobody goes on with.
func (a *aux) dropStages(now int64) {
	stale := func(s stage) bool { return s.touched+StageLife <= now }
	if slices.ContainsFunc(a.stages, stale) {
		a.stages = slices.DeleteFunc(slices.Clone(a.stages), stale)
	}
}

// Stale says whether an ExpireBefore of the time (Unix milliseconds) would drop a stage.
func (m *Machine) Stale(now int64) bool {
	return slices.ContainsFunc(auxOf(m.store.View()).stages, func(s stage) bool { return s.touched+StageLife <= now })
}

// Staged is what the stages hold now, in bytes.
func (m *Machine) Staged() (n int) {
	for _, s := range auxOf(m.store.View()).stages {
		n += s.bytes
	}
	return n
}

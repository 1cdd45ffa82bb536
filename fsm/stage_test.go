package fsm

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/command"
)

func stageOf(stage byte, seq uint32, puts ...command.Put) command.Command {
	return command.Command{Level: 2, LeaderTime: 1_000_000, Op: command.Stage{ID: [16]byte{stage}, Seq: seq, Puts: puts}}
}

func commitOf(stage byte, pieces uint32) command.Command {
	return command.Command{Level: 2, Op: command.Commit{ID: [16]byte{stage}, Pieces: pieces}}
}

// staged is full with transactions under way.
func staged(t testing.TB) *Machine {
	m := full(t)
	do(m, stageOf(1, 0, row(t, teams, 7, obj{"name": "blue"}), drop(keys, 21)))
	do(m, stageOf(1, 1, row(t, keys, 29, obj{"key": "k-29", "owner": ref(12)})))
	do(m, stageOf(2, 0))
	return m
}

// What is staged is seen by nobody until its commit makes all of it visible at once, in any order of the rows.
func TestStage(t *testing.T) {
	m := machine(t)
	do(m, stageOf(1, 0, row(t, uses, 1, obj{"key": ref(2)})))
	do(m, stageOf(1, 1, row(t, keys, 2, obj{"key": "k", "owner": ref(3)})))
	do(m, stageOf(1, 1, row(t, keys, 99, obj{"key": "again", "owner": ref(3)}))) // repeated: ignored
	do(m, stageOf(1, 2, row(t, owners, 3, obj{"name": "o"})))
	if got := names(m); len(got) != 0 || m.Staged() == 0 {
		t.Fatalf("before the commit: %v, %d bytes staged", got, m.Staged())
	}
	c := commitOf(1, 3)
	c.RequestID = [16]byte{5}
	res := do(m, c)
	if diff := cmp.Diff([]string{"owners/3", "keys/2", "uses/1"}, names(m)); res.Err != nil || diff != "" {
		t.Fatalf("%v\n%s", res.Err, diff)
	}
	if again := do(m, c); again.Err != nil || again.Index != res.Index { // the answer was lost, the commit repeated
		t.Errorf("repeated: %+v, want the result of %d", again, res.Index)
	}
	if m.Staged() != 0 {
		t.Errorf("%d bytes are still staged", m.Staged())
	}
}

func TestStageRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		log  []command.Command
		want string // of the last one
	}{
		{"unknown", []command.Command{commitOf(1, 1)}, "has been dropped"},
		{"a piece is missing", []command.Command{stageOf(1, 0), commitOf(1, 2)}, "1 of 2 pieces"},
		{"a gap", []command.Command{stageOf(1, 0), stageOf(1, 2)}, "piece 2 came, 1 was expected"},
		{"forgotten", []command.Command{stageOf(1, 0), commitOf(1, 0), commitOf(1, 1)}, "has been dropped"},
		{"forgetting nothing", []command.Command{commitOf(1, 0)}, ""},
		{"too many", []command.Command{stageOf(1, 0), stageOf(2, 0), stageOf(3, 0), stageOf(4, 0), stageOf(5, 0)}, "4 others are under way"},
		{"too old", []command.Command{stageOf(1, 0), {LeaderTime: 1_000_000 + StageLife, Op: command.ExpireBefore{}}, commitOf(1, 1)}, "has been dropped"},
		{"not too old", []command.Command{stageOf(1, 0), {LeaderTime: 1_000_000 + StageLife - 1, Op: command.ExpireBefore{}}, commitOf(1, 1)}, ""},
		{"a refused row", []command.Command{stageOf(1, 0, row(t, teams, 1, obj{"name": "x"})), stageOf(1, 1, row(t, keys, 1, obj{"key": "k", "owner": ref(9)})), commitOf(1, 2)},
			"which does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machine(t)
			var res Result
			for _, cmd := range c.log {
				res = do(m, cmd)
			}
			if (res.Err == nil) != (c.want == "") || res.Err != nil && !strings.Contains(res.Err.Error(), c.want) {
				t.Errorf("error %v, want %q", res.Err, c.want)
			}
			if got := names(m); len(got) != 0 {
				t.Errorf("%v was written", got)
			}
		})
	}
}

func TestStageIsBounded(t *testing.T) {
	m := machine(t)
	big := command.Put{Table: teams, ID: id(1), Raw: bytes.Repeat([]byte("x"), 8<<20)}
	var res Result
	for seq := uint32(0); res.Err == nil && seq < 100; seq++ {
		res = do(m, stageOf(1, seq, big))
	}
	if m.Staged() > MaxStagedBytes || !as[*StageError](res.Err) {
		t.Errorf("%d bytes are staged: %v", m.Staged(), res.Err)
	}
	if !m.Stale(1_000_000+StageLife) || m.Stale(1_000_000) {
		t.Error("a stage is stale StageLife after its last piece")
	}
}

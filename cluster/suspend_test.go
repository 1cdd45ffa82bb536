package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"concord/fsm/command"
	"concord/fsm/state"
)

// TestSuspend: the log goes on in another process, and in the first one again, whether the other wrote or not, and also when it made snapshots.
func TestSuspend(t *testing.T) {
	for _, c := range []struct {
		name      string
		members   int
		snapshots bool
	}{{"alone", 1, false}, {"alone with snapshots", 1, true}, {"one of two", 2, false}} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, "first", func(o *Options) {
				if c.snapshots {
					o.Tuning.SnapshotThreshold, o.Tuning.TrailingLogs = 4, 1
				}
			})
			n.keepPorts()
			if c.members == 2 {
				newNode(t, "other", nil).join(n)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			count := 0
			write := func(n *testNode, times int) {
				t.Helper()
				for range times {
					count++
					name := fmt.Sprintf("c%d", count)
					n.mustHave(n.mustWrite(name), name) // the other one may lead
				}
			}
			write(n, 10)
			var resets atomic.Int32
			lowest := n.machine.Store().View().Index()
			defer n.machine.Store().Subscribe(func(ch state.Changes) {
				if ch.Reset {
					resets.Add(1)
				}
				if ch.Index < lowest {
					t.Errorf("the state went back from %d to %d", lowest, ch.Index)
				}
			})()
			id, clusterID := n.ID(), n.ClusterID()
			for round, writes := range []int{0, 3, 12} {
				must(n.Suspend(ctx))
				if _, err := n.write("lost"); !errors.Is(err, ErrClosed) {
					t.Fatalf("a write to a suspended node: %v", err)
				}
				// What runs on the leader may be under way: it is another leader that has to judge.
				if _, err := n.Propose(ctx, command.Command{}); !errors.Is(err, ErrNotLeader) {
					t.Errorf("a command to a suspended node: %v", err)
				}
				if n.ID() != id || n.ClusterID() != clusterID {
					t.Errorf("a suspended node is %q of %q", n.ID(), n.ClusterID())
				}
				if writes > 0 {
					second := &testNode{t: t, fatal: make(chan error, 1), opt: n.opt}
					must(second.open())
					write(second, writes)
					if c.snapshots {
						if err := second.current.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
							t.Fatal(err)
						}
					}
					second.close()
				}
				before := resets.Load()
				must(n.Resume(ctx))
				if writes == 0 && resets.Load() != before {
					t.Error("the state was loaded anew although nothing had changed")
				}
				write(n, 2)
				for i := 1; i <= count; i++ {
					if !n.has(fmt.Sprintf("c%d", i)) {
						t.Fatalf("round %d: the write c%d is lost", round, i)
					}
				}
				if n.has("lost") {
					t.Error("a refused write has happened")
				}
			}
			must(n.Suspend(ctx)) // and a shutdown ends it
			must(n.Shutdown(ctx))
			if err := n.Resume(ctx); !errors.Is(err, ErrClosed) {
				t.Errorf("resumed after a shutdown: %v", err)
			}
			n.Node = nil
		})
	}
}

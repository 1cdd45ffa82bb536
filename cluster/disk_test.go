package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// faulty is a backend whose writes fail or hang on demand.
type faulty struct {
	backend
	err  atomic.Pointer[error]
	hang atomic.Pointer[chan struct{}]
	full atomic.Bool
	room atomic.Int64 // how many writes a full one still takes
}

func (f *faulty) refuses() bool { return f.full.Load() && f.room.Add(-1) < 0 }

func (f *faulty) Set(k, v []byte) error {
	if f.refuses() {
		return syscall.ENOSPC
	}
	return f.backend.Set(k, v)
}

func (f *faulty) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

func (f *faulty) StoreLogs(l []*raft.Log) error {
	if ch := f.hang.Load(); ch != nil {
		<-*ch
	}
	if f.refuses() {
		return &os.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	}
	if err := f.err.Swap(nil); err != nil { // once, as after a failed fsync
		return *err
	}
	return f.backend.StoreLogs(l)
}

func TestFailedWriteIsFatal(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"fails once", "hangs"} {
		t.Run(kind, func(t *testing.T) {
			stores := map[string]*faulty{}
			nodes := startCluster(t, 3, func(o *Options) {
				o.Tuning.WriteStall = 5 * time.Second // the disks of a busy machine take long for a good write, too
				// No election in between: raft panics when it cannot note a term, which a process that has ended cannot do.
				o.Tuning.HeartbeatTimeout, o.Tuning.ElectionTimeout, o.Tuning.LeaderLease = 3*time.Second, 3*time.Second, 2*time.Second
				o.Tuning.LeaderWait = time.Minute
				f := &faulty{}
				stores[o.Prefix] = f
				o.wrapStore = func(b backend) backend { f.backend = b; return f }
			})
			leader := leaderOf(t, nodes)
			leader.mustWrite("before")
			f := stores[leader.opt.Prefix]
			release := make(chan struct{})
			if kind == "hangs" {
				f.hang.Store(&release)
			} else {
				eio := errors.New("input/output error")
				f.err.Store(&eio)
			}
			go leader.write("on the bad disk")
			select {
			case err := <-leader.fatal:
				if !strings.Contains(err.Error(), filepath.Join(leader.opt.Prefix, "cluster", "raft", "raft.db")) {
					t.Errorf("the fatal error does not name the file: %v", err)
				}
			case <-time.After(60 * time.Second):
				t.Fatal("the process went on")
			}
			m, err := leader.membership()
			if err != nil {
				t.Fatal(err)
			}
			f.hang.Store(nil)
			close(release)
			if err := m.disk.SetUint64([]byte("CurrentTerm"), 99); err == nil {
				t.Error("something is written after the failure")
			}
			leader.kill() // what the default Fatal does
			rest := others(nodes, leader)
			index := rest[0].mustWrite("after")
			rest[1].mustHave(index, "before", "after")
			leader.restart()
			leader.mustHave(index, "before", "after")
		})
	}
}

// TestFullDisk: a node whose disk is full serves what it has, the others go on, and it takes part again when there is room. Neither a write nor a
// term that cannot be stored ends the process.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprint("alone ", alone), func(t *testing.T) {
			members := 3
			if alone {
				members = 1
			}
			stores := map[string]*faulty{}
			nodes := startCluster(t, members, func(o *Options) {
				f := &faulty{}
				stores[o.Prefix] = f
				o.wrapStore = func(b backend) backend { f.backend = b; return f }
			})
			leader := leaderOf(t, nodes)
			index := leader.mustWrite("before")
			f := stores[leader.opt.Prefix]
			f.full.Store(true)
			go leader.write("on the full disk") // it may come through, on the next leader
			eventually(t, "sits out", func() error {
				if _, err := leader.membership(); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "full") {
					return fmt.Errorf("its part in the cluster: %w", err)
				}
				return nil
			})
			leader.mustHave(index, "before")
			if _, err := leader.write("refused"); !errors.Is(err, ErrClosed) {
				t.Errorf("a write on a node that sits out: %v", err)
			}
			if err := leader.Resume(t.Context()); err != nil { // an upgrade that fails meanwhile
				t.Errorf("resume: %v", err)
			}
			writer := leader
			if !alone {
				writer = others(nodes, leader)[0]
				index = writer.mustWrite("meanwhile")
			}
			for writes := range int64(5) { // there is room for some, and then the disk is full again
				f.room.Store(writes)
				eventually(t, "sits out again", func() error {
					if !alone {
						index = writer.mustWrite(fmt.Sprintf("one that takes room %d", writes))
					}
					if _, err := leader.membership(); f.room.Load() >= 0 || !errors.Is(err, ErrClosed) {
						return fmt.Errorf("after %d writes: %w", writes, err)
					}
					return nil
				})
			}
			f.full.Store(false)
			eventually(t, "takes part again", func() error { _, err := leader.membership(); return err })
			leader.mustHave(index)
			index = writer.mustWrite("after")
			for _, n := range nodes {
				n.mustHave(index, "before", "after")
			}
			select {
			case err := <-leader.fatal:
				t.Errorf("it ended: %v", err)
			default:
			}
		})
	}
}

// TestFullDiskAtStart: a member whose disk is full when it starts serves what it has, and takes part when there is room.
func TestFullDiskAtStart(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint("members ", members), func(t *testing.T) {
			stores := map[string]*faulty{}
			nodes := startCluster(t, members, func(o *Options) {
				f := &faulty{}
				stores[o.Prefix] = f
				o.wrapStore = func(b backend) backend { f.backend = b; return f }
			})
			n := nodes[0]
			index := n.mustWrite("before")
			n.mustHave(index, "before")
			n.kill()
			f := stores[n.opt.Prefix]
			f.full.Store(true)
			n.restart()
			n.mustHave(index, "before")
			eventually(t, "tells what it knows", func() error {
				s := n.Status(t.Context())
				if i := slices.IndexFunc(s.Nodes, func(ns NodeStatus) bool { return ns.ID == n.ID() && strings.Contains(ns.State, "disk full") }); i < 0 || len(s.Nodes) != members || s.Healthy {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			if _, err := n.write("refused"); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "full") {
				t.Errorf("a write on a node that sits out: %v", err)
			}
			if members > 1 {
				index = nodes[1].mustWrite("meanwhile")
			}
			f.full.Store(false)
			eventually(t, "takes part", func() error { _, err := n.membership(); return err })
			n.mustHave(index, "before")
			index = n.mustWrite("after")
			for _, n := range nodes {
				n.mustHave(index, "before", "after")
			}
			select {
			case err := <-n.fatal:
				t.Errorf("it ended: %v", err)
			default:
			}
		})
	}
}

func TestCatchUpBySnapshot(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, func(o *Options) {
		o.Tuning.SnapshotThreshold, o.Tuning.TrailingLogs = 50, 20
	})
	late := others(nodes, leaderOf(t, nodes))[0]
	late.kill()
	leader := leaderOf(t, others(nodes, late))
	var index uint64
	for i := range 300 {
		index = leader.mustWrite(fmt.Sprintf("w%d", i))
	}
	eventually(t, "compacted", func() error {
		m, err := leader.membership()
		if err == nil && m.disk.first.Load() < 100 {
			err = fmt.Errorf("the log begins at %d", m.disk.first.Load())
		}
		return err
	})
	late.restart()
	late.mustHave(index, "w0", "w150", "w299")
	fresh := newNode(t, "fresh", nil)
	fresh.join(leader)
	fresh.mustHave(index, "w0", "w150", "w299")
	for _, n := range append(nodes, fresh) {
		n.mustHave(leader.machine.Store().View().Index())
	}
	want, err := leader.machine.Hash(leader.machine.Store().View())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(nodes, fresh) {
		if got, err := n.machine.Hash(n.machine.Store().View()); err != nil || got != want {
			t.Errorf("%s: another state: %v", n.opt.Name, err)
		}
	}
}

func TestNodeWithoutQuorumServesItsState(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, func(o *Options) { o.Tuning.QuorumWait, o.Tuning.LeaderWait = time.Second, 50*time.Second })
	index := nodes[0].mustWrite("kept")
	for _, n := range nodes {
		n.mustHave(index)
	}
	time.Sleep(2 * noteEvery)
	for _, n := range nodes {
		n.kill()
	}
	n := nodes[1]
	n.restart()
	n.mustHave(index, "kept")
	begin := time.Now()
	_, err := n.write("too few")
	var noLeader *NoLeaderError
	if !errors.As(err, &noLeader) || !strings.Contains(err.Error(), "1 of 3 voters") {
		t.Errorf("a write without a majority: %v", err)
	}
	if d := time.Since(begin); d > 40*time.Second { // less than for an election that may still come
		t.Errorf("the answer took %s", d)
	}
	s := n.Status(context.Background())
	if s.Healthy || s.Leader != "" || s.FailureTolerance != 0 || len(s.Nodes) != 3 {
		t.Errorf("status: %+v", s)
	}
}

func snapshotFiles(t *testing.T, n *testNode, name string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(n.opt.Prefix, "cluster", "raft", "snapshots", "*", name))
	if err != nil || len(list) == 0 {
		t.Fatalf("no snapshot of %s: %v", n.opt.Name, err)
	}
	return list
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at = len(b) / 2
	}
	b[at] ^= 0x40
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	small := func(o *Options) {
		o.Tuning.SnapshotThreshold, o.Tuning.TrailingLogs = 50, 5
	}
	damage := map[string]func(*testing.T, *testNode){
		"content": func(t *testing.T, n *testNode) {
			for _, f := range snapshotFiles(t, n, "state.bin") {
				flip(t, f, -1)
			}
		},
		"description": func(t *testing.T, n *testNode) {
			for _, f := range snapshotFiles(t, n, "meta.json") {
				flip(t, f, 0)
			}
		},
		"missing": func(t *testing.T, n *testNode) {
			for _, f := range snapshotFiles(t, n, "meta.json") {
				if err := os.RemoveAll(filepath.Dir(f)); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
	fill := func(t *testing.T, nodes []*testNode) (index uint64) {
		for i := range 120 {
			index = nodes[0].mustWrite(fmt.Sprintf("w%d", i))
		}
		for _, n := range nodes {
			n.mustHave(index)
			eventually(t, "compacted", func() error {
				m, err := n.membership()
				if err == nil && m.disk.first.Load() < 20 {
					err = fmt.Errorf("the log begins at %d", m.disk.first.Load())
				}
				return err
			})
		}
		return index
	}
	for what, harm := range damage {
		t.Run(what+", alone", func(t *testing.T) {
			n := newNode(t, "alone", small)
			fill(t, []*testNode{n})
			n.close()
			harm(t, n)
			err := n.open()
			if err == nil || !strings.Contains(err.Error(), filepath.Join(n.opt.Prefix, "cluster", "raft", "snapshots")) {
				t.Fatalf("opened with: %v", err)
			}
		})
	}
	t.Run("in a cluster", func(t *testing.T) {
		nodes := startCluster(t, 3, small)
		index := fill(t, nodes)
		for _, harm := range damage {
			n := others(nodes, leaderOf(t, nodes))[1]
			n.kill()
			harm(t, n)
			n.restart()
			n.mustHave(index, "w0", "w60", "w119")
			index = n.mustWrite(fmt.Sprint("again", index))
			waitVoters(t, nodes, 3)
		}
	})
}

// TestDamagedLog flips bytes all over the log file: the node either refuses it by name or has the same state as before.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	n := newNode(t, "alone", nil)
	var index uint64
	for i := range 40 {
		index = n.mustWrite(fmt.Sprintf("w%d", i))
	}
	n.close()
	path := filepath.Join(n.opt.Prefix, "cluster", "raft", "raft.db")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, data []byte) (refused bool) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		store, _, err := openBolt(path)
		if err == nil {
			d, derr := newDisk(path, store, time.Second, func(error) {}, func() uint64 { return 0 })
			if err = derr; err == nil && (d.last.Load() < index || d.first.Load() != 1) {
				t.Fatalf("%s: log from %d to %d, must be 1 to %d at least", what, d.first.Load(), d.last.Load(), index)
			}
			store.Close()
		}
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the refusal does not name the file: %v", what, err)
		}
		return err != nil
	}
	if check("untouched", sound) {
		t.Fatal("the sound file is refused")
	}
	refused := 0
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		at := r.IntN(len(sound))
		data := bytes.Clone(sound)
		data[at] ^= 1 << r.IntN(8)
		if check(fmt.Sprintf("byte %d", at), data) {
			refused++
		}
	}
	t.Logf("%d of 500 flips are refused, the others lie in unused parts", refused)
	// An entry of the log, not just any byte.
	at := bytes.Index(sound, []byte("w20"))
	data := bytes.Clone(sound)
	for ; at >= 0 && at < len(data); at += 3 {
		copy(data[at:], "w99")
		k := bytes.Index(data[at+3:], []byte("w20"))
		if k < 0 {
			break
		}
		at += k
	}
	if !check("a changed name", data) {
		t.Error("a changed entry is not noticed")
	}
	for _, size := range []int{16384, 8192, 4096, 100} {
		if !check(fmt.Sprintf("cut to %d bytes", size), sound[:size]) {
			t.Errorf("a file cut to %d bytes is not noticed", size)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := n.open(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing log: %v", err)
	}
	if err := os.WriteFile(path, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.mustHave(index, "w0", "w20", "w39")
	if err := func() error { o := n.opt; o.Machine = n.machine; _, _, err := openBolt(path); return err }(); err == nil || !strings.Contains(err.Error(), "another concord process") {
		t.Errorf("the file of a running node: %v", err)
	}
}

// TestFiles: nothing secret is in clear below a prefix, and nobody else may read it.
func TestFiles(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, func(o *Options) { o.Tuning.SnapshotThreshold = 5 })
	for i := range 20 {
		nodes[0].mustWrite(fmt.Sprint("w", i))
	}
	tok := token(t, nodes[0], TokenOptions{})
	meta, _ := nodes[0].rows.clusterMeta()
	secrets := [][]byte{
		[]byte(strings.Split(tok, ".")[4]), []byte(meta.Val.GossipKeys[0]),
		[]byte(strings.Split(meta.Val.CAKey, "\n")[1]), // the first line of the key itself
	}
	keys, err := decodeKeys(meta.Val.GossipKeys)
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, keys[0])
	for _, n := range nodes {
		snapshotFiles(t, n, "state.bin")
		n.close()
		err := filepath.WalkDir(n.opt.Prefix, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			if rel, _ := filepath.Rel(n.opt.Prefix, path); rel == "cluster" && info.Mode().Perm() != 0o700 {
				t.Errorf("%s has mode %v", path, info.Mode())
			} else if filepath.Dir(rel) == "cluster" && !e.IsDir() && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			if e.IsDir() {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i, s := range secrets {
				if bytes.Contains(b, s) {
					t.Errorf("%s holds secret %d in clear", path, i)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

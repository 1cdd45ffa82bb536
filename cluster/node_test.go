package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/test/harness"
)

// fast are timers for loopback.
func fast() Tuning {
	return Tuning{
		HeartbeatTimeout: 400 * time.Millisecond, ElectionTimeout: 400 * time.Millisecond, LeaderLease: 350 * time.Millisecond,
		StabilizationTime: 200 * time.Millisecond, SnapshotInterval: 50 * time.Millisecond,
		// A busy machine makes nodes lose sight of each other, and its disk take long.
		LeaderWait: time.Minute, QuorumWait: 12 * time.Second, WriteStall: time.Minute,
	}
}

// testNode is a Node with what it needs to be started again.
type testNode struct {
	*Node
	t       *testing.T
	opt     Options
	machine *fsm.Machine
	fatal   chan error
}

func testLog(t *testing.T) *slog.Logger {
	level := slog.LevelWarn + 1
	if os.Getenv("CLUSTER_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// freeAddr is an address that no connection of the kernel's choice takes while the node is down.
func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := harness.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func newNode(t *testing.T, name string, change func(*Options)) *testNode {
	t.Helper()
	n := &testNode{t: t, fatal: make(chan error, 1), opt: Options{
		Prefix: t.TempDir(), Name: name, Listen: freeAddr(t), GossipListen: freeAddr(t), Version: "test",
		Log: testLog(t).With("at", name), Tuning: fast(),
	}}
	n.opt.Fatal = func(err error) { n.fatal <- err }
	if change != nil {
		change(&n.opt)
	}
	if err := n.open(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { n.close() })
	return n
}

func (n *testNode) open() error {
	keys, err := LoadKeys(n.opt.Prefix)
	if err != nil {
		return err
	}
	n.machine = fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})
	n.opt.Machine = n.machine
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	node, err := Open(ctx, n.opt)
	if err != nil {
		return err
	}
	n.Node = node
	// The forwarded request is a consumer's name, the answer the index.
	node.HandleForward(func(ctx context.Context, req []byte) ([]byte, error) {
		res, err := node.Propose(ctx, consumerCommand(string(req)))
		if err == nil {
			err = res.Err
		}
		return fmt.Append(nil, res.Index), err
	})
	return nil
}

func (n *testNode) close() {
	if n.Node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := n.Node.Shutdown(ctx); err != nil {
		n.t.Errorf("%s: shutdown: %v", n.opt.Name, err)
	}
	n.Node = nil
}

// kill ends the node without any goodbye.
func (n *testNode) kill() {
	if err := n.Node.stop(false); err != nil {
		n.t.Logf("%s: kill: %v", n.opt.Name, err)
	}
	n.Node = nil
}

// restart opens the node again, at another port.
func (n *testNode) restart() {
	n.t.Helper()
	if err := n.open(); err != nil {
		n.t.Fatalf("%s: restart: %v", n.opt.Name, err)
	}
}

// keepPorts makes restarts use the ports of now.
func (n *testNode) keepPorts() {
	m, err := n.membership()
	if err != nil {
		n.t.Fatal(err)
	}
	n.opt.Listen = n.port.Addr().String()
	n.opt.GossipListen = m.gossip.Load().Addr()
}

// tryAgain tells the failures of a join that come with a change of the leader: whoever joins is told to try again.
func tryAgain(err error) bool {
	return strings.Contains(err.Error(), "the leader changed") || strings.Contains(err.Error(), "no answer to the join request")
}

func (n *testNode) join(to *testNode) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	for {
		token, err := to.CreateToken(ctx, TokenOptions{})
		if err != nil {
			n.t.Fatal(err)
		}
		err = n.Join(ctx, to.Address(), token, false)
		if err == nil {
			return
		}
		if !tryAgain(err) {
			n.t.Fatalf("%s joins: %v", n.opt.Name, err)
		}
	}
}

// cluster starts nodes and waits until they are a healthy cluster of voters.
func startCluster(t *testing.T, size int, change func(*Options)) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range size {
		n := newNode(t, fmt.Sprintf("n%d", i+1), change)
		if i > 0 {
			n.join(nodes[0])
		}
		nodes = append(nodes, n)
	}
	waitVoters(t, nodes, size)
	for _, n := range nodes {
		n.keepPorts()
	}
	return nodes
}

func waitVoters(t *testing.T, nodes []*testNode, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d voters", want), func() error {
		for _, n := range nodes {
			s := n.Status(context.Background())
			voters := 0
			for _, x := range s.Nodes {
				if x.Role == Voter {
					voters++
				}
			}
			if voters != want || !s.Healthy || s.FailureTolerance != (want-1)/2 {
				return fmt.Errorf("%s: %+v", n.opt.Name, s)
			}
		}
		return nil
	})
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func leaderOf(t *testing.T, nodes []*testNode) *testNode {
	t.Helper()
	var leader *testNode
	eventually(t, "a leader", func() error {
		for _, n := range nodes {
			if n.Node != nil && n.IsLeader() {
				leader = n
				return nil
			}
		}
		return fmt.Errorf("none of %d leads", len(nodes))
	})
	return leader
}

func others(nodes []*testNode, not *testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *testNode) bool { return n == not })
}

func consumerCommand(name string) command.Command {
	id := uuid.NewSHA1(uuid.Nil, []byte(name))
	raw := fmt.Appendf(nil, `{"created_at":1,"custom_id":null,"id":%q,"tags":null,"updated_at":1,"username":%q}`, id, name)
	return command.Command{Level: 1, RequestID: id, Op: command.Txn{Puts: []command.Put{{Table: 3, ID: id, Raw: raw}}}}
}

// write forwards the creation of a consumer and returns its index.
func (n *testNode) write(name string) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	answer, err := n.Forward(ctx, []byte(name))
	if err != nil {
		return 0, err
	}
	var index uint64
	_, err = fmt.Sscan(string(answer), &index)
	return index, err
}

func (n *testNode) mustWrite(name string) uint64 {
	n.t.Helper()
	index, err := n.write(name)
	if err != nil {
		n.t.Fatalf("%s writes %s: %v", n.opt.Name, name, err)
	}
	return index
}

// has says whether the node's own machine holds a consumer.
func (n *testNode) has(name string) bool {
	s := n.machine.Store()
	_, ok := state.TableOf[entity.Consumer](s).By(s.View(), "username", name)
	return ok
}

func (n *testNode) mustHave(index uint64, names ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := n.Wait(ctx, index); err != nil {
		n.t.Fatalf("%s waits for %d: %v", n.opt.Name, index, err)
	}
	for _, name := range names {
		if !n.has(name) {
			n.t.Fatalf("%s has applied %d, but lacks %s", n.opt.Name, index, name)
		}
	}
}

func TestOneNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, "alone", nil)
	if !n.IsLeader() {
		t.Fatal("a cluster of one has its leader when Open returns")
	}
	s := n.Status(context.Background())
	if len(s.Nodes) != 1 || !s.Healthy || s.FailureTolerance != 0 || s.Leader != n.ID() || s.Nodes[0].State != "leader" || s.Nodes[0].Name != "alone" {
		t.Errorf("status: %+v", s)
	}
	index := n.mustWrite("kim")
	n.mustHave(index, "kim")
	id, cluster := n.ID(), n.ClusterID()
	for _, end := range []func(){n.close, n.kill} {
		end()
		n.restart()
		if n.ID() != id || n.ClusterID() != cluster {
			t.Errorf("identity changed: %s in %s", n.ID(), n.ClusterID())
		}
		n.mustHave(index, "kim")
		index = n.mustWrite("more" + rand.Text())
	}
}

func TestThreeNodes(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	ctx := context.Background()
	for i, n := range nodes {
		name := fmt.Sprintf("by%d", i)
		index := n.mustWrite(name)
		for _, x := range nodes {
			x.mustHave(index, name)
		}
		if read, err := n.ReadIndex(ctx); err != nil || read < index {
			t.Errorf("read index %d after %d: %v", read, index, err)
		}
	}

	leader := leaderOf(t, nodes)
	leader.kill()
	rest := others(nodes, leader)
	index := rest[0].mustWrite("after the leader's death")
	for _, n := range rest {
		n.mustHave(index, "after the leader's death", "by0", "by1", "by2")
	}
	leader.restart()
	leader.mustHave(index, "after the leader's death")

	for _, n := range nodes {
		n.kill()
	}
	for _, n := range nodes {
		n.restart()
	}
	index = nodes[2].mustWrite("after a blackout")
	for _, n := range nodes {
		n.mustHave(index, "by0", "by1", "by2", "after the leader's death", "after a blackout")
	}
}

// TestTellAll: every other member hears a message once; who is away is named in the error.
func TestTellAll(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	heard := make(chan string, 8)
	for i, n := range nodes {
		n.HandleTell(func(_ context.Context, message []byte) error {
			heard <- fmt.Sprintf("%d:%s", i, message)
			if string(message) == "bad" && i == 2 {
				return errors.New("no use for that")
			}
			return nil
		})
	}
	tell := func(message string, want []string, fault string) {
		t.Helper()
		err := nodes[0].TellAll(context.Background(), []byte(message))
		if fault == "" && err != nil || fault != "" && (err == nil || !strings.Contains(err.Error(), fault)) {
			t.Errorf("%s: %v, want an error with %q", message, err, fault)
		}
		var got []string
		for len(heard) > 0 {
			got = append(got, <-heard)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: heard by %v, want %v", message, got, want)
		}
	}
	tell("hello", []string{"1:hello", "2:hello"}, "")
	tell("bad", []string{"1:bad", "2:bad"}, "no use for that")
	w := httptest.NewRecorder()
	nodes[0].hear(w, httptest.NewRequest("POST", "/peer/tell", strings.NewReader("stranger")))
	if w.Code != 500 || len(heard) > 0 {
		t.Errorf("a stranger's message: %d %s", w.Code, w.Body)
	}
	gone := nodes[1].ID()
	nodes[1].kill()
	tell("again", []string{"2:again"}, gone)
}

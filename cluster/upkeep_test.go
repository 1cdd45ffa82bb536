package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/test/harness"
)

func TestMain(m *testing.M) {
	harness.NoLeaks(m, goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*deferError).Error"))
}

// TestPropagation prints how long a write takes to be answered and to reach every machine.
func TestPropagation(t *testing.T) {
	nodes := startCluster(t, 3, nil)
	leader := leaderOf(t, nodes)
	const writes = 200
	var ack, all []time.Duration
	for i := range writes {
		begin := time.Now()
		index := leader.mustWrite(fmt.Sprint("p", i))
		ack = append(ack, time.Since(begin))
		for _, n := range nodes {
			n.mustHave(index)
		}
		all = append(all, time.Since(begin))
		time.Sleep(5 * time.Millisecond) // isolated writes: nothing else carries the commit index
	}
	report := func(what string, d []time.Duration) {
		sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
		t.Logf("%s: p50 %s, p99 %s, of %d writes", what, d[len(d)/2], d[len(d)*99/100], len(d))
	}
	report("answered", ack)
	report("applied on all three nodes", all)
}

func TestAnotherAddress(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	for _, n := range []*testNode{others(nodes, leaderOf(t, nodes))[0], leaderOf(t, nodes)} {
		n.close()
		n.opt.Listen, n.opt.GossipListen = freeAddr(t), freeAddr(t)
		n.restart()
		eventually(t, "re-advertised", func() error {
			for _, x := range nodes {
				row, ok := x.rows.node(n.ID())
				if !ok || row.Val.Address != n.Address() {
					return fmt.Errorf("%s has %v", x.opt.Name, row)
				}
			}
			return nil
		})
		waitVoters(t, nodes, 3)
		n.mustHave(n.mustWrite("from " + n.Address()))
	}
}

func TestDeadNodesAreRemoved(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 5, func(o *Options) { o.Tuning.DeadAfter = 4 * time.Second })
	nodes[4].kill()
	waitVoters(t, nodes[:4], 4)
	nodes[3].kill()
	waitVoters(t, nodes[:3], 3)
	nodes[2].kill()
	time.Sleep(6 * time.Second)
	if s := nodes[0].Status(context.Background()); len(s.Nodes) != 3 {
		t.Errorf("fewer voters than the minimum are left: %+v", s)
	}
	nodes[0].mustWrite("still")
}

func TestCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, func(o *Options) { o.Tuning.CertificateLife = 8 * time.Second }) // a join takes long on a busy machine
	first := map[string]string{}
	for _, n := range nodes {
		first[n.ID()] = n.port.Credentials().Leaf.SerialNumber.String()
	}
	eventually(t, "renewed", func() error {
		for _, n := range nodes {
			if n.port.Credentials().Leaf.SerialNumber.String() == first[n.ID()] {
				return errors.New(n.opt.Name + " has its first certificate")
			}
		}
		return nil
	})
	// Nobody's certificate is valid after a long time off: the nodes help themselves.
	for _, n := range nodes {
		n.mustHave(nodes[0].mustWrite("before " + n.opt.Name))
	}
	time.Sleep(2 * noteEvery)
	for _, n := range nodes {
		n.close()
	}
	time.Sleep(8200 * time.Millisecond)
	for _, n := range nodes {
		n.restart()
	}
	nodes[1].mustHave(nodes[1].mustWrite("after"), "before n1", "before n2", "after")
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	n := newNode(t, "alone", func(o *Options) { o.Tuning.ExpireEvery = 50 * time.Millisecond })
	id := [16]byte{1}
	write := func(ifIndex uint64, life time.Duration) uint64 {
		put, err := n.rows.put("01000000-0000-0000-0000-000000000000", &entity.ClusterNode{State: nodeRemoved, Role: Voter}, ifIndex, time.Now().Add(life).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		res, err := n.Propose(context.Background(), command.Command{Level: 1, Op: command.Txn{Puts: []command.Put{put}}})
		if err != nil || res.Err != nil {
			t.Fatal(err, res.Err)
		}
		return res.Index
	}
	index := write(command.IfAbsent, time.Hour)
	if _, ok := n.rows.nodes.Get(n.rows.store.View(), id); !ok {
		t.Fatal("the row is not there")
	}
	write(index, 300*time.Millisecond)
	eventually(t, "expired", func() error {
		if _, ok := n.rows.nodes.Get(n.rows.store.View(), id); ok {
			return errors.New("the row is still there")
		}
		return nil
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for _, n := range nodes {
		index := n.mustWrite("w" + n.opt.Name)
		n.mustHave(index) // whoever does not lead applies it a little later
		var future *FutureIndexError
		if err := n.Wait(ctx, index+1000); !errors.As(err, &future) || future.Committed < index {
			t.Errorf("an index that does not exist: %v", err)
		}
		n.machine2().mu.Lock()
		n.machine2().waiters += maxWaiters
		n.machine2().mu.Unlock()
		if err := n.Wait(ctx, index+1000); !errors.Is(err, ErrTooManyWaiters) {
			t.Errorf("one more than the bound: %v", err)
		}
		if err := n.Wait(ctx, index); err != nil {
			t.Errorf("an index that is there needs no waiting: %v", err)
		}
		n.machine2().mu.Lock()
		n.machine2().waiters -= maxWaiters
		n.machine2().mu.Unlock()
	}
	follower := others(nodes, leaderOf(t, nodes))[0]
	if _, err := follower.Propose(ctx, consumerCommand("x")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose on a follower: %v", err)
	}
}

func (n *testNode) machine2() *machine { return n.Node.machine }

func TestGossipSeesEveryone(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	eventually(t, "everyone is seen by everyone", func() error {
		for _, n := range nodes {
			m, err := n.membership()
			if err != nil {
				return err
			}
			var names []string
			for _, a := range m.gossip.Load().Alive() {
				names = append(names, a.Meta.Name)
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"n1", "n2", "n3"}) {
				return fmt.Errorf("%s sees %v", n.opt.Name, names)
			}
		}
		return nil
	})
	taken := nodes[0].port.Addr().String()
	for _, change := range []func(*Options){
		func(o *Options) { o.Listen = taken },
		func(o *Options) { m, _ := nodes[0].membership(); o.GossipListen = m.gossip.Load().Addr() },
	} {
		n := &testNode{t: t, opt: nodes[0].opt}
		n.opt.Prefix, n.opt.Listen, n.opt.GossipListen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
		change(&n.opt)
		if err := n.open(); err == nil {
			n.close()
			t.Error("a port in use was opened")
		} else {
			t.Log(err)
		}
	}
}

// TestGracefulStop: writes go on while the leader shuts down.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	leader := leaderOf(t, nodes)
	writer := others(nodes, leader)[0]
	done := make(chan time.Duration)
	go func() {
		var worst time.Duration
		for i := range 100 {
			begin := time.Now()
			if _, err := writer.write(fmt.Sprint("g", i)); err != nil {
				t.Errorf("write %d: %v", i, err)
			}
			worst = max(worst, time.Since(begin))
			time.Sleep(5 * time.Millisecond)
		}
		done <- worst
	}()
	time.Sleep(100 * time.Millisecond)
	leader.close()
	t.Log("longest write during the stop:", <-done)
	leader.restart()
	leader.mustHave(writer.machine.Store().View().Index(), "g0", "g50", "g99")
}

// TestWildcard: nodes bound to all addresses find each other by one that exists.
func TestWildcard(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, func(o *Options) { o.Listen, o.GossipListen = "0.0.0.0:0", "0.0.0.0:0" })
	for _, n := range nodes {
		var row state.Row[entity.ClusterNode]
		eventually(t, "told its gossip address", func() error {
			if row, _ = n.rows.node(n.ID()); row.Val.GossipAddress == "" {
				return errors.New("not yet")
			}
			return nil
		})
		for _, addr := range []string{n.Address(), row.Val.GossipAddress} {
			if host, port, err := net.SplitHostPort(addr); err != nil || net.ParseIP(host).IsUnspecified() || port == "0" {
				t.Errorf("%s advertises %s", n.opt.Name, addr)
			}
		}
		n.mustWrite("w" + n.opt.Name)
	}
}

// TestTicketKeysNeedLevel: nothing is written to their table before all members know it.
func TestTicketKeysNeedLevel(t *testing.T) {
	t.Parallel()
	n := startCluster(t, 1, func(o *Options) { o.Level = entity.SharedLevel - 1 })[0]
	eventually(t, "level", func() error {
		if level := n.machine.Level(); level != entity.SharedLevel-1 {
			return fmt.Errorf("the cluster is at level %d", level)
		}
		return nil
	})
	m, err := n.membership()
	if err != nil {
		t.Fatal(err)
	}
	d := duties{membership: m}
	if err := d.rotateTickets(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.rows.ticket.Get(n.rows.store.View(), metaID); ok {
		t.Errorf("there are keys, and the cluster is at level %d", n.machine.Level())
	}
}

// TestTicketKeys: every node gets the three keys of TLS session tickets, they move on by one, and never two leaders' keys are mixed.
func TestTicketKeys(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, func(o *Options) { o.Tuning.TicketKeyLife = 1500 * time.Millisecond })
	keys := func(n *testNode) []string {
		row, _ := n.rows.ticket.Get(n.rows.store.View(), metaID)
		return row.Val.Keys
	}
	seen := keys(nodes[0])
	for rotations := 0; rotations < 3; {
		eventually(t, "rotation", func() error {
			if slices.Equal(keys(nodes[0]), seen) {
				return errors.New("the keys are the same still")
			}
			return nil
		})
		next := keys(nodes[0])
		if len(next) != ticketKeys || next[0] == next[1] || next[1] == next[2] || next[0] == next[2] {
			t.Fatalf("keys are %d, or are equal", len(next))
		}
		if len(seen) > 0 && next[ticketCurrent] == seen[ticketNext] { // else one was missed
			if next[ticketPrevious] != seen[ticketCurrent] {
				t.Error("the current key did not become the previous one")
			}
			rotations++
		}
		seen = next
	}
	for _, n := range nodes[1:] {
		eventually(t, "the same keys everywhere", func() error {
			if a, b := keys(nodes[0]), keys(n); !slices.Equal(a, b) {
				return errors.New("they differ")
			}
			return nil
		})
	}
	leader := leaderOf(t, nodes)
	table, _ := leader.rows.store.Table("tls_ticket_keys")
	row, ok := table.Get(leader.rows.store.View(), metaID)
	for _, k := range keys(leader) {
		if !ok || strings.Contains(string(row.Raw), k) {
			t.Error("a key is stored in clear")
		}
	}
}

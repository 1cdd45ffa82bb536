package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/cluster/pki"
	"concord/cluster/transport"
)

func token(t *testing.T, n *testNode, o TokenOptions) string {
	t.Helper()
	s, err := n.CreateToken(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJoinRefused(t *testing.T) {
	t.Parallel()
	a, b, c := newNode(t, "a", nil), newNode(t, "b", nil), newNode(t, "c", nil)
	ctx := context.Background()
	refused := func(what string, n *testNode, addr, tok string, words ...string) {
		t.Helper()
		err := n.Join(ctx, addr, tok, false)
		if err == nil {
			t.Fatalf("%s: joined", what)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", what, err, w)
			}
		}
		if !n.IsLeader() {
			t.Fatalf("%s: the refused node does not go on as it was", what)
		}
	}
	swap := func(tok string, i int, by string) string {
		p := strings.Split(tok, ".")
		p[i] = by
		return strings.Join(p, ".")
	}
	short := token(t, a, TokenOptions{TTL: time.Millisecond})
	good := token(t, a, TokenOptions{})
	foreign := token(t, c, TokenOptions{})
	fp := strings.Split(foreign, ".")
	refused("garbage", b, a.Address(), "CJT1.nonsense", "not a join token")
	refused("expired", b, a.Address(), short, "expired")
	refused("wrong pin", b, a.Address(), swap(good, 2, fp[2]), "pin", "Nothing was sent")
	refused("damaged pin", b, a.Address(), swap(good, 2, "x"), "pin")
	refused("token of another cluster", b, a.Address(), foreign, "pin")
	refused("pin of this cluster, cluster id of another", b, a.Address(), swap(good, 1, fp[1]), "cluster")
	refused("unknown token", b, a.Address(), swap(good, 3, fp[3]), "unknown")
	refused("wrong secret", b, a.Address(), swap(good, 4, fp[4]), "secret")
	refused("own cluster", a, a.Address(), good, "already")
	refused("no port", b, "127.0.0.1", good, "host:port")
	refused("nobody there", b, "127.0.0.1:1", good, "refused")
	again := newNode(t, "again", func(o *Options) { o.Advertise = a.Address() })
	refused("address of a member", again, a.Address(), good, "gwctl cluster remove "+a.ID())
	b.mustWrite("mine")
	refused("holds data", b, a.Address(), good, "--discard-local-data")
	if err := b.Join(ctx, a.Address(), good, true); err != nil {
		t.Fatal(err)
	}
	if b.has("mine") || b.ClusterID() != a.ClusterID() {
		t.Error("joined, but not with the state of the cluster")
	}
	refused("used twice", c, a.Address(), good, "used up")
	refused("used twice, by another member", c, b.Address(), good, "used up")
	if err := b.Join(ctx, c.Address(), foreign, true); err == nil || !strings.Contains(err.Error(), "leave") {
		t.Errorf("a member of a larger cluster joined another: %v", err)
	}
	a.mustWrite("after")
}

func TestSingleUseTokenAdmitsOneNode(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	tok := token(t, nodes[1], TokenOptions{Role: Nonvoter})
	var wg sync.WaitGroup
	results := make([]error, 4)
	var lost atomic.Bool // a leader that used the token up before anybody knew
	for i := range results {
		n := newNode(t, "x", nil)
		wg.Go(func() {
			for {
				results[i] = n.Join(context.Background(), nodes[i%3].Address(), tok, false)
				if err := results[i]; err == nil || !tryAgain(err) {
					return
				}
				lost.Store(true)
			}
		})
	}
	wg.Wait()
	joined := 0
	for _, err := range results {
		if err == nil {
			joined++
		} else if !strings.Contains(err.Error(), "used") {
			t.Errorf("refused with %v", err)
		}
	}
	if joined > 1 || joined == 0 && !lost.Load() {
		t.Errorf("%d nodes joined with one use", joined)
	}
	time.Sleep(2 * fast().StabilizationTime)
	eventually(t, "one more", func() error {
		s := nodes[0].Status(context.Background())
		nonvoters := 0
		for _, n := range s.Nodes {
			if n.Role == Nonvoter {
				nonvoters++
			}
		}
		if len(s.Nodes) != 3+nonvoters || nonvoters > 1 || nonvoters < joined {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
}

// TestPort: whoever has no certificate of a member gets nothing.
func TestPort(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, nil)
	addr := nodes[0].Address()
	read := func(c net.Conn) []byte {
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "POST /peer/status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
		b, _ := io.ReadAll(c)
		return b
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(c); len(got) > 7 || strings.Contains(string(got), "HTTP") { // a TLS alert has 7 bytes
		t.Errorf("plain TCP got %q", got)
	}
	stranger := newNode(t, "stranger", nil)
	dial := func(conf *tls.Config) (*tls.Conn, error) {
		conf.InsecureSkipVerify = true
		return tls.Dial("tcp", addr, conf)
	}
	foreign := stranger.port.Credentials().TLS()
	own := nodes[1].port.Credentials()
	expired := issue(t, nodes[0], nodes[1].ID(), -time.Minute)
	unknown := issue(t, nodes[0], "7b5be3f6-0000-4000-8000-000000000000", time.Hour)
	for _, tt := range []struct {
		what   string
		certs  []tls.Certificate
		protos []string
		max    uint16
	}{
		{"no certificate", nil, []string{transport.ProtoRaft}, 0},
		{"no certificate", nil, []string{transport.ProtoRPC}, 0},
		{"no protocol", nil, nil, 0},
		{"other protocol", nil, []string{"http/1.1"}, 0},
		{"all protocols", nil, []string{transport.ProtoJoin, transport.ProtoRPC, transport.ProtoRaft}, 0},
		{"another CA", []tls.Certificate{foreign}, []string{transport.ProtoRaft}, 0},
		{"another CA", []tls.Certificate{foreign}, []string{transport.ProtoRPC}, 0},
		{"expired", []tls.Certificate{expired}, []string{transport.ProtoRPC}, 0},
		{"never a member", []tls.Certificate{unknown}, []string{transport.ProtoRPC}, 0},
		{"never a member", []tls.Certificate{unknown}, []string{transport.ProtoRaft}, 0},
		{"TLS 1.2", []tls.Certificate{own.TLS()}, []string{transport.ProtoRPC}, tls.VersionTLS12},
	} {
		c, err := dial(&tls.Config{Certificates: tt.certs, NextProtos: tt.protos, MaxVersion: tt.max})
		if err != nil {
			continue
		}
		if got := read(c); len(got) > 0 {
			t.Errorf("%s, %v: got %q", tt.what, tt.protos, got)
		}
	}
	// The join path answers a join request and nothing else.
	c2, err := dial(&tls.Config{NextProtos: []string{transport.ProtoJoin}})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(c2); len(got) > 0 {
		t.Errorf("HTTP on the join path got %q", got)
	}
	// A member is let in, or the refusals above prove nothing.
	c3, err := dial(&tls.Config{Certificates: []tls.Certificate{own.TLS()}, NextProtos: []string{transport.ProtoRPC}})
	if err != nil {
		t.Fatal(err)
	}
	defer c3.Close()
	c3.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c3.Read(make([]byte, 64)); err != nil || n == 0 {
		t.Errorf("a member got nothing: %v", err)
	}
}

func issue(t *testing.T, n *testNode, nodeID string, life time.Duration) tls.Certificate {
	t.Helper()
	m, err := n.membership()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := m.ca()
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.Request()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(csr, n.ClusterID(), nodeID, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewCredentials(n.ClusterID(), nodeID, key, der, ca.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	return c.TLS()
}

func TestStalledHandshakes(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, nil)
	leader := leaderOf(t, nodes)
	for range 600 {
		c, err := net.Dial("tcp", leader.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	follower := others(nodes, leader)[0]
	follower.port.CutAll() // so that new handshakes are needed
	for i := range 5 {
		index := follower.mustWrite("stalled" + string(rune('a'+i)))
		follower.mustHave(index)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	ctx := context.Background()
	leader := leaderOf(t, nodes)
	gone := others(nodes, leader)[0]
	rest := others(nodes, gone)
	creds := gone.port.Credentials()
	keysBefore := gossipKeys(t, leader)
	if err := rest[1].Remove(ctx, "nobody"); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("removing nobody: %v", err)
	}
	if err := rest[1].Remove(ctx, gone.opt.Name); err != nil {
		t.Fatal(err)
	}
	waitVoters(t, rest, 2)
	for _, n := range rest {
		n.mustWrite("without " + n.opt.Name)
		for _, proto := range []string{transport.ProtoRaft, transport.ProtoRPC} {
			eventually(t, "refused", func() error {
				c, err := tls.Dial("tcp", n.Address(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{creds.TLS()}, NextProtos: []string{proto}})
				if err != nil {
					return nil
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if k, err := c.Read(make([]byte, 1)); err == nil || k > 0 {
					return errors.New("the removed node was let in")
				}
				return nil
			})
		}
	}
	var noLeader *NoLeaderError
	if _, err := gone.write("from outside"); !errors.As(err, &noLeader) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a write at the removed node: %v", err)
	}
	eventually(t, "another gossip key", func() error {
		for _, n := range rest {
			m, err := n.membership()
			if err != nil {
				return err
			}
			meta, _ := n.rows.clusterMeta()
			if k := gossipKeys(t, n); meta.Val.GossipPhase != phaseSteady || len(k) != 1 || k[0] == keysBefore[0] || m.keyed.Load() != meta.Index {
				return errors.New("the rotation is not over: " + meta.Val.GossipPhase)
			}
		}
		if k := gossipKeys(t, gone); k[0] != keysBefore[0] {
			t.Fatal("the removed node learned the new key")
		}
		return nil
	})
	for _, n := range rest {
		m, _ := n.membership()
		eventually(t, "gossip with the new key", func() error {
			if alive := m.gossip.Load().Alive(); len(alive) != 2 {
				return errors.New("alive are not 2")
			}
			return nil
		})
	}
	if err := gone.Leave(ctx); err != nil {
		t.Fatalf("a removed node starts afresh: %v", err)
	}
	gone.join(rest[0])
	waitVoters(t, nodes, 3)
}

func gossipKeys(t *testing.T, n *testNode) []string {
	t.Helper()
	meta, ok := n.rows.clusterMeta()
	if !ok {
		t.Fatal("no cluster_meta")
	}
	return meta.Val.GossipKeys
}

func TestLeaveAndTransfer(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3, nil)
	ctx := context.Background()
	index := nodes[0].mustWrite("kept")
	leader := leaderOf(t, nodes)
	next := others(nodes, leader)[0]
	if err := others(nodes, leader)[1].TransferLeadership(ctx, next.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "transferred", func() error {
		if !next.IsLeader() {
			return errors.New("not yet")
		}
		return nil
	})
	cluster := next.ClusterID()
	if err := next.Leave(ctx); err != nil { // the leader itself
		t.Fatal(err)
	}
	if next.has("kept") || next.ClusterID() == cluster || !next.IsLeader() {
		t.Error("the node that left is not a fresh cluster of one")
	}
	rest := others(nodes, next)
	waitVoters(t, rest, 2)
	rest[0].mustHave(index, "kept")
	rest[0].mustWrite("by two")
	next.close()
	next.restart()
	if err := next.Leave(ctx); err == nil {
		t.Error("a node alone left")
	}
	next.join(rest[1])
	waitVoters(t, nodes, 3)
	next.mustHave(index, "kept", "by two")
}

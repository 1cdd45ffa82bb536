package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"concord/cluster/transport"
	"concord/fsm"
)

// Node is this process's part in a cluster. It outlives a switch of clusters: the port and the machine stay, the membership is
// replaced.
type Node struct {
	opt       Options
	log       *slog.Logger
	machine   *machine
	rows      *rows
	port      *transport.Transport
	advertise string
	onForward atomic.Pointer[func(context.Context, []byte) ([]byte, error)]
	onTell    atomic.Pointer[func(context.Context, []byte) error]
	onServed  atomic.Pointer[func() uint64]
	readIndex coalesced
	holdLevel atomic.Bool
	refused   refusals
	who       atomic.Pointer[identity] // of the current membership, or the last one

	switching sync.Mutex // Join, Leave and Shutdown, one at a time
	mu        sync.RWMutex
	current   *membership // nil while switching and after Shutdown
	closed    bool
	fatalOnce sync.Once
	full      atomic.Pointer[fullError] // while the node sits out, see sitOut
	opening   atomic.Bool               // nothing is served yet
}

// Open starts the node. On an empty prefix it forms a cluster of one; otherwise it goes on with what it finds there. A node alone in
// its cluster is its leader when Open returns; others may still be looking for theirs.
func Open(ctx context.Context, o Options) (*Node, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	if err := prepare(o.Prefix); err != nil {
		return nil, err
	}
	n := &Node{opt: o, log: o.Log, rows: newRows(o.Machine.Store())}
	n.machine = newMachine(o.Machine, n.fatal)
	n.holdLevel.Store(o.HoldLevel)
	dir := n.dir()
	id, err := loadIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		id = newIdentity()
		err = errors.Join(o.Machine.Keys().Save(filepath.Join(dir, sealFile)), id.save(dir))
	}
	if err != nil {
		return nil, err
	}
	n.port, err = transport.Listen(transport.Options{
		Listen: o.Listen, Member: n.welcome, Handler: n.handler(), Join: n.serveJoin, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	n.port.SetResolver(n.addressOf)
	if n.advertise, err = advertised(o.Advertise, n.port.Addr()); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster_advertise: %w", err), n.port.Close())
	}
	n.opening.Store(true)
	m, err := n.enter(ctx, id)
	n.opening.Store(false)
	var noRoom *fullError
	if errors.As(err, &noRoom) {
		if err = n.sitOutFromStart(id, noRoom); err == nil {
			return n, nil
		}
	}
	if err == nil {
		if err := m.disk.failed.Load(); err != nil { // meanwhile
			n.fatal(*err)
		}
		err = n.settle(ctx, m)
	}
	if err != nil && (n.full.Load() != nil || full(err)) {
		return n, nil // the disk was full at the first entry; fatal sees to it
	}
	if err == nil {
		n.comeBack(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, n.stop(false))
	}
	return n, nil
}

// returnLimit is how long a member that comes back waits for what it missed. The leader's pauses between attempts to reach it have
// grown to ten seconds by then (hashicorp/raft's maxFailureScale).
const returnLimit = 15 * time.Second

// comeBack waits until the node has what the cluster had when it came back, lest it serves consumers and keys that were deleted meanwhile.
// Without a leader it goes on with what it has.
func (n *Node) comeBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, returnLimit)
	defer cancel()
	index, err := n.ReadIndex(ctx)
	if err == nil {
		err = n.Wait(ctx, index)
	}
	if err != nil {
		n.log.Warn("this node may lack the latest changes", "error", err)
	}
}

// settle waits until a cluster of one has its leader, which is a matter of one election timeout, or an old member has found its
// leader, for as long as an election usually takes: it can serve without.
func (n *Node) settle(ctx context.Context, m *membership) error {
	limit := 3 * (n.opt.Tuning.HeartbeatTimeout + n.opt.Tuning.ElectionTimeout)
	alone := m.alone()
	if alone {
		limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		_, leader := m.leader()
		if (m.ready.Load() || !alone && leader != "") && m.gossip.Load() != nil {
			return nil
		}
		if err := m.failure(); err != nil {
			return err
		}
		if err := m.disk.failed.Load(); err != nil {
			return *err
		}
		select {
		case <-m.ctx.Done(): // the node sits out
			return ErrClosed
		case <-ctx.Done():
			if alone {
				return fmt.Errorf("the node did not become the leader of its cluster of one within %s", limit)
			}
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (n *Node) dir() string { return filepath.Join(n.opt.Prefix, dirName) }

// membership is the current one.
func (n *Node) membership() (*membership, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.current != nil {
		return n.current, nil
	}
	if full := n.full.Load(); full != nil && !n.closed {
		return nil, full
	}
	return nil, ErrClosed
}

func (n *Node) setCurrent(m *membership) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.current = m
	if m != nil {
		n.who.Store(&m.id)
	}
}

// ID is the node's id within its cluster; it changes with Join and Leave.
func (n *Node) ID() string {
	if id := n.who.Load(); id != nil {
		return id.NodeID
	}
	return ""
}

// Name is the node's name from the settings.
func (n *Node) Name() string { return n.opt.Name }

// ClusterID is the id of the cluster that the node is in.
func (n *Node) ClusterID() string {
	if id := n.who.Load(); id != nil {
		return id.ClusterID
	}
	return ""
}

// Address is where the other nodes reach the peer port.
func (n *Node) Address() string { return n.advertise }

// IsLeader says whether the node leads and has applied everything that earlier leaders committed.
func (n *Node) IsLeader() bool {
	m, err := n.membership()
	return err == nil && m.ready.Load()
}

// Leader is the leader as far as this node knows.
func (n *Node) Leader() (id, addr string, ok bool) {
	m, err := n.membership()
	if err != nil {
		return "", "", false
	}
	addr, id = m.leader()
	return id, addr, id != ""
}

// CommittedIndex is the last log index that this node knows to be committed.
func (n *Node) CommittedIndex() uint64 {
	m, err := n.membership()
	if err != nil {
		return 0
	}
	return m.raft.CommitIndex()
}

// welcome decides, in a TLS handshake, about a peer with a valid certificate of the cluster. A node that this one does not know may
// have been admitted after what this one has seen: it is let in as long as this node has no leader to tell it better, or it could
// never catch up after the others were replaced.
func (n *Node) welcome(nodeID, _ string) error {
	m, err := n.membership()
	switch row, ok := n.rows.node(nodeID); {
	case ok && row.Val.State != nodeActive:
		return fmt.Errorf("node %s was removed from the cluster", nodeID)
	case ok:
		return nil
	case err != nil:
		return nil // starting: it is this node that asks for help
	}
	if addr, _ := m.leader(); addr != "" {
		return fmt.Errorf("node %s is not a member of the cluster", nodeID)
	}
	return nil
}

// addressOf finds a node's peer port.
func (n *Node) addressOf(nodeID string) (string, bool) {
	if row, ok := n.rows.node(nodeID); ok {
		return row.Val.Address, true
	}
	for _, p := range loadPeers(n.dir()) {
		if p.ID == nodeID {
			return p.Address, true
		}
	}
	return "", false
}

// Shutdown hands leadership over and stops. Within ctx it tries to leave no gap for writes; after it, it still stops.
func (n *Node) Shutdown(ctx context.Context) error {
	n.switching.Lock()
	defer n.switching.Unlock()
	n.stepDown(ctx)
	return n.stop(true)
}

func (n *Node) stepDown(ctx context.Context) {
	if m, err := n.membership(); err == nil && m.ready.Load() && !m.alone() {
		if err := m.transfer(ctx, "", fsm.Cause{}); err != nil {
			n.log.Warn("leadership could not be handed over before the shutdown", "error", err)
		}
	}
}

// Suspend ends this node's part in the cluster so that another process can play it: leadership is handed over, the files are let go, the ports
// closed. The machine keeps its state and may be read. Whatever needs the cluster fails with ErrClosed until Resume; it has not
// happened, unless it was under way before.
func (n *Node) Suspend(ctx context.Context) error {
	n.switching.Lock()
	defer n.switching.Unlock()
	m, err := n.membership()
	if err != nil {
		return err
	}
	n.stepDown(ctx)
	n.setCurrent(nil)
	return errors.Join(m.stop(true), n.port.Pause())
}

// Resume takes up again what Suspend has ended, with what the files hold now: the other process may have written to them. Its error means that the
// node has no part in the cluster any more. A node whose disk is full takes its part up by itself.
func (n *Node) Resume(ctx context.Context) error {
	if n.full.Load() != nil {
		return nil
	}
	m, err := n.resume(ctx)
	if m != nil && full(err) {
		return nil // fatal sees to it
	}
	return err
}

func (n *Node) resume(ctx context.Context) (*membership, error) {
	n.switching.Lock()
	defer n.switching.Unlock()
	n.mu.RLock()
	suspended := n.current == nil && !n.closed
	n.mu.RUnlock()
	if !suspended {
		return nil, ErrClosed
	}
	id, err := loadIdentity(n.dir())
	if err == nil {
		err = n.port.Resume()
	}
	if err != nil {
		return nil, err
	}
	m, err := n.enter(ctx, id)
	if err != nil {
		return nil, err
	}
	return m, n.settle(ctx, m)
}

// ReleaseLevel ends HoldLevel.
func (n *Node) ReleaseLevel() {
	if n.holdLevel.Swap(false) {
		if m, err := n.membership(); err == nil {
			wake(m.changed)
		}
	}
}

func (n *Node) stop(polite bool) error {
	n.mu.Lock()
	m := n.current
	n.current, n.closed = nil, true
	n.mu.Unlock()
	var err error
	if m != nil {
		err = m.stop(polite)
	}
	return errors.Join(err, n.port.Close())
}

// advertised is the address to tell others: as configured, else as bound, where a wildcard becomes a private address of the host.
func advertised(configured string, bound net.Addr) (string, error) {
	bhost, bport, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", err
	}
	host, port := bhost, bport
	if configured != "" {
		if host, port, err = net.SplitHostPort(configured); err != nil {
			return "", err
		}
		if port == "0" {
			port = bport
		}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = privateAddress()
	}
	return net.JoinHostPort(host, port), nil
}

// privateAddress is the first private IPv4 address of the host; without one only this host can be part of the cluster.
func privateAddress() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsPrivate() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

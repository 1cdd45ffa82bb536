package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"concord/cluster/gossip"
	"concord/cluster/pki"
	"concord/fsm/entity"
	"concord/fsm/state"
)

// membership is the time of a Node in one cluster: from forming or joining it to leaving it or to the end of the process.
type membership struct {
	*Node
	id     identity
	disk   *disk
	snaps  *raft.FileSnapshotStore
	trans  *transportLayer
	raft   *raft.Raft
	gossip atomic.Pointer[gossip.Gossip]

	ready    atomic.Bool // leader, and the machine holds all that earlier leaders committed
	removed  atomic.Bool // the cluster has removed this node
	failed   atomic.Pointer[error]
	inflight atomic.Int64
	nudges   chan struct{}
	changed  chan struct{} // the cluster's tables changed
	notify   chan bool     // raft: leadership won or lost
	keyed    atomic.Uint64 // index of the cluster_meta row whose gossip keys are in use
	seeking  atomic.Bool   // gossip looks for nodes
	peers    []peer        // as saved; of upkeep

	ctx    context.Context
	cancel context.CancelFunc
	ended  context.Context // done once raft has stopped
	end    context.CancelFunc
	work   sync.WaitGroup
}

// enter starts the membership whose files are in the node's directory.
func (n *Node) enter(ctx context.Context, id identity) (_ *membership, err error) {
	m := &membership{
		Node: n, id: id, nudges: make(chan struct{}, 1), changed: make(chan struct{}, 1), notify: make(chan bool, 64),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.ended, m.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop(false))
		}
	}()
	creds, err := pki.Load(n.dir(), id.ClusterID, id.NodeID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	n.port.SetCredentials(creds)
	fresh, err := m.openStores(ctx)
	if err != nil {
		return nil, err
	}
	if c := n.port.Credentials(); c == nil || c.Expired(time.Now()) {
		err = m.selfIssue()
	}
	if err == nil {
		err = m.startRaft(fresh)
	}
	if full(err) && id.Phase == member {
		return nil, &fullError{err} // the machine has what there is to serve
	}
	if err != nil {
		return nil, err
	}
	n.setCurrent(m)
	cancel := n.machine.Store().Subscribe(m.onChanges)
	m.work.Go(func() { <-m.ctx.Done(); cancel() })
	m.work.Go(m.disk.watch)
	m.work.Go(m.disk.keepNote)
	m.work.Go(m.leadership)
	m.work.Go(m.nudger)
	m.work.Go(m.upkeep)
	return m, nil
}

func (m *membership) openStores(ctx context.Context) (fresh bool, err error) {
	dir := filepath.Join(m.dir(), raftDir)
	path := filepath.Join(dir, logFile)
	_, err = os.Stat(path)
	fresh = errors.Is(err, fs.ErrNotExist)
	if fresh && m.id.Phase == member {
		return false, fmt.Errorf("%s is missing: what this node has voted and acknowledged is lost; restore the file, or remove the node from the cluster, empty its prefix and let it join again", path)
	}
	if err := os.MkdirAll(filepath.Join(dir, snapshotsDir), 0o700); err != nil {
		return false, err
	}
	bolt, noRoom, err := openBolt(path)
	if err != nil {
		return false, err
	}
	var store backend = bolt
	if m.opt.wrapStore != nil {
		store = m.opt.wrapStore(store)
	}
	m.disk, err = newDisk(path, store, m.opt.Tuning.WriteStall, m.fatal, m.machine.index)
	if err != nil {
		return false, errors.Join(err, store.Close())
	}
	logger := newRaftLog(m.log)
	if m.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, 2, logger); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	m.trans = newTransportLayer(stream{m.port.Raft(), m.port, m.advertise}, logger, min(10*time.Second, 10*m.opt.Tuning.HeartbeatTimeout))
	if noRoom != nil {
		m.disk.failed.Store(&noRoom)
	}
	rec := recovery{dir: dir, machine: m.machine, log: m.disk, snaps: m.snaps, trans: m.trans, fetch: m.fetchSnapshot}
	return fresh, rec.run(ctx)
}

func (m *membership) startRaft(fresh bool) error {
	t := &m.opt.Tuning
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(m.id.NodeID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = t.HeartbeatTimeout, t.ElectionTimeout, t.LeaderLease
	c.SnapshotThreshold, c.SnapshotInterval, c.TrailingLogs = t.SnapshotThreshold, t.SnapshotInterval, t.TrailingLogs
	c.MaxAppendEntries = 512
	c.NotifyCh = m.notify
	c.Logger = newRaftLog(m.log)
	c.NoSnapshotRestoreOnStart = true // recovery did it
	c.NoLegacyTelemetry = true
	cache, err := raft.NewLogCache(1024, m.disk)
	if err != nil {
		return err
	}
	if m.id.Phase == forming {
		used, err := raft.HasExistingState(m.disk, m.disk, m.snaps)
		if err != nil {
			return err
		}
		if !used {
			me := raft.Server{ID: c.LocalID, Address: raft.ServerAddress(m.advertise)}
			if err := raft.BootstrapCluster(c, m.disk, m.disk, m.snaps, m.trans, raft.Configuration{Servers: []raft.Server{me}}); err != nil {
				return err
			}
		}
	}
	if fresh || m.id.Phase != member {
		m.id.Phase = member
		if err := m.id.save(m.dir()); err != nil {
			return err
		}
	}
	if err := m.disk.writable(); err != nil { // NewRaft panics
		return err
	}
	if m.raft, err = raft.NewRaft(c, m.machine, cache, m.disk, m.snaps, m.trans); err != nil {
		return err
	}
	if m.alone() {
		m.trans.elect()
	}
	return nil
}

// stop ends the membership. Politely: the others are told, rather than left to find out.
func (m *membership) stop(polite bool) error {
	m.cancel()
	m.ready.Store(false)
	var errs []error
	if m.raft != nil {
		done := m.raft.Shutdown()
		m.port.CutAll() // or raft waits for peers that do not answer
		errs = append(errs, done.Error())
		m.end()
	}
	if m.trans != nil {
		errs = append(errs, m.trans.Close())
	}
	if m.disk != nil {
		errs = append(errs, m.disk.close())
	}
	m.work.Wait()
	if g := m.gossip.Load(); g != nil && polite {
		if err := g.Stop(); err != nil {
			m.log.Debug("gossip: good-bye failed", "error", err)
		}
	} else if g != nil {
		errs = append(errs, g.Abort())
	}
	return errors.Join(errs...)
}

func (m *membership) fail(err error) { m.failed.CompareAndSwap(nil, &err) }

func (m *membership) failure() error {
	if err := m.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (m *membership) leader() (addr, id string) {
	if m.raft == nil {
		return "", ""
	}
	a, i := m.raft.LeaderWithID()
	return string(a), string(i)
}

// servers is raft's newest configuration.
func (m *membership) servers() []raft.Server {
	f := m.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

func (m *membership) alone() bool {
	s := m.servers()
	return len(s) == 1 && string(s[0].ID) == m.id.NodeID
}

// others are the members besides this node, with the addresses to try.
func (m *membership) others() []peer {
	var list []peer
	add := func(id, addr string) {
		if id != m.id.NodeID && addr != "" && !slices.ContainsFunc(list, func(p peer) bool { return p.ID == id }) {
			list = append(list, peer{id, addr})
		}
	}
	for _, row := range m.rows.active() {
		add(row.Val.ID, row.Val.Address)
	}
	if m.raft != nil {
		for _, s := range m.servers() {
			add(string(s.ID), string(s.Address))
		}
	}
	if len(list) == 0 { // nothing is applied yet
		for _, p := range loadPeers(m.dir()) {
			add(p.ID, p.Address)
		}
	}
	return list
}

// onChanges runs on the goroutine that applies the log.
func (m *membership) onChanges(c state.Changes) {
	mine := c.Reset
	for _, ch := range c.List {
		if ch.Table < entity.TableClusterMeta || ch.Table > entity.TableClusterTokens {
			continue
		}
		mine = true
		if row, ok := ch.New.(*entity.ClusterNode); ok && row.State == nodeRemoved {
			// The connections of a removed node are cut here and not by the upkeep: what it might still be sent must not wait.
			go m.port.Cut(row.ID)
		}
	}
	if mine {
		wake(m.changed)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// upkeep keeps what is outside of the log in line with it: gossip, the file of peers, the certificate, the node's own row.
func (m *membership) upkeep() {
	every := min(time.Second, m.opt.Tuning.HeartbeatTimeout)
	for {
		m.keepGossip()
		m.keepPeers()
		m.keepCertificate()
		m.keepRow()
		select {
		case <-m.ctx.Done():
			return
		case <-m.changed:
		case <-time.After(every + rand.N(every/4+1)):
		}
	}
}

func (m *membership) keepGossip() {
	row, ok := m.rows.clusterMeta()
	if !ok || m.removed.Load() {
		return
	}
	keys, err := decodeKeys(row.Val.GossipKeys)
	if err != nil {
		m.log.Error("the gossip keys of the cluster cannot be read", "error", err)
		return
	}
	g := m.gossip.Load()
	if g == nil {
		g, err = gossip.Start(gossip.Options{
			NodeID: m.id.NodeID, Label: m.id.ClusterID, Listen: m.opt.GossipListen, Advertise: m.gossipAdvertise(), Keys: keys,
			Meta: gossip.Meta{Name: m.opt.Name, Version: m.opt.Version, Level: m.opt.Level, Address: m.advertise},
			Fast: m.opt.Tuning.HeartbeatTimeout < 500*time.Millisecond, Log: m.log,
		})
		if err != nil {
			m.fail(err)
			m.log.Error("gossip does not start", "error", err)
			return
		}
		m.gossip.Store(g)
		m.keyed.Store(row.Index)
	}
	if m.keyed.Load() != row.Index {
		if err := g.SetKeys(keys); err != nil {
			m.log.Error("the gossip keys cannot be changed", "error", err)
			return
		}
		m.keyed.Store(row.Index)
	}
	alive := map[string]bool{}
	for _, a := range g.Alive() {
		alive[a.ID] = true
	}
	var missing []string
	for _, r := range m.rows.active() {
		if !alive[r.Val.ID] && r.Val.GossipAddress != "" {
			missing = append(missing, r.Val.GossipAddress)
		}
	}
	if len(missing) > 0 && m.seeking.CompareAndSwap(false, true) {
		m.work.Go(func() { // a dead node takes its time not to answer
			defer m.seeking.Store(false)
			if err := g.Join(missing); err != nil {
				m.log.Debug("gossip: some nodes do not answer", "nodes", missing, "error", err)
			}
		})
	}
}

// gossipAdvertise is the host of the peer port where the gossip port is bound to a wildcard: memberlist would demand a private address.
func (m *membership) gossipAdvertise() string {
	host, port, err := net.SplitHostPort(m.opt.GossipListen)
	if ip := net.ParseIP(host); m.opt.GossipAdvertise != "" || err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		return m.opt.GossipAdvertise
	}
	host, _, err = net.SplitHostPort(m.advertise)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, port)
}

func (m *membership) keepPeers() {
	var peers []peer
	for _, row := range m.rows.active() {
		if row.Val.ID != m.id.NodeID {
			peers = append(peers, peer{row.Val.ID, row.Val.Address})
		}
	}
	if len(peers) == 0 || slices.Equal(peers, m.peers) {
		return
	}
	if err := savePeers(m.dir(), peers); err != nil {
		m.log.Warn("the list of peers cannot be saved", "error", err)
		return
	}
	m.peers = peers
}

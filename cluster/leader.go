package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"concord/cluster/pki"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
)

// maxTrailing is how many entries a node may be behind and still count as caught up.
const maxTrailing = 250

// expireLimit bounds the rows that one log entry deletes.
const expireLimit = 1000

// tombstone is how much longer the row of a removed node is kept than its certificates are valid.
const tombstone = 24 * time.Hour

// leadership runs the leader's duties while this node leads.
func (m *membership) leadership() {
	var cancel context.CancelFunc = func() {}
	done := make(chan struct{})
	close(done)
	for {
		select {
		case <-m.ctx.Done():
			cancel()
			<-done
			return
		case lead := <-m.notify:
			m.ready.Store(false)
			cancel()
			<-done
			if lead {
				var ctx context.Context
				ctx, cancel = context.WithCancel(m.ctx)
				done = make(chan struct{})
				go func() { defer close(done); m.lead(ctx) }()
			}
		}
	}
}

func (m *membership) lead(ctx context.Context) {
	// The machine must hold what earlier leaders committed before anything is decided on it.
	for ctx.Err() == nil {
		err := m.await(m.raft.Barrier(0))
		if err == nil {
			err = m.ensureMeta(ctx)
		}
		if err == nil {
			break
		}
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrRaftShutdown) {
			return
		}
		m.log.Error("the new leader cannot take up its duties", "error", err)
		pause(ctx, time.Second)
	}
	if ctx.Err() != nil {
		return
	}
	m.ready.Store(true)
	if ctx.Err() != nil { // lost in between: leadership has set it to false already
		m.ready.Store(false)
		return
	}
	m.log.Log(context.Background(), levelNotice, "this node leads the cluster", "node", m.id.NodeID, "term", m.raft.CurrentTerm())
	wake(m.changed)
	d := duties{membership: m, seen: map[string]time.Time{}, since: map[string]time.Time{}, begun: time.Now()}
	every := min(time.Second, m.opt.Tuning.StabilizationTime/3)
	for pause(ctx, every) {
		d.run(ctx)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// ensureMeta makes what a new cluster needs: the CA, this node's certificate and the gossip key. It runs on every new leader, so that
// a crash in the middle of the first start is made good by the second.
func (m *membership) ensureMeta(ctx context.Context) error {
	if _, ok := m.rows.clusterMeta(); ok {
		return nil
	}
	ca, err := pki.NewCA(m.id.ClusterID, time.Now())
	if err != nil {
		return err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	gossipKey, err := newSecretKey()
	if err != nil {
		return err
	}
	meta, err := m.rows.put(metaID.String(), &entity.ClusterMeta{
		ID: metaID.String(), ClusterID: m.id.ClusterID, CACertificate: ca.CertificatePEM(), CAKey: key,
		GossipKeys: []string{gossipKey}, GossipPhase: phaseSteady,
	}, command.IfAbsent, 0)
	if err != nil {
		return err
	}
	row := m.ownRow()
	row.CreatedAt, row.Role, row.State = now(), Voter, nodeActive
	node, err := m.rows.put(m.id.NodeID, &row, command.IfAbsent, 0)
	if err != nil {
		return err
	}
	if err := m.commit(ctx, fsm.Cause{}, meta, node); err != nil {
		return err
	}
	if err := m.raise(ctx); err != nil { // now, for what the first client may ask
		return err
	}
	return m.selfIssue()
}

func now() float64 { return float64(time.Now().UnixMilli()) / 1000 }

// commit writes rows of the cluster. With a cause it leaves a record in the audit log.
func (m *membership) commit(ctx context.Context, cause fsm.Cause, puts ...command.Put) error {
	c := command.Command{Level: 1, Actor: "cluster", Op: command.Txn{Puts: puts}}
	if cause.Verb != "" {
		m.sign(&c, cause)
	}
	res, err := m.propose(ctx, c)
	return errors.Join(err, res.Err)
}

func (m *membership) ca() (*pki.CA, error) {
	row, ok := m.rows.clusterMeta()
	if !ok {
		return nil, errors.New("the CA of the cluster is not known to this node yet")
	}
	return pki.ParseCA(row.Val.CACertificate, row.Val.CAKey)
}

// selfIssue has this node sign its own certificate: the first one of a cluster, and one that expired while the node, or the whole
// cluster, was off. Without it nobody could connect to anybody to renew. Nothing is done without the CA.
func (m *membership) selfIssue() error {
	meta, ok := m.rows.clusterMeta()
	if row, known := m.rows.node(m.id.NodeID); !ok || !known || row.Val.State != nodeActive {
		return nil
	}
	ca, err := m.ca()
	if err != nil {
		return err
	}
	var key pki.Key
	if old := m.port.Credentials(); old != nil {
		key = old.Key
	} else if key, err = pki.NewKey(); err != nil {
		return err
	}
	csr, err := key.Request()
	if err != nil {
		return err
	}
	der, err := ca.Sign(csr, m.id.ClusterID, m.id.NodeID, time.Now(), m.opt.Tuning.CertificateLife)
	if err != nil {
		return err
	}
	return m.useCertificate(key, der, meta.Val.CACertificate)
}

func (m *membership) useCertificate(key pki.Key, der []byte, caPEM string) error {
	creds, err := pki.NewCredentials(m.id.ClusterID, m.id.NodeID, key, der, caPEM)
	if err != nil {
		return err
	}
	if err := creds.Save(m.dir()); err != nil {
		return err
	}
	m.port.SetCredentials(creds)
	return nil
}

// duties are what only the leader does, again and again.
type duties struct {
	*membership
	begun   time.Time
	seen    map[string]time.Time // when a node last answered, or was first missed
	since   map[string]time.Time // since when a non-voter has been caught up
	expired time.Time            // when expired rows were last deleted
}

func (d *duties) run(ctx context.Context) {
	status := d.askAll(ctx)
	for id := range status {
		d.seen[id] = time.Now()
	}
	for _, duty := range []struct {
		what string
		do   func(context.Context, map[string]peerStatus) error
	}{
		{"promoting a caught-up node", d.promote}, {"removing a dead node", d.bury}, {"rotating the gossip key", d.rotate}, {"rotating the keys of TLS session tickets", d.rotateTickets},
		{"raising the cluster level", func(ctx context.Context, _ map[string]peerStatus) error { return d.raise(ctx) }}, {"deleting expired rows", d.expire},
	} {
		if err := duty.do(ctx, status); err != nil && ctx.Err() == nil {
			d.log.Warn(duty.what+" failed; it will be tried again", "error", err)
		}
	}
}

// promote makes voters of nodes that have been caught up for the stabilization time.
func (d *duties) promote(ctx context.Context, status map[string]peerStatus) error {
	for _, s := range d.servers() {
		id := string(s.ID)
		row, ok := d.rows.node(id)
		st, alive := status[id]
		fit := s.Suffrage != raft.Voter && ok && row.Val.State == nodeActive && row.Val.Role == Voter &&
			alive && st.Applied+maxTrailing >= d.machine.index()
		if !fit {
			delete(d.since, id)
			continue
		}
		if d.since[id].IsZero() {
			d.since[id] = time.Now()
		}
		if time.Since(d.since[id]) >= d.opt.Tuning.StabilizationTime {
			if err := d.await(d.raft.AddVoter(s.ID, s.Address, 0, 0)); err != nil {
				return err
			}
			d.log.Log(context.Background(), levelNotice, "node may vote now", "node", id, "name", row.Val.Name)
			delete(d.since, id)
			if err := d.note(ctx, ours("promote", fmt.Sprintf("node %s (%s) may vote", row.Val.Name, id))); err != nil {
				d.log.Warn("the promotion of a node is not in the audit log", "node", id, "error", err)
			}
		}
	}
	return nil
}

// bury removes nodes that have been silent for too long: non-voters, and voters as long as enough of them are left.
func (d *duties) bury(ctx context.Context, _ map[string]peerStatus) error {
	if d.opt.Tuning.DeadAfter < 0 {
		return nil
	}
	servers := d.servers()
	voters := 0
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	for _, s := range servers {
		id := string(s.ID)
		last, known := d.seen[id]
		if !known { // just admitted, or this node leads only now
			d.seen[id] = time.Now()
			continue
		}
		if id == d.id.NodeID || time.Since(last) < d.opt.Tuning.DeadAfter {
			continue
		}
		if s.Suffrage == raft.Voter {
			if voters <= d.opt.Tuning.MinQuorum {
				continue
			}
			voters--
		}
		d.log.Warn("removing a node that has been silent for too long", "node", id, "since", last)
		if err := d.removeNode(ctx, id, ours("remove", fmt.Sprintf("node %s was silent since %s", id, last.UTC().Format(time.RFC3339)))); err != nil {
			return err
		}
	}
	for _, row := range d.rows.active() { // admitted, but the leader changed before it came into raft's configuration
		in := slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == row.Val.ID })
		if !in && now()-row.Val.CreatedAt > admission.Seconds() && time.Since(d.begun) > admission {
			if err := d.removeNode(ctx, row.Val.ID, ours("remove", fmt.Sprintf("node %s (%s) was admitted and never came", row.Val.Name, row.Val.ID))); err != nil {
				return err
			}
		}
	}
	return nil
}

// rotate takes the rotation of the gossip key one step further once every living node has taken the last one. Dead nodes do not
// hold it up: they get the keys with the log.
func (d *duties) rotate(ctx context.Context, status map[string]peerStatus) error {
	row, ok := d.rows.clusterMeta()
	if !ok || row.Val.GossipPhase == phaseSteady || d.keyed.Load() != row.Index {
		return nil
	}
	for id, s := range status {
		if id != d.id.NodeID && s.Keyed < row.Index {
			return nil
		}
	}
	next := row.Val
	next.GossipKeys = slices.Clone(next.GossipKeys)
	switch next.GossipPhase {
	case phaseInstall:
		slices.Reverse(next.GossipKeys)
		next.GossipPhase = phaseUse
	case phaseUse:
		next.GossipKeys = next.GossipKeys[:1]
		next.GossipPhase = phaseSteady
	}
	put, err := d.rows.put(next.ID, &next, row.Index, 0)
	if err != nil {
		return err
	}
	return d.commit(ctx, fsm.Cause{}, put)
}

// raise lifts the cluster's level to what every member understands.
func (m *membership) raise(ctx context.Context) error {
	if m.holdLevel.Load() {
		return nil
	}
	level := uint32(math.MaxUint32)
	for _, row := range m.rows.active() {
		level = min(level, uint32(row.Val.Level))
	}
	if level == math.MaxUint32 || level <= m.machine.Level() {
		return nil
	}
	m.log.Log(context.Background(), levelNotice, "raising the cluster level", "from", m.machine.Level(), "to", level)
	res, err := m.propose(ctx, command.Command{Level: m.machine.Level(), Actor: "cluster", Op: command.SetLevel{Level: level}})
	return errors.Join(err, res.Err)
}

// expire proposes the deletion of rows whose time has passed, and of records of the audit log that are not kept.
func (d *duties) expire(ctx context.Context, _ map[string]peerStatus) error {
	if time.Since(d.expired) < d.opt.Tuning.ExpireEvery {
		return nil
	}
	d.expired = time.Now()
	for ctx.Err() == nil {
		t := time.Now().UnixMilli()
		if !d.rows.store.View().Due(t) && !d.machine.Stale(t) {
			break
		}
		c := command.Command{Level: d.machine.Level(), Actor: "cluster", Op: command.ExpireBefore{T: t, Limit: expireLimit}}
		if c.Level >= command.AuditLevel { // before that every row that expires would be in it
			d.sign(&c, fsm.Cause{Name: "cluster", Verb: "expire", Entity: entity.AdminTokens})
		}
		res, err := d.propose(ctx, c)
		if err := errors.Join(err, res.Err); err != nil {
			return err
		}
		if len(res.Keys) < expireLimit {
			break
		}
	}
	return d.trimAudit(ctx)
}

// admission is how long a node may take from its row to raft's configuration.
const admission = time.Minute

// removeNode takes a node out of the cluster: its row first, so that it is refused everywhere, then its vote; then the gossip key,
// which it knows, is replaced.
func (m *membership) removeNode(ctx context.Context, id string, cause fsm.Cause) error {
	servers := m.servers()
	target := slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	row, known := m.rows.node(id)
	if target < 0 && (!known || row.Val.State != nodeActive) {
		return fmt.Errorf("%w: %s", ErrUnknownNode, id)
	}
	if target >= 0 && servers[target].Suffrage == raft.Voter {
		voters := 0
		for _, s := range servers {
			if s.Suffrage == raft.Voter {
				voters++
			}
		}
		if voters == 1 {
			return &RefusedError{"this is the only voter of the cluster: without it nothing could be decided any more"}
		}
	}
	m.sayGoodbye(ctx, id)
	puts := make([]command.Put, 0, 2)
	if known && row.Val.State == nodeActive {
		gone := row.Val
		gone.State = nodeRemoved
		end := time.Now().Add(m.opt.Tuning.CertificateLife + tombstone).UnixMilli()
		put, err := m.rows.put(id, &gone, row.Index, end)
		if err != nil {
			return err
		}
		puts = append(puts, put)
	}
	if meta, ok := m.rows.clusterMeta(); ok {
		next := meta.Val
		key, err := newSecretKey()
		if err != nil {
			return err
		}
		next.GossipKeys = []string{next.GossipKeys[0], key} // a rotation under way starts over
		next.GossipPhase = phaseInstall
		put, err := m.rows.put(next.ID, &next, meta.Index, 0)
		if err != nil {
			return err
		}
		puts = append(puts, put)
	}
	if target >= 0 {
		// Before the new key is committed: a node that is no longer replicated to never sees it.
		if err := m.await(m.raft.RemoveServer(raft.ServerID(id), 0, 0)); err != nil {
			return leaderError(err)
		}
	}
	// A node that leaves asks for this itself, over a connection that is cut here: what was begun is ended all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opt.Tuning.LeaderWait)
	defer cancel()
	m.port.Cut(id)
	return m.commit(ctx, cause, puts...)
}

// change runs f, which reads rows and proposes, again as long as somebody else was faster.
func change(f func() error) error {
	for i := 0; ; i++ {
		err := f()
		var conflict *fsm.ConflictError
		if err == nil || !errors.As(err, &conflict) || i == 5 {
			return err
		}
	}
}

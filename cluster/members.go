package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"concord/cluster/pki"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
)

type none struct{}

// ownRow is this node as it should appear to the others; role and state are the leader's to decide.
func (m *membership) ownRow() entity.ClusterNode {
	row := entity.ClusterNode{
		ID: m.id.NodeID, Name: m.opt.Name, Address: m.advertise, Version: m.opt.Version, Level: float64(m.opt.Level),
	}
	if g := m.gossip.Load(); g != nil {
		row.GossipAddress = g.Addr()
	}
	return row
}

// keepRow tells the leader when this node's row is out of date: after a restart with another address or version.
func (m *membership) keepRow() {
	row, ok := m.rows.node(m.id.NodeID)
	if !ok {
		return
	}
	if row.Val.State != nodeActive {
		m.goodbye("")
		return
	}
	own := m.ownRow()
	own.CreatedAt, own.Role, own.State = row.Val.CreatedAt, row.Val.Role, row.Val.State
	if own == row.Val && m.addressInRaft() == m.advertise || own.GossipAddress == "" {
		return
	}
	if err := m.leaderCall(m.ctx, opAnnounce, own, nil); err != nil && m.ctx.Err() == nil {
		m.log.Warn("the leader could not be told this node's address", "error", err)
	}
}

func (m *membership) addressInRaft() string {
	for _, s := range m.servers() {
		if string(s.ID) == m.id.NodeID {
			return string(s.Address)
		}
	}
	return ""
}

// leadAnnounce takes over what a member says about itself.
func (m *membership) leadAnnounce(ctx context.Context, from string, own entity.ClusterNode) (none, error) {
	if own.ID != from {
		return none{}, &RefusedError{"a node may speak for itself only"}
	}
	for _, s := range m.servers() {
		if string(s.ID) != from || string(s.Address) == own.Address {
			continue
		}
		add := m.raft.AddNonvoter
		if s.Suffrage == raft.Voter {
			add = m.raft.AddVoter
		}
		if err := m.await(add(s.ID, raft.ServerAddress(own.Address), 0, 0)); err != nil {
			return none{}, leaderError(err)
		}
		m.log.Log(context.Background(), levelNotice, "a node has another address", "node", from, "address", own.Address)
	}
	return none{}, change(func() error {
		row, ok := m.rows.node(from)
		if !ok || row.Val.State != nodeActive {
			return &RefusedError{"this node is not a member of the cluster"}
		}
		next := row.Val
		next.Name, next.Address, next.GossipAddress, next.Version, next.Level = own.Name, own.Address, own.GossipAddress, own.Version, own.Level
		if next == row.Val {
			return nil
		}
		put, err := m.rows.put(from, &next, row.Index, 0)
		if err != nil {
			return err
		}
		return m.commit(ctx, fsm.Cause{Name: "node " + next.Name, Verb: "announce", Entity: "cluster_nodes"}, put)
	})
}

// keepCertificate renews this node's certificate when two thirds of its life are over.
func (m *membership) keepCertificate() {
	creds := m.port.Credentials()
	if creds == nil || time.Now().Before(creds.RenewAt()) {
		return
	}
	if creds.Expired(time.Now()) { // nobody listens to this node any more, the leader neither
		if err := m.selfIssue(); err != nil {
			m.log.Error("the expired certificate of this node cannot be replaced", "error", err)
		}
		return
	}
	csr, err := creds.Key.Request()
	if err != nil {
		m.log.Error("the certificate of this node cannot be renewed", "error", err)
		return
	}
	var answer renewAnswer
	ctx, cancel := context.WithDeadline(m.ctx, creds.Leaf.NotAfter) // then it is time to help oneself
	defer cancel()
	err = m.leaderCall(ctx, opRenew, renewRequest{csr}, &answer)
	if err == nil {
		err = m.useCertificate(creds.Key, answer.Certificate, answer.CA)
	}
	switch {
	case err == nil:
		m.log.Info("the certificate of this node was renewed", "until", m.port.Credentials().Leaf.NotAfter)
	case m.ctx.Err() == nil:
		m.log.Warn("the certificate of this node could not be renewed; it will be tried again", "until", creds.Leaf.NotAfter, "error", err)
	}
}

type renewRequest struct {
	Request []byte `json:"request"` // DER
}

type renewAnswer struct {
	Certificate []byte `json:"certificate"` // DER
	CA          string `json:"ca"`          // PEM
}

func (m *membership) leadRenew(_ context.Context, from string, in renewRequest) (renewAnswer, error) {
	if row, ok := m.rows.node(from); !ok || row.Val.State != nodeActive {
		return renewAnswer{}, &RefusedError{"this node is not a member of the cluster"}
	}
	ca, err := m.ca()
	if err != nil {
		return renewAnswer{}, err
	}
	der, err := ca.Sign(in.Request, m.id.ClusterID, from, time.Now(), m.opt.Tuning.CertificateLife)
	return renewAnswer{der, ca.CertificatePEM()}, err
}

// CreateToken makes a token with which nodes join. Only what verifies a proof of it is stored.
func (n *Node) CreateToken(ctx context.Context, o TokenOptions) (string, error) {
	if o.Role == "" {
		o.Role = Voter
	}
	if o.TTL == 0 {
		o.TTL = time.Hour
	}
	if o.Uses == 0 {
		o.Uses = 1
	}
	switch {
	case o.Role != Voter && o.Role != Nonvoter:
		return "", &RefusedError{fmt.Sprintf("role %q: must be %s or %s", o.Role, Voter, Nonvoter)}
	case o.TTL < 0 || o.TTL > 365*24*time.Hour:
		return "", &RefusedError{fmt.Sprintf("ttl %s: must be more than 0 and at most a year", o.TTL)}
	case o.Uses < 0 || o.Uses > 1000:
		return "", &RefusedError{fmt.Sprintf("uses %d: must be 1 to 1000", o.Uses)}
	}
	o.Cause = causeOf(ctx)
	var answer tokenAnswer
	err := n.leaderCall(ctx, opToken, o, &answer)
	return answer.Token, err
}

type tokenAnswer struct {
	Token string `json:"token"`
}

func (m *membership) leadToken(ctx context.Context, _ string, o TokenOptions) (tokenAnswer, error) {
	ca, ok := m.rows.clusterMeta()
	if !ok {
		return tokenAnswer{}, ErrNotLeader
	}
	cert, err := pki.ParseCertificate([]byte(ca.Val.CACertificate))
	if err != nil {
		return tokenAnswer{}, err
	}
	t, err := pki.NewToken(m.id.ClusterID, cert)
	if err != nil {
		return tokenAnswer{}, err
	}
	end := time.Now().Add(o.TTL)
	put, err := m.rows.put(t.ID, &entity.ClusterToken{
		ID: t.ID, CreatedAt: now(), ExpiresAt: float64(end.UnixMilli()) / 1000, Role: o.Role, Uses: float64(o.Uses),
		ProofKey: base64.StdEncoding.EncodeToString(t.ProofKey()),
	}, command.IfAbsent, end.Add(tombstone).UnixMilli()) // kept for a day, to say "expired" rather than "unknown"
	if err != nil {
		return tokenAnswer{}, err
	}
	o.Cause.Verb, o.Cause.Entity = "create", "cluster_tokens"
	o.Cause.Detail = fmt.Sprintf("join token for %d %s, valid for %s", o.Uses, o.Role, o.TTL)
	return tokenAnswer{t.Text()}, m.commit(ctx, o.Cause, put)
}

// find resolves an id or a name of a member.
func (m *membership) find(idOrName string) (string, error) {
	var ids []string
	for _, row := range m.rows.active() {
		if row.Val.ID == idOrName {
			return idOrName, nil
		}
		if row.Val.Name == idOrName {
			ids = append(ids, row.Val.ID)
		}
	}
	switch len(ids) {
	case 0:
		return "", fmt.Errorf("%w: %s", ErrUnknownNode, idOrName)
	case 1:
		return ids[0], nil
	}
	return "", &RefusedError{fmt.Sprintf("%d nodes have the name %q: give the id, one of %s", len(ids), idOrName, strings.Join(ids, ", "))}
}

// Remove takes a node, by id or name, out of the cluster: it is refused at the next handshake, its connections are cut, and the gossip
// key is replaced. The node itself goes on serving what it knows; it can join again with an empty prefix.
func (n *Node) Remove(ctx context.Context, node string) error {
	return n.leaderCall(ctx, opRemove, nodeRef{node, causeOf(ctx)}, nil)
}

type nodeRef struct {
	Node  string    `json:"node"`
	Cause fsm.Cause `json:"cause,omitzero"` // who asks
}

func (m *membership) leadRemove(ctx context.Context, from string, in nodeRef) (none, error) {
	id, err := m.find(in.Node)
	if err != nil {
		return none{}, err
	}
	if id == m.id.NodeID {
		if m.alone() {
			return none{}, &RefusedError{"this is the only node of the cluster"}
		}
		// The next leader does it.
		if err := m.transfer(ctx, "", fsm.Cause{}); err != nil {
			return none{}, err
		}
		return none{}, ErrNotLeader
	}
	in.Cause.Verb, in.Cause.Entity, in.Cause.Detail = "remove", "cluster_nodes", "node "+id
	if id == from {
		in.Cause.Verb = "leave"
	}
	return none{}, change(func() error {
		err := m.removeNode(ctx, id, in.Cause)
		if err == nil {
			m.log.Log(context.Background(), levelNotice, "node was removed from the cluster", "node", id)
		}
		return err
	})
}

// TransferLeadership makes a node, by id or name, the leader; "": whichever is best.
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	return n.leaderCall(ctx, opTransfer, nodeRef{to, causeOf(ctx)}, nil)
}

func (m *membership) leadTransfer(ctx context.Context, _ string, in nodeRef) (none, error) {
	id := in.Node
	if id != "" {
		var err error
		if id, err = m.find(id); err != nil {
			return none{}, err
		}
	}
	if id == m.id.NodeID {
		return none{}, nil
	}
	in.Cause.Verb, in.Cause.Entity = "transfer", "cluster_nodes"
	return none{}, m.transfer(ctx, id, in.Cause)
}

// transfer hands leadership to a voter and waits until somebody else leads. With a cause it leaves a record first: afterwards this node could not.
func (m *membership) transfer(ctx context.Context, to string, cause fsm.Cause) error {
	var hand func() raft.Future
	if to == "" {
		voters := 0
		for _, s := range m.servers() {
			if s.Suffrage == raft.Voter {
				voters++
			}
		}
		if voters < 2 {
			return &RefusedError{"there is no other voter that could lead"}
		}
		hand = m.raft.LeadershipTransfer
		cause.Detail = "leadership goes from node " + m.id.NodeID + " to whichever is best"
	} else {
		for _, s := range m.servers() {
			if string(s.ID) == to {
				if s.Suffrage != raft.Voter {
					return &RefusedError{fmt.Sprintf("node %s may not vote (yet), so it cannot lead", to)}
				}
				hand = func() raft.Future { return m.raft.LeadershipTransferToServer(s.ID, s.Address) }
				cause.Detail = "leadership goes from node " + m.id.NodeID + " to node " + to
			}
		}
		if hand == nil {
			return fmt.Errorf("%w: %s", ErrUnknownNode, to)
		}
	}
	if cause.Verb != "" {
		if err := m.note(ctx, cause); err != nil {
			return err
		}
	}
	f := hand()
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("transfer of leadership: %w", leaderError(err))
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	// The old leader believes in itself until the next heartbeat of the new one.
	for {
		if _, id := m.leader(); id != "" && id != m.id.NodeID {
			return nil
		}
		if !pause(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// Leave takes this node out of its cluster; it goes on as a fresh cluster of one, without data.
func (n *Node) Leave(ctx context.Context) error {
	n.switching.Lock()
	defer n.switching.Unlock()
	m, err := n.membership()
	if err != nil {
		return err
	}
	if !m.removed.Load() {
		if m.alone() {
			return &RefusedError{"this node is alone in its cluster: there is nothing to leave"}
		}
		if err := n.Remove(ctx, m.id.NodeID); err != nil && !m.removed.Load() && !errors.Is(err, ErrUnknownNode) {
			return err
		}
	}
	id := newIdentity()
	keys, err := newKeys()
	if err != nil {
		return err
	}
	if err := stage(n.opt.Prefix, id, keys, nil); err != nil {
		return err
	}
	return n.switchTo(ctx, id, keys)
}

// sayGoodbye tells a node that it is about to be removed; afterwards nobody talks to it any more.
func (m *membership) sayGoodbye(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, p := range m.others() {
		if p.ID == id {
			if _, err := m.post(ctx, p, "goodbye", nil); err != nil {
				m.log.Debug("a removed node could not be told", "node", id, "error", err)
			}
		}
	}
}

// goodbye is what a node does when it learns that it was removed: it keeps serving what it has and refuses writes with the reason. from
// is the leader that says so, "" if the log does.
func (m *membership) goodbye(from string) {
	if _, leader := m.leader(); from != "" && from != leader {
		return
	}
	if m.removed.CompareAndSwap(false, true) {
		m.log.Error("this node was removed from the cluster: it serves its last configuration and takes no writes; it can join again after `gwctl cluster leave` or with an empty prefix")
	}
}

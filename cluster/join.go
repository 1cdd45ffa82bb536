package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"concord/cluster/pki"
	"concord/cluster/transport"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/seal"
)

// joinRequest is what a joining node says; Proof covers Body and the connection.
type joinRequest struct {
	Token string          `json:"token"` // its id
	Body  json.RawMessage `json:"body"`
	Proof []byte          `json:"proof"`
}

type joinBody struct {
	Node    entity.ClusterNode `json:"node"`
	Request []byte             `json:"request"` // certificate request, DER
}

// joinAnswer admits the node, or names the leader, or says why not.
type joinAnswer struct {
	Error       string          `json:"error,omitempty"`
	Retry       bool            `json:"retry,omitempty"` // there is no leader just now
	Leader      string          `json:"leader,omitempty"`
	Certificate []byte          `json:"certificate,omitempty"`
	CA          string          `json:"ca,omitempty"`
	SealKeys    json.RawMessage `json:"seal_keys,omitempty"`
	Index       uint64          `json:"index,omitempty"` // of the entry that admitted the node
}

func newKeys() (*seal.Keyring, error) { return seal.Generate(rand.Reader) }

// Join makes this node, alone in its cluster until now, a member of the cluster of the token. Unless discard is set it refuses when
// the node holds entities: they would be lost. It returns once the node has the state of its new cluster.
func (n *Node) Join(ctx context.Context, addr, token string, discard bool) error {
	t, err := pki.ParseToken(token)
	if err != nil {
		return &RefusedError{err.Error()}
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return &RefusedError{fmt.Sprintf("address %q: must be host:port, the cluster_listen of a member", addr)}
	}
	n.switching.Lock()
	defer n.switching.Unlock()
	m, err := n.membership()
	if err != nil {
		return err
	}
	switch {
	case m.id.ClusterID == t.ClusterID:
		return &RefusedError{"this node is a member of that cluster already"}
	case !m.alone() && !m.removed.Load():
		return &RefusedError{"this node is a member of a cluster with other nodes: `gwctl cluster leave` first"}
	case !discard && n.rows.holdsUserData():
		return ErrHoldsData
	}
	id := identity{NodeID: uuid.NewString(), ClusterID: t.ClusterID, Phase: joining}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	answer, err := n.requestJoin(ctx, addr, t, id, key)
	if err != nil {
		return err
	}
	keys, err := seal.Decode(answer.SealKeys)
	if err != nil {
		return err
	}
	creds, err := pki.NewCredentials(id.ClusterID, id.NodeID, key, answer.Certificate, answer.CA)
	if err != nil {
		return err
	}
	if err := stage(n.opt.Prefix, id, keys, creds); err != nil {
		return err
	}
	if err := n.switchTo(ctx, id, keys); err != nil {
		return err
	}
	n.log.Log(context.Background(), levelNotice, "joined the cluster", "cluster", id.ClusterID, "node", id.NodeID)
	if err := n.catchUp(ctx, answer.Index); err != nil {
		return fmt.Errorf("the node has joined the cluster, but has not received its state yet: %w", err)
	}
	return nil
}

// catchUp waits for the state of the new cluster.
func (n *Node) catchUp(ctx context.Context, index uint64) error {
	for {
		m := n.machine
		m.mu.Lock()
		applied, moved := m.applied, m.moved
		m.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// requestJoin asks the node at addr and whoever it names as the leader.
func (n *Node) requestJoin(ctx context.Context, addr string, t pki.Token, id identity, key pki.Key) (joinAnswer, error) {
	csr, err := key.Request()
	if err != nil {
		return joinAnswer{}, err
	}
	body, err := json.Marshal(joinBody{Request: csr, Node: entity.ClusterNode{
		ID: id.NodeID, Name: n.opt.Name, Address: n.advertise, Version: n.opt.Version, Level: float64(n.opt.Level),
	}})
	if err != nil {
		return joinAnswer{}, err
	}
	proofKey := t.ProofKey()
	begin := time.Now()
	for to := addr; ; {
		data, err := transport.Join(ctx, to, t, func(conn tls.ConnectionState) ([]byte, error) {
			proof, err := pki.Proof(proofKey, conn, body)
			if err != nil {
				return nil, err
			}
			return json.Marshal(joinRequest{Token: t.ID, Body: body, Proof: proof})
		})
		var answer joinAnswer
		if err == nil {
			err = json.Unmarshal(data, &answer)
		}
		switch {
		case err != nil && to == addr:
			return answer, &RefusedError{fmt.Sprintf("joining by %s: %v", to, err)}
		case err != nil: // the leader it named is gone
			to = addr
		case answer.Error != "":
			return answer, &RefusedError{"the cluster refuses: " + answer.Error}
		case answer.Leader != "":
			to = answer.Leader
			if to == addr {
				answer.Retry = true
			}
		case !answer.Retry:
			return answer, nil
		default:
			to = addr
		}
		if answer.Retry || err != nil {
			if time.Since(begin) > n.opt.Tuning.LeaderWait {
				return answer, &NoLeaderError{Waited: time.Since(begin), Reason: "the cluster has no leader"}
			}
			if !pause(ctx, 100*time.Millisecond) {
				return answer, ctx.Err()
			}
		}
	}
}

// switchTo replaces the membership by the one that is staged. What fails after the old one has ended is fatal: a restart
// finishes or repeats it.
func (n *Node) switchTo(ctx context.Context, id identity, keys *seal.Keyring) error {
	m, err := n.membership()
	if err != nil {
		return errors.Join(err, unstage(n.opt.Prefix))
	}
	n.setCurrent(nil)
	if err := m.stop(true); err != nil {
		n.log.Warn("the old membership did not end cleanly", "error", err)
	}
	if err := commitStage(n.opt.Prefix); err != nil {
		n.fatal(err)
		return err
	}
	n.port.CutAll()
	n.machine.ResetKeys(keys)
	n.machine.move(0)
	ctx = context.WithoutCancel(ctx) // who asked may have gone; half-way is no place to stop
	next, err := n.enter(ctx, id)
	if err == nil && id.Phase == forming {
		err = n.settle(ctx, next)
	}
	if err != nil {
		n.fatal(err)
	}
	return err
}

// serveJoin answers a node that has no certificate. Refusals take their time: guessing must not pay.
func (n *Node) serveJoin(ctx context.Context, from net.Addr, conn tls.ConnectionState, message []byte) []byte {
	answer, err := n.admit(ctx, from, conn, message)
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		n.refused.count.Add(1)
		n.log.Warn("a join was refused", "from", from.String(), "reason", refused.Reason)
		pause(ctx, 200*time.Millisecond)
		answer = joinAnswer{Error: refused.Reason}
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrOutcomeUnknown), errors.Is(err, ErrClosed):
		answer = joinAnswer{Retry: true}
	case err != nil:
		n.log.Error("a join failed", "error", err)
		answer = joinAnswer{Error: "the leader could not admit the node; its log says why"}
	}
	data, err := json.Marshal(answer)
	if err != nil {
		n.log.Error("a join failed", "error", err)
	}
	return data
}

const lostInBetween = "the leader changed while the node was admitted, and the token may be used up: make a new one with `gwctl cluster token` and try again"

func (n *Node) admit(ctx context.Context, from net.Addr, conn tls.ConnectionState, message []byte) (joinAnswer, error) {
	m, err := n.membership()
	if err != nil {
		return joinAnswer{}, err
	}
	if !m.ready.Load() {
		addr, id := m.leader()
		if id == "" || id == m.id.NodeID {
			return joinAnswer{}, ErrNotLeader
		}
		return joinAnswer{Leader: addr}, nil
	}
	var req joinRequest
	var body joinBody
	if json.Unmarshal(message, &req) != nil || json.Unmarshal(req.Body, &body) != nil {
		return joinAnswer{}, &RefusedError{"the join request cannot be understood"}
	}
	var index uint64
	err = change(func() error {
		var err error
		index, err = m.useToken(ctx, from, conn, &req, &body)
		return err
	})
	if errors.Is(err, ErrOutcomeUnknown) {
		err = &RefusedError{lostInBetween}
	}
	if err != nil {
		return joinAnswer{}, err
	}
	ca, err := m.ca()
	if err != nil {
		return joinAnswer{}, err
	}
	cert, err := ca.Sign(body.Request, m.id.ClusterID, body.Node.ID, time.Now(), m.opt.Tuning.CertificateLife)
	if err != nil {
		return joinAnswer{}, err
	}
	keys, err := m.machine.Keys().Encode()
	if err != nil {
		return joinAnswer{}, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, keys); err != nil {
		return joinAnswer{}, err
	}
	if err := m.await(m.raft.AddNonvoter(raft.ServerID(body.Node.ID), raft.ServerAddress(body.Node.Address), 0, 0)); err != nil {
		m.log.Warn("a node was admitted, but not added to raft", "node", body.Node.ID, "error", err)
		return joinAnswer{}, &RefusedError{lostInBetween}
	}
	m.log.Log(context.Background(), levelNotice, "admitted a node", "node", body.Node.ID, "name", body.Node.Name, "address", body.Node.Address, "token", req.Token)
	return joinAnswer{Certificate: cert, CA: ca.CertificatePEM(), SealKeys: compact.Bytes(), Index: index}, nil
}

// useToken checks a join request and uses its token up by one, in the log entry that makes the node a member: of any number of nodes
// that come with the last use of a token, wherever they ask, exactly one gets it.
func (m *membership) useToken(ctx context.Context, from net.Addr, conn tls.ConnectionState, req *joinRequest, body *joinBody) (uint64, error) {
	cause := fsm.Cause{Name: "join token " + req.Token, Verb: "join", Entity: "cluster_nodes", Detail: fmt.Sprintf("node %s (%s)", body.Node.Name, body.Node.ID)}
	cause.From, _, _ = net.SplitHostPort(from.String())
	proved := false
	refuse := func(format string, args ...any) error {
		err := &RefusedError{fmt.Sprintf(format, args...)}
		if proved && m.refused.due(req.Token, time.Now()) { // strangers leave no records
			cause.Verb, cause.Detail = "refuse", cause.Detail+": "+err.Reason
			if lost := m.note(ctx, cause); lost != nil {
				m.log.Warn("the refusal of a join is not in the audit log", "error", lost)
			}
		}
		return err
	}
	if uuid.Validate(req.Token) != nil {
		return 0, refuse("the join request names no token")
	}
	id := uuid.MustParse(req.Token)
	row, ok := m.rows.tokens.Get(m.rows.store.View(), [16]byte(id))
	if !ok {
		return 0, refuse("the join token is unknown: it is of another cluster, or expired long ago; make a new one with `gwctl cluster token`")
	}
	proofKey, err := base64.StdEncoding.DecodeString(row.Val.ProofKey)
	if err != nil {
		return 0, err
	}
	if err := pki.CheckProof(proofKey, req.Proof, conn, req.Body); err != nil {
		return 0, refuse("%v", err)
	}
	proved = true
	node := body.Node
	_, exists := m.rows.node(node.ID)
	switch {
	case now() >= row.Val.ExpiresAt:
		return 0, refuse("the join token has expired; make a new one with `gwctl cluster token`")
	case row.Val.Uses < 1:
		return 0, refuse("the join token is used up: it has been used as often as it allows; make a new one with `gwctl cluster token`")
	case uuid.Validate(node.ID) != nil || exists:
		return 0, refuse("the node id is not valid or belongs to another node")
	case node.Level < float64(m.machine.Level()):
		return 0, refuse("the cluster is at level %d, the node understands levels up to %.0f: install the newer version on it", m.machine.Level(), node.Level)
	}
	for _, s := range m.servers() {
		if string(s.Address) != node.Address {
			continue
		}
		return 0, refuse("%s is the address of a member, node %s: if that is what this node was before it lost its data, take it out first (gwctl cluster remove %s), else set another cluster_advertise", node.Address, s.ID, s.ID)
	}
	if err := reachable(ctx, node.Address); err != nil {
		return 0, refuse("the leader cannot reach the node at %s (%v): set its cluster_advertise to an address that the others reach", node.Address, err)
	}
	node.CreatedAt, node.Role, node.State, node.GossipAddress = now(), row.Val.Role, nodeActive, ""
	used := row.Val
	used.Uses--
	tokenPut, err := m.rows.put(req.Token, &used, row.Index, row.ExpiresAt)
	if err != nil {
		return 0, err
	}
	nodePut, err := m.rows.put(node.ID, &node, command.IfAbsent, 0)
	if err != nil {
		return 0, err
	}
	c := command.Command{Level: 1, Actor: "join", Op: command.Txn{Puts: []command.Put{tokenPut, nodePut}}}
	m.sign(&c, cause)
	res, err := m.propose(ctx, c)
	return res.Index, errors.Join(err, res.Err)
}

func reachable(ctx context.Context, addr string) error {
	c, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

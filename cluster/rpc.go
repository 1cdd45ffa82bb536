package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"concord/cluster/transport"
)

// The operations that run on the leader.
const (
	opForward   = "forward"
	opReadIndex = "read-index"
	opAnnounce  = "announce"
	opRenew     = "renew"
	opToken     = "token"
	opRemove    = "remove"
	opTransfer  = "transfer"
	opNote      = "note"
)

type operation func(ctx context.Context, from string, body []byte) ([]byte, error)

// lookup finds the operation that runs on this node as the leader; from is the member that asks.
func (m *membership) lookup(op string) operation {
	switch op {
	case opForward:
		return func(ctx context.Context, _ string, body []byte) ([]byte, error) {
			f := m.onForward.Load()
			if f == nil {
				return nil, errors.New("this node does not take requests yet")
			}
			return (*f)(ctx, body)
		}
	case opReadIndex:
		return jsonOp(m.leadReadIndex)
	case opAnnounce:
		return jsonOp(m.leadAnnounce)
	case opRenew:
		return jsonOp(m.leadRenew)
	case opToken:
		return jsonOp(m.leadToken)
	case opRemove:
		return jsonOp(m.leadRemove)
	case opTransfer:
		return jsonOp(m.leadTransfer)
	case opNote:
		return jsonOp(m.leadNote)
	}
	return func(context.Context, string, []byte) ([]byte, error) {
		return nil, fmt.Errorf("the leader does not know the operation %q: it runs an older version", op)
	}
}

func jsonOp[In, Out any](f func(context.Context, string, In) (Out, error)) operation {
	return func(ctx context.Context, from string, body []byte) ([]byte, error) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		out, err := f(ctx, from, in)
		if err != nil {
			return nil, err
		}
		return json.Marshal(out)
	}
}

// handler answers the requests of other members. Who gets here has a certificate of the cluster and was not removed from it.
func (n *Node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /peer/leader/{op}", func(w http.ResponseWriter, r *http.Request) {
		m, err := n.membership()
		if err != nil {
			answerFault(w, fault{Kind: kindNotLeader, Message: err.Error()})
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			answerFault(w, faultOf(err))
			return
		}
		if !m.ready.Load() {
			answerFault(w, faultOf(ErrNotLeader))
			return
		}
		answer, err := m.lookup(r.PathValue("op"))(r.Context(), transport.NodeID(r), body)
		if err != nil {
			answerFault(w, faultOf(err))
			return
		}
		_, _ = w.Write(answer) // a peer that is gone asks again
	})
	mux.HandleFunc("POST /peer/status", func(w http.ResponseWriter, r *http.Request) {
		m, err := n.membership()
		if err != nil {
			answerFault(w, faultOf(err))
			return
		}
		_ = json.NewEncoder(w).Encode(m.status())
	})
	mux.HandleFunc("POST /peer/goodbye", func(w http.ResponseWriter, r *http.Request) {
		if m, err := n.membership(); err == nil {
			m.goodbye(transport.NodeID(r))
		}
	})
	mux.HandleFunc("POST /peer/tell", n.hear)
	mux.HandleFunc("POST /peer/snapshot", n.sendSnapshot)
	return mux
}

func answerFault(w http.ResponseWriter, f fault) {
	status := http.StatusInternalServerError
	if f.Kind == kindNotLeader {
		status = http.StatusMisdirectedRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(f)
}

// peerStatus is what a node tells the others about itself.
type peerStatus struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Applied uint64 `json:"applied"`
	Keyed   uint64 `json:"keyed"` // index of the cluster_meta row whose gossip keys it uses
	Version string `json:"version"`
	Term    uint64 `json:"term"`
	Leader  peer   `json:"leader"`

	Served *uint64 `json:"served,omitempty"` // config index that its requests are served with; nil: it does not say
}

func (m *membership) status() peerStatus {
	addr, id := m.leader()
	state := map[raft.RaftState]string{raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate"}[m.raft.State()]
	s := peerStatus{
		ID: m.id.NodeID, State: state, Applied: max(m.machine.index(), m.raft.AppliedIndex()), Keyed: m.keyed.Load(), Version: m.opt.Version,
		Term: m.raft.CurrentTerm(), Leader: peer{id, addr},
	}
	if served := m.onServed.Load(); served != nil {
		index := (*served)()
		s.Served = &index
	}
	return s
}

// askAll asks every member for its status, this node included; who does not answer in time is left out.
func (m *membership) askAll(ctx context.Context) map[string]peerStatus {
	answers, _ := m.census(ctx)
	return answers
}

// census is askAll, and who of those left out did not refuse: it may only be slow.
func (m *membership) census(ctx context.Context) (answers map[string]peerStatus, silent map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	answers, silent = map[string]peerStatus{m.id.NodeID: m.status()}, map[string]bool{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, p := range m.others() {
		asking.Go(func() {
			body, err := m.post(ctx, p, "status", nil)
			var s peerStatus
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && json.Unmarshal(body, &s) == nil && s.ID == p.ID:
				answers[s.ID] = s
			case ctx.Err() != nil:
				silent[p.ID] = true
			}
		})
	}
	asking.Wait()
	return answers, silent
}

// snapshotHead goes before the bytes of a snapshot.
type snapshotHead struct {
	Index              uint64             `json:"index"`
	Term               uint64             `json:"term"`
	Configuration      raft.Configuration `json:"configuration"`
	ConfigurationIndex uint64             `json:"configuration_index"`
	Size               int64              `json:"size"`
}

// sendSnapshot gives the state of the leader to a member that lost its own.
func (n *Node) sendSnapshot(w http.ResponseWriter, r *http.Request) {
	m, err := n.membership()
	if err == nil && !m.ready.Load() {
		err = ErrNotLeader
	}
	if err != nil {
		answerFault(w, faultOf(err))
		return
	}
	var meta *raft.SnapshotMeta
	var body io.ReadCloser
	if f := m.raft.Snapshot(); f.Error() == nil {
		meta, body, err = f.Open()
	} else if list, lerr := m.snaps.List(); lerr == nil && len(list) > 0 { // nothing new since
		meta, body, err = m.snaps.Open(list[0].ID)
	} else {
		err = f.Error()
	}
	if err != nil {
		answerFault(w, faultOf(err))
		return
	}
	defer body.Close()
	m.log.Info("sending a snapshot to a node that lost its own", "node", transport.NodeID(r), "index", meta.Index)
	err = json.NewEncoder(w).Encode(snapshotHead{meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, meta.Size})
	if err == nil {
		_, err = io.CopyN(w, body, meta.Size)
	}
	if err != nil { // the receiver checks size and checksum, and asks again
		m.log.Warn("snapshot not sent whole", "node", transport.NodeID(r), "error", err)
	}
}

// fetchSnapshot asks all known peers for the leader's snapshot until one is the leader.
func (m *membership) fetchSnapshot(ctx context.Context, use func(*raft.SnapshotMeta, io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.opt.Tuning.LeaderWait)
	defer cancel()
	peers := loadPeers(m.dir())
	if len(peers) == 0 {
		return errors.New("this node knows no other members")
	}
	for {
		var errs []error
		for _, p := range peers {
			err := m.fetchFrom(ctx, p, use)
			if err == nil {
				m.log.Warn("a damaged or missing snapshot was replaced by the leader's", "leader", p.ID)
				return nil
			}
			errs = append(errs, fmt.Errorf("node %s at %s: %w", p.ID, p.Address, err))
		}
		if !pause(ctx, 200*time.Millisecond) {
			return errors.Join(errs...)
		}
	}
}

func (m *membership) fetchFrom(ctx context.Context, p peer, use func(*raft.SnapshotMeta, io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, peerURL(m.Node, p)+"snapshot", nil)
	if err != nil {
		return err
	}
	resp, err := m.port.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	if resp.StatusCode != http.StatusOK {
		var f fault
		if err := dec.Decode(&f); err != nil {
			return err
		}
		return f.error()
	}
	var head snapshotHead
	if err := dec.Decode(&head); err != nil {
		return err
	}
	rest := io.MultiReader(dec.Buffered(), resp.Body)
	if _, err := io.ReadFull(rest, make([]byte, 1)); err != nil { // the newline behind the head
		return err
	}
	return use(&raft.SnapshotMeta{
		Index: head.Index, Term: head.Term, Configuration: head.Configuration, ConfigurationIndex: head.ConfigurationIndex, Size: head.Size,
	}, rest)
}

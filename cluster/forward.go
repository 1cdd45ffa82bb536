package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// maxBody bounds the requests and answers between members.
const maxBody = 32 << 20

// probeTimeout is how long a member may take to say that it is there.
const probeTimeout = time.Second

// HandleForward sets what runs on the leader for each Forward.
func (n *Node) HandleForward(f func(ctx context.Context, req []byte) ([]byte, error)) {
	n.onForward.Store(&f)
}

// Forward has the handler of HandleForward run on the leader. While there is no leader it waits, for an election's time if a majority
// of the voters answers, else only shortly, and then returns a *NoLeaderError. When the leader changes in the middle, the request is
// repeated on the next one: it must carry a request id.
func (n *Node) Forward(ctx context.Context, req []byte) ([]byte, error) {
	return n.onLeader(ctx, opForward, req)
}

// leaderCall is onLeader for a JSON question and answer.
func (n *Node) leaderCall(ctx context.Context, op string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := n.onLeader(ctx, op, body)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// onLeader runs an operation on the leader, wherever that is.
func (n *Node) onLeader(ctx context.Context, op string, body []byte) ([]byte, error) {
	m, err := n.membership()
	if err != nil {
		return nil, err
	}
	if m.removed.Load() {
		return nil, &NoLeaderError{Reason: "this node was removed from the cluster; it can join again with an empty prefix"}
	}
	t := &n.opt.Tuning
	begin := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := seeker{membership: m, begin: begin}
	guard := time.AfterFunc(t.QuorumWait/4, func() { s.guard(ctx, cancel) })
	defer guard.Stop()
	for {
		answer, err := s.try(ctx, op, body)
		var again *againError
		if !errors.As(err, &again) {
			if err != nil && ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return answer, err
		}
		s.setReason(again.Error())
		if uncertain(again) {
			s.uncertain.Store(true)
		}
		switch {
		case m.ctx.Err() == nil:
		case s.uncertain.Load():
			return nil, &NoLeaderError{Waited: time.Since(begin), Reason: s.reason(), Uncertain: true}
		default:
			return nil, ErrClosed
		}
		if waited := time.Since(begin); waited > t.LeaderWait {
			return nil, &NoLeaderError{Waited: waited, Reason: s.reason(), Uncertain: s.uncertain.Load()}
		}
		if !pause(ctx, 20*time.Millisecond+rand.N(40*time.Millisecond)) {
			return nil, context.Cause(ctx)
		}
	}
}

// againError is a failure that another leader, or the same one a little later, may not have.
type againError struct{ error }

func (e *againError) Unwrap() error { return e.error }

// seeker looks for the leader on behalf of one request.
type seeker struct {
	*membership
	begin time.Time
	mu    sync.Mutex
	why   string
	hint  peer // a leader that another member named

	uncertain atomic.Bool // see NoLeaderError
}

// uncertain tells whether a request that failed so may have arrived and been executed.
func uncertain(err error) bool {
	var op *net.OpError
	return !errors.Is(err, ErrNotLeader) && !errors.Is(err, errNoLeader) && !(errors.As(err, &op) && op.Op == "dial")
}

// errNoLeader: there is nobody to ask.
var errNoLeader = errors.New("no leader is elected")

func (s *seeker) setReason(r string) { s.mu.Lock(); s.why = r; s.mu.Unlock() }
func (s *seeker) reason() string     { s.mu.Lock(); defer s.mu.Unlock(); return s.why }

// silent is how long voters are waited for that do not refuse but only keep silent: longer, for those of a busy machine do so, too, and not
// much longer, for so do those without power.
func (t Tuning) silent() time.Duration { return t.QuorumWait * 9 / 5 }

// guard ends the search once a majority of the voters could not be reached for QuorumWait: then waiting longer is in vain.
func (s *seeker) guard(ctx context.Context, cancel context.CancelCauseFunc) {
	wait, silent := s.opt.Tuning.QuorumWait, s.opt.Tuning.silent()
	last, hope := s.begin, s.begin // when a majority was last reached, and when one was last possible
	for ctx.Err() == nil {
		pctx, done := context.WithDeadline(ctx, last.Add(silent))
		reached, quiet, voters, hint := s.probe(pctx)
		done()
		s.mu.Lock()
		s.hint = hint
		s.mu.Unlock()
		if reached+quiet > voters/2 {
			hope = time.Now()
		}
		if reached > voters/2 {
			last = time.Now()
		} else if (time.Since(hope) >= wait || time.Since(last) >= silent) && ctx.Err() == nil {
			cancel(&NoLeaderError{Waited: time.Since(s.begin), Uncertain: s.uncertain.Load(),
				Reason: fmt.Sprintf("%d of %d voters can be reached, a majority of %d is needed", reached, voters, voters/2+1)})
			return
		}
		pause(ctx, min(100*time.Millisecond, max(time.Until(hope.Add(wait)), time.Millisecond)))
	}
}

// probe counts the voters that answer, this node included, and those that keep silent, and asks who leads.
func (m *membership) probe(ctx context.Context) (reached, silent, voters int, leader peer) {
	status, quiet := m.census(ctx)
	var term uint64
	for _, s := range m.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if _, ok := status[string(s.ID)]; ok {
			reached++
		} else if quiet[string(s.ID)] {
			silent++
		}
	}
	for _, st := range status {
		if st.Leader.ID != "" && st.Leader.ID != m.id.NodeID && st.Term > term {
			leader, term = st.Leader, st.Term
		}
	}
	return reached, silent, voters, leader
}

func (s *seeker) try(ctx context.Context, op string, body []byte) ([]byte, error) {
	if s.ready.Load() {
		answer, err := s.lookup(op)(ctx, s.id.NodeID, body)
		if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOutcomeUnknown) {
			err = &againError{err}
		}
		return answer, err
	}
	addr, id := s.leader()
	if id == "" || id == s.id.NodeID {
		s.mu.Lock()
		addr, id = s.hint.Address, s.hint.ID
		s.mu.Unlock()
	}
	if id == "" || id == s.id.NodeID {
		return nil, &againError{errNoLeader}
	}
	answer, err := s.post(ctx, peer{id, addr}, "leader/"+op, body)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return answer, err
}

// failure kinds of answers between members.
const (
	kindNotLeader = "not_leader"
	kindUnknown   = "outcome_unknown"
	kindRefused   = "refused"
	kindNoNode    = "no_such_node"
	kindOther     = "other"
)

// fault is the body of an answer that is not 200.
type fault struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Leader  peer   `json:"leader,omitzero"`
}

func faultOf(err error) fault {
	f := fault{Kind: kindOther, Message: err.Error()}
	var refused *RefusedError
	switch {
	case errors.Is(err, ErrNotLeader):
		f.Kind = kindNotLeader
	case errors.Is(err, ErrOutcomeUnknown):
		f.Kind = kindUnknown
	case errors.Is(err, ErrUnknownNode):
		f.Kind = kindNoNode
	case errors.As(err, &refused):
		f.Kind = kindRefused
	}
	return f
}

func (f fault) error() error {
	switch f.Kind {
	case kindNotLeader:
		return &againError{ErrNotLeader}
	case kindUnknown:
		return &againError{ErrOutcomeUnknown}
	case kindNoNode:
		return fmt.Errorf("%w%s", ErrUnknownNode, f.Message[min(len(f.Message), len(ErrUnknownNode.Error())):])
	case kindRefused:
		return &RefusedError{f.Message}
	}
	return errors.New(f.Message)
}

// post sends one request to a member. What went wrong on the way is an againError: the request may or may not have arrived.
func (m *membership) post(ctx context.Context, to peer, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, peerURL(m.Node, to)+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := m.port.Client().Do(req)
	if err != nil {
		return nil, &againError{fmt.Errorf("node %s at %s: %w", to.ID, to.Address, err)}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, &againError{fmt.Errorf("node %s at %s: %w", to.ID, to.Address, err)}
	case len(answer) > maxBody:
		return nil, fmt.Errorf("node %s: the answer is larger than %d bytes", to.ID, maxBody)
	case resp.StatusCode == http.StatusOK:
		return answer, nil
	}
	var f fault
	if json.Unmarshal(answer, &f) != nil {
		return nil, &againError{fmt.Errorf("node %s: status %d", to.ID, resp.StatusCode)}
	}
	return nil, f.error()
}

// peerURL addresses a member by its id, so that the one that answers must prove to be it; where the id's address is not known here,
// by the address.
func peerURL(n *Node, to peer) string {
	host := to.ID
	if addr, ok := n.addressOf(to.ID); !ok || addr != to.Address {
		host = to.Address
	}
	return "https://" + host + "/peer/"
}

package cluster

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"concord/cluster/transport"
)

// HandleTell sets what runs on this node for what another one tells all members.
func (n *Node) HandleTell(f func(ctx context.Context, message []byte) error) {
	n.onTell.Store(&f)
}

// TellAll has the handler of HandleTell run on every other member, once and at the same time. It is for what need not
// outlive the processes and is in no log: members that are away never hear of it, and two messages told at once may
// arrive in different orders. The error joins those of the members that did not take the message.
func (n *Node) TellAll(ctx context.Context, message []byte) error {
	m, err := n.membership()
	if err != nil {
		return err
	}
	others := m.others()
	errs := make([]error, len(others))
	var telling sync.WaitGroup
	for i, p := range others {
		telling.Go(func() { _, errs[i] = m.post(ctx, p, "tell", message) })
	}
	telling.Wait()
	return errors.Join(errs...)
}

// hear takes a message of another member. That the sender got here is not enough: without a leader, welcome lets unknown
// nodes in.
func (n *Node) hear(w http.ResponseWriter, r *http.Request) {
	message, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	sender, known := n.rows.node(transport.NodeID(r))
	f := n.onTell.Load()
	switch {
	case err != nil:
	case !known || sender.Val.State != nodeActive:
		err = &RefusedError{"this node does not know the sender as a member"}
	case f == nil:
		err = errors.New("this node does not take messages yet")
	default:
		err = (*f)(r.Context(), message)
	}
	if err != nil {
		answerFault(w, faultOf(err))
	}
}

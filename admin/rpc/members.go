package rpc

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"concord/admin/service"
	"concord/cluster"
	adminv1 "concord/proto/concord/admin/v1"
)

// members is ClusterService.
type members struct{ *API }

// Status is the cluster as this node sees it.
func (m members) Status(ctx context.Context, _ *connect.Request[adminv1.StatusRequest]) (*connect.Response[adminv1.StatusResponse], error) {
	return answer(m.status(ctx), m.o.Service.Index()), nil
}

func (m members) status(ctx context.Context) *adminv1.StatusResponse {
	s := m.o.Cluster.Status(ctx)
	out := &adminv1.StatusResponse{
		ClusterId: s.ClusterID, NodeId: m.o.Cluster.ID(), Leader: s.Leader, Term: s.Term, CommitIndex: s.CommitIndex, Healthy: s.Healthy,
		FailureTolerance: int32(s.FailureTolerance),
	}
	for _, n := range s.Nodes {
		out.Nodes = append(out.Nodes, &adminv1.Node{
			Id: n.ID, Name: n.Name, Address: n.Address, Role: n.Role, State: n.State, Alive: n.Alive, AppliedIndex: n.AppliedIndex, ServedIndex: n.ServedIndex, Version: n.Version,
		})
	}
	return out
}

// CreateToken makes a token with which other nodes join.
func (m members) CreateToken(ctx context.Context, req *connect.Request[adminv1.CreateTokenRequest]) (*connect.Response[adminv1.CreateTokenResponse], error) {
	o := cluster.TokenOptions{Role: req.Msg.GetRole(), TTL: req.Msg.GetTtl().AsDuration(), Uses: int(req.Msg.GetUses())}
	bad := ""
	switch {
	case o.Role != "" && o.Role != cluster.Voter && o.Role != cluster.Nonvoter:
		bad = "role: expected one of: voter, nonvoter"
	case o.TTL < 0:
		bad = "ttl: expected a positive duration"
	case o.Uses < 0 || o.Uses > 1e6:
		bad = "uses: expected a number between 1 and 1000000"
	}
	var token string
	err := m.change(ctx, func() (err error) {
		if bad != "" {
			return malformed("%s", bad)
		}
		token, err = m.o.Cluster.CreateToken(ctx, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.CreateTokenResponse{Token: token}), nil
}

// Join makes this node a member of another cluster.
func (m members) Join(ctx context.Context, req *connect.Request[adminv1.JoinRequest]) (*connect.Response[adminv1.JoinResponse], error) {
	err := m.change(ctx, func() error {
		if req.Msg.GetAddress() == "" || req.Msg.GetToken() == "" {
			return malformed("address and token are required")
		}
		return m.o.Cluster.Join(ctx, req.Msg.GetAddress(), req.Msg.GetToken(), req.Msg.GetDiscardLocalData())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.JoinResponse{Status: m.status(ctx)}), nil
}

// Leave takes this node out of its cluster.
func (m members) Leave(ctx context.Context, _ *connect.Request[adminv1.LeaveRequest]) (*connect.Response[adminv1.LeaveResponse], error) {
	if err := m.change(ctx, func() error { return m.o.Cluster.Leave(ctx) }); err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.LeaveResponse{}), nil
}

// Remove takes another node out of the cluster.
func (m members) Remove(ctx context.Context, req *connect.Request[adminv1.RemoveRequest]) (*connect.Response[adminv1.RemoveResponse], error) {
	err := m.change(ctx, func() error {
		id, err := m.nodeID(ctx, req.Msg.GetNode())
		if err != nil {
			return err
		}
		return m.o.Cluster.Remove(ctx, id)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.RemoveResponse{}), nil
}

// TransferLeadership makes another voter the leader.
func (m members) TransferLeadership(ctx context.Context, req *connect.Request[adminv1.TransferLeadershipRequest]) (*connect.Response[adminv1.TransferLeadershipResponse], error) {
	err := m.change(ctx, func() error {
		id := ""
		if ref := req.Msg.GetTo(); ref != "" {
			var err error
			if id, err = m.nodeID(ctx, ref); err != nil {
				return err
			}
		}
		return m.o.Cluster.TransferLeadership(ctx, id)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.TransferLeadershipResponse{}), nil
}

// change does something to the cluster's members if the actor may.
func (m members) change(ctx context.Context, do func() error) error {
	if err := m.o.Service.Authorize(ctx, service.ManageCluster); err != nil {
		return m.refusal(ctx, err)
	}
	if err := do(); err != nil {
		return m.clusterError(ctx, err)
	}
	return nil
}

// nodeID resolves a node's id or name.
func (m members) nodeID(ctx context.Context, ref string) (string, error) {
	var found []string
	for _, n := range m.o.Cluster.Status(ctx).Nodes {
		if n.ID == ref {
			return ref, nil
		}
		if n.Name == ref {
			found = append(found, n.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", cluster.ErrUnknownNode
	case 1:
		return found[0], nil
	}
	return "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("several nodes are called %s: use the node's id", ref))
}

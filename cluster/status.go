package cluster

import (
	"cmp"
	"context"
	"slices"

	"github.com/hashicorp/raft"
)

// HandleServed sets what tells with which config index this node serves requests. It is part of the node's status from then on.
func (n *Node) HandleServed(f func() uint64) { n.onServed.Store(&f) }

// lastKnown is the status on a node without a part in the cluster: its members as of the last change that this node has.
func (n *Node) lastKnown() Status {
	s := Status{Nodes: []NodeStatus{}}
	if n.full.Load() == nil {
		return s
	}
	s.ClusterID = n.ClusterID()
	for _, row := range n.rows.active() {
		ns := NodeStatus{ID: row.Val.ID, Name: row.Val.Name, Address: row.Val.Address, Role: row.Val.Role, State: "unknown", Version: row.Val.Version}
		if ns.ID == n.ID() {
			ns.Alive, ns.State, ns.AppliedIndex = true, "sitting out: disk full", n.machine.index()
		}
		s.Nodes = append(s.Nodes, ns)
	}
	slices.SortFunc(s.Nodes, byName)
	return s
}

func byName(a, b NodeStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) }

// Status asks every node how it is. A node that does not answer within a second is not alive.
func (n *Node) Status(ctx context.Context) Status {
	m, err := n.membership()
	if err != nil {
		return n.lastKnown()
	}
	answers := m.askAll(ctx)
	_, leader := m.leader()
	s := Status{ClusterID: m.id.ClusterID, Leader: leader, Term: m.raft.CurrentTerm(), CommitIndex: m.raft.CommitIndex(), Nodes: []NodeStatus{}}
	voters, alive, all := 0, 0, true
	for _, srv := range m.servers() {
		id := string(srv.ID)
		ns := NodeStatus{ID: id, Address: string(srv.Address), Role: Nonvoter, State: "unreachable"}
		if srv.Suffrage == raft.Voter {
			ns.Role = Voter
		}
		if row, ok := m.rows.node(id); ok {
			ns.Name, ns.Version = row.Val.Name, row.Val.Version
		}
		if a, ok := answers[id]; ok {
			ns.Alive, ns.State, ns.AppliedIndex, ns.ServedIndex, ns.Version = true, a.State, a.Applied, a.Served, a.Version
		} else {
			all = false
		}
		if ns.Role == Voter {
			voters++
			if ns.Alive {
				alive++
			}
		}
		s.Nodes = append(s.Nodes, ns)
	}
	slices.SortFunc(s.Nodes, byName)
	s.Healthy = leader != "" && all && voters > 0
	s.FailureTolerance = max(0, alive-(voters/2+1))
	return s
}

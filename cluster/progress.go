package cluster

import "time"

// Progress is what this node knows without asking another one, for monitoring.
type Progress struct {
	Leads       bool
	HasLeader   bool
	Term        uint64
	Committed   uint64        // last log index known to be committed
	Applied     uint64        // last log index that is in the state
	Last        uint64        // last log index on this node's disk
	LastContact time.Duration // since the leader was heard of; 0 on the leader, negative when there was none yet
	Members     int           // nodes of the cluster, this one included
	Refused     uint64        // joins that this node refused
}

// Progress tells how far this node is. It costs no message.
func (n *Node) Progress() Progress {
	m, err := n.membership()
	if err != nil {
		return Progress{LastContact: -1}
	}
	_, leader := m.leader()
	p := Progress{
		Leads: m.ready.Load(), HasLeader: leader != "", Term: m.raft.CurrentTerm(), Committed: m.raft.CommitIndex(), Applied: m.raft.AppliedIndex(),
		Last: m.raft.LastIndex(), Members: len(m.servers()), Refused: n.refused.count.Load(),
	}
	if !p.Leads {
		p.LastContact = -1
		if at := m.raft.LastContact(); !at.IsZero() {
			p.LastContact = time.Since(at)
		}
	}
	return p
}

package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"concord/fsm"
)

// Options of Open. Prefix, Listen, GossipListen and Machine are required.
type Options struct {
	Prefix          string       // directory of the node's own files
	Name            string       // shown in status; default: the host name. Need not be unique
	Listen          string       // host:port of the peer port
	Advertise       string       // host:port at which the other nodes reach Listen; default: Listen, or a private address of the host
	GossipListen    string       // host:port, TCP and UDP
	GossipAdvertise string       // host:port
	Machine         *fsm.Machine // made with the keyring of LoadKeys(Prefix)
	Version         string       // of the program, shown in status
	Level           uint32       // highest cluster level this program understands; default: fsm.MaxLevel
	HoldLevel       bool         // do not raise the cluster's level before ReleaseLevel: an older process may have to go on with these files
	Log             *slog.Logger
	Fatal           func(error) // called once when the node must not go on; default: log and exit with status 1
	Tuning          Tuning

	wrapStore func(backend) backend // faults, in tests
}

// Tuning holds the timers and limits of a Node. A zero field means the default in its comment.
type Tuning struct {
	HeartbeatTimeout  time.Duration // 1 s without a leader until an election
	ElectionTimeout   time.Duration // 1 s
	LeaderLease       time.Duration // 500 ms without a majority until a leader steps down
	LeaderWait        time.Duration // 10 s: how long a request waits for an election to end
	QuorumWait        time.Duration // 1 s: how long it waits when a majority is down; when it only keeps silent, 1.8 times that
	SnapshotThreshold uint64        // 8192 entries since the last snapshot
	SnapshotInterval  time.Duration // 120 s between looks at SnapshotThreshold
	TrailingLogs      uint64        // 10240 entries kept behind a snapshot; who is further behind gets the snapshot
	StabilizationTime time.Duration // 3 s of being caught up until a new node may vote
	DeadAfter         time.Duration // 24 h of silence until a node is removed; negative: never
	MinQuorum         int           // 3 voters that are never gone below by removing dead nodes
	ExpireEvery       time.Duration // 5 s between deletions of expired rows
	CertificateLife   time.Duration // 7 days; renewed at two thirds
	TicketKeyLife     time.Duration // 12 h until the keys of TLS session tickets move on by one
	WriteStall        time.Duration // 5 s that a write to the log may take
	AuditRecords      uint64        // 50,000 records of the audit log that are kept; those of the leader count
	AuditAge          time.Duration // 0: for how long, whatever their number; likewise
}

func (t *Tuning) defaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.HeartbeatTimeout, time.Second)
	def(&t.ElectionTimeout, t.HeartbeatTimeout)
	def(&t.LeaderLease, t.HeartbeatTimeout/2)
	def(&t.LeaderWait, 10*time.Second)
	def(&t.QuorumWait, time.Second)
	def(&t.SnapshotInterval, 120*time.Second)
	def(&t.StabilizationTime, 3*time.Second)
	def(&t.DeadAfter, 24*time.Hour)
	def(&t.ExpireEvery, 5*time.Second)
	def(&t.CertificateLife, 7*24*time.Hour)
	def(&t.TicketKeyLife, 12*time.Hour)
	def(&t.WriteStall, 5*time.Second)
	if t.SnapshotThreshold == 0 {
		t.SnapshotThreshold = 8192
	}
	if t.TrailingLogs == 0 {
		t.TrailingLogs = 10240
	}
	if t.AuditRecords == 0 {
		t.AuditRecords = 50_000
	}
	if t.MinQuorum == 0 {
		t.MinQuorum = 3
	}
}

func (o *Options) defaults() error {
	switch {
	case o.Prefix == "":
		return errors.New("cluster: Prefix is missing: the directory for the node's files")
	case o.Listen == "":
		return errors.New("cluster: Listen is missing: host:port of the peer port")
	case o.GossipListen == "":
		return errors.New("cluster: GossipListen is missing: host:port of the gossip port")
	case o.Machine == nil:
		return errors.New("cluster: Machine is missing")
	}
	if o.Name == "" {
		o.Name, _ = os.Hostname()
	}
	if o.Name == "" {
		o.Name = "concord"
	}
	if o.Level == 0 {
		o.Level = fsm.MaxLevel
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Fatal == nil {
		log := o.Log
		o.Fatal = func(err error) {
			log.Error("this node must stop", "error", err)
			os.Exit(1)
		}
	}
	o.Tuning.defaults()
	return nil
}

// The roles of a node.
const (
	Voter    = "voter"
	Nonvoter = "nonvoter"
)

// TokenOptions of CreateToken. Zero fields: a voter, one hour, one use.
type TokenOptions struct {
	Role string
	TTL  time.Duration
	Uses int

	Cause fsm.Cause `json:",omitzero"` // who asks; CreateToken sets it
}

// Status is the cluster as one node sees it.
type Status struct {
	ClusterID        string       `json:"cluster_id"`
	Leader           string       `json:"leader"` // node id, "" when there is none
	Term             uint64       `json:"term"`
	CommitIndex      uint64       `json:"commit_index"`
	Healthy          bool         `json:"healthy"`           // there is a leader and every node is alive
	FailureTolerance int          `json:"failure_tolerance"` // how many more voters may be lost
	Nodes            []NodeStatus `json:"nodes"`
}

// NodeStatus is one node of a Status. State is leader, follower, candidate or unreachable; on a node that sits out,
// "sitting out: disk full" for itself and unknown for the others.
type NodeStatus struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Address      string `json:"address"`
	Role         string `json:"role"`
	State        string `json:"state"`
	Alive        bool   `json:"alive"`
	AppliedIndex uint64 `json:"applied_index"`
	Version      string `json:"version"`

	ServedIndex *uint64 `json:"served_index,omitempty"` // config index that its requests are served with; nil where the node does not say
}

// Errors that callers tell apart.
var (
	// ErrNotLeader: nothing was written; the leader is elsewhere.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrOutcomeUnknown: leadership was lost while the entry was under way. It may or may not be committed; repeating it with the same
	// request id is safe.
	ErrOutcomeUnknown = errors.New("the leader changed while the write was under way: it may or may not have happened")
	// ErrClosed: the node is shutting down, switching clusters or suspended. Nothing has happened.
	ErrClosed = errors.New("this node is stopping or being replaced by a new process")
	// ErrHoldsData: Join without discard on a node that holds entities.
	ErrHoldsData = errors.New("this node holds data that joining would discard: repeat with --discard-local-data, or join with a fresh node")
	// ErrUnknownNode: no member has this id or name.
	ErrUnknownNode = errors.New("no such node in the cluster")
	// ErrTooManyWaiters: the bounded number of waiters for an index is reached.
	ErrTooManyWaiters = errors.New("too many requests wait for a config index")
)

// NoLeaderError: no leader could be reached in time. Reads and traffic go on; writes can be retried later.
type NoLeaderError struct {
	Waited    time.Duration
	Reason    string
	Uncertain bool // a leader may have taken the request before it was lost
}

func (e *NoLeaderError) Error() string {
	return fmt.Sprintf("no leader after %s: %s", e.Waited.Round(10*time.Millisecond), e.Reason)
}

// FutureIndexError: the awaited index is beyond everything that the leader has committed.
type FutureIndexError struct{ Index, Committed uint64 }

func (e *FutureIndexError) Error() string {
	return fmt.Sprintf("config index %d does not exist yet: the newest is %d", e.Index, e.Committed)
}

// RefusedError is a request that the cluster understood and refused: a join, a removal, a transfer. The reason says how to mend.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

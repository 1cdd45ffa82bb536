// Package command is the envelope of a log entry: what is proposed to raft and applied by the machine.
//
// It encodes and decodes; it does not judge. Field and op numbers are never reused and decoders are never removed.
package command

// Command is one log entry.
type Command struct {
	Level      uint32   // cluster level needed to understand it
	RequestID  [16]byte // zero: not remembered; otherwise a repeat returns the first Result
	LeaderTime int64    // Unix milliseconds at the proposer; the machine keeps the maximum it saw
	Actor      string   // who asked, for the audit trail
	Op         Op
}

// Op is one of Txn, ExpireBefore, SetLevel, Noop, Stage, Commit, TrimAudit.
type Op interface{ isOp() }

// Txn writes all its puts or none.
type Txn struct{ Puts []Put }

// IfAbsent as Put.IfIndex demands that the row does not exist.
const IfAbsent = ^uint64(0)

// Put writes (Raw non-nil) or deletes (Raw nil) one row. Raw is canonical JSON with sealed secrets; it is kept as it is.
type Put struct {
	Table   uint16
	ID      [16]byte
	IfIndex uint64 // 0: any; IfAbsent: must not exist; else the row's index must be this
	Expires int64  // Unix milliseconds, 0: never
	Raw     []byte
}

// ExpireBefore deletes up to Limit rows whose expiry is before T (Unix milliseconds), oldest first.
type ExpireBefore struct {
	T     int64
	Limit int
}

// SetLevel raises the cluster level. Lower values are ignored.
type SetLevel struct{ Level uint32 }

// Noop moves the index only; from AuditLevel on one whose actor gives a detail leaves a record in the audit log.
type Noop struct{}

// StageLevel is the cluster level that Stage and Commit need.
const StageLevel uint32 = 2

// Stage sets a piece of a large transaction aside, out of sight, on every node. Pieces are numbered from 0 and come in order; one that
// is there already is ignored, so that it may be repeated.
type Stage struct {
	ID   [16]byte // of the transaction
	Seq  uint32
	Puts []Put
}

// Commit writes all puts staged under ID as one Txn would, and forgets them whatever comes of it.
type Commit struct {
	ID     [16]byte
	Pieces uint32 // how many were staged; 0: forget them only
}

// AuditLevel is the cluster level from which on records of the audit log have details, changes without rows leave records too, and TrimAudit
// decides what is kept.
const AuditLevel uint32 = 4

// TrimAudit drops up to Limit records of the audit log before the number First, but never the newest one.
type TrimAudit struct {
	First uint64
	Limit int
}

func (Txn) isOp()          {}
func (ExpireBefore) isOp() {}
func (SetLevel) isOp()     {}
func (Noop) isOp()         {}
func (Stage) isOp()        {}
func (Commit) isOp()       {}
func (TrimAudit) isOp()    {}

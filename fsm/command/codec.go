package command

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	logv1 "concord/proto/concord/log/v1"
)

// The checksum is the last field of the message: number 15, wire type fixed32.
const (
	checksumTag  = 15<<3 | 5
	checksumSize = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt says that the bytes are not what Encode made.
var ErrCorrupt = errors.New("log entry is corrupt")

// ErrUnknown says that the entry is intact but holds something this binary does not know: it was made by a newer one.
var ErrUnknown = errors.New("log entry holds something this version does not know")

// Encode gives the bytes of a log entry. No op is a Noop.
func Encode(c Command) []byte {
	m := &logv1.Command{Level: c.Level, LeaderTimeMs: c.LeaderTime, Actor: []byte(c.Actor)}
	if c.RequestID != ([16]byte{}) {
		m.RequestId = c.RequestID[:]
	}
	switch op := c.Op.(type) {
	case Txn:
		m.Op = &logv1.Command_Txn{Txn: &logv1.Txn{Puts: encodePuts(op.Puts)}}
	case ExpireBefore:
		m.Op = &logv1.Command_ExpireBefore{ExpireBefore: &logv1.ExpireBefore{TimeMs: op.T, Limit: uint32(max(op.Limit, 0))}}
	case SetLevel:
		m.Op = &logv1.Command_SetLevel{SetLevel: &logv1.SetLevel{Level: op.Level}}
	case Stage:
		m.Op = &logv1.Command_Stage{Stage: &logv1.Stage{Id: op.ID[:], Seq: op.Seq, Puts: encodePuts(op.Puts)}}
	case Commit:
		m.Op = &logv1.Command_Commit{Commit: &logv1.Commit{Id: op.ID[:], Pieces: op.Pieces}}
	case TrimAudit:
		m.Op = &logv1.Command_TrimAudit{TrimAudit: &logv1.TrimAudit{First: op.First, Limit: uint32(max(op.Limit, 0))}}
	case Noop, nil:
		m.Op = &logv1.Command_Noop{Noop: &logv1.Noop{}}
	default: // a pointer to an op; an entry without an op would stop every node
		panic(fmt.Sprintf("command: encode: op is a %T", c.Op))
	}
	how := proto.MarshalOptions{Deterministic: true}
	data, err := how.MarshalAppend(make([]byte, 0, how.Size(m)+checksumSize), m)
	if err != nil { // only invalid UTF-8 in string fields or missing required fields, and there are none of either
		panic(fmt.Sprintf("command: encode: %v", err))
	}
	sum := crc32.Checksum(data, castagnoli)
	return binary.LittleEndian.AppendUint32(append(data, checksumTag), sum)
}

// Decode reads a log entry. The error wraps ErrCorrupt or ErrUnknown; with ErrUnknown the Level is set all the same, so that
// the reader can say what it lacks.
func Decode(data []byte) (Command, error) {
	body := len(data) - checksumSize
	if body < 0 || data[body] != checksumTag {
		return Command{}, fmt.Errorf("%w: no checksum at its end, so it is cut short or foreign", ErrCorrupt)
	}
	if sum := crc32.Checksum(data[:body], castagnoli); sum != binary.LittleEndian.Uint32(data[body+1:]) {
		return Command{}, fmt.Errorf("%w: checksum does not match", ErrCorrupt)
	}
	var m logv1.Command
	if err := proto.Unmarshal(data[:body], &m); err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	c := Command{Level: m.Level, LeaderTime: m.LeaderTimeMs, Actor: string(m.Actor)}
	if n := copy(c.RequestID[:], m.RequestId); n != len(m.RequestId) || n != 0 && n != len(c.RequestID) {
		return c, fmt.Errorf("%w: request id of %d bytes", ErrCorrupt, len(m.RequestId))
	}
	if err := known(&m); err != nil {
		return c, err
	}
	var err error
	switch op := m.Op.(type) {
	case *logv1.Command_Txn:
		var t Txn
		if t.Puts, err = decodePuts(op.Txn.GetPuts()); err != nil {
			return c, err
		}
		c.Op = t
		return c, known(op.Txn)
	case *logv1.Command_ExpireBefore:
		c.Op = ExpireBefore{T: op.ExpireBefore.GetTimeMs(), Limit: int(op.ExpireBefore.GetLimit())}
		return c, known(op.ExpireBefore)
	case *logv1.Command_SetLevel:
		c.Op = SetLevel{Level: op.SetLevel.GetLevel()}
		return c, known(op.SetLevel)
	case *logv1.Command_TrimAudit:
		c.Op = TrimAudit{First: op.TrimAudit.GetFirst(), Limit: int(op.TrimAudit.GetLimit())}
		return c, known(op.TrimAudit)
	case *logv1.Command_Noop:
		c.Op = Noop{}
		return c, known(op.Noop)
	case *logv1.Command_Stage:
		stage := Stage{Seq: op.Stage.GetSeq()}
		if stage.ID, err = stageID(op.Stage.GetId()); err != nil {
			return c, err
		}
		if stage.Puts, err = decodePuts(op.Stage.GetPuts()); err != nil {
			return c, err
		}
		c.Op = stage
		return c, known(op.Stage)
	case *logv1.Command_Commit:
		commit := Commit{Pieces: op.Commit.GetPieces()}
		if commit.ID, err = stageID(op.Commit.GetId()); err != nil {
			return c, err
		}
		c.Op = commit
		return c, known(op.Commit)
	}
	return c, fmt.Errorf("%w: its op", ErrUnknown)
}

func stageID(b []byte) (id [16]byte, err error) {
	if len(b) != len(id) {
		return id, fmt.Errorf("%w: stage id of %d bytes", ErrCorrupt, len(b))
	}
	return [16]byte(b), nil
}

func encodePuts(puts []Put) []*logv1.Put {
	out := make([]*logv1.Put, len(puts))
	for i := range puts {
		p := &puts[i]
		out[i] = &logv1.Put{Table: uint32(p.Table), Id: p.ID[:], IfIndex: p.IfIndex, ExpiresMs: p.Expires, Raw: p.Raw}
	}
	return out
}

func decodePuts(puts []*logv1.Put) ([]Put, error) {
	out := make([]Put, len(puts))
	for i, p := range puts {
		if err := known(p); err != nil {
			return nil, err
		}
		if len(p.Id) != 16 || p.Table > 0xffff {
			return nil, fmt.Errorf("%w: put %d has table %d and an id of %d bytes", ErrCorrupt, i, p.Table, len(p.Id))
		}
		out[i] = Put{Table: uint16(p.Table), ID: [16]byte(p.Id), IfIndex: p.IfIndex, Expires: p.ExpiresMs, Raw: p.Raw}
	}
	return out, nil
}

// known refuses fields that protobuf would silently skip: a node that skipped them would come to another state than its peers.
func known(m proto.Message) error {
	r := m.ProtoReflect()
	if unknown := r.GetUnknown(); len(unknown) > 0 {
		return fmt.Errorf("%w: a field of %s", ErrUnknown, r.Descriptor().Name())
	}
	return nil
}

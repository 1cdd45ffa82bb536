package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/fsm/state"
)

const (
	// auditKept is how many records clusters below command.AuditLevel keep; since then TrimAudit decides.
	auditKept uint64 = 50_000
	// auditListed is how many changes a record lists; a larger transaction is summed up.
	auditListed = 64
)

// AuditHead is the id of the row that says where the audit log begins and ends.
var AuditHead = state.ID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// AuditID is the id of a record by its number. Records are in the order of their ids.
func AuditID(seq uint64) (id state.ID) {
	binary.BigEndian.PutUint64(id[:], seq)
	return id
}

// Cause is who asked for a change and how, for the audit log: as JSON the Actor of a command of level 2.
type Cause struct {
	Token  string `json:"token,omitempty"`
	Name   string `json:"name,omitempty"`
	From   string `json:"from,omitempty"`
	Verb   string `json:"verb,omitempty"`
	Entity string `json:"entity,omitempty"`
	Detail string `json:"detail,omitempty"` // what the rows do not tell; only in commands of AuditLevel

	only uint16 // if not 0, the table whose changes alone are recorded
}

// Actor is the cause as a command carries it.
func (c Cause) Actor() string {
	text, _ := json.Marshal(c) // texts
	return string(text)
}

// causeOf reads the Actor of a command. Entries of level 1 leave no record: nodes of that level would write none.
func (m *Machine) causeOf(c command.Command) (cause Cause, ok bool) {
	if c.Level < entity.AdminLevel || len(c.Actor) == 0 || c.Actor[0] != '{' {
		return cause, false
	}
	if cause, ok = m.causes[c.Actor]; !ok { // who writes much writes the same way
		if json.Unmarshal([]byte(c.Actor), &cause) != nil {
			return cause, false
		}
		if len(m.causes) >= causesKept {
			clear(m.causes)
		}
		m.causes[c.Actor] = cause
	}
	if c.Level < command.AuditLevel {
		cause.Detail = ""
	} else if _, expiry := c.Op.(command.ExpireBefore); expiry {
		cause.only = entity.TableAdminTokens // that the others are gone is no news to anybody
	}
	return cause, true
}

// causesKept is how many causes are remembered decoded.
const causesKept = 64

// HashAudit is the hash of a record, whatever its member hash says.
func HashAudit(rec schema.Record) (string, error) {
	bare := make(schema.Record, len(rec))
	for k, v := range rec {
		if k != "hash" {
			bare[k] = v
		}
	}
	text, err := schema.Encode(bare)
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), err
}

// chain is the head of the audit log: the numbers of the first and the last record kept, the hash of the last one, and as prev that of the
// one before the first. The machine keeps it at hand and writes its row once for all entries of a batch.
type chain struct {
	seq, first uint64
	hash, prev string
	index      uint64 // of the entry that moved it last
	row        uint64 // of the entry that the stored row tells of; 0: there is none
	known      bool   // it was read from the store
}

// readChain reads the head from its row, unless it is known.
func (m *Machine) readChain(tx *state.Tx) error {
	if m.chain.known {
		return nil
	}
	c := chain{first: 1, known: true}
	if row, ok := tx.Get(entity.TableAuditRecords, AuditHead); ok {
		var head entity.AuditRecord
		if err := json.Unmarshal(row.Raw(), &head); err != nil {
			return err
		}
		c.seq, c.first, c.hash, c.prev, c.index, c.row = uint64(head.Seq), uint64(head.First), head.Hash, head.Prev, row.Index, row.Index
	}
	m.chain = c
	return nil
}

// writeChain writes the row of the head if records came or went.
func (m *Machine) writeChain(tx *state.Tx) {
	c := &m.chain
	if c.index == c.row {
		return
	}
	raw := number([]byte(`{"first":`), c.first)
	raw = append(append(raw, `,"hash":"`...), c.hash...)
	raw = append(append(raw, `","id":"`...), AuditHead.String()...)
	raw = append(append(raw, `","prev":"`...), c.prev...)
	raw = append(number(append(raw, `","seq":`...), c.seq), '}')
	d, err := tx.Own(entity.TableAuditRecords, state.AnyRow{ID: AuditHead, Index: c.index, Raw: raw})
	if err != nil {
		panic("fsm: the head of the audit log is no row: " + err.Error()) // its form is fixed
	}
	tx.Set(d)
	c.row = c.index
}

// auditYield is how many rows are put on record between two calls of Options.Yield, some 30 µs of work.
const auditYield = 16

// audit appends the record of what an entry has written since the mark, in the same transaction.
//
// The record is canonical JSON, members sorted, and each is made in one piece: what precedes the hash, and what follows it. Its bytes are for
// ever: nodes of all versions make them of the same entry.
func (m *Machine) audit(tx *state.Tx, mark int, index uint64, now int64, c Cause) error {
	n := 0
	all, line := sha256.New(), make([]byte, 0, 256)
	rec := append(make([]byte, 0, 1024), `{"changes":[`...)
	tx.Written(mark, func(table uint16, id state.ID, before, after []byte) {
		if c.only != 0 && c.only != table {
			return
		}
		name, text, old, next := m.names[table], id.String(), digest(before), digest(after)
		line = append(append(append(append(line[:0], name...), ' '), text...), ' ')
		line = append(append(append(append(line, old...), ' '), next...), '\n')
		all.Write(line)
		if n++; n%auditYield == 0 && m.yield != nil {
			m.yield()
		}
		if n > auditListed {
			return
		}
		if n > 1 {
			rec = append(rec, ',')
		}
		rec = append(append(rec, `{"after":"`...), next...)
		rec = append(append(rec, `","before":"`...), old...)
		rec = append(append(rec, `","entity":"`...), name...)
		rec = append(append(append(rec, `","id":"`...), text...), `"}`...)
	})
	if n == 0 && c.Detail == "" {
		return nil
	}
	if err := m.readChain(tx); err != nil {
		return err
	}
	head := &m.chain
	seq := head.seq + 1
	id := AuditID(seq)
	rec = append(rec, ']')
	if c.Detail != "" {
		rec = seal.AppendString(append(rec, `,"detail":`...), c.Detail)
	}
	rec = hex.AppendEncode(append(rec, `,"digest":"`...), all.Sum(line[:0]))
	rec = seal.AppendString(append(rec, `","entity":`...), c.Entity)
	rec = seal.AppendString(append(rec, `,"from":`...), c.From)
	cut := len(rec)
	rec = append(append(rec, `,"id":"`...), id.String()...)
	rec = number(append(rec, `","index":`...), index)
	rec = number(append(rec, `,"more":`...), uint64(max(0, n-auditListed)))
	rec = seal.AppendString(append(rec, `,"name":`...), c.Name)
	rec = append(append(rec, `,"prev":"`...), head.hash...)
	rec = number(append(rec, `","seq":`...), seq)
	rec = number(append(rec, `,"time":`...), uint64(now))
	rec = seal.AppendString(append(rec, `,"token":`...), c.Token)
	rec = append(seal.AppendString(append(rec, `,"verb":`...), c.Verb), '}')
	sum := sha256.Sum256(rec)
	hash := hex.EncodeToString(sum[:])
	rec = slices.Insert(rec, cut, []byte(`,"hash":"`+hash+`"`)...)
	d, err := tx.Own(entity.TableAuditRecords, state.AnyRow{ID: id, Index: index, Raw: rec})
	if err != nil {
		return err
	}
	tx.Set(d)
	head.seq, head.hash, head.index = seq, hash, index
	return nil
}

// trimAudit drops the oldest records. The hash of the last one that went stays in the head: what is left hangs on it.
func (m *Machine) trimAudit(tx *state.Tx, index uint64, op command.TrimAudit) error {
	if err := m.readChain(tx); err != nil {
		return err
	}
	head := &m.chain
	for n := 0; n < op.Limit && head.first < min(op.First, head.seq); n++ {
		old, ok := tx.Get(entity.TableAuditRecords, AuditID(head.first))
		if !ok {
			return errors.New("the audit log has a gap")
		}
		head.first, head.prev, head.index = head.first+1, strings.Clone(old.Text("hash")), index
		tx.Delete(entity.TableAuditRecords, old.ID)
	}
	return nil
}

// number appends a number as encoding/json writes a float64.
func number(out []byte, n uint64) []byte { return strconv.AppendFloat(out, float64(n), 'f', -1, 64) }

// digest of a row as it is stored, secrets sealed.
func digest(raw []byte) string {
	if raw == nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

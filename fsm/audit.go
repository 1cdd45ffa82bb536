package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

const (
	// AuditKept is how many records of the audit log are kept. All nodes of a cluster must agree on it: it changes with a level.
	AuditKept uint64 = 50_000
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
}

// Actor is the cause as a command carries it.
func (c Cause) Actor() string {
	text, _ := json.Marshal(c) // texts
	return string(text)
}

// causeOf reads the Actor of a command. Entries of level 1 leave no record: nodes of that level would write none.
func causeOf(c command.Command) (cause Cause, ok bool) {
	if c.Level < entity.AdminLevel || len(c.Actor) == 0 || c.Actor[0] != '{' {
		return cause, false
	}
	return cause, json.Unmarshal([]byte(c.Actor), &cause) == nil
}

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

// audit appends the record of what an entry has written since the mark, in the same transaction.
func (m *Machine) audit(tx *state.Tx, mark int, index uint64, now int64, c Cause) error {
	var changes []any
	more := 0
	all := sha256.New()
	tx.Written(mark, func(table uint16, id state.ID, before, after []byte) {
		change := schema.Record{"entity": m.names[table], "id": id.String(), "before": digest(before), "after": digest(after)}
		fmt.Fprintf(all, "%s %s %s %s\n", change["entity"], change["id"], change["before"], change["after"])
		if len(changes) < auditListed {
			changes = append(changes, change)
		} else {
			more++
		}
	})
	if changes == nil {
		return nil
	}
	head := entity.AuditRecord{First: 1}
	if row, ok := tx.Get(entity.TableAuditRecords, AuditHead); ok {
		if err := json.Unmarshal(row.Raw(), &head); err != nil {
			return err
		}
	}
	seq := uint64(head.Seq) + 1
	rec := schema.Record{
		"id": AuditID(seq).String(), "seq": float64(seq), "index": float64(index), "time": float64(now), "token": c.Token, "name": c.Name, "from": c.From, "verb": c.Verb,
		"entity": c.Entity, "changes": changes, "more": float64(more), "digest": hex.EncodeToString(all.Sum(nil)), "prev": head.Hash,
	}
	hash, err := HashAudit(rec)
	if err != nil {
		return err
	}
	rec["hash"] = hash
	if err := m.setAudit(tx, AuditID(seq), index, rec); err != nil {
		return err
	}
	for seq-uint64(head.First) >= m.auditKept {
		old, ok := tx.Get(entity.TableAuditRecords, AuditID(uint64(head.First)))
		if !ok {
			return errors.New("the audit log has a gap")
		}
		var gone entity.AuditRecord
		if err := json.Unmarshal(old.Raw(), &gone); err != nil {
			return err
		}
		tx.Delete(entity.TableAuditRecords, old.ID)
		head.First, head.Prev = head.First+1, gone.Hash
	}
	return m.setAudit(tx, AuditHead, index, schema.Record{"id": AuditHead.String(), "seq": float64(seq), "first": head.First, "prev": head.Prev, "hash": hash})
}

func (m *Machine) setAudit(tx *state.Tx, id state.ID, index uint64, rec schema.Record) error {
	raw, err := schema.Encode(rec)
	if err != nil {
		return err
	}
	d, err := tx.Decode(entity.TableAuditRecords, state.AnyRow{ID: id, Index: index, Raw: raw})
	if err == nil {
		tx.Set(d)
	}
	return err
}

// digest of a row as it is stored, secrets sealed.
func digest(raw []byte) string {
	if raw == nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

package fsm

import (
	"fmt"
	"testing"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/fsm/state"
)

// auditMachine is a machine with the entities of the product.
func auditMachine(t *testing.T) *Machine {
	t.Helper()
	keys, err := seal.New("k1", map[string][]byte{"k1": make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Defs: entity.All(), Keys: keys})
}

func consumer(n int) (state.ID, []byte) {
	rowID := state.ID{1, 15: byte(n)}
	return rowID, fmt.Appendf(nil, `{"created_at":1,"custom_id":null,"id":"%s","tags":null,"updated_at":1,"username":"u%d"}`, rowID, n)
}

func applyTxn(m *Machine, index uint64, level uint32, actor string, puts ...command.Put) Result {
	return m.ApplyAll([]Entry{{Index: index, Data: command.Encode(command.Command{Level: level, LeaderTime: int64(1000 + index), Actor: actor, Op: command.Txn{Puts: puts}})}})[0]
}

// auditLog reads the records and the head.
func auditLog(t *testing.T, m *Machine) (records []schema.Record, head schema.Record) {
	t.Helper()
	table, _ := m.Store().Table(entity.AuditRecords)
	for row := range table.Scan(m.Store().View(), "", "", state.ID{}) {
		rec, err := schema.Decode(row.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if row.ID == AuditHead {
			head = rec
		} else {
			records = append(records, rec)
		}
	}
	return records, head
}

func TestAudit(t *testing.T) {
	m := auditMachine(t)
	actor := Cause{Token: "t", Name: "alice", From: "10.0.0.1", Verb: "create", Entity: "consumers"}.Actor()
	a, raw := consumer(1)
	b, other := consumer(2)
	put := func(id state.ID, raw []byte, ifIndex uint64) command.Put {
		return command.Put{Table: 3, ID: id, Raw: raw, IfIndex: ifIndex}
	}
	for i, c := range []struct {
		level uint32
		actor string
		puts  []command.Put
		ok    bool
	}{
		{2, actor, []command.Put{put(a, raw, 0)}, true},
		{1, actor, []command.Put{put(b, other, 0)}, true},                                   // entries of level 1 leave no record
		{2, actor, []command.Put{put(a, raw, command.IfAbsent)}, false},                     // what fails neither
		{2, actor, []command.Put{put(a, nil, 0), put(b, other, 0)}, true},                   // two changes, one record
		{2, actor, []command.Put{{Table: entity.TableAuditRecords, ID: AuditID(1)}}, false}, // nobody rewrites the log
		{2, actor, []command.Put{{Table: entity.TableAuditRecords, ID: AuditHead, Raw: []byte(`{}`)}}, false},
	} {
		if res := applyTxn(m, uint64(i+1), c.level, c.actor, c.puts...); (res.Err == nil) != c.ok {
			t.Fatalf("entry %d: %v", i+1, res.Err)
		}
	}
	records, head := auditLog(t, m)
	if len(records) != 2 {
		t.Fatalf("%d records: %v", len(records), records)
	}
	prev := ""
	for i, r := range records {
		hash, err := HashAudit(r)
		if err != nil || hash != r["hash"] || r["prev"] != prev || r["seq"] != float64(i+1) || r["name"] != "alice" || r["from"] != "10.0.0.1" {
			t.Errorf("record %d: %v %v", i, err, r)
		}
		prev = hash
	}
	if head["hash"] != prev || head["seq"] != 2.0 || head["first"] != 1.0 {
		t.Errorf("head %v", head)
	}
	if r := records[1]; len(r["changes"].([]any)) != 2 || r["index"] != 4.0 || r["time"] != 1004.0 {
		t.Errorf("second record %v", r)
	}
}

// The log is bounded; what is left still hangs on the record that was dropped last.
func TestAuditIsBounded(t *testing.T) {
	m := auditMachine(t)
	id, raw := consumer(1)
	actor := Cause{Verb: "upsert"}.Actor()
	var batch []Entry
	const kept, extra = 100, 10
	m.auditKept = kept
	for i := range kept + extra {
		batch = append(batch, Entry{Index: uint64(i + 1), Data: command.Encode(command.Command{Level: 2, Actor: actor, Op: command.Txn{Puts: []command.Put{{Table: 3, ID: id, Raw: raw}}}})})
		if len(batch) == 512 || i == kept+extra-1 {
			for _, r := range m.ApplyAll(batch) {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			batch = nil
		}
	}
	records, head := auditLog(t, m)
	if len(records) != kept || head["first"] != float64(extra+1) || records[0]["seq"] != float64(extra+1) || records[0]["prev"] != head["prev"] || head["prev"] == "" {
		t.Errorf("%d records, first %v, head %v", len(records), records[0]["seq"], head)
	}
}

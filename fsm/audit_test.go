package fsm

import (
	"bytes"
	"encoding/json"
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
	m.kept = kept
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

// TestAuditForm: the bytes of a record are those that the canonical JSON of its members has, whatever is in them, and how entries come together
// in batches leaves no trace.
func TestAuditForm(t *testing.T) {
	causes := []Cause{
		{Token: "t", Name: "alice", From: "10.0.0.1", Verb: "create", Entity: "consumers"}, {},
		{Name: "a<b>&\u2028\"\\\x01é", From: "fe80::1%eth0", Verb: "up\nsert", Entity: "\u00e9"},
	}
	var entries []Entry
	for i := range 100 {
		id, raw := consumer(i % 5)
		put := command.Put{Table: 3, ID: id, Raw: raw}
		if i%7 == 6 {
			put.IfIndex = command.IfAbsent // refused
		}
		c := command.Command{Level: 2, LeaderTime: int64(i) << 33, Actor: causes[i%len(causes)].Actor(), Op: command.Txn{Puts: []command.Put{put}}}
		entries = append(entries, Entry{Index: uint64(i+1) << 40, Data: command.Encode(c)})
	}
	one, many := auditMachine(t), auditMachine(t)
	one.kept, many.kept = 20, 20
	for len(entries) > 0 {
		n := min(len(entries), 1+len(entries)%9)
		many.ApplyAll(entries[:n])
		for _, e := range entries[:n] {
			one.ApplyAll([]Entry{e})
		}
		a, errA := one.Hash(one.Store().View())
		b, errB := many.Hash(many.Store().View())
		if errA != nil || errB != nil || a != b {
			t.Fatalf("batches of one and of %d differ: %v %v", n, errA, errB)
		}
		entries = entries[n:]
	}
	table, _ := one.Store().Table(entity.AuditRecords)
	for row := range table.Scan(one.Store().View(), "", "", state.ID{}) {
		rec, err := schema.Decode(row.Raw)
		if err != nil {
			t.Fatal(err)
		}
		want, err := schema.Encode(rec)
		if err != nil || string(want) != string(row.Raw) {
			t.Fatalf("not canonical: %v\n%s\n%s", err, row.Raw, want)
		}
		var val entity.AuditRecord
		if err := json.Unmarshal(row.Raw, &val); err != nil || row.ID != AuditHead && val.Name != causes[(int(val.Index)>>40-1)%len(causes)].Name {
			t.Errorf("%v: %+v", err, val)
		}
		if hash, err := HashAudit(rec); row.ID != AuditHead && (err != nil || hash != val.Hash) {
			t.Errorf("hash %s, want %s", val.Hash, hash)
		}
	}
	const pinned = "046c1ef189db5a5ff6eeb8a7f27cadde96bef3bc8574e8e669b3b98361efa8e6" // as the first version that wrote records made it
	if head := one.chain; head.seq != 86 || head.first != 67 || head.hash != pinned {
		t.Errorf("head %+v", head)
	}
}

// TestAuditAfterRestore: the chain goes on where the snapshot left it.
func TestAuditAfterRestore(t *testing.T) {
	a, b := auditMachine(t), auditMachine(t)
	write := func(m *Machine, index uint64) {
		id, raw := consumer(int(index))
		if res := applyTxn(m, index, 2, Cause{Name: "n"}.Actor(), command.Put{Table: 3, ID: id, Raw: raw}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	write(b, 1) // forgotten
	for i := range uint64(3) {
		write(a, i+1)
	}
	var snapshot bytes.Buffer
	if err := a.Persist(a.Store().View(), &snapshot); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	write(a, 4)
	write(b, 4)
	x, errX := a.Hash(a.Store().View())
	y, errY := b.Hash(b.Store().View())
	if errX != nil || errY != nil || x != y {
		t.Errorf("%v %v: %x and %x", errX, errY, x, y)
	}
}

// TestAuditLevel: from then on entries that change no row may leave a record, expiry leaves one of admin tokens only, and nothing goes but by TrimAudit.
func TestAuditLevel(t *testing.T) {
	m := auditMachine(t)
	m.kept = 2
	index := uint64(0)
	do := func(level uint32, c Cause, op command.Op) Result {
		index++
		return m.ApplyAll([]Entry{{Index: index, Data: command.Encode(command.Command{Level: level, LeaderTime: int64(1000 + index), Actor: c.Actor(), Op: op})}})[0]
	}
	expiring := func(table uint16, raw string, n byte) command.Put {
		id := state.ID{2, 15: n}
		return command.Put{Table: table, ID: id, Expires: 1, Raw: fmt.Appendf(nil, raw, id)}
	}
	const token = `{"created_at":1,"entities":null,"hash":"x","id":"%s","name":"old","role":"super","tags":null,"ttl":null}`
	const node = `{"address":"a:1","created_at":1,"gossip_address":"","id":"%s","level":1,"name":"n","role":"voter","state":"removed","version":"v"}`
	note := Cause{Name: "cluster", Verb: "promote", Detail: "node <a>"}
	do(4, note, command.Noop{})
	do(2, note, command.Noop{}) // other nodes would leave none
	do(4, Cause{Name: "idle"}, command.Noop{})
	do(1, Cause{}, command.SetLevel{Level: 4})
	do(4, Cause{Name: "x", Detail: "why"}, command.Txn{Puts: []command.Put{expiring(entity.TableAdminTokens, token, 1), expiring(entity.TableClusterNodes, node, 2)}})
	if res := do(4, Cause{Name: "cluster", Verb: "expire"}, command.ExpireBefore{T: 2000, Limit: 10}); len(res.Keys) != 2 {
		t.Fatalf("expired %v: %v", res.Keys, res.Err)
	}
	do(4, note, command.Noop{})
	do(4, note, command.Noop{})
	records, head := auditLog(t, m)
	if len(records) != 5 || head["first"] != 1.0 {
		t.Fatalf("%d records, head %v", len(records), head)
	}
	if r := records[0]; r["detail"] != "node <a>" || len(r["changes"].([]any)) != 0 || r["verb"] != "promote" {
		t.Errorf("note: %v", r)
	}
	if r := records[2]; len(r["changes"].([]any)) != 1 || r["changes"].([]any)[0].(schema.Record)["entity"] != entity.AdminTokens || r["verb"] != "expire" {
		t.Errorf("expiry: %v", r)
	}
	for i, r := range records {
		if hash, err := HashAudit(r); err != nil || hash != r["hash"] || i > 0 && r["prev"] != records[i-1]["hash"] {
			t.Errorf("record %d does not fit: %v %v", i, err, r)
		}
	}
	for _, c := range []struct {
		op   command.TrimAudit
		left int
	}{{command.TrimAudit{First: 1, Limit: 10}, 5}, {command.TrimAudit{First: 4, Limit: 1}, 4}, {command.TrimAudit{First: 4, Limit: 10}, 2}, {command.TrimAudit{First: 99, Limit: 10}, 1}} {
		index++
		m.ApplyAll([]Entry{{Index: index, Data: command.Encode(command.Command{Level: 4, Actor: "cluster", Op: c.op})}})
		left, head := auditLog(t, m)
		if len(left) != c.left || head["first"] != left[0]["seq"] || head["prev"] != left[0]["prev"] || head["hash"] != left[len(left)-1]["hash"] {
			t.Errorf("%+v: %d records, head %v", c.op, len(left), head)
		}
	}
}

package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// credentialDefs are the consumers and API keys of the gateway, as the largest tables will be.
func credentialDefs() []entity.Def {
	id := schema.Field{Name: "id", Type: schema.String, UUID: true}
	return []entity.Def{
		{Table: 3, New: func() any { return new(entity.Consumer) }, Schema: &schema.Schema{Name: "consumers", Fields: []schema.Field{
			id, {Name: "username", Unique: true}, {Name: "custom_id", Unique: true}, {Name: "tags"},
		}}},
		{Table: 6, New: func() any { return new(entity.KeyAuthCredential) }, Schema: &schema.Schema{Name: "keyauth_credentials", TTL: true, Fields: []schema.Field{
			id, {Name: "key", Unique: true, Secret: true}, {Name: "consumer", Type: schema.Foreign, Ref: "consumers", OnDelete: schema.Cascade}, {Name: "tags"},
		}}},
	}
}

func spread(n int) (x state.ID) {
	binary.BigEndian.PutUint64(x[:], uint64(n+1)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(x[8:], uint64(n+1)*0xbf58476d1ce4e5b9)
	return x
}

// credentialLog is n entries, each a consumer with a sealed API key.
func credentialLog(b testing.TB, n int) []Entry {
	ring := keyring(b)
	entries := make([]Entry, n)
	for i := range entries {
		c, k := spread(i), spread(i+n)
		sealed, err := ring.Seal(6, k, fmt.Sprintf("%x", k))
		if err != nil {
			b.Fatal(err)
		}
		entries[i] = entryOf(uint64(i+1), command.Command{Level: 1, RequestID: c, LeaderTime: 1, Op: command.Txn{Puts: []command.Put{
			{Table: 3, ID: c, IfIndex: command.IfAbsent, Raw: mustJSON(obj{"id": c.String(), "created_at": 1700000000, "updated_at": 1700000000,
				"username": fmt.Sprintf("consumer-%08d", i), "custom_id": nil, "tags": nil})},
			{Table: 6, ID: k, IfIndex: command.IfAbsent, Raw: mustJSON(obj{"id": k.String(), "created_at": 1700000000, "key": sealed,
				"consumer": obj{"id": c.String()}, "tags": nil, "ttl": nil})},
		}}})
	}
	return entries
}

func BenchmarkApplyAll(b *testing.B) {
	const rows = 2 // per entry
	log := credentialLog(b, 20_000)
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprint("batch=", size), func(b *testing.B) {
			b.ReportAllocs()
			m := New(Options{Defs: credentialDefs(), Keys: keyring(b)})
			next := 0
			for b.Loop() {
				if next+size > len(log) {
					b.StopTimer()
					m.Reset()
					next = 0
					b.StartTimer()
				}
				for _, res := range m.ApplyAll(log[next : next+size]) {
					if res.Err != nil {
						b.Fatal(res.Err)
					}
				}
				next += size
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size*rows), "ns/row")
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	const entries = 100_000
	m := New(Options{Defs: credentialDefs(), Keys: keyring(b)})
	log := credentialLog(b, entries)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := 0; i < entries; i += 500 {
		m.ApplyAll(log[i : i+500])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(log)
	perRow := float64(after.HeapAlloc-before.HeapAlloc) / (2 * entries)
	data := snapshot(b, m)
	b.Run("persist", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := m.Hash(m.Store().View()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*entries), "ns/row")
		b.ReportMetric(perRow, "heap-B/row")
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			fresh := New(Options{Defs: credentialDefs(), Keys: keyring(b)})
			if err := fresh.Restore(bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*entries), "ns/row")
	})
}

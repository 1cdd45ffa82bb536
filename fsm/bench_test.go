package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
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
			id, {Name: "key", Unique: true, Secret: true}, {Name: "consumer", Type: schema.Foreign, Ref: "consumers", Required: true, OnDelete: schema.Cascade}, {Name: "tags"},
		}}},
	}
}

func spread(n int) (x state.ID) {
	binary.BigEndian.PutUint64(x[:], uint64(n+1)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(x[8:], uint64(n+1)*0xbf58476d1ce4e5b9)
	return x
}

// credentialLog is the entries from to to, each a consumer with a sealed API key.
func credentialLog(b testing.TB, from, to int) []Entry {
	ring := keyring(b)
	entries := make([]Entry, 0, to-from)
	for i := from; i < to; i++ {
		c, k := spread(2*i), spread(2*i+1)
		sealed, err := ring.Seal(6, k, apiKeyOf(i))
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, entryOf(uint64(i+1), command.Command{Level: 1, RequestID: c, LeaderTime: 1, Op: command.Txn{Puts: []command.Put{
			{Table: 3, ID: c, IfIndex: command.IfAbsent, Raw: mustJSON(obj{"id": c.String(), "created_at": 1700000000, "updated_at": 1700000000,
				"username": fmt.Sprintf("consumer-%08d", i), "custom_id": nil, "tags": nil})},
			{Table: 6, ID: k, IfIndex: command.IfAbsent, Raw: mustJSON(obj{"id": k.String(), "created_at": 1700000000, "key": sealed,
				"consumer": obj{"id": c.String()}, "tags": nil, "ttl": nil})},
		}}}))
	}
	return entries
}

func apiKeyOf(i int) string {
	id := spread(-i - 2)
	return fmt.Sprintf("%x", id[:])
}

func BenchmarkApplyAll(b *testing.B) {
	const rows = 2 // per entry
	log := credentialLog(b, 0, 20_000)
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

// BenchmarkAudit is what the record of a change costs: small transactions with and without somebody to name.
func BenchmarkAudit(b *testing.B) {
	for _, size := range []int{1, 32} {
		for _, who := range []string{"", Cause{Token: "0b0e3f8e-6b1b-4c59-9d4b-3c2a9a5b8f10", Name: "ci", From: "10.0.0.1", Verb: "create", Entity: "consumers"}.Actor()} {
			b.Run(fmt.Sprintf("batch=%d/audit=%t", size, who != ""), func(b *testing.B) {
				b.ReportAllocs()
				m := New(Options{Defs: entity.All(), Keys: keyring(b)})
				m.Store().Subscribe(func(state.Changes) {})
				log := make([]Entry, 1<<14)
				for i := range log {
					id := spread(i)
					raw := fmt.Appendf(nil, `{"created_at":1700000000,"custom_id":null,"id":"%s","tags":null,"updated_at":1700000000,"username":"consumer-%08d"}`, id, i)
					log[i] = Entry{Index: uint64(i + 1), Data: command.Encode(command.Command{Level: 2, RequestID: id, LeaderTime: int64(i), Actor: who, Op: command.Txn{Puts: []command.Put{{Table: 3, ID: id, IfIndex: command.IfAbsent, Raw: raw}}}})}
				}
				next := 0
				for b.Loop() {
					if next+size > len(log) {
						m.Reset()
						next = 0
					}
					for _, res := range m.ApplyAll(log[next : next+size]) {
						if res.Err != nil {
							b.Fatal(res.Err)
						}
					}
					next += size
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/entry")
			})
		}
	}
}

// BenchmarkMillion holds what a large gateway does: a million consumers with an API key each.
func BenchmarkMillion(b *testing.B) {
	if testing.Short() {
		b.Skip("takes a minute and half a gigabyte")
	}
	const entries, rows = 1_000_000, 2_000_000
	before := heap()
	m := New(Options{Defs: credentialDefs(), Keys: keyring(b)})
	for i := 0; i < entries; i += 500 {
		for _, res := range m.ApplyAll(credentialLog(b, i, i+500)) {
			if res.Err != nil {
				b.Fatal(res.Err)
			}
		}
	}
	memory := func(m *Machine) func(*testing.B) {
		return func(b *testing.B) {
			used := heap() - before
			b.ResetTimer()
			marked := -metric("/cpu/classes/gc/total:cpu-seconds")
			for b.Loop() {
				runtime.GC()
			}
			marked += metric("/cpu/classes/gc/total:cpu-seconds")
			b.ReportMetric(marked*1e3/float64(b.N), "cpu-ms/op")
			b.ReportMetric(metric("/gc/scan/heap:bytes")/(1<<20), "pointers-MB") // objects up to their last pointer
			b.ReportMetric(metric("/gc/heap/objects:objects")/1e3, "kobjects")
			b.ReportMetric(float64(used)/rows, "heap-B/row")
			b.ReportMetric(float64(used)/(1<<20), "heap-MB")
			b.ReportMetric(residentMB(), "resident-MB")
			runtime.KeepAlive(m)
		}
	}
	b.Run("gc", memory(m))
	benchmarkLookups(b, m, entries)
	b.Run("apply", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			next := int(m.Store().View().Index())
			e := credentialLog(b, next, next+1)
			b.StartTimer()
			m.ApplyAll(e)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/row")
	})
	var data bytes.Buffer
	b.Run("persist", func(b *testing.B) {
		for b.Loop() {
			data.Reset()
			if err := m.Persist(m.Store().View(), &data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			if err := m.Restore(bytes.NewReader(data.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	data = bytes.Buffer{}
	b.Run("restored", func(b *testing.B) {
		b.Run("gc", memory(m))
		benchmarkLookups(b, m, entries)
	})
}

func benchmarkLookups(b *testing.B, m *Machine, entries int) {
	keys := state.TableOf[entity.KeyAuthCredential](m.Store())
	consumers := state.TableOf[entity.Consumer](m.Store())
	for name, pick := range map[string]func(i int) int{"random": func(i int) int { return i * 7919 % entries }, "hot": func(i int) int { return i % 100 }} {
		names, ids := make([]string, 1<<16), make([]state.ID, 1<<16)
		for i := range names {
			names[i], ids[i] = apiKeyOf(pick(i)), spread(2*pick(i))
		}
		both := state.JoinOf[entity.KeyAuthCredential, entity.Consumer](m.Store(), "key")
		b.Run("join/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, row, ok := both.By(m.Store().View(), names[i&0xffff]); !ok || row.ID != ids[i&0xffff] {
					b.Fatal(i)
				}
			}
		})
		b.Run("by/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if row, ok := keys.By(m.Store().View(), "key", names[i&0xffff]); !ok || row.Val.Key != names[i&0xffff] {
					b.Fatal(i)
				}
			}
		})
		b.Run("get/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if row, ok := consumers.Get(m.Store().View(), ids[i&0xffff]); !ok || row.Val.ID == "" {
					b.Fatal(i)
				}
			}
		})
	}
}

func metric(name string) float64 {
	sample := []metrics.Sample{{Name: name}}
	if metrics.Read(sample); sample[0].Value.Kind() == metrics.KindUint64 {
		return float64(sample[0].Value.Uint64())
	}
	return sample[0].Value.Float64()
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what the first one only marked
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// residentMB is the size of the process in memory once the runtime has given back what it does not need; 0 if it cannot be known.
func residentMB() float64 {
	debug.FreeOSMemory()
	data, _ := os.ReadFile("/proc/self/statm")
	var size, resident float64
	_, _ = fmt.Sscan(string(data), &size, &resident)
	return resident * float64(os.Getpagesize()) / (1 << 20)
}

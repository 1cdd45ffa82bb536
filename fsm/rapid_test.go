package fsm

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"concord/fsm/command"
	"concord/fsm/state"
)

// drawCommand makes any command, right or wrong, over few enough rows and names that they meet.
func drawCommand(rt *rapid.T, t testing.TB) command.Command {
	c := command.Command{Level: 1, LeaderTime: rapid.Int64Range(0, 50).Draw(rt, "time")}
	if rapid.IntRange(0, 3).Draw(rt, "known") == 0 {
		c.RequestID = [16]byte{byte(rapid.IntRange(1, 20).Draw(rt, "request"))}
	}
	op := rapid.IntRange(0, 9).Draw(rt, "op")
	if op == 0 {
		c.Op = command.ExpireBefore{T: rapid.Int64Range(0, 50).Draw(rt, "before"), Limit: rapid.IntRange(0, 3).Draw(rt, "limit")}
		return c
	}
	var puts []command.Put
	for range rapid.IntRange(1, 4).Draw(rt, "puts") {
		n := rapid.IntRange(1, 5).Draw(rt, "row")
		table := rapid.Uint16Range(owners, rooms).Draw(rt, "table")
		some := func(label string) any {
			if rapid.Bool().Draw(rt, label+" set") {
				return ref(rapid.IntRange(1, 5).Draw(rt, label))
			}
			return nil
		}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "name")
		var p command.Put
		switch {
		case rapid.IntRange(0, 3).Draw(rt, "delete") == 0:
			p = drop(table, n)
		case table == owners:
			p = row(t, table, n, obj{"name": name, "team": some("team"), "tags": []string{name, "x"}, "group": rapid.SampledFrom([]string{"g", "h"}).Draw(rt, "group")})
			p.Expires = rapid.Int64Range(0, 50).Draw(rt, "expires")
		case table == keys:
			p = row(t, table, n, obj{"key": name, "owner": ref(rapid.IntRange(1, 5).Draw(rt, "owner"))})
			p.Expires = rapid.Int64Range(0, 50).Draw(rt, "expires")
		case table == uses:
			p = row(t, table, n, obj{"key": ref(rapid.IntRange(1, 5).Draw(rt, "key"))})
		case table == teams:
			p = row(t, table, n, obj{"name": name})
			p.Expires = rapid.Int64Range(0, 50).Draw(rt, "expires")
		default:
			p = row(t, table, n, obj{"name": name, "team": some("team"), "owner": some("owner")})
		}
		p.IfIndex = rapid.SampledFrom([]uint64{0, 0, 0, command.IfAbsent, 3}).Draw(rt, "if")
		puts = append(puts, p)
	}
	c.Op = command.Txn{Puts: puts}
	switch id := [16]byte{byte(rapid.IntRange(1, MaxStages+1).Draw(rt, "stage"))}; op {
	case 1, 2, 3:
		c.Op = command.Stage{ID: id, Seq: rapid.Uint32Range(0, 2).Draw(rt, "seq"), Puts: puts}
	case 4:
		c.Op = command.Commit{ID: id, Pieces: rapid.Uint32Range(0, 2).Draw(rt, "pieces")}
	}
	return c
}

// feed applies the log in batches of the drawn sizes.
func feed(m *Machine, log []Entry, size func() int) []Result {
	var results []Result
	for len(log) > 0 {
		n := min(size(), len(log))
		results = append(results, m.ApplyAll(log[:n])...)
		log = log[n:]
	}
	return results
}

// Two machines come to the same bytes from one log, however it is cut into batches, and so does a third that is restored
// from a snapshot in the middle.
func TestDeterminism(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var log []Entry
		for i := range rapid.IntRange(1, 60).Draw(rt, "entries") {
			log = append(log, entryOf(uint64(2*i+1), drawCommand(rt, t))) // raft keeps some indexes for itself
		}
		a, b, c := machine(t), machine(t), machine(t)
		ra := feed(a, log, func() int { return 1 })
		procs := runtime.GOMAXPROCS(1)
		rb := feed(b, log, func() int { return rapid.IntRange(1, 20).Draw(rt, "batch") })
		runtime.GOMAXPROCS(procs)
		if x, y := fmt.Sprint(ra), fmt.Sprint(rb); x != y {
			rt.Fatalf("results differ:\n%s\n%s", x, y)
		}
		cut := rapid.IntRange(0, len(log)).Draw(rt, "cut")
		feed(c, log[:cut], func() int { return 7 })
		d := machine(t)
		if err := d.Restore(bytes.NewReader(snapshot(t, c))); err != nil {
			rt.Fatal(err)
		}
		feed(d, log[cut:], func() int { return 5 })
		want := snapshot(t, a)
		if !bytes.Equal(want, snapshot(t, b)) || !bytes.Equal(want, snapshot(t, d)) {
			rt.Fatal("snapshots differ")
		}
		consistent(rt, a)
	})
}

// consistent checks the promises of the store against a walk over all rows.
func consistent(rt *rapid.T, m *Machine) {
	v := m.Store().View()
	for _, t := range m.Store().Tables() {
		count := 0
		for r := range t.Scan(v, "", "", state.ID{}) {
			count++
			tx := m.Store().Begin()
			for _, ref := range m.refs[t.Number()] {
				stored, _ := tx.Get(t.Number(), r.ID)
				if text, ok := tx.Ref(ref.field, stored); ok {
					to, err := state.ParseID(text)
					if err != nil {
						rt.Fatal(err)
					}
					if _, found := tx.Get(ref.to, to); !found {
						rt.Fatalf("%s %s: field %s dangles", t.Name(), r.ID, ref.field)
					}
				}
			}
			tx.Abort()
		}
		if count != t.Len(v) {
			rt.Fatalf("%s: %d rows, Len %d", t.Name(), count, t.Len(v))
		}
		for _, index := range []string{"name", "key", "name:team", "group:team"} {
			seen := map[string]bool{}
			for r := range t.Scan(v, index, "", state.ID{}) {
				var k string
				switch x := r.Val.(type) {
				case *owner:
					if k = x.Name; index == "group:team" {
						if k = state.Key(x.Group, ""); x.Team != nil {
							k = state.Key(x.Group, x.Team.ID)
						}
					}
				case *team:
					k = x.Name
				case *apiKey:
					k = x.Key
				case *room:
					if k = state.Key(x.Name, ""); x.Team != nil {
						k = state.Key(x.Name, x.Team.ID)
					}
				default:
					continue // a foreign key of this name: not unique
				}
				if got, ok := t.By(v, index, k); seen[k] || !ok || got.ID != r.ID {
					rt.Fatalf("%s: index %s is wrong for %q", t.Name(), index, k)
				}
				seen[k] = true
				if cur, ok := t.Get(v, r.ID); !ok || cur.Index != r.Index {
					rt.Fatalf("%s: index %s holds an old row", t.Name(), index)
				}
			}
		}
	}
}

// Views stay as they are while the machine goes on; -race watches the sharing of the trees.
func TestReadersBesideWriter(t *testing.T) {
	m := machine(t)
	const rows = 200
	var stop, wait = make(chan struct{}), sync.WaitGroup{}
	for range 4 {
		wait.Go(func() {
			table := state.TableOf[team](m.Store())
			for {
				v := m.Store().View()
				count, names := 0, map[string]bool{}
				for r := range table.Scan(v, "name", "") {
					count++
					names[r.Val.Name] = true
					if got, ok := table.By(v, "name", r.Val.Name); !ok || got.ID != r.ID || got.Index != r.Index {
						t.Errorf("By and Scan differ at %d", v.Index())
					}
				}
				if count != table.Len(v) || len(names) != count || count%2 != 0 { // rows come and go in pairs
					t.Errorf("view %d: %d rows, Len %d", v.Index(), count, table.Len(v))
				}
				if err := m.Persist(v, io.Discard); err != nil {
					t.Error(err)
				}
				m.Remembered([16]byte{1})
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 2000 {
		n := 2*(i*7%rows) + 1
		var p, q = drop(teams, n), drop(teams, n+1)
		if _, found := state.TableOf[team](m.Store()).Get(m.Store().View(), id(n)); !found {
			p, q = row(t, teams, n, obj{"name": fmt.Sprint("n", n, i)}), row(t, teams, n+1, obj{"name": fmt.Sprint("m", n, i)})
		}
		c := txnOf(p, q)
		c.RequestID = [16]byte{2, byte(i), byte(i >> 8)}
		if res := do(m, c); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	close(stop)
	wait.Wait()
}

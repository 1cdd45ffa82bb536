package fsm

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/seal"
	"concord/fsm/state"
)

// world fills a machine: teams 1, 2; owners 11 (team 1, tags), 12; keys 21, 22 of owner 11; use 31 of key 21; room 41 (team 1), 42
// (owner 12).
func world(t testing.TB) *Machine {
	m := machine(t)
	must(t, m,
		row(t, uses, 31, obj{"key": ref(21)}), // before what it refers to: order does not matter
		row(t, teams, 1, obj{"name": "red"}),
		row(t, teams, 2, obj{"name": "blue"}),
		row(t, owners, 11, obj{"name": "ann", "group": "g", "team": ref(1), "tags": []string{"a", "b", "a"}}),
		row(t, owners, 12, obj{"name": "bob", "group": "h", "team": nil}),
		row(t, keys, 21, obj{"key": "k-21", "owner": ref(11)}),
		row(t, keys, 22, obj{"key": "k-22", "owner": ref(11)}),
		row(t, rooms, 41, obj{"name": "hall", "team": ref(1)}),
		row(t, rooms, 42, obj{"name": "hall", "owner": ref(12)}),
	)
	return m
}

func TestTxn(t *testing.T) {
	put := func(p command.Put, ifIndex uint64) command.Put { p.IfIndex = ifIndex; return p }
	all := names(world(t))
	without := func(gone ...string) []string {
		left := []string{}
		for _, n := range all {
			if !strings.Contains(" "+strings.Join(gone, " ")+" ", " "+n+" ") {
				left = append(left, n)
			}
		}
		return left
	}
	for _, c := range []struct {
		name string
		puts []command.Put
		err  error
		left []string
		keys int
	}{
		{name: "insert", puts: []command.Put{put(row(t, teams, 3, obj{"name": "green"}), command.IfAbsent)}, left: nil, keys: 1},
		{name: "insert over a row", puts: []command.Put{put(row(t, teams, 1, obj{"name": "x"}), command.IfAbsent)}, err: &ConflictError{"teams", id(1), 1}},
		{name: "replace at its index", puts: []command.Put{put(row(t, teams, 1, obj{"name": "x"}), 1)}, left: all, keys: 1},
		{name: "replace at another index", puts: []command.Put{put(row(t, teams, 1, obj{"name": "x"}), 7)}, err: &ConflictError{"teams", id(1), 1}},
		{name: "replace what is gone", puts: []command.Put{put(row(t, teams, 9, obj{"name": "x"}), 7)}, err: &ConflictError{"teams", id(9), 0}},
		{name: "delete what is gone", puts: []command.Put{drop(teams, 9)}, err: &NotFoundError{"teams", id(9)}},
		{name: "delete at another index", puts: []command.Put{put(drop(teams, 2), 7)}, err: &ConflictError{"teams", id(2), 1}},
		{name: "unique", puts: []command.Put{row(t, teams, 3, obj{"name": "red"})}, err: &UniqueError{"teams", "name", "red", id(1)}},
		{name: "unique sealed", puts: []command.Put{row(t, keys, 29, obj{"key": "k-21", "owner": ref(12)})}, err: &UniqueError{"keys", "key", "k-21", id(21)}},
		{name: "unique within the transaction", puts: []command.Put{row(t, teams, 3, obj{"name": "x"}), row(t, teams, 4, obj{"name": "x"})}, err: &UniqueError{"teams", "name", "x", id(3)}},
		{name: "swap of unique names", puts: []command.Put{row(t, teams, 1, obj{"name": "blue"}), row(t, teams, 2, obj{"name": "red"})}, left: all, keys: 2},
		{name: "composite unique", puts: []command.Put{row(t, rooms, 43, obj{"name": "hall", "team": ref(1)})}, err: &UniqueError{"rooms", "name:team", state.Key("hall", id(1).String()), id(41)}},
		{name: "composite unique, nulls are equal", puts: []command.Put{row(t, rooms, 43, obj{"name": "hall"})}, err: &UniqueError{"rooms", "name:team", state.Key("hall", ""), id(42)}},
		{name: "foreign", puts: []command.Put{row(t, keys, 29, obj{"key": "x", "owner": ref(99)})}, err: &ForeignKeyError{"keys", "owner", "owners", id(99)}},
		{name: "foreign, upper-case id", puts: []command.Put{row(t, owners, 13, obj{"name": "x", "team": obj{"id": strings.ToUpper(id(1).String())}})}, left: nil, keys: 1},
		{name: "foreign, deleted by the same transaction", puts: []command.Put{row(t, uses, 39, obj{"key": ref(22)}), drop(keys, 22)}, err: &ForeignKeyError{"uses", "key", "keys", id(22)}},
		{name: "restrict", puts: []command.Put{drop(teams, 1)}, err: &RestrictedError{"teams", "rooms", id(1), id(41)}},
		{name: "restrict, both deleted", puts: []command.Put{drop(teams, 1), drop(rooms, 41)}, left: without("teams/1", "rooms/41"), keys: 3},
		{name: "cascade over two levels", puts: []command.Put{drop(owners, 11)}, left: without("owners/11", "keys/21", "keys/22", "uses/31"), keys: 4},
		{name: "cascade to another table", puts: []command.Put{drop(owners, 12)}, left: without("owners/12", "rooms/42"), keys: 2},
		{name: "null that another row holds", puts: []command.Put{drop(rooms, 41), drop(teams, 1), row(t, owners, 12, obj{"name": "bob", "group": "g"})}, err: &UniqueError{"owners", "group:team", state.Key("g", ""), id(12)}},
		{name: "written twice", puts: []command.Put{drop(teams, 2), row(t, teams, 2, obj{"name": "x"})}, err: &TwiceError{"teams", id(2)}},
		{name: "nothing", puts: nil, left: all},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := world(t)
			res := do(m, txnOf(c.puts...))
			if diff := cmp.Diff(c.err, res.Err); diff != "" {
				t.Fatalf("error (-want +got):\n%s", diff)
			}
			if c.err != nil {
				if got := names(m); !cmp.Equal(all, got) {
					t.Errorf("a failed transaction left %v", got)
				}
				return
			}
			if got := names(m); c.left != nil && !cmp.Equal(c.left, got) {
				t.Errorf("left (-want +got):\n%s", cmp.Diff(c.left, got))
			}
			if len(res.Keys) != c.keys || res.Index != 2 {
				t.Errorf("index %d, keys %v, want %d of them", res.Index, res.Keys, c.keys)
			}
		})
	}
}

func snapshot(t testing.TB, m *Machine) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.Persist(m.Store().View(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A failed entry between others undoes itself alone, down to the byte.
func TestRollbackIsExact(t *testing.T) {
	bad := []command.Command{
		txnOf(drop(owners, 11), row(t, owners, 12, obj{"name": "bobby"}), row(t, teams, 9, obj{"name": "red"})),
		txnOf(drop(owners, 12), drop(owners, 11), drop(teams, 1)),
		txnOf(row(t, teams, 1, obj{"name": "blue"}), row(t, teams, 2, obj{"name": "red"}), row(t, keys, 21, obj{"key": "k-22", "owner": ref(12)})),
		txnOf(row(t, teams, 2, obj{"name": "pink"}), command.Put{Table: teams, ID: id(3), Raw: []byte(`{"id":"`)}),
		txnOf(row(t, teams, 2, obj{"name": "pink"}), command.Put{Table: 77, ID: id(3), Raw: []byte(`{}`)}),
	}
	for i, c := range bad {
		a, b := world(t), world(t)
		good1, good2 := txnOf(row(t, teams, 5, obj{"name": "five"})), txnOf(row(t, teams, 6, obj{"name": "six"}))
		ra := a.ApplyAll([]Entry{entryOf(2, good1), entryOf(3, c), entryOf(4, good2)})
		rb := b.ApplyAll([]Entry{entryOf(2, good1), entryOf(4, good2)})
		if ra[0].Err != nil || ra[1].Err == nil || ra[2].Err != nil || rb[1].Err != nil {
			t.Fatalf("%d: results %v %v", i, ra, rb)
		}
		if !bytes.Equal(snapshot(t, a), snapshot(t, b)) {
			t.Errorf("%d: the failed entry left something behind", i)
		}
		for _, m := range []*Machine{a, b} {
			if r := do(m, txnOf(drop(rooms, 41), drop(teams, 1), drop(owners, 11), drop(owners, 12))); r.Err != nil {
				t.Errorf("%d: %v", i, r.Err)
			}
		}
		if !bytes.Equal(snapshot(t, a), snapshot(t, b)) {
			t.Errorf("%d: the indexes differ after the failed entry", i)
		}
	}
}

func TestSetNull(t *testing.T) {
	m := machine(t)
	must(t, m, row(t, teams, 1, obj{"name": "red"}))
	raw := []byte(`{"future":"<&> 1.50","id":"` + id(11).String() + `","name":"ann","number":1.50,"team":{"id":"` + id(1).String() + `"}}`)
	must(t, m, command.Put{Table: owners, ID: id(11), Raw: raw})
	must(t, m, drop(teams, 1))
	table, _ := m.Store().Table("owners")
	r, _ := table.Get(m.Store().View(), id(11))
	want := `{"future":"<&> 1.50","id":"` + id(11).String() + `","name":"ann","number":1.50,"team":null}`
	if string(r.Raw) != want || r.Val.(*owner).Team != nil || r.Index != 3 {
		t.Errorf("row %s at %d, want %s at 3", r.Raw, r.Index, want)
	}
}

func TestChanges(t *testing.T) {
	m := machine(t)
	var got []state.Changes
	cancel := m.Store().Subscribe(func(c state.Changes) {
		if m.Store().View().Index() != c.Index {
			t.Errorf("told of %d before the view is visible", c.Index)
		}
		got = append(got, c)
	})
	m.ApplyAll([]Entry{
		entryOf(1, txnOf(row(t, teams, 1, obj{"name": "a"}))),
		entryOf(2, txnOf(row(t, teams, 2, obj{"name": "a"}))), // fails
		entryOf(3, txnOf(row(t, teams, 1, obj{"name": "b"}), row(t, teams, 3, obj{"name": "c"}))),
		entryOf(4, txnOf(drop(teams, 3))),
	})
	must(t, m, row(t, teams, 1, obj{"name": "d"}))
	must(t, m, drop(teams, 1))
	m.Reset()
	cancel()
	must(t, m, row(t, teams, 1, obj{"name": "d"}))
	tm := func(name string) *team { return &team{ID: id(1).String(), Name: name} }
	want := []state.Changes{
		{Index: 4, List: []state.Change{{Table: teams, ID: id(1), New: tm("b")}}},
		{Index: 5, List: []state.Change{{Table: teams, ID: id(1), Old: tm("b"), New: tm("d")}}},
		{Index: 6, List: []state.Change{{Table: teams, ID: id(1), Old: tm("d")}}},
		{Reset: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestExpiry(t *testing.T) {
	m := world(t)
	at := func(p command.Put, ms int64) command.Put { p.Expires = ms; return p }
	must(t, m, at(row(t, keys, 21, obj{"key": "k-21", "owner": ref(11)}), 1000), at(row(t, keys, 22, obj{"key": "k-22", "owner": ref(11)}), 500),
		at(row(t, keys, 23, obj{"key": "k-23", "owner": ref(12)}), 2000))
	table := state.TableOf[apiKey](m.Store())
	if _, ok := table.By(m.Store().View().At(999), "key", "k-21"); !ok {
		t.Error("hidden before its time")
	}
	if _, ok := table.By(m.Store().View().At(1000), "key", "k-21"); ok {
		t.Error("not hidden at its time")
	}
	if _, ok := table.By(m.Store().View(), "key", "k-21"); !ok {
		t.Error("a plain view hides")
	}
	sweep := func(leader, before int64, limit int) []string {
		res := do(m, command.Command{LeaderTime: leader, Op: command.ExpireBefore{T: before, Limit: limit}})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		var left []string
		for _, n := range names(m) {
			if strings.HasPrefix(n, "keys/") || strings.HasPrefix(n, "uses/") {
				left = append(left, n)
			}
		}
		return left
	}
	for _, c := range []struct {
		name           string
		leader, before int64
		limit          int
		left           []string
	}{
		{"never past the leader's clock", 400, 5000, 10, []string{"keys/21", "keys/22", "keys/23", "uses/31"}},
		{"the clock does not go back", 100, 5000, 10, []string{"keys/21", "keys/22", "keys/23", "uses/31"}},
		{"before, not at", 9000, 500, 10, []string{"keys/21", "keys/22", "keys/23", "uses/31"}},
		{"no limit, no work", 9000, 9000, 0, []string{"keys/21", "keys/22", "keys/23", "uses/31"}},
		{"oldest first", 9000, 9000, 1, []string{"keys/21", "keys/23", "uses/31"}},
		{"with what refers to it", 9000, 9000, 1, []string{"keys/23"}},
		{"the rest", 9000, 9000, 10, nil},
	} {
		if got := sweep(c.leader, c.before, c.limit); !cmp.Equal(got, c.left) {
			t.Errorf("%s: left %v, want %v", c.name, got, c.left)
		}
	}
	if got := m.LeaderTime(); got != 9000 {
		t.Errorf("leader time %d", got)
	}
	// What is past by the leader's clock makes room, whether it was swept or not, and cannot be referred to.
	must(t, m, at(row(t, keys, 24, obj{"key": "same", "owner": ref(12)}), 8000))
	if err := do(m, txnOf(row(t, uses, 39, obj{"key": ref(24)}))).Err; !cmp.Equal(err, error(&ForeignKeyError{"uses", "key", "keys", id(24)})) {
		t.Errorf("reference to an expired row: %v", err)
	}
	must(t, m, row(t, keys, 25, obj{"key": "same", "owner": ref(12)}))
	if _, ok := table.Get(m.Store().View(), id(24)); ok {
		t.Error("the expired row is still there")
	}
	expired := at(row(t, keys, 26, obj{"key": "again", "owner": ref(12)}), 8000)
	must(t, m, expired)
	expired.IfIndex = command.IfAbsent
	must(t, m, expired)
}

// A row that another one holds by a restriction outlives its time, and does not keep younger ones from going.
func TestExpiryBlocked(t *testing.T) {
	m := machine(t)
	for n, table := range map[int]uint16{1: teams, 2: teams, 3: owners} {
		p := row(t, table, n, obj{"name": "n" + id(n).String(), "group": "g"})
		p.Expires = int64(n * 100)
		must(t, m, p)
	}
	must(t, m, row(t, rooms, 9, obj{"name": "r", "team": ref(1)}))
	expire := func() Result {
		return do(m, command.Command{LeaderTime: 1000, Op: command.ExpireBefore{T: 1000, Limit: 2}})
	}
	if res := expire(); !cmp.Equal(res.Keys, []Key{{teams, id(2)}, {owners, id(3)}}) || !cmp.Equal(names(m), []string{"teams/1", "rooms/9"}) {
		t.Errorf("expired %v, left %v", res.Keys, names(m))
	}
	must(t, m, drop(rooms, 9))
	if res := expire(); !cmp.Equal(res.Keys, []Key{{teams, id(1)}}) {
		t.Errorf("expired %v", res.Keys)
	}
}

func TestRequestIDs(t *testing.T) {
	m := world(t)
	c := txnOf(row(t, teams, 3, obj{"name": "green"}))
	c.RequestID = [16]byte{1}
	first := do(m, c)
	again := do(m, c)
	if !cmp.Equal(first, again) || first.Index != 2 || m.Store().View().Index() != 3 {
		t.Errorf("first %v, repeated %v", first, again)
	}
	if res, ok := m.Remembered(c.RequestID); !ok || !cmp.Equal(res, first) {
		t.Errorf("remembered %v", res)
	}
	bad := txnOf(row(t, teams, 4, obj{"name": "green"}))
	bad.RequestID = [16]byte{2}
	if res := do(m, bad); res.Err == nil {
		t.Fatal("a duplicate name was accepted")
	}
	must(t, m, drop(teams, 3))
	if res := do(m, bad); res.Err != nil {
		t.Errorf("a failed request is judged again when it comes again: %v", res.Err)
	}
	var entries []Entry
	for i := range 2*Remember + 100 {
		e := command.Command{RequestID: [16]byte{9, byte(i), byte(i >> 8), byte(i >> 16)}}
		entries = append(entries, entryOf(uint64(100+i), e))
	}
	m.ApplyAll(entries)
	if _, ok := m.Remembered(c.RequestID); ok {
		t.Error("an id is remembered for ever")
	}
	oldest := 2*Remember + 100 - Remember
	for i, want := range map[int]bool{oldest - 1: false, oldest: true, oldest + Remember - 1: true} {
		if _, ok := m.Remembered([16]byte{9, byte(i), byte(i >> 8), byte(i >> 16)}); ok != want {
			t.Errorf("request %d of %d remembered: %v", i, len(entries), ok)
		}
	}
}

func TestFatal(t *testing.T) {
	other, err := seal.New("k2", map[string][]byte{"k2": []byte(strings.Repeat("o", seal.KeySize))})
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := other.Seal(keys, id(21), "x")
	truncated := entryOf(2, txnOf(drop(teams, 2)))
	truncated.Data = truncated.Data[:len(truncated.Data)-1]
	for _, c := range []struct {
		name  string
		entry Entry
		is    func(error) bool
		text  string
	}{
		{"level of the entry", entryOf(2, command.Command{Level: MaxLevel + 1, Op: command.Noop{}}), as[*LevelError], "log entry 3: needs cluster level 5, this binary understands levels up to 4: install the newer version on this node"},
		{"level of the cluster", entryOf(2, command.Command{Level: 1, Op: command.SetLevel{Level: MaxLevel + 1}}), as[*LevelError], "needs cluster level 5"},
		{"missing key", entryOf(2, txnOf(command.Put{Table: keys, ID: id(21), Raw: mustJSON(obj{"key": foreign})})), as[*seal.MissingKeyError], `key "k2"`},
		{"missing key in what was staged", entryOf(2, command.Command{Level: 2, Op: command.Commit{ID: [16]byte{1}, Pieces: 1}}), as[*seal.MissingKeyError], `key "k2"`},
		{"corrupt", truncated, func(err error) bool { return errors.Is(err, command.ErrCorrupt) }, "cut short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := world(t)
			do(m, stageOf(1, 0, command.Put{Table: keys, ID: id(21), Raw: mustJSON(obj{"key": foreign})}))
			before := snapshot(t, m)
			c.entry.Index = m.Store().View().Index() + 1
			res := m.ApplyAll([]Entry{c.entry, entryOf(c.entry.Index+1, txnOf(drop(teams, 2)))})
			if !c.is(res[0].Err) || !as[*FatalError](res[0].Err) || !strings.Contains(res[0].Err.Error(), c.text) {
				t.Errorf("error %v", res[0].Err)
			}
			if res[1].Err != res[0].Err || do(m, command.Command{}).Err != res[0].Err || m.Fatal() != res[0].Err {
				t.Error("the machine went on")
			}
			if !bytes.Equal(before, snapshot(t, m)) {
				t.Error("the state changed")
			}
			m.Reset()
			if m.Fatal() != nil || do(m, command.Command{}).Err != nil {
				t.Error("Reset does not mend it")
			}
		})
	}
}

func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func TestLevels(t *testing.T) {
	m := machine(t)
	if m.Level() != 1 {
		t.Errorf("a new cluster has level %d", m.Level())
	}
	for _, level := range []uint32{1, 0} {
		if res := do(m, command.Command{Level: 1, Op: command.SetLevel{Level: level}}); res.Err != nil || m.Level() != 1 {
			t.Errorf("SetLevel(%d): %v, level %d", level, res.Err, m.Level())
		}
	}
}

func TestDivergencePanics(t *testing.T) {
	m := world(t)
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "log entry 1 comes after entry 1") {
			t.Errorf("recovered %v", r)
		}
	}()
	m.ApplyAll([]Entry{entryOf(1, command.Command{})})
}

func TestRowErrors(t *testing.T) {
	for _, c := range []struct{ name, raw, text string }{
		{"not JSON", `{`, "unexpected end of JSON input"},
		{"empty", ``, "unexpected end of JSON input"},
		{"wrong type", `{"name":7}`, "cannot unmarshal number"},
		{"another id", `{"id":"` + id(8).String() + `"}`, "field id: is"},
		{"too large", `{"name":"` + strings.Repeat("x", MaxRow) + `"}`, "at most 16777216 are allowed"},
	} {
		m := machine(t)
		res := do(m, txnOf(command.Put{Table: teams, ID: id(1), Raw: []byte(c.raw)}))
		if !as[*state.RowError](res.Err) || !strings.Contains(res.Err.Error(), c.text) || m.Fatal() != nil {
			t.Errorf("%s: %v", c.name, res.Err)
		}
	}
	m := machine(t)
	res := do(m, txnOf(row(t, owners, 11, obj{"name": "x", "team": obj{"id": "red"}})))
	if !as[*state.RowError](res.Err) || !strings.Contains(res.Err.Error(), `field team: id "red" is not a UUID`) {
		t.Errorf("reference that is no id: %v", res.Err)
	}
}

// What Kong deletes along, refuses to delete, and holds to be unique, with the schemas of the program.
func TestEntities(t *testing.T) {
	put := func(table uint16, n int, rec obj) command.Put { return row(t, table, n, rec) }
	const services, routes, consumers, plugins, jwts, keyAuths, basics, acls = 1, 2, 3, 4, 5, 6, 7, 8
	gateway := func() *Machine {
		m := New(Options{Defs: entity.All(), Keys: keyring(t)})
		must(t, m,
			put(services, 1, obj{"name": "s1"}), put(services, 2, obj{"name": "s2"}),
			put(routes, 3, obj{"name": "r1", "service": ref(1)}), put(routes, 4, obj{"name": "r2"}),
			put(consumers, 5, obj{"username": "u1", "custom_id": "c1"}), put(consumers, 6, obj{"username": "u2"}),
			put(plugins, 11, obj{"name": "p"}), put(plugins, 12, obj{"name": "p", "service": ref(2)}),
			put(plugins, 13, obj{"name": "p", "route": ref(3)}), put(plugins, 14, obj{"name": "p", "consumer": ref(5), "route": ref(4)}),
			put(jwts, 21, obj{"key": "k", "consumer": ref(5)}), put(keyAuths, 22, obj{"key": "k", "consumer": ref(5)}),
			put(basics, 23, obj{"username": "n", "consumer": ref(5)}), put(acls, 24, obj{"group": "g", "consumer": ref(5)}),
		)
		return m
	}
	for _, c := range []struct {
		name string
		put  command.Put
		err  error
		gone []string
	}{
		{"service with routes", drop(services, 1), &RestrictedError{"services", "routes", id(1), id(3)}, nil},
		{"service with plugins", drop(services, 2), nil, []string{"services/2", "plugins/12"}},
		{"route", drop(routes, 3), nil, []string{"routes/3", "plugins/13"}},
		{"consumer", drop(consumers, 5), nil, []string{"consumers/5", "plugins/14", "jwt_secrets/21", "keyauth_credentials/22", "basicauth_credentials/23", "acls/24"}},
		{"plugin twice in one scope", put(plugins, 19, obj{"name": "p"}), &UniqueError{"plugins", "name:route:service:consumer:consumer_group", state.Key("p", "", "", "", ""), id(11)}, nil},
		{"plugin twice on a service", put(plugins, 19, obj{"name": "p", "service": ref(2)}), &UniqueError{"plugins", "name:route:service:consumer:consumer_group", state.Key("p", "", id(2).String(), "", ""), id(12)}, nil},
		{"plugin in another scope", put(plugins, 19, obj{"name": "p", "service": ref(1)}), nil, []string{}},
		{"group twice", put(acls, 29, obj{"group": "g", "consumer": ref(5)}), &UniqueError{"acls", "consumer:group", state.Key(id(5).String(), "g"), id(24)}, nil},
		{"group of another consumer", put(acls, 29, obj{"group": "g", "consumer": ref(6)}), nil, []string{}},
		{"key of another kind", put(jwts, 29, obj{"key": "k", "consumer": ref(6)}), &UniqueError{"jwt_secrets", "key", "k", id(21)}, nil},
		{"certificates are none yet", put(services, 9, obj{"name": "s9", "client_certificate": ref(1)}), &ForeignKeyError{"services", "client_certificate", "certificates", id(1)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := gateway()
			before := names(m)
			res := do(m, txnOf(c.put))
			if diff := cmp.Diff(c.err, res.Err); diff != "" {
				t.Fatalf("error (-want +got):\n%s", diff)
			}
			after := names(m)
			for _, n := range before {
				if slices.Contains(after, n) == slices.Contains(c.gone, n) {
					t.Errorf("%s: there afterwards: %v", n, slices.Contains(after, n))
				}
			}
		})
	}
}

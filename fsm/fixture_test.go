package fsm

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/fsm/state"
)

// A small world with every kind of rule:
//
//	owners ← keys (cascade, unique secret) ← uses (cascade)
//	teams ← owners.team (null), teams ← rooms.team (restrict), owners ← rooms.owner (cascade)
//
// Owners, keys and teams may expire. There is one owner per group and team.
const (
	owners, keys, uses, teams, rooms uint16 = 1, 2, 3, 4, 5
)

type owner struct {
	ID    string      `json:"id"`
	Name  string      `json:"name"`
	Team  *entity.Ref `json:"team"`
	Group string      `json:"group"`
	Tags  []string    `json:"tags"`
}

type apiKey struct {
	ID    string     `json:"id"`
	Key   string     `json:"key"`
	Owner entity.Ref `json:"owner"`
}

type use struct {
	ID  string     `json:"id"`
	Key entity.Ref `json:"key"`
}

type team struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type room struct {
	ID    string      `json:"id"`
	Name  string      `json:"name"`
	Team  *entity.Ref `json:"team"`
	Owner *entity.Ref `json:"owner"`
}

func defs() []entity.Def {
	id := schema.Field{Name: "id", Type: schema.String, UUID: true}
	name := schema.Field{Name: "name", Type: schema.String, Unique: true}
	ref := func(name, to string, a schema.RefAction) schema.Field {
		return schema.Field{Name: name, Type: schema.Foreign, Ref: to, OnDelete: a}
	}
	return []entity.Def{
		{Table: owners, New: func() any { return new(owner) }, Schema: &schema.Schema{Name: "owners", TTL: true, Fields: []schema.Field{
			id, name, ref("team", "teams", schema.SetNull), {Name: "tags", Type: schema.Set}, {Name: "group", Type: schema.String},
		}, Unique: [][]string{{"group", "team"}}}},
		{Table: keys, New: func() any { return new(apiKey) }, Schema: &schema.Schema{Name: "keys", TTL: true, Fields: []schema.Field{
			id, {Name: "key", Type: schema.String, Unique: true, Secret: true}, ref("owner", "owners", schema.Cascade),
		}}},
		{Table: uses, New: func() any { return new(use) }, Schema: &schema.Schema{Name: "uses", Fields: []schema.Field{
			id, ref("key", "keys", schema.Cascade),
		}}},
		{Table: teams, New: func() any { return new(team) }, Schema: &schema.Schema{Name: "teams", TTL: true, Fields: []schema.Field{id, name}}},
		{Table: rooms, New: func() any { return new(room) }, Schema: &schema.Schema{Name: "rooms", Fields: []schema.Field{
			id, {Name: "name", Type: schema.String}, ref("team", "teams", ""), ref("owner", "owners", schema.Cascade),
		}, Unique: [][]string{{"name", "team"}}}},
	}
}

func keyring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.New("k1", map[string][]byte{"k1": []byte(strings.Repeat("s", seal.KeySize))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func machine(t testing.TB) *Machine { return New(Options{Defs: defs(), Keys: keyring(t)}) }

func id(n int) state.ID {
	var x state.ID
	copy(x[:], fmt.Sprintf("%016d", n))
	return x
}

type obj = map[string]any

func ref(n int) obj { return obj{"id": id(n).String()} }

// row is a put of canonical JSON; a field "key" that is a string is sealed.
func row(t testing.TB, table uint16, n int, rec obj) command.Put {
	t.Helper()
	rec["id"] = id(n).String()
	if s, ok := rec["key"].(string); ok {
		sealed, err := keyring(t).Seal(table, id(n), s)
		if err != nil {
			t.Fatal(err)
		}
		rec["key"] = sealed
	}
	raw, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	return command.Put{Table: table, ID: id(n), Raw: raw}
}

func drop(table uint16, n int) command.Put { return command.Put{Table: table, ID: id(n)} }

func txnOf(puts ...command.Put) command.Command {
	return command.Command{Level: 1, Op: command.Txn{Puts: puts}}
}

func entryOf(index uint64, c command.Command) Entry {
	return Entry{Index: index, Data: command.Encode(c)}
}

// do applies one command as the next entry.
func do(m *Machine, c command.Command) Result {
	return m.ApplyAll([]Entry{entryOf(m.Store().View().Index()+1, c)})[0]
}

func must(t testing.TB, m *Machine, puts ...command.Put) Result {
	t.Helper()
	res := do(m, txnOf(puts...))
	if res.Err != nil {
		t.Fatalf("apply: %v", res.Err)
	}
	return res
}

// names lists all rows as "table/number", so that a test can state what is left.
func names(m *Machine) []string {
	list := []string{}
	v := m.Store().View()
	for _, t := range m.Store().Tables() {
		for r := range t.Scan(v, "", "", state.ID{}) {
			list = append(list, t.Name()+"/"+strings.TrimLeft(string(r.ID[:]), "0"))
		}
	}
	return list
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

package service_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/admin/service"
	"concord/admin/service/logtest"
	"concord/cluster"
	"concord/fsm/command"
	"concord/fsm/schema"
)

// enough is how many times two rows do not fit into one log entry.
const enough = 70

// large has n consumers of 8 KiB, each with a key.
func large(n int) []service.Wanted {
	var rows []service.Wanted
	for i := range n {
		rows = append(rows, service.Wanted{Entity: "consumers", Body: schema.Record{"username": fmt.Sprint("user-", i), "custom_id": fmt.Sprint(i, strings.Repeat("-", 8<<10))}, Parent: -1},
			service.Wanted{Entity: "keyauth_credentials", Body: schema.Record{"key": fmt.Sprint("key-", i)}, Parent: 2 * i, Field: "consumer"})
	}
	return rows
}

func raise(t *testing.T, log *logtest.Log) {
	t.Helper()
	if res, err := log.Propose(t.Context(), command.Command{Level: 1, Op: command.SetLevel{Level: command.StageLevel}}); err != nil || res.Err != nil {
		t.Fatal(err, res.Err)
	}
}

func rowCount(log *logtest.Log) int {
	n := 0
	for _, table := range log.Machine.Store().Tables() {
		if !table.Def().Schema.Internal {
			n += table.Len(log.Machine.Store().View())
		}
	}
	return n
}

// A large configuration is there whole or not at all, wherever the leader is lost, and never twice.
func TestBulkAtomic(t *testing.T) {
	const rows = enough
	steps := 0
	for _, c := range []struct {
		name          string
		before, after error
	}{
		{"counting", nil, nil}, {"not the leader", cluster.ErrNotLeader, nil}, {"lost before the entry is applied", cluster.ErrOutcomeUnknown, nil},
		{"lost after it is applied", nil, cluster.ErrOutcomeUnknown},
	} {
		for at := 1; at <= max(steps, 1); at++ {
			if at > 2 && at < steps-1 {
				continue // a piece in the middle is as good as another
			}
			s, log := newService(service.Options{})
			raise(t, log)
			n := 0
			log.BeforePropose = func(command.Command) error {
				if got := rowCount(log); got != 0 && got != 2*rows {
					t.Errorf("%s at %d: %d rows are visible", c.name, at, got)
				}
				if n++; n == at {
					return c.before
				}
				return nil
			}
			log.AfterPropose = func() error {
				if n == at {
					return c.after
				}
				return nil
			}
			res, err := s.Apply(t.Context(), service.Bulk{Rows: large(rows)})
			if err != nil || res.Created != 2*rows || rowCount(log) != 2*rows || log.Machine.Staged() != 0 {
				t.Errorf("%s at %d: %v, created %d, %d rows are there, %d bytes staged", c.name, at, err, res.Created, rowCount(log), log.Machine.Staged())
			}
			if c.name == "counting" {
				if steps = n; steps < 3 {
					t.Fatalf("%d entries: the configuration is too small for this test", steps)
				}
			}
		}
	}
}

// When no leader comes back, nothing is there, and the client hears so.
func TestBulkNoLeader(t *testing.T) {
	s, log := newService(service.Options{})
	raise(t, log)
	n := 0
	log.BeforePropose = func(command.Command) error {
		if n++; n == 2 {
			log.NoLeader = true
			return cluster.ErrNotLeader
		}
		return nil
	}
	if _, err := s.Apply(t.Context(), service.Bulk{Rows: large(enough)}); kind(err) != service.Unavailable || rowCount(log) != 0 {
		t.Errorf("%v, %d rows", err, rowCount(log))
	}
	if log.Machine.Staged() == 0 {
		t.Error("nothing was staged: the leader was lost too early for this test")
	}
}

func TestBulkNeedsLevel(t *testing.T) {
	s, log := newService(service.Options{})
	if _, err := s.Apply(t.Context(), service.Bulk{Rows: large(enough)}); kind(err) != service.Unavailable || rowCount(log) != 0 {
		t.Errorf("%v, %d rows", err, rowCount(log))
	}
	if _, err := s.Apply(t.Context(), service.Bulk{Rows: large(3)}); err != nil || rowCount(log) != 6 {
		t.Errorf("small: %v, %d rows", err, rowCount(log))
	}
}

func wanted(entity string, kv ...any) service.Wanted {
	w := service.Wanted{Entity: entity, Body: schema.Record{}, Parent: -1}
	for i := 0; i < len(kv); i += 2 {
		if kv[i] == "@parent" {
			w.Parent, w.Field = kv[i+1].(int), strings.TrimSuffix(parentOf[entity], "s")
			continue
		}
		w.Body[kv[i].(string)] = kv[i+1]
	}
	return w
}

var parentOf = map[string]string{"routes": "service", "basicauth_credentials": "consumer", "keyauth_credentials": "consumer", "oauth2_credentials": "consumer",
	"targets": "upstream", "snis": "certificate", "acls": "consumer", "plugins": "service", "jwt_secrets": "consumer"}

// What is written once is unchanged the second time: also without ids and names, and with passwords in clear.
func TestBulkIdempotent(t *testing.T) {
	cert, key := pair(t)
	rows := []service.Wanted{
		wanted("services", "name", "s", "host", "h"),
		wanted("routes", "paths", []any{"/nameless"}, "@parent", 0),
		wanted("routes", "paths", []any{"/twin"}, "@parent", 0),
		wanted("routes", "paths", []any{"/twin"}, "@parent", 0),
		wanted("consumers", "custom_id", "only"),
		wanted("basicauth_credentials", "username", "u", "password", "clear", "@parent", 4),
		wanted("oauth2_credentials", "name", "app", "client_id", "id", "client_secret", "secret", "hash_secret", true, "@parent", 4),
		wanted("jwt_secrets", "@parent", 4), // key and secret are made
		wanted("acls", "group", "g", "@parent", 4),
		wanted("upstreams", "name", "u"),
		wanted("targets", "target", "1.2.3.4", "@parent", 9), // stored as 1.2.3.4:8000
		wanted("certificates", "cert", cert, "key", key),
		wanted("snis", "name", "a.example", "@parent", 11),
		wanted("routes", "hosts", []any{"h"}, "service", "s", "name", "flat"),
		wanted("routes", "hosts", []any{"i"}, "service", schema.Record{"name": "s"}),
	}
	s, log := newService(service.Options{})
	for _, want := range []service.BulkResult{{Created: len(rows)}, {Unchanged: len(rows)}} {
		got, err := s.Apply(t.Context(), service.Bulk{Rows: rows, Diff: true})
		if err != nil {
			t.Fatal(err)
		}
		if got.Created != want.Created || got.Unchanged != want.Unchanged || got.Updated+got.Deleted != 0 {
			t.Errorf("%+v", got)
		}
	}
	// What was exported is equal to what is stored, digests and all.
	var dump []service.Wanted
	if _, err := s.Export(t.Context(), nil, func(entity string, rec schema.Record) error {
		dump = append(dump, service.Wanted{Entity: entity, Body: rec, Parent: -1})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(dump); i++ { // the order does not matter
		dump[i], dump[i/2] = dump[i/2], dump[i]
	}
	got, err := s.Apply(t.Context(), service.Bulk{Rows: dump, Hashed: true, Diff: true})
	if err != nil || got.Unchanged != len(rows) || len(got.Changes) != 0 {
		t.Errorf("export and import: %v %+v", err, got)
	}
	// And an empty configuration leaves nothing.
	if got, err := s.Apply(t.Context(), service.Bulk{}); err != nil || got.Deleted != len(rows) || rowCount(log) != 0 {
		t.Errorf("emptied: %v %+v, %d rows left", err, got, rowCount(log))
	}
}

// What expires, and what the gateway makes while it serves, is no part of the configuration.
func TestBulkLeavesRuntimeRows(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "bob"})
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "eve"})
	for _, user := range []string{"bob", "eve"} {
		mutate(t, s, service.Create, "keyauth_credentials", "", schema.Record{"consumer": schema.Record{"username": user}, "key": user + "-temporary", "ttl": 1000.})
	}
	mutate(t, s, service.Create, "keyauth_credentials", "", schema.Record{"consumer": schema.Record{"username": "bob"}, "key": "lasting"})
	mutate(t, s, service.Create, "sessions", "", schema.Record{"session_id": "x", "data": "y"})
	res, err := s.Apply(t.Context(), service.Bulk{Rows: []service.Wanted{wanted("consumers", "username", "bob")}, Diff: true})
	if err != nil || res.Deleted != 2 || res.Unchanged != 1 || rowCount(log) != 3 { // bob, his temporary key, the session; eve's went with her
		t.Errorf("%v %+v, %d rows", err, res, rowCount(log))
	}
}

// Rows that others change in between are compared anew.
func TestBulkConflict(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "old"})
	other := service.New(service.Options{Log: log, Machine: log.Machine})
	n := 0
	log.BeforePropose = func(c command.Command) error {
		if n++; n == 1 {
			log.BeforePropose = nil
			if _, err := other.Mutate(context.Background(), service.Mutation{Verb: service.Update, Target: service.Target{Entity: "services", Ref: "s"}, Body: schema.Record{"host": "others"}}); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	res, err := s.Apply(t.Context(), service.Bulk{Rows: []service.Wanted{wanted("services", "name", "s", "host", "new")}, Diff: true})
	if err != nil || res.Updated != 1 {
		t.Fatalf("%v %+v", err, res)
	}
	got, err := s.Get(t.Context(), service.Target{Entity: "services", Ref: "s"})
	if err != nil || !strings.Contains(string(got.Row), `"host":"new"`) {
		t.Errorf("%v %s", err, got.Row)
	}
}

func TestBulkRefusals(t *testing.T) {
	id := "11111111-1111-4111-8111-111111111111"
	for _, c := range []struct {
		name string
		b    service.Bulk
		want map[int]schema.Errors
	}{
		{"every row is judged", service.Bulk{Rows: []service.Wanted{wanted("services", "name", "s"), wanted("routes", "@parent", 0), wanted("routes", "service", "s", "hosts", "x"), wanted("consumers")}},
			map[int]schema.Errors{0: {"host": "required field missing"}, 1: {"@entity": []any{"must set one of 'methods', 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'https'"}},
				2: {"hosts": "expected an array"}, 3: {"@entity": []any{"at least one of these fields must be non-empty: 'custom_id', 'username'"}}}},
		{"an id twice", service.Bulk{Rows: []service.Wanted{wanted("services", "id", id, "host", "h"), wanted("services", "id", id, "host", "i")}},
			map[int]schema.Errors{1: {"@entity": []any{"uniqueness violation: 'services' entity with primary key set to '" + id + "' already declared"}}}},
		{"a key twice", service.Bulk{Rows: []service.Wanted{wanted("consumers", "username", "a"), wanted("keyauth_credentials", "key", "k", "@parent", 0), wanted("keyauth_credentials", "key", "k", "@parent", 0)}},
			map[int]schema.Errors{2: {"@entity": []any{"uniqueness violation: 'keyauth_credentials' entity with key set to '***' already declared"}}}},
		{"a name that stays with another id", service.Bulk{Merge: true, Rows: []service.Wanted{wanted("consumers", "id", id, "username", "stored")}},
			map[int]schema.Errors{0: {"@entity": []any{"uniqueness violation: 'consumers' entity with username set to 'stored' exists already with another id, <id>"}}}},
		{"a reference to what goes", service.Bulk{Rows: []service.Wanted{wanted("acls", "consumer", "stored", "group", "g")}},
			map[int]schema.Errors{0: {"consumer": "invalid reference 'consumer: stored' (no such entry in 'consumers')"}}},
		{"a ttl where there is none", service.Bulk{Rows: []service.Wanted{wanted("consumers", "username", "x", "ttl", 5.)}}, map[int]schema.Errors{0: {"ttl": "unknown field"}}},
		{"an id of another form", service.Bulk{Rows: []service.Wanted{wanted("consumers", "username", "x", "id", "1")}}, map[int]schema.Errors{0: {"id": "expected a valid UUID"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, log := newService(service.Options{})
			stored, _ := mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "stored"})
			index := log.Machine.Store().View().Index()
			_, err := s.Apply(t.Context(), c.b)
			var wrong *service.BulkError
			if !errors.As(err, &wrong) {
				t.Fatalf("error %v", err)
			}
			for _, errs := range wrong.Rows {
				if list, ok := errs["@entity"].([]any); ok {
					list[0] = strings.ReplaceAll(list[0].(string), fmt.Sprint(stored["id"]), "<id>")
				}
			}
			if diff := cmp.Diff(c.want, wrong.Rows); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if log.Machine.Store().View().Index() != index {
				t.Error("something was written")
			}
		})
	}
}

package service_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"concord/admin/service"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
)

// Before all members know the tables of groups, nothing is written to them; afterwards the entries carry the level that knows them.
func TestGroupsNeedLevel(t *testing.T) {
	s, log := newService(service.Options{})
	raise(t, log) // to the one before
	ctx := context.Background()
	create := service.Mutation{Verb: service.Create, Target: service.Target{Entity: entity.ConsumerGroups}, Body: schema.Record{"name": "gold"}}
	bulk := service.Bulk{Rows: []service.Wanted{wanted("consumers", "username", "bob"), wanted(entity.ConsumerGroups, "name", "gold")}}
	_, one := s.Mutate(ctx, create)
	_, many := s.Apply(ctx, bulk)
	for what, err := range map[string]error{"mutation": one, "configuration": many} {
		if kind(err) != service.Unavailable || !strings.Contains(err.Error(), "not all nodes of the cluster run a version with consumer groups yet") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := rowCount(log); n != 0 {
		t.Errorf("%d rows", n)
	}
	log.Raise()
	var levels []uint32
	log.BeforePropose = func(c command.Command) error { levels = append(levels, c.Level); return nil }
	if _, err := s.Mutate(ctx, create); err != nil {
		t.Fatal(err)
	}
	bulk.Rows = append(bulk.Rows, wanted(entity.ConsumerGroupConsumers, "consumer", "bob", "consumer_group", "gold"))
	if _, err := s.Apply(ctx, bulk); err != nil {
		t.Fatal(err)
	}
	bulk.Rows = append(bulk.Rows, large(enough)...)
	for i := range bulk.Rows[3:] {
		if r := &bulk.Rows[3+i]; r.Parent >= 0 {
			r.Parent += 3
		}
	}
	bulk.Rows[1].Body["tags"] = []any{"x"}
	if _, err := s.Apply(ctx, bulk); err != nil {
		t.Fatal(err)
	}
	for i, level := range levels {
		if level != entity.GroupsLevel {
			t.Errorf("entry %d is of level %d", i, level)
		}
	}
	if len(levels) < 4 {
		t.Errorf("%d entries", len(levels))
	}
	levels = nil
	if _, err := s.Mutate(ctx, service.Mutation{Verb: service.Create, Target: service.Target{Entity: "consumers"}, Body: schema.Record{"username": "carl"}}); err != nil || levels[0] >= entity.GroupsLevel {
		t.Errorf("a consumer is written at level %v: %v", levels, err)
	}
}

// What the acme plugin keeps waits for the level too.
func TestKeptRowsNeedLevel(t *testing.T) {
	s, log := newService(service.Options{})
	raise(t, log) // to the one before
	ctx := service.WithActor(context.Background(), service.Actor{Program: true})
	create := service.Mutation{Verb: service.Create, Target: service.Target{Entity: entity.ACMEStorageTable}, Body: schema.Record{"key": "k", "value": "v"}}
	if _, err := s.Mutate(ctx, create); kind(err) != service.Unavailable {
		t.Errorf("before: %v", err)
	}
	log.Raise()
	level := uint32(0)
	log.BeforePropose = func(c command.Command) error { level = c.Level; return nil }
	if _, err := s.Mutate(ctx, create); err != nil || level != entity.SharedLevel {
		t.Errorf("afterwards: level %d, %v", level, err)
	}
}

// A row that joins is found from both ends, by id and by name, and belongs to the tags that both ends have.
func TestJoined(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	ctx := context.Background()
	ids := map[string]string{}
	for _, name := range []string{"gold", "silver"} {
		rec, _ := mutate(t, s, service.Create, entity.ConsumerGroups, "", schema.Record{"name": name, "tags": []any{"a"}})
		ids[name] = rec["id"].(string)
	}
	for name, tags := range map[string][]any{"bob": {"a"}, "carl": nil} {
		rec, _ := mutate(t, s, service.Create, "consumers", "", schema.Record{"username": name, "tags": tags})
		ids[name] = rec["id"].(string)
	}
	end := func(kind, field, ref, other string) service.Target {
		return service.Target{Entity: entity.ConsumerGroupConsumers, Ref: other, Parent: &service.Parent{Entity: kind, Field: field, Ref: ref}}
	}
	group := func(ref, consumer string) service.Target {
		return end(entity.ConsumerGroups, "consumer_group", ref, consumer)
	}
	for _, name := range []string{"bob", "carl"} {
		if _, err := s.Mutate(ctx, service.Mutation{Verb: service.Upsert, Target: group("gold", name), Body: schema.Record{}}); err != nil {
			t.Fatal(err)
		}
	}
	row, err := s.Get(ctx, group("gold", "bob"))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []service.Target{group(ids["gold"], ids["bob"]), end("consumers", "consumer", "bob", "gold"), end("consumers", "consumer", ids["bob"], ids["gold"])} {
		if same, err := s.Get(ctx, target); err != nil || string(same.Row) != string(row.Row) {
			t.Errorf("%+v: %v %s", target, err, same.Row)
		}
	}
	for _, target := range []service.Target{group("silver", "bob"), group("gold", "nobody"), group("none", "bob"), end("consumers", "consumer", "bob", "silver")} {
		if _, err := s.Get(ctx, target); kind(err) != service.Missing {
			t.Errorf("%+v: %v", target, err)
		}
	}
	var exported []string
	if _, err := s.Export(ctx, []string{"a"}, func(kind string, rec schema.Record) error {
		if kind == entity.ConsumerGroupConsumers {
			exported = append(exported, rec["consumer"].(schema.Record)["id"].(string))
		}
		return nil
	}); err != nil || len(exported) != 1 || exported[0] != ids["bob"] {
		t.Errorf("exported %v, %v", exported, err)
	}
	// The part with the tag says that bob is in silver instead. Carl stays where he is.
	if _, err := s.Apply(ctx, service.Bulk{SelectTags: []string{"a"}, Rows: []service.Wanted{
		wanted(entity.ConsumerGroups, "name", "gold"), wanted(entity.ConsumerGroups, "name", "silver"), wanted("consumers", "username", "bob"),
		wanted(entity.ConsumerGroupConsumers, "consumer", "bob", "consumer_group", "silver"),
	}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"gold": "carl", "silver": "bob"} {
		page, err := s.Joined(ctx, group(name, ""), service.ListOptions{})
		if err != nil || len(page.Rows) != 1 || !strings.Contains(string(page.Rows[0]), want) {
			t.Errorf("%s: %s, %v", name, page.Rows, err)
		}
	}
	if _, err := s.Mutate(ctx, service.Mutation{Verb: service.Delete, Target: group("silver", "carl")}); kind(err) != service.Missing {
		t.Errorf("carl left where he was not: %v", err)
	}
}

// Pages of a join hold what is shown, not what is left out.
func TestJoinedPages(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	rows := []service.Wanted{wanted(entity.ConsumerGroups, "name", "gold")}
	for i := range 25 {
		name := string(rune('a' + i))
		tags := []any{"odd"}
		if i%2 == 0 {
			tags = []any{"even"}
		}
		rows = append(rows, wanted("consumers", "username", name, "tags", tags), wanted(entity.ConsumerGroupConsumers, "consumer", name, "consumer_group", "gold"))
	}
	if _, err := s.Apply(t.Context(), service.Bulk{Rows: rows}); err != nil {
		t.Fatal(err)
	}
	even := "even"
	for name, c := range map[string]struct {
		tags *string
		want int
	}{"all": {nil, 25}, "some": {&even, 13}} {
		seen, pages := map[string]bool{}, 0
		for o := (service.ListOptions{Size: "4", Tags: c.tags}); ; {
			page, err := s.Joined(t.Context(), service.Target{Entity: entity.ConsumerGroupConsumers, Parent: &service.Parent{Entity: entity.ConsumerGroups, Field: "consumer_group", Ref: "gold"}}, o)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				seen[string(row)] = true
			}
			if pages++; page.Offset == "" {
				break
			}
			if o.Offset = page.Offset; len(page.Rows) != 4 {
				t.Errorf("%s: a page of %d", name, len(page.Rows))
			}
		}
		if len(seen) != c.want || pages != (c.want+3)/4 {
			t.Errorf("%s: %d rows on %d pages", name, len(seen), pages)
		}
	}
}

// A few rows need not wait for each other, nor for a large configuration.
func TestFewRowsDoNotWait(t *testing.T) {
	s, log := newService(service.Options{})
	log.Raise()
	rows := []service.Wanted{wanted(entity.ConsumerGroups, "name", "gold"), wanted(entity.ConsumerGroups, "name", "silver")}
	for i := range 20 {
		rows = append(rows, wanted("consumers", "username", fmt.Sprint("c", i)))
	}
	if _, err := s.Apply(t.Context(), service.Bulk{Rows: rows}); err != nil {
		t.Fatal(err)
	}
	begun, hold := make(chan bool), make(chan bool)
	log.BeforePropose = func(c command.Command) error {
		if op, ok := c.Op.(command.Stage); ok && op.Seq == 0 {
			begun <- true
			<-hold
		}
		return nil
	}
	var end sync.WaitGroup
	done := make(chan error, 1)
	go func() {
		_, err := s.Apply(t.Context(), service.Bulk{Merge: true, Rows: large(enough)})
		done <- err
	}()
	<-begun
	if _, err := s.Apply(t.Context(), service.Bulk{Merge: true, Rows: large(100)}); kind(err) != service.Busy {
		t.Errorf("a second large one: %v", err)
	}
	for i := range 20 {
		end.Go(func() {
			name := fmt.Sprint("c", i)
			if _, err := s.Apply(t.Context(), service.Bulk{Merge: true, Rows: []service.Wanted{
				wanted(entity.ConsumerGroupConsumers, "consumer", name, "consumer_group", "gold"), wanted(entity.ConsumerGroupConsumers, "consumer", name, "consumer_group", "silver"),
			}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	end.Wait()
	close(hold)
	if err := <-done; err != nil {
		t.Errorf("the large one: %v", err)
	}
	if n := count(t, s, entity.ConsumerGroupConsumers); n != 40 {
		t.Errorf("%d memberships", n)
	}
}

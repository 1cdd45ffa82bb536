package plugin_test

import (
	"context"
	"strings"
	"testing"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

func consumer(t *testing.T, g *plugintest.Gateway, username string) (*state.View, *entity.Consumer) {
	t.Helper()
	v := g.Env.Store.View()
	row, ok := state.TableOf[entity.Consumer](g.Env.Store).By(v, "username", username)
	if !ok {
		t.Fatalf("no consumer %s", username)
	}
	return v, &row.Val
}

func consumerID(c *entity.Consumer) string { return c.ID }

func TestDerived(t *testing.T) {
	g := plugintest.New(t)
	computed := 0
	count := func(*state.View, *entity.Consumer) *int { computed++; n := computed; return &n }
	ofACL := func(row any) string {
		if a, ok := row.(*entity.ACL); ok {
			return a.Consumer.ID
		}
		return ""
	}
	d := plugin.NewDerived(g.Env.Store, consumerID, count, ofACL)
	bob, carl := g.Consumer("bob"), g.Consumer("carl")
	want := func(step string, name string, n int) {
		t.Helper()
		v, c := consumer(t, g, name)
		if got := *d.Of(v, c.ID, c); got != n {
			t.Errorf("%s: value %d, want %d", step, got, n)
		}
	}
	want("first use", "bob", 1)
	want("kept", "bob", 1)
	want("another row", "carl", 2)
	g.Put("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(bob), "key": "k"})
	want("a change of something else", "bob", 1)
	g.Put("consumers", schema.Record{"id": bob, "username": "bob", "custom_id": "x"})
	want("a new version", "bob", 3)
	want("another row stays", "carl", 2)
	acl := g.Put("acls", schema.Record{"consumer": plugintest.Ref(bob), "group": "a"})
	want("a row that refers to it", "bob", 4)
	g.Put("acls", schema.Record{"id": acl, "consumer": plugintest.Ref(carl), "group": "a"})
	want("it refers elsewhere", "bob", 5)
	want("it refers here now", "carl", 6)
	g.Delete("acls", acl)
	want("it is gone", "carl", 7)
}

// A commit between computing a value and keeping it must not leave a stale value behind.
func TestDerivedRace(t *testing.T) {
	g := plugintest.New(t)
	bob := g.Consumer("bob")
	acls := state.TableOf[entity.ACL](g.Env.Store)
	commit := func() {}
	d := plugin.NewDerived(g.Env.Store, consumerID, func(v *state.View, c *entity.Consumer) *int {
		n := 0
		for range acls.Scan(v, "consumer", c.ID) {
			n++
		}
		commit()
		return &n
	}, nil)
	commit = func() {
		commit = func() {}
		g.Put("acls", schema.Record{"consumer": plugintest.Ref(bob), "group": "a"})
	}
	v, c := consumer(t, g, "bob")
	if n := *d.Of(v, c.ID, c); n != 0 {
		t.Fatalf("%d groups in the old view", n)
	}
	v, c = consumer(t, g, "bob")
	if n := *d.Of(v, c.ID, c); n != 1 {
		t.Errorf("%d groups in the new view, want 1", n)
	}
}

func TestTyped(t *testing.T) {
	type config struct {
		N    int      `json:"n"`
		Name string   `json:"name"`
		List []string `json:"list"`
	}
	var got config
	f := plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
		got = *c
		return nil, nil
	})
	if _, err := f(t.Context(), plugin.Env{}, plugin.Config{Record: schema.Record{"n": 128.0, "name": nil, "list": []any{"a"}}}); err != nil {
		t.Fatal(err)
	}
	if got.N != 128 || got.Name != "" || len(got.List) != 1 {
		t.Errorf("%+v", got)
	}
	_, err := f(t.Context(), plugin.Env{}, plugin.Config{ID: "p1", Record: schema.Record{"n": "x"}})
	if err == nil || !strings.Contains(err.Error(), "p1") {
		t.Errorf("%v", err)
	}
}

func TestSchemaOfScopes(t *testing.T) {
	for _, c := range []struct {
		scopes plugin.Scope
		want   string
	}{
		{0, "protocols config"},
		{plugin.ScopeAll, "protocols config"},
		{plugin.ScopeRoute | plugin.ScopeService, "consumer consumer_group protocols config"},
		{plugin.ScopeConsumer, "route service protocols config"},
	} {
		s := plugin.SchemaOf(plugin.Plugin{Info: plugin.Info{Name: "x", Scopes: c.scopes}})
		var names []string
		for _, f := range s.Fields {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("scopes %b: fields %s, want %s", c.scopes, got, c.want)
		}
	}
}

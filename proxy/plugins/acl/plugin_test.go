package acl

import (
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

type bench struct {
	*plugintest.Gateway
	bob, carl string // bob is in g1 and g2, carl in none
}

func newBench(t testing.TB) *bench {
	b := &bench{Gateway: plugintest.New(t)}
	b.bob, b.carl = b.Consumer("bob"), b.Consumer("carl")
	b.join(b.bob, "g2")
	b.join(b.bob, "g1")
	return b
}

func (b *bench) join(consumer, group string) string {
	return b.Put("acls", schema.Record{"consumer": plugintest.Ref(consumer), "group": group})
}

// request is one that was authenticated as a consumer; credential false: as the anonymous one.
func (b *bench) request(consumer string, credential bool, groups ...string) *exchange.Exchange {
	x := plugintest.Request("GET", "/", "X-Consumer-Groups: g9")
	x.Request.Header.Del("X-Consumer-Groups") // as the front end does for all identity headers
	x.Groups = groups
	if consumer != "" {
		x.Consumer = consumerOf(b, consumer)
	}
	if credential {
		x.SetCredential(exchange.Credential{ID: "c"})
	}
	return x
}

func consumerOf(b *bench, id string) *entity.Consumer {
	t, _ := b.Env.Store.Table("consumers")
	for row := range t.Scan(b.Env.Store.View(), "", "", [16]byte{}) {
		if c := row.Val.(*entity.Consumer); c.ID == id {
			return c
		}
	}
	return nil
}

var (
	denied  = plugin.Refuse(403, "You cannot consume this service", "")
	unknown = plugin.Refuse(401, "Unauthorized", "")
)

func TestAnswers(t *testing.T) {
	b := newBench(t)
	allow := func(g ...any) schema.Record { return schema.Record{"allow": g} }
	deny := func(g ...any) schema.Record { return schema.Record{"deny": g} }
	always := schema.Record{"allow": []any{"ext"}, "always_use_authenticated_groups": true}
	for _, c := range []struct {
		name   string
		config schema.Record
		x      *exchange.Exchange
		want   *plugin.Exit
		header string
		value  string
	}{
		{"in an allowed group", allow("g1"), b.request(b.bob, true), nil, "X-Consumer-Groups", "g1, g2"},
		{"in one of several", allow("x", "g2"), b.request(b.bob, true), nil, "X-Consumer-Groups", "g1, g2"},
		{"not in the group", allow("x"), b.request(b.bob, true), denied, "", ""},
		{"groups have case", allow("G1"), b.request(b.bob, true), denied, "", ""},
		{"in a denied group", deny("g1"), b.request(b.bob, true), denied, "", ""},
		{"not in a denied group", deny("x"), b.request(b.bob, true), nil, "X-Consumer-Groups", "g1, g2"},
		{"header hidden", schema.Record{"allow": []any{"g1"}, "hide_groups_header": true}, b.request(b.bob, true), nil, "X-Consumer-Groups", ""},
		{"consumer without groups, allow", allow("g1"), b.request(b.carl, true), denied, "", ""},
		{"consumer without groups, deny", deny("g1"), b.request(b.carl, true), nil, "X-Consumer-Groups", ""},
		{"anonymous consumer without groups, allow", allow("g1"), b.request(b.carl, false), unknown, "", ""},
		{"anonymous consumer in the group", allow("g1"), b.request(b.bob, false), nil, "X-Consumer-Groups", "g1, g2"},
		{"nobody", allow("g1"), b.request("", false), unknown, "", ""},
		{"nobody, deny", deny("g1"), b.request("", false), unknown, "", ""},
		{"credential without consumer", allow("g1"), b.request("", true), denied, "", ""},
		{"authenticated groups", allow("ext"), b.request("", true, "ext", "b"), nil, "X-Authenticated-Groups", "ext, b"},
		{"authenticated groups, not allowed", allow("x"), b.request("", true, "ext"), denied, "", ""},
		{"authenticated groups beat anonymous ones", allow("ext"), b.request(b.bob, false, "ext"), nil, "X-Authenticated-Groups", "ext"},
		{"consumer groups beat authenticated ones", allow("ext"), b.request(b.bob, true, "ext"), denied, "", ""},
		{"unless always_use_authenticated_groups", always, b.request(b.bob, true, "ext"), nil, "X-Authenticated-Groups", "ext"},
		{"always, but there are none", always, b.request(b.bob, true), denied, "", ""},
		{"A6 a group from a header does not count", allow("g9"), b.request(b.bob, true), denied, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, plugintest.Access(t, c.x, b.Build(Plugin(), c.config))); diff != "" {
				t.Error(diff)
			}
			if c.header != "" && c.x.Request.Header.Get(c.header) != c.value {
				t.Errorf("%s: %q, want %q", c.header, c.x.Request.Header.Get(c.header), c.value)
			}
		})
	}
}

func TestMembershipChanges(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{"allow": []any{"g3"}})
	try := func() *plugin.Exit { return plugintest.Access(t, b.request(b.bob, true), i) }
	if try() == nil {
		t.Fatal("bob is not in g3 yet")
	}
	id := b.join(b.bob, "g3")
	if e := try(); e != nil {
		t.Errorf("bob has joined g3: %v", e.Body)
	}
	b.Put("consumers", schema.Record{"id": b.bob, "username": "robert"})
	if e := try(); e != nil {
		t.Errorf("a new name does not change groups: %v", e.Body)
	}
	b.Delete("acls", id)
	if try() == nil {
		t.Error("bob has left g3")
	}
	// A row that moves to another consumer.
	id = b.join(b.bob, "g3")
	if try() != nil {
		t.Error("bob is back")
	}
	b.Put("acls", schema.Record{"id": id, "consumer": plugintest.Ref(b.carl), "group": "g3"})
	if try() == nil {
		t.Error("carl has taken bob's place")
	}
}

// Memberships are kept, and rows' texts lie in large blocks of the store: one of them would keep its block.
func TestKeepsNoTextOfRows(t *testing.T) {
	b := newBench(t)
	b.join(b.bob, "g9")
	v := b.Env.Store.View()
	m := memberships(b.Env.Store).Of(v, b.bob, consumerOf(b, b.bob))
	for row := range state.TableOf[entity.ACL](b.Env.Store).Scan(v, "consumer", b.bob) {
		for _, g := range m.groups {
			if unsafe.StringData(g) == unsafe.StringData(row.Val.Group) {
				t.Errorf("%q is not a copy of its own", g)
			}
		}
	}
	if !slices.Contains(m.groups, "g9") {
		t.Errorf("groups %v", m.groups)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		config schema.Record
		want   string
	}{
		{schema.Record{"allow": []any{"a"}, "deny": []any{"b"}}, "schema violation (exactly one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{schema.Record{}, "2 schema violations (exactly one of these fields must be non-empty: 'config.allow', 'config.deny'; at least one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{schema.Record{"deny": []any{"b"}, "whitelist": []any{"a"}}, "schema violation (config.whitelist: unknown field)"},
	} {
		_, errs := plugintest.Validate(Plugin(), c.config)
		if got := errs.Message(); got != c.want {
			t.Errorf("%v: %q, want %q", c.config, got, c.want)
		}
	}
}

func BenchmarkAccess(b *testing.B) {
	g := newBench(b)
	i := g.Build(Plugin(), schema.Record{"allow": []any{"g1"}}).(plugin.Accessor)
	x := g.request(g.bob, true)
	b.ReportAllocs()
	for b.Loop() {
		if err := i.Access(x); err != nil {
			b.Fatal(err)
		}
	}
}

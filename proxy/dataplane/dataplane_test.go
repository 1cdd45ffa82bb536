package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/dataplane"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/router"
	"concord/test/harness"
)

// probe is a plugin whose instances count their lives.
type probe struct{ made, stopped, closed atomic.Int64 }

type probeInstance struct{ p *probe }

func (probeInstance) Access(*exchange.Exchange) error { return nil }
func (i probeInstance) Stop()                         { i.p.stopped.Add(1) }
func (i probeInstance) Close(context.Context) error   { i.p.closed.Add(1); return nil }
func (p *probe) plugin(name string, prio int) plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{Name: name, Priority: prio},
		New: func(_ context.Context, _ plugin.Env, c plugin.Config) (plugin.Instance, error) {
			if c.Record["fail"] == true {
				return nil, errors.New("config.fail: told to")
			}
			if c.Record["panic"] == true {
				panic("told to")
			}
			p.made.Add(1)
			return probeInstance{p}, nil
		},
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func compiler(t testing.TB, db *fx.DB, p *probe) *dataplane.Compiler {
	t.Helper()
	c := dataplane.New(dataplane.Options{
		Store: db.Store, Log: quiet(),
		Plugins: []plugin.Plugin{p.plugin("a", 30), p.plugin("b", 20), p.plugin("c", 20), p.plugin("d", 10)},
	})
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func wait(t testing.TB, c *dataplane.Compiler, index uint64) *dataplane.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := c.Holder().Wait(ctx, index); err != nil {
		t.Fatalf("index %d was not published: %v", index, err)
	}
	return c.Holder().Load()
}

func find(s *dataplane.Snapshot, path string) string {
	t, ok := s.Find(&router.Query{Method: "GET", Path: path, Header: &exchange.Header{}})
	if !ok {
		return "none " + chain(s.Global().Steps)
	}
	svc := "-"
	if t.Service != nil {
		svc = t.Service.Entity.Name
	}
	return t.Entity.Name + " " + svc + " " + chain(t.Chain.Steps)
}

func chain(steps []*dataplane.Step) string {
	var ids []string
	for _, s := range steps {
		for _, n := range names {
			if fx.ID(n) == s.ID {
				ids = append(ids, n)
			}
		}
	}
	return strings.Join(ids, ",")
}

// names are the plugin rows of these tests.
var names = []string{"global", "svc", "route", "route+svc", "cons", "cons+route", "cons+svc", "all3", "b", "c", "d", "other",
	"group", "group+route", "group+svc", "group3"}

// own are the steps that a consumer brings.
func own(s *dataplane.Snapshot, consumer string) []*dataplane.Step {
	return s.ConsumerSteps(fx.ID(consumer), new([]*dataplane.Step))
}

// One configuration per plugin name runs: the most specific scope wins (Kong, twelve levels).
func TestScopePrecedence(t *testing.T) {
	rows := map[string]*entity.Plugin{
		"all3":       fx.Plugin("all3", "a", "{}", "r", "s", "bob"),
		"cons+route": fx.Plugin("cons+route", "a", "{}", "r", "", "bob"),
		"cons+svc":   fx.Plugin("cons+svc", "a", "{}", "", "s", "bob"),
		"route+svc":  fx.Plugin("route+svc", "a", "{}", "r", "s", ""),
		"cons":       fx.Plugin("cons", "a", "{}", "", "", "bob"),
		"route":      fx.Plugin("route", "a", "{}", "r", "", ""),
		"svc":        fx.Plugin("svc", "a", "{}", "", "s", ""),
		"global":     fx.Plugin("global", "a", "{}", "", "", ""),

		"group3":      fx.ForGroup("gold", fx.Plugin("group3", "a", "{}", "r", "s", "")),
		"group+route": fx.ForGroup("gold", fx.Plugin("group+route", "a", "{}", "r", "", "")),
		"group+svc":   fx.ForGroup("gold", fx.Plugin("group+svc", "a", "{}", "", "s", "")),
		"group":       fx.ForGroup("gold", fx.Plugin("group", "a", "{}", "", "", "")),
	}
	order := []string{"all3", "group3", "cons+route", "cons+svc", "group+route", "group+svc", "route+svc", "cons", "group", "route", "svc", "global"}
	db := fx.New(t)
	db.Put(fx.Service("s", "h", 80), fx.Route("r", "s", "/r"), fx.Route("r2", "", "/q"), fx.Consumer("bob"), fx.Group("gold"), fx.Member("gold", "bob"))
	c := compiler(t, db, &probe{})
	for _, n := range order {
		db.Put(rows[n])
	}
	for i, n := range order {
		for _, gone := range order[:i] { // disabled rows do not take part
			rows[gone].Enabled = false
			db.Put(rows[gone])
		}
		s := wait(t, c, db.View().Index())
		target, ok := s.Find(&router.Query{Method: "GET", Path: "/r", Header: &exchange.Header{}})
		if !ok {
			t.Fatal("no route")
		}
		got := dataplane.Choose(nil, target.Chain.Steps, own(s, "bob"), fx.ID("r"), fx.ID("s"), nil)
		if chain(got) != n {
			t.Errorf("without %v: %q runs, want %q", order[:i], chain(got), n)
		}
	}
}

// Of two groups with the same claim the first by name wins. Memberships, names and plugins of groups take effect one by one.
func TestGroups(t *testing.T) {
	db := fx.New(t)
	db.Put(fx.Service("s", "h", 80), fx.Route("r", "s", "/r"), fx.Consumer("bob"), fx.Group("gold"), fx.Group("silver"), fx.Plugin("global", "a", "{}", "", "", ""))
	c := compiler(t, db, &probe{})
	runs := func(what, consumer, want string) {
		t.Helper()
		s := wait(t, c, db.View().Index())
		target, _ := s.Find(&router.Query{Method: "GET", Path: "/r", Header: &exchange.Header{}})
		if got := chain(dataplane.Choose(nil, target.Chain.Steps, own(s, consumer), fx.ID("r"), fx.ID("s"), nil)); got != want {
			t.Errorf("%s: %q runs, want %q", what, got, want)
		}
	}
	db.Put(fx.ForGroup("silver", fx.Plugin("group", "a", "{}", "", "", "")))
	runs("not a member", "bob", "global")
	db.Put(fx.Member("silver", "bob"))
	runs("a member", "bob", "group")
	runs("someone else", "carl", "global")
	db.Put(fx.Member("gold", "bob"))
	runs("a group without plugins", "bob", "group")
	db.Put(fx.ForGroup("gold", fx.Plugin("other", "a", "{}", "", "", "")), fx.ForGroup("gold", fx.Plugin("d", "d", "{}", "", "", "")))
	runs("the first by name", "bob", "other,d")
	db.Put(&entity.ConsumerGroup{ID: fx.ID("gold"), Name: "zinc"})
	runs("renamed", "bob", "group,d")
	db.Put(fx.ForGroup("gold", fx.Plugin("group+svc", "a", "{}", "", "s", "")))
	runs("more specific", "bob", "group+svc,d")
	db.Put(fx.Plugin("cons", "d", "{}", "", "", "bob"))
	runs("the consumer's own", "bob", "group+svc,cons")
	db.Delete(fx.Plugin("group+svc", "", "", "", "", ""), fx.Plugin("cons", "", "", "", "", ""))
	runs("gone again", "bob", "group,d")
	db.Delete(fx.Member("silver", "bob"))
	runs("left", "bob", "other,d")
	db.Delete(fx.Member("gold", "bob"), fx.Plugin("group", "", "", "", "", ""))
	runs("left all", "bob", "global")
}

// What a consumer in several groups brings is put together without allocating.
func TestGroupsAllocateNothing(t *testing.T) {
	db := fx.New(t)
	rows := []any{fx.Consumer("bob"), fx.Consumer("carl"), fx.Plugin("cons", "a", "{}", "", "", "bob")}
	for i := range 4 {
		g := fmt.Sprint("g", i)
		rows = append(rows, fx.Group(g), fx.Member(g, "bob"), fx.ForGroup(g, fx.Plugin(g+"a", "a", "{}", "", "", "")), fx.ForGroup(g, fx.Plugin(g+"b", "b", "{}", "", "", "")))
	}
	s := wait(t, compiler(t, db, &probe{}), db.Put(rows...))
	buf := make([]*dataplane.Step, 0, 16)
	for _, name := range []string{"bob", "carl"} {
		id := fx.ID(name)
		harness.NoAllocs(t, name, func() { s.ConsumerSteps(id, &buf) })
	}
	if got := len(own(s, "bob")); got != 9 {
		t.Errorf("%d steps", got)
	}
}

func TestRunningOrder(t *testing.T) {
	db := fx.New(t)
	db.Put(fx.Service("s", "h", 80), fx.Route("r", "s", "/r"),
		fx.Plugin("d", "d", "{}", "", "", ""), fx.Plugin("b", "b", "{}", "r", "", ""), fx.Plugin("c", "c", "{}", "", "s", ""), fx.Plugin("global", "a", "{}", "", "", ""),
		fx.Plugin("cons", "d", "{}", "", "", "bob"), fx.Plugin("cons+svc", "b", "{}", "", "s", "bob"), fx.Plugin("other", "c", "{}", "r2", "", "bob"))
	s := wait(t, compiler(t, db, &probe{}), 1)
	if got, want := find(s, "/r"), "r s global,c,b,d"; got != want { // equal priority: name descending
		t.Errorf("%q, want %q", got, want)
	}
	target, _ := s.Find(&router.Query{Path: "/r", Header: &exchange.Header{}})
	own := own(s, "bob")
	if got, want := chain(dataplane.Choose(nil, target.Chain.Steps, own, fx.ID("r"), fx.ID("s"), nil)), "global,c,cons+svc,cons"; got != want {
		t.Errorf("for the consumer %q, want %q", got, want)
	}
	// A consumer found by plugin c changes what runs behind c only.
	if got, want := chain(dataplane.Choose(nil, target.Chain.Steps, own, fx.ID("r"), fx.ID("s"), target.Chain.Steps[2])), "cons"; got != want {
		t.Errorf("behind b %q, want %q", got, want)
	}
}

func TestDisabledService(t *testing.T) {
	db := fx.New(t)
	svc := fx.Service("s", "h", 80)
	db.Put(svc, fx.Route("r", "s", "/r"))
	c := compiler(t, db, &probe{})
	for _, on := range []bool{true, false, true} {
		svc.Enabled = on
		s := wait(t, c, db.Put(svc))
		if got, want := find(s, "/r"), map[bool]string{true: "r s ", false: "none "}[on]; got != want {
			t.Errorf("enabled %t: %q, want %q", on, got, want)
		}
	}
}

func TestInstancesAreReusedAndClosed(t *testing.T) {
	db := fx.New(t)
	p := &probe{}
	c := compiler(t, db, p)
	row := fx.Plugin("global", "a", `{"x":1}`, "", "", "")
	db.Put(row, fx.Service("s", "h", 80), fx.Route("r", "s", "/r"))
	wait(t, c, 1)

	row.Tags = []string{"t"}
	db.Put(row)
	wait(t, c, db.Put(fx.Plugin("svc", "a", "{}", "", "s", "")))
	if n := p.made.Load(); n != 2 {
		t.Fatalf("%d instances, want 2: unchanged rows keep theirs", n)
	}

	pinned := c.Holder().Pin(7)
	row.Config = []byte(`{"x":2}`)
	wait(t, c, db.Put(row))
	time.Sleep(3 * 500 * time.Millisecond / 2)
	if n := p.closed.Load(); n != 0 {
		t.Fatal("closed while an exchange uses it")
	}
	pinned.Unpin(7)
	eventually(t, func() bool { return p.closed.Load() == 1 })
	wait(t, c, db.Delete(row))
	eventually(t, func() bool { return p.closed.Load() == 2 })
}

// A plugin may write while it closes, and whoever writes waits until the data plane has it: the compiler must not wait for the plugin.
func TestClosingDoesNotHoldUpTheCompiler(t *testing.T) {
	db := fx.New(t)
	begun, end := make(chan struct{}), make(chan struct{})
	slow := plugin.Plugin{Info: plugin.Info{Name: "slow"}, New: func(context.Context, plugin.Env, plugin.Config) (plugin.Instance, error) {
		return closer(func() { close(begun); <-end }), nil
	}}
	row := fx.Plugin("global", "slow", "{}", "", "", "")
	db.Put(row)
	c := dataplane.New(dataplane.Options{Store: db.Store, Log: quiet(), Plugins: []plugin.Plugin{slow}})
	t.Cleanup(func() { close(end); c.Close(context.Background()) })
	db.Delete(row)
	<-begun
	wait(t, c, db.Put(fx.Service("s", "h", 80)))
}

type closer func()

func (f closer) Close(context.Context) error { f(); return nil }

// A tunnel that stays open through many changes keeps the configuration it began with, and none of those that came and went.
func TestLongExchangeKeepsOneSnapshot(t *testing.T) {
	db := fx.New(t)
	p := &probe{}
	c := compiler(t, db, p)
	row := fx.Plugin("global", "a", `{"x":0}`, "", "", "")
	wait(t, c, db.Put(row, fx.Service("s", "h", 80), fx.Route("r", "s", "/r")))
	pinned := c.Holder().Pin(3)
	for i := range 50 {
		row.Config = fmt.Appendf(nil, `{"x":%d}`, i+1)
		wait(t, c, db.Put(row))
	}
	eventually(t, func() bool { return c.Stats().Retired == 1 && p.stopped.Load() == 50 })
	if n := p.closed.Load(); n != 0 {
		t.Errorf("%d instances closed while the exchange may use them", n)
	}
	pinned.Unpin(3)
	eventually(t, func() bool { return c.Stats().Retired == 0 && p.closed.Load() == 50 })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen")
		}
	}
}

// What cannot be built is reported and does not disturb the rest; a plugin that cannot be built refuses instead of
// letting everybody in.
func TestBrokenRows(t *testing.T) {
	db := fx.New(t)
	bad := fx.Route("bad", "s", "~/(")
	plug := fx.Plugin("route", "a", `{"fail":true}`, "r", "", "")
	db.Put(fx.Service("s", "h", 80), fx.Route("r", "s", "/r"), bad, plug,
		fx.Plugin("svc", "a", `{"panic":true}`, "", "s", ""), fx.Plugin("global", "unknown", "{}", "", "", ""))
	c := compiler(t, db, &probe{})
	want := map[string]string{
		bad.ID:          "paths: invalid regex \"~/(\": error parsing regexp: missing closing ): `/(`",
		plug.ID:         "config.fail: told to",
		fx.ID("svc"):    "config: plugin a failed to start: told to",
		fx.ID("global"): `name: plugin "unknown" is not part of this program`,
	}
	if d := cmp.Diff(want, c.Broken()); d != "" {
		t.Error(d)
	}
	s := c.Holder().Load()
	if got := find(s, "/r"); got != "r s global,route" {
		t.Errorf("%q", got)
	}
	if err := s.Global().Steps[0].Accessor.Access(nil); err == nil {
		t.Error("a plugin that was not built lets requests pass")
	}
	plug.Config = []byte("{}")
	wait(t, c, db.Put(plug))
	wait(t, c, db.Delete(bad, &entity.Plugin{ID: fx.ID("svc")}, &entity.Plugin{ID: fx.ID("global")}))
	if b := c.Broken(); len(b) != 0 {
		t.Errorf("still broken: %v", b)
	}
}

func TestDryBuild(t *testing.T) {
	db := fx.New(t)
	p := &probe{}
	c := compiler(t, db, p)
	for _, x := range []struct {
		row  any
		want string
	}{
		{fx.Route("r", "", "~/("), "paths: invalid regex \"~/(\": error parsing regexp: missing closing ): `/(`"},
		{fx.Route("r", "", "/x"), ""},
		{fx.Plugin("p", "a", `{"fail":true}`, "", "", ""), "config.fail: told to"},
		{fx.Plugin("p", "nope", `{}`, "", "", ""), `name: plugin "nope" is not part of this program`},
		{fx.Plugin("p", "a", `{}`, "", "", ""), ""},
		{(*entity.Plugin)(nil), ""},
	} {
		err := c.DryBuild(context.Background(), []state.Change{{New: x.row}})
		if fmt.Sprint(err) != x.want && (err != nil || x.want != "") {
			t.Errorf("%+v: %v, want %s", x.row, err, x.want)
		}
	}
	if p.made.Load() != 1 || p.closed.Load() != 1 {
		t.Errorf("made %d, closed %d: want 1, 1", p.made.Load(), p.closed.Load())
	}
}

// Changes of consumers and credentials move the index and nothing else.
func TestCredentialsRebuildNothing(t *testing.T) {
	db := fx.New(t)
	db.Put(fx.Service("s", "h", 80), fx.Route("r", "s", "/r"))
	c := compiler(t, db, &probe{})
	before, n := c.Holder().Load(), c.Stats().Compilations
	index := db.Put(fx.Consumer("bob"))
	after := wait(t, c, index)
	if before != after || c.Stats().Compilations != n {
		t.Error("compiled although nothing changed")
	}
	if got := c.Holder().PublishedIndex(); got != index {
		t.Errorf("published %d, want %d", got, index)
	}
}

// Rows for streams are not the proxy's.
func TestStreamRows(t *testing.T) {
	db := fx.New(t)
	route, plug := fx.Route("r", "", "/r"), fx.Plugin("global", "a", "{}", "", "", "")
	route.Protocols, plug.Protocols = []string{"tcp"}, []string{"tcp", "tls"}
	db.Put(route, plug)
	c := compiler(t, db, &probe{})
	if got := find(c.Holder().Load(), "/r"); got != "none " {
		t.Errorf("%q", got)
	}
	route.Protocols, plug.Protocols = []string{"http"}, []string{"tcp", "grpc"}
	if got := find(wait(t, c, db.Put(route, plug)), "/r"); got != "r - global" {
		t.Errorf("%q", got)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	c := compiler(t, fx.New(t), &probe{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Holder().Wait(ctx, 99); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestSecretParams(t *testing.T) {
	db := fx.New(t)
	db.Put(fx.Plugin("global", "a", `{"key_names":["apikey","x"],"uri_param_names":["jwt"]}`, "", "", ""))
	got := compiler(t, db, &probe{}).Holder().Load().Global().SecretParams
	if want := []string{"apikey", "jwt", "x"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// After any history the incremental compiler serves what one that starts from the store's content serves.
func TestIncrementalEqualsFull(t *testing.T) {
	services := []string{"s1", "s2", "s3"}
	routes := []string{"r1", "r2", "r3", "r4"}
	groups := []string{"g1", "g2", "g3"}
	rapid.Check(t, func(rt *rapid.T) {
		db := fx.New(t)
		c := dataplane.New(dataplane.Options{Store: db.Store, Log: quiet(), Plugins: (&probe{}).two()})
		defer c.Close(context.Background())
		pick := func(name string, from []string) string { return rapid.SampledFrom(from).Draw(rt, name) }
		maybe := func(name string, from []string) string { return pick(name, append([]string{""}, from...)) }
		for i := range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.IntRange(0, 7).Draw(rt, "what") {
			case 0:
				s := fx.Service(pick("svc", services), "h", 80)
				s.Enabled = rapid.Bool().Draw(rt, "enabled")
				db.Put(s)
			case 1:
				name := pick("route", routes)
				db.Put(fx.Route(name, maybe("svc", services), "/"+name, "~/re/"+name))
			case 2, 3:
				r, s, u := maybe("route", routes), maybe("svc", services), maybe("consumer", []string{"u"})
				name := pick("plugin", []string{"a", "b"})
				p := fx.Plugin(name+r+s+u, name, fmt.Sprintf(`{"v":%d}`, i%2), r, s, u)
				if u == "" {
					g := maybe("group", groups)
					p.ID, p.Group = fx.ID(name+r+s+g), fx.Ref(g)
				}
				p.Enabled = rapid.IntRange(0, 3).Draw(rt, "on") > 0
				db.Put(p)
			case 4:
				db.Delete(fx.Route(pick("route", routes), ""))
			case 5:
				r, s, u, name := maybe("route", routes), maybe("svc", services), maybe("owner", []string{"u", "g1", "g2", "g3"}), pick("plugin", []string{"a", "b"})
				db.Delete(fx.Plugin(name+r+s+u, name, "", r, s, u))
			case 6:
				m := fx.Member(pick("group", groups), "u")
				if rapid.Bool().Draw(rt, "leave") {
					db.Delete(m)
				} else {
					db.Put(m)
				}
			case 7: // renamed, which changes their order
				db.Put(&entity.ConsumerGroup{ID: fx.ID(pick("group", groups)), Name: fmt.Sprint(rapid.IntRange(0, 9).Draw(rt, "name"), i)})
			}
			if rapid.IntRange(0, 2).Draw(rt, "settle") > 0 {
				continue
			}
			full := dataplane.New(dataplane.Options{Store: db.Store, Log: quiet(), Plugins: (&probe{}).two()})
			inc, all := wait(t, c, db.View().Index()), full.Holder().Load()
			for _, r := range append(routes, "none") {
				for _, path := range []string{"/" + r + "/x", "/re/" + r} {
					if a, b := describe(inc, path), describe(all, path); a != b {
						rt.Fatalf("%s: incremental %s, full %s", path, a, b)
					}
				}
			}
			full.Close(context.Background())
		}
	})
}

func (p *probe) two() []plugin.Plugin {
	return []plugin.Plugin{p.plugin("a", 30), p.plugin("b", 20)}
}

func describe(s *dataplane.Snapshot, path string) string {
	ids := func(steps []*dataplane.Step) (out []string) {
		for _, x := range steps {
			out = append(out, x.ID)
		}
		return out
	}
	t, ok := s.Find(&router.Query{Method: "GET", Path: path, Header: &exchange.Header{}})
	if !ok {
		return fmt.Sprint("none", ids(s.Global().Steps))
	}
	svc := ""
	if t.Service != nil {
		svc = t.Service.Entity.ID
	}
	mine := dataplane.Choose(nil, t.Chain.Steps, own(s, "u"), t.Entity.ID, svc, nil)
	return fmt.Sprint(t.Entity.Name, svc, ids(t.Chain.Steps), ids(mine), ids(s.Global().Steps))
}

// A change of one route among very many costs what the change is worth.
func TestOneRouteAmongManyIsCheap(t *testing.T) {
	db := fx.New(t)
	rows := []any{fx.Service("s", "h", 80)}
	const n = 20000
	for i := range n {
		rows = append(rows, fx.Route(fmt.Sprint("r", i), "s", fmt.Sprint("/r", i)))
	}
	db.Put(rows...)
	c := compiler(t, db, &probe{})
	full, best := c.Stats().Last, time.Hour
	for i := range 50 {
		wait(t, c, db.Put(fx.Route("r7", "s", fmt.Sprint("/changed", i))))
		eventually(t, func() bool { return c.Stats().Compilations == uint64(i)+2 })
		best = min(best, c.Stats().Last)
	}
	t.Logf("%d routes: all %v, one %v", n, full, best)
	if best > full/50 {
		t.Errorf("one route took %v, all %d of them %v", best, n, full)
	}
}

func BenchmarkChangeOneRouteOf100000(b *testing.B) {
	db := fx.New(b)
	rows := []any{fx.Service("s", "h", 80), fx.Plugin("p", "a", "{}", "", "s", "")}
	for i := range 100_000 {
		rows = append(rows, fx.Route(fmt.Sprint("r", i), "s", fmt.Sprint("/r", i)))
	}
	db.Put(rows...)
	c := compiler(b, db, &probe{})
	start := c.Stats()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		wait(b, c, db.Put(fx.Route("r7", "s", fmt.Sprint("/changed", i))))
		i++
	}
	end := c.Stats()
	b.ReportMetric(float64((end.Total-start.Total).Microseconds())/float64(end.Compilations-start.Compilations), "µs/compile")
}

// A large change leaves the processors to the requests again and again, which find what was there before until all of it is compiled.
func TestYield(t *testing.T) {
	const many = 300
	db := fx.New(t)
	db.Put(fx.Service("s", "h", 80), fx.Route("old", "s", "/old"))
	var calls, partly atomic.Int64
	var holder atomic.Pointer[dataplane.Holder]
	c := dataplane.New(dataplane.Options{Store: db.Store, Log: quiet(), Yield: func() {
		calls.Add(1)
		if h := holder.Load(); h != nil && h.Load().Routes() != 1 {
			partly.Add(1)
		}
	}})
	t.Cleanup(func() { c.Close(context.Background()) })
	calls.Store(0)
	holder.Store(c.Holder())
	var rows []any
	for i := range many {
		rows = append(rows, fx.Route(fmt.Sprint("r", i), "s", fmt.Sprint("/r/", i)))
	}
	s := wait(t, c, db.Put(rows...))
	if got := s.Routes(); got != many+1 {
		t.Errorf("%d routes are served", got)
	}
	if calls.Load() < many || partly.Load() > 0 {
		t.Errorf("yielded %d times while %d routes were compiled; %d times some of them were served", calls.Load(), many, partly.Load())
	}
}

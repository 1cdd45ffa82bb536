package proxy_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy"
	"concord/proxy/dataplane"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/test/harness"
)

// keyed authenticates by the header that its configuration names, as key-auth does.
func keyed(name string, priority int) plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{Name: name, Priority: priority},
		New: func(_ context.Context, env plugin.Env, c plugin.Config) (plugin.Instance, error) {
			anonymous, _ := c.Record["anonymous"].(string)
			return &keyInstance{
				auth: plugin.NewAuth(env, anonymous), header: c.Record["header"].(string),
				credentials: state.TableOf[entity.KeyAuthCredential](env.Store),
			}, nil
		},
	}
}

type keyInstance struct {
	auth        *plugin.Auth
	header      string
	credentials *state.Table[entity.KeyAuthCredential]
}

func (k *keyInstance) Access(x *exchange.Exchange) error { return k.auth.Access(x, k) }

var refused = plugin.Refuse(401, "No", `Key realm="x"`)

func (k *keyInstance) Authenticate(x *exchange.Exchange, v *state.View) *plugin.Exit {
	row, ok := k.credentials.By(v, "key", x.Request.Header.Get(k.header))
	if !ok || !k.auth.Accept(x, v, row.Val.Consumer, exchange.Credential{ID: row.Val.ID, Identifier: row.Val.ID, Kind: "key"}) {
		return refused
	}
	return nil
}

func key(consumer, key string) *entity.KeyAuthCredential {
	return &entity.KeyAuthCredential{ID: fx.ID("key " + key), Key: key, Consumer: *fx.Ref(consumer)}
}

// trace records which configurations ran in which phase.
type trace struct {
	mu  sync.Mutex
	ran map[string][]string
}

func (tr *trace) plugin(name string, priority int) plugin.Plugin {
	return hooked(name, priority, func(c plugin.Config) hook {
		id := c.Record["id"].(string)
		note := func(phase string) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			tr.ran[phase] = append(tr.ran[phase], id)
		}
		return hook{
			access: func(*exchange.Exchange) error { note("access"); return nil },
			head:   func(*exchange.Exchange) error { note("head"); return nil },
			log:    func(*exchange.Exchange) { note("log") },
		}
	})
}

// take waits until n log phases ran and returns what ran since the last time, as "access; head; log".
func (tr *trace) take(t *testing.T, n int) string {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		tr.mu.Lock()
		if len(tr.ran["log"]) >= n {
			s := strings.Join(tr.ran["access"], " ") + "; " + strings.Join(tr.ran["head"], " ") + "; " + strings.Join(tr.ran["log"], " ")
			clear(tr.ran)
			tr.mu.Unlock()
			return s
		}
		tr.mu.Unlock()
		if time.Now().After(end) {
			t.Fatal("log phases did not run")
		}
	}
}

func TestConsumerScopedPlugins(t *testing.T) {
	tr := &trace{ran: map[string][]string{}}
	g := start(t, nil, tr.plugin("above", 2000), keyed("auth1", 1000), tr.plugin("between", 900), keyed("auth2", 800), tr.plugin("below", 10), tr.plugin("extra", 5))
	row := func(id, name, route, consumer string) *entity.Plugin {
		return fx.Plugin(id, name, `{"id":"`+id+`"}`, route, "", consumer)
	}
	g.put(fx.Consumer("bob"), key("bob", "b"), fx.Consumer("eve"), key("eve", "e"),
		fx.Route("one", "svc", "/one"), fx.Plugin("k1", "auth1", `{"header":"k1"}`, "one", "", ""),
		fx.Route("two", "svc", "/two"), fx.Plugin("k2", "auth1", `{"header":"k1"}`, "two", "", ""), fx.Plugin("k3", "auth2", `{"header":"k2"}`, "two", "", ""),
		row("above", "above", "", ""), row("between", "between", "", ""), row("below", "below", "", ""),
		row("above-bob", "above", "", "bob"), row("between-bob", "between", "", "bob"), row("below-bob", "below", "", "bob"), row("extra-bob", "extra", "one", "bob"),
		row("below-eve", "below", "", "eve"))
	for _, c := range []struct {
		name string
		path string
		head []string
		n    int
		want string
	}{
		{"nobody: what would have run below is still collected", "/one", nil, 3, "above; above between below; above between below"},
		{"bob: his own configurations below the plugin that found him", "/one", []string{"k1: b"}, 4,
			"above between-bob below-bob extra-bob; above between-bob below-bob extra-bob; above between-bob below-bob extra-bob"},
		{"eve", "/one", []string{"k1: e"}, 3, "above between below-eve; above between below-eve; above between below-eve"},
		{"both must pass; the last one decides who it is", "/two", []string{"k1: b", "k2: e"}, 3,
			"above between-bob below-eve; above between-bob below-eve; above between-bob below-eve"},
		{"no route: global plugins, without access", "/none", nil, 3, "; above between below; above between below"},
	} {
		g.get(c.path, c.head...)
		if got := tr.take(t, c.n); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestAuthenticationAndOr(t *testing.T) {
	g := start(t, nil, keyed("auth1", 1000), keyed("auth2", 800))
	g.put(fx.Consumer("bob"), key("bob", "b"), fx.Consumer("eve"), key("eve", "e"), fx.Consumer("anon"),
		fx.Route("and", "svc", "/and"), fx.Plugin("a1", "auth1", `{"header":"k1"}`, "and", "", ""), fx.Plugin("a2", "auth2", `{"header":"k2"}`, "and", "", ""),
		fx.Route("or", "svc", "/or"), fx.Plugin("o1", "auth1", `{"header":"k1","anonymous":"anon"}`, "or", "", ""), fx.Plugin("o2", "auth2", `{"header":"k2","anonymous":"anon"}`, "or", "", ""),
		fx.Route("bad", "svc", "/bad"), fx.Plugin("b1", "auth1", `{"header":"k1","anonymous":"ghost"}`, "bad", "", ""))
	for _, c := range []struct {
		req  string
		want string // status, or consumer and whether anonymous
	}{
		{"/and", "401"}, {"/and k1: b", "401"}, {"/and k2: b", "401"}, {"/and|k1: b|k2: e", "eve "},
		{"/or", "anon true"}, {"/or|k1: b", "bob "}, {"/or|k2: e", "eve "}, {"/or|k1: b|k2: e", "bob "}, {"/or|k1: zzz|k2: e", "eve "}, {"/or|k1: b|k2: zzz", "bob "},
		{"/or|k1: zzz|k2: zzz|X-Consumer-Username: root|X-Anonymous-Consumer: false", "anon true"},
		{"/bad", "500"},
	} {
		parts := strings.Split(strings.ReplaceAll(c.req, " k", "|k"), "|")
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		a := g.get(parts[0], parts[1:]...)
		got := fmt.Sprint(a.StatusCode)
		if a.StatusCode == 200 {
			got = a.saw("X-Consumer-Username") + " " + a.saw("X-Anonymous-Consumer")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.req, got, c.want)
		}
		if a.StatusCode == 401 && a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: 401 without WWW-Authenticate", c.req)
		}
	}
}

// instant is an upstream without a network.
type instant struct{ requests int }

func (u *instant) RoundTrip(x *exchange.Exchange) error {
	u.requests++
	x.SentAt, x.HeadersAt = x.Start, x.Start
	p := &x.Response
	p.Status = 200
	p.Header.Fields = append(p.Header.Fields, exchange.Field{Name: "Server", Value: "up"}, exchange.Field{Name: "Content-Type", Value: "text/plain"})
	p.SetBody(hello)
	return nil
}

var hello = []byte("hello")

func (*instant) Release(*exchange.Exchange) {}

var browser = []exchange.Field{
	{Name: "Host", Value: "api.example.com"}, {Name: "User-Agent", Value: "test"}, {Name: "Accept", Value: "*/*"}, {Name: "Accept-Encoding", Value: "gzip"},
	{Name: "Cookie", Value: "a=b"}, {Name: "X-Forwarded-For", Value: "10.0.0.1"}, {Name: "apikey", Value: "b"},
}

// serveOne runs one exchange as a front end does.
func serveOne(h *proxy.Handler, x *exchange.Exchange, path string) int {
	x.Conn = exchange.Conn{Peer: netip.MustParseAddrPort("127.0.0.1:4000"), Local: netip.MustParseAddrPort("127.0.0.1:8000"), Serial: 1}
	r := &x.Request
	r.Method, r.Target, r.Path, r.Scheme, r.Host, r.Major, r.Minor = "GET", path, path, "http", "api.example.com", 1, 1
	r.Header.Fields = append(r.Header.Fields[:0], browser...)
	x.Start = time.Unix(1, 0)
	h.Serve(x)
	status := x.Response.Status
	h.Finish(x)
	x.Reset()
	return status
}

// quickHandler has a consumer who is in the groups.
func quickHandler(t testing.TB, log *proxy.AccessLog, groups ...string) *proxy.Handler {
	db := fx.New(t)
	db.Put(fx.Service("svc", "127.0.0.1", 80), fx.Route("plain", "svc", "/plain"), fx.Route("key", "svc", "/key"),
		fx.Consumer("bob"), key("bob", "b"), fx.Plugin("k", "key", `{"header":"apikey","uri_param_names":["hidden"]}`, "key", "", ""))
	for _, group := range groups {
		db.Put(fx.Group(group), fx.Member(group, "bob"), fx.ForGroup(group, fx.Plugin("k"+group, "key", `{"header":"other"}`, "", "", "")))
	}
	c := dataplane.New(dataplane.Options{Store: db.Store, Plugins: []plugin.Plugin{keyed("key", 1000)}})
	t.Cleanup(func() { c.Close(context.Background()) })
	return proxy.New(proxy.Options{
		Holder: c.Holder(), Upstreams: &instant{}, Product: "concord/1", AccessLog: log,
		TrustedIPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, RealIPHeader: "X-Forwarded-For",
	})
}

func BenchmarkHandler(b *testing.B) {
	log := proxy.NewAccessLog(discard{}, false, nil)
	defer log.Close()
	for _, l := range []*proxy.AccessLog{nil, log} {
		h := quickHandler(b, l)
		for _, path := range []string{"/plain/x", "/key/x"} {
			b.Run(fmt.Sprintf("%s/log=%t", strings.Trim(path, "/x"), l != nil), func(b *testing.B) {
				x := new(exchange.Exchange)
				b.ReportAllocs()
				for b.Loop() {
					if s := serveOne(h, x, path); s != 200 {
						b.Fatal(s)
					}
				}
			})
		}
	}
}

// BenchmarkGroups is a request of a consumer who is in so many groups that have a plugin.
func BenchmarkGroups(b *testing.B) {
	for _, groups := range [][]string{nil, {"gold"}, {"gold", "silver", "bronze"}} {
		h := quickHandler(b, nil, groups...)
		b.Run(fmt.Sprint(len(groups)), func(b *testing.B) {
			x := new(exchange.Exchange)
			b.ReportAllocs()
			for b.Loop() {
				serveOne(h, x, "/key/x")
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestHandlerAllocatesNothing(t *testing.T) {
	log := proxy.NewAccessLog(discard{}, false, nil)
	defer log.Close()
	for _, groups := range [][]string{nil, {"gold"}, {"gold", "silver", "bronze"}} {
		h := quickHandler(t, log, groups...)
		for _, path := range []string{"/plain/x", "/key/x"} {
			x := new(exchange.Exchange)
			harness.NoAllocs(t, fmt.Sprintf("%s, in %d groups", path, len(groups)), func() { serveOne(h, x, path) })
		}
	}
}

func TestClientAddress(t *testing.T) {
	many := strings.Repeat("10.9.9.9, ", 500)
	for _, c := range []struct {
		name, header string
		recursive    bool
		peer         string
		fields       []string
		want         string
	}{
		{"untrusted peer", "", false, "192.0.2.1", []string{"X-Real-IP: 1.2.3.4", "X-Forwarded-For: 127.0.0.1"}, "192.0.2.1"},
		{"X-Real-IP", "", false, "10.0.0.1", []string{"X-Real-IP: 1.2.3.4"}, "1.2.3.4"},
		{"X-Forwarded-For is not the header", "", false, "10.0.0.1", []string{"X-Forwarded-For: 1.2.3.4"}, "10.0.0.1"},
		{"the last one", "X-Forwarded-For", false, "10.0.0.1", []string{"X-Forwarded-For: 1.1.1.1, 10.2.2.2"}, "10.2.2.2"},
		{"the last untrusted one", "X-Forwarded-For", true, "10.0.0.1", []string{"X-Forwarded-For: 9.9.9.9, 1.1.1.1, 10.2.2.2"}, "1.1.1.1"},
		{"over several lines", "X-Forwarded-For", true, "10.0.0.1", []string{"X-Forwarded-For: 9.9.9.9", "x-forwarded-for: 1.1.1.1", "X-Forwarded-For: 10.2.2.2"}, "1.1.1.1"},
		{"all trusted", "X-Forwarded-For", true, "10.0.0.1", []string{"X-Forwarded-For: 10.1.1.1, 10.2.2.2"}, "10.1.1.1"},
		{"garbage ends the search", "X-Forwarded-For", true, "10.0.0.1", []string{"X-Forwarded-For: 1.2.3.4, evil"}, "10.0.0.1"},
		{"500 entries", "X-Forwarded-For", true, "10.0.0.1", []string{"X-Forwarded-For: 1.2.3.4, " + many + "10.1.1.1"}, "1.2.3.4"},
		{"IPv4 in IPv6", "X-Forwarded-For", true, "::ffff:10.0.0.1", []string{"X-Forwarded-For: 1.2.3.4, ::ffff:10.0.0.1, [::ffff:10.0.0.2]:80"}, "1.2.3.4"},
		{"with a port", "X-Forwarded-For", false, "10.0.0.1", []string{"X-Forwarded-For: 1.2.3.4:99"}, "1.2.3.4"},
		{"IPv6", "X-Forwarded-For", false, "fd00::1", []string{"X-Forwarded-For: 2001:db8::7"}, "2001:db8::7"},
		{"IPv6 in brackets", "X-Forwarded-For", false, "fd00::1", []string{"X-Forwarded-For: [2001:db8::7]"}, "2001:db8::7"},
		{"a zone is no client", "X-Forwarded-For", false, "10.0.0.1", []string{"X-Forwarded-For: fe80::1%eth0"}, "10.0.0.1"},
		{"empty", "X-Forwarded-For", false, "10.0.0.1", []string{"X-Forwarded-For: "}, "10.0.0.1"},
		{"PROXY protocol", "proxy_protocol", false, "10.0.0.1", []string{"PROXY: 2001:db8::7", "X-Real-IP: 1.2.3.4"}, "2001:db8::7"},
		{"PROXY protocol, mapped", "proxy_protocol", false, "10.0.0.1", []string{"PROXY: ::ffff:1.2.3.4"}, "1.2.3.4"},
		{"PROXY protocol without an address", "proxy_protocol", false, "10.0.0.1", []string{"Proxy_protocol: 1.2.3.4"}, "10.0.0.1"},
		{"PROXY protocol of an untrusted peer", "proxy_protocol", false, "192.0.2.1", []string{"PROXY: 1.2.3.4"}, "192.0.2.1"},
		{"PROXY protocol is not the header", "", false, "10.0.0.1", []string{"PROXY: 1.2.3.4"}, "10.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c0 := dataplane.New(dataplane.Options{Store: fx.New(t).Store})
			defer c0.Close(context.Background())
			h := proxy.New(proxy.Options{Holder: c0.Holder(), Upstreams: &instant{}, RealIPHeader: c.header, RealIPRecursive: c.recursive,
				TrustedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}})
			x := &exchange.Exchange{}
			x.Conn.Peer = netip.AddrPortFrom(netip.MustParseAddr(c.peer), 1)
			for _, f := range c.fields {
				n, v, _ := strings.Cut(f, ": ")
				if n == "PROXY" {
					x.Conn.Proxied = netip.AddrPortFrom(netip.MustParseAddr(v), 5)
					continue
				}
				x.Request.Header.Add(n, v)
			}
			h.Serve(x)
			got := x.ClientIP.String()
			h.Finish(x)
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestGlobalRewriteRunsBeforeRouting(t *testing.T) {
	rewrite := plugin.Plugin{
		Info: plugin.Info{Name: "rw", Priority: 5},
		New: func(context.Context, plugin.Env, plugin.Config) (plugin.Instance, error) {
			return rewriter{}, nil
		},
	}
	g := start(t, nil, rewrite)
	g.put(fx.Route("new", "svc", "/new"), fx.Plugin("g", "rw", "{}", "", "", ""))
	if a := g.get("/old/x"); a.requestLine() != "GET /x HTTP/1.1" {
		t.Errorf("%d %q", a.StatusCode, a.body)
	}
}

type rewriter struct{}

func (rewriter) Rewrite(x *exchange.Exchange) error {
	x.Request.Path = strings.Replace(x.Request.Path, "/old", "/new", 1)
	return nil
}

func TestUpstreamChosenByPlugin(t *testing.T) {
	other := newEcho(t)
	other.head = "X-Other: 1\r\n"
	g := start(t, nil, hooked("steer", 10, func(plugin.Config) hook {
		return hook{access: func(x *exchange.Exchange) error {
			x.Upstream.Port, x.Upstream.Path, x.Request.Method = other.port, "/steered", "PUT"
			x.Request.Header.Set("X-Set", "by plugin")
			x.Request.SetBody([]byte("body"))
			if !slices.Equal(x.Captures, []string{"1", "7", "n", "7"}) {
				t.Errorf("captures %q", x.Captures)
			}
			return nil
		}}
	}))
	g.put(fx.Route("r", "svc", `~/r/(?<n>\d)`), fx.Plugin("p", "steer", "{}", "r", "", ""))
	a := g.get("/r/7/x")
	if a.requestLine() != "PUT /steered HTTP/1.1" || a.Header.Get("X-Other") != "1" || a.saw("X-Set") != "by plugin" || !strings.HasSuffix(a.body, "\nbody") {
		t.Errorf("%v %q", a.Header, a.body)
	}
}

package correlationid

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

const uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`

func run(t *testing.T, i plugin.Instance, x *exchange.Exchange) (upstream, client string) {
	t.Helper()
	name := "Kong-Request-ID"
	plugintest.Access(t, x, i)
	if f, ok := i.(plugin.HeaderFilter); ok {
		if err := f.HeaderFilter(x); err != nil {
			t.Fatal(err)
		}
	}
	return x.Request.Header.Get(name), x.Response.Header.Get(name)
}

func TestGenerators(t *testing.T) {
	g := plugintest.New(t)
	for generator, pattern := range map[string]string{
		"uuid":         `^` + uuidPattern + `$`,
		"uuid#counter": `^` + uuidPattern + `#1$`,
		"tracker":      `^10\.0\.0\.1-8000-` + strconv.Itoa(os.Getpid()) + `-7-3-[0-9]{10}\.[0-9]{3}$`,
	} {
		t.Run(generator, func(t *testing.T) {
			x := plugintest.Request("GET", "/")
			x.Conn = exchange.Conn{Local: netip.MustParseAddrPort("[::ffff:10.0.0.1]:8000"), Serial: 7, Requests: 3}
			upstream, client := run(t, g.Build(Plugin(), schema.Record{"generator": generator}), x)
			if !regexp.MustCompile(pattern).MatchString(upstream) || client != "" {
				t.Errorf("upstream %q, client %q", upstream, client)
			}
		})
	}
}

func TestCounterIsSharedAndGrows(t *testing.T) {
	g, p := plugintest.New(t), Plugin()
	a, _ := run(t, g.Build(p, schema.Record{}), plugintest.Request("GET", "/"))
	b, _ := run(t, g.Build(p, schema.Record{}), plugintest.Request("GET", "/"))
	if a[:36] != b[:36] || a[36:] != "#1" || b[36:] != "#2" {
		t.Errorf("%q then %q", a, b)
	}
}

func TestKeepsAndEchoes(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"echo_downstream": true})
	if up, down := run(t, i, plugintest.Request("GET", "/", "kong-request-id: mine")); up != "mine" || down != "mine" {
		t.Errorf("upstream %q, client %q", up, down)
	}
	if up, down := run(t, i, plugintest.Request("GET", "/", "Kong-Request-ID:")); up == "" || up != down {
		t.Errorf("upstream %q, client %q", up, down)
	}
	// No route matched: only the header filter runs.
	x := plugintest.Request("GET", "/")
	if err := i.(plugin.HeaderFilter).HeaderFilter(x); err != nil || x.Response.Header.Get("Kong-Request-ID") == "" {
		t.Error("no id without the access phase")
	}
}

func TestHeaderName(t *testing.T) {
	g := plugintest.New(t)
	for name, want := range map[any]string{"X-Id": "X-Id", nil: "Kong-Request-ID"} {
		x := plugintest.Request("GET", "/")
		plugintest.Access(t, x, g.Build(Plugin(), schema.Record{"header_name": name}))
		if !x.Request.Header.Has(want) {
			t.Errorf("header_name %v: no %s", name, want)
		}
	}
}

func BenchmarkAccess(b *testing.B) {
	g := plugintest.New(b)
	i := g.Build(Plugin(), schema.Record{}).(plugin.Accessor)
	x := plugintest.Request("GET", "/")
	b.ReportAllocs()
	for b.Loop() {
		x.Reset()
		if err := i.Access(x); err != nil {
			b.Fatal(err)
		}
	}
}

// A name that is none would break every answer over HTTP/2, and be sent as it is over HTTP/1.1.
func TestNoHeaderName(t *testing.T) {
	for name, good := range map[string]bool{"X.Request-Id": true, "bad header": false, "x\r\ny: z": false, "x:": false, "é": false} {
		if _, errs := plugintest.Validate(Plugin(), schema.Record{"header_name": name}); (errs == nil) != good {
			t.Errorf("%q: %v", name, errs)
		}
	}
}

package keyauth

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/test/harness"
)

type bench struct {
	*plugintest.Gateway
	bob, key string
}

func newBench(t testing.TB) *bench {
	b := &bench{Gateway: plugintest.New(t)}
	b.bob = b.Consumer("bob")
	b.key = b.Put("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(b.bob), "key": "bobkey"})
	return b
}

// refusal is the Exit of a templated 401.
func refusal(message, challenge string) *plugin.Exit {
	return &plugin.Exit{Status: 401, Body: message, Templated: true, Header: []exchange.Field{{Name: "WWW-Authenticate", Value: challenge}}}
}

func TestAnswers(t *testing.T) {
	b := newBench(t)
	b.PutUntil("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(b.bob), "key": "old"}, time.Now().Add(-time.Second))
	b.PutUntil("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(b.bob), "key": "young"}, time.Now().Add(time.Hour))
	none := refusal("No API key found in request", "Key")
	wrong := refusal("Unauthorized", "Key")
	double := refusal("Duplicate API key found", "Key")
	for _, c := range []struct {
		name    string
		config  schema.Record
		method  string
		target  string
		headers []string
		want    *plugin.Exit
	}{
		{"missing", nil, "GET", "/", nil, none},
		{"missing with realm", schema.Record{"realm": "r"}, "GET", "/", nil, refusal("No API key found in request", `Key realm="r"`)},
		{"wrong", nil, "GET", "/", []string{"apikey: zz"}, wrong},
		{"wrong case", nil, "GET", "/", []string{"apikey: BOBKEY"}, wrong},
		{"header", nil, "GET", "/", []string{"apikey: bobkey"}, nil},
		{"header in another case", nil, "GET", "/", []string{"ApiKey: bobkey"}, nil},
		{"query", nil, "GET", "/?apikey=bobkey&z=1", nil, nil},
		{"query with escapes", nil, "GET", "/?%61pikey=bob%6bey", nil, nil},
		{"query with a wrong escape", nil, "GET", "/?apikey=bobkey%zz", nil, wrong},
		{"semicolon does not separate", nil, "GET", "/?a=1;apikey=bobkey", nil, none},
		{"query behind 10,001 others", nil, "GET", "/?" + strings.Repeat("a=b&", 10001) + "apikey=bobkey", nil, nil},
		{"two keys in the query", nil, "GET", "/?apikey=a&apikey=b", nil, double},
		{"two keys in the query, one escaped", nil, "GET", "/?apikey=bobkey&api%6bey=b", nil, double},
		{"two headers", nil, "GET", "/", []string{"apikey: bobkey", "apikey: bobkey"}, double},
		{"empty", nil, "GET", "/", []string{"apikey:"}, none},
		{"empty header hides the query", nil, "GET", "/?apikey=bobkey", []string{"apikey:"}, none},
		{"header before query", nil, "GET", "/?apikey=zz", []string{"apikey: bobkey"}, nil},
		{"second name", schema.Record{"key_names": []any{"x-key", "token"}}, "GET", "/?token=bobkey", nil, nil},
		{"not in the header", schema.Record{"key_in_header": false}, "GET", "/", []string{"apikey: bobkey"}, none},
		{"not in the query", schema.Record{"key_in_query": false}, "GET", "/?apikey=bobkey", nil, none},
		{"OPTIONS", nil, "OPTIONS", "/", nil, none},
		{"OPTIONS, run_on_preflight false", schema.Record{"run_on_preflight": false}, "OPTIONS", "/", nil, nil},
		{"expired", nil, "GET", "/", []string{"apikey: old"}, wrong},
		{"expires later", nil, "GET", "/", []string{"apikey: young"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config == nil {
				c.config = schema.Record{}
			}
			x := plugintest.Request(c.method, c.target, c.headers...)
			got := plugintest.Access(t, x, b.Build(Plugin(), c.config))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if got != nil && x.Consumer != nil {
				t.Error("a refused request has a consumer")
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	b := newBench(t)
	x := plugintest.Request("GET", "/", "apikey: bobkey")
	if e := plugintest.Access(t, x, b.Build(Plugin(), schema.Record{})); e != nil {
		t.Fatal(e)
	}
	for name, want := range map[string]string{"X-Consumer-ID": b.bob, "X-Consumer-Username": "bob", "X-Consumer-Custom-ID": "c-bob", "X-Credential-Identifier": b.key, "apikey": "bobkey"} {
		if got := x.Request.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if x.Consumer.ID != b.bob || *x.Credential != (exchange.Credential{ID: b.key, Identifier: b.key, Kind: "key-auth"}) {
		t.Errorf("%v %v", x.Consumer, x.Credential)
	}
	b.Delete("consumers", b.bob)
	if e := plugintest.Access(t, plugintest.Request("GET", "/", "apikey: bobkey"), b.Build(Plugin(), schema.Record{})); e == nil {
		t.Error("the key of a deleted consumer still works")
	}
}

const mixed = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B\r\nContent-Disposition: form-data; name=\"apikey\"\r\n\r\nbobkey\r\n" +
	"--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n\x00\xff\r\n--B--\r\n"

func TestBody(t *testing.T) {
	b := newBench(t)
	none := refusal("No API key found in request", "Key")
	double := refusal("Duplicate API key found", "Key")
	const form, js, multi = "application/x-www-form-urlencoded", "application/json; charset=utf-8", "multipart/form-data; boundary=B"
	for _, c := range []struct {
		name, kind, body string
		hide             bool
		want             *plugin.Exit
		upstream         string // "": as sent
	}{
		{"form", form, "a=1&apikey=bobkey", false, nil, ""},
		{"form hidden", form, "a=%20&apikey=bobkey&b", true, nil, "a=%20&b"},
		{"form twice", form, "apikey=bobkey&apikey=x", false, double, ""},
		{"form without", form, "a=1", false, none, ""},
		{"json", js, `{"a":1,"apikey":"bobkey"}`, false, nil, ""},
		{"json hidden", js, `{"n":1e3,"apikey":"bobkey","h":"<&>"}`, true, nil, `{"h":"<&>","n":1e3}`},
		{"json array", js, `{"apikey":["bobkey"]}`, false, double, ""},
		{"json number", js, `{"apikey":1}`, false, none, ""},
		{"json broken", js, `{"apikey":"bobkey"`, false, none, ""},
		{"json list", js, `["apikey"]`, false, none, ""},
		{"multipart", multi, mixed, false, nil, ""},
		{"multipart hidden", multi, mixed, true, nil, "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n" +
			"--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n\x00\xff\r\n--B--\r\n"},
		{"multipart broken", multi, mixed[:len(mixed)-20], false, none, ""},
		{"other type", "text/plain", "apikey=bobkey", false, none, ""},
		{"no type", "", "apikey=bobkey", false, none, ""},
		{"longer than what is searched", form, strings.Repeat("a", maxBody) + "&apikey=bobkey", false,
			&plugin.Exit{Status: 413, Body: "Payload too large", Templated: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, anonymous := range []bool{false, true} {
				for _, length := range []int64{int64(len(c.body)), -1} {
					x := plugintest.Request("POST", "/", "Content-Type: "+c.kind)
					half := len(c.body) / 2
					plugintest.Body(x, length, c.body[:half], c.body[half:])
					config := schema.Record{"key_in_body": true, "hide_credentials": c.hide}
					want := c.want
					if anonymous {
						config["anonymous"] = b.bob
						if want != nil && want.Status == 401 {
							want = nil
						}
					}
					if diff := cmp.Diff(want, plugintest.Access(t, x, b.Build(Plugin(), config))); diff != "" {
						t.Fatal(diff)
					}
					if want != nil {
						continue
					}
					if c.upstream == "" {
						c.upstream = c.body
					}
					got, err := plugintest.ReadBody(t, x)
					if diff := cmp.Diff(c.upstream, got); diff != "" || err != nil {
						t.Error(diff, err)
					}
					if c.hide && x.Request.Length != int64(len(c.upstream)) {
						t.Errorf("length %d, body %d", x.Request.Length, len(c.upstream))
					}
				}
			}
		})
	}
}

// A4: a hidden key is neither forwarded nor left where a log would show it, wherever it is.
func TestHide(t *testing.T) {
	b := newBench(t)
	x := plugintest.Request("POST", "/p?apikey=secret-in-query&z=1&api%6Bey=again", "apikey: bobkey", "Content-Type: application/json")
	plugintest.Body(x, -1, `{"apikey":"secret-in-body","a":1}`)
	if e := plugintest.Access(t, x, b.Build(Plugin(), schema.Record{"hide_credentials": true, "key_in_body": true})); e != nil {
		t.Fatal(e)
	}
	r := &x.Request
	if r.Header.Has("apikey") || r.RawQuery != "z=1" || r.Target != "/p?z=1" {
		t.Errorf("header %v, query %q, target %q", r.Header, r.RawQuery, r.Target)
	}
	if body, _ := plugintest.ReadBody(t, x); body != `{"a":1}` {
		t.Errorf("body %q", body)
	}
	x = plugintest.Request("GET", "/p?apikey=bobkey")
	if e := plugintest.Access(t, x, b.Build(Plugin(), schema.Record{"hide_credentials": true})); e != nil || x.Request.Target != "/p" || x.Request.HasQuery {
		t.Errorf("%v %q", e, x.Request.Target)
	}
	if strings.Contains(b.Logs.String(), "bobkey") {
		t.Error("the key was logged")
	}
}

func TestConfig(t *testing.T) {
	_, errs := plugintest.Validate(Plugin(), schema.Record{"key_names": []any{"a b"}})
	if errs == nil || !strings.Contains(errs.Message(), "bad header name 'a b', allowed characters are A-Z, a-z, 0-9, '_', and '-'") {
		t.Error(errs)
	}
}

// FuzzForm looks for panics in bodies, for keys that are still there when hidden, and for harm to what is not the key.
func FuzzForm(f *testing.F) {
	f.Add(0, "a=1&apikey=bobkey")
	f.Add(1, `{"apikey":"k","b":[1]}`)
	f.Add(2, mixed)
	f.Fuzz(func(t *testing.T, kind int, body string) {
		x := plugintest.Request("POST", "/", "Content-Type: "+[]string{"application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=B"}[uint(kind)%3])
		plugintest.Body(x, int64(len(body)), body)
		before, e := readForm(x)
		if e != nil {
			return
		}
		_, other := before.value("a")
		before.drop(x, "apikey")
		after, e := readForm(x)
		if e != nil {
			t.Fatalf("%q cannot be read again: %v", body, e.Body)
		}
		if _, n := after.value("apikey"); n != 0 {
			t.Fatalf("%q still has the key", body)
		}
		if _, n := after.value("a"); n != other {
			t.Fatalf("%q: field a was found %d times, then %d times", body, other, n)
		}
	})
}

func BenchmarkAccess(b *testing.B) {
	g := newBench(b)
	for range 10000 {
		g.Put("keyauth_credentials", schema.Record{"consumer": plugintest.Ref(g.bob), "key": strings.Repeat("k", 20) + time.Now().String()})
	}
	i := g.Build(Plugin(), schema.Record{}).(plugin.Accessor)
	for name, x := range map[string]*exchange.Exchange{
		"header": plugintest.Request("GET", "/", "Host: example.test", "User-Agent: x", "Accept: */*", "apikey: bobkey"),
		"query":  plugintest.Request("GET", "/?a=1&apikey=bobkey", "Host: example.test", "User-Agent: x", "Accept: */*"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := i.Access(x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	g := newBench(t)
	i := g.Build(Plugin(), schema.Record{}).(plugin.Accessor)
	for _, x := range []*exchange.Exchange{plugintest.Request("GET", "/", "apikey: bobkey"), plugintest.Request("GET", "/?apikey=bobkey")} {
		harness.NoAllocs(t, "Access", func() {
			if i.Access(x) != nil {
				t.Fatal("refused")
			}
		})
	}
}

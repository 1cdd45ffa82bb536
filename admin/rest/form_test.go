package rest

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
)

func TestForm(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "a=1&b=x+y%21", `{"a":"1","b":"x y!"}`},
		{"dots", "config.redis.host=h", `{"config":{"redis":{"host":"h"}}}`},
		{"brackets", "a[]=x&a[]=y", `{"a":["x","y"]}`},
		{"brackets escaped", "a%5B%5D=x&a%5b%5d=y", `{"a":["x","y"]}`},
		{"positions", "a[2]=y&a[1]=x", `{"a":["x","y"]}`},
		{"positions with gaps", "a[900000000]=z&a[5]=y", `{"a":["y","z"]}`},
		{"positions and next", "a[1]=x&a[]=y", `{"a":["x","y"]}`},
		{"repeated", "a=x&a=y", `{"a":["x","y"]}`},
		{"repeated and brackets", "a[]=x&a=y", `{"a":["x","y"]}`},
		{"comma stays", "a=x,y", `{"a":"x,y"}`},
		{"map", "headers[x-env]=v", `{"headers":{"x-env":"v"}}`},
		{"map of lists", "headers[x-env][]=v&headers[x-env][]=w", `{"headers":{"x-env":["v","w"]}}`},
		{"map of lists, dotted", "headers.x-env[]=prod", `{"headers":{"x-env":["prod"]}}`},
		{"map key with a dot", "m[a.b]=v", `{"m":{"a.b":"v"}}`},
		{"zero is a key", "m[0]=v", `{"m":{"0":"v"}}`},
		{"records by position", "m[1].name=a&m[1].v=b&m[2].name=c", `{"m":[{"name":"a","v":"b"},{"name":"c"}]}`},
		{"records by order", "m[].name=a&m[].v=b&m[].name=c", `{"m":[{"name":"a","v":"b"},{"name":"c"}]}`},
		{"lists of lists", "m[1][]=a&m[1][]=b&m[2][]=c", `{"m":[["a","b"],["c"]]}`},
		{"positions beside keys", "m[1]=a&m[k]=b", `{"m":{"1":"a","k":"b"}}`},
		{"empty value", "a=", `{"a":""}`},
		{"no value", "a", `{"a":true}`},
		{"no name", "=v", `{"":"v"}`},
		{"empty parts", "&&a=1&", `{"a":"1"}`},
		{"equals in the value", "a=b=c", `{"a":"b=c"}`},
		{"broken percent", "a=%zz%4&b=%41", `{"a":"%zz%4","b":"A"}`},
		{"leading dot", ".a=1", `{".a":"1"}`},
		{"trailing dot", "a.=1", `{"a.":"1"}`},
		{"double dot", "a..b=1", `{"a..b":"1"}`},
		{"dot before bracket", "a.[1]=1", `{"a.[1]":"1"}`},
		{"unclosed", "a[1=1", `{"a[1":"1"}`},
		{"text behind bracket", "a[1]b=1", `{"a[1]b":"1"}`},
		{"bracket first", "[1]=1", `{"[1]":"1"}`},
		{"nested brackets", "a[[1]]=1", `{"a[[1]]":"1"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want any
			if err := json.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			fields, err := parseURLEncoded(c.in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := nest(fields)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, any(got)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestFormRefused(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"too many", strings.Repeat("a=1&", 1001), "Too many arguments"},
		{"value and record", "a=1&a.b=2", `field "a" is given both as a value and as a record`},
		{"value and record deep", "c.a=1&c.a.b=2", `field "c.a" is given both`},
		{"not UTF-8", "a=%ff", "not valid UTF-8"},
		{"name not UTF-8", "%ff=1", "not valid UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fields, err := parseURLEncoded(c.in)
			if err == nil {
				_, err = nest(fields)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := parseURLEncoded(strings.Repeat("a=1&", 1000)); err != nil {
		t.Errorf("1000 arguments are allowed: %v", err)
	}
}

// FuzzForm: whatever is sent, the result is a refusal or a record of plain JSON values that survives JSON unchanged.
func FuzzForm(f *testing.F) {
	for _, s := range []string{"a=1", "a[]=1&a[]=2", "a.b[1][k].c=1&a=2", "a[k][]=%ff", "[]=1", "a..b", "a[1]=1&a[x]=2&a=3", "m[].n=1&m[].n=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		fields, err := parseURLEncoded(in)
		if err != nil {
			return
		}
		rec, err := nest(fields)
		if err != nil {
			return
		}
		if depth(rec) > maxDepth+1 {
			t.Fatalf("depth %d", depth(rec))
		}
		text, err := schema.Encode(rec)
		if err != nil {
			t.Fatalf("cannot encode %v: %v", rec, err)
		}
		var back any
		if err := json.Unmarshal(text, &back); err != nil || !utf8.Valid(text) {
			t.Fatalf("%s: %v", text, err)
		}
		if d := cmp.Diff(any(rec), back); d != "" {
			t.Fatal(d)
		}
	})
}

func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			deepest = max(deepest, depth(x))
		}
	case []any:
		for _, x := range v {
			deepest = max(deepest, depth(x))
		}
	default:
		return 0
	}
	return deepest + 1
}

func TestRouter(t *testing.T) {
	var r router
	for _, p := range []string{"/", "/plugins", "/plugins/enabled", "/plugins/{plugins}", "/plugins/{plugins}/route", "/plugins/schema/{name}"} {
		r.add("GET", p, nil)
	}
	for _, c := range []struct{ path, want, params string }{
		{"/", "/", ""},
		{"", "/", ""},
		{"/plugins", "/plugins", ""},
		{"/plugins/", "/plugins", ""},
		{"/plugins/enabled", "/plugins/enabled", ""},
		{"/plugins/enable%64", "/plugins/enabled", ""},
		{"/plugins/x%2Fy", "/plugins/{plugins}", "x/y"},
		{"/plugins/x%252Fy", "/plugins/{plugins}", "x%2Fy"},
		{"/plugins/..", "/plugins/{plugins}", ".."},
		{"/plugins/enabled/route", "/plugins/{plugins}/route", "enabled"},
		{"/plugins/schema/jwt", "/plugins/schema/{name}", "jwt"},
		{"/plugins/schema/route", "/plugins/schema/{name}", "route"},
		{"/Plugins", "", ""},
		{"//plugins", "", ""},
		{"/plugins//route", "", ""},
		{"/plugins/x/route/", "/plugins/{plugins}/route", "x"},
		{"/plugins/x/route/y", "", ""},
		{"/plugins/../plugins", "", ""},
		{"/nope", "", ""},
	} {
		e, params := r.find(c.path)
		got := ""
		if e != nil {
			got = e.path
		}
		if got != c.want || strings.Join(params, ",") != c.params {
			t.Errorf("find(%q) = %q %q, want %q %q", c.path, got, params, c.want, c.params)
		}
	}
}

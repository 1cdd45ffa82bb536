package balancer

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"concord/fsm/entity"
	"concord/proxy/exchange"
)

// TestHashSources: two exchanges with equal values go to one peer, and different values are spread.
func TestHashSources(t *testing.T) {
	header := func(x *exchange.Exchange, name, value string) { x.Request.Header.Add(name, value) }
	for _, tt := range []struct {
		name, settings string
		set            func(x *exchange.Exchange, i int) // same i, same value
		noise          func(x *exchange.Exchange, i int) // what must not count
	}{
		{"ip", `"hash_on":"ip"`, func(x *exchange.Exchange, i int) { x.ClientIP = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) },
			func(x *exchange.Exchange, i int) { x.Request.Path = fmt.Sprint(i) }},
		{"IPv6", `"hash_on":"ip"`, func(x *exchange.Exchange, i int) {
			x.ClientIP = netip.MustParseAddr(fmt.Sprintf("2001:db8:ffff:ffff:ffff:ffff:ffff:%x", i))
		}, nil},
		{"consumer", `"hash_on":"consumer"`, func(x *exchange.Exchange, i int) { x.Consumer = &entity.Consumer{ID: fmt.Sprint(i)} },
			func(x *exchange.Exchange, i int) { x.Credential = &exchange.Credential{ID: fmt.Sprint(i)} }},
		{"credential", `"hash_on":"consumer"`, func(x *exchange.Exchange, i int) { x.Credential = &exchange.Credential{ID: fmt.Sprint(i)} }, nil},
		{"header", `"hash_on":"header","hash_on_header":"X-Key"`, func(x *exchange.Exchange, i int) { header(x, "x-key", fmt.Sprint(i)) },
			func(x *exchange.Exchange, i int) { header(x, "x-key2", fmt.Sprint(i)) }},
		{"two headers", `"hash_on":"header","hash_on_header":"X-Key"`, func(x *exchange.Exchange, i int) {
			header(x, "X-Key", "a")
			header(x, "X-Key", fmt.Sprint(i))
		}, nil},
		{"cookie", `"hash_on":"cookie","hash_on_cookie":"sid"`, func(x *exchange.Exchange, i int) { header(x, "Cookie", fmt.Sprintf("a=b; sid=%d", i)) },
			func(x *exchange.Exchange, i int) { header(x, "Cookie", fmt.Sprintf("side=%d", i)) }},
		{"path", `"hash_on":"path"`, func(x *exchange.Exchange, i int) { x.Request.Path = fmt.Sprint("/", i) },
			func(x *exchange.Exchange, i int) { x.Request.RawQuery = fmt.Sprint("a=", i) }},
		{"argument", `"hash_on":"query_arg","hash_on_query_arg":"q"`, func(x *exchange.Exchange, i int) { x.Request.RawQuery = fmt.Sprintf("a=1&q=%d", i) },
			func(x *exchange.Exchange, i int) { x.Request.RawQuery += fmt.Sprint("&z=", i) }},
		{"arguments in any order", `"hash_on":"query_arg","hash_on_query_arg":"q"`, func(x *exchange.Exchange, i int) { x.Request.RawQuery = fmt.Sprintf("q=%d&q=x", i) },
			func(x *exchange.Exchange, i int) {
				if first, second, _ := strings.Cut(x.Request.RawQuery, "&"); i == 1 {
					x.Request.RawQuery = second + "&" + first
				}
			}},
		{"capture by name", `"hash_on":"uri_capture","hash_on_uri_capture":"id"`, func(x *exchange.Exchange, i int) { x.Captures = []string{"1", "same", "id", fmt.Sprint(i)} },
			func(x *exchange.Exchange, i int) { x.Captures = append(x.Captures, "2", fmt.Sprint(i)) }},
		{"capture by number", `"hash_on":"uri_capture","hash_on_uri_capture":"2"`, func(x *exchange.Exchange, i int) { x.Captures = []string{"1", "2", "2", fmt.Sprint(i)} }, nil},
		{"fallback", `"hash_on":"header","hash_on_header":"X-No","hash_fallback":"header","hash_fallback_header":"X-Key"`,
			func(x *exchange.Exchange, i int) { header(x, "X-Key", fmt.Sprint(i)) }, nil},
		{"fallback to an argument", `"hash_on":"consumer","hash_fallback":"query_arg","hash_fallback_query_arg":"q"`, func(x *exchange.Exchange, i int) { x.Request.RawQuery = fmt.Sprint("q=", i) }, nil},
		{"fallback to a capture", `"hash_on":"consumer","hash_fallback":"uri_capture","hash_fallback_uri_capture":"id"`, func(x *exchange.Exchange, i int) { x.Captures = []string{"id", fmt.Sprint(i)} }, nil},
		{"fallback to a cookie", `"hash_on":"ip","hash_fallback":"cookie","hash_on_cookie":"sid"`, func(x *exchange.Exchange, i int) { x.ClientIP = netip.AddrFrom4([4]byte{1, 2, 3, byte(i)}) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestPool(t, `{"algorithm":"consistent-hashing",`+tt.settings+`}`, addresses(10)...)
			spread := map[string]bool{}
			for i := range 100 {
				var to [3]string
				for n := range to {
					x := newExchange()
					tt.set(x, i)
					if tt.noise != nil {
						tt.noise(x, n)
					}
					to[n] = p.ask(t, x, 200)
				}
				if to[0] != to[1] || to[1] != to[2] {
					t.Fatalf("value %d went to %v", i, to)
				}
				spread[to[0]] = true
			}
			if len(spread) != 10 {
				t.Errorf("a hundred values reached %d of ten peers", len(spread))
			}
		})
	}
}

// TestNoHashValue: all exchanges without a value go to one peer, as in Kong.
func TestNoHashValue(t *testing.T) {
	for _, settings := range []string{`"hash_on":"none"`, `"hash_on":"consumer"`, `"hash_on":"header","hash_on_header":"X-No","hash_fallback":"consumer"`,
		`"hash_on":"uri_capture","hash_on_uri_capture":"id"`, `"hash_on":"query_arg","hash_on_query_arg":"q"`} {
		t.Run(settings, func(t *testing.T) {
			p := newTestPool(t, `{"algorithm":"consistent-hashing",`+settings+`}`, addresses(10)...)
			to := map[string]bool{}
			for i := range 50 {
				x := newExchange()
				x.Request.Path, x.ClientIP = fmt.Sprint("/", i), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
				to[p.ask(t, x, 200)] = true
			}
			if len(to) != 1 {
				t.Errorf("went to %v", to)
			}
		})
	}
}

func TestHashCookie(t *testing.T) {
	p := newTestPool(t, `{"algorithm":"consistent-hashing","hash_on":"cookie","hash_on_cookie":"sid","hash_on_cookie_path":"/app"}`, addresses(10)...)
	re := regexp.MustCompile(`^sid=([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}); Path=/app; Same-Site=Lax; HttpOnly$`)
	for range 20 {
		x := newExchange()
		x.Response.Header.Add("Set-Cookie", "other=1")
		x.Response.Header.Add("Set-Cookie", "sid=theirs")
		first := p.ask(t, x, 200)
		if n := x.Response.Header.Count("Set-Cookie"); n != 2 {
			t.Fatalf("%d cookies: %v", n, x.Response.Header)
		}
		m := re.FindStringSubmatch(x.Response.Header.Fields[1].Value)
		if m == nil {
			t.Fatalf("cookie %q", x.Response.Header.Fields[1].Value)
		}
		// The client comes back with it: the same peer, and no new cookie.
		x = newExchange()
		x.Request.Header.Add("Cookie", "sid="+m[1])
		if again := p.ask(t, x, 200); again != first || x.Response.Header.Has("Set-Cookie") {
			t.Fatalf("came back to %s instead of %s with %v", again, first, x.Response.Header)
		}
	}
	x := newExchange()
	p.ask(t, x, 200)
	if x.Response.Header.Count("Set-Cookie") != 1 {
		t.Errorf("head %v", x.Response.Header)
	}
	// A failure sticks to nobody.
	x = newExchange()
	d, err := p.Dispatch(x, false)
	if err != nil {
		t.Fatal(err)
	}
	d.Result(x, fault(502))
	d.End()
	if x.Response.Header.Has("Set-Cookie") {
		t.Errorf("head %v", x.Response.Header)
	}
}

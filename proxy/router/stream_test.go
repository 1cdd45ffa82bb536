package router

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"concord/fsm/entity"
)

// streamRoute reads "protocols sni,sni from=ip:port,… to=…".
func streamRoute(t testing.TB, id, text string, created float64) *StreamRoute {
	t.Helper()
	r := &entity.Route{ID: id, CreatedAt: created}
	for i, word := range strings.Fields(text) {
		kind, list, ok := strings.Cut(word, "=")
		switch {
		case i == 0:
			r.Protocols = strings.Split(word, ",")
		case !ok:
			r.SNIs = strings.Split(word, ",")
		default:
			for e := range strings.SplitSeq(list, ",") {
				var a entity.IPPort
				ip, port, hasPort := strings.Cut(e, ":")
				a.IP = ip
				if hasPort {
					var n int
					if _, err := fmt.Sscan(port, &n); err != nil {
						t.Fatal(err)
					}
					a.Port = &n
				}
				if kind == "from" {
					r.Sources = append(r.Sources, a)
				} else {
					r.Destinations = append(r.Destinations, a)
				}
			}
		}
	}
	c, err := CompileStream(r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func query(protocols Protocols, sni, from, to string) *StreamQuery {
	return &StreamQuery{Protocols: protocols, SNI: sni, Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to)}
}

func TestStreamPrecedence(t *testing.T) {
	const ssl = TLS | TLSPassthrough
	for _, c := range []struct {
		name   string
		routes []string // the ids are 0, 1, …; older ones first
		q      *StreamQuery
		want   string
	}{
		{"no routes", nil, query(TCP, "", "10.0.0.1:1000", "10.0.0.2:80"), ""},
		{"destination port", []string{"tcp to=:80", "tcp to=:81"}, query(TCP, "", "10.0.0.1:1000", "10.0.0.2:81"), "1"},
		{"another port", []string{"tcp to=:80"}, query(TCP, "", "10.0.0.1:1000", "10.0.0.2:81"), ""},
		{"another protocol", []string{"udp to=:80", "tls to=:80"}, query(TCP, "", "10.0.0.1:1000", "10.0.0.2:80"), ""},
		{"one of two protocols", []string{"tls,tcp to=:80"}, query(TCP, "", "10.0.0.1:1000", "10.0.0.2:80"), "0"},
		{"source range", []string{"tcp from=10.0.0.0/8"}, query(TCP, "", "10.9.9.9:1", "10.0.0.2:80"), "0"},
		{"outside the range", []string{"tcp from=10.0.0.0/8"}, query(TCP, "", "11.9.9.9:1", "10.0.0.2:80"), ""},
		{"address and port of one element", []string{"tcp from=10.0.0.1:5,10.0.0.2:6"}, query(TCP, "", "10.0.0.1:6", "10.0.0.2:80"), ""},
		{"any element", []string{"tcp from=10.0.0.1:5,10.0.0.2:6"}, query(TCP, "", "10.0.0.2:6", "10.0.0.2:80"), "0"},
		{"both ends before one", []string{"tcp from=10.0.0.1:5", "tcp from=10.0.0.0/8 to=:80"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"source before destination", []string{"tcp to=10.0.0.2:80", "tcp from=10.0.0.0/8"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"address before port", []string{"tcp to=:80", "tcp to=10.0.0.2"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"port before range", []string{"tcp to=10.0.0.0/8", "tcp to=:80"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"address and port before address", []string{"tcp to=10.0.0.2", "tcp to=10.0.0.2:80"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"narrow before wide", []string{"tcp to=10.0.0.0/8", "tcp to=10.0.0.0/24"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "1"},
		{"old before young", []string{"tcp to=:80", "tcp to=:80"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:80"), "0"},
		{"name", []string{"tls a.test", "tls b.test"}, query(ssl, "b.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"case", []string{"tls A.Test"}, query(ssl, "a.tesT", "10.0.0.1:5", "10.0.0.2:443"), "0"},
		{"no name", []string{"tls a.test"}, query(ssl, "", "10.0.0.1:5", "10.0.0.2:443"), ""},
		{"name before source", []string{"tls from=10.0.0.1", "tls a.test"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"both ends before name", []string{"tls a.test", "tls from=10.0.0.1 to=:443"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"name with destination before name", []string{"tls a.test", "tls a.test to=:443"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"name, another destination", []string{"tls a.test", "tls a.test to=:444"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), "0"},
		{"leading wildcard", []string{"tls *.a.test"}, query(ssl, "x.y.a.test", "10.0.0.1:5", "10.0.0.2:443"), "0"},
		{"not the domain itself", []string{"tls *.a.test"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), ""},
		{"trailing wildcard", []string{"tls a.*"}, query(ssl, "a.b", "10.0.0.1:5", "10.0.0.2:443"), "0"},
		{"exact before wildcard", []string{"tls *.test,a.*", "tls a.test"}, query(ssl, "a.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"long before short wildcard", []string{"tls *.test", "tls *.a.test"}, query(ssl, "b.a.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"passthrough", []string{"tls a.test", "tls_passthrough b.test"}, query(ssl, "b.test", "10.0.0.1:5", "10.0.0.2:443"), "1"},
		{"names do not count for TCP", []string{"tls,tcp a.test"}, query(TCP, "", "10.0.0.1:5", "10.0.0.2:443"), "0"},
		{"any UDP port", []string{"udp from=10.0.0.0/8"}, query(UDP, "", "10.0.0.1:5", "10.0.0.2:53"), "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := new(Streams).Edit()
			for i, text := range c.routes {
				e.Add(streamRoute(t, fmt.Sprint(i), text, float64(i)))
			}
			got := ""
			if r := e.Streams().Find(c.q); r != nil {
				got = r.Entity.ID
			}
			if got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

func TestStreamIPv6(t *testing.T) {
	r, err := CompileStream(&entity.Route{ID: "r", Protocols: []string{"tcp"}, Sources: []entity.IPPort{{IP: "2001:db8::/32"}, {IP: "::ffff:10.0.0.0/104"}}})
	if err != nil {
		t.Fatal(err)
	}
	e := new(Streams).Edit()
	e.Add(r)
	for from, want := range map[string]bool{"[2001:db8::1]:5": true, "[2001:db9::1]:5": false, "10.1.2.3:5": true, "11.1.2.3:5": false} {
		if got := e.Streams().Find(query(TCP, "", from, "[::1]:80")) != nil; got != want {
			t.Errorf("%s: %v, want %v", from, got, want)
		}
	}
	if _, err := CompileStream(&entity.Route{Destinations: []entity.IPPort{{IP: "nonsense"}}}); err == nil || !strings.HasPrefix(err.Error(), "destinations: ") {
		t.Errorf("error %v", err)
	}
}

// Whatever is added and removed, in whatever order, the best route is found that a look at all of them finds, and versions that were taken
// before stay as they were.
func TestStreamEdits(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	e := new(Streams).Edit()
	var live []*StreamRoute
	check := func(s *Streams, live []*StreamRoute) {
		t.Helper()
		q := query([]Protocols{TCP, TLS | TLSPassthrough, UDP}[rng.IntN(3)], pick("", "a.test", "b.a.test", "a.org"), pick("10.0.0.1:5", "10.1.0.1:6"), pick("10.0.0.2:80", "10.0.0.3:81"))
		var want *streamEntry
		for _, r := range live {
			for _, en := range r.entries {
				named := en.tree == byPort
				if q.Protocols&(TLS|TLSPassthrough) != 0 && !named {
					named = matchSNI([]hostPattern{{hostKind(en.tree), en.key, ""}}, &Query{TLS: true, SNI: q.SNI})
				}
				if named && en.matches(q) && (want == nil || en.compare(want) < 0) {
					want = en
				}
			}
		}
		got := s.Find(q)
		if (got == nil) != (want == nil) || got != nil && got != want.route {
			t.Fatalf("%+v: found %v, want %v", q, got, want)
		}
	}
	old, oldLive := e.Streams(), []*StreamRoute(nil)
	for i := range 3000 {
		if len(live) > 0 && rng.IntN(5) < 2 {
			at := rng.IntN(len(live))
			e.Remove(live[at])
			live = slices.Delete(slices.Clone(live), at, at+1)
		} else {
			text := pick("tcp", "tls", "tls,tcp", "udp", "tls_passthrough")
			if strings.HasPrefix(text, "tls") && rng.IntN(3) > 0 {
				text += " " + pick("a.test", "*.test", "a.*", "*.a.test,a.org")
			}
			if rng.IntN(2) == 0 {
				text += " from=" + pick("10.0.0.0/16", "10.0.0.1", "10.0.0.0/8:5")
			}
			text += " to=" + pick(":80", ":81,10.0.0.3", "10.0.0.0/24", ":80,:81")
			r := streamRoute(t, fmt.Sprint(i), text, float64(rng.IntN(3)))
			e.Add(r)
			live = append(slices.Clone(live), r)
		}
		s := e.Streams()
		check(s, live)
		check(old, oldLive)
		if i%50 == 0 {
			old, oldLive = s, live
		}
	}
}

func BenchmarkStreamFind(b *testing.B) {
	e := new(Streams).Edit()
	for i := range 10_000 {
		e.Add(streamRoute(b, fmt.Sprint(i), fmt.Sprintf("tls host-%d.example.com", i), 0))
	}
	s, q := e.Streams(), query(TLS, "host-4711.example.com", "10.0.0.1:5", "10.0.0.2:443")
	b.ReportAllocs()
	for b.Loop() {
		if s.Find(q) == nil {
			b.Fatal("not found")
		}
	}
}

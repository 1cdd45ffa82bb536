package iprestriction

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	list := func(l ...string) (out []any) {
		for _, s := range l {
			out = append(out, s)
		}
		return out
	}
	allow := func(l ...string) schema.Record { return schema.Record{"allow": list(l...)} }
	deny := func(l ...string) schema.Record { return schema.Record{"deny": list(l...)} }
	refused := func(ip string) *plugin.Exit { return plugin.Refuse(403, "IP address not allowed: "+ip, "") }
	custom := func(c schema.Record) schema.Record {
		c["status"], c["message"] = 404.0, "go away"
		return c
	}
	both := custom(allow("127.0.0.0/8"))
	both["deny"] = list("127.0.0.1")
	for _, c := range []struct {
		name   string
		config schema.Record
		ip     string
		want   *plugin.Exit
	}{
		{"3-098 denied", deny("127.0.0.1"), "127.0.0.1", refused("127.0.0.1")},
		{"3-099 not in allow, custom status and message", custom(allow("10.0.0.0/8")), "127.0.0.1", plugin.Refuse(404, "go away", "")},
		{"3-100 allow and deny both match", both, "127.0.0.1", plugin.Refuse(404, "go away", "")},
		{"3-101 allowed", allow("127.0.0.0/8"), "127.0.0.1", nil},
		{"not denied", deny("10.0.0.0/8"), "127.0.0.1", nil},
		{"allowed and not denied", both, "127.0.0.2", nil},
		{"in the second range", allow("10.0.0.0/8", "192.0.2.0/31"), "192.0.2.1", nil},
		{"just behind it", allow("10.0.0.0/8", "192.0.2.0/31"), "192.0.2.2", refused("192.0.2.2")},
		{"just before it", allow("10.0.0.0/8", "192.0.2.0/31"), "192.0.1.255", refused("192.0.1.255")},
		{"bits behind the mask do not count", deny("10.9.8.7/8"), "10.255.255.255", refused("10.255.255.255")},
		{"a range inside another", deny("10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24"), "10.200.0.1", refused("10.200.0.1")},
		{"IPv6", deny("2001:db8::/33"), "2001:db8:7fff:ffff::1", refused("2001:db8:7fff:ffff::1")},
		{"IPv6 outside", deny("2001:db8::/33"), "2001:db8:8000::1", nil},
		{"all of IPv6 is not IPv4", deny("::/0"), "127.0.0.1", nil},
		{"all of IPv4", deny("0.0.0.0/0"), "255.255.255.255", refused("255.255.255.255")},
		{"all of IPv4 is not IPv6", deny("0.0.0.0/0"), "::1", nil},
		{"H7 IPv4 in IPv6 form", deny("10.0.0.1"), "::ffff:10.0.0.1", refused("10.0.0.1")},
		{"IPv4 in IPv6 form in the list", deny("::ffff:10.0.0.0/104"), "10.1.2.3", refused("10.1.2.3")},
		{"a zone does not make another address", deny("fe80::1"), "fe80::1%eth0", refused("fe80::1")},
		{"unix socket", deny("10.0.0.1"), "", plugin.Refuse(403, "Cannot identify the client IP address, unix domain sockets are not supported.", "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			// H6: what the client says of its address does not matter.
			x := plugintest.Request("GET", "/", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1")
			if c.ip != "" {
				x.ClientIP = netip.MustParseAddr(c.ip)
			}
			if diff := cmp.Diff(c.want, plugintest.Access(t, x, g.Build(Plugin(), c.config))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestValidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		want   string
	}{
		{"allow", schema.Record{"allow": []any{"127.0.0.1", "::1/64"}}, ""},
		{"nothing", schema.Record{}, "schema violation (at least one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{"empty", schema.Record{"allow": []any{}}, "schema violation (at least one of these fields must be non-empty: 'config.allow', 'config.deny')"},
		{"no address", schema.Record{"deny": []any{"1.2.3"}}, "schema violation (config.deny: {\n  \"invalid ip or cidr range: '1.2.3'\"\n})"},
		{"old name", schema.Record{"allow": []any{"::1"}, "whitelist": []any{"::1"}}, "schema violation (config.whitelist: unknown field)"},
		{"status", schema.Record{"allow": []any{"::1"}, "status": 200.0}, "schema violation (config.status: must be the status of an error, an integer from 400 to 599)"},
	} {
		rec, errs := plugintest.Validate(Plugin(), c.config)
		got := ""
		if errs != nil {
			got = errs.Message()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if c.name == "allow" {
			want := schema.Record{"allow": []any{"127.0.0.1", "::1/64"}, "deny": nil, "status": nil, "message": nil}
			if diff := cmp.Diff(want, rec["config"]); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]any{"http", "https", "tcp", "tls", "grpc", "grpcs"}, rec["protocols"]); diff != "" {
				t.Error(diff)
			}
		}
	}
}

// FuzzRanges compares the search with asking every range.
func FuzzRanges(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0, 8, 10, 1, 0, 0, 16, 192, 0, 2, 0, 31}, []byte{10, 1, 2, 3})
	f.Add([]byte{0, 0, 0, 0, 0, 255, 255, 255, 255, 32}, []byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, list, address []byte) {
		var texts []string
		var prefixes []netip.Prefix
		for c := range slices.Chunk(list, 5) {
			if len(c) == 5 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte(c)), int(c[4]%33))
				prefixes, texts = append(prefixes, p), append(texts, p.String())
			}
		}
		if len(address) != 4 {
			return
		}
		r, err := newRanges(texts)
		if err != nil {
			t.Fatal(err)
		}
		at := binary.BigEndian.Uint32(address)
		for _, ip := range []uint32{at, at + 1, at - 1} {
			a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ip)))
			want := slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
			if r.has(a) != want {
				t.Errorf("%v in %v: %v", a, texts, !want)
			}
		}
	})
}

func BenchmarkIPRestriction(b *testing.B) {
	g := plugintest.New(b)
	many := make([]any, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("10.%d.%d.0/25", i/256, i%256)
	}
	for name, list := range map[string][]any{"1": {"192.0.2.0/24"}, "10000": append(many, "192.0.2.0/24")} {
		b.Run(name, func(b *testing.B) {
			i := g.Build(Plugin(), schema.Record{"allow": list}).(*instance)
			x := plugintest.Request("GET", "/")
			x.ClientIP = netip.MustParseAddr("192.0.2.7")
			b.ReportAllocs()
			for b.Loop() {
				if i.Access(x) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}

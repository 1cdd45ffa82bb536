package schema_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "concord/fsm/schema"
)

func TestValues(t *testing.T) {
	for _, c := range []struct {
		field Field
		in    string
		want  string // after "v: "
	}{
		{Host("v"), "example.com", ""}, {Host("v"), "a_b-c.d.", ""}, {Host("v"), "-a", ""}, {Host("v"), "127.0.0.1", ""}, {Host("v"), "::1", ""}, {Host("v"), "[2001:db8::1]", ""},
		{Host("v"), "h:80", "must not have a port"}, {Host("v"), "1.2.3.4:80", "must not have a port"}, {Host("v"), "[::1]:80", "must not have a port"},
		{Host("v"), "h:99999", "must not have a port"}, {Host("v"), "h:99999999999999999999", "must not have a port"},
		{Host("v"), "exa mple", "invalid value: exa mple"}, {Host("v"), "a..b", "invalid value: a..b"}, {Host("v"), "a-.b", "invalid value: a-.b"}, {Host("v"), ".", "invalid value: ."},
		{Host("v"), "1.2.3", "invalid value: 1.2.3"}, {Host("v"), "256.1.1.1", "invalid value: 256.1.1.1"}, {Host("v"), "1.2.3.4:", "invalid value: 1.2.3.4:"}, {Host("v"), "::1::", "invalid value: ::1::"},
		{Host("v"), "[::1", "invalid value: [::1"}, {Host("v"), "[::1]x", "invalid value: [::1]x"}, {Host("v"), "[::1]:x", "invalid value: [::1]:x"}, {Host("v"), "fe80::1%eth0", "invalid value: fe80::1%eth0"},
		{Host("v"), "h:", "invalid value: h:"}, {Host("v"), ":", "invalid value: :"}, {Host("v"), "h/x", "invalid value: h/x"}, {Host("v"), "hé", "invalid value: hé"},
		{HostWithPort("v"), "h:80", ""}, {HostWithPort("v"), "h:70000", "invalid port number"}, {HostWithPort("v"), "a b", "invalid hostname: a b"},
		{HostWithPort("v"), "1.2.3.400", "invalid ipv4 address: 1.2.3.400"}, {HostWithPort("v"), "1::2::3", "invalid ipv6 address: 1::2::3"},
		{SNI("v"), "a.b", ""}, {SNI("v"), "1.2.3.4", "must not be an IP"}, {SNI("v"), "a.b:1", "must not have a port"}, {SNI("v"), "a b", "invalid value: a b"},
		{WildcardHost("v"), "*.a.b", ""}, {WildcardHost("v"), "a.*", ""}, {WildcardHost("v"), "a.*.b", "wildcard must be leftmost or rightmost character"},
		{WildcardHost("v"), "*.a.*", "only one wildcard must be specified"}, {WildcardHost("v"), "1.2.3.4", "must not be an IP"}, {WildcardHost("v"), "*.a:1", "must not have a port"},
		{RouteHost("v"), "*.a.com", ""}, {RouteHost("v"), "a.*", ""}, {RouteHost("v"), "a.com:80", ""}, {RouteHost("v"), "*.a.com:80", ""},
		{RouteHost("v"), "a.*.com", "invalid wildcard: must be placed at leftmost or rightmost label"}, {RouteHost("v"), "*a.com", "invalid wildcard: must be placed at leftmost or rightmost label"},
		{RouteHost("v"), "*.*.com", "invalid wildcard: must have at most one wildcard"}, {RouteHost("v"), "a b.com", "invalid hostname: a b.com"},
		{IP("v"), "10.0.0.1", ""}, {IP("v"), "::ffff:1.2.3.4", ""}, {IP("v"), "10.0.0", "not an ip address: 10.0.0"}, {IP("v"), "fe80::1%a", "not an ip address: fe80::1%a"},
		{IPOrCIDR("v"), "10.0.0.0/8", ""}, {IPOrCIDR("v"), "::/0", ""}, {IPOrCIDR("v"), "10.0.0.1", ""}, {IPOrCIDR("v"), "10.0.0.0/33", "invalid ip or cidr range: '10.0.0.0/33'"},
		{IPOrCIDR("v"), "999.1.1.1", "invalid ip or cidr range: '999.1.1.1'"},
		{Path("v"), "/a/%20b;c=1,~", ""}, {Path("v"), "a", "should start with: /"}, {Path("v"), "/a//b", "must not have empty segments"},
		{Path("v"), "/a?b", "invalid path: '/a?b' (characters outside of the reserved list of RFC 3986 found)"}, {Path("v"), "/é", "invalid path: '/é' (characters outside of the reserved list of RFC 3986 found)"},
		{Path("v"), "/%2", "invalid url-encoded value: '%2'"}, {Path("v"), "/%zz/%41", "invalid url-encoded value: '%zz'"}, {Path("v"), "/%%41", "invalid url-encoded value: '%__'"},
		{RoutePath("v"), "/", ""}, {RoutePath("v"), "/a b", ""}, {RoutePath("v"), "/a/", ""}, {RoutePath("v"), `~/v(?<n>\d+)/x$`, ""}, {RoutePath("v"), "/%2F", ""},
		{RoutePath("v"), "a", "should start with: / (fixed path) or ~/ (regex path)"}, {RoutePath("v"), "~a", "should start with: / (fixed path) or ~/ (regex path)"},
		{RoutePath("v"), "/a/../b", "non-normalized path, consider use '/b' instead"}, {RoutePath("v"), "/a/./b/..", "non-normalized path, consider use '/a/' instead"},
		{RoutePath("v"), "/..", "non-normalized path, consider use '/' instead"}, {RoutePath("v"), "/%41%2f", "non-normalized path, consider use '/A%2F' instead"},
		{RoutePath("v"), "/%4", "invalid url-encoded value: '%4'"}, {RoutePath("v"), "~/(", "invalid regex: '/(' (PCRE returned: missing closing ): `/(`)"},
		{RoutePath("v"), "~/a(?=b)", "invalid regex: '/a(?=b)' (PCRE returned: invalid or unsupported Perl syntax: `(?=`)"},
		{URL("v"), "http://h/x?y", ""}, {URL("v"), "//h", "missing scheme in url"}, {URL("v"), "mailto:x", "missing host in url"}, {URL("v"), "x", "missing host in url"},
		{Method("v"), "GET", ""}, {Method("v"), "get", "invalid value: get"}, {Method("v"), "M-SEARCH", "invalid value: M-SEARCH"},
		{HeaderName("v"), "X_a-1", ""}, {HeaderName("v"), "a b", "bad header name 'a b', allowed characters are A-Z, a-z, 0-9, '_', and '-'"},
		{CookieName("v"), "a!#", ""}, {CookieName("v"), "a;b", "contains one or more invalid characters. ASCII control characters (0-31;127), space, tab and the characters ()<>@,;:\\\"/?={}[] are not allowed."},
		{UTF8Name("v"), "a.b-c_d~é", ""}, {UTF8Name("v"), "a/b", "invalid value 'a/b': the only accepted ascii characters are alphanumerics or ., -, _, and ~"},
		{*Tags().Elem, "a b!é~", ""}, {*Tags().Elem, "a/b", "invalid tag 'a/b': expected printable ascii (except `,` and `/`) or valid utf-8 sequences"}, {*Tags().Elem, "a\x7f", "invalid tag 'a\x7f': expected printable ascii (except `,` and `/`) or valid utf-8 sequences"},
	} {
		f := c.field
		f.Name = "v"
		s := &Schema{Name: "s", Fields: []Field{f}}
		want := ""
		if c.want != "" {
			want = "schema violation (v: " + c.want + ")"
		}
		if _, errs := s.Prepare(Record{"v": c.in}, Options{}); message(errs) != want {
			t.Errorf("%q\n got %s\nwant %s", c.in, message(errs), want)
		}
	}
}

func TestServiceURL(t *testing.T) {
	type parts struct{ Protocol, Host, Port, Path any }
	for in, want := range map[string]parts{
		"http://h":                           {"http", "h", 80.0, nil},
		"https://h/a/b":                      {"https", "h", 443.0, "/a/b"},
		"http://h:8080/":                     {"http", "h", 8080.0, "/"},
		"https://h:80":                       {"https", "h", 80.0, nil},
		"grpcs://h":                          {"grpcs", "h", 80.0, nil},
		"//h:443":                            {"https", "h", 443.0, nil},
		"//h:80/x":                           {"http", "h", 80.0, "/x"},
		"//h":                                {"http", "h", 80.0, nil},
		"http://u:p@h/x?y=1#z":               {"http", "h", 80.0, "/x"},
		"http://h?x=1":                       {"http", "h", 80.0, nil},
		"http://[::1]:81/a;b":                {"http", "::1", 81.0, "/a"},
		"http://h:abc":                       {"http", "h", "abc", nil},
		"http://h:/":                         {"http", "h", "", "/"},
		"localhost:8000":                     {"localhost", nil, 80.0, "8000"},
		"foo":                                {"http", nil, 80.0, "foo"},
		"http://":                            {"http", nil, 80.0, nil},
		"http://h/" + strings.Repeat("a", 9): {"http", "h", 80.0, "/aaaaaaaaa"},
	} {
		rec, errs := ServiceURL().Expand(in, nil)
		if errs != nil {
			t.Fatal(errs)
		}
		if d := cmp.Diff(want, parts{rec["protocol"], rec["host"], rec["port"], rec["path"]}); d != "" {
			t.Errorf("%s (-want +got)\n%s", in, d)
		}
	}
}

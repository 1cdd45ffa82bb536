package exchange

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/test/harness"
)

func TestNormalizePath(t *testing.T) {
	tests := []struct {
		name, in, want string
		err            error
	}{
		{name: "plain", in: "/a/b.c/d..e/...", want: "/a/b.c/d..e/..."},
		{name: "empty", in: "", want: "/"},
		{name: "no slash", in: "a", want: "/a"},
		{name: "unreserved decoded", in: "/%61dmin%7E", want: "/admin~"},
		{name: "reserved upper-cased", in: "/a%3ab%26", want: "/a%3Ab%26"},
		{name: "percent stays", in: "/%252e%252E", want: "/%252e%252E"},
		{name: "bytes above 0x7f decoded", in: "/caf%c3%A9", want: "/café"},
		{name: "space decoded", in: "/a%20b", want: "/a b"},
		{name: "control stays", in: "/a%0ab%7f", want: "/a%0Ab%7F"},
		{name: "slashes merged", in: "//a///b//", want: "/a/b/"},
		{name: "dot", in: "/./a/./b/.", want: "/a/b/"},
		{name: "dot dot", in: "/x/../a/y/z/../../b", want: "/a/b"},
		{name: "dot dot at the end", in: "/a/b/..", want: "/a/"},
		{name: "dot dot above the root", in: "/../../a/../..", want: "/"},
		{name: "encoded dots", in: "/%2e%2e/a/%2E/b/x/.%2e", want: "/a/b/"},
		{name: "dots and more", in: "/api../a/.b/..c", want: "/api../a/.b/..c"},
		{name: "encoded slash", in: "/a%2fb", want: "/a%2Fb"},
		{name: "encoded slash and dots", in: "/a%2f..%2fb/./c/%2e%2E", want: "/a%2F..%2Fb/"},
		{name: "encoded backslash", in: "/a%5cb", want: "/a%5Cb"},
		{name: "encoded hash", in: "/a%23", want: "/a%23"},
		{name: "encoded semicolon", in: "/a%3b", want: "/a%3B"},
		{name: "encoded NUL", in: "/a%00", err: ErrPathAmbiguous},
		{name: "backslash", in: `/a\b`, err: ErrPathAmbiguous},
		{name: "backslash among escapes", in: `/%61\b`, err: ErrPathAmbiguous},
		{name: "wrong escape", in: "/%zz", err: ErrPathEscape},
		{name: "cut escape", in: "/%4", err: ErrPathEscape},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NormalizePath(tt.in)
			if !errors.Is(err, tt.err) || err == nil && got != tt.want {
				t.Fatalf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
			var x Exchange
			if again, err2 := x.NormalizePath(tt.in); err == nil && again != got || !errors.Is(err2, tt.err) {
				t.Errorf("in the exchange: %q, %v", again, err2)
			}
		})
	}
}

// TestOtherReading: what a careless upstream makes of a path; "" where that shows a dot segment.
func TestOtherReading(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"slash", "/a%2Fb", "/a/b"},
		{"slashes", "/a%2F%2Fb%2F", "/a/b/"},
		{"backslash", "/a%5Cb", "/a/b"},
		{"hash", "/a%23b/c", "/a"},
		{"question mark", "/a%3Fb/c", "/a"},
		{"parameters", "/a;x=1/b;y", "/a/b"},
		{"encoded parameters", "/a%3Bx%2Fb", "/a/b"},
		{"only parameters", "/;x/b", "/b"},
		{"double encoding is not decoded", "/a%252Fb%253B;x", "/a%252Fb%253B"},
		{"other escapes stay", "/a%40b%2Cc%2Fd", "/a%40b%2Cc/d"},
		{"a URL", "/to/https%3A%2F%2Fa.com%2Fx", "/to/https%3A/a.com/x"},
		{"dots in a name", "/a..%2F...%2F.b", "/a../.../.b"},
		{"dot dot", "/a%2F..%2Fb", ""},
		{"dot dot at the end", "/a%2F..", ""},
		{"dot", "/a%2F.%2Fb", ""},
		{"dot at the end", "/a%5C.", ""},
		{"between a slash and an escaped one", "/..%2Fb", ""},
		{"dot dot with parameters", "/a/..;/b", ""},
		{"dot dot with parameters at the end", "/a/..;x", ""},
		{"dot dot with encoded parameters", "/a/..%3Bx/b", ""},
		{"dot dot before a hash", "/a/..%23", ""},
	} {
		var x Exchange
		if got, ok := x.OtherReading(c.in); ok != (c.want != "") || ok && got != c.want || !HasOtherReading(c.in) {
			t.Errorf("%s: %q %v, want %q", c.name, got, ok, c.want)
		}
	}
	for _, plain := range []string{"/", "/a/b.c", "/a%40b", "/100%25", "/a%252F", "/é"} {
		if HasOtherReading(plain) {
			t.Errorf("%s has only one reading", plain)
		}
	}
}

func TestOtherReadingAllocatesNothing(t *testing.T) {
	var x Exchange
	harness.NoAllocs(t, "other readings", func() {
		if _, ok := x.OtherReading("/api/v4/projects/group%2Fname/issues"); !ok || HasOtherReading("/api/v4/projects/1/issues%20open") {
			t.Error("readings")
		}
		x.Reset()
	})
}

// FuzzOtherReading: the other reading is a normal path without anything left to be read differently.
func FuzzOtherReading(f *testing.F) {
	for _, s := range []string{"/a%2Fb", "/..;/x", "/%3B%5C", "/a%23", "/;", "/%2F%2F"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		path, err := NormalizePath(in)
		if err != nil || strings.ContainsAny(path, "?#") {
			return
		}
		var x Exchange
		got, ok := x.OtherReading(path)
		if !ok {
			return
		}
		again, err := NormalizePath(got)
		if err != nil || again != got || HasOtherReading(got) {
			t.Errorf("%q reads as %q, that as %q, %v", path, got, again, err)
		}
		if !HasOtherReading(path) && got != path {
			t.Errorf("%q has one reading, and %q", path, got)
		}
	})
}

// FuzzNormalizePath: what is sent upstream, read again, leads to the same route.
func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%61%2e/./", "//x", "/%C3%A9 ", "/%25", "/.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := NormalizePath(in)
		if err != nil || strings.ContainsFunc(in, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return // control characters are refused by the front ends before
		}
		if got == "" || got[0] != '/' || strings.Contains(got, "//") || slices.Contains(strings.Split(got, "/"), "..") || slices.Contains(strings.Split(got, "/"), ".") {
			t.Errorf("%q became %q", in, got)
		}
		sent := string(AppendEscapedPath(nil, got))
		for i := range len(sent) {
			if sent[i] <= 0x20 || sent[i] >= 0x7f || sent[i] == '?' || sent[i] == '#' {
				t.Errorf("%q is sent as %q", in, sent)
			}
		}
		if strings.ContainsAny(got, "?#") {
			return // only in paths that no request line can carry
		}
		if again, err := NormalizePath(sent); err != nil || again != got {
			t.Errorf("%q became %q, was sent as %q, and reads as %q, %v", in, got, sent, again, err)
		}
	})
}

func TestHeader(t *testing.T) {
	h := Header{Fields: []Field{{"Host", "a"}, {"X-A", "1"}, {"x-b", "2"}, {"x-a", "3"}}}
	if h.Get("x-A") != "1" || h.Get("none") != "" || !h.Has("X-B") || h.Has("X-") || h.Count("X-A") != 2 {
		t.Error("look-ups")
	}
	if v, ok := h.Lookup("X-b"); v != "2" || !ok {
		t.Error("Lookup")
	}
	if got := slices.Collect(h.Values("X-a")); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("Values: %q", got)
	}
	h.Set("X-a", "4\r\nEvil: 1\x00")
	h.Add("New", "5")
	want := []Field{{"Host", "a"}, {"X-a", "4  Evil: 1 "}, {"x-b", "2"}, {"New", "5"}}
	if d := cmp.Diff(want, h.Fields); d != "" {
		t.Error(d)
	}
	if !h.Del("HOST") || h.Del("Host") {
		t.Error("Del")
	}
	h.DelFunc(func(n string) bool { return n == "New" })
	if d := cmp.Diff([]Field{{"X-a", "4  Evil: 1 "}, {"x-b", "2"}}, h.Fields); d != "" {
		t.Error(d)
	}
}

func TestNameSet(t *testing.T) {
	s := NewNameSet("X-Consumer-*", "X-Userinfo")
	for name, want := range map[string]bool{
		"X-Consumer-ID": true, "x_consumer_id": true, "X-CONSUMER-": true, "x-consumer": false, "X_Userinfo": true,
		"X-Userinfo2": false, "": false, "Y-Consumer-ID": false, "X-Consumer_Custom-Id": true,
	} {
		if s.Has(name) != want {
			t.Errorf("Has(%q) = %t", name, !want)
		}
	}
	h := Header{Fields: []Field{{"A", "1"}, {"X_Consumer_Id", "2"}, {"B", "3"}, {"x-userinfo", "4"}}}
	h.DelSet(s)
	if d := cmp.Diff([]Field{{"A", "1"}, {"B", "3"}}, h.Fields); d != "" {
		t.Error(d)
	}
}

func TestHasToken(t *testing.T) {
	for list, want := range map[string]bool{"close": true, "keep-alive,\tClose ": true, "closed": false, "": false, "x close": false} {
		if HasToken(list, "close") != want {
			t.Errorf("HasToken(%q) = %t", list, !want)
		}
	}
}

func TestQuery(t *testing.T) {
	r := Request{RawQuery: "a=1&b=x%20y+z&a=2&c&%64=4&e=%zz&f=a;b&&g=%3D", HasQuery: true}
	for name, want := range map[string]string{"a": "1", "b": "x y z", "c": "", "d": "4", "e": "%zz", "f": "a;b", "g": "="} {
		if v, ok := r.Query(name); v != want || !ok {
			t.Errorf("%s: %q, %t", name, v, ok)
		}
	}
	if _, ok := r.Query("h"); ok {
		t.Error("h exists")
	}
	if got := slices.Collect(r.QueryValues("a")); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("a: %q", got)
	}
	n := 0
	for range r.QueryAll() {
		n++
	}
	if n != 8 {
		t.Errorf("%d parameters", n)
	}
	if !r.DelQuery("a") || r.DelQuery("a") || r.RawQuery != "b=x%20y+z&c&%64=4&e=%zz&f=a;b&&g=%3D" {
		t.Errorf("after DelQuery: %q", r.RawQuery)
	}
	r.SetQuery("d", "ü &")
	if v, _ := r.Query("d"); v != "ü &" || strings.Contains(r.RawQuery, "%64") {
		t.Errorf("after SetQuery: %q", r.RawQuery)
	}
	r.SetRawQuery("")
	r.AddQuery("x", "1")
	if r.RawQuery != "x=1" || !r.HasQuery {
		t.Errorf("after AddQuery: %q", r.RawQuery)
	}
	// The limit that other gateways have hides parameters from plugins that the upstream sees.
	r.SetRawQuery(strings.Repeat("p=1&", 10_001) + "key=k")
	if v, _ := r.Query("key"); v != "k" {
		t.Error("parameter 10,002 is not seen")
	}
}

func TestCookie(t *testing.T) {
	r := Request{Header: Header{Fields: []Field{{"Cookie", `a=1; b="2"; c`}, {"cookie", "d=4=5;a=6"}}}}
	for name, want := range map[string]string{"a": "1", "b": "2", "d": "4=5"} {
		if v, ok := r.Cookie(name); v != want || !ok {
			t.Errorf("%s: %q, %t", name, v, ok)
		}
	}
	if _, ok := r.Cookie("c"); ok {
		t.Error("c is no cookie")
	}
}

// parts is a body in pieces.
type parts []string

func (p *parts) Next() ([]byte, error) {
	if len(*p) == 0 {
		return nil, io.EOF
	}
	s := (*p)[0]
	*p = (*p)[1:]
	return []byte(s), nil
}
func (p *parts) Close() error { return nil }

func TestBuffer(t *testing.T) {
	r := Request{Body: &parts{"ab", "cd"}, Length: -1}
	for range 2 { // the second time it is in memory
		if b, err := r.Buffer(4); string(b) != "abcd" || err != nil || r.Length != 4 {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if _, err := r.Buffer(3); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	for range 2 {
		if b, err := r.Body.Next(); string(b) != "abcd" || err != io.EOF {
			t.Errorf("%q, %v", b, err)
		}
		if !r.Rewind() {
			t.Error("cannot be sent again")
		}
	}
	r = Request{Body: &parts{"ab", "cd"}, Length: -1}
	if _, err := r.Buffer(3); !errors.Is(err, ErrTooLarge) || r.Rewind() {
		t.Error(err)
	}
}

// lent is a body whose pieces are gone with the following Next; the last one comes with the end if together is set.
type lent struct {
	pieces   []string
	together bool
	buf      []byte
	ends     func()
}

func (l *lent) Next() ([]byte, error) {
	for i := range l.buf {
		l.buf[i] = '?'
	}
	if len(l.pieces) == 0 {
		l.ends()
		return nil, io.EOF
	}
	l.buf = []byte(l.pieces[0])
	l.pieces = l.pieces[1:]
	if l.together && len(l.pieces) == 0 {
		l.ends()
		return l.buf, io.EOF
	}
	return l.buf, nil
}
func (l *lent) Close() error { return nil }

func TestHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		pieces []string
		length int64
		held   bool
	}{
		{"nothing", nil, -1, true},
		{"one piece", []string{"abc"}, 3, true},
		{"one piece, as long as the limit", []string{"abcdefgh"}, -1, true},
		{"pieces", []string{"ab", "", "cd", "e"}, -1, true},
		{"pieces as long as the limit", []string{"ab", "cd", "efgh"}, 8, true},
		{"pieces over the limit", []string{"ab", "cd", "efghi"}, -1, false},
		{"more behind the limit", []string{"ab", "cd", "efghi", "jk", "l"}, 12, false},
		{"a long piece first", []string{"abcdefghi", "jk"}, -1, false},
		{"shorter than announced", []string{"ab", "cd"}, 5, false},
		{"with trailers", []string{"ab", "cd"}, -1, false},
	} {
		for _, together := range []bool{true, false} {
			r := Request{Length: c.length}
			r.Body = &lent{pieces: c.pieces, together: together, ends: func() {
				if c.name == "with trailers" && !r.Trailer.Has("A") {
					r.Trailer.Add("A", "b")
				}
			}}
			memory, err := r.Hold(make([]byte, 0, 2), 8)
			if err != nil || len(memory) > 8 || r.InMemory() != c.held || r.Rewind() != c.held {
				t.Errorf("%s, the end with the last piece %v: in memory %v, copied %q, %v", c.name, together, r.InMemory(), memory, err)
			}
			want := strings.Join(c.pieces, "")
			if c.held && r.Length != int64(len(want)) || !c.held && r.Length != c.length {
				t.Errorf("%s: length %d", c.name, r.Length)
			}
			if !Ready(r.Body) {
				t.Errorf("%s: what is there is not ready", c.name)
			}
			for range 2 {
				var got []byte
				for err = nil; err == nil; {
					var b []byte
					b, err = r.Body.Next()
					got = append(got, b...)
				}
				if string(got) != want || err != io.EOF {
					t.Errorf("%s, the end with the last piece %v: %q, %v", c.name, together, got, err)
				}
				if !r.Rewind() {
					break
				}
			}
		}
	}
	// One piece that is the whole and longer than the limit is there already: it is held, without a copy.
	r := Request{Body: &lent{pieces: []string{"abcdefghijkl"}, together: true, ends: func() {}}, Length: -1}
	if memory, err := r.Hold(nil, 8); err != nil || memory != nil || !r.InMemory() || r.Length != 12 {
		t.Errorf("%q, %v, length %d", memory, err, r.Length)
	}
	broken := errors.New("broken")
	r = Request{Body: failing{broken}, Length: -1}
	if _, err := r.Hold(nil, 8); err != broken {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Next() ([]byte, error) { return nil, f.err }
func (f failing) Close() error          { return nil }

func TestScratchAndReset(t *testing.T) {
	var x Exchange
	long := strings.Repeat("y", 5000)
	a, b, c := x.Concat("1", "23"), x.Concat(long), x.Concat("4")
	if a != "123" || b != long || c != "4" {
		t.Errorf("%q %d %q", a, len(b), c)
	}
	x.NewRequestID()
	id := strings.Clone(x.RequestID)
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("%q", id)
	}
	x.Request.Header.Add("A", "b")
	x.Leave("k", 0)
	x.Leave("k", 1)
	if x.Left("k") != 1 {
		t.Errorf("%v was left", x.Left("k"))
	}
	x.Proxied = true
	x.Reset()
	if x.RequestID != "" || len(x.Request.Header.Fields) != 0 || x.Left("k") != nil || x.Proxied {
		t.Errorf("something is left: %q, %v, %t", x.RequestID, x.Request.Header.Fields, x.Proxied)
	}
	x.NewRequestID()
	if x.RequestID == id {
		t.Error("the same id twice")
	}
	harness.NoAllocs(t, "an exchange", func() {
		x.Request.Header.Set("X", x.Concat("a", "b"))
		x.NewRequestID()
		x.Response.SetBody(nil)
		x.Reset()
	})
}

// TestValuesEndNoLine: what would end a field line becomes a space, wherever it stands.
func TestValuesEndNoLine(t *testing.T) {
	for _, c := range []byte{0, 1, '\t', '\n', '\r', 0x1f, ' ', 0x7f, 0x80, 0x8d, 0xff} {
		want := string([]byte{c})
		if c == 0 || c == '\n' || c == '\r' {
			want = " "
		}
		for n := range 20 {
			for at := range n {
				before, after := strings.Repeat("\xffa", at)[:at], strings.Repeat("\t~", n)[:n-at-1]
				var h Header
				h.Add("A", before+string([]byte{c})+after)
				if got := h.Get("A"); got != before+want+after {
					t.Fatalf("%#x at %d of %d: %q", c, at, n, got)
				}
			}
		}
	}
}

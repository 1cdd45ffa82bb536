package requestsizelimiting

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

var (
	tooLarge = plugin.Refuse(413, "Request size limit exceeded", "")
	expect   = plugin.Refuse(417, "Request size limit exceeded", "")
	noLength = plugin.Refuse(411, "A valid Content-Length header is required", "")
)

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	tenBytes := schema.Record{"allowed_payload_size": 10.0, "size_unit": "bytes"}
	strict := schema.Record{"require_content_length": true}
	for _, c := range []struct {
		name    string
		config  schema.Record
		headers []string
		length  int64 // of the body; -1: chunked
		expect  bool
		want    *plugin.Exit
	}{
		{"below", tenBytes, nil, 9, false, nil},
		{"equal", tenBytes, nil, 10, false, nil},
		{"above", tenBytes, nil, 11, false, tooLarge},
		{"above, Expect", tenBytes, nil, 11, true, expect},
		{"none", tenBytes, nil, 0, false, nil},
		{"a kilobyte", schema.Record{"allowed_payload_size": 1.0, "size_unit": "kilobytes"}, nil, 1024, false, nil},
		{"over a kilobyte", schema.Record{"allowed_payload_size": 1.0, "size_unit": "kilobytes"}, nil, 1025, false, tooLarge},
		{"128 megabytes by default", schema.Record{}, nil, 128 << 20, false, nil},
		{"over 128 megabytes", schema.Record{}, nil, 128<<20 + 1, false, tooLarge},
		{"null is the default", schema.Record{"allowed_payload_size": nil}, nil, 128<<20 + 1, false, tooLarge},
		{"more than there can be", schema.Record{"allowed_payload_size": float64(1 << 44)}, nil, 1 << 40, false, nil},
		{"length required and absent", strict, nil, 0, false, noLength},
		{"length required and zero", strict, []string{"Content-Length: 0"}, 0, false, nil},
		{"length required, chunked", strict, nil, -1, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.Request("POST", "/", c.headers...)
			x.Request.Expect100 = c.expect
			if c.length != 0 {
				plugintest.Body(x, c.length)
			}
			if diff := cmp.Diff(c.want, plugintest.Access(t, x, g.Build(Plugin(), c.config))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChunkedIsCounted(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"allowed_payload_size": 10.0, "size_unit": "bytes"})
	for _, c := range []struct {
		name   string
		chunks []string
		passes string
		expect bool
		want   *plugin.Exit
	}{
		{"below", []string{"1234", "5678"}, "12345678", false, nil},
		{"equal", []string{"12345", "67890"}, "1234567890", false, nil},
		{"above", []string{"12345", "67890", "1", "never read"}, "1234567890", false, tooLarge},
		{"above in one chunk", []string{strings.Repeat("x", 11)}, "", false, tooLarge},
		{"above, Expect", []string{strings.Repeat("x", 11)}, "", true, expect},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.Request("POST", "/")
			x.Request.Expect100 = c.expect
			plugintest.Body(x, -1, c.chunks...)
			if e := plugintest.Access(t, x, i); e != nil {
				t.Fatal(e)
			}
			got, err := plugintest.ReadBody(t, x)
			var exit *plugin.Exit
			errors.As(err, &exit)
			if diff := cmp.Diff(c.want, exit); diff != "" || got != c.passes {
				t.Errorf("passed %q: %s", got, diff)
			}
			if exit != nil {
				if _, again := x.Request.Body.Next(); again == nil {
					t.Error("the rest can be read")
				}
			}
		})
	}
}

func BenchmarkAccess(b *testing.B) {
	g := plugintest.New(b)
	i := g.Build(Plugin(), schema.Record{}).(plugin.Accessor)
	x := plugintest.Request("POST", "/", "Content-Length: 5")
	x.Request.Length = 5
	b.ReportAllocs()
	for b.Loop() {
		if err := i.Access(x); err != nil {
			b.Fatal(err)
		}
	}
}

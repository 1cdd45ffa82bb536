package prometheus

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPage(t *testing.T) {
	var p Page
	p.One("plain", Gauge, "back\\slash \"quoted\"\nline", 1.5)
	p.Family("labelled", Counter, "two")
	p.Add(3, "a", "x\"y\\z\nforged 1", "b", "")
	p.Add(1<<40, "a", "\xff\u00e9")
	p.Add(math.Inf(1))
	p.Add(math.NaN())
	p.Family("h", Histogram, "three")
	p.Buckets([]float64{0.5, 10}, []uint64{1, 2, 4}, 99.25, "a", "b")
	want := `# HELP plain back\\slash "quoted"\nline
# TYPE plain gauge
plain 1.5
# HELP labelled two
# TYPE labelled counter
labelled{a="x\"y\\z\nforged 1",b=""} 3
labelled{a="` + "\uFFFD\u00e9" + `"} 1099511627776
labelled +Inf
labelled NaN
# HELP h three
# TYPE h histogram
h_bucket{a="b",le="0.5"} 1
h_bucket{a="b",le="10"} 3
h_bucket{a="b",le="+Inf"} 7
h_count{a="b"} 7
h_sum{a="b"} 99.25
`
	if d := cmp.Diff(want, string(p.Bytes())); d != "" {
		t.Error(d)
	}
}

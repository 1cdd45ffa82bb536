package settings

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the generated files")

// TestGenerated keeps the reference page and the sample file equal to the table of keys.
func TestGenerated(t *testing.T) {
	for file, want := range map[string]string{"docs/settings.md": Reference(), "deploy/concord.conf.default": Sample()} {
		path := filepath.Join("..", "..", "..", file)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("%s is out of date, run make generate:\n%s", file, d)
		}
	}
}

// TestSample: with the # before every key taken away, the sample file gives the defaults and nothing unknown.
func TestSample(t *testing.T) {
	sample := regexp.MustCompile(`(?m)^#([a-z_]+ =)`).ReplaceAllString(Sample(), "$1")
	written, warnings, err := load(t, sample)
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	plain, _, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if live, restart := plain.Changed(written); len(live)+len(restart) > 0 {
		t.Error(live, restart)
	}
}

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
	"concord/test/transcript"
)

// TestConformance runs the recorded conversations with Kong's Admin API against real nodes: one, and three with every request sent to a random one.
func TestConformance(t *testing.T) {
	files, err := filepath.Glob("../conformance/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	client := http.Client{Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	onBoth(t, func(t *testing.T, pick func() *harness.Node) {
		run := 0
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			steps, err := transcript.Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			// Each file begins without entities.
			expect(t, "reset", pick().JSON("POST", "/config", `{"_format_version":"3.0"}`), 201)
			name, vars := strings.TrimSuffix(filepath.Base(file), ".txtar"), transcript.Vars{}
			for _, s := range steps {
				run++
				if err := s.Run(client.Do, "http://"+pick().Admin, vars); err != nil {
					t.Errorf("%s, %s: %v", name, s.Name, err)
				}
			}
		}
		t.Logf("%d steps", run)
	})
}

package cluster

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"concord/test/harness"
)

// TestCorruption damages the files of a stopped node. It must refuse to start and name the file, or hold exactly what it
// held before (the damage hit unused space, or its peers had a copy): never silently something else.
func TestCorruption(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "solo")
	n.Start()
	for i := range 200 {
		if a := n.JSON("POST", "/consumers", fmt.Sprintf(`{"username":"u%d","tags":["%064d"]}`, i, i)); a.Status != 201 {
			t.Fatal(a.Status, a.Body)
		}
	}
	before := fmt.Sprint(list(t, n))
	n.Stop()
	good := map[string][]byte{}
	var names []string
	err := filepath.WalkDir(n.Prefix, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		good[path] = b
		if strings.Contains(path, "raft") && len(b) > 0 {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("no raft files below %s (%v): %v", n.Prefix, err, good)
	}
	refused, unharmed := 0, 0
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 14 {
		for path, b := range good {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		victim := names[round%len(names)]
		b := append([]byte(nil), good[victim]...)
		used := len(b)
		for used > 1 && b[used-1] == 0 { // bbolt allocates more than it uses
			used--
		}
		at := rng.IntN(used)
		what := "bytes flipped"
		if round%5 == 4 {
			b, what = b[:at], "truncated"
		} else {
			for i := at; i < min(at+64, len(b)); i++ {
				b[i] ^= 0xff
			}
		}
		if err := os.WriteFile(victim, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(n.LogFile, 0); err != nil {
			t.Fatal(err)
		}
		if err := n.StartProcess(); err != nil {
			t.Fatal(err)
		}
		ready := make(chan bool, 1)
		go func() {
			deadline := time.Now().Add(60 * time.Second)
			for n.Running() && time.Now().Before(deadline) {
				if a, err := harness.Do("GET", "http://"+n.Status+"/status/ready", "", ""); err == nil && a.Status == 200 {
					ready <- true
					return
				}
				time.Sleep(30 * time.Millisecond)
			}
			ready <- false
		}()
		if <-ready {
			if after := fmt.Sprint(list(t, n)); after != before {
				t.Errorf("round %d: %s of %s at %d: the node serves other data than before", round, what, filepath.Base(victim), at)
			}
			unharmed++
			n.Stop()
			continue
		}
		if n.Running() {
			t.Errorf("round %d: %s of %s at %d: neither ready nor ended", round, what, filepath.Base(victim), at)
			n.Kill()
			continue
		}
		if log := n.Log(); !strings.Contains(log, victim) && !strings.Contains(log, filepath.Base(victim)) {
			t.Errorf("round %d: %s of %s at %d: refused without naming the file: %s", round, what, filepath.Base(victim), at, log)
		}
		if strings.Contains(n.Log(), "goroutine ") {
			t.Errorf("round %d: a crash instead of a refusal: %s", round, n.Log())
		}
		refused++
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
	t.Logf("%d refused, %d unharmed", refused, unharmed)
}

package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestNumbers(t *testing.T) {
	out := []byte(`Running 2s test
  210644 requests in 6.00s, 238.05MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:  35101.17
`)
	if n := number(reRequests, out); n[0] != 210644 {
		t.Errorf("requests: %v", n)
	}
	if n := number(reErrors, out); len(n) != 4 || n[3] != 4 {
		t.Errorf("errors: %v", n)
	}
	if n := number(reRate, out); n[0] != 35101.17 {
		t.Errorf("rate: %v", n)
	}
	if n := number(reNon2xx, []byte("all is well")); n[0] != 0 {
		t.Errorf("without a match: %v", n)
	}
	if median([]float64{3, 1, 2}) != 2 || median([]float64{4, 1, 2, 3}) != 2.5 {
		t.Error("median")
	}
}

func TestProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc")
	}
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
	}
	if ticks(os.Getpid()) < 5 || rss(os.Getpid()) < 1<<20 {
		t.Errorf("%v ticks, %v bytes", ticks(os.Getpid()), rss(os.Getpid()))
	}
}

func TestReport(t *testing.T) {
	b := &bench{targets: []*target{
		{name: "nginx", rounds: []sample{{cpu: 10, rate: 1}, {cpu: 20, rate: 1}, {cpu: 10, rate: 1}}},
		{name: "gateway", rounds: []sample{{cpu: 12, rate: 1}, {cpu: 22, rate: 1}, {cpu: 15, rate: 1}}},
	}}
	var out strings.Builder
	if err := b.report(&out, 1.25); err != nil || !strings.Contains(out.String(), " 1.20 ") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := b.report(&out, 1.15); err == nil {
		t.Error("a ratio of 1.20 is not over 1.15")
	}
	b.targets[1].rounds[2].bad = 1
	if err := b.report(&out, 0); err == nil {
		t.Error("bad answers do not count")
	}
}

func TestTargets(t *testing.T) {
	var list targets
	if err := list.Set("a|http://x/|cmd {UP}|apikey: k"); err != nil || list[0].header != "apikey: k" || list[0].command != "cmd {UP}" {
		t.Errorf("%v %+v", err, list)
	}
	if list.Set("a|b") == nil {
		t.Error("a target without a command was taken")
	}
}

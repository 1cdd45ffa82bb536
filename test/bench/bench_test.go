//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// measured starts an upstream and puts a job on it.
func measured(t *testing.T, j job) outcome {
	t.Helper()
	at, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = serveUpstream(at[0]) }()
	if err := until(t.Context(), "http://"+at[0]+"/", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	j.Addr = at[0]
	var in, out bytes.Buffer
	if err := json.NewEncoder(&in).Encode(j); err != nil {
		t.Fatal(err)
	}
	if err := runLoad(&in, &out); err != nil {
		t.Fatal(err)
	}
	var o outcome
	if err := json.NewDecoder(&out).Decode(&o); err != nil {
		t.Fatal(err)
	}
	if o.Bad != 0 {
		t.Fatalf("%+v", o)
	}
	return o
}

func TestLoad(t *testing.T) {
	small := request("x", "/get")
	t.Run("closed", func(t *testing.T) {
		if o := measured(t, job{Requests: [][]byte{small}, Conns: 4, Duration: time.Second}); o.Requests < 10 || o.Max < o.P50 || o.P50 <= 0 {
			t.Errorf("%+v", o)
		}
	})
	t.Run("each once, large bodies", func(t *testing.T) {
		list := [][]byte{small, request("x", "/size/3000000"), request("x", "/size/0"), small,
			[]byte("POST /size/5 HTTP/1.1\r\nHost: x\r\ncontent-length: 4\r\n\r\nbody")}
		if o := measured(t, job{Requests: list, Conns: 2, Once: true}); o.Requests != len(list) {
			t.Errorf("%+v", o)
		}
	})
	t.Run("fixed rate", func(t *testing.T) {
		for try := range 10 { // a busy machine may stop just before the end, when some are still on their way
			o := measured(t, job{Requests: [][]byte{small}, Conns: 4, Rate: 200, Duration: 500 * time.Millisecond})
			if o.Requests >= 98 && o.Requests <= 100 {
				return
			}
			if try == 9 || o.Requests > 100 {
				t.Fatalf("%+v", o)
			}
		}
	})
}

// TestNoOmission: a gateway that stalls is charged for the requests that were due meanwhile.
func TestNoOmission(t *testing.T) {
	l := &load{job: job{Addr: stalling(t, 300*time.Millisecond), Requests: [][]byte{request("x", "/")}, Conns: 1, Rate: 100, Duration: 500 * time.Millisecond},
		conns: map[int32]*loadConn{}, buf: make([]byte, 64<<10)}
	if err := l.run(); err != nil {
		t.Fatal(err)
	}
	slow := 0
	for _, us := range l.latencies {
		if us > 50_000 {
			slow++
		}
	}
	if slow < 15 { // 25 of the 30 that came due during the stall
		t.Errorf("one stall delayed %d requests: %v", slow, l.latencies)
	}
}

// stalling answers the first request late.
func stalling(t *testing.T, d time.Duration) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for first := true; ; first = false {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if first {
				time.Sleep(d)
			}
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
				return
			}
		}
	}()
	return ln.Addr().String()
}

func TestNumbers(t *testing.T) {
	const wrk = "  210644 requests in 6.00s, 238.05MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
	if n := numbers(reRequests, wrk); n[0] != 210644 {
		t.Errorf("requests: %v", n)
	}
	if n := numbers(reErrors, wrk); len(n) != 4 || n[3] != 4 {
		t.Errorf("errors: %v", n)
	}
	if n := numbers(reNon2xx, "all is well"); n[0] != 0 {
		t.Errorf("without a match: %v", n)
	}
	if n := numbers(reH2, "requests: 100 total, 100 started, 100 done, 97 succeeded, 2 failed, 1 errored, 0 timeout"); n[0] != 97 || n[2] != 1 {
		t.Errorf("h2load: %v", n)
	}
	if median([]float64{3, 1, 2}) != 2 || median([]float64{4, 1, 2, 3}) != 2.5 {
		t.Error("median")
	}
}

func TestProcess(t *testing.T) {
	before := cpuTime(os.Getpid())
	for end := time.Now().Add(20 * time.Second); cpuTime(os.Getpid())-before < 5e6; {
		if time.Now().After(end) {
			t.Fatal("the clock stands")
		}
	}
	if resident(os.Getpid()) < 1<<20 {
		t.Errorf("%v bytes", resident(os.Getpid()))
	}
}

func TestReport(t *testing.T) {
	of := func(us float64) sample { return sample{ok: true, cpu: us, rate: 1} }
	r := &row{name: "plain", bar: 1.15, rounds: []round{{base: of(10), concord: of(12)}, {base: of(20), concord: of(22)}, {base: of(10), concord: of(15)}}}
	b := &bench{strict: true, host: &host{}}
	var out strings.Builder
	if err := b.report(&out, []*row{r}); err == nil || !strings.Contains(out.String(), " 1.20 (1.10–1.50) ") {
		t.Errorf("%v\n%s", err, out.String())
	}
	r.bar = 1.25
	if err := b.report(&out, []*row{r}); err != nil {
		t.Error(err)
	}
	r.rounds[1].base.bad = 1
	if b.report(&out, []*row{r}) == nil {
		t.Error("bad answers do not count")
	}
}

func TestGarbage(t *testing.T) {
	const log = "level=warn msg=x\ngc 1 @0.5s 3%: 0.1+5.0+0.1 ms clock, 0.1+1/2/3+0.1 ms cpu, 4->4->2 MB\n" +
		"gc 2 @2.000s 0%: 0.5+30+0.5 ms clock, 0.5+0/8/0+0.5 ms cpu, 320->321->316 MB, 323 MB goal\ngc 3 @99.0s 0%: 1+1+1 ms clock\n"
	const started = int64(1e15)
	got := garbage(log, started, span{started + 1e9, started + 9e9})
	if len(got) != 1 || got[0] != (span{started + 2e9 - 10e6, started + 2e9 + 31e6 + 10e6}) {
		t.Errorf("%v", got)
	}
	text := pauses(got, span{started, started + 10e9}, 2000, outcome{Slow: []slow{{started + 5e9, 2500}}},
		outcome{Slow: []slow{{started + 2e9, 4000}, {started + 6e9, 3000}, {started + 7e9, 2100}}})
	if !strings.Contains(text, "| Concord | 0.98 % | 4.0 | 0.01 % | 3.0 |") || !strings.Contains(text, "| nginx | 0.00 % | 0.0 | 0.01 % | 2.5 |") {
		t.Error(text)
	}
}

func TestSignatures(t *testing.T) {
	of := func(us float64) sample { return sample{ok: true, cpu: us, rate: 1} }
	r := &row{name: "jwt RS256, fresh tokens", alg: "RS256", rounds: []round{{base: of(10), known: of(12), concord: of(42), check: 20}}}
	var out strings.Builder
	if over := signatures(&out, []*row{r, {name: "plain"}}); len(over) != 1 || !strings.Contains(out.String(), "| RS256 | 42.0 | 12.0 | 20.0 | 1.50 (1.50–1.50) |") {
		t.Errorf("%v\n%s", over, out.String())
	}
}

func TestDocument(t *testing.T) {
	file := t.TempDir() + "/doc.md"
	for _, c := range []struct{ text, want string }{
		{"a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n", "a\n<!-- bench -->\n\nnew\n\n<!-- /bench -->\nb\n"},
		{"a\n<!-- /bench -->\n<!-- bench -->\n", ""},
		{"no mark\n", ""},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := document(file, "new\n")
		if got, _ := os.ReadFile(file); c.want != "" && string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q became %q: %v", c.text, got, err)
		}
	}
}

// TestUpstreamStays: a collection of garbage does not close the socket that the upstream listens on.
func TestUpstreamStays(t *testing.T) {
	at, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = serveUpstream(at[0]) }()
	if err := until(t.Context(), "http://"+at[0]+"/", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // for finalizers
		c, err := net.Dial("tcp", at[0])
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
}

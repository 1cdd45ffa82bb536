//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// limit is what no answer should take longer than while garbage is collected.
const limit = 2 * time.Millisecond

// span is a time, in Unix nanoseconds.
type span struct{ from, to int64 }

// collections sends requests at the fixed rate to the node with many consumers and, at the same time, to nginx, and tells those that came
// while the node collected garbage from the others. The node is started anew with a heap that may grow by little only: it collects
// every second or so, each time as much as it does otherwise every few minutes. Which requests a collection meets is chance, so there are thirty or so.
func (b *bench) collections(rows []*row) error {
	for _, r := range rows {
		if r.kind != collected {
			continue
		}
		n := b.nodes[r.node]
		if err := b.host.end(n.pid); err != nil {
			return err
		}
		n.env = []string{"GOGC=1", "GODEBUG=gctrace=1"}
		if err := n.start(b.ctx, b.host); err != nil {
			return err
		}
		started := processStart(n.pid)
		of := func(addr string, requests [][]byte) job {
			return job{Addr: addr, Requests: requests, Conns: b.conns, Rate: b.rate, Duration: 30 * time.Second, Slow: limit}
		}
		stop := b.change(n, 20)
		control := make(chan outcome)
		go func() {
			o, err := b.host.load(b.ctx, of(b.peers[0].plain, b.peers[0].target(r.path).requests))
			if err != nil {
				fmt.Fprintln(os.Stderr, r.name, "nginx:", err)
			}
			control <- o
		}()
		from := time.Now()
		own, err := b.host.load(b.ctx, of(n.proxy, r.requests(n.proxy)))
		during := span{from.UnixNano(), time.Now().UnixNano()}
		nginx := <-control
		stop()
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		log, err := os.ReadFile(filepath.Join(b.host.dir, n.name+".log"))
		if err != nil {
			return err
		}
		b.pauses = pauses(garbage(string(log), started, during), during, b.rate, nginx, own)
	}
	return nil
}

var reCollection = regexp.MustCompile(`(?m)^gc \d+ @([\d.]+)s .*?: ([\d.]+)\+([\d.]+)\+([\d.]+) ms clock`)

// garbage finds when garbage was collected in what GODEBUG=gctrace=1 makes a process write that was started at a time.
func garbage(log string, started int64, during span) (out []span) {
	const unsure = int64(10 * time.Millisecond) // the kernel's clock of starts
	for _, m := range reCollection.FindAllStringSubmatch(log, -1) {
		var f [4]float64
		for i := range f {
			f[i], _ = strconv.ParseFloat(m[i+1], 64)
		}
		s := span{started + int64(f[0]*1e9) - unsure, started + int64(f[0]*1e9+(f[1]+f[2]+f[3])*1e6) + unsure}
		if s.from >= during.from && s.to <= during.to {
			out = append(out, s)
		}
	}
	return out
}

// pauses is the report: how many of the requests that came in a collection, and how many of the others, took longer than the limit.
func pauses(collections []span, during span, rate float64, nginx, concord outcome) string {
	inside := 0.0
	for _, c := range collections {
		inside += float64(c.to - c.from)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\nGarbage collections with many consumers, at %.0f requests/s each to nginx and Concord\n\n", rate)
	fmt.Fprintf(&out, "%d collections of %.0f ms on average, in %.0f s. Requests above %v:\n\n", len(collections), inside/1e6/float64(max(1, len(collections))), float64(during.to-during.from)/1e9, limit)
	fmt.Fprint(&out, "| gateway | during collections | longest, ms | otherwise | longest, ms |\n|---|---|---|---|---|\n")
	for _, g := range []struct {
		name string
		outcome
	}{{"nginx", nginx}, {"Concord", concord}} {
		var count [2]int
		var longest [2]float64
		for _, s := range g.Slow {
			i := 1
			for _, c := range collections {
				if s.Due >= c.from && s.Due <= c.to {
					i = 0
				}
			}
			count[i]++
			longest[i] = max(longest[i], s.Took/1e3)
		}
		share := func(n int, ns float64) float64 { return 100 * float64(n) / max(1, rate*ns/1e9) }
		fmt.Fprintf(&out, "| %s | %.2f %% | %.1f | %.2f %% | %.1f |\n", g.name, share(count[0], inside), longest[0], share(count[1], float64(during.to-during.from)-inside), longest[1])
	}
	return out.String()
}

// processStart is when a process was started, in Unix nanoseconds, to a hundredth of a second.
func processStart(pid int) int64 {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	uptime, _ := os.ReadFile("/proc/uptime")
	now := time.Now().UnixNano()
	up, _, _ := strings.Cut(string(uptime), " ")
	if f := strings.Fields(rest); len(f) > 19 {
		ticks, _ := strconv.ParseInt(f[19], 10, 64)
		seconds, _ := strconv.ParseFloat(up, 64)
		return now - int64(seconds*1e9) + ticks*10_000_000
	}
	return 0
}

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one round of one target.
type sample struct {
	cpu  float64 // µs of CPU per request
	rate float64 // requests per second
	bad  int     // answers other than 2xx and 3xx, and socket errors
}

// clockTicks is USER_HZ, which Linux fixes at 100 for /proc on all its platforms.
const clockTicks = 100

func (b *bench) measure(ctx context.Context) error {
	for round := range b.rounds + 1 { // the first one warms up
		for _, t := range b.targets {
			window := b.window
			if round == 0 {
				window = time.Second
			}
			s, err := b.load(ctx, t, window)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			if round > 0 {
				t.rounds = append(t.rounds, s)
			}
		}
	}
	for _, t := range b.targets {
		before := rss(t.cmd.Process.Pid)
		t.rss = before / (1 << 20)
		if b.idle > 0 {
			after, err := b.withIdle(t)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			t.perIdle = (after - before) / float64(b.idle)
		}
	}
	return nil
}

var (
	reRequests = regexp.MustCompile(`(\d+) requests in`)
	reRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	reNon2xx   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	reErrors   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
)

func (b *bench) load(ctx context.Context, t *target, window time.Duration) (sample, error) {
	args := []string{"-t1", fmt.Sprintf("-c%d", b.conns), fmt.Sprintf("-d%ds", max(1, int(window.Seconds())))}
	if t.header != "" {
		args = append(args, "-H", t.header)
	}
	cmd := b.command(loadCPU, "wrk", append(args, t.url)...)
	before := ticks(t.cmd.Process.Pid)
	out, err := cmd.Output()
	after := ticks(t.cmd.Process.Pid)
	if err != nil {
		return sample{}, fmt.Errorf("wrk: %w", err)
	}
	if ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	var s sample
	requests := number(reRequests, out)[0]
	if requests == 0 {
		return s, fmt.Errorf("no request was answered: %s", out)
	}
	s.cpu = (after - before) / clockTicks * 1e6 / requests
	s.rate = number(reRate, out)[0]
	for _, n := range append(number(reErrors, out), number(reNon2xx, out)...) {
		s.bad += int(n)
	}
	return s, nil
}

// number returns the numbers of a match, at least one.
func number(re *regexp.Regexp, in []byte) []float64 {
	m := re.FindSubmatch(in)
	if m == nil {
		return []float64{0}
	}
	var all []float64
	for _, s := range m[1:] {
		f, _ := strconv.ParseFloat(string(s), 64)
		all = append(all, f)
	}
	return all
}

// tree is a process and all its descendants.
func tree(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if c, err := strconv.Atoi(s); err == nil {
				pids = append(pids, tree(c)...)
			}
		}
	}
	return pids
}

// ticks is the CPU time of a process tree: utime and stime, fields 14 and 15 of /proc/PID/stat.
func ticks(pid int) (sum float64) {
	for _, p := range tree(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue
		}
		// The name in parentheses may contain spaces.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 12 {
			u, _ := strconv.ParseFloat(f[11], 64)
			s, _ := strconv.ParseFloat(f[12], 64)
			sum += u + s
		}
	}
	return sum
}

// rss is the resident memory of a process tree in bytes.
func rss(pid int) (sum float64) {
	for _, p := range tree(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p))
		if f := strings.Fields(string(b)); err == nil && len(f) > 1 {
			pages, _ := strconv.ParseFloat(f[1], 64)
			sum += pages * float64(os.Getpagesize())
		}
	}
	return sum
}

// withIdle is the memory while idle connections are open, each of which has served one request.
func (b *bench) withIdle(t *target) (float64, error) {
	u, err := url.Parse(t.url)
	if err != nil {
		return 0, err
	}
	head := "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\n"
	if t.header != "" {
		head += t.header + "\r\n"
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range b.idle {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			return 0, err
		}
		open = append(open, c)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, head+"\r\n"); err != nil {
			return 0, err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return 0, err
		}
	}
	time.Sleep(2 * time.Second)
	return rss(t.cmd.Process.Pid), nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// report prints one line per target; ratios are medians of the ratios within each round.
func (b *bench) report(w io.Writer, limit float64) error {
	fmt.Fprintf(w, "%-16s %10s %17s %7s %17s %9s %9s %8s %5s\n", "target", "us CPU/req", "(min-max)", "ratio", "(min-max)", "req/s", "RSS MiB", "B/idle", "bad")
	var over error
	for _, t := range b.targets {
		var cpu, rate, ratio []float64
		bad := 0
		for i, s := range t.rounds {
			cpu, rate = append(cpu, s.cpu), append(rate, s.rate)
			ratio = append(ratio, s.cpu/b.targets[0].rounds[i].cpu)
			bad += s.bad
		}
		idle := "-"
		if b.idle > 0 {
			idle = fmt.Sprintf("%.0f", t.perIdle)
		}
		span := func(v []float64) string { return fmt.Sprintf("(%.2f-%.2f)", slices.Min(v), slices.Max(v)) }
		fmt.Fprintf(w, "%-16s %10.2f %17s %7.2f %17s %9.0f %9.1f %8s %5d\n",
			t.name, median(cpu), span(cpu), median(ratio), span(ratio), median(rate), t.rss, idle, bad)
		switch {
		case bad > 0:
			over = fmt.Errorf("%s: %d bad answers make its figures worthless", t.name, bad)
		case limit > 0 && median(ratio) > limit:
			over = fmt.Errorf("%s costs %.2f times nginx, the bar is %.2f", t.name, median(ratio), limit)
		}
	}
	return over
}

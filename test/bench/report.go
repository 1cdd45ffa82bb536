//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// collect takes one figure out of the rounds.
func (r *row) collect(f func(round) float64) (out []float64) {
	for _, x := range r.rounds {
		out = append(out, f(x))
	}
	return out
}

// ratios are Concord's figure divided by that of what it is compared with, round by round.
func (r *row) ratios() []float64 {
	return r.collect(func(x round) float64 {
		if r.kind == fixed {
			return x.concord.latency.P99 / x.base.latency.P99
		}
		return x.concord.cpu / x.base.cpu
	})
}

// report prints the tables as Markdown; ratios are medians of the ratios within each round.
func (b *bench) report(w io.Writer, rows []*row) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return len(r.rounds) == 0 })
	fmt.Fprintf(w, "%s; %s; %d rounds of %v, %d connections\n", time.Now().Format("2 January 2006"), machine(), b.rounds, b.window, b.conns)
	var over []string
	verdict := func(r *row) (ratio, bar string) {
		v := r.ratios()
		m := median(v)
		ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", m, slices.Min(v), slices.Max(v))
		if r.bar == 0 {
			return ratio, "–"
		}
		if bar = fmt.Sprintf("≤ %.2f", r.bar); m > r.bar {
			bar += " **missed**"
			over = append(over, r.name)
		}
		return ratio, bar
	}
	section := func(of func(*row) bool, head string, line func(*row) string) {
		for _, r := range rows {
			if of(r) {
				if head != "" {
					fmt.Fprint(w, head)
					head = ""
				}
				fmt.Fprint(w, line(r))
			}
		}
	}
	section(func(r *row) bool {
		return r.kind != fixed && r.kind != idle && r.kind != collected && r.besideNode == ""
	},
		"\nCPU per request, µs\n\n| row | nginx | HAProxy | Concord | Concord : nginx | bar | req/s nginx | req/s Concord |\n|---|---|---|---|---|---|---|---|\n",
		func(r *row) string {
			haproxy := "–"
			if v := r.collect(func(x round) float64 { return x.haproxy.cpu }); median(v) > 0 {
				haproxy = figure(median(v))
			}
			ratio, bar := verdict(r)
			return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %.0f | %.0f |\n", r.name, figure(median(r.collect(func(x round) float64 { return x.base.cpu }))), haproxy,
				figure(median(r.collect(func(x round) float64 { return x.concord.cpu }))), ratio, bar,
				median(r.collect(func(x round) float64 { return x.base.rate })), median(r.collect(func(x round) float64 { return x.concord.rate })))
		})
	section(func(r *row) bool { return r.besideNode != "" },
		"\nConcord beside itself, µs of CPU per request\n\n| A : B | B | A | A : B | bar | resident MB |\n|---|---|---|---|---|---|\n",
		func(r *row) string {
			ratio, bar := verdict(r)
			return fmt.Sprintf("| %s | %s | %s | %s | %s | %.0f |\n", r.name, figure(median(r.collect(func(x round) float64 { return x.base.cpu }))),
				figure(median(r.collect(func(x round) float64 { return x.concord.cpu }))), ratio, bar, median(r.collect(func(x round) float64 { return x.concord.resident }))/1e6)
		})
	section(func(r *row) bool { return r.kind == idle },
		fmt.Sprintf("\nMemory with %d idle connections to a process that has served nothing else\n\n| gateway | resident MB without | with | bytes per connection |\n|---|---|---|---|\n", b.idle),
		func(r *row) (s string) {
			for i, name := range []string{"nginx", "HAProxy", "Concord"} {
				of := func(x round) sample { return []sample{x.base, x.haproxy, x.concord}[i] }
				if !of(r.rounds[0]).ok { // it was not allowed enough descriptors
					continue
				}
				one := of(r.rounds[0])
				s += fmt.Sprintf("| %s | %.1f | %.1f | %.0f |\n", name, one.rest/1e6, one.resident/1e6, one.cpu)
			}
			return s
		})
	section(func(r *row) bool { return r.kind == fixed },
		fmt.Sprintf("\nLatency at %.0f requests/s, µs\n\n| row | nginx p50 | p99 | Concord p50 | p99 | p99.9 | max | p99 Concord : nginx | bar |\n|---|---|---|---|---|---|---|---|---|\n", b.rate),
		func(r *row) string {
			ratio, bar := verdict(r)
			q := func(f func(round) float64) float64 { return median(r.collect(f)) }
			return fmt.Sprintf("| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %s | %s |\n", r.name, q(func(x round) float64 { return x.base.latency.P50 }), q(func(x round) float64 { return x.base.latency.P99 }),
				q(func(x round) float64 { return x.concord.latency.P50 }), q(func(x round) float64 { return x.concord.latency.P99 }),
				q(func(x round) float64 { return x.concord.latency.P999 }), slices.Max(r.collect(func(x round) float64 { return x.concord.latency.Max })), ratio, bar)
		})
	over = append(over, signatures(w, rows)...)
	_, _ = io.WriteString(w, b.pauses)
	for _, r := range rows {
		for _, x := range r.rounds {
			for _, s := range []sample{x.base, x.haproxy, x.known, x.concord} {
				if s.bad > 0 {
					nginx, _ := os.ReadFile(filepath.Join(b.host.dir, "nginx.err"))
					_, _ = w.Write(nginx[:min(len(nginx), 1000)])
					return fmt.Errorf("%s: %d bad answers make its figures worthless: %s", r.name, s.bad, s.wrong)
				}
			}
		}
	}
	if b.strict && len(over) > 0 {
		return fmt.Errorf("over the bar: %s", strings.Join(over, "; "))
	}
	return nil
}

// signatureBar is what a token that was never seen may cost beyond one that is known, as a multiple of the check of its signature.
const signatureBar = 1.2

// signatures prints what fresh tokens cost beside the check of the signature alone: above the same request with a token that is known, which is
// as long. It returns the algorithms over the bar.
func signatures(w io.Writer, rows []*row) (over []string) {
	head := "\nFresh tokens, µs of CPU\n\n| algorithm | fresh | known | signature check alone | (fresh − known) : check | bar |\n|---|---|---|---|---|---|\n"
	for _, r := range rows {
		if r.alg == "" {
			continue
		}
		v := r.collect(func(x round) float64 { return (x.concord.cpu - x.known.cpu) / x.check })
		m, bar := median(v), "–"
		if r.alg == "RS256" {
			if bar = fmt.Sprintf("≤ %.2f", signatureBar); m > signatureBar {
				bar += " **missed**"
				over = append(over, r.name)
			}
		}
		of := func(f func(round) float64) string { return figure(median(r.collect(f))) }
		fmt.Fprintf(w, "%s| %s | %s | %s | %s | %.2f (%.2f–%.2f) | %s |\n", head, r.alg, of(func(x round) float64 { return x.concord.cpu }),
			of(func(x round) float64 { return x.known.cpu }), of(func(x round) float64 { return x.check }), m, slices.Min(v), slices.Max(v), bar)
		head = ""
	}
	return over
}

// document puts the report into a file.
func document(file, report string) error {
	const begin, end = "<!-- bench -->\n", "<!-- /bench -->"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s: no %s followed by %s", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+report+"\n"+end+after), 0o644)
}

func figure(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// machine says what the figures were measured on.
func machine() string {
	var out []string
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			out = append(out, strings.TrimSpace(value))
			break
		}
	}
	for _, c := range [][]string{{"uname", "-sr"}, {"nginx", "-v"}, {"haproxy", "-v"}} {
		text, _ := exec.Command(c[0], c[1:]...).CombinedOutput()
		line, _, _ := strings.Cut(string(text), "\n")
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

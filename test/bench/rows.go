//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is a way to load a gateway.
type kind int

const (
	closed     kind = iota // as many requests as go, over HTTP/1.1
	overTLS                // the same over TLS, by wrk
	overHTTP2              // HTTP/2 over TLS, by h2load
	overHTTP3              // HTTP/3, beside HTTP/2
	handshaken             // a new TLS connection for each request
	fixed                  // at a fixed rate, for latencies
	idle                   // connections that wait, for memory: once, on a process that has served nothing else
	collected              // at a fixed rate while garbage is collected, see collections.go: once, at the end
)

// row is a line of the table.
type row struct {
	name string
	kind kind
	path string // that the peers are asked for, and Concord unless requests is set
	node string
	// requests are what Concord is sent; nil: GET path. fresh: none of them twice.
	requests func(addr string) [][]byte
	fresh    bool
	// alg of a fresh token whose signature is checked: what it costs is told from the same requests with a token that is known.
	alg string
	// besideNode and beside: compared with requests to another node instead of with nginx.
	besideNode, beside string
	changes            float64 // configuration changes per second meanwhile
	bar                float64 // for the ratio; 0: none
	large              bool    // left out by -quick
	often              int     // measurements in a round, for a bar that is nearer than the noise of one; 0: one

	rounds []round
}

// round holds a sample for each gateway: the one compared with (nginx or another node), HAProxy (if measured), Concord.
type round struct {
	base, haproxy, concord sample
	known                  sample  // Concord's with a token that it knows, of rows with fresh ones
	check                  float64 // microseconds of a signature check
}

// sample is one measurement.
type sample struct {
	ok       bool
	cpu      float64 // microseconds per request; for the kind idle: bytes per connection
	rest     float64 // bytes, before there was a connection
	rate     float64 // requests per second
	latency  outcome
	resident float64 // bytes
	bad      int
	wrong    string
}

// rows are those that were asked for.
func (b *bench) rows() (out []*row) {
	get := func(path string, header ...string) func(string) [][]byte {
		return func(addr string) [][]byte { return [][]byte{request(addr, path, header...)} }
	}
	bearer := func(alg string) func(string) [][]byte {
		return func(addr string) [][]byte {
			return [][]byte{request(addr, "/jwt", "Authorization: Bearer "+b.signers.token(alg))}
		}
	}
	fresh := func(alg string) func(string) [][]byte {
		return func(addr string) (list [][]byte) {
			for range b.fresh {
				list = append(list, request(addr, "/jwt", "Authorization: Bearer "+b.signers.token(alg)))
			}
			return list
		}
	}
	among := func(routes int, header ...string) func(string) [][]byte {
		return func(addr string) (list [][]byte) {
			for i := range 5000 {
				list = append(list, request(addr, routePath(i*7919%routes), header...))
			}
			return list
		}
	}
	full := func(addr string) [][]byte {
		return among(10_000, "Authorization: Bearer "+b.signers.token("HS256"))(addr)
	}
	keys := func(addr string) (list [][]byte) {
		for i := range 5000 {
			list = append(list, request(addr, "/key", "apikey: "+consumerKey(i*7919%b.consumers)))
		}
		return list
	}
	all := []*row{
		{name: "plain", path: "/get", node: "one", bar: 1.10},
		{name: "plain, access log to a file", path: "/logged", node: "logged", requests: get("/logged")},
		{name: "key-auth", path: "/get", node: "one", requests: get("/key", "apikey: "+apiKey), bar: 1.15},
		{name: "jwt HS256, same token", path: "/get", node: "one", requests: bearer("HS256"), bar: 1.15},
		{name: "jwt RS256, same token", path: "/get", node: "one", requests: bearer("RS256")},
		{name: "jwt ES256, same token", path: "/get", node: "one", requests: bearer("ES256")},
		{name: "jwt HS256, fresh tokens", path: "/get", node: "one", requests: fresh("HS256"), fresh: true},
		{name: "jwt RS256, fresh tokens", path: "/get", node: "one", requests: fresh("RS256"), fresh: true, alg: "RS256"},
		{name: "jwt ES256, fresh tokens", path: "/get", node: "one", requests: fresh("ES256"), fresh: true, alg: "ES256"},
		{name: "rate-limiting", path: "/get", node: "one", requests: get("/limited")},
		{name: "jwt + rate-limiting + 10,000 routes", path: "/get", node: "10k", requests: full, bar: 1.20},
		{name: "100,000 routes : one route", path: "/get", node: "100k", requests: among(100_000), besideNode: "one", beside: "/get", bar: 1.15, large: true},
		{name: "1,000,000 consumers : one consumer", node: "million", requests: keys, besideNode: "one", beside: "/key", bar: 1.05, large: true, often: 3},
		{name: "body of 1 KB", path: "/size/1000", node: "one"},
		{name: "body of 100 KB", path: "/size/100000", node: "one"},
		{name: "body of 10 MB", path: "/size/10000000", node: "one"},
		{name: "TLS, keep-alive", kind: overTLS, path: "/get", node: "one", bar: 1.1},
		{name: "TLS, handshake per request", kind: handshaken, path: "/get", node: "one"},
		{name: "HTTP/2", kind: overHTTP2, path: "/get", node: "one", bar: 2},
		{name: "HTTP/3 : HTTP/2", kind: overHTTP3, path: "/get", node: "one", besideNode: "one", beside: "/get"},
		{name: "idle connections", kind: idle, path: "/get", node: "idle"},
		{name: "latency: plain", kind: fixed, path: "/get", node: "one", bar: 2},
		{name: "latency: jwt + rate-limiting + 10,000 routes", kind: fixed, path: "/get", node: "10k", requests: full, bar: 2},
		{name: "latency: the same, 20 changes per second", kind: fixed, path: "/get", node: "10k", requests: full, changes: 20, bar: 2},
		{name: "latency: 1,000,000 consumers, 20 changes per second", kind: fixed, path: "/get", node: "million", requests: keys, changes: 20, bar: 2, large: true},
		{name: "latency: 100,000 routes", kind: fixed, path: "/get", node: "100k", requests: among(100_000), bar: 2, large: true},
		{name: "garbage collections with 1,000,000 consumers", kind: collected, path: "/get", node: "million", requests: keys, large: true},
	}
	for _, r := range all {
		if b.only.MatchString(r.name) && !(b.small && r.large) {
			out = append(out, r)
		}
	}
	return out
}

func request(addr, path string, header ...string) []byte {
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n", path, addr)
	for _, h := range header {
		b = append(append(b, h...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// target is what is asked in one measurement.
type target struct {
	plain, tls string
	pid        int
	requests   [][]byte
	path       string
	once       bool
}

func (p *peer) target(path string) target {
	return target{plain: p.plain, tls: p.tls, pid: p.pid, path: path, requests: [][]byte{request(p.plain, path)}}
}

func (b *bench) measure(rows []*row) error {
	for i := range b.rounds + 1 { // the first one warms up
		for _, r := range rows {
			if i == 0 && (r.kind == idle || r.kind == fixed) || i > 1 && r.kind == idle || r.kind == collected {
				continue
			}
			for range max(1, r.often) {
				s, err := b.round(r, i == 0)
				if b.ctx.Err() != nil {
					return b.ctx.Err()
				}
				if err != nil { // the other rows are worth having
					fmt.Fprintf(os.Stderr, "%s, round %d is left out: %v\n", r.name, i, err)
				} else if i > 0 {
					r.rounds = append(r.rounds, s)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", i, b.rounds)
	}
	return nil
}

// round measures all gateways of a row.
func (b *bench) round(r *row, warm bool) (out round, err error) {
	n := b.nodes[r.node]
	own := target{plain: n.proxy, tls: n.proxyTLS, pid: n.pid, path: r.path, once: r.fresh}
	if r.requests != nil {
		own.requests = r.requests(n.proxy)
	} else {
		own.requests = [][]byte{request(n.proxy, r.path)}
	}
	if r.alg != "" {
		same := own // as many as there are fresh ones: opening the connections counts in both
		same.requests = slices.Repeat(own.requests[:1], len(own.requests))
		if out.known, err = b.sample(r, same, n, warm); err == nil {
			out.check, err = b.checkCost(r.alg)
		}
		if err != nil {
			return out, err
		}
	}
	if r.kind == overHTTP3 {
		second := *r
		second.kind = overHTTP2
		out.base, err = b.sample(&second, own, n, warm)
	} else if r.besideNode != "" {
		o := b.nodes[r.besideNode]
		base := target{plain: o.proxy, tls: o.proxyTLS, pid: o.pid, requests: [][]byte{request(o.proxy, r.beside, "apikey: "+apiKey)}}
		out.base, err = b.sample(r, base, nil, warm)
	} else {
		if out.base, err = b.sample(r, b.peers[0].target(r.path), nil, warm); err == nil && r.requests == nil && (r.kind != idle || b.idle < b.haproxyConns()) {
			if out.haproxy, err = b.sample(r, b.peers[1].target(r.path), nil, warm); err != nil {
				fmt.Fprintf(os.Stderr, "%s: haproxy: %v\n", r.name, err)
				out.haproxy, err = sample{}, nil
			}
		}
	}
	if err == nil {
		out.concord, err = b.sample(r, own, n, warm)
	}
	return out, err
}

func (b *bench) sample(r *row, t target, n *node, warm bool) (s sample, err error) {
	window := b.window
	if warm {
		window /= 2
	}
	before, count, start := cpuTime(t.pid), 0, time.Now()
	switch r.kind {
	case closed, fixed:
		j := job{Addr: t.plain, Requests: t.requests, Once: t.once, Conns: b.conns, Duration: window}
		if t.once {
			j.Duration = 0
		}
		if r.kind == fixed {
			j.Rate, j.Duration = b.rate, max(window, 2*time.Second)
			if n != nil && r.changes > 0 {
				defer b.change(n, r.changes)()
			}
		}
		if s.latency, err = b.host.load(b.ctx, j); err != nil {
			return s, err
		}
		count, s.bad, s.wrong, s.rate = s.latency.Requests, s.latency.Bad, s.latency.Wrong, float64(s.latency.Requests)/s.latency.Seconds
	case overTLS:
		count, s.bad, err = b.wrk(t, window)
	case overHTTP2:
		count, s.bad, err = b.h2load(t, int(window.Seconds()*16000))
	case handshaken, overHTTP3:
		var text string
		verb := map[kind]string{handshaken: "handshakes", overHTTP3: "http3"}[r.kind]
		if err = b.host.result(b.ctx, b.host.command(loadCPU, b.host.self, verb, t.tls, window.String()), &text); err == nil {
			count, err = strconv.Atoi(text)
		}
	case idle:
		was := resident(t.pid)
		release, err := b.host.hold(b.ctx, job{Addr: t.plain, Requests: t.requests, Conns: b.idle})
		if err != nil {
			return s, err
		}
		time.Sleep(1500 * time.Millisecond)
		s.resident = resident(t.pid)
		s.cpu, s.rest, s.ok = (s.resident-was)/float64(b.idle), was, true
		release()
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if count == 0 {
		return s, errors.New("no request was answered: " + s.wrong)
	}
	s.cpu = float64(cpuTime(t.pid)-before) / 1e3 / float64(count)
	if s.rate == 0 {
		s.rate = float64(count) / time.Since(start).Seconds()
	}
	s.resident, s.ok = resident(t.pid), true
	return s, nil
}

// change alters a route that is not asked for, at a steady rate, until the function it returns is called.
func (b *bench) change(n *node, perSecond float64) func() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
		defer t.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-t.C:
				path := fmt.Sprintf("/changed/%d", i)
				if err := n.call(b.ctx, "PUT", "/services/bench/routes/changed", "paths[]", path); err != nil {
					fmt.Fprintln(os.Stderr, "change:", err)
				}
			}
		}
	}()
	return func() { close(stop); <-done }
}

var (
	reRequests = regexp.MustCompile(`(\d+) requests in`)
	reNon2xx   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	reErrors   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	reH2       = regexp.MustCompile(`(\d+) succeeded, (\d+) failed, (\d+) errored`)
)

func (b *bench) wrk(t target, window time.Duration) (count, bad int, err error) {
	var text string
	seconds := strconv.Itoa(max(2, int(window.Seconds()+.5))) // the handshakes of the beginning count too
	err = b.host.result(b.ctx, b.host.command(loadCPU, "wrk", "-t1", "-c"+strconv.Itoa(b.conns), "-d"+seconds+"s", "https://"+t.tls+t.path), &text)
	for _, re := range []*regexp.Regexp{reErrors, reNon2xx} {
		for _, n := range numbers(re, text) {
			bad += n
		}
	}
	if numbers(reRequests, text)[0] == 0 {
		err = fmt.Errorf("wrk: %w %s", err, text)
	}
	return numbers(reRequests, text)[0], bad, err
}

func (b *bench) h2load(t target, count int) (ok, bad int, err error) {
	var text string
	err = b.host.result(b.ctx, b.host.command(loadCPU, "h2load", "-t1", "-c16", "-m10", "-n"+strconv.Itoa(count), "https://"+t.tls+t.path), &text)
	n := append(numbers(reH2, text), 0, 0)
	if !strings.Contains(text, "Application protocol: h2") {
		err = errors.Join(err, errors.New("not HTTP/2"))
	}
	return n[0], n[1] + n[2], err
}

// numbers are those of a match, at least one.
func numbers(re *regexp.Regexp, text string) (out []int) {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return []int{0}
	}
	for _, s := range m[1:] {
		n, _ := strconv.Atoi(s)
		out = append(out, n)
	}
	return out
}

package balancer

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startProbes ends the probes of the last configuration and begins those of c. The caller holds the lock.
func (p *Pool) startProbes(c *config) {
	if p.probes != nil {
		p.probes()
		p.probes = nil
	}
	a := &c.row.Healthchecks.Active
	if a.Healthy.Interval == 0 && a.Unhealthy.Interval == 0 {
		return
	}
	var ctx context.Context
	ctx, p.probes = context.WithCancel(p.ctx)
	for _, state := range []struct {
		down     bool
		interval float64
	}{{false, a.Healthy.Interval}, {true, a.Unhealthy.Interval}} {
		if state.interval > 0 {
			p.set.run(func() { p.probeAll(ctx, state.down, inSeconds(state.interval)) })
		}
	}
}

// minInterval keeps an interval that is as good as none from being a flood.
const minInterval = 10 * time.Millisecond

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// probeAll probes the healthy or the unhealthy peers, again and again. It begins at a random time within the interval, so that the
// nodes of a cluster do not probe together.
func (p *Pool) probeAll(ctx context.Context, down bool, interval time.Duration) {
	interval = max(interval, minInterval)
	timer := time.NewTimer(rand.N(interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(interval)
		c, list := p.probeList(down)
		slots := make(chan struct{}, max(1, min(c.row.Healthchecks.Active.Concurrency, len(list))))
		var wg sync.WaitGroup
		for _, pe := range list {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				o := p.probe(ctx, c, pe)
				if ctx.Err() == nil {
					p.report(pe, o, &c.active)
				}
			})
		}
		wg.Wait()
	}
}

// probeList is the peers with weight that are in that state.
func (p *Pool) probeList(down bool) (*config, []*peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*peer
	seen := map[*peer]bool{}
	for _, t := range p.sorted() {
		for _, r := range t.records {
			pe := p.peers[peerKey{t.host, r.Addr}]
			if pe != nil && !seen[pe] && t.weight > 0 && pe.down.Load() == down {
				seen[pe] = true
				list = append(list, pe)
			}
		}
	}
	return p.plan.Load().config, list
}

// probe asks one peer. For tcp it is enough that it takes a connection.
func (p *Pool) probe(ctx context.Context, c *config, pe *peer) outcome {
	if g := p.set.o.Guard; g != nil && g(pe.key.addr) != nil {
		return tcpFailure
	}
	a := &c.row.Healthchecks.Active
	limit := inSeconds(a.Timeout)
	if limit <= 0 {
		limit = time.Second
	}
	ended := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", pe.key.addr.String())
	if err != nil {
		return connectFailure(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	defer context.AfterFunc(ended, func() { conn.Close() })()
	host := cmp.Or(c.row.HostHeader, inHeader(pe.key.host))
	if a.Type == "https" || a.Type == "grpcs" {
		config := &tls.Config{
			ServerName: cmp.Or(a.HTTPSSNI, serverName(host)), RootCAs: p.set.o.Roots, GetClientCertificate: c.certificate,
			InsecureSkipVerify: !a.HTTPSVerifyCertificate, //nolint:gosec // https_verify_certificate of the upstream
		}
		if a.Type == "grpcs" {
			config.NextProtos = []string{"h2"}
		}
		tc := tls.Client(conn, config)
		if err := tc.HandshakeContext(ctx); err != nil {
			return connectFailure(err)
		}
		conn = tc
	}
	switch a.Type {
	case "tcp":
		return success
	case "grpc", "grpcs":
		return askGRPC(ctx, conn, a, host)
	}
	status, err := ask(conn, a.HTTPPath, host, a.Headers)
	if err != nil {
		if o := connectFailure(err); o == timeout || broken(err) {
			return o
		}
		return httpFailure // an answer, but none that makes sense
	}
	return c.active.status(status)
}

// maxProbeAnswer bounds the head of an answer.
const maxProbeAnswer = 64 << 10

// ask sends one GET and returns the status.
func ask(conn net.Conn, path, host string, headers map[string][]string) (int, error) {
	if path == "" {
		path = "/"
	}
	r := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/", Opaque: path}, Host: host, Close: true,
		Header: http.Header{"User-Agent": {""}}, // none
	}
	for name, values := range headers {
		if http.CanonicalHeaderKey(name) == "Host" && len(values) > 0 {
			r.Host = values[0]
			continue
		}
		for _, v := range values {
			r.Header.Add(name, v)
		}
	}
	if err := r.Write(conn); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxProbeAnswer)), r) //nolint:bodyclose // closing would read it to its end; it goes with the connection
	if err != nil {
		return 0, err
	}
	return res.StatusCode, nil
}

func connectFailure(err error) outcome {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return nothing // it was not asked
	}
	var ne net.Error
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout() {
		return timeout
	}
	return tcpFailure
}

// broken tells the failures of a connection from those of what came over it.
func broken(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// serverName is a host without its port.
func serverName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

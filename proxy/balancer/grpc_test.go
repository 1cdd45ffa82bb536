package balancer

import (
	"errors"
	"io"
	"strings"
	"testing"

	"concord/proxy/exchange"
)

// messages is the body of a gRPC answer: two messages, then the end, at which the trailers are there, or an error.
type messages struct {
	x       *exchange.Exchange
	status  string // "": no trailers
	err     error
	said    int
	trailed bool
}

func (m *messages) Next() ([]byte, error) {
	if m.said++; m.said <= 2 {
		return []byte("message"), nil
	}
	if m.err != nil {
		return nil, m.err
	}
	if !m.trailed && m.status != "" {
		m.x.Response.Trailer.Add("grpc-status", m.status)
		m.trailed = true
	}
	return nil, io.EOF
}
func (m *messages) Close() error { return nil }
func (m *messages) Ready() bool  { return m.said == 0 }

// TestGRPCStatus: what a gRPC status counts as, in the trailers and in the head, for passive checks and for the breaker.
func TestGRPCStatus(t *testing.T) {
	const settings = `{"circuit_breaker":{"consecutive_errors":3,"max_ejection_percent":100},
		"healthchecks":{"passive":{"unhealthy":{"http_failures":3,"timeouts":3}}}}`
	for _, tt := range []struct {
		name, status string
		deadline     string // of the client
		broken       error
		open, down   bool // by circuit breaker, by passive checks
	}{
		{name: "OK", status: "0"},
		{name: "CANCELLED", status: "1"},
		{name: "UNKNOWN", status: "2", open: true, down: true},
		{name: "INVALID_ARGUMENT", status: "3"},
		{name: "DEADLINE_EXCEEDED", status: "4", open: true, down: true},
		{name: "DEADLINE_EXCEEDED of the client", status: "4", deadline: "1n"},
		{name: "NOT_FOUND", status: "5"},
		{name: "RESOURCE_EXHAUSTED", status: "8", down: true}, // 429
		{name: "UNIMPLEMENTED", status: "12"},
		{name: "INTERNAL", status: "13", open: true, down: true},
		{name: "UNAVAILABLE", status: "14", open: true, down: true},
		{name: "DATA_LOSS", status: "15", open: true, down: true},
		{name: "UNAUTHENTICATED", status: "16"},
		{name: "no such status", status: "99", open: true, down: true},
		{name: "no number", status: "x", open: true, down: true},
		{name: "no trailers", status: "", open: true, down: true},
		{name: "broken off", status: "14", broken: errors.New("gone")},
	} {
		for _, where := range []string{"trailers", "head", "trailers that came with the head"} {
			if where == "head" && tt.status == "" || where != "trailers" && tt.broken != nil {
				continue
			}
			t.Run(tt.name+" in "+where, func(t *testing.T) {
				p := newTestPool(t, settings, "10.0.0.1:80")
				pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]
				for i := range 3 {
					if pe.down.Load() || pe.breaker.ejected.Load() {
						t.Fatalf("out after %d calls", i)
					}
					x := newExchange()
					if tt.deadline != "" {
						x.Request.Header.Add("grpc-timeout", tt.deadline)
					}
					x.Upstream.HTTP2 = true
					d, err := p.Dispatch(x, false)
					if err != nil {
						t.Fatal(err)
					}
					r := &x.Response
					r.Status = 200
					r.Header.Add("Content-Type", "application/grpc+proto")
					switch {
					case where == "head":
						r.Header.Add("grpc-status", tt.status)
					case where == "trailers":
						r.Body = &messages{x: x, status: tt.status, err: tt.broken}
					case tt.status != "":
						r.Trailer.Add("grpc-status", tt.status)
					}
					d.Result(x, nil)
					if where == "trailers" {
						if !exchange.Ready(r.Body) {
							t.Error("the body does not tell that it is ready")
						}
						n := 0
						for {
							b, err := r.Body.Next()
							n += len(b)
							if err != nil {
								break
							}
						}
						if _, err := r.Body.Next(); n != 14 || tt.broken == nil && err != io.EOF {
							t.Errorf("%d bytes, then %v", n, err)
						}
					}
					d.End()
				}
				if pe.down.Load() != tt.down || pe.breaker.ejected.Load() != tt.open {
					t.Errorf("unhealthy %v, ejected %v", pe.down.Load(), pe.breaker.ejected.Load())
				}
			})
		}
	}
}

// TestGRPCElsewhere: what is not gRPC counts by its HTTP status, whatever fields it has, and a trial ends with the head of an answer.
func TestGRPCElsewhere(t *testing.T) {
	p := newTestPool(t, `{"circuit_breaker":{"consecutive_errors":1,"base_ejection_time":3600}}`, "10.0.0.1:80")
	pe := p.peers[peerKey{"10.0.0.1", addrPort("10.0.0.1:80")}]
	answer := func(http2 bool, status int, mime string, trial bool) {
		t.Helper()
		x, d := p.begin(t)
		x.Upstream.HTTP2, d.trial = http2, trial
		x.Response.Status = status
		x.Response.Header.Add("Content-Type", mime)
		x.Response.Header.Add("grpc-status", "14")
		if trial {
			pe.breaker.trials.Add(1)
			x.Response.Header.Del("grpc-status")
			x.Response.Body = &messages{x: x}
		}
		d.Result(x, nil)
		d.End()
	}
	answer(false, 200, "application/grpc", false)
	answer(true, 200, "text/html", false)
	answer(true, 404, "application/grpc", false)
	if got := circuit(t, p.set, "10.0.0.1:80"); !strings.HasPrefix(got, breakerClosed) {
		t.Fatal(got)
	}
	pe.breaker.trial.Store(true)
	answer(true, 200, "application/grpc", true)
	if got := circuit(t, p.set, "10.0.0.1:80"); !strings.HasPrefix(got, breakerClosed) {
		t.Fatal("the trial goes on: " + got)
	}
	answer(true, 200, "application/grpc", false)
	if got := circuit(t, p.set, "10.0.0.1:80"); !strings.HasPrefix(got, breakerOpen) {
		t.Fatal(got)
	}
}

// TestMaxTargetPending: the connections that are being made are bounded for each address.
func TestMaxTargetPending(t *testing.T) {
	p := newTestPool(t, `{"circuit_breaker":{"max_target_pending_connections":1,"max_pending_connections":3}}`, "10.0.0.1:80", "10.0.0.2:80")
	pending := map[string]*exchange.Exchange{}
	for range 6 {
		x, d := p.begin(t)
		defer d.End()
		err := x.Upstream.Dialing(true)
		if first := pending[at(x)] == nil; first != (err == nil) || !first && !errors.Is(err, ErrBusy) {
			t.Fatalf("%s: %v", at(x), err)
		}
		if err == nil {
			pending[at(x)] = x
		}
	}
	if s := p.breakerStats(p.plan.Load()); len(pending) != 2 || s.Pending != 2 || s.Rejected != 4 {
		t.Errorf("%d connections are being made, %+v", len(pending), s)
	}
	for _, x := range pending {
		_ = x.Upstream.Dialing(false)
		if err := x.Upstream.Dialing(true); err != nil {
			t.Errorf("after one was made: %v", err)
		}
		_ = x.Upstream.Dialing(false)
	}
}

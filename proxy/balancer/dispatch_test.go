package balancer

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/upstream"
	"concord/test/harness"
)

func dispatchOnce(t testing.TB, p *Pool, x *exchange.Exchange) {
	d, err := p.Dispatch(x, false)
	if err != nil {
		t.Fatal(err)
	}
	x.Response.Status = 200
	d.Result(x, nil)
	d.End()
}

func TestDispatchAllocatesNothing(t *testing.T) {
	for _, settings := range []string{
		`"algorithm":"round-robin"`, `"algorithm":"least-connections"`, `"algorithm":"latency"`,
		`"algorithm":"consistent-hashing","hash_on":"ip"`,
		`"algorithm":"consistent-hashing","hash_on":"path"`,
		`"algorithm":"consistent-hashing","hash_on":"header","hash_on_header":"X-Key"`,
		`"algorithm":"consistent-hashing","hash_on":"cookie","hash_on_cookie":"sid"`,
		`"algorithm":"consistent-hashing","hash_on":"query_arg","hash_on_query_arg":"q"`,
		`"algorithm":"consistent-hashing","hash_on":"uri_capture","hash_on_uri_capture":"id"`,
		`"algorithm":"consistent-hashing","hash_on":"consumer","hash_fallback":"ip"`,
		`"algorithm":"round-robin","circuit_breaker":{"error_rate":50,"max_requests":9,"max_target_requests":9,"max_pending_connections":1}`,
	} {
		t.Run(settings, func(t *testing.T) {
			p := newTestPool(t, `{`+settings+`,"healthchecks":{"passive":{"unhealthy":{"tcp_failures":200}}}}`, addresses(40)...)
			x := newExchange()
			x.Request.RawQuery, x.Captures = "a=1&q=2", []string{"id", "7"}
			x.Request.Header.Add("X-Key", "v")
			x.Request.Header.Add("Cookie", "sid=1")
			run := func() { dispatchOnce(t, p, x) }
			run()
			harness.NoAllocs(t, "a dispatch", run)
		})
	}
}

// TestHostHeader: which Host a peer is sent, by target, settings and scheme.
func TestHostHeader(t *testing.T) {
	for _, tt := range []struct {
		name, settings, target, scheme string
		keep                           bool
		want                           string
	}{
		{"address", `{}`, "10.0.0.1:8000", "http", false, "10.0.0.1:8000"},
		{"address on the port of http", `{}`, "10.0.0.1:80", "http", false, "10.0.0.1"},
		{"address on the port of http over https", `{}`, "10.0.0.1:80", "https", false, "10.0.0.1:80"},
		{"address on the port of https", `{}`, "10.0.0.1:443", "https", false, "10.0.0.1"},
		{"address on the port of https over http", `{}`, "10.0.0.1:443", "http", false, "10.0.0.1:443"},
		{"IPv6", `{}`, "[0000:0000:0000:0000:0000:0000:0000:0001]:81", "http", false, "[::1]:81"},
		{"host_header", `{"host_header":"api.example"}`, "10.0.0.1:81", "http", false, "api.example:81"},
		{"host_header on port 80", `{"host_header":"api.example"}`, "10.0.0.1:80", "http", false, "api.example"},
		{"host_header with a port of its own", `{"host_header":"api.example:99"}`, "10.0.0.1:81", "http", false, "api.example:99"},
		{"kept", `{"host_header":"api.example"}`, "10.0.0.1:81", "http", true, "client.example"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestPool(t, tt.settings, tt.target)
			x := newExchange()
			x.Upstream.Scheme, x.Upstream.HostHeader = tt.scheme, "client.example"
			d, err := p.Dispatch(x, tt.keep)
			if err != nil {
				t.Fatal(err)
			}
			defer d.End()
			if x.Upstream.HostHeader != tt.want {
				t.Errorf("Host is %q", x.Upstream.HostHeader)
			}
		})
	}
}

// TestWithTransport: retries and outcomes as they come from the real thing.
func TestWithTransport(t *testing.T) {
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	defer good.Close()
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer slow.Close()
	closed := harness.Refused(t).String()
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

	tr := upstream.New(upstream.Options{})
	defer tr.Close()
	send := func(p *Pool, retries int) (string, error) {
		x := newExchange()
		x.Upstream.Path, x.Upstream.Retries = "/", retries
		x.Upstream.ConnectTimeout, x.Upstream.WriteTimeout = time.Minute, time.Minute
		d, err := p.Dispatch(x, false)
		if err != nil {
			return "", err
		}
		defer d.End()
		patience := func() { // only the slow one is given up
			if x.Upstream.ReadTimeout = time.Minute; at(x) == host(slow) {
				x.Upstream.ReadTimeout = 50 * time.Millisecond
			}
		}
		patience()
		retry := x.Upstream.Retry
		x.Upstream.Retry = func(x *exchange.Exchange, cause error) error {
			defer patience()
			return retry(x, cause)
		}
		err = tr.RoundTrip(x)
		defer tr.Release(x)
		d.Result(x, err)
		if err != nil {
			return "", err
		}
		body, err := x.Response.Buffer(1 << 10)
		return string(body), err
	}
	live := func(p *Pool) (list []string) {
		for _, m := range p.plan.Load().live {
			list = append(list, m.peer.key.addr.String())
		}
		return list
	}

	t.Run("retries find the one that works", func(t *testing.T) {
		p := newTestPool(t, `{}`, closed, host(slow), host(good))
		for range 9 {
			if body, err := send(p, 2); err != nil || body != host(good) {
				t.Fatalf("got %q, %v", body, err)
			}
		}
	})
	t.Run("refused connections count", func(t *testing.T) {
		p := newTestPool(t, `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":2}}}}`, closed, host(good))
		for range 8 {
			if _, err := send(p, 1); err != nil {
				t.Fatal(err)
			}
		}
		if left := live(p); len(left) != 1 || left[0] != host(good) {
			t.Errorf("live: %v", left)
		}
	})
	t.Run("so does the last try", func(t *testing.T) {
		p := newTestPool(t, `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":2}}}}`, closed)
		for range 2 {
			var e *upstream.Error
			if _, err := send(p, 0); !errors.As(err, &e) {
				t.Fatal(err)
			}
		}
		if _, err := send(p, 0); err != ErrNoPeer {
			t.Errorf("got %v", err)
		}
	})
	t.Run("timeouts count apart", func(t *testing.T) {
		p := newTestPool(t, `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":1,"timeouts":3}}}}`, host(slow))
		for i := range 3 {
			if left := live(p); len(left) != 1 {
				t.Fatalf("down after %d timeouts", i)
			}
			if _, err := send(p, 0); err == nil {
				t.Fatal("no timeout")
			}
		}
		if left := live(p); len(left) != 0 {
			t.Error("still live")
		}
	})
	t.Run("a client that breaks off is no fault of the peer", func(t *testing.T) {
		p := newTestPool(t, `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":1,"timeouts":1}}}}`, host(good))
		x := newExchange()
		x.Request.Method, x.Request.Body, x.Request.Length = "PUT", brokenBody{}, 10
		x.Upstream.Path = "/"
		d, err := p.Dispatch(x, false)
		if err != nil {
			t.Fatal(err)
		}
		err = tr.RoundTrip(x)
		if err == nil {
			t.Fatal("no error")
		}
		d.Result(x, err)
		d.End()
		tr.Release(x)
		if left := live(p); len(left) != 1 {
			t.Errorf("down after %v", err)
		}
	})
}

type brokenBody struct{}

func (brokenBody) Next() ([]byte, error) { return nil, io.ErrUnexpectedEOF }
func (brokenBody) Close() error          { return nil }

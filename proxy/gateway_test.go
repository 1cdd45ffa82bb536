package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"concord/proxy"
	"concord/proxy/dataplane"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/plugin"
	"concord/proxy/upstream"
)

// echo is an upstream that answers with what it received, on a real socket.
type echo struct {
	net.Listener
	host string
	port int
	head string // extra response header lines
}

func newEcho(t testing.TB) *echo {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := ln.Addr().(*net.TCPAddr)
	e := &echo{Listener: ln, host: a.IP.String(), port: a.Port}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go e.serve(c)
		}
	}()
	return e
}

func (e *echo) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		var b bytes.Buffer
		length := 0
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
			b.WriteString(line)
			if v, ok := strings.CutPrefix(strings.ToLower(line), "content-length: "); ok {
				length, _ = strconv.Atoi(strings.TrimSpace(v))
			}
		}
		b.WriteString("\n")
		if _, err := io.CopyN(&b, r, int64(length)); err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", e.head, b.Len(), b.Bytes())
	}
}

// noNames is a resolver that knows no name, and asks nobody.
type noNames struct{}

func (noNames) Addresses(_ context.Context, host string) ([]netip.Addr, time.Duration, error) {
	return nil, 0, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (noNames) Services(context.Context, string) ([]*net.SRV, time.Duration, error) {
	return nil, 0, nil
}

// gateway is the whole data plane in one process: store, compiler, handler, h1, upstream.
type gateway struct {
	testing.TB
	db   *fx.DB
	c    *dataplane.Compiler
	h    *proxy.Handler
	echo *echo
	addr string
}

func start(t testing.TB, set func(*proxy.Options), plugins ...plugin.Plugin) *gateway {
	t.Helper()
	g := &gateway{TB: t, db: fx.New(t), echo: newEcho(t)}
	log := slog.New(slog.DiscardHandler)
	g.c = dataplane.New(dataplane.Options{Store: g.db.Store, Plugins: plugins, Log: log})
	up := upstream.New(upstream.Options{Resolver: noNames{}})
	o := proxy.Options{Holder: g.c.Holder(), Upstreams: up, Product: "concord/1.2.3", Log: log}
	if set != nil {
		set(&o)
	}
	g.h = proxy.New(o)
	srv := h1.New(h1.Options{Handler: g.h, Refuse: g.h.Refuse})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		up.Close()
		g.c.Close(ctx)
	})
	g.put(fx.Service("svc", g.echo.host, g.echo.port))
	return g
}

// put commits rows and waits until they are served.
func (g *gateway) put(rows ...any) {
	g.Helper()
	index := g.db.Put(rows...)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := g.c.Holder().Wait(ctx, index); err != nil {
		g.Fatal(err)
	}
}

// answer is a response and, for the echo upstream's, what that received.
type answer struct {
	*http.Response
	body string
}

// do sends a request given as lines: the request line and headers; "Host: gw" is added unless there is one.
func (g *gateway) do(lines ...string) answer {
	g.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	head := strings.Join(lines, "\r\n") + "\r\n"
	if !strings.Contains(head, "\r\nHost: ") {
		head += "Host: gw\r\n"
	}
	if _, err := io.WriteString(c, head+"\r\n"); err != nil {
		g.Fatal(err)
	}
	method, _, _ := strings.Cut(lines[0], " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		g.Fatalf("%q: %v", lines[0], err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		g.Fatalf("%q: body: %v", lines[0], err)
	}
	return answer{res, string(body)}
}

func (g *gateway) get(path string, headers ...string) answer {
	g.Helper()
	return g.do(append([]string{"GET " + path + " HTTP/1.1"}, headers...)...)
}

// saw is the value of a header the upstream received, "" when it did not.
func (a answer) saw(name string) string {
	var all []string
	for _, l := range strings.Split(a.body, "\r\n") {
		if n, v, ok := strings.Cut(l, ": "); ok && strings.EqualFold(n, name) {
			all = append(all, v)
		}
	}
	return strings.Join(all, " | ")
}

func (a answer) requestLine() string { l, _, _ := strings.Cut(a.body, "\r\n"); return l }

// masked hides what differs from run to run.
var requestID = regexp.MustCompile(`[0-9a-f]{32}`)

func masked(s string) string { return requestID.ReplaceAllString(s, "ID") }

// hook is a plugin made of functions.
type hook struct {
	access func(*exchange.Exchange) error
	head   func(*exchange.Exchange) error
	body   func(*exchange.Exchange, []byte, bool) ([]byte, error)
	log    func(*exchange.Exchange)
}

func (h hook) Access(x *exchange.Exchange) error {
	if h.access == nil {
		return nil
	}
	return h.access(x)
}

func (h hook) HeaderFilter(x *exchange.Exchange) error {
	if h.head == nil {
		return nil
	}
	return h.head(x)
}

func (h hook) Log(x *exchange.Exchange) {
	if h.log != nil {
		h.log(x)
	}
}

type bodyHook struct{ hook }

func (h bodyHook) BodyFilter(x *exchange.Exchange, b []byte, last bool) ([]byte, error) {
	return h.body(x, b, last)
}

// hooked makes a plugin whose instances are built from the row's config by f.
func hooked(name string, priority int, f func(plugin.Config) hook) plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{Name: name, Priority: priority},
		New: func(_ context.Context, _ plugin.Env, c plugin.Config) (plugin.Instance, error) {
			h := f(c)
			if h.body != nil {
				return bodyHook{h}, nil
			}
			return h, nil
		},
	}
}

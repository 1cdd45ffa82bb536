package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

// A stream gateway as an administrator sets it up: by the Admin API, with clients that speak TCP, TLS and UDP.
func TestStreams(t *testing.T) {
	t.Parallel()
	plain, secure, datagrams := harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)
	logs := filepath.Join(t.TempDir(), "stream.log")
	n := harness.NewNode(t, "streams", fmt.Sprintf("CONCORD_STREAM_LISTEN=127.0.0.1:%d, 127.0.0.1:%d ssl, 127.0.0.1:%d udp", plain, secure, datagrams),
		"CONCORD_PROXY_STREAM_ACCESS_LOG="+logs+" basic")
	n.Start()
	create := func(path string, fields ...string) {
		t.Helper()
		if a := n.Form("POST", path, fields...); a.Status != 201 {
			t.Fatalf("POST %s: %d %s", path, a.Status, a.Body)
		}
	}
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

	create("/upstreams", "name", "echo", "healthchecks.passive.type", "tcp", "healthchecks.passive.unhealthy.tcp_failures", "1")
	one := streamBackendAt(t, at(harness.FreePort(t)), func(c net.Conn) { echoUntilEnd(c, "one ") }) // a port that nobody gets when it is closed
	two := streamBackend(t, func(c net.Conn) { echoUntilEnd(c, "two ") })
	create("/upstreams/echo/targets", "target", one.Addr().String())
	create("/upstreams/echo/targets", "target", two.Addr().String())
	create("/services", "name", "echo", "protocol", "tcp", "host", "echo", "port", "1")
	create("/services/echo/routes", "name", "echo", "protocols[]", "tcp", "destinations[1].port", fmt.Sprint(plain))

	create("/plugins", "name", "prometheus", "config.status_code_metrics", "true", "protocols[]", "tcp")

	t.Run("tcp, half-closed", func(t *testing.T) {
		seen := map[string]bool{}
		for range 4 {
			got := converse(t, dialStream(t, at(plain)), "hello")
			word, rest, _ := strings.Cut(got, " ")
			if rest != "hello" {
				t.Fatalf("got %q", got)
			}
			seen[word] = true
		}
		if !seen["one"] || !seen["two"] {
			t.Errorf("not both targets were asked: %v", seen)
		}
	})
	t.Run("a target that is gone", func(t *testing.T) {
		one.Close()
		for range 6 {
			if got := converse(t, dialStream(t, at(plain)), "hello"); got != "two hello" {
				t.Fatalf("got %q", got)
			}
		}
	})
	t.Run("tls", func(t *testing.T) {
		write(t, n, "POST", "/certificates", issue(t, "term.example.com", nil).body("term.example.com"), 201)
		create("/services/echo/routes", "name", "term", "protocols[]", "tls", "snis[]", "term.example.com")
		for _, name := range []string{"a", "b"} {
			host := name + ".example.com"
			id := issue(t, host, nil)
			pair := tls.Certificate{Certificate: [][]byte{id.cert.Raw}, PrivateKey: id.key}
			ln := streamBackend(t, func(c net.Conn) {
				echoUntilEnd(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}}), name+" ")
			})
			create("/services", "name", name, "protocol", "tcp", "host", "127.0.0.1", "port", fmt.Sprint(ln.Addr().(*net.TCPAddr).Port))
			create("/services/"+name+"/routes", "name", name, "protocols[]", "tls_passthrough", "snis[]", host)
		}
		for host, want := range map[string]string{"term.example.com": "two hello", "a.example.com": "a hello", "b.example.com": "b hello"} {
			c := tls.Client(dialStream(t, at(secure)), &tls.Config{ServerName: host, InsecureSkipVerify: true})
			if err := c.Handshake(); err != nil {
				t.Fatalf("%s: %v", host, err)
			}
			if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != host {
				t.Errorf("%s: certificate of %s", host, got)
			}
			if got := converse(t, c, "hello"); got != want {
				t.Errorf("%s: got %q, want %q", host, got, want)
			}
		}
	})
	t.Run("udp", func(t *testing.T) {
		server, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go func() {
			buf := make([]byte, 2048)
			for {
				k, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(append([]byte("udp "), buf[:k]...), from)
			}
		}()
		create("/services", "name", "datagrams", "protocol", "udp", "host", "127.0.0.1", "port", fmt.Sprint(server.LocalAddr().(*net.UDPAddr).Port))
		create("/services/datagrams/routes", "protocols[]", "udp", "destinations[1].port", fmt.Sprint(datagrams))
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				c, err := net.Dial("udp", at(datagrams))
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				text := fmt.Sprintf("client %d", i)
				buf := make([]byte, 2048)
				for range 40 {
					_, _ = c.Write([]byte(text))
					_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
					if k, err := c.Read(buf); err == nil {
						if got := string(buf[:k]); got != "udp "+text {
							t.Errorf("got %q", got)
						}
						return
					}
				}
				t.Error("no answer")
			})
		}
		wg.Wait()
	})
	t.Run("proxy protocol out", func(t *testing.T) {
		create("/services/echo/routes", "name", "announced", "protocols[]", "tcp", "sources[1].ip", "127.0.0.66", "destinations[1].port", fmt.Sprint(plain))
		create("/routes/announced/plugins", "name", "proxy-protocol", "protocols[]", "tcp")
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}}
		c, err := d.Dial("tcp", at(plain))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		want := fmt.Sprintf("two PROXY TCP4 127.0.0.66 127.0.0.1 %d %d\r\nhello", c.LocalAddr().(*net.TCPAddr).Port, plain)
		if got := converse(t, c.(*net.TCPConn), "hello"); got != want {
			t.Errorf("the upstream got %q, want %q", got, want)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		if got := scrape(t, "http://"+n.Status)[`kong_stream_sessions_total{service="echo",route="echo",code="200",source="service",workspace="default"}`]; got < 9 {
			t.Errorf("%v sessions counted", got)
		}
	})
	t.Run("admin port", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(n.Admin)
		create("/services", "name", "admin", "protocol", "tcp", "host", "127.0.0.1", "port", port)
		create("/services/admin/routes", "protocols[]", "tcp", "sources[1].ip", "127.0.0.77", "destinations[1].port", fmt.Sprint(plain))
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
		c, err := d.Dial("tcp", at(plain))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("the Admin API answered: %q", b)
		}
	})
	if code := n.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	text, err := os.ReadFile(logs)
	if err != nil || !strings.Contains(string(text), "] TCP 200 9 5 ") || !strings.Contains(string(text), "] TCP 502 0 0 ") {
		t.Errorf("access log: %v\n%s", err, text)
	}
}

// streamBackend handles every connection with f.
func streamBackend(t *testing.T, f func(net.Conn)) net.Listener {
	return streamBackendAt(t, "127.0.0.1:0", f)
}

func streamBackendAt(t *testing.T, addr string, f func(net.Conn)) net.Listener {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return ln
}

// echoUntilEnd says everything back, behind a word, once the other side has ended.
func echoUntilEnd(c net.Conn, word string) {
	all, err := io.ReadAll(c)
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, word+string(all))
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
}

func dialStream(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// converse says a text, ends its part and returns the answer.
func converse(t *testing.T, c interface {
	io.ReadWriter
	CloseWrite() error
}, text string,
) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%q, then %v", b, err)
	}
	return string(b)
}

// TestStreamReload: whom a PROXY header is believed from, and how many connections there may be, changes with a reload, while a
// connection from before goes on and counts.
func TestStreamReload(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "streams")
	file := filepath.Join(t.TempDir(), "concord.conf")
	port := harness.FreePort(t)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	conf := func(lines ...string) {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listen := "stream_listen = " + at + " proxy_protocol"
	conf(listen)
	if out, err := verb(t, n, "start", "-c", file); err != nil {
		t.Fatalf("start: %v %s", err, out)
	}
	nodePid(t, n)
	up := streamBackend(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	expect(t, "service", n.JSON("POST", "/services", `{"name":"echo","protocol":"tcp","host":"127.0.0.1","port":`+fmt.Sprint(up.Addr().(*net.TCPAddr).Port)+`}`), 201)
	last := expect(t, "route", n.JSON("POST", "/services/echo/routes", `{"protocols":["tcp"],"sources":[{"ip":"192.0.2.7"}]}`), 201)
	n.Get("/", "X-Min-Config-Index", last.Index())
	const announced = "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n"
	answers := func() (net.Conn, bool) {
		t.Helper()
		c := dialStream(t, at)
		buf := make([]byte, 5)
		if _, err := io.WriteString(c, announced+"hello"); err != nil {
			return c, false
		}
		_, err := io.ReadFull(c, buf)
		return c, err == nil && string(buf) == "hello"
	}
	refused := func() string {
		t.Helper()
		a, err := harness.Do("GET", "http://"+n.Status+"/metrics", "", "")
		if err != nil || a.Status != 200 {
			t.Fatal(a.Status, err)
		}
		for line := range strings.Lines(a.Body) {
			if v, ok := strings.CutPrefix(line, "concord_stream_refused_connections_total "); ok {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	if _, ok := answers(); ok {
		t.Error("a PROXY header of somebody untrusted was believed")
	}
	reload := func(want string) {
		t.Helper()
		if out, err := verb(t, n, "reload", "-c", file); err != nil || !strings.Contains(out, want) {
			t.Fatalf("reload: %v %s", err, out)
		}
	}
	conf(listen, "trusted_ips = 127.0.0.0/8")
	reload("trusted_ips: changed")
	c, ok := answers()
	if !ok {
		t.Fatal("trusted_ips has not changed")
	}
	conf(listen, "trusted_ips = 127.0.0.0/8", "stream_max_connections = 1")
	reload("stream_max_connections: changed")
	if _, ok := answers(); ok || refused() != "1" {
		t.Errorf("the connection from before the reload does not count: %s refused", refused())
	}
	if got := converse(t, c.(*net.TCPConn), "still here"); got != "still here" {
		t.Errorf("the connection from before the reload said %q", got)
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, ok := answers(); ok {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no room after the connection has ended")
		}
	}
}

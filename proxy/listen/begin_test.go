package listen_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/h1"
	"concord/proxy/h2"
	"concord/proxy/listen"
	"concord/proxy/proxyproto"
)

// told answers with what the acceptor knows of a connection, and closes it.
type told struct{}

func (told) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	defer info.End()
	defer nc.Close()
	first := info.Initial
	buf := make([]byte, 1024)
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	for !strings.Contains(string(first), "end") {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		first = append(first, buf[:n]...)
	}
	yes, _ := h2.Sniff(info.Initial)
	fmt.Fprintf(nc, "proxied %v h2 %v tls %v: %q", info.Proxied, yes && info.HTTP2, info.TLS != nil, first)
}

func openTold(t *testing.T, specs string, set func(*listen.Options)) (*listen.Group, []net.Addr) {
	t.Helper()
	cert, err := listen.DefaultCertificate(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := listen.Parse(specs)
	if err != nil {
		t.Fatal(err)
	}
	o := listen.Options{Specs: parsed, Server: told{}, TLS: listen.TLSConfig(listen.TLSOptions{Default: cert}), Log: slog.New(slog.DiscardHandler)}
	if set != nil {
		set(&o)
	}
	g, err := listen.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve() }()
	t.Cleanup(g.Close)
	return g, g.Addrs()
}

// say sends pieces, with time for each to arrive alone, and returns what is answered until the connection is closed.
func say(t *testing.T, c net.Conn, pieces ...string) string {
	t.Helper()
	for i, p := range pieces {
		if i > 0 {
			time.Sleep(15 * time.Millisecond)
		}
		if _, err := io.WriteString(c, p); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if os.IsTimeout(err) {
		t.Fatalf("after %q: still open", pieces)
	}
	return string(b)
}

func TestProxyProtocol(t *testing.T) {
	_, addrs := openTold(t, "127.0.0.1:0 proxy_protocol http2, 127.0.0.1:0 ssl proxy_protocol", nil)
	v2 := proxyproto.Header{}.AppendV2(nil)
	for _, c := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"v1", []string{"PROXY TCP4 192.0.2.7 192.0.2.2 5 80\r\nend"}, `proxied 192.0.2.7:5 h2 false tls false: "end"`},
		{"in pieces", []string{"PROXY TC", "P6 2001:db8::7 ::1 5 80\r", "\n", "e", "nd"}, `proxied [2001:db8::7]:5 h2 false tls false: "end"`},
		{"unknown", []string{"PROXY UNKNOWN\r\nend"}, `proxied invalid AddrPort h2 false tls false: "end"`},
		{"v2 LOCAL", []string{string(v2), "end"}, `proxied invalid AddrPort h2 false tls false: "end"`},
		{"with h2c behind it", []string{"PROXY TCP4 192.0.2.7 192.0.2.2 5 80\r\nPRI * HT", "TP/2.0\r\n", "\r\nend"}, `proxied 192.0.2.7:5 h2 true tls false: "PRI * HTTP/2.0\r\n\r\nend"`},
		{"missing", []string{"GET / HTTP/1.1\r\n"}, ""},
		{"malformed", []string{"PROXY TCP4 192.0.2.7 192.0.2.2 5 99999\r\n"}, ""},
		{"twice", []string{"PROXY TCP4 192.0.2.7 192.0.2.2 5 80\r\nPROXY TCP4 192.0.2.8 192.0.2.2 5 80\r\nend"}, `proxied 192.0.2.7:5 h2 false tls false: "PROXY TCP4 192.0.2.8 192.0.2.2 5 80\r\nend"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := say(t, dial(t, addrs[0].String()), c.pieces...); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	t.Run("before TLS", func(t *testing.T) {
		raw := dial(t, addrs[1].String())
		if _, err := io.WriteString(raw, "PROXY TCP4 192.0.2.7 192.0.2.2 5 80\r\n"); err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		if got, want := say(t, c, "end"), `proxied 192.0.2.7:5 h2 false tls true: "end"`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if c, err := tls.Dial("tcp", addrs[1].String(), &tls.Config{InsecureSkipVerify: true}); err == nil {
			c.Close()
			t.Error("TLS without the header was served")
		}
	})
}

func TestPrefaceInPieces(t *testing.T) {
	_, addrs := openTold(t, "127.0.0.1:0 http2, 127.0.0.1:0", nil)
	pieces := strings.Split("P|RI| * HTTP/2.|0\r|\n\r\nSM\r\n\r\nend", "|")
	whole := strings.Join(pieces, "")
	for _, c := range []struct {
		pieces []string
		http2  bool
	}{{pieces, true}, {[]string{whole}, true}, {[]string{"P", "OST end"}, false}, {[]string{"PRI * HTTP/1.", "1 end"}, false}} {
		if got, want := say(t, dial(t, addrs[0].String()), c.pieces...), fmt.Sprintf("proxied invalid AddrPort h2 %v tls false: %q", c.http2, strings.Join(c.pieces, "")); got != want {
			t.Errorf("%q: got %s, want %s", c.pieces, got, want)
		}
	}
	if got := say(t, dial(t, addrs[1].String()), pieces...); !strings.Contains(got, "h2 false") {
		t.Errorf("without the flag: %s", got)
	}
}

// TestSilence: D2, and its relatives: who does not say what it wants within the time for that is not waited for.
func TestSilence(t *testing.T) {
	_, addrs := openTold(t, "127.0.0.1:0 http2, 127.0.0.1:0 ssl, 127.0.0.1:0 proxy_protocol", func(o *listen.Options) { o.FirstByteTimeout = 60 * time.Millisecond })
	for i, said := range [][]string{{"", "PRI * HT"}, {""}, {"", "PROXY TC", "PROXY TCP4 192.0.2.7 192.0.2.2 5 80\r\n"}} {
		for _, s := range said {
			if got := say(t, dial(t, addrs[i].String()), s); got != "" {
				t.Errorf("listener %d, after %q: %q", i, s, got)
			}
		}
	}
}

func option(t *testing.T, sc interface{ File() (*os.File, error) }, level, opt int) int {
	t.Helper()
	f, err := sc.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := unix.GetsockoptInt(int(f.Fd()), level, opt)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFlagsReachTheSocket(t *testing.T) {
	accepted := make(chan *net.TCPConn, 1)
	serve := serverFunc(func(nc net.Conn) { accepted <- nc.(*net.TCPConn) })
	_, addrs := openTold(t, "127.0.0.1:0 so_keepalive=77::3, 127.0.0.1:0 so_keepalive=off", func(o *listen.Options) { o.Server = serve })
	for i, want := range []int{1, 0} {
		say1(t, addrs[i])
		c := <-accepted
		if got := option(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != want {
			t.Errorf("listener %d: SO_KEEPALIVE is %d, want %d", i, got, want)
		}
		if got := option(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); want == 1 && got != 77 {
			t.Errorf("TCP_KEEPIDLE is %d", got)
		}
		if got := option(t, c, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); got != 48<<10 {
			t.Errorf("listener %d: the accepted socket's TCP_NOTSENT_LOWAT is %d", i, got)
		}
		_ = c.Close()
	}
	specs, err := listen.Parse("127.0.0.1:0 deferred reuseport backlog=3")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := specs[0].Listen(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tl := ln.(*net.TCPListener)
	if option(t, tl, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT) == 0 || option(t, tl, unix.SOL_SOCKET, unix.SO_REUSEPORT) != 1 {
		t.Error("deferred or reuseport did not reach the socket")
	}
}

func say1(t *testing.T, addr net.Addr) {
	t.Helper()
	if _, err := io.WriteString(dial(t, addr.String()), "x"); err != nil {
		t.Fatal(err)
	}
}

type serverFunc func(net.Conn)

func (f serverFunc) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	defer info.End()
	f(nc)
}

func TestFamiliesAreApart(t *testing.T) {
	four, err := listen.Parse("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := four[0].Listen(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, port, _ := net.SplitHostPort(a.Addr().String())
	six, err := listen.Parse("[::]:" + port)
	if err != nil {
		t.Fatal(err)
	}
	b, err := six[0].Listen(context.Background(), nil)
	if err != nil {
		t.Fatalf("0.0.0.0 and [::] with one port, as many configurations have it: %v", err)
	}
	_ = b.Close()
}

// TestHandOver: while a group's sockets pass to another one, nobody is turned away, and nothing that was said gets lost.
func TestHandOver(t *testing.T) {
	old, addrs := openTold(t, "127.0.0.1:0", nil)
	silent := dial(t, addrs[0].String()) // accepted, but nothing was said yet
	for end := time.Now().Add(60 * time.Second); old.Conns() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	var in listen.Inherited
	err := old.Sockets(func(name string, fd int) error {
		copied, err := unix.Dup(fd)
		in.Add(name, copied)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in.Add("tcp 192.0.2.1:1", mustDup(t)) // of a listener that is gone
	old.Stop()
	queued := dial(t, addrs[0].String()) // nobody accepts now
	if _, err := io.WriteString(queued, "queued end"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if old.Settled(short); short.Err() == nil {
		t.Error("a connection on which nothing was said is taken for settled")
	}
	young, youngAddrs := openTold(t, "127.0.0.1:0", func(o *listen.Options) { o.Inherited = &in })
	in.Close()
	if youngAddrs[0].String() != addrs[0].String() {
		t.Fatalf("listens on %v, not on %v", youngAddrs[0], addrs[0])
	}
	if got := say(t, silent, "silent end"); !strings.Contains(got, `"silent end"`) {
		t.Errorf("accepted by the old group: %q", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if old.Settled(ctx); ctx.Err() != nil {
		t.Error("the old group does not settle")
	}
	old.Close()
	if got := say(t, queued); !strings.Contains(got, `"queued end"`) {
		t.Errorf("accepted by the young group: %q", got)
	}
	if got := say(t, dial(t, addrs[0].String()), "late end"); !strings.Contains(got, `"late end"`) {
		t.Errorf("after the old group: %q", got)
	}
	young.Close()
}

func mustDup(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(f uintptr) { fd, err = unix.Dup(int(f)) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

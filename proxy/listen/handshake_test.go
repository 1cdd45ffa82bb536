package listen_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/listen"
)

// clientHello is the first flight of a client for a name, TLS record included.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(ours, &tls.Config{ServerName: name}).Handshake()
		ours.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(theirs, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(theirs, body); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	return append(head, body...)
}

// D7: clients that stop in the middle of a handshake are let go of, and others are served meanwhile.
func TestHalfHandshakes(t *testing.T) {
	const clients = 200
	before := runtime.NumGoroutine()
	g, _, addrs := open(t, func(o *listen.Options) { o.HandshakeTimeout = 3 * time.Second })
	hello := clientHello(t, "a.example.com")
	var all []net.Conn
	for i := range clients {
		c := dial(t, addrs[1])
		all = append(all, c)
		// Nothing but the first byte, the head of a record that promises 16 KB, half a ClientHello, or all of it and no answer to the server's part.
		part := [][]byte{hello[:1], {22, 3, 1, 0x40, 0}, hello[:len(hello)/2], hello}[i%4]
		if _, err := c.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, dialTLS(t, addrs[1], "a.example.com")); got != "https a.example.com 127.0.0.1" {
		t.Errorf("another client got %q meanwhile", got)
	}
	var wait sync.WaitGroup
	for _, c := range all {
		wait.Go(func() {
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil {
				if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
					t.Error("a half handshake is kept")
				}
			}
		})
	}
	wait.Wait()
	for deadline := time.Now().Add(30 * time.Second); g.Conns() > 1 || runtime.NumGoroutine() > before+20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections and %d goroutines are left of %d before", g.Conns(), runtime.NumGoroutine(), before)
		}
	}
}

// shredder cuts what is written first, a ClientHello, into records of a few bytes.
type shredder struct {
	net.Conn
	size int
	done bool
}

func (s *shredder) Write(p []byte) (int, error) {
	if s.done {
		return s.Conn.Write(p)
	}
	s.done = true
	var out bytes.Buffer
	for rest := p[5:]; len(rest) > 0; {
		n := min(s.size, len(rest))
		out.Write([]byte{p[0], p[1], p[2], 0, byte(n)})
		out.Write(rest[:n])
		rest = rest[n:]
	}
	if _, err := s.Conn.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// recorder keeps what a server learns about connections.
type recorder struct{ conns chan exchange.Conn }

func (s recorder) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	defer info.End()
	s.conns <- info.Conn
	nc.Close()
}

// D7: the name in a ClientHello that comes in many records decides all the same who is asked for a certificate.
func TestFragmentedClientHello(t *testing.T) {
	server := recorder{make(chan exchange.Conn, 1)}
	_, _, addrs := open(t, func(o *listen.Options) {
		o.Server = server
		base := o.TLS.Clone()
		o.TLS = base.Clone()
		o.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName != "a.example.com" {
				return nil, nil
			}
			asking := base.Clone()
			asking.ClientAuth = tls.RequestClientCert
			return asking, nil
		}
	})
	own := named(t, "client")
	for _, addr := range addrs {
		for _, size := range []int{1, 7, 100} {
			for name, asked := range map[string]bool{"a.example.com": true, "other.org": false} {
				c := tls.Client(&shredder{Conn: dial(t, addr), size: size}, &tls.Config{
					InsecureSkipVerify: true, ServerName: name, Certificates: []tls.Certificate{own}, NextProtos: []string{"h2", "http/1.1"},
				})
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if err := c.Handshake(); err != nil {
					t.Fatalf("records of %d bytes: %v", size, err)
				}
				info := <-server.conns
				if info.SNI != name || info.CertificateAsked != asked || len(info.TLS.PeerCertificates) > 0 != asked {
					t.Errorf("records of %d bytes: SNI %q, asked %v, %d certificates", size, info.SNI, info.CertificateAsked, len(info.TLS.PeerCertificates))
				}
				if want := c.ConnectionState().NegotiatedProtocol; want != info.TLS.NegotiatedProtocol || (addr == addrs[1]) != (want == "h2") {
					t.Errorf("protocol %q", want)
				}
			}
		}
	}
}

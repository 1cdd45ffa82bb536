package h1_test

import (
	"bytes"
	"net"
	"testing"

	"concord/proxy/h1"
	"concord/proxy/upstream"
	"concord/test/harness"
)

// plainLoop returns a function that sends one keep-alive request through server and upstream connection and reads the
// answer.
func plainLoop(t testing.TB) func() {
	addr, _, _ := start(t, echoUpstream(t, 1024), func(o *h1.Options, u *upstream.Options, _ *plain) {
		o.MaxRequests, u.MaxRequests = 1<<40, 1<<40
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	req := []byte("GET /get?a=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 8192)
	return func() {
		if _, err := c.Write(req); err != nil {
			t.Fatal(err)
		}
		for n, head := 0, -1; head < 0 || n < head+4+1024; {
			k, err := c.Read(buf[n:])
			if err != nil {
				t.Fatal(err, string(buf[:n]))
			}
			n += k
			head = bytes.Index(buf[:n], []byte("\r\n\r\n"))
		}
	}
}

func BenchmarkProxyPlain(b *testing.B) {
	once := plainLoop(b)
	for range 100 {
		once()
	}
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}

// TestPlainAllocatesNothing counts over the whole process: client, gateway and upstream.
func TestPlainAllocatesNothing(t *testing.T) {
	once := plainLoop(t)
	for range 100 {
		once()
	}
	harness.NoAllocs(t, "a request", once)
}

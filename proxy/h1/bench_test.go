package h1_test

import (
	"bytes"
	"net"
	"testing"

	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// BenchmarkProxyPlain is one keep-alive request through server, upstream connection and back. It must not allocate.
func BenchmarkProxyPlain(b *testing.B) {
	addr, _, _ := start(b, echoUpstream(b, 1024), func(o *h1.Options, u *upstream.Options, _ *plain) { o.MaxRequests, u.MaxRequests = 1<<40, 1<<40 })
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req := []byte("GET /get?a=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 8192)
	once := func() {
		if _, err := c.Write(req); err != nil {
			b.Fatal(err)
		}
		n := 0
		for n < 1024 || !bytes.HasSuffix(buf[:n], []byte("xxxx")) || n < bytes.Index(buf[:n], []byte("\r\n\r\n"))+4+1024 {
			k, err := c.Read(buf[n:])
			if err != nil {
				b.Fatal(err, string(buf[:n]))
			}
			n += k
		}
	}
	for range 100 {
		once()
	}
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}

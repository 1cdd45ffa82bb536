package h2

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
)

// BenchmarkServer: requests of ten streams at once, answered at once.
func BenchmarkServer(b *testing.B) {
	b.ReportAllocs()
	_, addr := startServer(b, Options{MaxRequests: 1 << 60, Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		x.Response.Header.Add("Content-Type", "text/plain")
		x.Response.SetBody(hello)
	}}})
	c := dialRaw(b, addr).hello()
	c.mute = true
	c.fr.ReadMetaHeaders = nil
	c.do(c.fr.WriteWindowUpdate(0, 1<<30))
	id := uint32(1)
	for n := 0; n < b.N; {
		var out []byte
		k := min(10, b.N-n)
		for range k {
			block := c.block(append(getFields, "user-agent", "bench", "accept", "*/*")...)
			out = appendHeaders(out, id, block, true, maxFrame)
			id += 2
		}
		c.write(out)
		for done := 0; done < k; {
			f, err := c.next()
			if err != nil {
				b.Fatal(err)
			}
			if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
				done++
			}
		}
		n += k
	}
}

var hello = []byte("hello, world\n")

// BenchmarkPool: exchanges with Go's server, ten at once.
func BenchmarkPool(b *testing.B) {
	b.ReportAllocs()
	addr, _ := startUpstream(b, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	p := NewPool(PoolOptions{})
	defer p.Close()
	key := Key{Addr: netip.MustParseAddrPort(addr)}
	dial := func() (net.Conn, error) { return net.Dial("tcp", addr) }
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			x := &exchange.Exchange{}
			for range b.N/10 + min(1, w) {
				x.Request.Method = "GET"
				x.Upstream.HostHeader, x.Upstream.Scheme, x.Upstream.Path = "a", "http", "/"
				if err := p.RoundTrip(x, key, dial); err != nil {
					b.Error(err)
					return
				}
				for {
					if _, err := x.Response.Body.Next(); err != nil {
						break
					}
				}
				p.Release(x)
				x.Reset()
			}
		})
	}
	wg.Wait()
}

// BenchmarkHead encodes a response's head.
func BenchmarkHead(b *testing.B) {
	b.ReportAllocs()
	fields := []exchange.Field{{Name: "Content-Type", Value: "application/json"}, {Name: "Server", Value: "up/1.0"}, {Name: "Date", Value: "Sun, 22 Nov 2026 07:22:39 GMT"},
		{Name: "X-Kong-Request-Id", Value: "0123456789abcdef0123456789abcdef"}, {Name: "Via", Value: "1.1 concord/1"}, {Name: "X-Kong-Proxy-Latency", Value: "0"}}
	buf := make([]byte, 0, 1024)
	for b.Loop() {
		out := appendStatus(buf, 200)
		for i := range fields {
			out, _ = appendField(out, fields[i].Name, fields[i].Value)
		}
	}
}

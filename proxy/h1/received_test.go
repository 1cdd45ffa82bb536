package h1_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"concord/proxy/exchange"
	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// TestBytesReceived: head and body count, framing of chunks does not, and a pipelined request is not counted with the one before it.
func TestBytesReceived(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // an early answer would end the reading
	}))
	defer up.Close()
	const head = "POST /x HTTP/1.1\r\nHost: a\r\n"
	requests := []struct {
		text string
		want int64
	}{
		{"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 28},
		{head + "Content-Length: 5\r\n\r\nhello", int64(len(head)) + 26},
		{head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", int64(len(head)) + 30 + 5},
		{head + "Content-Length: 300000\r\n\r\n" + strings.Repeat("b", 300000), int64(len(head)) + 26 + 300000},
	}
	backends(t, func(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
		got := make(chan int64, len(requests))
		addr, _, _ := start(t, up.Listener.Addr(), func(ho *h1.Options, uo *upstream.Options, p *plain) {
			set(ho, uo, p)
			p.done = func(x *exchange.Exchange) { got <- x.BytesReceived }
		})
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			for _, r := range requests {
				_, _ = c.Write([]byte(r.text)) // a failure shows in the answers
			}
		}()
		in := bufio.NewReader(c)
		for i, r := range requests {
			res, err := http.ReadResponse(in, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatal(i, res, err)
			}
			if n := <-got; n != r.want {
				t.Errorf("request %d: %d bytes, want %d", i, n, r.want)
			}
		}
	})
}

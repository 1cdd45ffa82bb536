package h2

import (
	"strings"
	"testing"

	"concord/proxy/exchange"
)

type finished struct {
	handlerFunc
	received chan int64
}

func (f *finished) Finish(x *exchange.Exchange) { f.received <- x.BytesReceived }

// TestBytesReceived: the fields count as RFC 9113 §6.5.2 says, the body as it is, whether it came with the head or after it.
func TestBytesReceived(t *testing.T) {
	h := &finished{handlerFunc: handlerFunc{serve: echo}, received: make(chan int64, 1)}
	_, addr := startServer(t, Options{Handler: h})
	c := dialRaw(t, addr).hello()
	size := func(fields []string) (n int64) {
		return int64(len(strings.Join(fields, "")) + 32*len(fields)/2)
	}
	id := uint32(1)
	for name, bodies := range map[string][]string{"none": nil, "one": {"hello"}, "more": {"hello", strings.Repeat("b", 10000)}} {
		fields := getFields
		if bodies != nil {
			fields = postFields
		}
		c.headers(id, bodies == nil, fields...)
		for i, b := range bodies {
			c.data(id, i == len(bodies)-1, b)
		}
		if a := c.await(id); a.status != "200" {
			t.Fatalf("%s: %+v", name, a)
		}
		if got, want := <-h.received, size(fields)+int64(len(strings.Join(bodies, ""))); got != want {
			t.Errorf("%s: %d bytes, want %d", name, got, want)
		}
		id += 2
	}
}

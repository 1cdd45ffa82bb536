package h1_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"concord/proxy/h1"
	"concord/proxy/upstream"
)

// TestEndWithRequest: the end of the stream in the same packet as a request, which wakes the connection only once.
func TestEndWithRequest(t *testing.T) {
	t.Parallel()
	backends(t, testEndWithRequest)
}

func testEndWithRequest(t *testing.T, set func(*h1.Options, *upstream.Options, *plain)) {
	rec := newRecorder(t, nil)
	addr, s, _ := start(t, rec.ln.Addr(), func(o *h1.Options, u *upstream.Options, p *plain) {
		set(o, u, p)
		o.IdleTimeout = time.Hour
	})
	c := dial(t, addr)
	br := bufio.NewReader(c)
	for range 2 {
		fmt.Fprint(c, get("/"))
		if r, err := http.ReadResponse(br, nil); err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		} else if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, 1) })
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, get("/"))
	_ = c.CloseWrite()
	if r, err := http.ReadResponse(br, nil); err != nil || r.StatusCode != 200 {
		t.Fatal(r, err)
	} else if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
	if _, err := br.ReadByte(); err != io.EOF { // not the timeout
		t.Error(err)
	}
	waitFor(t, func() bool { return s.Conns() == 0 })
}

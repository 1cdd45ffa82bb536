package h3_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/exchange"
	"concord/proxy/h3"
	"concord/proxy/listen"
)

// TestHandOver: the socket goes from one owner to the next and the one after, and all their connections go on.
func TestHandOver(t *testing.T) {
	named := func(name string) func(*exchange.Exchange) {
		return func(x *exchange.Exchange) {
			if x.Request.Method == http.MethodPost {
				echo(x)
				return
			}
			x.Response.Status = http.StatusOK
			x.Response.SetBody([]byte(name))
		}
	}
	owners := []*fixture{start(t, named("0"), nil)}
	url := owners[0].url
	big := bytes.Repeat([]byte("0123456789abcdef"), 2<<20/16)
	in, out := io.Pipe()
	defer out.Close()
	answered := make(chan *http.Response, 1)
	go func() {
		r, _ := http.NewRequest("POST", url, in)
		res, err := owners[0].client.RoundTrip(r)
		if err != nil {
			t.Error(err)
		}
		answered <- res
	}()
	if _, err := out.Write([]byte("begun ")); err != nil {
		t.Fatal(err)
	}
	res := <-answered
	if res == nil {
		t.FailNow()
	}
	defer res.Body.Close()
	for _, name := range []string{"1", "2"} {
		old := owners[len(owners)-1]
		sockets := give(t, old)
		owners = append(owners, inherit(t, named(name), sockets))
		old.listener.Stop()
	}
	go func() {
		_, _ = out.Write(big)
		_ = out.Close()
	}()
	if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, append([]byte("begun "), big...)) {
		t.Errorf("what was under way: %d bytes, %v", len(got), err)
	}
	for i, want := range []string{"0", "1", "2", "2"} {
		client := newClient()
		defer client.Close()
		if i < len(owners) {
			client = owners[i].client
		}
		if i == 1 {
			continue // nobody has spoken to it in its time
		}
		f := &fixture{client: client}
		if _, got := f.do(t, request(t, "GET", url, nil)); string(got) != want {
			t.Errorf("client %d was served by %s, want %s", i, got, want)
		}
	}
	if a, b := owners[0].listener.Addr().String(), owners[2].listener.Addr().String(); a != b {
		t.Errorf("listens on %s, not on %s", b, a)
	}
}

// TestHandOverFails: an owner whose heir has gone reads the socket again.
func TestHandOverFails(t *testing.T) {
	f := start(t, tell, nil)
	f.do(t, request(t, "GET", f.url, nil))
	sockets := give(t, f)
	f.listener.Stop()
	time.Sleep(20 * time.Millisecond)
	sockets.Close()
	f.do(t, request(t, "GET", f.url, nil))
}

// TestCloseWhenHeirGoes: whoever closes while its heir goes is not left reading.
func TestCloseWhenHeirGoes(t *testing.T) {
	for i := range 200 {
		f := start(t, tell, nil)
		f.do(t, request(t, "GET", f.url, nil))
		sockets := give(t, f)
		f.listener.Stop()
		gone := make(chan struct{})
		go func() {
			sockets.Close()
			close(gone)
		}()
		time.Sleep(time.Duration(i%40) * 2 * time.Microsecond) // at any moment of it
		f.listener.Close()
		<-gone
	}
}

// give is what another process would inherit.
func give(t *testing.T, f *fixture) *listen.Inherited {
	t.Helper()
	sockets := &listen.Inherited{}
	err := f.listener.Socket(func(name string, fd int) error {
		copied, err := unix.Dup(fd)
		sockets.Add(name, copied)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

func inherit(t *testing.T, serve func(*exchange.Exchange), from *listen.Inherited) *fixture {
	t.Helper()
	f := &fixture{handler: &handler{serve: serve}, gate: &gate{}, client: newClient()}
	f.gate.max.Store(1000)
	f.server = h3.New(h3.Options{Handler: f.handler})
	f.listen(t, from, nil)
	return f
}

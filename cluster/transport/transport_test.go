package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"concord/cluster/pki"
	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

type authority struct {
	t       *testing.T
	ca      *pki.CA
	cluster string
}

func newAuthority(t *testing.T) *authority {
	cluster := uuid.NewString()
	ca, err := pki.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, ca, cluster}
}

func (a *authority) credentials() *pki.Credentials {
	a.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		a.t.Fatal(err)
	}
	csr, err := key.Request()
	if err != nil {
		a.t.Fatal(err)
	}
	id := uuid.NewString()
	der, err := a.ca.Sign(csr, a.cluster, id, time.Now(), time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := pki.NewCredentials(a.cluster, id, key, der, a.ca.CertificatePEM())
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *authority) listen(change func(*Options)) *Transport {
	a.t.Helper()
	o := Options{
		Listen: "127.0.0.1:0", Member: func(string, string) error { return nil },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, NodeID(r)) }),
		Join: func(_ context.Context, _ net.Addr, _ tls.ConnectionState, m []byte) []byte {
			return append([]byte("answer to "), m...)
		},
	}
	if change != nil {
		change(&o)
	}
	tr, err := Listen(o)
	if err != nil {
		a.t.Fatal(err)
	}
	tr.SetCredentials(a.credentials())
	a.t.Cleanup(func() { tr.Close() })
	return tr
}

func get(tr *Transport, to string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+to+"/x", nil)
	if err != nil {
		return "", err
	}
	resp, err := tr.Client().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 {
		err = errors.Join(err, errors.New(resp.Proto))
	}
	return string(b), err
}

func TestMembers(t *testing.T) {
	au := newAuthority(t)
	var banned atomic.Pointer[string]
	x := au.listen(func(o *Options) {
		o.Member = func(id, _ string) error {
			if b := banned.Load(); b != nil && *b == id {
				return errors.New("removed")
			}
			return nil
		}
	})
	y := au.listen(nil)
	xid, yid := x.Credentials().NodeID, y.Credentials().NodeID
	y.SetResolver(func(id string) (string, bool) { return x.Addr().String(), id == xid || id == yid })

	if who, err := get(y, xid); err != nil || who != yid {
		t.Errorf("request by id: %q, %v", who, err)
	}
	if who, err := get(y, x.Addr().String()); err != nil || who != yid {
		t.Errorf("request by address: %q, %v", who, err)
	}
	if _, err := get(y, yid); err == nil || !strings.Contains(err.Error(), "was expected") {
		t.Errorf("another node answers: %v", err)
	}
	raft := x.Raft()
	out, err := y.DialRaft(x.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	in, err := raft.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go io.WriteString(out, "hello")
	buf := make([]byte, 5)
	if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}

	banned.Store(&yid)
	x.Cut(yid)
	out.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := out.Read(buf); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection of a removed node is open: %v", err)
	}
	if _, err := get(y, xid); err == nil {
		t.Error("a removed node was answered")
	}
	if c, err := y.DialRaft(x.Addr().String(), 5*time.Second); err == nil {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(buf); err == nil || n > 0 {
			t.Error("a removed node has a stream")
		}
	}
}

func TestJoinPath(t *testing.T) {
	au, other := newAuthority(t), newAuthority(t)
	x := au.listen(nil)
	tok, err := pki.NewToken(au.cluster, x.Credentials().CA)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.NewToken(other.cluster, other.credentials().CA)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	say := func(s string) func(tls.ConnectionState) ([]byte, error) {
		return func(tls.ConnectionState) ([]byte, error) { asked++; return []byte(s), nil }
	}
	got, err := Join(context.Background(), x.Addr().String(), tok, say("hello"))
	if err != nil || string(got) != "answer to hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Join(context.Background(), x.Addr().String(), foreign, say("secret")); err == nil || !strings.Contains(err.Error(), "pin") || asked != 1 {
		t.Errorf("another cluster's token: %v, asked %d times", err, asked)
	}
	if _, err := Join(context.Background(), x.Addr().String(), tok, say(strings.Repeat("x", maxJoinRequest+1))); err == nil {
		t.Error("a message beyond the limit was answered")
	}
	x.SetCredentials(nil)
	if _, err := Join(context.Background(), x.Addr().String(), tok, say("hello")); err == nil {
		t.Error("a node without credentials answered")
	}
}

// TestHalfOpen: stalled handshakes neither pile up nor keep others out, and Close does not wait for them.
func TestHalfOpen(t *testing.T) {
	au := newAuthority(t)
	x := au.listen(func(o *Options) { o.MaxHalfOpen, o.HandshakeTimeout = 20, time.Minute })
	y := au.listen(nil)
	var stalled []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", x.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		stalled = append(stalled, c)
	}
	if _, err := get(y, x.Addr().String()); err != nil {
		t.Errorf("a member is kept out: %v", err)
	}
	x.mu.Lock()
	if n := len(x.halfOpen); n > 20 {
		t.Errorf("%d half-open connections", n)
	}
	x.mu.Unlock()
	stalled[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := stalled[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the oldest was not closed: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- x.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("Close hangs")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x'})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		data, err := readFrame(bytes.NewReader(in), maxJoinRequest)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeFrame(&out, data); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("%x became %x, %v", in, out.Bytes(), err)
		}
	})
}

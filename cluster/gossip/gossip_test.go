package gossip

import (
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func key() []byte {
	k := make([]byte, 32)
	rand.Read(k)
	return k
}

func start(t *testing.T, name, label string, keys [][]byte, recv func([]byte)) *Gossip {
	t.Helper()
	g, err := Start(Options{NodeID: name, Label: label, Listen: "127.0.0.1:0", Keys: keys, Meta: Meta{Name: "name of " + name, Level: 1}, Receive: recv, Fast: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Abort() })
	return g
}

func ids(g *Gossip) string {
	var l []string
	for _, n := range g.Alive() {
		l = append(l, n.ID)
	}
	slices.Sort(l)
	return strings.Join(l, " ")
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// join tries again: the timers for loopback are short for a busy machine.
func join(t *testing.T, g, to *Gossip) {
	t.Helper()
	eventually(t, "joined", func() bool { return g.Join([]string{to.Addr()}) == nil })
}

func TestAliveAndMessages(t *testing.T) {
	k := [][]byte{key()}
	got := make(chan string, 10)
	a, b := start(t, "a", "l", k, nil), start(t, "b", "l", k, func(m []byte) { got <- string(m) })
	join(t, b, a)
	eventually(t, "both see both", func() bool { return ids(a) == "a b" && ids(b) == "a b" })
	if err := a.SendBestEffort("b", []byte("rights")); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-got:
		if m != "rights" {
			t.Errorf("got %q", m)
		}
	case <-time.After(60 * time.Second):
		t.Error("the message did not arrive")
	}
	if err := a.SendBestEffort("nobody", nil); err == nil {
		t.Error("a message to nobody was sent")
	}
	if err := b.SetMeta(Meta{Name: "new", Level: 2}); err != nil {
		t.Fatal(err)
	}
	// Who asks while memberlist takes in what others say must not read what it writes: the race detector watches this.
	eventually(t, "the new meta is known", func() bool {
		return slices.ContainsFunc(a.Alive(), func(n Node) bool { return n.ID == "b" && n.Meta.Name == "new" && n.Meta.Level == 2 })
	})
	b.Abort()
	eventually(t, "a crash is noticed", func() bool { return ids(a) == "a" })
}

func TestStrangers(t *testing.T) {
	k := [][]byte{key()}
	a := start(t, "a", "l", k, func([]byte) { t.Error("a stranger's message was taken") })
	for what, g := range map[string]*Gossip{
		"another key": start(t, "b", "l", [][]byte{key()}, nil), "another label": start(t, "c", "other", k, nil),
	} {
		if err := g.Join([]string{a.Addr()}); err == nil {
			t.Errorf("%s: joined", what)
		}
	}
	c, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 2000 {
		junk := make([]byte, i%1500)
		rand.Read(junk)
		c.Write(junk)
	}
	if ids(a) != "a" {
		t.Errorf("members: %s", ids(a))
	}
}

func TestRotation(t *testing.T) {
	old, fresh := key(), key()
	a, b := start(t, "a", "l", [][]byte{old}, nil), start(t, "b", "l", [][]byte{old}, nil)
	join(t, b, a)
	for _, keys := range [][][]byte{{old, fresh}, {fresh, old}, {fresh}} {
		for _, g := range []*Gossip{a, b} {
			if err := g.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			eventually(t, fmt.Sprintf("both see both with %d keys", len(keys)), func() bool { return ids(a) == "a b" && ids(b) == "a b" })
		}
	}
	if err := start(t, "c", "l", [][]byte{old}, nil).Join([]string{a.Addr()}); err == nil {
		t.Error("the old key opens")
	}
}

func TestBadOptions(t *testing.T) {
	a := start(t, "a", "l", [][]byte{key()}, nil)
	for _, tt := range []struct{ listen, advertise, want string }{
		{a.Addr(), "", "already in use"}, {"127.0.0.1", "", "gossip_listen"}, {"127.0.0.1:x", "", "port"},
		{"127.0.0.1:0", "nope", "gossip_advertise"},
	} {
		g, err := Start(Options{NodeID: "b", Listen: tt.listen, Advertise: tt.advertise, Keys: [][]byte{key()}})
		if err == nil {
			g.Abort()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	if _, err := Start(Options{NodeID: "b", Listen: "127.0.0.1:0", Keys: [][]byte{key()}, Meta: Meta{Name: fmt.Sprint(make([]int, 500))}}); err == nil {
		t.Error("too long a meta was taken")
	}
}

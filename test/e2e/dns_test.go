package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"concord/test/harness"
)

// zone is a name server of its own: addresses ("10.0.0.1") and services ("port target") by name, which hold for a second.
type zone struct {
	addr string
	mu   sync.Mutex
	a    map[string]string
	srv  map[string]string
}

func startZone(t *testing.T) *zone {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	z := &zone{addr: c.LocalAddr().String(), a: map[string]string{}, srv: map[string]string{}}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) == nil && len(m.Questions) == 1 {
				if out, err := z.answer(&m); err == nil {
					_, _ = c.WriteTo(out, from)
				}
			}
		}
	}()
	return z
}

func (z *zone) answer(m *dnsmessage.Message) ([]byte, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	m.Header.Response, m.Header.Authoritative, m.Additionals = true, true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	a, srv := z.a[name], z.srv[name]
	switch {
	case a == "" && srv == "":
		m.Header.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && a != "":
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()}})
	case q.Type == dnsmessage.TypeSRV && srv != "":
		port, target, _ := strings.Cut(srv, " ")
		n, _ := strconv.Atoi(port)
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.SRVResource{
			Priority: 1, Weight: 1, Port: uint16(n), Target: dnsmessage.MustNewName(target + "."),
		}})
	}
	return m.Pack()
}

func (z *zone) set(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

// TestNames: hosts of services and targets follow what a name server says, ports of SRV records included; whatever it says, the gateway's
// own ports are not reached through the proxy.
func TestNames(t *testing.T) {
	t.Parallel()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("upstream")) }))
	defer up.Close()
	port := strconv.Itoa(up.Listener.Addr().(*net.TCPAddr).Port)
	z := startZone(t)
	n := harness.NewNode(t, "solo")
	n.Env = []string{"CONCORD_DNS_RESOLVER=" + z.addr, "CONCORD_DNS_NOT_FOUND_TTL=0.2", "CONCORD_DNS_STALE_TTL=0"}
	n.Start()
	_, admin, _ := net.SplitHostPort(n.Admin)
	var last harness.Answer
	for _, s := range [][2]string{
		{"/services", `{"name":"srv","host":"srv.test"}`}, {"/services/srv/routes", `{"paths":["/srv"]}`},
		{"/services", `{"name":"flip","host":"flip.test","port":` + admin + `}`}, {"/services/flip/routes", `{"paths":["/flip"]}`},
		{"/services", `{"name":"flips","host":"flips.test"}`}, {"/services/flips/routes", `{"paths":["/flips"]}`},
		{"/upstreams", `{"name":"pool.up"}`}, {"/upstreams/pool.up/targets", `{"target":"target.test:` + port + `"}`},
		{"/services", `{"name":"pool","host":"pool.up"}`}, {"/services/pool/routes", `{"paths":["/pool"]}`},
	} {
		last = expect(t, s[1], n.JSON("POST", s[0], s[1]), 201)
	}
	await := func(path string, status int, body string) {
		t.Helper()
		var a harness.Answer
		for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if a = n.Get(path, "X-Min-Config-Index", last.Index()); a.Status == status && strings.Contains(a.Body, body) {
				return
			}
			if strings.Contains(a.Body, "tagline") {
				t.Fatalf("%s has reached the Admin API: %s", path, a.Body)
			}
		}
		t.Fatalf("%s: %d %s, want %d %s", path, a.Status, a.Body, status, body)
	}
	await("/srv", 503, "name resolution failed")
	await("/pool", 503, "failure to get a peer")
	z.set(func() {
		z.a["host.test"], z.srv["srv.test"] = "127.0.0.1", port+" host.test"
		z.a["target.test"] = "127.0.0.1"
		z.a["flip.test"], z.a["flips.test"] = "127.0.0.99", "127.0.0.99"
	})
	await("/srv", 200, "upstream")
	await("/pool", 200, "upstream")
	await("/flip", 502, "invalid response")
	await("/flips", 502, "invalid response")
	z.set(func() {
		z.a["flip.test"] = "127.0.0.1"                                  // to the Admin API's address
		z.srv["flips.test"], z.a["flips.test"] = admin+" host.test", "" // and to its port
		z.srv["target.test"] = admin + " host.test"
		z.a["target.test"] = ""
	})
	for _, path := range []string{"/flip", "/flips", "/pool"} {
		await(path, 503, "currently unavailable")
	}
	z.set(func() { clear(z.a); clear(z.srv) })
	await("/srv", 503, "name resolution failed")
}

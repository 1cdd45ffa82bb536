package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

// recorder is an upstream that keeps every byte it receives and answers each request it can make out.
type recorder struct {
	addr string
	mu   sync.Mutex
	raw  bytes.Buffer
	seen []string // "METHOD target", with " cut" behind it when the request did not arrive whole
	open int      // connections
}

func startRecorder(t *testing.T) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &recorder{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	r.count(1)
	defer r.count(-1)
	br := bufio.NewReader(io.TeeReader(c, writerFunc(func(p []byte) (int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.raw.Write(p)
	})))
	note := func(s string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, s)
	}
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
				note("unreadable: " + err.Error())
			}
			return
		}
		what := req.Method + " " + req.RequestURI
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			note(what + " cut")
			return
		}
		note(what)
		// An upgrade is refused with a plain answer: no tunnel may come of it.
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func (r *recorder) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open += n
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// take returns what arrived since the last call.
func (r *recorder) take() (raw string, seen []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, seen = r.raw.String(), r.seen
	r.raw.Reset()
	r.seen = nil
	return raw, seen
}

// settle waits until nothing has arrived for a while: what a client has given up may still be on its way.
func (r *recorder) settle() (raw string, seen []string) {
	size := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.raw.Len() + len(r.seen)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		before := size()
		if time.Sleep(200 * time.Millisecond); size() == before {
			break
		}
	}
	return r.take()
}

// raw sends bytes, ends its side, and returns the status codes of the answers until the gateway ends its own.
func raw(t *testing.T, addr, bytes string) (codes []int, text string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		io.WriteString(c, bytes)
		c.(*net.TCPConn).CloseWrite()
	}()
	b, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection does not end: %v", err)
	}
	return statuses(string(b)), string(b)
}

func statuses(answers string) (codes []int) {
	br := bufio.NewReader(strings.NewReader(answers))
	for {
		r, err := http.ReadResponse(br, nil)
		if err != nil {
			return codes
		}
		codes = append(codes, r.StatusCode)
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return codes
		}
	}
}

// target is what the attacks meet: two gateways before one recording upstream. The second trusts its peer, is impatient
// and has room for long heads; one logs in the combined format, the other JSON.
type target struct {
	*harness.Node
	second *harness.Node
	up     *recorder
}

const gw = "Host: gw.example\r\n"

func get(path string, lines ...string) string {
	return "GET " + path + " HTTP/1.1\r\n" + gw + strings.Join(append(lines, "", ""), "\r\n")
}

func startTarget(t *testing.T) *target {
	g := &target{up: startRecorder(t), Node: harness.NewNode(t, "first"), second: harness.NewNode(t, "second")}
	g.Env = []string{"CONCORD_PROXY_LISTEN=" + g.Proxy + " http2", "CONCORD_PROXY_ACCESS_LOG=access.log"}
	g.second.Env = []string{"CONCORD_PROXY_LISTEN=" + g.second.Proxy + " http2", "CONCORD_PROXY_ACCESS_LOG=access.log", "CONCORD_ACCESS_LOG_FORMAT=json",
		"CONCORD_TRUSTED_IPS=127.0.0.0/8,10.0.0.0/8", "CONCORD_REAL_IP_HEADER=X-Forwarded-For", "CONCORD_REAL_IP_RECURSIVE=on",
		"CONCORD_NGINX_HTTP_CLIENT_HEADER_TIMEOUT=1", "CONCORD_NGINX_HTTP_CLIENT_BODY_TIMEOUT=1", "CONCORD_NGINX_HTTP_SEND_TIMEOUT=1",
		"CONCORD_NGINX_HTTP_KEEPALIVE_TIMEOUT=1", "CONCORD_NGINX_HTTP_LARGE_CLIENT_HEADER_BUFFERS=8 64k"}
	for _, n := range []*harness.Node{g.Node, g.second} {
		n.Start()
		g.configure(t, n)
	}
	g.up.take()
	return g
}

func (g *target) configure(t *testing.T, n *harness.Node) {
	t.Helper()
	steps := [][2]string{
		{"/services", `{"name":"open","url":"http://` + g.up.addr + `"}`},
		{"/services/open/routes", `{"paths":["/"],"name":"open"}`},
		{"/services/open/routes", `{"paths":["~/re/[a-z]+$"],"strip_path":false,"name":"regex"}`},
		{"/services", `{"name":"closed","url":"http://` + g.up.addr + `/closed"}`},
		{"/services/closed/routes", `{"paths":["/admin"],"name":"closed"}`},
		{"/services/closed/routes", `{"paths":["~/exact/admin$"],"name":"exact"}`},
		{"/services/closed/plugins", `{"name":"key-auth"}`},
		{"/consumers", `{"username":"alice"}`},
		{"/consumers/alice/key-auth", `{"key":"k1"}`},
		{"/services", `{"name":"strip","url":"http://` + g.up.addr + `/base"}`},
		{"/services/strip/routes", `{"paths":["/api"],"name":"strip"}`},
		{"/services", `{"name":"host","url":"http://` + g.up.addr + `/host"}`},
		{"/services/host/routes", `{"paths":["/m"],"methods":["GET"],"strip_path":false,"name":"get-only"}`},
		{"/services/host/routes", `{"hosts":["api.example.com"],"name":"host"}`},
		{"/services/open/routes", `{"paths":["/ip"],"strip_path":false,"name":"ip"}`},
		{"/routes/ip/plugins", `{"name":"ip-restriction","config":{"allow":["10.0.0.0/8"]}}`},
		{"/services/open/routes", `{"paths":["/cors"],"strip_path":false,"name":"cors"}`},
		{"/routes/cors/plugins", `{"name":"cors","config":{"origins":["https://a.example","^https://[a-z]+\\.b\\.example$"],"credentials":true}}`},
		{"/services/open/routes", `{"paths":["/rl"],"strip_path":false,"name":"rl"}`},
		{"/routes/rl/plugins", `{"name":"rate-limiting","config":{"minute":5,"policy":"local","limit_by":"header","header_name":"X-Id"}}`},
		{"/services/open/routes", `{"paths":["/bot"],"strip_path":false,"name":"bot"}`},
		{"/routes/bot/plugins", `{"name":"bot-detection","config":{"deny":["(a+)+$"]}}`},
		{"/services", `{"name":"self","url":"http://` + n.Proxy + `/self"}`},
		{"/services/self/routes", `{"paths":["/self"],"name":"self"}`},
	}
	var last harness.Answer
	for _, s := range steps {
		if last = n.JSON("POST", s[0], s[1]); last.Status != 201 {
			t.Fatal(s, last.Status, last.Body)
		}
	}
	if n == g.Node { // P5: as many hosts as make an index worth its while
		for i := range 150 {
			last = n.JSON("POST", "/services/host/routes", fmt.Sprintf(`{"hosts":["h%d.example.com"],"paths":["/h"]}`, i))
		}
	}
	if a := n.Get("/", "X-Min-Config-Index", last.Index()); a.Status != 200 {
		t.Fatal(a.Status, a.Body)
	}
}

// attack is one variant of a row of the table of attacks: bytes for the proxy port and what may come of them.
type attack struct {
	row, name string
	send      string
	codes     string   // of the answers, e.g. "200 401"; "": one refusal (400 to 501, 505) and nothing upstream
	sees      []string // the requests the upstream must have received, in any order; nil: none
	cut       bool     // the upstream may have seen the beginning of a request, and never all of it
	has, not  []string // in the bytes the upstream received, case ignored
	second    bool     // through the second gateway
}

func (g *target) run(t *testing.T, a attack) {
	g.up.take()
	addr := g.Proxy
	if a.second {
		addr = g.second.Proxy
	}
	codes, text := raw(t, addr, a.send)
	switch {
	case a.codes == "":
		if len(codes) != 1 || codes[0] < 400 || codes[0] > 501 && codes[0] != 505 {
			t.Errorf("answers %v, want one refusal: %.300q", codes, text)
		}
	case strings.Trim(fmt.Sprint(codes), "[]") != a.codes:
		t.Errorf("answers %v, want %s: %.300q", codes, a.codes, text)
	}
	got, seen := "", []string(nil)
	if !a.cut {
		got, seen = g.up.take()
	} else { // the beginning may still be on its way
		got, seen = g.up.settle()
		seen = slices.DeleteFunc(seen, func(s string) bool { return strings.HasSuffix(s, " cut") })
	}
	slices.Sort(seen)
	slices.Sort(a.sees)
	if !slices.Equal(seen, a.sees) {
		t.Errorf("the upstream saw %q, want %q; bytes %.300q", seen, a.sees, got)
	}
	if a.sees == nil && !a.cut && got != "" {
		t.Errorf("the upstream received %.300q", got)
	}
	lower := strings.ToLower(got)
	for _, s := range a.has {
		if !strings.Contains(lower, strings.ToLower(s)) {
			t.Errorf("no %q in what the upstream received: %.600q", s, got)
		}
	}
	for _, s := range a.not {
		if strings.Contains(lower, strings.ToLower(s)) {
			t.Errorf("%q in what the upstream received: %.600q", s, got)
		}
	}
}

// elsewhere are the rows with tests of their own.
var elsewhere = map[string]string{
	"P6": "the tests of client certificates", "D2": "the tests of proxy/listen", "D7": "the tests of proxy/listen and of TLS", "D9": "the tests of cluster/gossip",
}

// TestAttacks sends hostile bytes through real nodes and judges by what the upstream received. Every row of the table of
// attacks on a proxy (S: smuggling, P: paths, H: headers, D: denial of service) is here or in elsewhere.
func TestAttacks(t *testing.T) {
	t.Parallel()
	g := startTarget(t)
	rows := map[string]bool{}
	for _, a := range slices.Concat(framingAttacks(), pathAttacks(), headerAttacks()) {
		rows[a.row] = true
		t.Run(a.row+" "+a.name, func(t *testing.T) { g.run(t, a) })
	}
	for _, group := range []map[string]func(*testing.T, *target){framingScenes, http2Scenes, headerScenes, pathScenes, loadScenes} {
		for name, scene := range group {
			rows[strings.Fields(name)[0]] = true
			t.Run(name, func(t *testing.T) { scene(t, g) })
		}
	}
	for letter, n := range map[string]int{"S": 23, "P": 8, "H": 14, "D": 9} {
		for i := 1; i <= n; i++ {
			if row := letter + strconv.Itoa(i); !rows[row] && elsewhere[row] == "" {
				t.Errorf("%s has no test", row)
			}
		}
	}
	t.Run("the gateways are well", func(t *testing.T) {
		for _, n := range []*harness.Node{g.Node, g.second} {
			if a := n.Get("/fine"); a.Status != 200 || strings.Contains(n.Log(), "panic") {
				t.Error(a.Status, n.Log())
			}
		}
	})
}

// rss is the resident memory of a node in MiB.
func rss(t *testing.T, n *harness.Node) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
	if err != nil {
		t.Skip("no /proc:", err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// accessLog waits until the node's access log holds text.
func accessLog(t *testing.T, n *harness.Node, text string) string {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(n.Prefix, "access.log"))
		if strings.Contains(string(b), text) {
			return string(b)
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the access log (%v): %.2000s", text, err, b)
		}
	}
}

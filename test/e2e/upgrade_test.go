package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"concord/test/harness"
)

// verb runs "concord <args>" on a node's prefix.
func verb(t *testing.T, n *harness.Node, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Bin(t, "concord"), args...)
	cmd.Env = n.Environ()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// nodePid is the pid in the pid file. The process is ended with the test: it is no child of it.
func nodePid(t *testing.T, n *harness.Node) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Prefix, "concord.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

func mustUpgrade(t *testing.T, n *harness.Node, args ...string) {
	t.Helper()
	before := nodePid(t, n)
	out, err := verb(t, n, append([]string{"upgrade"}, args...)...)
	if err != nil || !strings.Contains(out, "Concord upgraded") {
		t.Fatalf("upgrade: %v: %s", err, out)
	}
	if after := nodePid(t, n); after == before {
		t.Fatalf("process %d is still the node", after)
	}
}

// slowUpstream answers after two milliseconds with the body it got.
func slowUpstream(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		time.Sleep(2 * time.Millisecond)
		w.Write(b)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// poster sends POST requests one after the other, on one connection as long as it is kept alive or on a new one each, and repeats nothing: what
// fails, has failed.
type poster struct {
	addr      string
	tls, keep bool
	c         net.Conn
	r         *bufio.Reader
	conns     int
}

func (p *poster) post(body string) error {
	if p.c == nil {
		var err error
		d := &net.Dialer{Timeout: 20 * time.Second}
		if p.tls {
			p.c, err = tls.DialWithDialer(d, "tcp", p.addr, &tls.Config{InsecureSkipVerify: true})
		} else {
			p.c, err = d.Dial("tcp", p.addr)
		}
		if err != nil {
			p.c = nil
			return fmt.Errorf("connect: %w", err)
		}
		p.conns++
		p.r = bufio.NewReader(p.c)
	}
	drop := func() { p.c.Close(); p.c = nil }
	_ = p.c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintf(p.c, "POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		drop()
		return fmt.Errorf("write: %w", err)
	}
	res, err := http.ReadResponse(p.r, nil)
	if err != nil {
		drop()
		return fmt.Errorf("read: %w", err)
	}
	b, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		drop()
		return fmt.Errorf("read body: %w", err)
	case res.StatusCode != 200 || string(b) != body:
		drop()
		return fmt.Errorf("status %d, body %q", res.StatusCode, b)
	}
	if res.Close || !p.keep {
		drop()
	}
	return nil
}

// TestUpgradeUnderLoad changes the program again and again under sixteen clients, half of them with a new connection for each request, half of them
// over TLS, beside one of HTTP/2 and one that writes to the Admin API. CONCORD_UPGRADES is how often; see docs/upgrades.md.
func TestUpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	upgrades, between := 3, 200 // requests between two upgrades, at least
	if v := os.Getenv("CONCORD_UPGRADES"); v != "" {
		var err error
		if upgrades, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		between = 1800
	}
	n := harness.NewNode(t, "solo")
	n.Start()
	n.Form("POST", "/services", "name", "up", "url", slowUpstream(t))
	if a := n.Form("POST", "/services/up/routes", "paths[]", "/up"); a.Status != 201 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var ok, failed, conns atomic.Int64
	var first sync.Once
	report := func(who string, err error) {
		if err == nil {
			ok.Add(1)
			return
		}
		failed.Add(1)
		first.Do(func() { t.Errorf("%s: %v", who, err) })
	}
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			p := &poster{addr: n.Proxy, keep: i%2 == 0, tls: i/2%2 == 0}
			if p.tls {
				p.addr = n.ProxyTLS
			}
			for k := 0; ctx.Err() == nil; k++ {
				report(fmt.Sprintf("client %d (keep-alive %v, TLS %v), request %d", i, p.keep, p.tls, k), p.post(fmt.Sprintf("%d/%d", i, k)))
			}
			conns.Add(int64(p.conns))
			if p.c != nil {
				p.c.Close()
			}
		})
	}
	clients.Go(func() {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		c := &http.Client{Transport: tr, Timeout: 30 * time.Second}
		for k := 0; ctx.Err() == nil; k++ {
			res, err := c.Post("https://"+n.ProxyTLS+"/up", "text/plain", strings.NewReader("h2"))
			if err == nil {
				if b, rerr := io.ReadAll(res.Body); rerr != nil || string(b) != "h2" || res.ProtoMajor != 2 {
					err = fmt.Errorf("%s %d %q %w", res.Proto, res.StatusCode, b, rerr)
				}
				res.Body.Close()
			}
			report("HTTP/2", err)
		}
	})
	var written []string
	refused := 0
	clients.Go(func() {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
		for k := 0; ctx.Err() == nil; k++ {
			name := fmt.Sprintf("c%d", k)
			res, err := c.Post("http://"+n.Admin+"/consumers", "application/json", strings.NewReader(`{"username":"`+name+`"}`))
			if err != nil {
				t.Errorf("Admin API: %v", err)
				return
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			switch res.StatusCode {
			case 201:
				written = append(written, name)
			case 503:
				refused++
			default:
				t.Errorf("Admin API: %d %s", res.StatusCode, b)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	begin := time.Now()
	for i := range upgrades {
		mustUpgrade(t, n)
		for ok.Load() < int64((i+1)*between) && failed.Load() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	stop()
	clients.Wait()
	t.Logf("%d upgrades in %v: %d requests answered, %d failed, %d connections; %d writes answered, %d refused", upgrades, time.Since(begin).Round(time.Millisecond), ok.Load(), failed.Load(),
		conns.Load(), len(written), refused)
	if failed.Load() > 0 || ok.Load() < int64(between*upgrades) || len(written) == 0 {
		t.Errorf("%d requests failed of %d, %d writes", failed.Load(), ok.Load()+failed.Load(), len(written))
	}
	for n.JSON("GET", "/status", "").Status == 503 { // a connection to a process that was replaced; the next one is new
	}
	for _, name := range written {
		if a := n.JSON("GET", "/consumers/"+name, ""); a.Status != 200 {
			t.Fatalf("the write of %s was answered with 201 and is lost: %d", name, a.Status)
		}
	}
	if out, err := verb(t, n, "reload"); err != nil {
		t.Errorf("reload after an upgrade: %v: %s", err, out)
	}
	if out, err := verb(t, n, "health"); err != nil {
		t.Errorf("health after an upgrade: %v: %s", err, out)
	}
	if out, err := verb(t, n, "stop"); err != nil {
		t.Errorf("stop after an upgrade: %v: %s", err, out)
	}
}

// TestUpgradeFails: whatever is wrong with the new program, the old process goes on, and nothing is lost.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir, concord := t.TempDir(), harness.Bin(t, "concord")
	upgradeFails(t, dir, "2", attempt{"one that does nothing", "exec sleep 60", "not checked in time"})
	upgradeFails(t, dir, "60", []attempt{
		{"no such program", "", "no such file"},
		{"another program", "exit 3", "exit status 3"},
		{"settings that are wrong", `CONCORD_LOG_LEVEL=loud exec ` + concord + ` "$@"`, "log_level"},
		{"an address that is taken", `CONCORD_STATUS_LISTEN=` + taken.Addr().String() + ` exec ` + concord + ` "$@"`, "already in use"},
		{"another prefix", `CONCORD_PREFIX=` + dir + `/other exec ` + concord + ` "$@"`, "prefix is now"},
		{"a peer port that is taken, found after the old process has let go", `CONCORD_CLUSTER_LISTEN=` + taken.Addr().String() + ` exec ` + concord + ` "$@"`, "address already in use"},
	}...)
}

// attempt is a program and what is said of it.
type attempt struct{ name, script, want string }

// upgradeFails starts a node that waits so many seconds for the new program, and gives it such that are no good.
func upgradeFails(t *testing.T, dir, timeout string, attempts ...attempt) {
	t.Helper()
	n := harness.NewNode(t, "solo"+timeout, "CONCORD_UPGRADE_TIMEOUT="+timeout)
	n.Start()
	n.Form("POST", "/services", "name", "up", "url", slowUpstream(t))
	last := n.Form("POST", "/services/up/routes", "paths[]", "/up")
	n.Get("/up", "X-Min-Config-Index", last.Index())
	pid := nodePid(t, n)
	for i, c := range attempts {
		program := filepath.Join(dir, fmt.Sprint("program", timeout, i))
		if c.script != "" {
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if a := n.Form("POST", "/consumers", "username", fmt.Sprint("before", i)); a.Status != 201 {
			t.Fatalf("%s: before: %d %s", c.name, a.Status, a.Body)
		}
		p := &poster{addr: n.Proxy, keep: true}
		if err := p.post("x"); err != nil {
			t.Fatal(err)
		}
		out, err := verb(t, n, "upgrade", "--binary", program)
		if err == nil || !strings.Contains(out, c.want) || !strings.Contains(out, "nothing has changed") {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
		if got := nodePid(t, n); got != pid || !n.Running() {
			t.Fatalf("%s: the node is process %d, not %d", c.name, got, pid)
		}
		if err := p.post("y"); err != nil || p.conns != 1 {
			t.Errorf("%s: a connection of before does not go on: %v", c.name, err)
		}
		if a := n.Form("POST", "/consumers", "username", fmt.Sprint("after", i)); a.Status != 201 {
			t.Fatalf("%s: after: %d %s", c.name, a.Status, a.Body)
		}
		for k := range i + 1 {
			for _, when := range []string{"before", "after"} {
				if a := n.JSON("GET", fmt.Sprint("/consumers/", when, k), ""); a.Status != 200 {
					t.Errorf("%s: what was written %s attempt %d is lost: %d", c.name, when, k, a.Status)
				}
			}
		}
	}
	n.WaitReady(30 * time.Second)
	if timeout == "2" {
		return // a busy machine may need longer even for a good one
	}
	mustUpgrade(t, n) // and a good one still works
	if a := n.Get("/up"); a.Status != 200 {
		t.Errorf("%d", a.Status)
	}
}

// TestUpgradeKeepsConnections: what is open when the program changes is served to its end by the old process.
func TestUpgradeKeepsConnections(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("@concord-e2e-%d-%d", os.Getpid(), harness.FreePort(t))
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	n := harness.NewNode(t, "solo", "NOTIFY_SOCKET="+name)
	n.Start()
	arrived, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			close(arrived)
			<-release
			io.WriteString(w, "late")
			return
		}
		c, b, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, b)
	}))
	t.Cleanup(s.Close)
	n.Form("POST", "/services", "name", "up", "url", s.URL)
	last := n.Form("POST", "/services/up/routes", "paths[]", "/up")
	n.Get("/nowhere", "X-Min-Config-Index", last.Index())
	open := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", n.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		return c, bufio.NewReader(c)
	}
	tunnel, tr := open()
	io.WriteString(tunnel, "GET /up HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	if res, err := http.ReadResponse(tr, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	ping := func(word string) {
		t.Helper()
		io.WriteString(tunnel, word)
		got := make([]byte, len(word))
		if _, err := io.ReadFull(tr, got); err != nil || string(got) != word {
			t.Fatalf("%q %v", got, err)
		}
	}
	ping("before")
	running, rr := open()
	io.WriteString(running, "GET /up HTTP/1.1\r\nHost: h\r\n\r\n")
	silent, sr := open() // says nothing until the program has changed
	<-arrived
	later, lr := open() // who is served has been accepted, and so have all who came before
	io.WriteString(later, "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")
	if res, err := http.ReadResponse(lr, nil); err != nil || res.StatusCode != 404 {
		t.Fatalf("%v %v", res, err)
	}
	later.Close()
	old := nodePid(t, n)
	mustUpgrade(t, n)
	ping("after")
	for _, want := range []string{"READY=1", fmt.Sprintf("MAINPID=%d", nodePid(t, n)), "READY=1"} { // of the old process, twice, and of the new one
		b := make([]byte, 256)
		_ = systemd.SetReadDeadline(time.Now().Add(10 * time.Second))
		if k, err := systemd.Read(b); err != nil || string(b[:k]) != want {
			t.Errorf("systemd is told %q, not %q: %v", b[:k], want, err)
		}
	}
	io.WriteString(silent, "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")
	if res, err := http.ReadResponse(sr, nil); err != nil || res.StatusCode != 404 || !res.Close {
		t.Errorf("a connection that had been silent: %v %v", res, err)
	}
	close(release)
	if res, err := http.ReadResponse(rr, nil); err != nil || res.StatusCode != 200 || !res.Close {
		t.Errorf("a request that was running: %v %v", res, err)
	}
	if syscall.Kill(old, 0) != nil {
		t.Error("the old process has ended before its tunnel")
	}
	tunnel.Close()
	if code := n.WaitExit(30 * time.Second); code != 0 {
		t.Errorf("the old process ended with %d", code)
	}
}

// TestUpgradeOfACluster goes from node to node; writes are possible all the time at one of the others, and none is lost.
func TestUpgradeOfACluster(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 3)
	for i, n := range c.Nodes {
		other := c.Nodes[(i+1)%3]
		mustUpgrade(t, n)
		if a := other.JSON("POST", "/consumers", fmt.Sprintf(`{"username":"c%d"}`, i)); a.Status != 201 {
			t.Fatalf("a write beside an upgrade: %d %s", a.Status, a.Body)
		}
	}
	for i := range 3 {
		for _, n := range c.Nodes {
			deadline := time.Now().Add(60 * time.Second)
			for n.JSON("GET", fmt.Sprint("/consumers/c", i), "").Status != 200 {
				if time.Now().After(deadline) {
					t.Fatalf("%s does not have c%d", n.Name, i)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	// Alone, without a majority, the program can still be changed: what was served is served.
	for _, n := range c.Nodes[1:] {
		_ = syscall.Kill(nodePid(t, n), syscall.SIGKILL)
	}
	last := c.Nodes[0]
	mustUpgrade(t, last)
	if a, err := harness.Do("GET", "http://"+last.Status+"/status/ready", "", ""); err != nil || a.Status != 200 {
		t.Errorf("a node without a majority is not ready after an upgrade: %v %d %s", err, a.Status, a.Body)
	}
	for last.JSON("GET", "/status", "").Status == 503 { // a connection to the process that was replaced; the next one is new
	}
	if a := last.JSON("GET", "/consumers/c2", ""); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// TestReload: listeners, logs and the level change in the running node, and a file with an error changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "solo")
	dir := t.TempDir()
	file := filepath.Join(dir, "concord.conf")
	second := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))
	conf := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := n.Environ()
	for i, e := range env { // what the file is to say must not be said by a variable
		if strings.HasPrefix(e, "CONCORD_PROXY_LISTEN=") || strings.HasPrefix(e, "CONCORD_PROXY_ACCESS_LOG=") || strings.HasPrefix(e, "CONCORD_GOSSIP_LISTEN=") {
			env[i] = "UNUSED_" + e
		}
	}
	base := []string{"gossip_listen = " + n.GossipAddr, "upgrade_timeout = 30"}
	run := func(args ...string) (string, error) {
		cmd := exec.Command(harness.Bin(t, "concord"), append(args, "-c", file)...)
		cmd.Env = env
		var b bytes.Buffer
		cmd.Stdout, cmd.Stderr = &b, &b
		err := cmd.Run()
		return b.String(), err
	}
	conf(append(base, "proxy_listen = "+n.Proxy, "proxy_access_log = off")...)
	if out, err := run("start"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	nodePid(t, n)
	p := &poster{addr: n.Proxy, keep: true}
	status := func(addr string) int {
		a, err := harness.Do("GET", "http://"+addr+"/nowhere", "", "")
		if err != nil {
			return 0
		}
		return a.Status
	}
	if status(n.Proxy) != 404 || status(second) != 0 {
		t.Fatal("not listening as configured")
	}
	_ = p.post("x") // a connection that stays open

	conf(append(base, "proxy_listen = "+second+", "+n.Proxy, "proxy_access_log = "+dir+"/access.log", "log_level = info")...)
	out, err := run("reload")
	for _, want := range []string{"proxy_listen: changed", "proxy_access_log: changed", "log_level: changed", "Concord reloaded"} {
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("no %q in: %v %s", want, err, out)
		}
	}
	told := ""
	for end := time.Now().Add(30 * time.Second); !strings.Contains(told, "reload: changed: ") && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if told, err = n.Gwctl("audit", "tail"); err != nil {
			t.Fatal(err)
		}
	}
	if !regexp.MustCompile(`node \S+  reload: changed: .*proxy_listen`).MatchString(told) {
		t.Errorf("the reload is not in the audit log:\n%s", told)
	}
	if status(n.Proxy) != 404 || status(second) != 404 {
		t.Error("the new listener is not open")
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if b, _ := os.ReadFile(dir + "/access.log"); strings.Contains(string(b), "/nowhere") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is written to the new access log")
		}
	}

	// Logs are rotated as nginx's are.
	logs := []string{dir + "/access.log", filepath.Join(n.Prefix, "logs", "error.log")}
	for _, log := range logs {
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
	}
	pid := nodePid(t, n)
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		code := status(n.Proxy)
		access, _ := os.ReadFile(logs[0])
		own, _ := os.ReadFile(logs[1])
		if strings.Contains(string(access), "/nowhere") && strings.Contains(string(own), "opened anew") {
			break
		}
		if code != 404 || time.Now().After(end) {
			t.Fatalf("after SIGUSR1: %d, access log %q, own log %q", code, access, own)
		}
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, bad := range []string{"log_level = loud", "proxy_listen = " + taken.Addr().String(), "proxy_access_log = /dev/null/no"} {
		conf(append(base, bad)...)
		if out, err := run("reload"); err == nil || !strings.Contains(out, strings.Fields(bad)[0]) && !strings.Contains(out, "log directory") {
			t.Errorf("%s: %v %s", bad, err, out)
		}
		if status(n.Proxy) != 404 || status(second) != 404 {
			t.Errorf("%s: the listeners are not as before", bad)
		}
	}

	conf("proxy_listen = "+second, "proxy_access_log = off", "gossip_listen = "+fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t)), "upgrade_timeout = 30")
	if out, err := run("reload"); err != nil || !strings.Contains(out, "gossip_listen: not changed") {
		t.Errorf("%v %s", err, out)
	}
	if status(second) != 404 {
		t.Error("the listener that stays is not open")
	}
	if c, err := net.Dial("tcp", n.Proxy); err == nil {
		c.Close()
		t.Error("the listener that was taken away is still open")
	}
	if out, err := run("upgrade"); err != nil {
		t.Errorf("%v %s", err, out)
	}
	nodePid(t, n)
	if out, err := run("reload"); err != nil || strings.Contains(out, "not changed") {
		t.Errorf("after an upgrade everything is taken over: %v %s", err, out)
	}
	if out, err := run("stop"); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// TestUpgradeRemembers: a new process goes on with the counts of rate-limiting and with what the old one knew of its targets.
func TestUpgradeRemembers(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "solo")
	n.Start()
	var asked atomic.Int64
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(500)
	}))
	t.Cleanup(sick.Close)
	well := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(well.Close)
	at := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	write(t, n, "POST", "/upstreams", `{"name":"ejected.up","circuit_breaker":{"consecutive_errors":1,"base_ejection_time":600}}`, 201)
	write(t, n, "POST", "/upstreams", `{"name":"checked.up","healthchecks":{"passive":{"unhealthy":{"http_failures":1}}}}`, 201)
	for _, up := range []string{"ejected.up", "checked.up"} {
		write(t, n, "POST", "/upstreams/"+up+"/targets", `{"target":"`+at(sick)+`"}`, 201)
		write(t, n, "POST", "/upstreams/"+up+"/targets", `{"target":"`+at(well)+`"}`, 201)
		write(t, n, "POST", "/services", `{"name":"`+up+`","host":"`+up+`"}`, 201)
		write(t, n, "POST", "/services/"+up+"/routes", `{"paths":["/`+up+`"]}`, 201)
	}
	write(t, n, "POST", "/services", `{"name":"limited","url":"`+well.URL+`"}`, 201)
	write(t, n, "POST", "/services/limited/routes", `{"name":"limited","paths":["/limited"]}`, 201)
	last := write(t, n, "POST", "/routes/limited/plugins", `{"name":"rate-limiting","config":{"year":10,"policy":"local"}}`, 201)
	status := func(path string) int {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+n.Proxy+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Min-Config-Index", last.Index())
		req.Close = true // a connection that the old process has kept would be answered by it once more
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for _, up := range []string{"ejected.up", "checked.up"} {
		for range 4 {
			status("/" + up)
		}
	}
	if asked.Load() != 2 {
		t.Fatalf("the sick target was asked %d times", asked.Load())
	}
	admitted := 0
	for i := range 4 {
		if i > 0 {
			mustUpgrade(t, n)
		}
		for range 4 {
			switch s := status("/limited"); s {
			case 200:
				admitted++
			case 429:
			default:
				t.Fatalf("status %d", s)
			}
			if a, b := status("/ejected.up"), status("/checked.up"); a != 200 || b != 200 {
				t.Errorf("after %d upgrades: %d %d", i, a, b)
			}
		}
	}
	if admitted != 10 || asked.Load() != 2 {
		t.Errorf("%d requests were admitted where 10 may be, the sick target was asked %d times", admitted, asked.Load())
	}
}

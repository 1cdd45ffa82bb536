// Package harness starts real gateway processes on loopback for black-box tests: one node or a cluster, a recording
// upstream, Admin API and proxy clients, kills and restarts. It knows the products' public names only (settings, verbs,
// URLs), nothing of the code.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	buildOnce sync.Once
	buildDir  string
	errBuild  error
	ports     struct { // given out by FreeAddr
		sync.Mutex
		blocks     []net.Listener // that were taken
		base, left int            // of the last one
	}
)

// Bin returns the path of a program of the project ("concord", "gwctl"), built once per test process. CONCORD_BIN_DIR
// names a folder with ready binaries instead.
func Bin(t testing.TB, name string) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildDir = os.Getenv("CONCORD_BIN_DIR"); buildDir != "" {
			return
		}
		if buildDir, errBuild = os.MkdirTemp("", "concord-bin-"); errBuild != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", buildDir+"/", "concord/cmd/concord", "concord/cmd/gwctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			errBuild = fmt.Errorf("%w: %s", err, out)
			return
		}
		errBuild = dependOnSources()
	})
	if errBuild != nil {
		t.Fatalf("build: %v", errBuild)
	}
	return filepath.Join(buildDir, name)
}

// dependOnSources makes go test repeat the tests when the programs have changed. It repeats a result if nothing has changed that the test was
// compiled from, or has opened: of what it had built, it knows nothing.
func dependOnSources() error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(root) == root {
			return errors.New("no go.mod above the working directory")
		}
		root = filepath.Dir(root)
	}
	for _, dir := range []string{"admin", "cluster", "cmd", "fsm", "proto", "proxy", "ratelimit"} {
		if err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			return err
		}
	}
	return nil
}

// Clean removes what Bin built; call it at the end of TestMain.
func Clean() {
	if buildDir != "" && os.Getenv("CONCORD_BIN_DIR") == "" {
		os.RemoveAll(buildDir)
	}
}

// FreePort returns a loopback port as FreeAddr does.
func FreePort(t testing.TB) int {
	t.Helper()
	addr, err := FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return int(netip.MustParseAddrPort(addr).Port())
}

// FreeAddr returns a loopback address that is free for TCP and UDP and is given to nobody else, below the kernel's ephemeral range so that no
// outgoing connection takes it before the node does (a node must come back on the same port after a restart).
func FreeAddr() (string, error) {
	ports.Lock()
	defer ports.Unlock()
	for range 2000 {
		if ports.left == 0 {
			if err := reserve(); err != nil {
				return "", err
			}
		}
		ports.left--
		addr := fmt.Sprintf("127.0.0.1:%d", ports.base+ports.left)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		return addr, nil
	}
	return "", errors.New("no free port on 127.0.0.1")
}

// block is how many ports a process of tests takes at a time. Others see which by a socket with a name that lasts as long as the process.
const block = 50

// reserve takes the next block of ports. The lock of ports is held.
func reserve() error {
	high := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if n, err := strconv.Atoi(strings.Fields(string(b))[0]); err == nil && n > 6000 {
			high = min(n, high)
		}
	}
	low := max(high-17000, 3000)
	for range 1000 {
		base := low + rand.IntN((high-low)/block)*block
		l, err := net.Listen("unix", fmt.Sprintf("@concord-test-ports-%d", base))
		if err != nil {
			continue // somebody else's
		}
		ports.blocks = append(ports.blocks, l)
		ports.base, ports.left = base, block
		return nil
	}
	return errors.New("all ports for tests are taken")
}

// Refused returns a loopback address where connections are refused until the test ends: a socket has the port and does not listen. A port that
// was only free a moment ago is given to the next listener that asks for any.
func Refused(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := name.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
}

// Node is one gateway process.
type Node struct {
	Name, Prefix, LogFile                                   string
	Admin, Proxy, ProxyTLS, Status, ClusterAddr, GossipAddr string
	Env                                                     []string
	Files                                                   int // that it may open; 0: as many as the test
	t                                                       testing.TB
	cmd                                                     *exec.Cmd
	exited                                                  chan struct{}
	exitErr                                                 error
}

// NewNode lays out a node with free ports and an empty prefix; Start runs it.
func NewNode(t testing.TB, name string, env ...string) *Node {
	t.Helper()
	dir := t.TempDir()
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }
	n := &Node{
		Name: name, Prefix: filepath.Join(dir, name), LogFile: filepath.Join(dir, name+".log"),
		Admin: addr(), Proxy: addr(), ProxyTLS: addr(), Status: addr(), ClusterAddr: addr(), GossipAddr: addr(), Env: env, t: t,
	}
	t.Cleanup(func() {
		n.Kill()
		if t.Failed() {
			if b, err := os.ReadFile(n.LogFile); err == nil {
				if len(b) > 6000 {
					b = b[len(b)-6000:]
				}
				t.Logf("--- log of %s ---\n%s", n.Name, b)
			}
		}
	})
	return n
}

// Environ is the process environment: the node's settings, and nothing that configures a gateway from outside.
func (n *Node) Environ() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KONG_") && !strings.HasPrefix(e, "CONCORD_") && !strings.HasPrefix(e, "GWCTL_") {
			env = append(env, e)
		}
	}
	env = append(env,
		"CONCORD_PREFIX="+n.Prefix, "CONCORD_NODE_NAME="+n.Name,
		"CONCORD_PROXY_LISTEN="+n.Proxy+", "+n.ProxyTLS+" http2 ssl", "CONCORD_ADMIN_LISTEN="+n.Admin,
		"CONCORD_ADMIN_GUI_LISTEN=off", "CONCORD_STATUS_LISTEN="+n.Status, "CONCORD_CLUSTER_LISTEN="+n.ClusterAddr,
		"CONCORD_GOSSIP_LISTEN="+n.GossipAddr, "CONCORD_PROXY_ACCESS_LOG=off", "CONCORD_ADMIN_ACCESS_LOG=off",
		"CONCORD_DNS_RESOLVER=127.0.0.1:1") // nobody there: no test asks the machine's name server
	return append(env, n.Env...)
}

// Start runs the process and waits until it is ready.
func (n *Node) Start() {
	n.t.Helper()
	if err := n.StartProcess(); err != nil {
		n.t.Fatalf("start %s: %v", n.Name, err)
	}
	n.WaitReady(2 * time.Minute)
}

// StartProcess runs the process without waiting for it to be ready.
func (n *Node) StartProcess() error {
	log, err := os.OpenFile(n.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(Bin(n.t, "concord"), "run")
	if n.Files > 0 {
		cmd = exec.Command("sh", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(n.Files), Bin(n.t, "concord"), "run")
	}
	cmd.Env, cmd.Stdout, cmd.Stderr = n.Environ(), log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	n.cmd, n.exited = cmd, exited
	go func() { n.exitErr = cmd.Wait(); close(exited) }()
	return nil
}

// WaitReady polls the status listener.
func (n *Node) WaitReady(limit time.Duration) {
	n.t.Helper()
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		select {
		case <-n.exited:
			n.t.Fatalf("%s ended while starting: %v\n%s", n.Name, n.exitErr, n.Log())
		default:
		}
		if r, err := http.Get("http://" + n.Status + "/status/ready"); err == nil {
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
			if r.StatusCode == 200 {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.t.Fatalf("%s not ready after %v\n%s", n.Name, limit, n.Log())
}

// Log is what the process has written so far.
func (n *Node) Log() string {
	b, _ := os.ReadFile(n.LogFile)
	return string(b)
}

// Pid of the running process.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Running says whether the process is alive.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Kill sends SIGKILL and waits.
func (n *Node) Kill() {
	if n.Running() {
		n.cmd.Process.Kill()
		<-n.exited
	}
}

// Signal sends sig to the process.
func (n *Node) Signal(sig syscall.Signal) { n.cmd.Process.Signal(sig) }

// Stop sends SIGTERM and returns the exit code; it fails the test when the node does not end.
func (n *Node) Stop() int {
	n.t.Helper()
	n.Signal(syscall.SIGTERM)
	return n.WaitExit(time.Minute)
}

// WaitExit waits for the process to end and returns its exit code.
func (n *Node) WaitExit(limit time.Duration) int {
	n.t.Helper()
	select {
	case <-n.exited:
		return n.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		n.t.Fatalf("%s still runs after %v", n.Name, limit)
		return -1
	}
}

// Gwctl runs gwctl against this node.
func (n *Node) Gwctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, Bin(n.t, "gwctl"), append([]string{"--admin", "http://" + n.Admin}, args...)...)
	cmd.Env = n.Environ()
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("gwctl %s: %w: %s%s", strings.Join(args, " "), err, out.String(), errb.String())
	}
	return strings.TrimSpace(out.String()), err
}

// Status is the answer of `gwctl cluster status -o json`.
type Status struct {
	ClusterID        string `json:"cluster_id"`
	Leader           string `json:"leader"`
	Term             uint64 `json:"term"`
	CommitIndex      uint64 `json:"commit_index"`
	Healthy          bool   `json:"healthy"`
	FailureTolerance int    `json:"failure_tolerance"`
	Nodes            []struct {
		ID, Name, Address, Role, State, Version string
		Alive                                   bool
		AppliedIndex                            uint64 `json:"applied_index"`
	} `json:"nodes"`
}

// ClusterStatus asks this node.
func (n *Node) ClusterStatus() (Status, error) {
	var s Status
	r, err := http.Get("http://" + n.Admin + "/cluster/status")
	if err != nil {
		return s, err
	}
	defer r.Body.Close()
	return s, json.NewDecoder(r.Body).Decode(&s)
}

// Cluster is several nodes.
type Cluster struct {
	Nodes []*Node
	t     testing.TB
}

// StartCluster starts n nodes and joins them; it returns when all are voters and alive.
func StartCluster(t testing.TB, n int, env ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for i := range n {
		c.Nodes = append(c.Nodes, NewNode(t, fmt.Sprintf("n%d", i+1), env...))
	}
	var wg sync.WaitGroup
	for _, node := range c.Nodes {
		if err := node.StartProcess(); err != nil {
			t.Fatal(err)
		}
	}
	for _, node := range c.Nodes {
		node.WaitReady(2 * time.Minute)
	}
	for _, node := range c.Nodes[1:] {
		c.Join(node)
	}
	wg.Wait()
	c.WaitVoters(n, 2*time.Minute)
	return c
}

// Join adds a fresh, running node through node 0.
func (c *Cluster) Join(node *Node) {
	c.t.Helper()
	for {
		token, err := c.Nodes[0].Gwctl("cluster", "token")
		if err != nil {
			c.t.Fatal(err)
		}
		if _, err = node.Gwctl("cluster", "join", c.Nodes[0].ClusterAddr, "--token", token); err == nil {
			return
		}
		if !strings.Contains(err.Error(), "the leader changed") { // on a busy machine; then whoever joins is told to try again
			c.t.Fatal(err)
		}
	}
}

// WaitVoters waits until every running node reports n live voters and a leader.
func (c *Cluster) WaitVoters(n int, limit time.Duration) {
	c.t.Helper()
	deadline := time.Now().Add(limit)
	var last Status
	for time.Now().Before(deadline) {
		ok := true
		for _, node := range c.Nodes {
			if !node.Running() {
				continue
			}
			s, err := node.ClusterStatus()
			last = s
			voters := 0
			for _, m := range s.Nodes {
				if m.Role == "voter" && m.Alive {
					voters++
				}
			}
			if err != nil || voters < n || s.Leader == "" {
				ok = false
				break
			}
		}
		if ok {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Fatalf("no cluster of %d live voters after %v; last status %+v", n, limit, last)
}

// Leader returns the running node that its peers call leader, nil when there is none within the limit.
func (c *Cluster) Leader(limit time.Duration) *Node {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		for _, node := range c.Nodes {
			if !node.Running() {
				continue
			}
			s, err := node.ClusterStatus()
			if err != nil || s.Leader == "" {
				continue
			}
			for _, m := range s.Nodes {
				if m.ID == s.Leader || m.Name == s.Leader {
					for _, cand := range c.Nodes {
						if cand.Name == m.Name && cand.Running() {
							return cand
						}
					}
				}
			}
		}
		time.Sleep(30 * time.Millisecond)
	}
	return nil
}

// Any is a random running node.
func (c *Cluster) Any() *Node {
	c.t.Helper()
	for _, i := range rand.Perm(len(c.Nodes)) {
		if n := c.Nodes[i]; n.Running() {
			return n
		}
	}
	c.t.Fatal("no node is running")
	return nil
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// node is one gateway process.
type node struct {
	name, prefix, log                     string
	proxy, admin, status, cluster, gossip string
	cmd                                   *exec.Cmd
	exited                                chan struct{} // closed when the process has ended
}

// world is everything the demo starts.
type world struct {
	bin      string
	nodes    []*node
	upstream *http.Server
	upURL    string
	client   *http.Client

	requests int    // made by curl
	index    string // X-Config-Index of the newest write
	summary  string

	plugin  string // id of the jwt plugin on my-api
	kidUser string // token of the user API
	killed  *node
	// lastVisitor is a consumer that was created while the killed node was dead.
	lastVisitor string
}

func newWorld(bin, dir string) (*world, error) {
	w := &world{bin: bin, client: &http.Client{Timeout: 15 * time.Second}}
	for i := range 3 {
		n := &node{name: fmt.Sprintf("node%d", i+1)}
		n.prefix = filepath.Join(dir, n.name)
		n.log = n.prefix + ".log"
		for _, addr := range []*string{&n.proxy, &n.admin, &n.status, &n.cluster, &n.gossip} {
			a, err := freeAddr()
			if err != nil {
				return nil, err
			}
			*addr = a
		}
		w.nodes = append(w.nodes, n)
	}
	return w, w.startUpstream()
}

// freeAddr is a loopback address that was free a moment ago, outside the range outgoing connections take theirs from.
func freeAddr() (string, error) {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(17000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		u.Close()
		return addr, nil
	}
	return "", errors.New("no free port on 127.0.0.1")
}

// startUpstream serves the API behind the gateway: it answers with what it was asked and by whom.
func (w *world) startUpstream() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.upURL = "http://" + l.Addr().String()
	w.upstream = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]string{"hello": r.Header.Get("X-Consumer-Username"), "path": r.URL.Path})
	})}
	go func() { _ = w.upstream.Serve(l) }() // ends when killAll closes it
	return nil
}

func (n *node) start(bin string) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(filepath.Join(bin, "concord"), "run")
	n.cmd.Stdout, n.cmd.Stderr = log, log
	for _, e := range os.Environ() { // settings of the surroundings are not the demo's
		if !strings.HasPrefix(e, "CONCORD_") && !strings.HasPrefix(e, "KONG_") {
			n.cmd.Env = append(n.cmd.Env, e)
		}
	}
	n.cmd.Env = append(n.cmd.Env, "CONCORD_PREFIX="+n.prefix, "CONCORD_NODE_NAME="+n.name, "CONCORD_PROXY_LISTEN="+n.proxy, "CONCORD_ADMIN_LISTEN="+n.admin,
		"CONCORD_ADMIN_GUI_LISTEN=off", "CONCORD_STATUS_LISTEN="+n.status, "CONCORD_CLUSTER_LISTEN="+n.cluster, "CONCORD_GOSSIP_LISTEN="+n.gossip)
	if err := n.cmd.Start(); err != nil {
		return err
	}
	fmt.Printf("%s: proxy %s, Admin API %s, cluster port %s\n", n.name, n.proxy, n.admin, n.cluster)
	exited := make(chan struct{})
	n.exited = exited
	go func() {
		_ = n.cmd.Wait() // the outcome is read from ProcessState
		close(exited)
	}()
	return nil
}

func (n *node) running() bool {
	if n.exited == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// until polls until done says so.
func until(ctx context.Context, what string, limit time.Duration, done func() bool) error {
	for deadline := time.Now().Add(limit); !done(); time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not after %v", what, limit)
		}
	}
	return nil
}

func (w *world) waitReady(ctx context.Context, n *node) error {
	return until(ctx, n.name+" is ready", 30*time.Second, func() bool {
		res, err := w.client.Get("http://" + n.status + "/status/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// gwctl runs gwctl, shows the command, and returns what it printed.
func (w *world) gwctl(ctx context.Context, n *node, args ...string) (string, error) {
	shown := strings.Join(args, " ")
	if i := strings.Index(shown, "CJT1."); i > 0 {
		shown = shown[:i+12] + "…"
	}
	fmt.Printf("$ gwctl --admin http://%s %s\n", n.admin, shown)
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "gwctl"), append([]string{"--admin", "http://" + n.admin}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("gwctl %s: %w: %s", shown, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// status asks a node for the cluster's state, without showing it.
func (w *world) status(n *node) (leader string, aliveVoters int, err error) {
	res, err := w.client.Get("http://" + n.admin + "/cluster/status")
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	var s struct {
		Leader string
		Nodes  []struct {
			ID, Name, Role string
			Alive          bool
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return "", 0, err
	}
	for _, m := range s.Nodes {
		if m.ID == s.Leader {
			leader = m.Name
		}
		if m.Alive && m.Role == "voter" {
			aliveVoters++
		}
	}
	return leader, aliveVoters, nil
}

// a call is one request as curl would make it, and the answer that is expected.
type call struct {
	method, url string
	headers     []string // "Name: value"
	data        []string // form fields
	want        int
	contains    string // in the body
}

// curl makes a request, shows it as a command with its answer, and checks the answer.
func (w *world) curl(ctx context.Context, c call) (map[string]any, error) {
	w.requests++
	line := "$ curl"
	if c.method != http.MethodGet {
		line += " -X " + c.method
	}
	line += " '" + c.url + "'"
	for _, d := range c.data {
		line += " --data '" + d + "'"
	}
	var body io.Reader
	if len(c.data) > 0 {
		body = strings.NewReader(strings.Join(c.data, "&")) // as curl does: nothing is escaped
	}
	req, err := http.NewRequestWithContext(ctx, c.method, c.url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range c.headers {
		line += " -H '" + shorten(h) + "'"
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	fmt.Println(line)
	res, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if i := res.Header.Get("X-Config-Index"); i != "" && c.method != http.MethodGet {
		w.index = i
	}
	text := strings.TrimSpace(string(answer))
	fmt.Printf("  %s %s\n", res.Status, clip(text))
	if res.StatusCode != c.want || !strings.Contains(text, c.contains) {
		return nil, fmt.Errorf("expected %d with %q in the body, got %s: %s", c.want, c.contains, res.Status, text)
	}
	out := map[string]any{}
	_ = json.Unmarshal(answer, &out) // not every answer is an object; members asked for later are then missing
	return out, nil
}

// shorten keeps tokens from filling the screen; the whole token is printed once, where it is made.
func shorten(s string) string {
	if len(s) > 70 {
		return s[:40] + "…" + s[len(s)-8:]
	}
	return s
}

func clip(s string) string {
	if r := []rune(s); len(r) > 900 {
		return string(r[:900]) + "…"
	}
	return s
}

func (w *world) showLogs() {
	for _, n := range w.nodes {
		b, err := os.ReadFile(n.log)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(os.Stderr, "\n-- the end of the log of %s\n%s\n", n.name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

func (w *world) killAll() {
	for _, n := range w.nodes {
		if n.running() {
			_ = n.cmd.Process.Signal(syscall.SIGKILL) // it may end this moment
			<-n.exited
		}
	}
	w.upstream.Close()
}

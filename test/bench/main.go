// Command bench measures what a gateway costs per proxied request beside nginx on the same machine in the same minute.
//
// The figure to hold on to is CPU time: user and system time of the gateway's process tree (from /proc) divided by the
// requests that were answered, as a ratio to nginx's in the same round. Absolute figures depend on the machine and on what
// else it does; the ratio hardly does. Rounds are interleaved: nginx, A, B, nginx, A, B. It needs Linux, nginx and wrk.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

//go:embed nginx.conf
var nginxConf string

func main() {
	if len(os.Args) > 2 && os.Args[1] == "upstream" {
		serveUpstream(os.Args[2])
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	rounds  int
	window  time.Duration
	conns   int
	idle    int
	nice    int
	dir     string
	targets []*target
	kill    []*exec.Cmd
}

// target is a gateway to measure.
type target struct {
	name, url, command, header string
	cmd                        *exec.Cmd
	rounds                     []sample
	rss, perIdle               float64
}

// targets collects -t flags.
type targets []*target

func (t *targets) String() string { return "" }

func (t *targets) Set(s string) error {
	p := strings.SplitN(s, "|", 4)
	if len(p) < 3 {
		return errors.New("want name|url|command or name|url|command|header")
	}
	n := &target{name: p[0], url: p[1], command: p[2]}
	if len(p) == 4 {
		n.header = p[3]
	}
	*t = append(*t, n)
	return nil
}

func run() error {
	b := &bench{}
	var list targets
	flag.Var(&list, "t", "`name|url|command[|header]` to measure; {UP} in the command stands for the upstream's host:port (repeatable)")
	flag.IntVar(&b.rounds, "rounds", 5, "number of rounds")
	flag.DurationVar(&b.window, "time", 3*time.Second, "length of each measurement")
	flag.IntVar(&b.conns, "conns", 64, "keep-alive connections")
	flag.IntVar(&b.idle, "idle", 0, "idle connections to open for the memory figure")
	flag.IntVar(&b.nice, "nice", 0, "niceness of everything started; below 0 needs root")
	limit := flag.Float64("max", 0, "fail when a target's ratio to nginx is above this")
	flag.Parse()
	for _, tool := range []string{"nginx", "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: the Debian packages nginx-light and wrk have what is needed", tool)
		}
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	b.dir = dir
	defer os.RemoveAll(dir)
	defer b.stop()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := b.start(ctx, list); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	return b.report(os.Stdout, *limit)
}

// start brings up the upstream, nginx and the targets.
func (b *bench) start(ctx context.Context, list targets) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	up, front, err := freePorts()
	if err != nil {
		return err
	}
	if _, err := b.spawn(loadCPU, "upstream", self, "upstream", up); err != nil {
		return err
	}
	conf := filepath.Join(b.dir, "nginx.conf")
	text := strings.NewReplacer("@DIR@", b.dir, "@UP@", up, "@LISTEN@", front).Replace(nginxConf)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	nginx := &target{name: "nginx", url: "http://" + front + "/get", command: "nginx -e " + filepath.Join(b.dir, "nginx.err") + " -c " + conf}
	b.targets = append([]*target{nginx}, list...)
	for _, t := range b.targets {
		t.cmd, err = b.spawn(gatewayCPU, t.name, "sh", "-c", "exec "+strings.ReplaceAll(t.command, "{UP}", up))
		if err != nil {
			return err
		}
		if err := t.answers(ctx); err != nil {
			log, _ := os.ReadFile(filepath.Join(b.dir, t.name+".log"))
			return fmt.Errorf("%s does not answer 200 at %s: %w\n%s", t.name, t.url, err, log)
		}
	}
	return nil
}

// The gateway has one CPU, load and upstream another.
const (
	gatewayCPU = "0"
	loadCPU    = "1"
)

func (b *bench) command(cpu, name string, arg ...string) *exec.Cmd {
	args := append([]string{"-n", fmt.Sprint(b.nice)}, append([]string{name}, arg...)...)
	if runtime.NumCPU() > 1 {
		args = append([]string{"-n", fmt.Sprint(b.nice), "taskset", "-c", cpu, name}, arg...)
	}
	cmd := exec.Command("nice", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	return cmd
}

func (b *bench) spawn(cpu, log, name string, arg ...string) (*exec.Cmd, error) {
	cmd := b.command(cpu, name, arg...)
	f, err := os.Create(filepath.Join(b.dir, log+".log"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.kill = append(b.kill, cmd)
	return cmd, nil
}

// stop ends the process group of each process that was started.
func (b *bench) stop() {
	for _, cmd := range slices.Backward(b.kill) {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		done := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
	}
}

// answers waits until the target answers.
func (t *target) answers(ctx context.Context) error {
	client := &http.Client{Timeout: 2 * time.Second}
	var last error
	for range 300 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
		if err != nil {
			return err
		}
		if k, v, ok := strings.Cut(t.header, ":"); ok {
			req.Header.Set(k, strings.TrimSpace(v))
		}
		resp, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("status %s, %w", resp.Status, err)
		}
		last = err
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return last
}

func freePorts() (string, string, error) {
	a, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer a.Close()
	b, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer b.Close()
	return a.Addr().String(), b.Addr().String(), nil
}

// kilobyte is the upstream: every request gets the same 1 KiB.
type kilobyte struct{ body []byte }

func (k kilobyte) Serve(x *exchange.Exchange) {
	x.Response.Status = http.StatusOK
	x.Response.Header.Add("Server", "bench")
	x.Response.Header.Add("Content-Type", "text/plain")
	x.Response.SetBody(k.body)
}

func (k kilobyte) Finish(*exchange.Exchange) {}

func serveUpstream(addr string) {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		s := h1.New(h1.Options{Handler: kilobyte{[]byte(strings.Repeat("x", 1024))}, MaxRequests: 1 << 60, IdleTimeout: time.Hour})
		err = s.Serve(ln)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

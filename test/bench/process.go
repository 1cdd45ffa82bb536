//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The gateways have one processor, load and upstream another.
const (
	gatewayCPU = "0"
	loadCPU    = "1"
)

// host starts processes and ends them.
type host struct {
	dir, self string
	nice      int
	running   []*exec.Cmd
}

func (h *host) command(cpu, name string, arg ...string) *exec.Cmd {
	args := []string{"-n", strconv.Itoa(h.nice), "taskset", "-c", cpu, name}
	cmd := exec.Command("nice", append(args, arg...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = os.Environ()
	if cpu == loadCPU { // it shares the processor with others that wait for it
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	}
	return cmd
}

// launch starts a command. Where Linux groups processes by session (sched_autogroup_enabled), niceness counts within a group only, and
// the group has one of its own.
func (h *host) launch(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if h.nice != 0 {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte(strconv.Itoa(h.nice)), 0)
	}
	return nil
}

// start runs a process with its output in a file, until stop.
func (h *host) start(cpu, log string, env []string, name string, arg ...string) (int, error) {
	cmd := h.command(cpu, name, arg...)
	cmd.Env = append(cmd.Env, env...)
	f, err := os.Create(filepath.Join(h.dir, log+".log"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := h.launch(cmd); err != nil {
		return 0, err
	}
	h.running = append(h.running, cmd)
	return cmd.Process.Pid, nil
}

func (h *host) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(h.dir, name+".log"))
	return string(b[max(0, len(b)-2000):])
}

// end ends one process and waits for it.
func (h *host) end(pid int) error {
	i := slices.IndexFunc(h.running, func(c *exec.Cmd) bool { return c.Process.Pid == pid })
	if i < 0 {
		return fmt.Errorf("process %d is none of these", pid)
	}
	one := &host{running: h.running[i : i+1 : i+1]}
	h.running = slices.Delete(slices.Clone(h.running), i, i+1)
	one.stop()
	return nil
}

// stop ends the process group of each process that was started.
func (h *host) stop() {
	for _, cmd := range slices.Backward(h.running) {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
		timer.Stop()
	}
	h.running = nil
}

// load runs the generator.
func (h *host) load(ctx context.Context, j job) (o outcome, err error) {
	cmd := h.command(loadCPU, h.self, "load")
	in, err := json.Marshal(j)
	if err != nil {
		return o, err
	}
	cmd.Stdin = bytes.NewReader(in)
	return o, h.result(ctx, cmd, &o)
}

// patience is how long one measurement may take; whatever hangs is given up, with what was measured so far.
const patience = time.Minute

// bounded ends the processes of a command that was started when the context ends or patience does.
func bounded(ctx context.Context, cmd *exec.Cmd) (release func()) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	return func() { stop(); cancel() }
}

// result runs a command that ends soon and reads what it prints.
func (h *host) result(ctx context.Context, cmd *exec.Cmd, into any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := h.launch(cmd)
	if err == nil {
		release := bounded(ctx, cmd)
		err = cmd.Wait()
		release()
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	if text, ok := into.(*string); ok {
		*text = out.String()
		return nil
	}
	return json.Unmarshal(out.Bytes(), into)
}

// hold opens idle connections until the function it returns is called.
func (h *host) hold(ctx context.Context, j job) (release func(), err error) {
	j.Hold = true
	cmd := h.command(loadCPU, h.self, "load")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := h.launch(cmd); err != nil {
		return nil, err
	}
	release = func() { _ = in.Close(); _ = cmd.Wait() }
	var o outcome
	defer bounded(ctx, cmd)()
	if err := errors.Join(json.NewEncoder(in).Encode(j), json.NewDecoder(out).Decode(&o)); err != nil {
		release()
		return nil, err
	}
	if o.Bad > 0 {
		release()
		return nil, fmt.Errorf("%d idle connections failed", o.Bad)
	}
	return release, nil
}

// tree is a process and all its descendants.
func tree(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if c, err := strconv.Atoi(s); err == nil {
				pids = append(pids, tree(c)...)
			}
		}
	}
	return pids
}

// cpuTime is the user and system time of a process and its descendants in nanoseconds, read from the kernel's clock of each
// process (clock_getcpuclockid(3)), which is exact where /proc counts in ticks of 10 ms.
func cpuTime(pid int) (sum int64) {
	for _, p := range tree(pid) {
		var ts unix.Timespec
		if unix.ClockGettime(int32(^p<<3|2), &ts) == nil {
			sum += ts.Nano()
		}
	}
	return sum
}

// resident is the resident memory of a process tree in bytes, without mapped files, which the kernel drops when it needs the room.
func resident(pid int) (sum float64) {
	for _, p := range tree(pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if _, rest, ok := bytes.Cut(b, []byte("RssAnon:")); ok {
			var kb float64
			_, _ = fmt.Sscan(string(rest), &kb)
			sum += kb * 1024
		}
	}
	return sum
}

// freePorts returns addresses below the range from which the kernel takes the ports of outgoing connections.
func freePorts(n int) (out []string, err error) {
	for port := 21000; port < 32000 && len(out) < n; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		_ = ln.Close()
		out = append(out, addr)
	}
	if len(out) < n {
		err = errors.New("no free ports")
	}
	return out, err
}

// until waits for a URL to answer 200.
func until(ctx context.Context, url string, limit time.Duration) (last error) {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		last = fmt.Errorf("%s: %w", url, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return last
}

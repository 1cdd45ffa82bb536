package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"concord/cmd/concord/settings"
)

// The pid file in the prefix is locked for as long as the node lives, so that a file left behind by a killed node, or a
// pid the system has given to another process, is never taken for a running one.
func pidFile(prefix string) string { return filepath.Join(prefix, "concord.pid") }

type alreadyRunningError struct {
	prefix string
	pid    int
}

func (e *alreadyRunningError) Error() string {
	return fmt.Sprintf("Concord is already running in %s (process %d)", e.prefix, e.pid)
}

type notRunningError struct{ prefix string }

func (e *notRunningError) Error() string { return "Concord is not running at " + e.prefix }

// pidLock is the lock on the pid file. It belongs to the open file, not to a process (F_OFD_SETLK), so that it passes from one process to the next without
// a moment in which nobody holds it.
type pidLock struct{ f *os.File }

// claim makes this process the node of the prefix. The lock ends with the process or with release.
func claim(prefix string) (*pidLock, error) {
	f, err := os.OpenFile(pidFile(prefix), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		f.Close()
		if pid, perr := runningNode(prefix); perr == nil {
			return nil, &alreadyRunningError{prefix, pid}
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	l := &pidLock{f}
	if err := l.take(); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// take writes this process's pid, over another one without a moment in which there is none.
func (l *pidLock) take() error {
	n, err := l.f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	if err != nil {
		return err
	}
	return l.f.Truncate(int64(n))
}

// release ends the lock, unless it was let go.
func (l *pidLock) release() {
	if l.f != nil {
		// While still locked; a reader that comes later sees an unlocked file anyhow. It is blanked, not cut: the next pid has its place even on a
		// full disk.
		if info, err := l.f.Stat(); err == nil {
			_, _ = l.f.WriteAt(bytes.Repeat([]byte{'\n'}, int(min(info.Size(), 32))), 0)
		}
		l.letGo()
	}
}

// letGo leaves the lock to the process that has it, too.
func (l *pidLock) letGo() {
	l.f.Close()
	l.f = nil
}

// runningNode returns the pid of the prefix's node, or a notRunningError.
func runningNode(prefix string) (pid int, err error) {
	f, err := os.Open(pidFile(prefix))
	if errors.Is(err, os.ErrNotExist) {
		return 0, &notRunningError{prefix}
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("look at the lock of %s: %w", f.Name(), err)
	}
	if lock.Type == syscall.F_UNLCK {
		return 0, &notRunningError{prefix}
	}
	for range 100 { // whoever got the lock writes its pid at once
		b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
		if err != nil {
			return 0, err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if pid, err = strconv.Atoi(line); err == nil {
			return pid, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, fmt.Errorf("%s is locked but holds no pid", f.Name())
}

func signalNode(prefix string, sig syscall.Signal) (int, error) {
	pid, err := runningNode(prefix)
	if err != nil {
		return 0, err
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return 0, fmt.Errorf("signal process %d: %w", pid, err)
	}
	return pid, nil
}

// waitStopped polls until no node holds the prefix.
func waitStopped(prefix string, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if _, err := runningNode(prefix); errors.As(err, new(*notRunningError)) {
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
	}
}

// notifySocket is systemd's variable for the socket on which a service says that it is ready. "concord start" listens on
// one of its own, so there is one way to be told.
const notifySocket = "NOTIFY_SOCKET"

// notify tells whoever started the process how it is doing; nobody may be listening.
func notify(state string) {
	name := os.Getenv(notifySocket)
	if name == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// readyLimit is how long "start" waits for a node to load its log and open its listeners.
const readyLimit = 2 * time.Minute

// daemonise starts "concord run" as a process of its own and waits until it is ready.
func (c *cli) daemonise(s *settings.Settings) error {
	switch pid, err := runningNode(s.Prefix); {
	case err == nil:
		return &alreadyRunningError{s.Prefix, pid}
	case !errors.As(err, new(*notRunningError)):
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@concord-start-%d", os.Getpid()), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for the node to be ready: %w", err)
	}
	defer sock.Close()
	logName := s.ErrorLog
	if logName == "" {
		logName = os.DevNull
	}
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	before := int64(0)
	if st, err := log.Stat(); err == nil {
		before = st.Size()
	}

	name, err := program()
	if err != nil {
		return err
	}
	args := []string{name, "run", "-p", s.Prefix}
	if s.File != "" {
		args = append(args, "-c", s.File)
	}
	if c.debug {
		args = append(args, "--vv")
	} else if c.verbose {
		args = append(args, "--v")
	}
	cmd := &exec.Cmd{
		Path: exe, Args: args, Dir: "/", Stdout: log, Stderr: log,
		Env: append(os.Environ(), notifySocket+"="+sock.LocalAddr().String()), SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // why it ended is in its log
		close(exited)
		sock.Close()
	}()
	if err := sock.SetReadDeadline(time.Now().Add(readyLimit)); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for {
		n, err := sock.Read(buf)
		if err == nil && !strings.Contains(string(buf[:n]), "READY=1") {
			continue
		}
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("the node ended while starting; the last lines of %s:\n%s", logName, tail(logName, before))
		default:
			return fmt.Errorf("the node (process %d) is not ready after %v; the last lines of %s:\n%s", cmd.Process.Pid, readyLimit, logName, tail(logName, before))
		}
	}
}

// tail is the end of what was written to a file after an offset.
func tail(name string, from int64) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 4096
	if st, err := f.Stat(); err == nil && st.Size()-most > from {
		from = st.Size() - most
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, from, most))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/listen"
)

// An upgrade is a conversation between the process that runs the node and the one that is to replace it, over a pair of
// sockets. The old process sends its listening sockets and its lock on the pid file; from then on:
//
//	new: checked   settings, certificates, plugins and the cluster's level are fine, all listeners are open
//	old: go        its part in the cluster has ended, files and ports are free
//	new: ready     it has the state that the old one served, and a data plane built from it
//	old: memory    what it has counted and found out (memory.go), if the new process understands that
//	old: over      it accepts no more connections; the new process is the node
//	new: serving   it accepts, and its pid is in the pid file
//
// Until "over" the new process has not touched a client's connection, so up to then the old one can go on as if nothing had been.

// message is one step, or one socket.
type message struct {
	Step    string `json:"step"`
	Setting string `json:"setting,omitempty"` // of a socket: the key it belongs to
	Name    string `json:"name,omitempty"`    // of a socket, see listen.Inherited
	Prefix  string `json:"prefix,omitempty"`
	Level   uint32 `json:"level,omitempty"`  // of the cluster
	Index   uint64 `json:"index,omitempty"`  // that the old process serves
	Ready   bool   `json:"ready,omitempty"`  // the old process has caught up with its cluster
	Memory  int    `json:"memory,omitempty"` // the newest version of it that the new process understands
	Error   string `json:"error,omitempty"`
}

const (
	stepSocket  = "socket"
	stepPid     = "pid"
	stepBegin   = "begin"
	stepChecked = "checked"
	stepGo      = "go"
	stepReady   = "ready"
	stepMemory  = "memory"
	stepOver    = "over"
	stepServing = "serving"
	stepFailed  = "failed"
)

// successionFD names the descriptor of the conversation to the new process.
const successionFD = "CONCORD_SUCCESSION_FD"

// talk is one end of the conversation.
type talk struct{ conn *net.UnixConn }

func newTalk(fd int) (*talk, error) {
	f := os.NewFile(uintptr(fd), "succession")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a Unix socket"), c.Close())
	}
	return &talk{u}, nil
}

// send sends a message, with a descriptor unless it is negative.
func (t *talk) send(m message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err = t.conn.WriteMsgUnix(b, rights, nil)
	return err
}

func (t *talk) receive() (m message, fd int, err error) {
	b, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, r, _, _, err := t.conn.ReadMsgUnix(b, rights)
	if err != nil {
		return m, -1, err
	}
	fd = -1
	if list, err := unix.ParseSocketControlMessage(rights[:r]); err == nil && len(list) > 0 {
		if fds, err := unix.ParseUnixRights(&list[0]); err == nil && len(fds) > 0 {
			fd = fds[0]
		}
	}
	return m, fd, json.Unmarshal(b[:n], &m)
}

// succession is what a process that was started by an upgrade has of the one it replaces. nil: it was not.
type succession struct {
	*talk
	sockets map[string]*listen.Inherited // by setting
	lock    *os.File                     // the pid file
	begin   message
	memory  *os.File // nil: the old process has given none
}

// inherit takes over from the process that started this one, if it is one that wants to be replaced.
func inherit() (*succession, error) {
	v, ok := os.LookupEnv(successionFD)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(successionFD) // it means nothing to this process's own successor
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", successionFD, err)
	}
	unix.CloseOnExec(fd)
	t, err := newTalk(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", successionFD, err)
	}
	s := &succession{talk: t, sockets: map[string]*listen.Inherited{}}
	for {
		m, fd, err := t.receive()
		if err != nil {
			return nil, fmt.Errorf("the process to be replaced does not speak: %w", err)
		}
		switch {
		case m.Step == stepSocket && fd >= 0:
			if s.sockets[m.Setting] == nil {
				s.sockets[m.Setting] = &listen.Inherited{}
			}
			s.sockets[m.Setting].Add(m.Name, fd)
		case m.Step == stepPid && fd >= 0:
			s.lock = os.NewFile(uintptr(fd), m.Name)
		case m.Step == stepBegin:
			s.begin = m
			return s, nil
		}
	}
}

// inherited are the sockets of a setting. All methods of a nil succession do nothing.
func (s *succession) inherited(setting string) *listen.Inherited {
	if s == nil {
		return nil
	}
	return s.sockets[setting]
}

// step tells how far this process is, and waits for the old one's answer. If the old one has died after it let go of the node, this
// process goes on in its place.
func (s *succession) step(say, want string) (message, error) {
	if s == nil {
		return message{}, nil
	}
	if err := s.send(message{Step: say, Memory: memoryVersion}, -1); err == nil {
		m, fd, err := s.receive()
		if err == nil && m.Step == stepMemory && fd >= 0 {
			s.memory = os.NewFile(uintptr(fd), m.Step)
			m, _, err = s.receive()
		}
		if err == nil && m.Step == want {
			return m, nil
		}
	}
	if want == stepOver {
		return message{}, nil
	}
	return message{}, errors.New("the process to be replaced has gone or changed its mind")
}

func (s *succession) fail(err error) {
	if s != nil {
		_ = s.send(message{Step: stepFailed, Error: err.Error()}, -1)
	}
}

// serving is the last word.
func (s *succession) serving() {
	if s == nil {
		return
	}
	for _, in := range s.sockets {
		in.Close() // of listeners that are not configured any more
	}
	_ = s.send(message{Step: stepServing}, -1)
	_ = s.conn.Close()
}

// successor is the new process as the old one sees it.
type successor struct {
	*talk
	cmd    *exec.Cmd
	exited chan struct{}
}

// launch starts a program as the successor of this process, with the same arguments and environment.
func launch(binary string) (*successor, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	child := os.NewFile(uintptr(pair[1]), "succession")
	defer child.Close()
	t, err := newTalk(pair[0])
	if err != nil {
		return nil, err
	}
	s := &successor{talk: t, exited: make(chan struct{}), cmd: &exec.Cmd{
		Path: binary, Args: append([]string{binary}, os.Args[1:]...), Env: append(os.Environ(), successionFD+"=3"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{child},
	}}
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, t.conn.Close())
	}
	go func() { _ = s.cmd.Wait(); close(s.exited) }() // how it ended is in its state
	return s, nil
}

// expect waits for a step of the new process.
func (s *successor) expect(ctx context.Context, want string) error {
	_, err := s.hear(ctx, want)
	return err
}

func (s *successor) hear(ctx context.Context, want string) (message, error) {
	defer context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })()
	m, _, err := s.receive()
	switch {
	case err == nil && m.Step == want:
		return m, nil
	case err == nil && m.Step == stepFailed:
		return m, errors.New(m.Error)
	case ctx.Err() != nil:
		return m, fmt.Errorf("the new process was not %s in time", want)
	case err != nil:
		return m, s.broken(err)
	}
	return m, fmt.Errorf("the new process is not one that can take over: it said %q where %q was due", m.Step, want)
}

// broken says why the new process cannot be talked to.
func (s *successor) broken(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		return err
	}
	select {
	case <-s.exited:
		return fmt.Errorf("the new process ended: %s", s.cmd.ProcessState)
	case <-time.After(time.Second):
		return errors.New("the new process is not one that can take over: it has closed the connection")
	}
}

// kill ends the new process and returns when it is gone, with everything that it held.
func (s *successor) kill() {
	_ = s.conn.Close()
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// program is the path by which this process was started. A symbolic link is not followed: it may point elsewhere by the time of
// an upgrade, which is how versions are switched.
func program() (string, error) {
	if p, err := exec.LookPath(os.Args[0]); err == nil {
		return filepath.Abs(p)
	}
	p, err := os.Executable()
	return strings.TrimSuffix(p, " (deleted)"), err
}

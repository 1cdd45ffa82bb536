package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"
)

// quiet is how long connections on which nothing is said are left alone before they are closed in favour of another process or
// server: a client may be about to use one, and would lose its request.
const quiet = 10 * time.Second

// errOvertaken ends an upgrade because the node is told to stop.
var errOvertaken = errors.New("the node was told to stop")

// upgrade replaces this process by a new one of the program binary, "" for the one it was started from. On success the new process serves and
// this one has to retire. Otherwise everything is as before.
func (n *node) upgrade(ctx context.Context, binary string) (pid int, err error) {
	if os.Getpid() == 1 {
		return 0, errors.New("this process is the first of its container, which would end with it: replace the container instead")
	}
	if binary == "" {
		binary = n.program
	}
	ctx, cancel := context.WithTimeout(ctx, n.live.UpgradeTimeout)
	defer cancel()
	n.notice("upgrade: starting the new process", "program", binary)
	s, err := launch(binary)
	if err != nil {
		return 0, err
	}
	n.notice("upgrade: the new process checks its settings", "pid", s.cmd.Process.Pid)
	if err := n.handOver(ctx, s); err != nil {
		s.kill()
		return 0, err
	}
	begun := time.Now()
	err = n.cluster.Suspend(ctx)
	if err == nil {
		err = s.send(message{Step: stepGo, Index: n.compiler.Holder().PublishedIndex()}, -1)
	}
	var ready message
	if err == nil {
		ready, err = s.hear(ctx, stepReady)
	}
	if err == nil {
		n.remember(s, ready.Memory)
		notify(fmt.Sprintf("MAINPID=%d", s.cmd.Process.Pid)) // before the new process says to systemd that it is ready
		soon, cancelSoon := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancelSoon()
		if err = s.send(message{Step: stepOver}, -1); err == nil {
			err = s.expect(soon, stepServing)
		}
	}
	if err != nil {
		s.kill()
		if ctx.Err() == context.Canceled {
			return 0, errOvertaken
		}
		notify(fmt.Sprintf("MAINPID=%d", os.Getpid()))
		if lerr := n.lock.take(); lerr != nil {
			n.log.Error("upgrade: the pid file cannot be written", "error", lerr)
		}
		back, cancel := context.WithTimeout(context.Background(), n.live.UpgradeTimeout)
		defer cancel()
		if rerr := n.cluster.Resume(back); rerr != nil {
			n.broken("upgrade", errors.Join(err, fmt.Errorf("this process cannot go on as a node of its cluster: %w", rerr)))
		}
		return 0, err
	}
	n.retired.Store(true)
	n.successor = s.cmd.Process
	n.notice("upgrade: the new process is the node now", "pid", s.cmd.Process.Pid, "without_cluster", time.Since(begun).Round(time.Millisecond))
	n.lock.letGo()
	return s.cmd.Process.Pid, nil
}

// handOver gives the new process all it needs to check itself.
func (n *node) handOver(ctx context.Context, s *successor) error {
	for setting, g := range n.sockets.Load().groups() {
		err := g.Sockets(func(name string, fd int) error {
			return s.send(message{Step: stepSocket, Setting: setting, Name: name}, fd)
		})
		if err != nil {
			return s.broken(err)
		}
	}
	if err := s.send(message{Step: stepPid, Name: pidFile(n.s.Prefix)}, int(n.lock.f.Fd())); err != nil {
		return s.broken(err)
	}
	begin := message{Step: stepBegin, Prefix: n.s.Prefix, Level: n.machine.Level(), Ready: n.ready() == nil}
	if err := s.send(begin, -1); err != nil {
		return s.broken(err)
	}
	return s.expect(ctx, stepChecked)
}

// passOn sends a signal that came too late to the process that is the node now.
func (n *node) passOn(sig os.Signal) { _ = n.successor.Signal(sig) }

// retire serves what has begun until ctx ends: requests get an answer that ends their connection, HTTP/2 is told to go away, tunnels
// go on. Nothing is accepted any more.
func (n *node) retire(ctx context.Context) {
	open := n.sockets.Load()
	open.stop()
	n.front.drain()
	silent, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	awaitDone(silent, func() bool { return open.proxy.Conns() <= int(n.front.counters().Active) }) // a server has every connection that was accepted
	open.settle(silent)
	var ends sync.WaitGroup
	ends.Go(func() {
		n.front.retire(ctx)
		for _, l := range open.quic {
			l.Linger(ctx)
		}
	})
	for _, srv := range n.servers { // their answers end connections, too; see retiring
		ends.Go(func() {
			awaitDone(silent, func() bool { return n.httpConns.Load() == 0 })
			if srv.Shutdown(ctx) != nil {
				srv.Close()
			}
		})
	}
	ends.Wait()
	n.stop(ctx)
}

// awaitDone polls until done, or ctx ends.
func awaitDone(ctx context.Context, done func() bool) {
	for !done() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// retiring answers for a process that has been replaced: what it knows gets old, and nothing can be changed through it.
func (n *node) retiring(next http.Handler, refuse bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !n.retired.Load() {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		if !refuse {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, `{"message":"this process has been replaced by a new one: nothing was done, send the request again on a new connection"}`)
	})
}

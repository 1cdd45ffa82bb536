//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A job is one measurement of the load generator, which is a process of its own: it reads the job from its standard input and
// writes the outcome to its standard output.
type job struct {
	Addr     string
	Requests [][]byte      // sent in turn
	Once     bool          // stop when each was sent
	Conns    int           // keep-alive connections
	Rate     float64       // requests per second, due at even distances whatever the answers do; 0: each connection sends when it has its answer
	Duration time.Duration // 0: until Requests are used up
	Hold     bool          // keep the connections open until standard input ends
	Slow     time.Duration // report the answers that took longer; 0: none
}

// outcome counts answers; latencies are microseconds from the moment a request was due.
type outcome struct {
	Requests, Bad       int
	Seconds             float64
	P50, P99, P999, Max float64
	Late                float64 // 99th percentile of how late requests were sent, for want of an idle connection or of the processor
	Wrong               string  // the beginning of an answer that was not 200
	Slow                []slow
}

// slow is an answer that took long.
type slow struct {
	Due  int64 // Unix nanoseconds
	Took float64
}

type loadConn struct {
	fd   int32
	busy bool
	due  time.Time
	head []byte // of an answer that came in pieces
	need int    // bytes of its body
}

// load is an epoll loop on one thread: at the rates in question goroutines would cost more than the gateway.
type load struct {
	job
	ep, timer int
	to        unix.SockaddrInet4
	conns     map[int32]*loadConn
	idle      []*loadConn
	next      int       // request
	due       time.Time // of the next request
	overdue   []time.Time
	latencies []float64
	late      []float64
	out       outcome
	buf       []byte
	end       time.Time
}

func runLoad(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	dec := json.NewDecoder(in)
	l := &load{conns: map[int32]*loadConn{}, buf: make([]byte, 1<<20)}
	if err := dec.Decode(&l.job); err != nil {
		return err
	}
	if err := l.run(); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(l.out); err != nil || !l.Hold {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

func (l *load) run() (err error) {
	tcp, err := net.ResolveTCPAddr("tcp4", l.Addr)
	if err != nil {
		return err
	}
	l.to = unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	for range l.Conns {
		c, err := l.dial()
		if err != nil {
			return err
		}
		l.idle = append(l.idle, c)
		if l.Hold { // one at a time: a listen queue holds fewer
			l.send(c, time.Now())
			for c.busy {
				if err := l.wait(-1); err != nil {
					return err
				}
				if l.out.Bad > 0 { // c is gone, or is a connection that tells nothing
					return fmt.Errorf("idle connection %d failed: %s", len(l.idle), l.out.Wrong)
				}
			}
		}
	}
	if l.Hold {
		return nil
	}
	start := time.Now()
	l.end = start.Add(l.Duration)
	if l.Rate > 0 {
		err = l.open(start)
	} else {
		err = l.closed()
	}
	if err != nil {
		return err
	}
	l.out.Seconds = time.Since(start).Seconds()
	slices.Sort(l.latencies)
	slices.Sort(l.late)
	l.out.P50, l.out.P99, l.out.P999, l.out.Max = quantile(l.latencies, .5), quantile(l.latencies, .99), quantile(l.latencies, .999), quantile(l.latencies, 1)
	l.out.Late = quantile(l.late, .99)
	return nil
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// over tells whether no more requests are to be sent.
func (l *load) over(now time.Time) bool {
	return l.Duration > 0 && !now.Before(l.end) || l.Once && l.next >= len(l.Requests)
}

// closed keeps every connection busy.
func (l *load) closed() error {
	for {
		now := time.Now()
		for len(l.idle) > 0 && !l.over(now) {
			l.send(l.pop(), now)
		}
		if len(l.idle) == len(l.conns) && l.over(now) {
			return nil
		}
		if err := l.wait(1000); err != nil {
			return err
		}
		if l.Duration > 0 && time.Since(l.end) > 10*time.Second {
			return errors.New("no answer for ten seconds")
		}
	}
}

// open sends when requests are due. One that finds no idle connection waits for one, and its time counts from when it was due:
// a gateway that stalls is charged for all requests that would have come meanwhile.
func (l *load) open(start time.Time) (err error) {
	if l.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK); err != nil {
		return err
	}
	every := time.Duration(float64(time.Second) / l.Rate)
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(int64(every)), Value: unix.NsecToTimespec(int64(every))}
	if err := unix.TimerfdSettime(l.timer, 0, &spec, nil); err != nil {
		return err
	}
	if err := watch(l.ep, unix.EPOLL_CTL_ADD, int32(l.timer), unix.EPOLLIN); err != nil {
		return err
	}
	for l.due = start.Add(every); ; {
		now := time.Now()
		for ; !l.due.After(now) && l.due.Before(l.end); l.due = l.due.Add(every) {
			l.overdue = append(l.overdue, l.due)
		}
		for len(l.overdue) > 0 && len(l.idle) > 0 {
			due := l.overdue[0]
			l.overdue = l.overdue[1:]
			l.late = append(l.late, float64(now.Sub(due))/1e3)
			l.send(l.pop(), due)
		}
		if !l.due.Before(l.end) && len(l.overdue) == 0 && len(l.idle) == len(l.conns) {
			return nil
		}
		if time.Since(l.end) > 10*time.Second {
			return errors.New("no answer for ten seconds")
		}
		if err := l.wait(1000); err != nil {
			return err
		}
	}
}

func (l *load) pop() *loadConn {
	c := l.idle[len(l.idle)-1]
	if l.Rate > 0 { // in turn, so that all connections are in use as those of many clients are
		c = l.idle[0]
		l.idle = l.idle[1:]
		return c
	}
	l.idle = l.idle[:len(l.idle)-1]
	return c
}

func (l *load) dial() (*loadConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &l.to); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", l.Addr, err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	c := &loadConn{fd: int32(fd)}
	l.conns[c.fd] = c
	return c, watch(l.ep, unix.EPOLL_CTL_ADD, c.fd, unix.EPOLLIN)
}

func (l *load) send(c *loadConn, due time.Time) {
	req := l.Requests[l.next%len(l.Requests)]
	l.next++
	c.busy, c.due, c.need, c.head = true, due, 0, c.head[:0]
	if n, err := unix.Write(int(c.fd), req); err != nil || n < len(req) {
		l.broken(c)
	}
}

// broken replaces a connection that failed.
func (l *load) broken(c *loadConn) {
	l.out.Bad++
	delete(l.conns, c.fd)
	_ = unix.Close(int(c.fd))
	l.idle = slices.DeleteFunc(l.idle, func(o *loadConn) bool { return o == c })
	if n, err := l.dial(); err == nil {
		l.idle = append(l.idle, n)
	}
}

func (l *load) wait(ms int) error {
	var events [256]unix.EpollEvent
	n, err := unix.EpollWait(l.ep, events[:], ms)
	if err != nil && err != unix.EINTR {
		return err
	}
	for _, e := range events[:max(n, 0)] {
		if int(e.Fd) == l.timer {
			_, _ = unix.Read(l.timer, l.buf[:8])
		} else if c := l.conns[e.Fd]; c != nil {
			l.read(c)
		}
	}
	return nil
}

func (l *load) read(c *loadConn) {
	for {
		n, err := unix.Read(int(c.fd), l.buf)
		if err == unix.EAGAIN || err == unix.EINTR {
			return
		}
		if n <= 0 {
			l.broken(c)
			return
		}
		if !l.take(c, l.buf[:n]) {
			l.broken(c)
			return
		}
		if !c.busy || n < len(l.buf) {
			return
		}
	}
}

// take reads a piece of an answer; false if it is none.
func (l *load) take(c *loadConn, b []byte) bool {
	if c.need == 0 {
		if len(c.head) > 0 {
			c.head = append(c.head, b...)
			b = c.head
		}
		e := bytes.Index(b, []byte("\r\n\r\n"))
		if e < 0 {
			if len(c.head) == 0 {
				c.head = append(c.head, b...)
			}
			return len(c.head) < 64<<10
		}
		if !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
			l.out.Bad++
			l.out.Wrong = string(b[:min(len(b), 200)])
		}
		c.need = contentLength(b[:e+2])
		b = b[e+4:]
	}
	if c.need -= len(b); c.need > 0 {
		return true
	}
	c.busy = false
	l.idle = append(l.idle, c)
	l.out.Requests++
	took := time.Since(c.due)
	l.latencies = append(l.latencies, float64(took)/1e3)
	if l.Slow > 0 && took > l.Slow {
		l.out.Slow = append(l.out.Slow, slow{c.due.UnixNano(), float64(took) / 1e3})
	}
	return c.need == 0
}

package h1

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// parks tells whether a connection can be parked.
func parks(nc net.Conn) bool { return socket(nc) != nil }

// lot is where client connections wait on which nothing has happened for a while, without a goroutine: one epoll instance tells of all. It is
// waited for through the runtime's own poller, so that no thread waits either.
//
// A connection that is parked belongs to the lot. Whoever takes it out, under the mutex, has it alone, and goes on with it in one new goroutine,
// which alone ends it: the lot itself closes no socket. A socket that is closed by somebody else, as Shutdown does when its time is over, can
// neither be parked afterwards (its RawConn refuses) nor announced, so it is to be taken out then. Events carry the ticket of a stay, which is
// never used again: one that is late finds nobody, even if its descriptor is another connection's by then. Descriptors are
// used inside RawConn.Control only, where they are not closed.
type lot struct {
	mu     sync.Mutex
	closed bool
	file   *os.File // the epoll instance; nil: not needed yet
	epoll  int
	ticket uint64 // the last one given out
	stays  map[uint64]*Spot
}

func (l *lot) park(s *Spot, nc net.Conn, resume func(), still func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !still() || !l.open() {
		return false
	}
	l.ticket++
	ok := onSocket(nc, func(fd uintptr) bool {
		return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, int(fd), &syscall.EpollEvent{
			Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(l.ticket), Pad: int32(l.ticket >> 32), //nolint:gosec // the halves
		}) == nil
	})
	if ok {
		*s = Spot{nc, resume, l.ticket}
		l.stays[l.ticket] = s
	}
	return ok
}

func (l *lot) open() bool {
	if l.closed || l.file != nil {
		return !l.closed
	}
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	f := os.NewFile(uintptr(fd), "parked connections")
	raw, err := f.SyscallConn()
	if err != nil || f.SetReadDeadline(time.Time{}) != nil { // the runtime does not poll it
		_ = f.Close()
		return false
	}
	l.file, l.epoll, l.stays = f, fd, map[uint64]*Spot{}
	go l.run(raw)
	return true
}

func (l *lot) run(raw syscall.RawConn) {
	events := make([]syscall.EpollEvent, 128)
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, err := syscall.EpollWait(int(fd), events, 0)
			if err == syscall.EINTR {
				continue
			}
			if n == 0 || err != nil {
				return err != nil
			}
			for _, e := range events[:n] {
				l.announced(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32) //nolint:gosec // the halves
			}
		}
	})
	l.close() // already, or nobody would be woken any more
}

func (l *lot) announced(ticket uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.stays[ticket]; s != nil {
		l.leave(s)
	}
}

func (l *lot) wake(s *Spot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.ticket != 0 {
		l.leave(s)
	}
}

// leave is called with the mutex.
func (l *lot) leave(s *Spot) {
	if !l.closed {
		onSocket(s.nc, func(fd uintptr) bool {
			return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_DEL, int(fd), nil) == nil
		})
	}
	delete(l.stays, s.ticket)
	go s.resume()
	*s = Spot{}
}

// close gives all connections their goroutines back, and parks none any more.
func (l *lot) close() {
	l.mu.Lock()
	f := l.file
	l.closed, l.file = true, nil
	for _, s := range l.stays {
		l.leave(s)
	}
	l.mu.Unlock()
	if f != nil {
		_ = f.Close() // not with the mutex: it waits for run, which may wait for that
	}
}

package stream

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/listen"
	"concord/proxy/router"
	"concord/proxy/upstream"
)

// maxDatagram is the most that UDP can carry.
const maxDatagram = 65535

// Bounds of what waits for a session's upstream to be found.
const (
	maxWaiting      = 8       // datagrams of one client
	maxWaitingBytes = 8 << 20 // of all clients of a listener
)

// udpListener is a socket that clients send datagrams to. One goroutine reads it; every client has another one, which reads what the
// client's upstream sends.
type udpListener struct {
	s     *Server
	spec  listen.Spec
	conn  *net.UDPConn
	local netip.AddrPort // where it is bound
	info  bool           // bound to all addresses: each datagram says to which one it came

	waiting atomic.Int64 // bytes
	stopped atomic.Bool

	mu         sync.Mutex
	clients    map[udpKey]*udpClient
	unanswered list.List // of clients; who was silent longest is near the front
	released   bool      // the socket is to be closed with the last client
}

type udpKey struct {
	client netip.AddrPort
	local  netip.Addr
}

// udpClient is a session of datagrams.
type udpClient struct {
	*session
	l       *udpListener
	key     udpKey
	to      netip.AddrPort // as the socket has it
	control []byte         // by which answers leave from the address that the client sent to
	moment                 // when a datagram came from either side

	// Of the listener's lock.
	element  *list.Element // in unanswered; nil: the upstream has answered
	replaced bool          // another client has its place

	received, sent, upstreamSent, upstreamReceived atomic.Int64

	mu    sync.Mutex
	queue [][]byte // until the upstream is known
	raw   syscall.RawConn
	out   []byte // what write sends
	write func(fd uintptr) bool
	ended bool
}

func (s *Server) listenUDP(ctx context.Context, spec listen.Spec) (*udpListener, error) {
	c, err := spec.ListenPacket(ctx, s.o.Inherited)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("listen %s: not a UDP socket", spec)
	}
	l := &udpListener{s: s, spec: spec, conn: conn, local: addrPort(conn.LocalAddr()), clients: map[udpKey]*udpClient{}}
	if l.info = l.local.Addr().IsUnspecified(); l.info {
		if err := wantInfo(conn); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("listen %s: %w", spec, err)
		}
	}
	return l, nil
}

// wantInfo asks for the address to which each datagram came.
func wantInfo(c *net.UDPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var v4, v6 error
	err = rc.Control(func(fd uintptr) {
		v4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		v6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
	if err == nil && v4 != nil && v6 != nil {
		err = v4
	}
	return err
}

// destination is the address in a control message, and the message with which an answer leaves from it, whichever way the system finds
// best.
func destination(oob []byte) (netip.Addr, []byte) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range list {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			a := netip.AddrFrom4([4]byte(m.Data[4:8])) // ipi_spec_dst
			return a, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			a := netip.AddrFrom16([16]byte(m.Data[:16]))
			info := &unix.Inet6Pktinfo{Addr: a.As16()}
			if a.IsLinkLocalUnicast() {
				info.Ifindex = uint32(m.Data[16]) | uint32(m.Data[17])<<8 | uint32(m.Data[18])<<16 | uint32(m.Data[19])<<24
			}
			return a.Unmap(), unix.PktInfo6(info)
		}
	}
	return netip.Addr{}, nil
}

// serve reads datagrams until stop.
func (l *udpListener) serve() error {
	buf, oob := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, oobn, flags, from, err := l.conn.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case l.stopped.Load():
			return nil
		case err != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)):
			return err
		case err != nil: // of an answer sent before, say: ICMP errors come in here
			time.Sleep(time.Millisecond)
			continue
		case flags&unix.MSG_TRUNC != 0:
			continue
		}
		local := l.local.Addr()
		var control []byte
		if l.info {
			local, control = destination(oob[:oobn])
		}
		l.receive(buf[:n], from, netip.AddrPortFrom(local, l.local.Port()), control)
	}
}

// receive takes a datagram of a client.
func (l *udpListener) receive(b []byte, from, local netip.AddrPort, control []byte) {
	key := udpKey{unmap(from), local.Addr()}
	l.mu.Lock()
	c := l.clients[key]
	if c == nil {
		if c = l.add(key, from, local, control); c == nil {
			l.mu.Unlock()
			return
		}
	}
	l.mu.Unlock()
	c.take(b)
}

// add begins a session; nil: nobody serves it, or there are too many. The caller holds the lock.
func (l *udpListener) add(key udpKey, from, local netip.AddrPort, control []byte) *udpClient {
	s := l.s
	ss := s.newSession(key.client, local)
	ss.spec = l.spec
	ss.query = router.StreamQuery{Protocols: router.UDP, Source: key.client, Destination: local}
	snap := s.g.Holder.Pin(ss.x.Conn.Serial)
	_, routed := snap.FindStream(&ss.query)
	snap.Unpin(ss.x.Conn.Serial)
	if !routed {
		return nil // anybody can send datagrams in any name: they shall not fill the log
	}
	if s.stats.clients.Add(1) > int64(s.o.MaxClients) {
		s.stats.clients.Add(-1) // and what makeRoom ends leaves its place to this one
		s.complain("stream_max_udp_clients", s.o.MaxClients)
		if !l.makeRoom() {
			s.stats.refusedClients.Add(1)
			return nil
		}
	}
	if !s.begin(ss) {
		s.stats.clients.Add(-1)
		return nil
	}
	s.stats.accepted.Add(1)
	c := &udpClient{session: ss, l: l, key: key, to: from, control: control, moment: moment{since: ss.x.Start}}
	c.write = func(fd uintptr) bool { // once: what the socket does not take is lost, as on the way
		_, _ = syscall.Write(int(fd), c.out)
		return true
	}
	c.touch()
	l.clients[key] = c
	c.element = l.unanswered.PushBack(c)
	go c.serve()
	return c
}

// Bounds of makeRoom, which a flood from invented addresses may call for each datagram: a session lives for a while, so that there are no more
// new ones in that time than there may be clients, and few are looked at.
const (
	leastSilence = time.Second
	maxLooks     = 8
)

// makeRoom ends a session that the upstream has not answered, for a client more than there may be. Whoever sends one datagram in each of many
// names would else keep everybody out until these sessions have been idle for long enough. The caller holds the lock.
func (l *udpListener) makeRoom() bool {
	for range min(maxLooks, l.unanswered.Len()) {
		e := l.unanswered.Front()
		if c := e.Value.(*udpClient); time.Since(c.last()) >= leastSilence && c.giveUp() {
			l.answered(c)
			c.replaced = true
			return true
		}
		l.unanswered.MoveToBack(e)
	}
	return false
}

// giveUp ends a session at once; false: it still looks for its upstream, and would go on to.
func (c *udpClient) giveUp() bool {
	c.session.mu.Lock()
	connected := c.upstream != nil
	c.session.mu.Unlock()
	if connected {
		c.cut()
	}
	return connected
}

// answered is for holders of the lock.
func (l *udpListener) answered(c *udpClient) {
	if c.element != nil {
		l.unanswered.Remove(c.element)
		c.element = nil
	}
}

// take sends a client's datagram on, or keeps it until there is an upstream.
func (c *udpClient) take(b []byte) {
	c.touch()
	c.received.Add(int64(len(b)))
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
	case c.raw != nil:
		c.send(b)
	case len(c.queue) < maxWaiting && c.l.waiting.Add(int64(len(b))) <= maxWaitingBytes:
		c.queue = append(c.queue, append([]byte(nil), b...))
	default:
		c.l.waiting.Add(-int64(len(b)))
	}
}

// send is for holders of the lock.
func (c *udpClient) send(b []byte) {
	c.out = b
	if c.raw.Write(c.write) == nil {
		c.upstreamSent.Add(int64(len(b)))
	}
	c.out = nil
}

// serve is the life of a session.
func (c *udpClient) serve() {
	defer c.s.sessions.Done()
	err := c.proxy()
	c.l.mu.Lock()
	delete(c.l.clients, c.key)
	c.l.answered(c)
	if !c.replaced {
		defer c.s.stats.clients.Add(-1)
	}
	c.l.closeUnused()
	c.l.mu.Unlock()
	c.mu.Lock()
	c.ended = true
	c.unqueue(nil)
	c.mu.Unlock()
	x := &c.x
	x.BytesReceived, x.BytesSent = c.received.Load(), c.sent.Load()
	c.stream.UpstreamSent, c.stream.UpstreamReceived = c.upstreamSent.Load(), c.upstreamReceived.Load()
	c.end(err)
}

// isOwn tells whether a socket would send to a UDP listener of this server, which would answer with a session of its own, and so on.
// Addresses of this host are known by what the system takes to reach them: the same.
func (s *Server) isOwn(conn *net.UDPConn) bool {
	from, to := addrPort(conn.LocalAddr()), addrPort(conn.RemoteAddr())
	for _, l := range s.udp {
		if l.local.Port() == to.Port() && (l.local.Addr() == to.Addr() || l.info && from.Addr() == to.Addr()) {
			return true
		}
	}
	return false
}

// unqueue gives up what waits, to f if it is not nil.
func (c *udpClient) unqueue(f func([]byte)) {
	for _, b := range c.queue {
		c.l.waiting.Add(-int64(len(b)))
		if f != nil {
			f(b)
		}
	}
	c.queue = nil
}

func (c *udpClient) proxy() error {
	if err := c.route(); err != nil {
		return err
	}
	up, err := c.connect("udp")
	if err != nil {
		return err
	}
	conn, ok := up.(*net.UDPConn)
	if !ok {
		return failed(500, "no UDP socket")
	}
	if c.s.isOwn(conn) {
		return failed(502, "%s is a listener of this gateway itself: point the service at another address", conn.RemoteAddr())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return failed(500, "%w", err)
	}
	c.mu.Lock()
	c.raw = raw
	c.unqueue(c.send)
	c.mu.Unlock()
	return c.answers(conn, raw)
}

// datagrams are buffers, held only while a datagram is under way.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// afterStop is how long an upstream may still take to answer when the listener is closed.
const afterStop = time.Second

// answers passes on what the upstream says until the session is silent for too long.
func (c *udpClient) answers(conn *net.UDPConn, raw syscall.RawConn) error {
	idle := c.x.Upstream.ReadTimeout
	if idle <= 0 {
		idle = defaultTimeout
	}
	answered := false
	var readErr error
	read := func(fd uintptr) bool {
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		for range 64 { // then it is looked whether the session is over
			n, err := syscall.Read(int(fd), buf[:])
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				return false
			case err != nil:
				readErr = err
				return true
			}
			c.touch()
			c.upstreamReceived.Add(int64(n))
			if !answered {
				answered = true
				c.result(nil)
				c.l.mu.Lock()
				c.l.answered(c)
				c.l.mu.Unlock()
			}
			if _, _, err := c.l.conn.WriteMsgUDPAddrPort(buf[:n], c.control, c.to); err == nil {
				c.sent.Add(int64(n))
			}
		}
		return true
	}
	for {
		limit, stopped := idle, c.l.stopped.Load()
		if stopped {
			limit = min(limit, afterStop)
		}
		until := c.last().Add(limit)
		if !until.After(time.Now()) {
			return nil
		}
		_ = conn.SetReadDeadline(until)
		if stopped != c.l.stopped.Load() {
			continue
		}
		if err := raw.Read(read); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			return nil // cut
		}
		if readErr != nil { // ECONNREFUSED: nobody listens there
			err := &upstream.Error{Kind: upstream.Connect, Op: "send to", Addr: c.x.Peer, Err: readErr}
			if !answered {
				c.result(err)
			}
			return failed(502, "%w", err)
		}
	}
}

// stop ends serve. Answers still go out until release or Shutdown closes the socket.
func (l *udpListener) stop() {
	l.stopped.Store(true)
	past := time.Unix(1, 0)
	_ = l.conn.SetReadDeadline(past)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		c.session.mu.Lock()
		if c.upstream != nil {
			_ = c.upstream.SetReadDeadline(past)
		}
		c.session.mu.Unlock()
	}
}

// release closes the socket as soon as no client is answered through it any more. Nothing may be received by then.
func (l *udpListener) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released = true
	l.closeUnused()
}

// closeUnused is for holders of the lock.
func (l *udpListener) closeUnused() {
	if l.released && len(l.clients) == 0 {
		_ = l.conn.Close()
	}
}

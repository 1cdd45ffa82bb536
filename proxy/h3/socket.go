package h3

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"concord/proxy/listen"
)

// socket is a UDP socket that can go over to another process while connections of this one go on. The other process then reads it, and
// passes on what belongs to this one; both write to it.
//
// Whose connection a packet belongs to is in the connection id, which the server chooses: its first byte is the era of the process, one
// more than its predecessor's. The last two bytes tell such an id from what clients choose for their first packet.
type socket struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	key   [32]byte
	era   byte

	ancestor atomic.Pointer[net.UnixConn] // to the process before this one, while it has connections
	heir     atomic.Pointer[net.UnixConn] // to the process after this one
	over     atomic.Bool                  // the heir reads the socket
	closing  atomic.Bool
	buf      []byte // of relayed packets
}

var longAgo = time.Unix(1, 0)

const (
	idLength  = 8 // bytes of a connection id
	relayed   = "relay"
	maxOOB    = 255
	maxPacket = 64 << 10
)

// openSocket makes a socket of a UDP socket and, if it is inherited, of the way to the process that had it.
func openSocket(udp *net.UDPConn, name string, key [32]byte, from *listen.Inherited) (*socket, error) {
	s := &socket{UDPConn: udp, batch: ipv4.NewPacketConn(udp), key: key}
	c, err := from.Conn(relayed, name)
	if err != nil {
		return nil, err
	}
	relay, ok := c.(*net.UnixConn)
	if !ok {
		return s, nil
	}
	var hello [1]byte
	_ = relay.SetReadDeadline(time.Now().Add(5 * time.Second)) // it was sent before the socket
	if _, err := io.ReadFull(relay, hello[:]); err != nil {
		_ = relay.Close()
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	_ = relay.SetReadDeadline(time.Time{})
	s.era = hello[0] + 1
	s.ancestor.Store(relay)
	go func() {
		_, _ = relay.Read(hello[:]) // nothing more is said: it ends with the process
		s.forget(relay)
	}()
	return s, nil
}

// give gives out the socket, and the way by which its new owner passes on what belongs to connections of this process.
func (s *socket) give(name string, give func(name string, fd int) error) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), relayed)
	defer theirs.Close()
	if unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20) != nil { // it takes CAP_NET_ADMIN
		_ = unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20) // as much as the system allows
	}
	f := os.NewFile(uintptr(pair[0]), relayed)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return err
	}
	ours, ok := c.(*net.UnixConn)
	if !ok {
		return errors.Join(errors.New("not a Unix socket"), c.Close())
	}
	if _, err := ours.Write([]byte{s.era}); err != nil {
		return errors.Join(err, ours.Close())
	}
	if old := s.heir.Swap(ours); old != nil { // of an upgrade that has failed
		_ = old.Close()
	}
	if err := listen.GiveNamed(name, s.UDPConn, give); err != nil {
		return err
	}
	return give(relayed+" "+name, pair[1])
}

// handOver, after give, leaves reading the socket to the other process, and tells whether there is one.
func (s *socket) handOver() bool {
	if s.heir.Load() == nil {
		return false
	}
	s.over.Store(true)
	_ = s.UDPConn.SetReadDeadline(longAgo) // ends the read that is under way
	return true
}

// GenerateConnectionID implements quic.ConnectionIDGenerator.
func (s *socket) GenerateConnectionID() (quic.ConnectionID, error) {
	var id [idLength]byte
	_, _ = rand.Read(id[:]) // it never fails
	id[0] = s.era
	mark := s.mark(id[:])
	copy(id[idLength-len(mark):], mark[:])
	return quic.ConnectionIDFromBytes(id[:]), nil
}

// ConnectionIDLen implements quic.ConnectionIDGenerator.
func (s *socket) ConnectionIDLen() int { return idLength }

// mark is what the last bytes of an id of ours are.
func (s *socket) mark(id []byte) [2]byte {
	var in [32 + idLength - 2]byte
	copy(in[:], s.key[:])
	copy(in[32:], id[:idLength-2])
	sum := sha256.Sum256(in[:])
	return [2]byte(sum[:2])
}

// eraOf is the era of the process that has chosen the id to which a packet goes; false: the client has.
func (s *socket) eraOf(p []byte) (byte, bool) {
	if len(p) > idLength && p[0]&0x80 == 0 { // a short header has only ids of servers (RFC 9000 §17.3)
		return p[1], true
	}
	if len(p) < 6+idLength || p[5] != idLength {
		return 0, false
	}
	id := p[6 : 6+idLength]
	return id[0], s.mark(id) == [2]byte(id[idLength-2:])
}

// SetReadDeadline implements net.PacketConn.
func (s *socket) SetReadDeadline(t time.Time) error {
	if heir := s.heir.Load(); heir != nil {
		_ = heir.SetReadDeadline(t)
	}
	return s.UDPConn.SetReadDeadline(t)
}

// ReadBatch reads packets of this process's connections, wherever they come from. The library prefers it to the methods of a *net.UDPConn.
func (s *socket) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		var n int
		var err error
		heir := s.heir.Load()
		if heir != nil && s.over.Load() {
			if err = s.readRelayed(heir, &ms[0]); err == nil {
				n = 1
			} else if !s.closing.Load() && !os.IsTimeout(err) {
				// The other process has gone, or has no use for the socket.
				s.over.Store(false)
				s.heir.Store(nil)
				_ = heir.Close()
				s.readOn()
				continue
			}
		} else if n, err = s.batch.ReadBatch(ms, flags); os.IsTimeout(err) {
			s.readOn()
		}
		if s.heir.Load() != nil || s.ancestor.Load() != nil {
			n = s.sort(ms[:max(n, 0)])
		}
		if n > 0 || err != nil && (s.closing.Load() || !os.IsTimeout(err)) {
			return n, err
		}
	}
}

// readOn takes back the deadline that has ended a read, unless there is a reason for it again.
func (s *socket) readOn() {
	_ = s.UDPConn.SetReadDeadline(time.Time{})
	if s.closing.Load() || s.over.Load() && s.heir.Load() != nil {
		_ = s.UDPConn.SetReadDeadline(longAgo)
	}
}

// sort keeps what belongs to this process, and passes on what belongs to one before it. The messages' memory stays where it is.
func (s *socket) sort(ms []ipv4.Message) int {
	kept := 0
	for i := range ms {
		m := &ms[i]
		p := m.Buffers[0][:m.N]
		if era, known := s.eraOf(p); known && era != s.era {
			if era == s.era+1 && s.heir.Load() != nil {
				continue // the heir's; it comes again
			}
			if before := s.ancestor.Load(); before != nil {
				s.pass(before, m)
				continue
			}
		}
		if kept != i {
			to := &ms[kept]
			to.N, to.NN, to.Addr, to.Flags = copy(to.Buffers[0], p), copy(to.OOB, m.OOB[:m.NN]), m.Addr, m.Flags
		}
		kept++
	}
	return kept
}

// pass sends a packet to the process whose it is: the length of the address, the address, that of the control message, the control
// message, the packet. What there is no room for is lost, as on any other way.
func (s *socket) pass(to *net.UnixConn, m *ipv4.Message) {
	u, ok := m.Addr.(*net.UDPAddr)
	if !ok || m.NN > maxOOB {
		return
	}
	b := append(s.buf[:0], 0)
	b, err := u.AddrPort().AppendBinary(b)
	if err != nil {
		return
	}
	b[0] = byte(len(b) - 1) //nolint:gosec // an address is short, also with its zone
	b = append(append(b, byte(m.NN)), m.OOB[:m.NN]...)
	b = append(b, m.Buffers[0][:m.N]...)
	s.buf = b
	rc, err := to.SyscallConn()
	if err == nil {
		var werr error
		err = rc.Write(func(fd uintptr) bool {
			_, werr = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return true
		})
		if err == nil && werr != unix.EAGAIN {
			err = werr
		}
	}
	if err != nil {
		s.forget(to)
	}
}

// forget is called when the process before this one has ended.
func (s *socket) forget(relay *net.UnixConn) {
	s.ancestor.CompareAndSwap(relay, nil)
	_ = relay.Close()
}

var errRelayed = errors.New("h3: malformed packet from the process that has the socket")

// readRelayed reads what pass has sent.
func (s *socket) readRelayed(from *net.UnixConn, m *ipv4.Message) error {
	if cap(s.buf) < maxPacket {
		s.buf = make([]byte, maxPacket)
	}
	b := s.buf[:maxPacket]
	n, err := from.Read(b)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	b = b[:n]
	field := func() []byte {
		if len(b) == 0 || int(b[0]) >= len(b) {
			return nil
		}
		f := b[1 : 1+b[0]]
		b = b[1+b[0]:]
		return f
	}
	var at netip.AddrPort
	if err := at.UnmarshalBinary(field()); err != nil {
		return errRelayed
	}
	m.NN = copy(m.OOB, field())
	m.N = copy(m.Buffers[0], b)
	m.Addr = net.UDPAddrFromAddrPort(at)
	return nil
}

// Close closes the socket for this process.
func (s *socket) Close() error {
	for _, c := range []*net.UnixConn{s.heir.Load(), s.ancestor.Load()} {
		if c != nil {
			_ = c.Close()
		}
	}
	return s.UDPConn.Close()
}

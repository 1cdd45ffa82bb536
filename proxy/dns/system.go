package dns

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// System asks as the system is configured to: hosts file, search domains, name servers. Go's resolver does the work but
// does not tell how long an answer holds, so the answers are read along on their way.
type System struct {
	// Servers ("host:port") are asked in turn instead of the system's name servers.
	Servers []string
	// Hosts are names that are not asked for; nil: those of the system's own file.
	Hosts *Hosts
}

// Addresses looks up A and AAAA records.
func (r System) Addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	if list := r.Hosts.addresses(host); len(list) > 0 {
		return list, 0, nil
	}
	var t ttl
	addrs, err := r.resolver(&t).LookupNetIP(ctx, "ip", host)
	return addrs, t.value(), err
}

// Services looks up SRV records.
func (r System) Services(ctx context.Context, name string) ([]*net.SRV, time.Duration, error) {
	if len(r.Hosts.addresses(name)) > 0 {
		return nil, 0, nil
	}
	var t ttl
	_, list, err := r.resolver(&t).LookupSRV(ctx, "", "", name)
	return list, t.value(), err
}

// resolver is one for a single question, whose answers it notes in t.
func (r System) resolver(t *ttl) *net.Resolver {
	var tries atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, server string) (net.Conn, error) {
		if n := len(r.Servers); n > 0 {
			server = r.Servers[int(tries.Add(1)-1)%n]
		}
		c, err := (&net.Dialer{}).DialContext(ctx, network, server)
		if err != nil {
			return nil, err
		}
		return t.watch(c), nil
	}}
}

// ttl is the shortest time that a record of the answers seen so far holds.
type ttl struct {
	mu   sync.Mutex // questions for A and AAAA are asked at once
	seen bool
	min  uint32
}

// value is 0 when nothing was seen (the hosts file), and not below a second.
func (t *ttl) value() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.seen {
		return 0
	}
	return max(time.Duration(t.min)*time.Second, time.Second)
}

// note reads the times of the records of a message.
func (t *ttl) note(message []byte) {
	var p dnsmessage.Parser
	if h, err := p.Start(message); err != nil || !h.Response || h.RCode != dnsmessage.RCodeSuccess {
		return
	}
	if err := p.SkipAllQuestions(); err != nil {
		return
	}
	least, seen := uint32(math.MaxUint32), false
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			break
		}
		least, seen = min(least, h.TTL), true
		if p.SkipAnswer() != nil {
			break
		}
	}
	if !seen {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.seen || least < t.min {
		t.seen, t.min = true, least
	}
}

// watch reads along. Go's resolver tells datagrams from streams by whether a connection is a net.PacketConn.
func (t *ttl) watch(c net.Conn) net.Conn {
	if u, ok := c.(*net.UDPConn); ok {
		return &datagrams{u, t}
	}
	return &stream{Conn: c, t: t}
}

type datagrams struct {
	*net.UDPConn
	t *ttl
}

func (d *datagrams) Read(b []byte) (int, error) {
	n, err := d.UDPConn.Read(b)
	if err == nil {
		d.t.note(b[:n])
	}
	return n, err
}

// stream carries messages with their length before them (RFC 1035 §4.2.2).
type stream struct {
	net.Conn
	t   *ttl
	buf []byte
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.buf = append(s.buf, b[:n]...)
	for len(s.buf) >= 2 {
		size := int(binary.BigEndian.Uint16(s.buf))
		if len(s.buf) < 2+size {
			break
		}
		s.t.note(s.buf[2 : 2+size])
		s.buf = s.buf[2+size:]
	}
	return n, err
}

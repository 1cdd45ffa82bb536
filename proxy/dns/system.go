package dns

import (
	"context"
	"encoding/binary"
	"errors"
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
	// Servers ("host:port") are asked instead of the system's name servers: the one that answered last, then the next.
	Servers []string
	// Hosts are names that are not asked for; nil: those of the system's own file.
	Hosts *Hosts
	// SixFirst asks for IPv6 addresses, and for IPv4 ones if there are none; else it is the other way round.
	SixFirst bool

	first atomic.Uint32 // of Servers, the one to begin with
}

// patience is how long one server may take for one question: less than Go's five seconds, so that the next one is asked in time. As Kong's.
const patience = 2 * time.Second

// Addresses looks up A or AAAA records. One family is asked for at a time: a name server that leaves questions for the other one
// unanswered, as some do, must not make the name unknown.
func (r *System) Addresses(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, 0, nil
	}
	if list := r.Hosts.addresses(host); len(list) > 0 {
		return list, 0, nil
	}
	families := [...]string{"ip4", "ip6"}
	if r.SixFirst {
		families = [...]string{"ip6", "ip4"}
	}
	var failed error
	for _, family := range families {
		var t ttl
		addrs, err := r.resolver(&t).LookupNetIP(ctx, family, host)
		if err == nil && len(addrs) > 0 {
			return addrs, t.value(), nil
		}
		if failed == nil || NotFound(failed) { // that there is none is only known when both say so
			failed = t.asked(err)
		}
	}
	return nil, 0, failed
}

// Services looks up SRV records.
func (r *System) Services(ctx context.Context, name string) ([]*net.SRV, time.Duration, error) {
	if len(r.Hosts.addresses(name)) > 0 {
		return nil, 0, nil
	}
	var t ttl
	_, list, err := r.resolver(&t).LookupSRV(ctx, "", "", name)
	return list, t.value(), t.asked(err)
}

// resolver is one for a single question, whose answers it notes in t. Go asks again after a failure or a silence: then it is the next
// server's turn, and the one that answers is asked first from then on.
func (r *System) resolver(t *ttl) *net.Resolver {
	n := uint32(len(r.Servers))
	var turn atomic.Uint32
	turn.Store(r.first.Load())
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, server string) (net.Conn, error) {
		now := turn.Load()
		failed := func() {
			turn.CompareAndSwap(now, now+1)
			r.first.CompareAndSwap(now, now+1)
		}
		if n > 0 {
			server = r.Servers[now%n]
			t.ask(server)
		}
		c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, network, server)
		if err != nil {
			failed()
			return nil, err
		}
		return t.watch(c, failed), nil
	}}
}

// ttl is the shortest time that a record of the answers seen so far holds.
type ttl struct {
	mu     sync.Mutex // Go goes on asking when a look-up is given up
	seen   bool
	min    uint32
	server string // that was asked instead of the system's
}

func (t *ttl) ask(server string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.server = server
}

// asked names the right server in an error.
func (t *ttl) asked(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var e *net.DNSError
	if t.server == "" || !errors.As(err, &e) {
		return err
	}
	named := *e
	named.Server = t.server
	return &named
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

// note reads the times of the records of a message. It tells whether the server did its part: there may be no such name.
func (t *ttl) note(message []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.RCode != dnsmessage.RCodeSuccess {
		return err == nil && h.RCode == dnsmessage.RCodeNameError
	}
	t.read(&p)
	return true
}

func (t *ttl) read(p *dnsmessage.Parser) {
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

// watch reads along, and calls failed if the server does not do its part. Go's resolver tells datagrams from streams by whether a
// connection is a net.PacketConn.
func (t *ttl) watch(c net.Conn, failed func()) net.Conn {
	if u, ok := c.(*net.UDPConn); ok {
		return &datagrams{u, t, failed}
	}
	return &stream{Conn: c, t: t, failed: failed}
}

type datagrams struct {
	*net.UDPConn
	t      *ttl
	failed func()
}

func (d *datagrams) SetDeadline(by time.Time) error { return d.UDPConn.SetDeadline(soon(by)) }

func (d *datagrams) Read(b []byte) (int, error) {
	n, err := d.UDPConn.Read(b)
	if err != nil || !d.t.note(b[:n]) {
		d.failed()
	}
	return n, err
}

// stream carries messages with their length before them (RFC 1035 §4.2.2).
type stream struct {
	net.Conn
	t      *ttl
	failed func()
	buf    []byte
}

func (s *stream) SetDeadline(by time.Time) error { return s.Conn.SetDeadline(soon(by)) }

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if err != nil {
		s.failed()
	}
	s.buf = append(s.buf, b[:n]...)
	for len(s.buf) >= 2 {
		size := int(binary.BigEndian.Uint16(s.buf))
		if len(s.buf) < 2+size {
			break
		}
		if !s.t.note(s.buf[2 : 2+size]) {
			s.failed()
		}
		s.buf = s.buf[2+size:]
	}
	return n, err
}

// soon is the end of a server's turn.
func soon(by time.Time) time.Time {
	if end := time.Now().Add(patience); end.Before(by) {
		return end
	}
	return by
}

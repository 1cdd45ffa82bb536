package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers on loopback: UDP and TCP on one port. Answers for names that begin with "big" are truncated over UDP.
func nameserver(t *testing.T) string {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	for range 20 { // the TCP port of the same number may be taken
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		udp.Close()
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := reply(t, buf[:n], true); a != nil {
				_, _ = udp.WriteTo(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, q); err != nil {
					return
				}
				a := reply(t, q, false)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}()
		}
	}()
	return udp.LocalAddr().String()
}

func reply(t *testing.T, question []byte, datagram bool) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		t.Error(err)
		return nil
	}
	q := m.Questions[0]
	if q.Type == dnsmessage.TypeAAAA && strings.HasPrefix(q.Name.String(), "four.") {
		return nil
	}
	m.Header.Response, m.Additionals = true, nil
	add := func(name string, ttl uint32, body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body,
		})
	}
	name := q.Name.String()
	switch {
	case strings.HasPrefix(name, "big.") && datagram:
		m.Header.Truncated = true
	case strings.HasPrefix(name, "none."):
		m.Header.RCode = dnsmessage.RCodeNameError
	case strings.HasPrefix(name, "broken."):
		m.Header.RCode = dnsmessage.RCodeServerFailure
	case q.Type == dnsmessage.TypeA && strings.HasPrefix(name, "alias."):
		add(name, 7, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("real.test.")})
		add("real.test.", 100, &dnsmessage.AResource{A: [4]byte{10, 0, 0, 8}})
	case q.Type == dnsmessage.TypeA && strings.HasPrefix(name, "zero."):
		add(name, 0, &dnsmessage.AResource{A: [4]byte{10, 0, 0, 9}})
	case q.Type == dnsmessage.TypeA && !strings.HasPrefix(name, "only6."):
		add(name, 60, &dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}})
		add(name, 45, &dnsmessage.AResource{A: [4]byte{10, 0, 0, 2}})
	case q.Type == dnsmessage.TypeAAAA && (strings.HasPrefix(name, "six.") || strings.HasPrefix(name, "only6.")):
		add(name, 30, &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 1, 15: 1}})
	case q.Type == dnsmessage.TypeSRV:
		add(name, 20, &dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 3, Target: dnsmessage.MustNewName("s.test.")})
	}
	out, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return out
}

func TestSystem(t *testing.T) {
	r := &System{Servers: []string{nameserver(t)}}
	for _, tt := range []struct {
		host, want string
		ttl        time.Duration
	}{
		{"plain.test.", "[10.0.0.1 10.0.0.2]", 45 * time.Second},
		{"four.test.", "[10.0.0.1 10.0.0.2]", 45 * time.Second},
		{"six.test.", "[10.0.0.1 10.0.0.2]", 45 * time.Second},
		{"only6.test.", "[2001::1]", 30 * time.Second},
		{"alias.test.", "[10.0.0.8]", 7 * time.Second},
		{"big.test.", "[10.0.0.1 10.0.0.2]", 45 * time.Second},
		{"zero.test.", "[10.0.0.9]", time.Second},
		{"127.0.0.5", "[127.0.0.5]", 0},
	} {
		t.Run(tt.host, func(t *testing.T) {
			got, ttl, err := r.Addresses(t.Context(), tt.host)
			if err != nil || fmt.Sprint(got) != tt.want || ttl != tt.ttl {
				t.Errorf("got %v, %v, %v", got, ttl, err)
			}
		})
	}
	list, ttl, err := r.Services(t.Context(), "_a._tcp.test.")
	if err != nil || len(list) != 1 || *list[0] != (net.SRV{Target: "s.test.", Port: 3, Priority: 1, Weight: 2}) || ttl != 20*time.Second {
		t.Errorf("got %v, %v, %v", list, ttl, err)
	}
	if _, _, err := r.Addresses(t.Context(), "none.test."); !NotFound(err) {
		t.Errorf("got %v", err)
	}
	if _, _, err := r.Addresses(t.Context(), "broken.test."); err == nil || NotFound(err) || !strings.Contains(err.Error(), r.Servers[0]) {
		t.Errorf("got %v", err)
	}
	var e *net.DNSError
	if _, _, err := (&System{Servers: []string{"127.0.0.1:1"}}).Addresses(t.Context(), "plain.test."); !errors.As(err, &e) || NotFound(err) {
		t.Errorf("got %v", err)
	}
}

// TestServers: the next server is asked when one is silent or fails, and then it is the one that is asked first.
func TestServers(t *testing.T) {
	good := nameserver(t)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := &System{Servers: []string{silent.LocalAddr().String(), good}}
	for _, host := range []string{"plain.test.", "big.test.", "none.test.", "zero.test."} {
		if _, _, err := r.Addresses(t.Context(), host); (err != nil) != (host == "none.test.") {
			t.Errorf("%s: %v", host, err)
		}
		if _, _, err := r.Services(t.Context(), "_a._tcp.test."); err != nil {
			t.Error(err)
		}
	}
	if r.first.Load() != 1 {
		t.Errorf("asked first is %d", r.first.Load())
	}
}

// TestSixFirst: which family counts when there are both.
func TestSixFirst(t *testing.T) {
	r := &System{Servers: []string{nameserver(t)}, SixFirst: true}
	for host, want := range map[string]string{"six.test.": "[2001::1]", "plain.test.": "[10.0.0.1 10.0.0.2]"} {
		if got, _, err := r.Addresses(t.Context(), host); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
}

// FuzzTTL: whatever a name server sends, reading along does no harm.
func FuzzTTL(f *testing.F) {
	q := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("alias.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	packed, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reply(nil, packed, true))
	f.Add([]byte{0, 1, 0x80, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var l ttl
		l.note(b)
		if v := l.value(); v != 0 && v < time.Second {
			t.Fatalf("holds %v", v)
		}
		message := append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		var again ttl
		s := stream{Conn: &fixed{b: message}, t: &again, failed: func() {}}
		for range len(message) {
			_, _ = s.Read(make([]byte, 7))
		}
		if len(b) <= 0xffff && again.value() != l.value() {
			t.Fatalf("as a stream %v, as a datagram %v", again.value(), l.value())
		}
	})
}

// fixed is a connection that yields these bytes.
type fixed struct {
	net.Conn
	b []byte
}

func (f *fixed) Read(p []byte) (int, error) {
	n := copy(p, f.b)
	f.b = f.b[n:]
	return n, nil
}

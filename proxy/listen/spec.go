// Package listen opens the sockets clients connect to and brings every connection to the point where HTTP begins: it
// tells TLS from plain text by the first byte, shakes hands, and bounds number and patience.
//
// It reads no HTTP and knows no routes.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec is one address to listen on, as in Kong's proxy_listen: "0.0.0.0:8443 http2 ssl reuseport backlog=16384".
type Spec struct {
	Address       string // host:port
	SSL           bool
	HTTP2         bool
	HTTP3         bool // over QUIC, on the UDP port of the same number; proxy_listen only
	ProxyProtocol bool // every connection must begin with a header of the PROXY protocol
	UDP           bool // stream_listen only
	ReusePort     bool
	Deferred      bool
	Backlog       int    // 0: the system's net.core.somaxconn
	IPv6Only      string // "", "on" or "off"; an IPv6 address is for IPv6 alone unless it is off, as in nginx
	KeepAlive     string // so_keepalive: "", "on", "off" or idle:interval:count
}

// String is the spec as it would be written, without the flags that only tune the socket.
func (s Spec) String() string {
	text := s.Address
	for _, f := range []struct {
		set  bool
		name string
	}{{s.HTTP2, " http2"}, {s.HTTP3, " http3"}, {s.SSL, " ssl"}, {s.UDP, " udp"}, {s.ProxyProtocol, " proxy_protocol"}} {
		if f.set {
			text += f.name
		}
	}
	return text
}

// Parse reads the comma-separated value of a *_listen setting. "off" is no address at all.
func Parse(value string) ([]Spec, error) {
	if strings.TrimSpace(value) == "off" {
		return nil, nil
	}
	var specs []Spec
	for item := range strings.SplitSeq(value, ",") {
		s, err := parseSpec(item)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", strings.TrimSpace(item), err)
		}
		specs = append(specs, s)
	}
	return specs, nil
}

func parseSpec(item string) (Spec, error) {
	words := strings.Fields(item)
	if len(words) == 0 {
		return Spec{}, errors.New("an address is missing; write host:port, or off")
	}
	if strings.HasPrefix(words[0], "unix:") {
		return Spec{}, errors.New("a Unix socket is not supported; write host:port, for example 127.0.0.1:8000")
	}
	host, port, err := net.SplitHostPort(words[0])
	if err != nil {
		return Spec{}, errors.New("not an address: write host:port such as 0.0.0.0:8000 or [::]:8000, or off")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Spec{}, fmt.Errorf("port %q is not a number between 0 and 65535", port)
	}
	s := Spec{Address: net.JoinHostPort(host, strconv.FormatUint(n, 10))}
	for _, w := range words[1:] {
		if err := s.flag(w); err != nil {
			return Spec{}, err
		}
	}
	if s.UDP && (s.SSL || s.HTTP2 || s.HTTP3 || s.ProxyProtocol || s.Deferred || s.Backlog != 0 || s.KeepAlive != "") {
		return Spec{}, errors.New("udp goes with reuseport, bind and ipv6only only: the other flags are for TCP")
	}
	if s.HTTP3 && !s.SSL {
		return Spec{}, fmt.Errorf("http3 is for listeners with TLS: write %s ssl http3", s.Address)
	}
	if s.HTTP3 && s.ProxyProtocol {
		return Spec{}, errors.New("http3 does not go with proxy_protocol, which is for TCP: QUIC would come without it; use two addresses")
	}
	return s, nil
}

// flag takes one of Kong's flags. Those of nginx's listen that Kong does not pass on are errors, as there.
func (s *Spec) flag(w string) error {
	name, arg, hasArg := strings.Cut(w, "=")
	onOff := arg == "on" || arg == "off"
	switch {
	case w == "ssl":
		s.SSL = true
	case w == "http2":
		s.HTTP2 = true
	case w == "http3", w == "quic": // nginx's word
		s.HTTP3 = true
	case w == "udp":
		s.UDP = true
	case w == "proxy_protocol":
		s.ProxyProtocol = true
	case w == "reuseport":
		s.ReusePort = true
	case w == "deferred":
		s.Deferred = true
	case w == "bind": // every address has a socket of its own anyway
	case name == "backlog" && hasArg:
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > 1<<20 {
			return fmt.Errorf("backlog: %q is not a number from 1 to %d", arg, 1<<20)
		}
		s.Backlog = n
	case name == "ipv6only" && onOff:
		if a, err := netip.ParseAddr(hostOf(s.Address)); err == nil && a.Is4() {
			return errors.New("ipv6only: the address is an IPv4 one")
		}
		s.IPv6Only = arg
	case name == "so_keepalive" && hasArg:
		s.KeepAlive = arg
		if _, err := s.keepAlive(); !onOff && err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown flag %q; known: ssl, http2, http3, proxy_protocol, reuseport, deferred, bind, backlog=n, ipv6only=on|off, so_keepalive=on|off|idle:interval:count", w)
	}
	return nil
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// keepAlive is so_keepalive; nil without it. Times without a unit are seconds, what is left out is the system's (nginx, listen).
func (s Spec) keepAlive() (*net.KeepAliveConfig, error) {
	c := &net.KeepAliveConfig{Enable: s.KeepAlive != "off", Idle: -1, Interval: -1, Count: -1}
	switch s.KeepAlive {
	case "":
		return nil, nil
	case "on", "off":
		return c, nil
	}
	bad := fmt.Errorf("so_keepalive: %q is not on, off, or idle:interval:count such as 30m::10", s.KeepAlive)
	parts := strings.Split(s.KeepAlive, ":")
	if len(parts) != 3 || s.KeepAlive == "::" {
		return nil, bad
	}
	for i, to := range []*time.Duration{&c.Idle, &c.Interval} {
		if parts[i] == "" {
			continue
		}
		d, err := time.ParseDuration(parts[i])
		if n, nerr := strconv.ParseUint(parts[i], 10, 16); nerr == nil {
			d, err = time.Duration(n)*time.Second, nil
		}
		if err != nil || d < time.Second || d > 32767*time.Second {
			return nil, bad
		}
		*to = d
	}
	if parts[2] != "" {
		n, err := strconv.ParseUint(parts[2], 10, 8)
		if err != nil || n < 1 || n > 127 { // TCP_KEEPCNT
			return nil, bad
		}
		c.Count = int(n)
	}
	return c, nil
}

// network keeps the families apart as nginx does: 0.0.0.0:8000 and [::]:8000 are two listeners, not one.
func (s Spec) network() string {
	name := "tcp"
	if s.UDP {
		name = "udp"
	}
	a, err := netip.ParseAddr(hostOf(s.Address))
	switch {
	case err == nil && a.Is4():
		return name + "4"
	case s.IPv6Only == "on" || err == nil && s.IPv6Only == "":
		return name + "6"
	}
	return name
}

// ListenPacket opens the socket of a spec with UDP, or takes it if it is inherited.
func (s Spec) ListenPacket(ctx context.Context, from *Inherited) (net.PacketConn, error) {
	if c, err := from.packetConn(s.network(), s.Address); c != nil || err != nil {
		return c, err
	}
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return s.options(raw, s.ReusePort) }}
	conn, err := c.ListenPacket(ctx, s.network(), s.Address)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", s, err)
	}
	return conn, nil
}

// quic is the UDP side of a spec with HTTP3.
func (s Spec) quic() Spec {
	return Spec{Address: s.Address, UDP: true, IPv6Only: s.IPv6Only, ReusePort: s.ReusePort}
}

// QUICSocketName is how Inherited knows the UDP socket of a spec with HTTP3.
func (s Spec) QUICSocketName() string { return s.quic().SocketName() }

// ListenQUIC opens the UDP socket of a spec with HTTP3, or takes it if it is inherited. The port is that of the TCP socket.
func (s Spec) ListenQUIC(ctx context.Context, port int, from *Inherited) (net.PacketConn, error) {
	q := s.quic()
	if c, err := from.packetConn(q.network(), q.Address); c != nil || err != nil {
		return c, err
	}
	q.Address = net.JoinHostPort(hostOf(q.Address), strconv.Itoa(port))
	return q.ListenPacket(ctx, nil)
}

// Tune gives an accepted connection the spec's so_keepalive.
func (s Spec) Tune(nc net.Conn) {
	c, err := s.keepAlive()
	if t, ok := nc.(*net.TCPConn); ok && c != nil && err == nil {
		_ = t.SetKeepAliveConfig(*c) // a connection that has just gone fails at its first read
	}
}

// Listen opens the socket, or takes it if it is inherited.
func (s Spec) Listen(ctx context.Context, from *Inherited) (net.Listener, error) {
	ln, err := from.listener(s.network(), s.Address)
	if ln == nil && err == nil {
		c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return s.options(raw, s.ReusePort) }}
		c.SetMultipathTCP(false) // its listening sockets pass few of their options on to those they accept
		ln, err = c.Listen(ctx, s.network(), s.Address)
	} else if err == nil {
		err = controlled(ln, func(raw syscall.RawConn) error { return s.options(raw, false) }) // the port is bound already
	}
	if err == nil && s.Backlog > 0 {
		// On a listening socket it only changes the length of the queue (listen(2)).
		err = controlled(ln, func(raw syscall.RawConn) error {
			return control(raw, func(fd int) error { return unix.Listen(fd, s.Backlog) })
		})
	}
	if err != nil {
		if ln != nil {
			_ = ln.Close()
		}
		return nil, fmt.Errorf("listen %s: %w", s, err)
	}
	return ln, nil
}

// unsent is how many bytes the kernel takes for a client before it can send them. Its own bound is tcp_wmem, megabytes for each connection: a
// thousand clients that read slowly would exhaust tcp_mem, and with it every connection of the machine. It is enough to keep the network busy while
// the gateway fetches the next piece: what is on its way does not count. With twice as much the gateway reads on for clients that do not, and the
// upstream's window grows as if they did.
const unsent = 48 << 10

// options sets the socket's options before it listens. The accepted ones inherit them.
func (s Spec) options(raw syscall.RawConn, reusePort bool) error {
	return control(raw, func(fd int) error {
		if reusePort {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
				return err
			}
		}
		if s.UDP {
			return nil
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) // what has no such option works as before
		deferred := 0
		if s.Deferred {
			deferred = 1 // second
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferred)
	})
}

// SocketName is how Inherited knows the socket.
func (s Spec) SocketName() string { return socketName(s.network(), s.Address) }

// control runs f with the descriptor.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func controlled(socket any, f func(syscall.RawConn) error) error {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return f(raw)
}

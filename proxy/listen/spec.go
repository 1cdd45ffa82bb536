// Package listen opens the sockets clients connect to and brings every connection to the point where HTTP begins: it
// tells TLS from plain text by the first byte, shakes hands, and bounds number and patience.
//
// It reads no HTTP and knows no routes.
package listen

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec is one address to listen on, as in Kong's proxy_listen: "0.0.0.0:8443 http2 ssl reuseport backlog=16384".
type Spec struct {
	Address   string // host:port
	SSL       bool
	HTTP2     bool
	ReusePort bool
	Deferred  bool
	IPv6Only  bool
	KeepAlive string   // so_keepalive: "", "on" or "off"
	Ignored   []string // flags that have no meaning here
}

// String is the spec as it would be written.
func (s Spec) String() string {
	text := s.Address
	if s.HTTP2 {
		text += " http2"
	}
	if s.SSL {
		text += " ssl"
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
		return Spec{}, fmt.Errorf("an address is missing; write host:port, or off")
	}
	host, port, err := net.SplitHostPort(words[0])
	if err != nil {
		return Spec{}, fmt.Errorf("not an address: write host:port such as 0.0.0.0:8000 or [::]:8000, or off")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Spec{}, fmt.Errorf("port %q is not a number between 0 and 65535", port)
	} else {
		port = strconv.FormatUint(n, 10)
	}
	s := Spec{Address: net.JoinHostPort(host, port)}
	for _, w := range words[1:] {
		name, arg, hasArg := strings.Cut(w, "=")
		switch {
		case w == "ssl":
			s.SSL = true
		case w == "http2":
			s.HTTP2 = true
		case w == "reuseport":
			s.ReusePort = true
		case w == "deferred":
			s.Deferred = true
		case w == "proxy_protocol":
			return Spec{}, fmt.Errorf("proxy_protocol is not supported yet; take the client's address from a header of a trusted proxy (trusted_ips, real_ip_header)")
		case w == "bind":
			s.Ignored = append(s.Ignored, w) // every address is bound on its own anyway
		case name == "backlog" && hasArg:
			if n, err := strconv.Atoi(arg); err != nil || n < 1 {
				return Spec{}, fmt.Errorf("backlog: %q is not a positive number", arg)
			}
			s.Ignored = append(s.Ignored, w) // the system's net.core.somaxconn is used
		case name == "ipv6only" && (arg == "on" || arg == "off"):
			s.IPv6Only = arg == "on"
		case name == "so_keepalive" && (arg == "on" || arg == "off"):
			s.KeepAlive = arg
		case name == "so_keepalive" && strings.Count(arg, ":") == 2:
			s.KeepAlive = "on"
			s.Ignored = append(s.Ignored, w)
		default:
			return Spec{}, fmt.Errorf("unknown flag %q; known: ssl, http2, reuseport, deferred, bind, backlog=n, ipv6only=on|off, so_keepalive=on|off", w)
		}
	}
	return s, nil
}

// Listen opens the socket.
func (s Spec) Listen(ctx context.Context) (net.Listener, error) {
	network := "tcp"
	if s.IPv6Only {
		network = "tcp6"
	}
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		set := func(fd uintptr, level, opt, value int) {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), level, opt, value)
			}
		}
		control := raw.Control(func(fd uintptr) {
			if s.ReusePort {
				set(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
			if s.Deferred {
				set(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
			}
		})
		if control != nil {
			return control
		}
		return err
	}}
	if s.KeepAlive == "off" {
		c.KeepAlive = -1
	}
	ln, err := c.Listen(ctx, network, s.Address)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", s, err)
	}
	return ln, nil
}

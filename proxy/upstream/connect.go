package upstream

import (
	"net"
	"net/netip"
	"strings"

	"concord/proxy/exchange"
	"concord/proxy/proxyproto"
)

// Connect opens a connection of a stream session to x.Upstream, with TLS when its Scheme is "tls"; network is "tcp" or "udp". It is
// the caller's alone. A connection that cannot be made is tried again as for RoundTrip. The error is an *Error.
func (t *Transport) Connect(x *exchange.Exchange, network string) (net.Conn, error) {
	turn := 0
	for try := 0; ; try++ {
		x.Tries = try + 1
		nc, err := t.connect(x, network, &turn, try)
		if err == nil {
			return nc, nil
		}
		if try >= x.Upstream.Retries || err.Kind == Refused || err.Kind == Resolve {
			return nil, err
		}
		if x.Upstream.Retry != nil && x.Upstream.Retry(x, err) != nil {
			return nil, err
		}
	}
}

func (t *Transport) connect(x *exchange.Exchange, network string, turn *int, try int) (net.Conn, *Error) {
	u := &x.Upstream
	ep := &endpoint{}
	if a, err := netip.ParseAddr(strings.Trim(u.Host, "[]")); err == nil {
		x.Peer = netip.AddrPortFrom(a.Unmap(), uint16(u.Port))
	} else {
		places, err := t.names.lookup(u.Host, u.ConnectTimeout)
		if err != nil {
			return nil, &Error{Kind: Resolve, Op: "resolve " + u.Host, Err: err}
		}
		if try == 0 {
			*turn, x.Peer = int(t.turn.Add(1)%uint32(len(places))), netip.AddrPort{}
		}
		x.Peer = place(places, *turn+try, u.Port, x.Peer)
	}
	if u.Scheme == "tls" {
		base := u.TLS
		if base == nil {
			base = t.o.TLS
		}
		ep.key.tls, ep.config = true, base.Clone()
		ep.config.ServerName = serverName(u.HostHeader)
	}
	return t.dial(x, network, ep, x.Peer)
}

// proxyHeader is what the PROXY protocol says of the client. Behind a proxy that tells only its address, its port is unknown.
func proxyHeader(x *exchange.Exchange) []byte {
	h := proxyproto.Header{Source: netip.AddrPortFrom(x.ClientIP, 0), Destination: x.Conn.Local}
	for _, known := range []netip.AddrPort{x.Conn.Peer, x.Conn.Proxied} {
		if known.Addr().Unmap() == x.ClientIP {
			h.Source = netip.AddrPortFrom(x.ClientIP, known.Port())
		}
	}
	if x.Upstream.ProxyProtocol == 1 {
		return h.AppendV1(nil)
	}
	return h.AppendV2(nil)
}

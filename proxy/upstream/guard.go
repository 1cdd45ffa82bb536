package upstream

import (
	"fmt"
	"net"
	"net/netip"
)

// KeepOut is a Guard that refuses the node's own listeners: whoever may name an upstream, or the DNS name behind it,
// must not reach the Admin API or the cluster through the proxy. own yields the listeners; one on the unspecified address
// is at every address of this host.
func KeepOut(own func() []netip.AddrPort) func(netip.AddrPort) error {
	return func(at netip.AddrPort) error {
		addr := at.Addr().Unmap().WithZone("")
		for _, l := range own() {
			if l.Port() != at.Port() {
				continue
			}
			host := l.Addr().Unmap()
			own := addr == host || addr.IsUnspecified()
			if !own && host.IsUnspecified() {
				var err error
				if own, err = local(addr); err != nil { // fail closed
					return fmt.Errorf("whether %s is a listener of this gateway itself: %w", at, err)
				}
			}
			if own {
				return fmt.Errorf("%s is a listener of this gateway itself, which the proxy does not reach: point the service at another address", at)
			}
		}
		return nil
	}
}

// local says whether an address is one of this host's. Interfaces are asked each time: they change, and the question
// comes up only for a dial to one of the node's own ports.
func local(addr netip.Addr) (bool, error) {
	if addr.IsLoopback() {
		return true, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false, err
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
			return true, nil
		}
	}
	return false, nil
}

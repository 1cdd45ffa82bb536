package upstream

import (
	"net/netip"
	"testing"
)

func TestKeepOut(t *testing.T) {
	guard := KeepOut(func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8001"), netip.MustParseAddrPort("0.0.0.0:7373"), netip.MustParseAddrPort("[::]:7946")}
	})
	for at, refused := range map[string]bool{
		"127.0.0.1:8001":          true,
		"[::ffff:127.0.0.1]:8001": true,
		"0.0.0.0:8001":            true, // Linux connects it to loopback
		"[::]:8001":               true,
		"127.0.0.2:8001":          false, // nothing of ours listens there
		"127.0.0.1:8002":          false,
		"127.0.0.1:7373":          true,
		"127.9.9.9:7373":          true,
		"[::1]:7946":              true,
		"[::1%lo]:7946":           true,
		"192.0.2.1:7373":          false, // another host
	} {
		if err := guard(netip.MustParseAddrPort(at)); (err != nil) != refused {
			t.Errorf("%s: %v", at, err)
		}
	}
}

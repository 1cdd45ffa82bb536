package upstream

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"concord/proxy/exchange"
)

// maxEndpoints bounds the endpoints: with preserve_host their server names come from clients.
const maxEndpoints = 16384

// endpointKey is what must be equal for two exchanges to share connections.
type endpointKey struct {
	host   string
	port   int
	tls    bool
	sni    string
	config *tls.Config
	http2  bool
}

// endpoint is one place to send to: a name or address, a port, and how to speak TLS. Its connections are kept by address.
type endpoint struct {
	key    endpointKey
	config *tls.Config
	// literal is where to dial when the host is an address.
	literal netip.AddrPort
	used    atomic.Bool   // since the last sweep
	turn    atomic.Uint32 // which of several addresses is first

	mu   sync.Mutex
	idle []*conn // by the time they were put back, oldest first
	gone bool
}

func (t *Transport) endpoint(x *exchange.Exchange) *endpoint {
	u := &x.Upstream
	k := endpointKey{host: u.Host, port: u.Port, http2: u.HTTP2}
	if u.Scheme == "https" {
		k.tls, k.sni, k.config = true, serverName(u.HostHeader), u.TLS
	}
	t.mu.RLock()
	e := t.endpoints[k]
	t.mu.RUnlock()
	if e == nil {
		e = t.add(k)
	}
	if !e.used.Load() {
		e.used.Store(true)
	}
	return e
}

func (t *Transport) add(k endpointKey) *endpoint {
	k.host, k.sni = strings.Clone(k.host), strings.Clone(k.sni)
	e := &endpoint{key: k}
	if a, err := netip.ParseAddr(strings.Trim(k.host, "[]")); err == nil {
		e.literal = netip.AddrPortFrom(a.Unmap(), uint16(k.port))
	}
	if k.tls {
		base := k.config
		if base == nil {
			base = t.o.TLS
		}
		e.config = base.Clone()
		e.config.ServerName = k.sni
		e.config.NextProtos = []string{"http/1.1"}
		if k.http2 {
			e.config.NextProtos = []string{"h2"}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.endpoints[k]; old != nil {
		return old
	}
	if len(t.endpoints) >= maxEndpoints {
		for k, old := range t.endpoints { // any will do: it is built again when it is needed
			old.close()
			delete(t.endpoints, k)
			break
		}
	}
	t.endpoints[k] = e
	return e
}

// first spreads exchanges over the addresses of a name.
func (e *endpoint) first(addrs int) int {
	if addrs < 2 {
		return 0
	}
	return int(e.turn.Add(1) % uint32(addrs))
}

// get takes the connection that was used last: the others may grow old and go.
func (e *endpoint) get(at netip.AddrPort) *conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := len(e.idle) - 1
	for i := last; i >= 0; i-- {
		if c := e.idle[i]; c.at == at {
			copy(e.idle[i:], e.idle[i+1:])
			e.idle[last] = nil
			e.idle = e.idle[:last]
			return c
		}
	}
	return nil
}

// put keeps a connection; false: there are enough.
func (e *endpoint) put(c *conn, now int64, maxIdle int) bool {
	c.since = now
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone || len(e.idle) >= maxIdle {
		return false
	}
	e.idle = append(e.idle, c)
	return true
}

func (e *endpoint) close() {
	e.mu.Lock()
	idle := e.idle
	e.idle, e.gone = nil, true
	e.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
}

// shed closes all kept connections of HTTP/1.1, to have room for one that is needed. It does so ten times a second at most, lest requests that fail in
// great number cost the others what is kept for them; false: just done.
func (t *Transport) shed() bool {
	now := t.o.Clock.Millis()
	if last := t.shedAt.Load(); now < last+100 || !t.shedAt.CompareAndSwap(last, now) {
		return false
	}
	t.sweep(now)
	return true
}

// sweep closes connections that were not used since the limit and forgets endpoints without any.
func (t *Transport) sweep(limit int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, e := range t.endpoints {
		e.mu.Lock()
		n := 0
		for n < len(e.idle) && e.idle[n].since <= limit {
			n++
		}
		var old []*conn
		if n > 0 {
			old = append(old, e.idle[:n]...)
			e.idle = slices.Delete(e.idle, 0, n)
		}
		if len(e.idle) == 0 && n == 0 && !e.used.Swap(false) {
			e.gone = true
			delete(t.endpoints, key)
		}
		e.mu.Unlock()
		for _, c := range old {
			_ = c.Close()
		}
	}
	t.names.sweep(time.Now())
}

package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"concord/cmd/concord/settings"
	"concord/proxy/h1"
	"concord/proxy/h3"
	"concord/proxy/listen"
	"concord/proxy/stream"
)

// sockets are the open listeners of a node. Nothing is accepted before their Serve.
type sockets struct {
	proxy, admin, status *listen.Group
	stream               *stream.Server
	quic                 quicListeners
	quicTLS              *tls.Config // of proxy_listen
}

// quicListeners are the UDP sockets of proxy_listen by their name. A reload keeps those whose address stays, with the connections on them.
type quicListeners map[string]*h3.Listener

// Sockets gives the sockets out.
func (q quicListeners) Sockets(give func(name string, fd int) error) error {
	for _, l := range q {
		if err := l.Socket(give); err != nil {
			return err
		}
	}
	return nil
}

// Stop accepts no more connections.
func (q quicListeners) Stop() {
	for _, l := range q {
		l.Stop()
	}
}

// Close closes the sockets.
func (q quicListeners) Close() {
	for _, l := range q {
		l.Close()
	}
}

// quicSetting is what the sockets of HTTP/3 are handed over as.
const quicSetting = "proxy_listen http3"

// group is a set of listeners that can go over to another process, or to another group.
type group interface {
	Sockets(give func(name string, fd int) error) error
	Stop()
	Close()
}

// groups are the listeners by the setting they are of.
func (s *sockets) groups() map[string]group {
	all := map[string]group{}
	for setting, g := range map[string]*listen.Group{"proxy_listen": s.proxy, "admin_listen": s.admin, "status_listen": s.status} {
		if g != nil {
			all[setting] = g
		}
	}
	if s.stream != nil {
		all["stream_listen"] = s.stream
	}
	if len(s.quic) > 0 {
		all[quicSetting] = s.quic
	}
	return all
}

// stop stops accepting; settle waits until requests have begun on all connections, then closes those on which none has.
func (s *sockets) stop() {
	for _, g := range s.groups() {
		g.Stop()
	}
}

func (s *sockets) settle(ctx context.Context) {
	for _, g := range []*listen.Group{s.proxy, s.admin, s.status} {
		g.Settled(ctx)
	}
	for _, l := range s.quic {
		l.Settled(ctx)
	}
	for setting, g := range s.groups() {
		if setting != quicSetting { // its connections need the socket until they end
			g.Close()
		}
	}
}

// copies are the sockets for others to use, without those of HTTP/3, which stay; Close frees those that were not.
func (s *sockets) copies() (map[string]*listen.Inherited, error) {
	all := map[string]*listen.Inherited{}
	for setting, g := range s.groups() {
		if setting == quicSetting {
			continue
		}
		in := &listen.Inherited{}
		all[setting] = in
		err := g.Sockets(func(name string, fd int) error {
			copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				in.Add(name, copied)
			}
			return err
		})
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// servers are where connections go.
type servers struct {
	proxy, admin, status listen.ConnServer
	quic                 h3.ConnServer
	conns                *atomic.Int64 // of proxy
}

// choose picks the certificate for a client of proxy_listen, nil for that of the settings.
type choose func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// openSockets opens all listeners, or none; it takes those that are inherited, and those of HTTP/3 that present has. tune has the last word on
// handshakes of clients; streams is where sessions are counted.
func openSockets(s *settings.Settings, present quicListeners, to servers, certificate choose, tune func(*tls.Config, *settings.Settings), streams *stream.Stats, hostname string, inherited func(setting string) *listen.Inherited, log *slog.Logger) (*sockets, error) {
	proxyCert, err := ownCertificate(s.SSLCert, s.SSLCertKey, s.Path("ssl"), hostname)
	if err != nil {
		return nil, fmt.Errorf("ssl_cert: %w", err)
	}
	adminCert, err := ownCertificate(s.AdminSSLCert, s.AdminSSLCertKey, s.Path("ssl"), hostname)
	if err != nil {
		return nil, fmt.Errorf("admin_ssl_cert: %w", err)
	}
	o := listen.TLSOptions{Default: proxyCert, Choose: certificate, CipherSuites: s.CipherSuites()}
	o.Min, o.Max = s.TLSVersions()
	proxyTLS := listen.TLSConfig(o)
	tune(proxyTLS, s)
	o.Default, o.Choose = adminCert, nil
	adminTLS := listen.TLSConfig(o)
	adminTLS.NextProtos = []string{"h2", "http/1.1", "http/1.0"}
	streamTLS := proxyTLS.Clone()
	streamTLS.NextProtos, streamTLS.GetConfigForClient = nil, nil // nobody is asked for certificates in streams
	out := &sockets{}
	for _, g := range []struct {
		key    string
		specs  []listen.Spec
		server listen.ConnServer
		tls    *tls.Config
		to     **listen.Group
	}{
		{"proxy_listen", s.ProxyListen, to.proxy, proxyTLS, &out.proxy},
		{"admin_listen", s.AdminListen, to.admin, adminTLS, &out.admin},
		{"status_listen", s.StatusListen, to.status, adminTLS, &out.status},
	} {
		o := listen.Options{Specs: g.specs, Server: g.server, TLS: g.tls, Log: log, FirstByteTimeout: s.ClientHeaderTimeout}
		o.Inherited, o.MaxConns, o.Files = inherited(g.key), controlConns(), controlFiles()
		if g.to == &out.proxy {
			o.MaxConns, o.Conns, o.Files = min(s.MaxConns, clientFiles()), to.conns, trafficFiles()
		}
		if *g.to, err = listen.Open(context.Background(), o); err != nil {
			out.close()
			return nil, cannotOpen(g.key, err)
		}
	}
	if out.stream, err = stream.Open(context.Background(), stream.Options{
		Specs: s.StreamListen, TLS: streamTLS, Inherited: inherited("stream_listen"), Log: log,
		MaxSessions: min(s.StreamMaxConns, clientFiles()), Files: trafficFiles(), MaxClients: s.StreamMaxClients, Stats: streams,
	}); err != nil {
		out.close()
		return nil, cannotOpen("stream_listen", err)
	}
	if err := out.openQUIC(s, present, to.quic, proxyTLS, resetSecret(proxyCert, s.Prefix, hostname), inherited(quicSetting), log); err != nil {
		out.close()
		return nil, cannotOpen("proxy_listen", err)
	}
	return out, nil
}

// Of the files that the process may open, connections of clients can take three quarters, and together with those to upstreams seven eighths. Clients
// of the Admin API can take a sixteenth, those of the status as many, and none the last sixteenth, which is for the other nodes, health checks, name
// servers and files. So nobody's idle clients, nor requests to an upstream that does not answer, stop what others do.

func clientFiles() int           { return maxFiles() / 4 * 3 }
func trafficFiles() listen.Files { return listen.Files(maxFiles() / 8 * 7) }
func controlFiles() listen.Files { return listen.Files(maxFiles() / 16 * 15) }
func controlConns() int          { return min(maxFiles()/16, 65536) }

func maxFiles() int {
	var most syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most) != nil {
		return math.MaxInt32
	}
	return int(max(16, min(most.Cur, math.MaxInt32)))
}

// openQUIC opens the listeners of HTTP/3.
func (s *sockets) openQUIC(set *settings.Settings, present quicListeners, to h3.ConnServer, config *tls.Config, secret []byte, inherited *listen.Inherited, log *slog.Logger) error {
	s.quicTLS = config
	opened := quicListeners{}
	all := quicListeners{}
	for i, spec := range set.ProxyListen {
		if !spec.HTTP3 {
			continue
		}
		name := spec.QUICSocketName()
		if l := present[name]; l != nil {
			all[name] = l
			continue
		}
		l, err := h3.Listen(context.Background(), h3.ListenOptions{
			Spec: spec, Port: portOf(s.proxy.Addrs()[i]), Server: to, TLS: config, Gate: s.proxy, Secret: secret,
			IdleTimeout: set.KeepaliveTimeout, Inherited: inherited, Log: log,
		})
		if err != nil {
			opened.Close()
			return err
		}
		all[name], opened[name] = l, l
	}
	s.quic = all
	return nil
}

// resetSecret is what only this node and its successors know.
func resetSecret(cert tls.Certificate, prefix, hostname string) []byte {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil { // a key that does not leave its hardware
		return []byte(rand.Text())
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\x00%s", prefix, hostname)
	return mac.Sum(nil)
}

func portOf(a net.Addr) int {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.Port
	}
	return 0
}

// altSvc is what tells clients of TLS listeners that HTTP/3 is to be had, by port (RFC 7838).
func (s *sockets) altSvc() map[uint16]string {
	all := map[uint16]string{}
	for _, l := range s.quic {
		if u, ok := l.Addr().(*net.UDPAddr); ok {
			all[uint16(u.Port)] = fmt.Sprintf(`h3=":%d"; ma=86400`, u.Port) //nolint:gosec // a port
		}
	}
	return all
}

func cannotOpen(key string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: stop the process that listens there, or choose another address", err)
	}
	return fmt.Errorf("%s: %w", key, err)
}

// close closes all; closing twice does no harm.
func (s *sockets) close() {
	for _, g := range s.groups() {
		g.Close()
	}
}

// ownCertificate is that of the settings, paths or PEM, or the prefix's own.
func ownCertificate(cert string, key settings.Secret, dir, hostname string) (tls.Certificate, error) {
	if cert == "" {
		return listen.DefaultCertificate(dir, hostname)
	}
	return readPair(cert, key)
}

func readPair(cert string, key settings.Secret) (tls.Certificate, error) {
	c, err := settings.ReadPEM(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	k, err := settings.ReadPEM(key.Reveal())
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(c, k)
}

// handOver gives the connections of a listen.Group to a net/http server, as its listener.
type handOver struct {
	conns  chan net.Conn
	open   sync.Map // of net.Conn to func(), which the group waits for
	closed chan struct{}
	once   sync.Once
}

func newHandOver() *handOver {
	return &handOver{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// ServeConn hands a connection over.
func (h *handOver) ServeConn(nc net.Conn, info *h1.ConnInfo) {
	if len(info.Initial) > 0 {
		nc = &peeked{nc, strings.NewReader(string(info.Initial))}
	}
	h.open.Store(nc, info.End)
	select {
	case h.conns <- nc:
	case <-h.closed:
		nc.Close()
		h.ended(nc)
	}
}

// ended tells the group that a connection is over.
func (h *handOver) ended(nc net.Conn) {
	if end, ok := h.open.LoadAndDelete(nc); ok {
		end.(func())()
	}
}

// Accept returns the next connection.
func (h *handOver) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handOver) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is of no consequence: the groups know theirs.
func (h *handOver) Addr() net.Addr { return &net.TCPAddr{} }

// peeked gives back what was read to tell TLS from HTTP.
type peeked struct {
	net.Conn
	first *strings.Reader
}

// Read begins with what was read before.
func (p *peeked) Read(b []byte) (int, error) {
	if p.first.Len() > 0 {
		return p.first.Read(b)
	}
	return p.Conn.Read(b)
}

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"

	"concord/cmd/concord/settings"
	"concord/proxy/h1"
	"concord/proxy/listen"
	"concord/proxy/stream"
)

// sockets are the open listeners of a node. Nothing is accepted before their Serve.
type sockets struct {
	proxy, admin, status    *listen.Group
	stream                  *stream.Server
	adminConns, statusConns *handOver
}

// choose picks the certificate for a client of proxy_listen, nil for that of the settings.
type choose func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// openSockets opens all listeners, or none. Connections of proxy_listen go to front.
func openSockets(s *settings.Settings, front listen.ConnServer, certificate choose, hostname string, log *slog.Logger) (*sockets, error) {
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
	o.Default, o.Choose = adminCert, nil
	adminTLS := listen.TLSConfig(o)
	adminTLS.NextProtos = []string{"h2", "http/1.1"}
	streamTLS := proxyTLS.Clone()
	streamTLS.NextProtos = nil
	out := &sockets{adminConns: newHandOver(), statusConns: newHandOver()}
	for _, g := range []struct {
		key    string
		specs  []listen.Spec
		server listen.ConnServer
		tls    *tls.Config
		to     **listen.Group
	}{
		{"proxy_listen", s.ProxyListen, front, proxyTLS, &out.proxy},
		{"admin_listen", s.AdminListen, out.adminConns, adminTLS, &out.admin},
		{"status_listen", s.StatusListen, out.statusConns, adminTLS, &out.status},
	} {
		o := listen.Options{Specs: g.specs, Server: g.server, TLS: g.tls, Log: log, FirstByteTimeout: s.ClientHeaderTimeout}
		if g.to == &out.proxy {
			o.MaxConns = s.MaxConns
		}
		if *g.to, err = listen.Open(context.Background(), o); err != nil {
			out.close()
			return nil, cannotOpen(g.key, err)
		}
	}
	if out.stream, err = stream.Open(context.Background(), stream.Options{Specs: s.StreamListen, TLS: streamTLS, Log: log}); err != nil {
		out.close()
		return nil, cannotOpen("stream_listen", err)
	}
	return out, nil
}

func cannotOpen(key string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: stop the process that listens there, or choose another address", err)
	}
	return fmt.Errorf("%s: %w", key, err)
}

// close closes all; closing twice does no harm.
func (s *sockets) close() {
	for _, g := range []*listen.Group{s.proxy, s.admin, s.status} {
		if g != nil {
			g.Close()
		}
	}
	if s.stream != nil {
		s.stream.Close()
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
	closed chan struct{}
	once   sync.Once
}

func newHandOver() *handOver {
	return &handOver{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// ServeConn hands a connection over.
func (h *handOver) ServeConn(nc net.Conn, info h1.ConnInfo) {
	if len(info.Initial) > 0 {
		nc = &peeked{nc, strings.NewReader(string(info.Initial))}
	}
	select {
	case h.conns <- nc:
	case <-h.closed:
		nc.Close()
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

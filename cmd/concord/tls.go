package main

import (
	"crypto/tls"

	"concord/cmd/concord/settings"
)

// tuneTLS makes handshakes of the proxy listeners follow the data plane. The listeners are opened before it is made, but there are no
// handshakes before it has started.
func (n *node) tuneTLS(config *tls.Config, s *settings.Settings) {
	config.WrapSession = func(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
		return n.compiler.WrapSession(cs, state)
	}
	config.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		return n.compiler.UnwrapSession(ticket, cs, s.SSLSessionTimeout)
	}
	base := config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return n.compiler.ConfigForClient(base, hello)
	}
}

// certificate is asked in handshakes; nil is that of the settings.
func (n *node) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return n.compiler.Certificate(hello)
}

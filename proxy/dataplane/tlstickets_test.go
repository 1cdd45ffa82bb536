package dataplane_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"net"
	"strings"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/dataplane"
	fx "concord/proxy/dataplane/fixture"
	"concord/proxy/plugin"
)

// asker is a plugin that needs client certificates.
type asker struct {
	CAs  []string `json:"ca_certificates"`
	Send bool     `json:"send_ca_dn"`
}

func (a *asker) ClientCAs() ([]string, bool) { return a.CAs, a.Send }

func askerPlugin() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{Name: "asker", Config: schema.Field{Fields: []schema.Field{
			{Name: "ca_certificates", Type: schema.Array, Elem: &schema.Field{Type: schema.String}}, {Name: "send_ca_dn", Type: schema.Boolean},
		}}},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *asker) (plugin.Instance, error) {
			return c, nil
		}),
	}
}

// tlsNode is what a listener of one node does in handshakes.
type tlsNode struct {
	*dataplane.Compiler
	db   *fx.DB
	life time.Duration
	cert tls.Certificate
}

func newTLSNode(t *testing.T) *tlsNode {
	t.Helper()
	own := selfSigned(t, "node")
	n := &tlsNode{db: fx.New(t), life: time.Hour, cert: tls.Certificate{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}}
	n.Compiler = dataplane.New(dataplane.Options{Store: n.db.Store, Log: quiet(), Plugins: []plugin.Plugin{askerPlugin()}})
	t.Cleanup(func() { n.Close(context.Background()) })
	return n
}

// put writes rows and waits until handshakes see them.
func (n *tlsNode) put(t *testing.T, rows ...any) {
	t.Helper()
	wait(t, n.Compiler, n.db.Put(rows...))
}

// shake connects a client and returns the state on the server's side.
func (n *tlsNode) shake(t *testing.T, client *tls.Config) tls.ConnectionState {
	t.Helper()
	base := &tls.Config{Certificates: []tls.Certificate{n.cert}, WrapSession: n.WrapSession}
	base.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		return n.UnwrapSession(ticket, cs, n.life)
	}
	config := base.Clone()
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { return n.ConfigForClient(base, h) }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	states := make(chan tls.ConnectionState, 1)
	go func() {
		defer close(states)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		s := tls.Server(nc, config)
		if s.Handshake() == nil {
			_, _ = s.Write([]byte("x"))
			states <- s.ConnectionState()
		}
	}()
	nc, err := net.DialTimeout("tcp", ln.Addr().String(), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(nc, client)
	if _, err := c.Read(make([]byte, 1)); err != nil { // the tickets of TLS 1.3 come before it
		t.Fatal(err)
	}
	return <-states
}

// oneSession is a client that offers its last session to anybody, whatever name it is for.
type oneSession struct{ last *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.last, o.last != nil }

func (o *oneSession) Put(_ string, s *tls.ClientSessionState) { o.last = s }

func tlsClient(name string, version uint16) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: name, MinVersion: version, MaxVersion: version, ClientSessionCache: &oneSession{}}
}

func ticketRow(keys ...string) *entity.TLSTicketKeys {
	e := &entity.TLSTicketKeys{ID: fx.ID("tickets")}
	for _, k := range keys {
		e.Keys = append(e.Keys, base64.StdEncoding.EncodeToString([]byte(strings.Repeat(k, 32))))
	}
	return e
}

func TestSessionTickets(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			one, two := newTLSNode(t), newTLSNode(t)
			client := tlsClient("a.org", version)
			expect := func(what string, n *tlsNode, resumed bool) {
				t.Helper()
				if got := n.shake(t, client).DidResume; got != resumed {
					t.Errorf("%s: resumed %v, want %v", what, got, resumed)
				}
			}
			expect("at first", one, false)
			expect("by a node's own keys", one, true)
			expect("a node without the keys of the other", two, false)
			one.put(t, ticketRow("a", "z", "b"))
			two.put(t, ticketRow("a", "z", "b"))
			expect("with other keys", one, false)
			expect("on the other node", two, true)
			expect("and back", one, true)
			one.put(t, ticketRow("b", "a", "c"))
			expect("after a rotation", one, true)
			expect("on a node that has not heard of it", two, true)
			client.ClientSessionCache = &oneSession{}
			expect("anew", two, false)
			one.put(t, ticketRow("c", "b", "d"))
			expect("after two rotations", one, false)
			one.put(t, ticketRow("c", "b", "d!"))
			expect("a damaged row changes nothing", one, true)
			if len(one.Broken()) != 1 {
				t.Errorf("a damaged row is not reported: %v", one.Broken())
			}
			one.life = -time.Second
			expect("an old session", one, false)
			one.life = time.Hour
			expect("once more", one, true)
			client.ServerName = "b.org"
			expect("under another name", one, false)
			client.ServerName = "B.org"
			expect("under the same name", one, true)
		})
	}
}

// A session that began under one rule about client certificates is not resumed under another, and one without a certificate not where
// one is asked for.
func TestSessionsAndClientRules(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			n := newTLSNode(t)
			route := fx.Route("r", "", "/")
			route.SNIs = []string{"a.org"}
			rule := func(cas string) any { return fx.Plugin("p", "asker", `{"ca_certificates":[`+cas+`]}`, "r", "", "") }
			own := selfSigned(t, "client")
			client := tlsClient("a.org", version)
			expect := func(what string, resumed bool, certificates int) {
				t.Helper()
				got := n.shake(t, client)
				if got.DidResume != resumed || len(got.PeerCertificates) != certificates {
					t.Errorf("%s: resumed %v with %d certificates, want %v with %d", what, got.DidResume, len(got.PeerCertificates), resumed, certificates)
				}
			}
			expect("no rule", false, 0)
			expect("no rule", true, 0)
			n.put(t, route, rule(`"x"`))
			expect("a rule, no certificate", false, 0)
			expect("a rule, still no certificate", false, 0)
			client.Certificates = []tls.Certificate{{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}}
			expect("a rule", false, 1)
			expect("the same rule", true, 1)
			n.put(t, rule(`"x","y"`))
			expect("another rule", false, 1)
			client.ServerName = "b.org"
			expect("a name without rule", false, 0)
			client.ServerName = "a.org"
			expect("a rule after none", false, 1)
			n.put(t, rule(`"x"`))
			expect("the first rule again", false, 1)
		})
	}
}

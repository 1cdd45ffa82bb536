package dataplane

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"concord/fsm/entity"
)

// mark is what the gateway adds to a session before it becomes a ticket (tls.SessionState.Extra): a name, when the session began, and
// the digest of what it may be resumed for.
const (
	markName = "concord 1 "
	markSize = len(markName) + 8 + sha256.Size
)

// WrapSession makes a session resumable on every node of the cluster, for the server name and the rule about client certificates
// under which it began: a ticket of one virtual host opens no other (RFC 6066 §3). It is meant for tls.Config.WrapSession.
func (c *Compiler) WrapSession(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
	s.Extra = slices.DeleteFunc(s.Extra, isMark)
	mark := binary.BigEndian.AppendUint64([]byte(markName), uint64(time.Now().Unix()))
	s.Extra = append(s.Extra, append(mark, c.binding(cs.ServerName, len(cs.PeerCertificates) > 0)...))
	return c.tickets.Load().EncryptTicket(cs, s)
}

// UnwrapSession is for tls.Config.UnwrapSession. Sessions that are older than life, or were made for something else, are not resumed: the
// client shakes hands in full. So does a client that had no certificate when it was asked for one: it may have one now.
func (c *Compiler) UnwrapSession(ticket []byte, cs tls.ConnectionState, life time.Duration) (*tls.SessionState, error) {
	s, err := c.tickets.Load().DecryptTicket(ticket, cs)
	if s == nil || err != nil {
		return nil, err
	}
	i := slices.IndexFunc(s.Extra, isMark)
	if i < 0 {
		return nil, nil
	}
	begun := time.Unix(int64(binary.BigEndian.Uint64(s.Extra[i][len(markName):])), 0)
	if time.Since(begun) > life || !bytes.Equal(s.Extra[i][len(markName)+8:], c.binding(cs.ServerName, true)) {
		return nil, nil
	}
	return s, nil
}

func isMark(b []byte) bool { return len(b) == markSize && strings.HasPrefix(string(b), markName) }

// binding is the digest of what a session may be resumed for.
func (c *Compiler) binding(server string, certificate bool) []byte {
	server = strings.ToLower(server)
	h := sha256.New()
	fmt.Fprintf(h, "%d %s", len(server), server)
	if rule := c.rules.Load().For(server); rule != nil {
		fmt.Fprintf(h, " %t %s", certificate, rule.key())
	}
	return h.Sum(nil)
}

// applyTickets takes the cluster's keys over. Until there are any the node makes its own.
func (c *Compiler) applyTickets(p *pending) {
	if !p.reset && !p.tickets {
		return
	}
	if p.reset {
		c.tickets.Store(&tls.Config{})
	}
	for row := range c.tables.tickets.All(p.view) {
		list, err := ticketKeys(&row.Val)
		c.report("TLS ticket keys", row.ID.String(), err)
		if err == nil {
			keys := &tls.Config{}
			keys.SetSessionTicketKeys(list)
			c.tickets.Store(keys)
		}
	}
}

// ticketKeys decodes them; the first one encrypts, all of them decrypt.
func ticketKeys(e *entity.TLSTicketKeys) (list [][32]byte, err error) {
	for _, text := range e.Keys {
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(key) != 32 {
			return nil, errors.New("a key is not 32 bytes in base64")
		}
		list = append(list, [32]byte(key))
	}
	if len(list) == 0 {
		return nil, errors.New("there is no key")
	}
	return list, nil
}

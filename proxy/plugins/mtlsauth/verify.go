package mtlsauth

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/plugin"
)

// verifier checks chains of certificates against CA certificates of the store.
type verifier struct {
	cas     *state.Table[entity.CACertificate]
	ids     []state.ID
	partial bool
	life    time.Duration
	log     *slog.Logger

	mu      sync.Mutex
	anchors []uint64 // versions of the CA certificates that the rest was made of; 0: gone
	roots   *x509.CertPool
	middle  *x509.CertPool
	known   map[[sha256.Size]byte]verdict // by chain
}

// maxKnown bounds what is remembered; when it is full all is forgotten.
const maxKnown = 4096

// verdict is what was found out about a chain.
type verdict struct {
	subject *subject // nil: it is not trusted
	until   time.Time
}

// subject is what a certificate says about its owner.
type subject struct {
	digest string   // of the certificate, hex SHA-256
	names  []string // alternative names, then the common name, as they are
	cn     string
	dn     string // RFC 2253, printable ASCII
	san    string
}

func (s *subject) group(by string) string {
	switch by {
	case "CN":
		return s.cn
	case "DN":
		return s.dn
	}
	return ""
}

func newVerifier(env plugin.Env, c *config) *verifier {
	v := &verifier{
		cas: state.TableOf[entity.CACertificate](env.Store), partial: c.AllowPartialChain, log: env.Log,
		life: time.Duration(c.CertCacheTTL * float64(time.Millisecond)),
	}
	for _, id := range c.CACertificates {
		if parsed, err := state.ParseID(id); err == nil {
			v.ids = append(v.ids, parsed)
		}
	}
	return v
}

// verify returns what a chain, the owner's certificate first, says about its owner; nil when it is not to be trusted.
func (v *verifier) verify(view *state.View, chain []*x509.Certificate) *subject {
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw)
	}
	var key [sha256.Size]byte
	h.Sum(key[:0])
	now := time.Now()

	v.mu.Lock()
	v.refresh(view)
	roots, middle := v.roots, v.middle
	found, ok := v.known[key]
	v.mu.Unlock()
	if ok && now.Before(found.until) {
		return found.subject
	}
	made := v.judge(chain, roots, middle, now)
	v.mu.Lock()
	defer v.mu.Unlock()
	if roots == v.roots { // else a CA has changed meanwhile
		if len(v.known) >= maxKnown {
			clear(v.known)
		}
		v.known[key] = made
	}
	return made.subject
}

// refresh takes the CA certificates as they are now. One that is gone, or cannot be read, is trusted no more; when none is left nobody is.
func (v *verifier) refresh(view *state.View) {
	same := v.anchors != nil
	for i, id := range v.ids {
		row, _ := v.cas.Get(view, id)
		same = same && v.anchors[i] == row.Index
	}
	if same {
		return
	}
	v.anchors = make([]uint64, len(v.ids))
	v.roots, v.middle, v.known = x509.NewCertPool(), x509.NewCertPool(), map[[sha256.Size]byte]verdict{}
	for i, id := range v.ids {
		row, ok := v.cas.Get(view, id)
		v.anchors[i] = row.Index
		list, err := entity.ParseCertificates(row.Val.Cert)
		if !ok || err != nil || len(list) == 0 {
			v.log.Error("mtls-auth: a CA certificate is missing, its clients are refused", "ca_certificate", id.String())
			continue
		}
		if v.partial || selfSigned(list[0]) {
			v.roots.AddCert(list[0])
		} else {
			v.middle.AddCert(list[0])
		}
	}
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func (v *verifier) judge(chain []*x509.Certificate, roots, middle *x509.CertPool, now time.Time) verdict {
	all := middle.Clone()
	for _, c := range chain[1:] {
		all.AddCert(c)
	}
	out := verdict{until: now.Add(v.life)}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: all, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		v.log.Info("mtls-auth: a client's certificate failed verification", "subject", printable(chain[0].Subject.String()), "error", err)
		return out
	}
	for _, c := range chains[0] {
		if c.NotAfter.Before(out.until) {
			out.until = c.NotAfter
		}
	}
	out.subject = describe(chain[0])
	return out
}

func describe(c *x509.Certificate) *subject {
	sum := sha256.Sum256(c.Raw)
	s := &subject{digest: hex.EncodeToString(sum[:]), cn: printable(c.Subject.CommonName), dn: printable(c.Subject.String())}
	var san []string
	add := func(kind, name string) {
		s.names = append(s.names, name)
		san = append(san, kind+":"+printable(name))
	}
	for _, n := range c.DNSNames {
		add("DNS", n)
	}
	for _, n := range c.EmailAddresses {
		add("email", n)
	}
	for _, n := range c.IPAddresses {
		add("IP", n.String())
	}
	for _, n := range c.URIs {
		add("URI", n.String())
	}
	if c.Subject.CommonName != "" {
		s.names = append(s.names, c.Subject.CommonName)
	}
	s.names = slices.Compact(s.names)
	s.san = strings.Join(san, ", ")
	return s
}

// printable writes everything but printable ASCII as \XX (RFC 2253 §2.4): it goes into headers.
func printable(s string) string {
	plain := func(b byte) bool { return b >= 0x20 && b < 0x7f }
	for i := range len(s) {
		if !plain(s[i]) {
			var b strings.Builder
			for j := range len(s) {
				if plain(s[j]) {
					b.WriteByte(s[j])
				} else {
					b.WriteString(`\` + strings.ToUpper(hex.EncodeToString([]byte{s[j]})))
				}
			}
			return b.String()
		}
	}
	return s
}

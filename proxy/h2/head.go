package h2

import (
	"strings"

	"golang.org/x/net/http2/hpack"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// Pseudo fields.
const (
	pseudoMethod = iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoStatus
	pseudoProtocol // RFC 8441 §4
	pseudoCount
)

var pseudoNames = [pseudoCount]string{":method", ":scheme", ":authority", ":path", ":status", ":protocol"}

// head gathers the fields of one header block while it is decoded, and judges them by RFC 9113 §8.2 and §8.3.
type head struct {
	lim      h1.Limits
	response bool // of a server: only :status is allowed

	trailer bool // no pseudo fields are allowed
	fields  []exchange.Field
	pseudo  [pseudoCount]string
	seen    uint8 // which pseudo fields there were
	regular bool  // a regular field was seen: no pseudo field may follow
	size    int   // as RFC 9113 §6.5.2 counts
	count   int
	large   bool         // over the limits: what followed was left out
	wrong   *streamError // the first rule that was broken
	fault   *h1.Fault    // a well-formed request that is answered with an error

	length  int64 // Content-Length, or -1
	hosts   int   // how many Host fields
	host    string
	te      bool // TE: trailers
	expect  bool
	cookies int
	cookie  int      // index of the first Cookie field
	crumbs  []string // the further ones
}

func (h *head) reset(trailer bool) {
	clear(h.fields)
	clear(h.crumbs)
	*h = head{lim: h.lim, response: h.response, trailer: trailer, fields: h.fields[:0], crumbs: h.crumbs[:0], length: -1}
}

func malformed(reason string) *streamError { return &streamError{ProtocolError, reason} }

func (h *head) has(pseudo int) bool { return h.seen&(1<<pseudo) != 0 }

// add takes one decoded field.
func (h *head) add(f hpack.HeaderField) {
	h.size += len(f.Name) + len(f.Value) + 32
	h.count++
	if h.size > h.lim.HeadBytes || h.count > h.lim.Fields {
		h.large = true
	}
	if h.large || h.wrong != nil {
		return
	}
	if f.Name != "" && f.Name[0] == ':' {
		h.wrong = h.addPseudo(f.Name, f.Value)
		return
	}
	h.regular = true
	for i := 0; i < len(f.Name); i++ {
		if c := f.Name[i]; lowerToken[c] != c || c == 0 {
			h.wrong = malformed("field name is not a token in lower case (RFC 9113 §8.2.1)")
			return
		}
	}
	if f.Name == "" || !validValue(f.Value) {
		h.wrong = malformed("field has no name or an invalid value (RFC 9113 §8.2.1)")
		return
	}
	var keep bool
	if keep, h.wrong = h.note(f.Name, f.Value); keep {
		h.fields = append(h.fields, exchange.Field{Name: f.Name, Value: f.Value})
	}
}

func validValue(v string) bool {
	if v == "" {
		return true
	}
	first, last := v[0], v[len(v)-1]
	return first != ' ' && first != '\t' && last != ' ' && last != '\t' && h1.ValidValue(v)
}

func (h *head) addPseudo(name, value string) *streamError {
	if h.regular {
		return malformed("pseudo field behind a regular one (RFC 9113 §8.3)")
	}
	if h.trailer {
		return malformed("pseudo field in trailers (RFC 9113 §8.1)")
	}
	for i, n := range pseudoNames {
		if n != name || (i == pseudoStatus) != h.response {
			continue
		}
		if h.has(i) {
			return malformed("pseudo field twice (RFC 9113 §8.3)")
		}
		h.seen |= 1 << i
		h.pseudo[i] = value
		return nil
	}
	return malformed("unknown pseudo field (RFC 9113 §8.3)")
}

// note takes from a field what concerns connection and framing and tells whether it is kept: the same are dropped as by
// h1, but those that name HTTP/1.1's connection are wrong here (RFC 9113 §8.2.2).
func (h *head) note(name, value string) (bool, *streamError) {
	const connection = "connection-specific field (RFC 9113 §8.2.2)"
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false, malformed(connection)
	case "te":
		if h.response {
			return false, malformed(connection)
		}
		if !exchange.EqualFold(value, "trailers") {
			return false, malformed("te is not trailers (RFC 9113 §8.2.2)")
		}
		h.te = true
		return false, nil
	case "http2-settings", "proxy-authenticate":
		return false, nil
	case "content-length":
		n, ok := h1.ParseLength(value)
		if !ok || h.length >= 0 {
			return false, malformed("malformed content-length (RFC 9113 §8.1.1)")
		}
		h.length = n
		return true, nil
	}
	if h.response {
		return true, nil
	}
	switch name {
	case "proxy":
		return false, nil
	case "host":
		h.hosts++
		h.host = value
		return false, nil // set again from what is valid
	case "expect":
		if !exchange.EqualFold(value, "100-continue") {
			h.fault = errExpect
		}
		h.expect = true
		return false, nil
	case "cookie":
		h.cookies++
		if h.cookies > 1 {
			h.crumbs = append(h.crumbs, value)
			return false, nil
		}
		h.cookie = len(h.fields)
	}
	return true, nil
}

// appendTrailers copies the fields of trailers but those that must not be merged into a header.
func (h *head) appendTrailers(t *exchange.Header) {
	for _, f := range h.fields {
		if !h1.ForbiddenTrailer(f.Name) {
			t.Fields = append(t.Fields, f)
		}
	}
}

// The reasons to answer a well-formed request with an error.
var (
	errConnect    = &h1.Fault{Status: 405, Rule: "RFC 9110 §9.3.6", Text: "CONNECT is not offered"}
	errProtocol   = &h1.Fault{Status: 501, Rule: "RFC 8441 §4", Text: "the only protocol that CONNECT offers is websocket"}
	errMethod     = &h1.Fault{Status: 400, Rule: "RFC 9110 §9.1", Text: "method is not a token"}
	errScheme     = &h1.Fault{Status: 400, Rule: "RFC 9113 §8.3.1", Text: "scheme is neither http nor https"}
	errTarget     = &h1.Fault{Status: 400, Rule: "RFC 9113 §8.3.1", Text: "malformed request target"}
	errTargetLong = &h1.Fault{Status: 414, Rule: "RFC 9110 §15.5.15", Text: "request target is too long"}
	errHost       = &h1.Fault{Status: 400, Rule: "RFC 9110 §7.2", Text: "malformed or missing authority"}
	errHeadLarge  = &h1.Fault{Status: 431, Rule: "RFC 6585 §5", Text: "header section is too large"}
	errExpect     = &h1.Fault{Status: 417, Rule: "RFC 9110 §10.1.1", Text: "expectation is not 100-continue"}
	errBodyTime   = &h1.Fault{Status: 408, Rule: "RFC 9110 §15.5.9", Text: "body did not arrive in time"}
	errGone       = &h1.Fault{Status: 499, Rule: "RFC 9113 §6.4", Text: "the client gave up"}
)

// check tells whether what was read is a request as RFC 9113 §8.3.1 wants it. A *streamError is malformed, a *h1.Fault can be
// answered.
func (h *head) check() error {
	if h.large {
		return errHeadLarge
	}
	method, path := h.pseudo[pseudoMethod], h.pseudo[pseudoPath]
	switch {
	case method == "CONNECT" && !h.has(pseudoProtocol):
		return errConnect
	case method != "CONNECT" && h.has(pseudoProtocol):
		return malformed(":protocol without CONNECT (RFC 8441 §4)")
	}
	if !h.has(pseudoMethod) || !h.has(pseudoScheme) || path == "" {
		return malformed("pseudo field is missing (RFC 9113 §8.3.1)")
	}
	if h.hosts > 1 || h.hosts > 0 && h.has(pseudoAuthority) && !exchange.EqualFold(h.host, h.pseudo[pseudoAuthority]) {
		return malformed("host and :authority differ (RFC 9113 §8.3.1)")
	}
	switch scheme := h.pseudo[pseudoScheme]; {
	case !h1.ValidToken(method):
		return errMethod
	case scheme != "http" && scheme != "https":
		return errScheme
	case len(path) > h.lim.TargetBytes:
		return errTargetLong
	case !h1.ValidTarget(path), path[0] != '/' && (path != "*" || method != "OPTIONS"):
		return errTarget
	case !h1.ValidHost(h.authority()):
		return errHost
	}
	if h.has(pseudoProtocol) && h.pseudo[pseudoProtocol] != webSocket {
		return errProtocol
	}
	if h.fault != nil {
		return h.fault
	}
	return nil
}

func (h *head) authority() string {
	if h.has(pseudoAuthority) {
		return h.pseudo[pseudoAuthority]
	}
	return h.host
}

// request fills x.Request with everything but the body, as far as it is known for one that is going to be refused.
func (h *head) request(x *exchange.Exchange) error {
	r := &x.Request
	r.Method, r.Target, r.Host = h.pseudo[pseudoMethod], h.pseudo[pseudoPath], h.authority()
	r.Major, r.Minor = 2, 0
	r.TETrailers, r.Expect100 = h.te, h.expect
	r.Length = h.length
	if h.wrong != nil {
		return h.wrong
	}
	f := append(r.Header.Fields[:0], exchange.Field{Name: "host", Value: r.Host})
	r.Header.Fields = append(f, h.fields...)
	if err := h.check(); err != nil {
		return err
	}
	if h.has(pseudoProtocol) {
		beginWebSocket(r)
	}
	if len(h.crumbs) > 0 { // RFC 9113 §8.2.3
		b := append(x.Scratch(), h.fields[h.cookie].Value...)
		for _, c := range h.crumbs {
			b = append(append(b, "; "...), c...)
		}
		r.Header.Fields[1+h.cookie].Value = x.Keep(b)
	}
	r.Path, r.RawQuery, r.HasQuery = strings.Cut(r.Target, "?")
	if r.Path == "*" {
		return nil
	}
	path, err := x.NormalizePath(r.Path)
	if err != nil {
		return &h1.Fault{Status: 400, Rule: "RFC 3986 §6.2.2", Text: err.Error()}
	}
	r.Path = path
	return nil
}

package h1

import (
	"bytes"
	"net/netip"
	"strings"

	"concord/proxy/exchange"
)

// A Fault is why a message was refused. Every rule names its section; Status is what a client is told.
type Fault struct {
	Status int
	Rule   string
	Text   string
}

func (f *Fault) Error() string { return f.Text + " (" + f.Rule + ")" }

// The reasons to refuse a message.
var (
	errRequestLine  = &Fault{400, "RFC 9112 §3", "malformed request line"}
	errMethod       = &Fault{400, "RFC 9110 §9.1", "method is not a token"}
	errTarget       = &Fault{400, "RFC 9112 §3.2", "malformed request target"}
	errTargetLong   = &Fault{414, "RFC 9110 §15.5.15", "request target is too long"}
	errVersion      = &Fault{400, "RFC 9112 §2.3", "malformed HTTP version"}
	errMajor        = &Fault{505, "RFC 9110 §15.6.6", "not a version of HTTP/1"}
	errBareLF       = &Fault{400, "RFC 9112 §2.2", "line does not end in CR LF"}
	errFold         = &Fault{400, "RFC 9112 §5.2", "folded header line"}
	errFieldName    = &Fault{400, "RFC 9112 §5.1", "header name is not a token followed by a colon"}
	errFieldValue   = &Fault{400, "RFC 9110 §5.5", "header value contains a control character"}
	errHeadLarge    = &Fault{431, "RFC 6585 §5", "header section is too large"}
	errFieldsMany   = &Fault{431, "RFC 6585 §5", "too many header fields"}
	errNominated    = &Fault{431, "RFC 6585 §5", "Connection names too many fields"}
	errPathEscape   = &Fault{400, "RFC 3986 §2.1", exchange.ErrPathEscape.Error()}
	errPathUnclear  = &Fault{400, "RFC 3986 §6.2.2", exchange.ErrPathAmbiguous.Error()}
	errNoHost       = &Fault{400, "RFC 9112 §3.2", "HTTP/1.1 request without Host"}
	errHostTwice    = &Fault{400, "RFC 9112 §3.2", "more than one Host"}
	errHost         = &Fault{400, "RFC 9110 §7.2", "malformed Host"}
	errLength       = &Fault{400, "RFC 9110 §8.6", "malformed Content-Length"}
	errLengthTwice  = &Fault{400, "RFC 9110 §8.6", "more than one Content-Length"}
	errLengthCoding = &Fault{400, "RFC 9112 §6.1", "both Content-Length and Transfer-Encoding"}
	errCoding       = &Fault{501, "RFC 9112 §6.1", "transfer coding is not exactly chunked"}
	errCodingOld    = &Fault{400, "RFC 9112 §6.1", "Transfer-Encoding in an HTTP/1.0 message"}
	errConnect      = &Fault{405, "RFC 9110 §9.3.6", "CONNECT is not offered"}
	errExpect       = &Fault{417, "RFC 9110 §10.1.1", "expectation is not 100-continue"}
	errHeaderTime   = &Fault{408, "RFC 9110 §15.5.9", "header section did not arrive in time"}
	errBodyTime     = &Fault{408, "RFC 9110 §15.5.9", "body did not arrive in time"}
	errBodyCut      = &Fault{400, "RFC 9112 §8", "connection ended within the body"}
	errGone         = &Fault{499, "RFC 9112 §9.6", "the client gave up"}
	errStatusLine   = &Fault{502, "RFC 9112 §4", "malformed status line"}
	errChunk        = &Fault{400, "RFC 9112 §7.1", "malformed chunk"}
	errChunkExt     = &Fault{400, "RFC 9112 §7.1.1", "chunk extensions are too large"}
	errTrailerLarge = &Fault{431, "RFC 6585 §5", "trailer section is too large"}
)

// Limits bound what one head may cost.
type Limits struct {
	HeadBytes   int // whole head, default 64 KiB: more is a 431
	TargetBytes int // request target, default 8 KiB as nginx: more is a 414
	Fields      int // default 1000: more is a 431
}

func (l *Limits) setDefaults() {
	if l.HeadBytes == 0 {
		l.HeadBytes = 64 << 10
	}
	if l.TargetBytes == 0 {
		l.TargetBytes = 8 << 10
	}
	if l.Fields == 0 {
		l.Fields = 1000
	}
}

// requestLineSlack is what a request line holds besides its target.
const requestLineSlack = 64

// framing is what a head says about the connection and the body behind it.
type framing struct {
	length    int64 // -1: none given
	chunked   bool
	old       bool // HTTP/1.0
	close     bool // Connection: close
	keep      bool // Connection: keep-alive
	upgrades  bool // Connection: upgrade
	nominates bool // Connection names fields to be dropped
	hasHost   bool
	expect    bool
	upgrade   string
	host      int // index of the Host field
	te        bool
	conn      int // how many Connection fields, kept in nominated
	nominated [4]string
}

func (f *framing) persistent() bool { return !f.close && (!f.old || f.keep) }

// version takes HTTP-version, RFC 9112 §2.3. A higher minor version is processed as 1.1 (RFC 9110 §2.5).
func (f *framing) version(v []byte) error {
	switch s := str(v); {
	case s == "HTTP/1.1":
	case s == "HTTP/1.0":
		f.old = true
	case s[:5] != "HTTP/" || s[6] != '.' || class[s[5]]&class[s[7]]&isDigit == 0:
		return errVersion
	case s[5] != '1':
		return errMajor
	}
	return nil
}

// parseRequest reads one request head in place. It returns its length, or 0 when b does not hold all of it yet. Strings
// in r point into b.
func parseRequest(b []byte, lim *Limits, r *exchange.Request, f *framing) (int, error) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) > lim.TargetBytes+requestLineSlack {
			return 0, errTargetLong
		}
		return 0, nil
	}
	if end == 0 || b[end-1] != '\r' {
		return 0, errBareLF
	}
	line := b[:end-1]
	sp := bytes.IndexByte(line, ' ')
	if sp <= 0 || len(line) < sp+len(" HTTP/1.1") {
		return 0, errRequestLine
	}
	method, rest := line[:sp], line[sp+1:]
	if !allOf(method, isToken) {
		return 0, errMethod
	}
	sp = len(rest) - len(" HTTP/1.1")
	if sp < 0 || rest[sp] != ' ' {
		return 0, errRequestLine
	}
	target, version := rest[:sp], rest[sp+1:]
	*f = framing{length: -1, host: -1}
	if err := f.version(version); err != nil {
		return 0, err
	}
	if len(target) > lim.TargetBytes {
		return 0, errTargetLong
	}
	if !allOf(target, isTarget) {
		return 0, errTarget
	}
	r.Header.Fields = r.Header.Fields[:0]
	n, err := parseFields(b, end+1, lim, &r.Header, f, true)
	if n == 0 || err != nil {
		return 0, err
	}
	r.Method, r.Major, r.Minor = str(method), 1, 1
	if f.old {
		r.Minor = 0
	}
	if f.chunked {
		if f.old {
			return 0, errCodingOld
		}
		if f.length >= 0 {
			return 0, errLengthCoding
		}
	}
	if f.hasHost {
		r.Host = r.Header.Fields[f.host].Value
	} else if !f.old {
		return 0, errNoHost
	} else {
		r.Host = ""
	}
	if err := splitTarget(r, str(target), f); err != nil {
		return 0, err
	}
	if f.hasHost && !validHost(r.Host) {
		return 0, errHost
	}
	switch {
	case f.chunked:
		r.Length = -1
	case f.length > 0:
		r.Length = f.length
	default:
		r.Length = 0
	}
	// RFC 9110 §10.1.1: an HTTP/1.0 client cannot wait, a request without a body need not.
	r.Expect100 = f.expect && !f.old && r.Length != 0
	r.TETrailers = f.te
	r.Upgrade = ""
	if f.upgrades && !f.old && upgradable(f.upgrade) {
		r.Upgrade = f.upgrade
	}
	if f.nominates {
		if err := dropNominated(&r.Header, f); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// splitTarget sorts out the four forms of RFC 9112 §3.2.
func splitTarget(r *exchange.Request, target string, f *framing) error {
	if r.Method == "CONNECT" {
		return errConnect
	}
	switch {
	case target[0] == '/':
	case target == "*" && r.Method == "OPTIONS":
	default:
		// absolute-form: its authority wins over Host (§3.2.2), which must be there nevertheless.
		i := strings.Index(target, "://")
		if i < 0 || !exchange.EqualFold(target[:i], "http") && !exchange.EqualFold(target[:i], "https") {
			return errTarget
		}
		rest := target[i+3:]
		j := strings.IndexAny(rest, "/?")
		host := rest
		if j >= 0 {
			host = rest[:j]
		}
		if !validHost(host) {
			return errTarget
		}
		r.Host = host
		if f.hasHost {
			r.Header.Fields[f.host].Value = host
		}
		switch {
		case j < 0:
			target = "/"
		case rest[j] == '?':
			target = "/" + rest[j:]
		default:
			target = rest[j:]
		}
	}
	r.Target = target
	if i := strings.IndexByte(target, '?'); i >= 0 {
		r.Path, r.RawQuery, r.HasQuery = target[:i], target[i+1:], true
	} else {
		r.Path, r.RawQuery, r.HasQuery = target, "", false
	}
	return nil
}

// upgradable tells whether a list of protocols (RFC 9110 §7.8) may be offered to the upstream. One with h2c in it, or any HTTP, is
// refused as a whole: an upgraded connection would carry requests the gateway never sees.
func upgradable(list string) bool {
	if len(list) > maxNominated {
		return false
	}
	for more := true; more; {
		var proto string
		proto, list, more = strings.Cut(list, ",")
		name, version, versioned := strings.Cut(strings.Trim(proto, " \t"), "/")
		if name == "" || !ValidToken(name) || versioned && !ValidToken(version) || exchange.EqualFold(name, "h2c") || exchange.EqualFold(name, "h2") ||
			len(name) >= 4 && exchange.EqualFold(name[:4], "http") {
			return false
		}
	}
	return true
}

// offered tells whether the client has offered all the protocols a 101 names (RFC 9110 §7.8: several, when one lies on another).
func offered(list, chosen string) bool {
	for more := true; more; {
		var proto string
		proto, chosen, more = strings.Cut(chosen, ",")
		if proto = strings.Trim(proto, " \t"); proto == "" || !exchange.HasToken(list, proto) {
			return false
		}
	}
	return true
}

// validHost accepts host and host:port. An empty host is invalid for http (RFC 9110 §4.2.1).
func validHost(h string) bool {
	if h == "" {
		return false
	}
	if h[0] == '[' {
		return validLiteral(h)
	}
	port := -1
	for i := 0; i < len(h); i++ {
		c := h[i]
		switch {
		case class[c]&isHost == 0:
			return false
		case c == ':':
			if port >= 0 || i == 0 {
				return false
			}
			port = i + 1
		case port >= 0:
			if class[c]&isDigit == 0 {
				return false
			}
		case c == '%': // RFC 3986 §2.1: an upstream that decodes it must not meet half an escape
			if i+2 >= len(h) || hexDigit(h[i+1]) < 0 || hexDigit(h[i+2]) < 0 {
				return false
			}
		}
	}
	return port < 0 || len(h)-port <= 5
}

// validLiteral accepts [IPv6address] and [IPv6address]:port. Zones and IPvFuture (RFC 3986 §3.2.2, RFC 6874) are not accepted: they mean
// nothing to another machine, or to anybody yet.
func validLiteral(h string) bool {
	address, port, ok := strings.Cut(h[1:], "]")
	if !ok || port != "" && (port[0] != ':' || len(port) > 6) {
		return false
	}
	for i := 1; i < len(port); i++ {
		if class[port[i]]&isDigit == 0 {
			return false
		}
	}
	a, err := netip.ParseAddr(address)
	return err == nil && a.Is6() && a.Zone() == ""
}

// parseFields reads field lines from b[pos:] up to and including the empty line. It returns where that ends, 0 when it is
// not there yet.
func parseFields(b []byte, pos int, lim *Limits, h *exchange.Header, f *framing, request bool) (int, error) {
	fields := h.Fields
	for {
		rest := b[pos:]
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			if len(b) >= lim.HeadBytes {
				return 0, errHeadLarge
			}
			return 0, nil
		}
		if end == 0 || rest[end-1] != '\r' {
			return 0, errBareLF
		}
		pos += end + 1
		if pos > lim.HeadBytes {
			return 0, errHeadLarge
		}
		line := rest[:end-1]
		if len(line) == 0 {
			h.Fields = fields
			return pos, nil
		}
		i := 0
		for i < len(line) && class[line[i]]&isToken != 0 {
			i++
		}
		if i == 0 || i == len(line) || line[i] != ':' {
			if line[0] == ' ' || line[0] == '\t' {
				return 0, errFold
			}
			return 0, errFieldName
		}
		name, raw := line[:i], line[i+1:]
		value := trim(raw)
		if !validValue(value) {
			return 0, errFieldValue
		}
		keep, err := f.note(name, value, raw, len(fields), request)
		if err != nil {
			return 0, err
		}
		if !keep {
			continue
		}
		if len(fields) >= lim.Fields {
			return 0, errFieldsMany
		}
		fields = append(fields, exchange.Field{Name: str(name), Value: str(value)})
	}
}

// note takes from a field what concerns the connection and tells whether it is to be kept: hop-by-hop fields are not
// (RFC 9110 §7.6.1), neither is Proxy, which CGI programs mistake for a setting.
func (f *framing) note(name, value, raw []byte, index int, request bool) (bool, error) {
	switch len(name) {
	case 2:
		if fold(name, "te") {
			f.te = f.te || exchange.HasToken(str(value), "trailers")
			return false, nil
		}
	case 4:
		if request && fold(name, "host") {
			if f.hasHost {
				return false, errHostTwice
			}
			f.hasHost, f.host = true, index
		}
	case 5:
		return !fold(name, "proxy"), nil
	case 6:
		if request && fold(name, "expect") {
			if !fold(value, "100-continue") {
				return false, errExpect
			}
			f.expect = true
			return false, nil
		}
	case 7:
		if fold(name, "upgrade") {
			switch {
			case f.upgrade == "":
				f.upgrade = str(value)
			case len(f.upgrade) <= maxNominated:
				f.upgrade += ", " + str(value)
			}
			return false, nil
		}
		return !fold(name, "trailer"), nil
	case 10:
		if fold(name, "connection") {
			f.connection(str(value))
			return false, nil
		}
		return !fold(name, "keep-alive"), nil
	case 14:
		if fold(name, "content-length") {
			if f.length >= 0 {
				return false, errLengthTwice
			}
			n, ok := parseLength(value)
			// Whitespace behind the number is refused although OWS would be allowed: parsers disagree about it, nobody sends it.
			if !ok || raw[len(raw)-1] != value[len(value)-1] {
				return false, errLength
			}
			f.length = n
			return true, nil
		}
		return !fold(name, "http2-settings"), nil
	case 16:
		return !fold(name, "proxy-connection"), nil
	case 17:
		if fold(name, "transfer-encoding") {
			if f.chunked || !fold(value, "chunked") {
				return false, errCoding
			}
			f.chunked = true
			return false, nil
		}
	case 18:
		return !fold(name, "proxy-authenticate"), nil
	}
	return true, nil
}

// connection reads a Connection field.
func (f *framing) connection(list string) {
	all := list
	for list != "" {
		item, rest, _ := strings.Cut(list, ",")
		list = rest
		item = strings.Trim(item, " \t")
		switch {
		case item == "", exchange.EqualFold(item, "te"):
		case exchange.EqualFold(item, "close"):
			f.close = true
		case exchange.EqualFold(item, "keep-alive"):
			f.keep = true
		case exchange.EqualFold(item, "upgrade"):
			f.upgrades = true
		default:
			f.nominates = true
		}
	}
	if f.conn < len(f.nominated) {
		f.nominated[f.conn] = all
	}
	f.conn++
}

// maxNominated bounds the length of all Connection fields together, and of Upgrade.
const maxNominated = 1024

// endToEnd are fields that Connection cannot take away: they concern everyone on the way (RFC 9110 §7.6.1 forbids to name
// them), and dropping them would be a lever against authentication and client addresses.
var endToEnd = exchange.NewNameSet("Host", "Content-*", "Authorization", "Cookie", "Set-Cookie", "Forwarded", "X-Forwarded-*",
	"X-Real-IP", "Via", "Cache-Control", "Date", "Server", "Location", "WWW-Authenticate")

// dropNominated removes the fields named in Connection. It happens once, while reading: what plugins set later under such
// a name stays. Long lists are refused: each field is compared with each name.
func dropNominated(h *exchange.Header, f *framing) error {
	total := 0
	for _, list := range f.nominated {
		total += len(list)
	}
	if f.conn > len(f.nominated) || total > maxNominated {
		return errNominated
	}
	h.DelFunc(func(name string) bool {
		if endToEnd.Has(name) {
			return false
		}
		for _, list := range f.nominated[:f.conn] {
			if exchange.HasToken(list, name) {
				return true
			}
		}
		return false
	})
	return nil
}

// parseResponse reads one response head in place. It returns its length, or 0 when b does not hold all of it yet.
func parseResponse(b []byte, lim *Limits, r *exchange.Response, f *framing) (int, error) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) >= lim.HeadBytes {
			return 0, errHeadLarge
		}
		return 0, nil
	}
	if end == 0 || b[end-1] != '\r' {
		return 0, errBareLF
	}
	line := b[:end-1]
	if len(line) < len("HTTP/1.1 200") || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return 0, errStatusLine
	}
	*f = framing{length: -1, host: -1}
	if err := f.version(line[:8]); err != nil {
		return 0, err
	}
	code, ok := parseLength(line[9:12])
	if !ok || code < 100 {
		return 0, errStatusLine
	}
	r.Reason = ""
	if len(line) > 13 {
		if !validValue(line[13:]) {
			return 0, errStatusLine
		}
		r.Reason = str(line[13:])
	}
	r.Header.Fields = r.Header.Fields[:0]
	n, err := parseFields(b, end+1, lim, &r.Header, f, false)
	if n == 0 || err != nil {
		return 0, err
	}
	if f.chunked {
		if f.old {
			return 0, errCodingOld
		}
		if f.length >= 0 {
			return 0, errLengthCoding
		}
	}
	r.Status = int(code)
	if f.nominates {
		if err := dropNominated(&r.Header, f); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// headComplete tells, without parsing, whether a head that was incomplete before now may be worth parsing again: its end
// has arrived, or a bare LF that makes it wrong. from is how much was looked at before.
func headComplete(b []byte, from int) bool {
	for i := max(0, from-3); ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return false
		}
		i += j
		if i == 0 || b[i-1] != '\r' || i >= 3 && b[i-2] == '\n' {
			return true
		}
		i++
	}
}

package proxy

import (
	"net/netip"
	"strconv"
	"strings"

	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/upstream"
)

// identity are the headers by which upstreams learn who the client is. Only the gateway may set them, on every route.
var identity = exchange.NewNameSet("X-Consumer-*", "X-Credential-*", "X-Authenticated-*", "X-Anonymous-Consumer",
	"X-Client-Cert-*", "X-Userinfo", "X-Access-Token", "X-ID-Token")

// proxyProtocol as real_ip_header says that the client's address is in the header before the request (nginx).
const proxyProtocol = "proxy_protocol"

// trust is whom to believe about the client's address.
type trust struct {
	prefixes  []netip.Prefix
	header    string
	recursive bool
}

func newTrust(o Options) trust {
	t := trust{header: o.RealIPHeader, recursive: o.RealIPRecursive}
	if t.header == "" {
		t.header = "X-Real-IP"
	}
	for _, p := range o.TrustedIPs {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		t.prefixes = append(t.prefixes, p.Masked())
	}
	return t
}

func (t *trust) has(a netip.Addr) bool {
	for _, p := range t.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// client finds the client's address as nginx's real_ip does: the last address of the header, or when recursive the last one that
// is not trusted itself. What cannot be read ends the search.
func (t *trust) client(peer netip.Addr, h *exchange.Header) netip.Addr {
	client := peer
	for i := len(h.Fields) - 1; i >= 0; i-- {
		f := &h.Fields[i]
		if !exchange.EqualFold(f.Name, t.header) {
			continue
		}
		list := f.Value
		for list != "" {
			item := list
			if j := strings.LastIndexByte(list, ','); j >= 0 {
				list, item = list[:j], list[j+1:]
			} else {
				list = ""
			}
			a, ok := parseAddr(strings.Trim(item, " \t"))
			if !ok {
				return client
			}
			client = a
			if !t.recursive || !t.has(a) {
				return client
			}
		}
	}
	return client
}

// parseAddr reads an address, with or without a port. An IPv4 address in IPv6 form is that IPv4 address.
func parseAddr(s string) (netip.Addr, bool) {
	if len(s) > 64 || strings.IndexByte(s, '%') >= 0 {
		return netip.Addr{}, false
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	colon := strings.LastIndexByte(s, ':')
	if colon > 0 && (s[0] == '[' || strings.IndexByte(s, ':') == colon) {
		ap, err := netip.ParseAddrPort(s)
		return ap.Addr().Unmap(), err == nil
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil
}

// identifyClient removes forged identities and finds the client's address.
func (h *Handler) identifyClient(x *exchange.Exchange, r *run) {
	x.Request.Header.DelSet(identity)
	peer := x.Conn.Peer.Addr().Unmap()
	x.ClientIP = peer
	if len(h.trusted.prefixes) > 0 && h.trusted.has(peer) {
		r.trusted = true
		if h.trusted.header == proxyProtocol {
			if x.Conn.Proxied.IsValid() {
				x.ClientIP = x.Conn.Proxied.Addr().Unmap()
			}
			return
		}
		x.ClientIP = h.trusted.client(peer, &x.Request.Header)
	}
}

// maxHops is how many gateways of this kind a request may pass. Chains of a few are legitimate, a loop is not.
const maxHops = 10

// lastHop refuses TRACE, as nginx does below Kong: its answer would show whoever asks what the request carries. It answers an OPTIONS request that
// may go no further, and counts down what others may go (RFC 9110 §7.6.2).
func lastHop(x *exchange.Exchange) error {
	r := &x.Request
	switch r.Method {
	case "TRACE":
		return &failure{status: 405, message: plugin.Message(405)}
	case "OPTIONS":
	default:
		return nil
	}
	v, ok := r.Header.Lookup("Max-Forwards")
	if !ok {
		return nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	switch {
	case err != nil:
		return &failure{status: 400, message: "Max-Forwards is not a number"}
	case n > 0:
		r.Header.Set("Max-Forwards", x.Keep(strconv.AppendUint(x.Scratch(), n-1, 10)))
		return nil
	}
	return &plugin.Exit{Status: 200}
}

// refuseLoop stops a request that has been here too often (RFC 9110 §7.6.3).
func (h *Handler) refuseLoop(x *exchange.Exchange) error {
	if h.add.product == "" {
		return nil
	}
	name, _, _ := strings.Cut(h.add.product, "/")
	hops := 0
	for i := range x.Request.Header.Fields {
		if f := &x.Request.Header.Fields[i]; exchange.EqualFold(f.Name, "Via") {
			hops += strings.Count(f.Value, " "+name+"/")
		}
	}
	if hops >= maxHops {
		h.stats.Loops.Add(1)
		return errLoop
	}
	return nil
}

// PathEscapes is what becomes of a path that an upstream may read differently: see exchange.OtherReading.
type PathEscapes uint8

// The ways to treat such paths.
const (
	CheckPathEscapes  PathEscapes = iota // passed on if both readings lead to the same route
	RefusePathEscapes                    // refused if a separator is escaped, whatever the routes
	PassPathEscapes                      // passed on, as Kong does
)

// refuseAmbiguous stops a request whose path an upstream may read as one that belongs to another route: its plugins would
// have been those of the wrong one. What strip_path leaves must not climb out of the service's path either.
func (h *Handler) refuseAmbiguous(x *exchange.Exchange, r *run) error {
	path := x.Request.Path
	if h.o.PathEscapes == PassPathEscapes || !exchange.HasOtherReading(path) {
		return nil
	}
	if h.o.PathEscapes == RefusePathEscapes && exchange.HasEscapedSeparator(path) {
		return errAmbiguous
	}
	other, ok := x.OtherReading(path)
	if !ok {
		return errAmbiguous
	}
	r.query.Path = other
	t, ok := r.snap.Find(&r.query)
	r.query.Path = path
	if !ok || t.Route() != r.target.Route() {
		return errAmbiguous
	}
	if _, ok := x.OtherReading(x.Upstream.Path); !ok {
		return errAmbiguous
	}
	return nil
}

// limitBody holds the request to MaxBody.
func (h *Handler) limitBody(x *exchange.Exchange, r *run) error {
	limit, req := h.o.MaxBody, &x.Request
	if limit == 0 {
		return nil
	}
	if req.Length > limit {
		return errTooLarge
	}
	if req.Length < 0 {
		r.request = limitedBody{Body: req.Body, left: limit}
		req.Body = &r.request
	}
	return nil
}

// maxKept is how large a buffer of held bodies may be that is used again, bytes.
const maxKept = 64 << 10

// holdBody waits for a short request body, and for the beginning of a long one, as nginx does below Kong with request_buffering: no target is
// chosen and no connection is made for a client that is slow. gRPC never waits: its clients may be waiting for the answer to their first message.
func (h *Handler) holdBody(x *exchange.Exchange, r *run) (err error) {
	if h.o.HeldBody == 0 || x.Request.InMemory() || !x.Route.RequestBuffering || x.Upstream.HTTP2 {
		return nil
	}
	if r.held, err = x.Request.Hold(r.held, h.o.HeldBody); err != nil {
		return h.upstreamFailed(x, &upstream.Error{Kind: upstream.Request, Op: "read the request", Err: err})
	}
	return nil
}

// limitedBody ends a body of unknown length that grows too long.
type limitedBody struct {
	exchange.Body
	left int64
}

// Next implements exchange.Body.
func (b *limitedBody) Next() ([]byte, error) {
	if b.left < 0 {
		return nil, errTooLarge
	}
	chunk, err := b.Body.Next()
	if b.left -= int64(len(chunk)); b.left < 0 {
		return nil, errTooLarge
	}
	return chunk, err
}

// Ready implements exchange.Readier.
func (b *limitedBody) Ready() bool { return b.left >= 0 && exchange.Ready(b.Body) }

// scheme is that of the client's request, as a trusted proxy saw it.
func (r *run) scheme(x *exchange.Exchange) string {
	if r.trusted {
		if v := x.Request.Header.Get("X-Forwarded-Proto"); v != "" {
			return v
		}
	}
	return x.Request.Scheme
}

// checkProtocol is what Kong does about a route's protocols after the match.
func (h *Handler) checkProtocol(x *exchange.Exchange, r *run) error {
	if r.target.Plain {
		return nil
	}
	var http, https, grpc, grpcs bool
	for _, p := range x.Route.Protocols {
		switch p {
		case "http":
			http = true
		case "https":
			https = true
		case "grpc":
			grpc = true
		case "grpcs":
			grpcs = true
		}
	}
	switch {
	case grpc || grpcs:
		if !isGRPC(x) {
			return &plugin.Exit{Status: 415, Body: "Non-gRPC request matched gRPC route"}
		}
		if x.Request.Major < 2 {
			return &plugin.Exit{Status: 426, Body: "Please use HTTP2 protocol", Header: []exchange.Field{{Name: "Upgrade", Value: "HTTP/2"}}}
		}
		if !grpc && !exchange.EqualFold(r.scheme(x), "https") {
			return &plugin.Exit{Status: 200, Header: []exchange.Field{
				{Name: "Content-Type", Value: "application/grpc"},
				{Name: "grpc-status", Value: "1"}, {Name: "grpc-message", Value: "gRPC request matched gRPCs route"},
			}}
		}
	case https && !http && !exchange.EqualFold(r.scheme(x), "https"):
		host := hostOnly(h.forwarded(x, r, "X-Forwarded-Host", x.Request.Host))
		// There is no URL for "OPTIONS *", nor without a host, as HTTP/1.0 may come.
		if status := x.Route.HTTPSRedirectStatusCode; status != 426 && status != 0 && host != "" && strings.HasPrefix(x.Request.Target, "/") {
			return &plugin.Exit{Status: status, Header: []exchange.Field{{Name: "Location", Value: "https://" + host + x.Request.Target}}}
		}
		return &plugin.Exit{
			Status: 426, Body: "Please use HTTPS protocol",
			Header: []exchange.Field{{Name: "Upgrade", Value: "TLS/1.2, HTTP/1.1"}},
		}
	}
	return nil
}

func isGRPC(x *exchange.Exchange) bool {
	return strings.HasPrefix(x.Request.Header.Get("Content-Type"), "application/grpc")
}

// forwarded is what a trusted peer said in a header, else own.
func (h *Handler) forwarded(x *exchange.Exchange, r *run, name, own string) string {
	if r.trusted {
		if v := x.Request.Header.Get(name); v != "" {
			return v
		}
	}
	return own
}

// hostOnly drops the port.
func hostOnly(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		return host[:i]
	}
	return host
}

// The headers that the gateway writes itself.
const (
	fieldOther = iota
	fieldFor
	fieldProto
	fieldHost
	fieldPort
	fieldPath
	fieldPrefix
	fieldRealIP
	fieldVia
	fieldForwarded
	fieldProxyAuth
	fieldRequestID
	fieldCount
)

// fieldKind ignores case and takes '_' for '-': an alias would otherwise reach upstreams that fold both.
func fieldKind(name string) int {
	switch len(name) {
	case 3:
		if alike(name, "via") {
			return fieldVia
		}
	case 9:
		if alike(name, "x-real-ip") {
			return fieldRealIP
		}
		if alike(name, "forwarded") {
			return fieldForwarded
		}
	case 15:
		if alike(name, "x-forwarded-for") {
			return fieldFor
		}
	case 16:
		switch {
		case alike(name, "x-forwarded-host"):
			return fieldHost
		case alike(name, "x-forwarded-port"):
			return fieldPort
		case alike(name, "x-forwarded-path"):
			return fieldPath
		}
	case 17:
		if alike(name, "x-forwarded-proto") {
			return fieldProto
		}
		if alike(name, "x-kong-request-id") {
			return fieldRequestID
		}
	case 18:
		if alike(name, "x-forwarded-prefix") {
			return fieldPrefix
		}
	case 19:
		if alike(name, "proxy-authorization") { // for plugins of this gateway (basic-auth), not for the next hop
			return fieldProxyAuth
		}
	}
	return fieldOther
}

// alike compares names of equal length.
func alike(name, want string) bool {
	for i := range len(want) {
		c := name[i]
		if c == '_' {
			c = '-'
		} else if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

// upstreamHeaders writes the headers that tell the upstream about client and gateway. Those the client sent are replaced, unless
// the peer is trusted; X-Forwarded-For and Via are continued in any case. Forwarded (RFC 7239) is passed on from
// trusted peers only, for the gateway does not write it.
func (h *Handler) upstreamHeaders(x *exchange.Exchange, r *run) {
	var in [fieldCount]string
	fields := x.Request.Header.Fields
	n := 0
	for i := range fields {
		f := &fields[i]
		kind := fieldKind(f.Name)
		if kind == fieldOther || kind == fieldForwarded && r.trusted {
			if i != n {
				fields[n] = *f
			}
			n++
			continue
		}
		if strings.IndexByte(f.Name, '_') >= 0 {
			continue
		}
		if in[kind] == "" {
			in[kind] = f.Value
		} else if kind == fieldFor || kind == fieldVia {
			in[kind] = x.Concat(in[kind], ", ", f.Value)
		}
	}
	fields = fields[:n]
	add := func(name, value string) { fields = append(fields, exchange.Field{Name: name, Value: value}) }
	pick := func(kind int, own string) string {
		if r.trusted && in[kind] != "" {
			return in[kind]
		}
		return own
	}

	client := x.Keep(x.ClientIP.AppendTo(x.Scratch()))
	if in[fieldFor] == "" {
		add("X-Forwarded-For", client)
	} else {
		peer := client
		// A proxy that speaks the PROXY protocol is no hop of HTTP: its client is.
		if a := x.Conn.Peer.Addr().Unmap(); a != x.ClientIP && h.trusted.header != proxyProtocol {
			peer = x.Keep(a.AppendTo(x.Scratch()))
		}
		add("X-Forwarded-For", x.Concat(in[fieldFor], ", ", peer))
	}
	add("X-Forwarded-Proto", pick(fieldProto, x.Request.Scheme))
	add("X-Forwarded-Host", pick(fieldHost, hostOnly(x.Request.Host)))
	if p := pick(fieldPort, ""); p != "" {
		add("X-Forwarded-Port", p)
	} else {
		add("X-Forwarded-Port", x.Keep(strconv.AppendUint(x.Scratch(), uint64(x.Conn.Local.Port()), 10)))
	}
	path, _, _ := strings.Cut(x.Request.Target, "?")
	add("X-Forwarded-Path", pick(fieldPath, path))
	own := r.prefix
	if own == "/" {
		own = ""
	}
	if p := pick(fieldPrefix, own); p != "" {
		add("X-Forwarded-Prefix", p)
	}
	add("X-Real-IP", client)
	if via := h.add.via[min(x.Request.Major, 3)][x.Request.Minor&1]; via != "" {
		if in[fieldVia] != "" {
			via = x.Concat(in[fieldVia], ", ", via)
		}
		add("Via", via)
	} else if in[fieldVia] != "" {
		add("Via", in[fieldVia])
	}
	if h.add.requestIDUp {
		add("X-Kong-Request-Id", x.RequestID)
	}
	x.Request.Header.Fields = fields
}

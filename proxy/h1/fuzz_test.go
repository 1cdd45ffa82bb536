package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"regexp"
	"strings"
	"testing"
	"time"

	"concord/proxy/exchange"
)

// stricter lists the reasons for which a message may be refused that net/http accepts. Each names its section, either a
// MUST, or a MAY that a gateway is wise to use.
var stricter = map[*Fault]string{
	errRequestLine:  "RFC 9112 §3: exactly one space on either side of the target",
	errTarget:       "RFC 9112 §3.2, RFC 3986 §3: only visible ASCII without '#', http(s) authority without userinfo",
	errTargetLong:   "RFC 9110 §15.5.15",
	errVersion:      "RFC 9112 §2.3",
	errMajor:        "RFC 9110 §15.6.6",
	errBareLF:       "RFC 9112 §2.2: a recipient MAY recognise a bare LF; RFC 9110 §5.5 for a bare CR",
	errFold:         "RFC 9112 §5.2: MUST reject or replace",
	errFieldName:    "RFC 9112 §5.1",
	errFieldValue:   "RFC 9110 §5.5",
	errHeadLarge:    "RFC 6585 §5",
	errFieldsMany:   "RFC 6585 §5",
	errNominated:    "RFC 6585 §5",
	errNoHost:       "RFC 9112 §3.2: MUST answer 400",
	errHostTwice:    "RFC 9112 §3.2: MUST answer 400",
	errHost:         "RFC 9112 §3.2, RFC 9110 §4.2.1: MUST answer 400",
	errLength:       "RFC 9110 §8.6; no whitespace behind the number although OWS is allowed",
	errLengthTwice:  "RFC 9110 §8.6: MAY be rejected although equal",
	errLengthCoding: "RFC 9112 §6.1: ought to be handled as an error",
	errCoding:       "RFC 9112 §6.1: 501 for what is not understood",
	errCodingOld:    "RFC 9112 §6.1: MUST treat as faulty framing",
	errConnect:      "RFC 9110 §9.3.6: not offered",
	errExpect:       "RFC 9110 §10.1.1: MAY answer 417",
	errStatusLine:   "RFC 9112 §4",
	errChunk:        "RFC 9112 §7.1",
	errChunkExt:     "RFC 9112 §7.1.1: limit the total length",
	errTrailerLarge: "RFC 6585 §5",
	errBodyCut:      "RFC 9112 §8",
}

// parsed is what matters of a message, for comparing.
type parsed struct {
	line   string // method, target, host or status
	fields map[string][]string
	body   string
}

func (p parsed) String() string { return fmt.Sprintf("%q %q %q", p.line, p.fields, p.body) }

// dropped are fields that one of the two parsers keeps out of its header.
var dropped = exchange.NewNameSet("Host", "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings", "Proxy", "Expect")

func fieldsOf(h *exchange.Header) map[string][]string {
	m := map[string][]string{}
	for _, f := range h.Fields {
		// dropped folds '_' and '-'; net/http does not.
		if !dropped.Has(f.Name) || strings.Contains(f.Name, "_") {
			k := textproto.CanonicalMIMEHeaderKey(f.Name)
			m[k] = append(m[k], f.Value)
		}
	}
	return m
}

func fieldsOfHTTP(h http.Header) map[string][]string {
	m := map[string][]string{}
	for k, v := range h {
		if dropped.Has(k) && !strings.Contains(k, "_") {
			continue
		}
		nominated := false
		for _, c := range h["Connection"] {
			nominated = nominated || exchange.HasToken(c, k) && !endToEnd.Has(k)
		}
		if !nominated {
			m[k] = v
		}
	}
	return m
}

var errIncomplete = errors.New("incomplete")

func ours(data []byte) (parsed, error) {
	var x exchange.Exchange
	var f framing
	lim := Limits{}
	lim.setDefaults()
	n, err := parseRequest(data, &lim, &x.Request, &f)
	if err != nil {
		return parsed{}, err
	}
	if n == 0 {
		return parsed{}, errIncomplete
	}
	if x.Request.Path != "*" {
		if _, err := x.NormalizePath(x.Request.Path); err != nil {
			return parsed{}, errTarget
		}
	}
	p := parsed{line: x.Request.Method + " " + x.Request.Target + " " + escape.ReplaceAllString(x.Request.Host, "x"), fields: fieldsOf(&x.Request.Header)}
	mode := uint8(bodyLength)
	if f.chunked {
		mode = bodyChunked
	}
	var b bodyReader
	b.start(nil, data, n, len(data), mode, x.Request.Length, &x.Request.Trailer, 0)
	p.body, err = drain(&b)
	return p, err
}

func drain(b *bodyReader) (string, error) {
	var s strings.Builder
	for {
		p, err := b.Next()
		s.Write(p)
		if err == io.EOF {
			return s.String(), nil
		}
		if err != nil {
			return s.String(), err
		}
	}
}

// net/http decodes what is escaped in an authority and takes nothing that is ASCII so: it reads "x" for every escape.
var (
	escape    = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	authority = regexp.MustCompile(`^[^ \n]+ [^ :/\n]+://[^/? \[\n]*`)
)

func theirs(data []byte) (parsed, error) {
	data = authority.ReplaceAllFunc(data, func(b []byte) []byte { return escape.ReplaceAll(b, []byte("x")) })
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return parsed{}, err
	}
	target := r.RequestURI
	if i := strings.Index(target, "://"); i >= 0 && target[0] != '/' {
		target = strings.TrimLeft(target[i+3:], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=%:[]@")
		if target == "" || target[0] == '?' {
			target = "/" + target
		}
	}
	p := parsed{line: r.Method + " " + target + " " + escape.ReplaceAllString(r.Host, "x"), fields: fieldsOfHTTP(r.Header)}
	body, err := io.ReadAll(r.Body)
	p.body = string(body)
	return p, err
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://b/x HTTP/1.1\r\nHost: a\r\nX: y\r\nx: z\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
		"POST / HTTP/1.0\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, x\r\nUpgrade: websocket\r\nX: 1\r\nExpect: 100-continue\r\n\r\n",
		"GET /%2e/%41%zz HTTP/1.1\r\nHost: a:80\r\n\r\n",
		"GET http://%41b/ HTTP/1.0\r\n\r\n",
		"GET http://%0/ HTTP/1.0\r\n\r\n",
		"GET http://[::1]:1/ HTTP/1.0\r\n\r\n",
		"GET http://[1]/ HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, aerr := ours(data)
		b, berr := theirs(data)
		compare(t, data, a, aerr, b, berr)
	})
}

func compare(t *testing.T, data []byte, a parsed, aerr error, b parsed, berr error) {
	t.Helper()
	switch {
	case aerr == nil && berr == nil:
		if a.String() != b.String() {
			t.Errorf("%q:\nours    %v\nnet/http %v", data, a, b)
		}
	case aerr == nil:
		t.Errorf("%q accepted as %v, refused by net/http: %v", data, a, berr)
	case berr == nil:
		var fault *Fault
		if errors.As(aerr, &fault) && stricter[fault] == "" || fault == nil {
			t.Errorf("%q refused with %v, which is not listed", data, aerr)
		}
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.1 204 \r\n\r\n",
		"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lim := Limits{}
		lim.setDefaults()
		var r exchange.Response
		var fr framing
		a, aerr := parsed{}, errIncomplete
		if n, err := parseResponse(data, &lim, &r, &fr); err != nil {
			aerr = err
		} else if n > 0 {
			if r.Status < 200 {
				return // handled before a body is looked for
			}
			a = parsed{line: fmt.Sprint(r.Status), fields: fieldsOf(&r.Header)}
			var b bodyReader
			mode, length := uint8(bodyToEOF), fr.length
			switch {
			case r.Status == 204 || r.Status == 304:
				mode = bodyNone
			case fr.chunked:
				mode = bodyChunked
			case fr.length >= 0:
				mode = bodyLength
			}
			b.start(nil, data, n, len(data), mode, length, nil, 0)
			if mode == bodyToEOF {
				a.body, aerr = string(data[n:]), nil
			} else {
				a.body, aerr = drain(&b)
			}
		}
		b, berr := parsed{}, error(nil)
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		if berr = err; err == nil {
			body, err := io.ReadAll(resp.Body)
			b, berr = parsed{line: fmt.Sprint(resp.StatusCode), fields: fieldsOfHTTP(resp.Header), body: string(body)}, err
		}
		compare(t, data, a, aerr, b, berr)
	})
}

// pieces is a connection that delivers data in pieces of the given sizes.
type pieces struct {
	net.Conn
	data []byte
	size []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := 1
	if len(p.size) > 0 {
		n += int(p.size[0])
		p.size = p.size[1:]
	}
	n = copy(b, p.data[:min(n, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

func (p *pieces) SetReadDeadline(time.Time) error { return nil }

// FuzzChunked: a chunked body must mean the same however its bytes arrive, what follows it must be left, and it must be
// what net/http makes of it.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\nrest"), []byte{0, 1, 2}, uint8(3))
	f.Add([]byte("a;x=y\r\n0123456789\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n"), []byte{}, uint8(0))
	f.Add([]byte("0\r\n\r\nGET / HTTP/1.1\r\n"), []byte{3, 3, 3}, uint8(1))
	f.Fuzz(func(t *testing.T, data, sizes []byte, first uint8) {
		var whole, piecewise bodyReader
		var t1, t2 exchange.Header
		whole.start(nil, data, 0, len(data), bodyChunked, -1, &t1, 0)
		a, aerr := drain(&whole)
		k := min(int(first), len(data))
		w := &wire{alarm: alarm{nc: &pieces{data: data[k:], size: sizes}}}
		piecewise.start(w, data[:k], 0, k, bodyChunked, -1, &t2, 0)
		b, berr := drain(&piecewise)
		if a != b && aerr == nil || (aerr == nil) != (berr == nil) || aerr == nil && fmt.Sprint(t1) != fmt.Sprint(t2) {
			t.Errorf("%q: at once %q %v %v, in pieces %q %v %v", data, a, aerr, t1, b, berr, t2)
		}
		if aerr == nil {
			rest := string(data[whole.r:])
			unread := string(piecewise.buf[piecewise.r:piecewise.e]) + string(w.nc.(*pieces).data)
			if rest != unread {
				t.Errorf("%q: left %q and %q", data, rest, unread)
			}
		}
		piecewise.release()
		head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + string(data))))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		compare(t, data, parsed{body: a}, aerr, parsed{body: string(body)}, err)
	})
}

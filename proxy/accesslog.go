package proxy

import (
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"concord/proxy/exchange"
)

// AccessLog writes one line per request, in Kong's format (nginx's combined plus the request id) or as a JSON object. Requests never wait for the writer:
// lines gather in memory and one goroutine writes them; when it cannot follow, lines are dropped and counted.
type AccessLog struct {
	w    io.Writer
	json bool
	log  *slog.Logger
	wake chan struct{}
	done chan struct{}
	bad  bool // the last write failed; of run

	mu      sync.Mutex
	buf     []byte
	spare   []byte
	second  int64
	stamp   []byte // "[22/Nov/2026:03:45:26 +0000]" of second
	dropped uint64
	closed  bool
}

const (
	logFlushEvery = 200 * time.Millisecond
	logFlushBytes = 64 << 10
	logMaxBytes   = 8 << 20 // held at most
)

// NewAccessLog starts writing to w until Close; json chooses the format.
func NewAccessLog(w io.Writer, json bool, log *slog.Logger) *AccessLog {
	l := &AccessLog{w: w, json: json, log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

func (l *AccessLog) run() {
	defer close(l.done)
	t := time.NewTicker(logFlushEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.wake:
		}
		if l.flush() {
			return
		}
	}
}

func (l *AccessLog) flush() (closed bool) {
	l.mu.Lock()
	b, dropped := l.buf, l.dropped
	l.buf, l.spare, l.dropped = l.spare[:0], nil, 0
	closed = l.closed
	l.mu.Unlock()
	if dropped > 0 {
		l.log.Warn("access log lines were dropped: the writer is too slow", "lines", dropped)
	}
	if len(b) > 0 {
		_, err := l.w.Write(b)
		if err != nil && !l.bad {
			l.log.Error("access log cannot be written, lines are lost", "error", err)
		} else if err == nil && l.bad {
			l.log.Warn("access log is written again")
		}
		l.bad = err != nil
	}
	l.mu.Lock()
	if cap(b) <= 16*logFlushBytes {
		l.spare = b[:0]
	}
	l.mu.Unlock()
	return closed
}

// Close writes what is left. Later lines are lost.
func (l *AccessLog) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	<-l.done
}

// write appends the line of an exchange. secret are query parameters, beyond the well-known ones, whose values are not logged.
func (l *AccessLog) write(x *exchange.Exchange, secret []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.room() {
		return
	}
	if l.json {
		l.buf = appendJSONLine(l.buf, x, secret)
	} else {
		l.buf = l.appendCombined(l.buf, x, secret)
	}
	l.appended()
}

// Append appends a line that somebody else composes, with its end.
func (l *AccessLog) Append(line func(b []byte) []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.room() {
		return
	}
	l.buf = line(l.buf)
	l.appended()
}

func (l *AccessLog) room() bool {
	if l.closed || len(l.buf) > logMaxBytes {
		l.dropped++
		return false
	}
	return true
}

func (l *AccessLog) appended() {
	if len(l.buf) >= logFlushBytes {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// clientOf is who asked, through trusted proxies.
func clientOf(x *exchange.Exchange) netip.Addr {
	if x.ClientIP.IsValid() {
		return x.ClientIP
	}
	return x.Conn.Peer.Addr().Unmap()
}

// userOf is nginx's $remote_user: of basic authentication only.
func userOf(x *exchange.Exchange) string {
	if c := x.Credential; c != nil && c.Kind == "basic-auth" {
		return c.Identifier
	}
	return ""
}

func (l *AccessLog) appendCombined(b []byte, x *exchange.Exchange, secret []string) []byte {
	b = clientOf(x).AppendTo(b)
	b = append(b, " - "...)
	b = appendLogText(b, orDash(userOf(x)))
	b = append(b, ' ')
	if s := x.Start.Unix(); s != l.second || l.stamp == nil {
		l.second = s
		l.stamp = x.Start.AppendFormat(l.stamp[:0], "[02/Jan/2006:15:04:05 -0700]")
	}
	b = append(b, l.stamp...)
	b = append(b, ` "`...)
	if r := &x.Request; r.Method != "" {
		b = appendLogText(b, r.Method)
		b = append(b, ' ')
		b = appendLogURL(b, r.Target, secret)
		b = append(b, " HTTP/"...)
		b = strconv.AppendInt(b, int64(r.Major), 10)
		b = append(b, '.')
		b = strconv.AppendInt(b, int64(r.Minor), 10)
	}
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(x.Response.Status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, bodySent(x), 10)
	b = append(b, ` "`...)
	b = appendLogURL(b, orDash(x.Request.Header.Get("Referer")), secret)
	b = append(b, `" "`...)
	b = appendLogText(b, orDash(x.Request.Header.Get("User-Agent")))
	b = append(b, `" kong_request_id: "`...)
	b = append(b, x.RequestID...)
	return append(b, "\"\n"...)
}

// bodySent is nginx's $body_bytes_sent as far as it is known: of a streamed body, head and framing are counted too.
func bodySent(x *exchange.Exchange) int64 {
	switch p := &x.Response; {
	case p.Tunnel != nil:
		return x.BytesSent
	case x.Request.Method == "HEAD" || p.Body == nil:
		return 0
	case p.Length >= 0 && p.Length <= x.BytesSent:
		return p.Length
	}
	return x.BytesSent
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendLogText escapes as nginx does: what could end the field or the line, or talk to a terminal.
func appendLogText(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\' || c < 0x20 || c >= 0x7f:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// secretNames are query parameters that carry credentials by convention, whatever plugins are configured.
var secretNames = []string{
	"access_token", "api_key", "api-key", "apikey", "assertion", "client_assertion", "client_secret", "code", "code_verifier", "id_token",
	"jwt", "key", "passwd", "password", "refresh_token", "secret", "sig", "signature", "token",
}

// appendLogURL is appendLogText with the values of secret query parameters replaced.
func appendLogURL(b []byte, url string, secret []string) []byte {
	return appendURL(b, url, secret, appendLogText)
}

func appendURL(b []byte, url string, secret []string, text func([]byte, string) []byte) []byte {
	path, query, ok := strings.Cut(url, "?")
	b = text(b, path)
	sep := byte('?')
	for ok {
		var pair string
		pair, query, ok = strings.Cut(query, "&")
		b = append(b, sep)
		sep = '&'
		name, _, hasValue := strings.Cut(pair, "=")
		if hasValue && isSecret(name, secret) {
			b = text(b, name)
			b = append(b, "=REDACTED"...)
		} else {
			b = text(b, pair)
		}
	}
	return b
}

func isSecret(name string, more []string) bool {
	name = exchange.QueryUnescape(name)
	for _, list := range [2][]string{secretNames, more} {
		for _, s := range list {
			if exchange.EqualFold(name, s) {
				return true
			}
		}
	}
	return false
}

package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"html"
	"log/slog"
	"strconv"
	"strings"

	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/upstream"
)

// failure is an error of the gateway itself, answered with a templated body.
type failure struct {
	status  int
	message string
	nginx   bool // Kong leaves these to nginx, where a client without Accept gets another default
	cause   error
}

func (f *failure) Error() string {
	if f.cause != nil {
		return f.message + ": " + f.cause.Error()
	}
	return f.message
}

func (f *failure) Unwrap() error { return f.cause }

// The gateway's own errors, in Kong's words.
var (
	errNoRoute   = &failure{status: 404, message: "no Route matched with those values"}
	errNoService = &failure{status: 503, message: "no Service found with those values"}
	errLoop      = &failure{status: 508, message: "Loop detected"}
	errOverload  = &failure{status: 503, message: "Too many requests are running"}
	errAmbiguous = &failure{status: 400, message: "The path leads elsewhere when its escaped separators are decoded"}
	errTooLarge  = &failure{status: 413, message: plugin.Message(413), nginx: true}
	// RFC 9110 §15.5.20: the client may try again on a connection of its own for the host.
	errMisdirected = &failure{status: 421, message: plugin.Message(421)}
)

const unexpected = "An unexpected error occurred"

// refusal is the text for a request that is no valid HTTP or too large.
func refusal(status int) string {
	if status == 431 {
		return "Request header or cookie too large"
	}
	return plugin.Message(status)
}

// answer replaces the response by what err says.
func (h *Handler) answer(x *exchange.Exchange, err error) {
	x.Err = err
	x.Proxied = false
	p := &x.Response
	if p.Body != nil {
		_ = p.Body.Close()
	}
	if p.Tunnel != nil {
		_ = p.Tunnel.Close()
	}
	head := p.Header
	head.Reset()
	*p = exchange.Response{Header: head}
	var exit *plugin.Exit
	var own *failure
	switch {
	case errors.As(err, &exit):
		h.exit(x, exit)
	case errors.As(err, &own):
		h.template(x, own.status, own.message, own.nginx)
	default:
		h.stats.PluginErrors.Add(1)
		h.log.Error("plugin failed", "error", err, "request_id", x.RequestID)
		h.exit(x, &plugin.Exit{Status: 500, Body: unexpected})
	}
	p.Close = p.Status == 421 && x.Request.Major < 2 // the connection is the wrong one; under HTTP/2 it may be right for other requests
}

// exit answers as a plugin wants it.
func (h *Handler) exit(x *exchange.Exchange, e *plugin.Exit) {
	p := &x.Response
	for _, f := range e.Header {
		p.Header.Add(f.Name, f.Value)
	}
	if e.Templated {
		message, _ := e.Body.(string)
		if message == "" {
			message = plugin.Message(e.Status)
		}
		h.template(x, e.Status, message, false)
		return
	}
	p.Status = e.Status
	body := []byte{}
	contentType := "application/json; charset=utf-8"
	switch b := e.Body.(type) {
	case nil:
		contentType = ""
	case []byte:
		body, contentType = b, ""
	case string:
		body = append(appendJSON([]byte(`{"message":`), b), '}')
	default:
		var err error
		if body, err = marshal(b); err != nil {
			h.log.Error("plugin's answer is not JSON", "error", err)
			p.Status, body = 500, []byte(`{"message":"`+unexpected+`"}`)
		}
	}
	if contentType != "" && !p.Header.Has("Content-Type") {
		p.Header.Add("Content-Type", contentType)
	}
	p.SetBody(body)
}

// A template is the user's text of an error body, cut at its two %s.
type template [3]string

// Templates are checked by CheckTemplate when settings are read.
func newTemplates(byType map[string]string) (t [typeXML + 1]*template) {
	for name, text := range byType {
		a, rest, _ := strings.Cut(text, "%s")
		b, c, _ := strings.Cut(rest, "%s")
		if k := knownType(name); k != typeNone {
			t[k] = &template{percent(a), percent(b), percent(c)}
		}
	}
	return t
}

// percent undoes the %% of Kong's templates, which are format strings.
func percent(s string) string { return strings.ReplaceAll(s, "%%", "%") }

// CheckTemplate tells what is wrong with the text of an error template.
func CheckTemplate(text string) error {
	plain := strings.ReplaceAll(text, "%%", "")
	if strings.Count(plain, "%s") != 2 || strings.Count(plain, "%") != 2 {
		return errors.New("must hold %s twice, for the message and for the request id, and %% for any other %")
	}
	return nil
}

func (t *template) append(b []byte, kind mediaType, message, id string) []byte {
	b = append(b, t[0]...)
	switch kind {
	case typeHTML, typeXML:
		b = append(b, html.EscapeString(message)...)
	case typeJSON:
		quoted := appendJSON(nil, message) // the template has the quotes
		b = append(b, quoted[1:len(quoted)-1]...)
	default:
		b = append(b, message...)
	}
	b = append(b, t[1]...)
	b = append(b, id...)
	return append(b, t[2]...)
}

func (t mediaType) name() string {
	return [...]string{"application/json", "application/json", "text/html", "text/plain", "application/xml"}[t]
}

func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

func appendJSON(dst []byte, s string) []byte {
	text, err := marshal(s)
	if err != nil {
		return strconv.AppendQuote(dst, s)
	}
	return append(dst, text...)
}

// mediaType is a kind of error body.
type mediaType int

const (
	typeNone mediaType = iota
	typeJSON
	typeHTML
	typePlain
	typeXML
)

// template answers with Kong's error template in the type the client prefers.
func (h *Handler) template(x *exchange.Exchange, status int, message string, nginx bool) {
	p := &x.Response
	p.Status = status
	if isGRPC(x) {
		p.Header.Set("Content-Type", "application/grpc")
		p.Header.Set("grpc-status", strconv.Itoa(exchange.GRPCStatus(status)))
		p.Header.Set("grpc-message", message)
		p.SetBody(nil)
		return
	}
	b := make([]byte, 0, 256)
	contentType := ""
	t := h.errorType(x, nginx)
	if custom := h.templates[t]; custom != nil {
		p.Header.Set("Content-Type", x.Concat(t.name(), "; charset=utf-8"))
		p.SetBody(custom.append(b, t, message, x.RequestID))
		return
	}
	switch t {
	case typeHTML:
		contentType = "text/html"
		b = append(b, "<!doctype html>\n<html>\n  <head>\n    <meta charset=\"utf-8\">\n    <title>Error</title>\n  </head>\n  <body>\n    <h1>Error</h1>\n    <p>"...)
		b = append(b, html.EscapeString(message)...)
		b = append(b, ".</p>\n    <p>request_id: "...)
		b = append(b, x.RequestID...)
		b = append(b, "</p>\n  </body>\n</html>\n"...)
	case typePlain:
		contentType = "text/plain"
		b = append(b, message...)
		b = append(b, "\nrequest_id: "...)
		b = append(b, x.RequestID...)
		b = append(b, '\n')
	case typeXML:
		contentType = "application/xml"
		b = append(b, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<error>\n  <message>"...)
		b = append(b, html.EscapeString(message)...)
		b = append(b, "</message>\n  <requestid>"...)
		b = append(b, x.RequestID...)
		b = append(b, "</requestid>\n</error>\n"...)
	default:
		contentType = "application/json"
		b = append(b, "{\n  \"message\":"...)
		b = appendJSON(b, message)
		b = append(b, ",\n  \"request_id\":\""...)
		b = append(b, x.RequestID...)
		b = append(b, "\"\n}"...)
	}
	p.Header.Set("Content-Type", x.Concat(contentType, "; charset=utf-8"))
	p.SetBody(b)
}

// errorType negotiates (Accept, RFC 9110 §12.5.1): the first of the highest quality wins, what is unknown is JSON.
func (h *Handler) errorType(x *exchange.Exchange, nginx bool) mediaType {
	head := &x.Request.Header
	if accept, ok := head.Lookup("Accept"); ok {
		return negotiate(accept)
	}
	if !nginx {
		return typeJSON
	}
	if ct := head.Get("Content-Type"); ct != "" {
		ct, _, _ = strings.Cut(ct, ";")
		if t := knownType(strings.TrimSpace(ct)); t != typeNone {
			return t
		}
	}
	if t := knownType(h.o.ErrorDefaultType); t != typeNone {
		return t
	}
	return typePlain
}

func negotiate(accept string) mediaType {
	best, bestQ := typeJSON, 0.0
	for item := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(item, ";")
		q := 1.0
		for p := range strings.SplitSeq(params, ";") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
				if f, err := strconv.ParseFloat(v, 64); err == nil {
					q = f
				}
			}
		}
		if t := knownType(strings.TrimSpace(name)); t != typeNone && q > bestQ {
			best, bestQ = t, q
		}
	}
	return best
}

func knownType(s string) mediaType {
	switch strings.ToLower(s) {
	case "application/json", "application/*", "*/*":
		return typeJSON
	case "text/html":
		return typeHTML
	case "text/plain", "text/*":
		return typePlain
	case "application/xml":
		return typeXML
	}
	return typeNone
}

// upstreamFailed maps what went wrong with the upstream to Kong's answers.
func (h *Handler) upstreamFailed(x *exchange.Exchange, err error) error {
	var exit *plugin.Exit
	if errors.As(err, &exit) { // a plugin that watches the request body ended it
		return exit
	}
	if errors.Is(err, errTooLarge) {
		return errTooLarge
	}
	if errors.Is(err, errPanic) {
		return errPanic
	}
	f := &failure{status: 502, nginx: true, cause: err}
	var e *upstream.Error
	if errors.As(err, &e) {
		f.status = e.Status()
	}
	f.message = plugin.Message(f.status)
	if e != nil && e.Kind == upstream.Resolve {
		f.message, f.nginx = "name resolution failed", false
	}
	level := slog.LevelWarn
	if f.status < 500 {
		level = slog.LevelInfo // the client's doing: it could fill the disk with it
	}
	h.log.Log(context.Background(), level, "upstream failed", "error", err, "status", f.status, "host", x.Upstream.Host, "port", x.Upstream.Port,
		"tries", x.Tries, "request_id", x.RequestID)
	return f
}

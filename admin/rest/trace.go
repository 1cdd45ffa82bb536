package rest

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"concord/admin/service"
)

// Tracer tells how this node's proxy would route a request.
type Tracer interface {
	// Trace routes q without sending anything. Errors are about the request's path.
	Trace(q TraceQuery) (Trace, error)
}

// TraceQuery is a request that somebody might send.
type TraceQuery struct {
	Method, Host string
	Path         string // as sent: escaped, without the query
	TLS          bool
	SNI          string
	Headers      []TraceHeader
}

// TraceHeader is a header field.
type TraceHeader struct{ Name, Value string }

// Trace is how a request is routed.
type Trace struct {
	Path    string        `json:"path"`    // normalised: what is matched and sent
	Matched []TracedRoute `json:"matched"` // the winner first
	Near    []TracedRoute `json:"near"`    // did not match; the nearest first
	// The rest is about the winner, and what runs without a route when there is none.
	Plugins  []TracedPlugin `json:"plugins"` // in running order; those of a consumer are known only once it is
	Service  string         `json:"service,omitempty"`
	Upstream string         `json:"upstream,omitempty"` // URL
	Notes    []string       `json:"notes"`              // what else decides
}

// TracedRoute is a route, or one of several paths of it.
type TracedRoute struct {
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Path   string        `json:"path,omitempty"`
	Lost   string        `json:"lost,omitempty"`
	Checks []TracedCheck `json:"checks"`
}

// TracedCheck is one criterion of a route.
type TracedCheck struct {
	Criterion string `json:"criterion"`
	OK        bool   `json:"ok"`
	Why       string `json:"why"`
}

// TracedPlugin is a plugin that runs.
type TracedPlugin struct {
	Name     string   `json:"name"`
	ID       string   `json:"id"`
	Priority int      `json:"priority"`
	Scope    string   `json:"scope"`
	Phases   []string `json:"phases"`
}

func (a *API) traceRoutes() {
	if a.o.Tracer != nil {
		a.router.add(http.MethodPost, "/debug/route", a.needs(service.TraceRoutes, a.trace))
	}
}

// trace answers which route a request would take.
func (a *API) trace(c *call) (answer, error) {
	args, err := readArguments(c)
	if err != nil {
		return answer{}, err
	}
	q := TraceQuery{Method: args.text("method"), SNI: args.text("sni")}
	text := args.required("url")
	u, err := url.Parse(text)
	if text != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		args.refuse("url", "expected a URL such as http://example.com/path")
	}
	given := args.take("headers")
	headers, ok := given.(map[string]any)
	if given != nil && !ok {
		args.refuse("headers", "expected a map of texts")
	}
	for _, name := range sortedKeys(headers) {
		value, ok := headers[name].(string)
		if !ok {
			args.refuse("headers", "expected a map of texts")
		}
		q.Headers = append(q.Headers, TraceHeader{name, value})
	}
	if err := args.err(); err != nil {
		return answer{}, err
	}
	q.TLS, q.Host, q.Path = u.Scheme == "https", u.Host, u.EscapedPath()
	if q.Method == "" {
		q.Method = http.MethodGet
	}
	if i := slices.IndexFunc(q.Headers, func(h TraceHeader) bool { return strings.EqualFold(h.Name, "Host") }); i >= 0 {
		q.Host = q.Headers[i].Value
	}
	if q.TLS && q.SNI == "" {
		q.SNI = u.Hostname()
	}
	t, err := a.o.Tracer.Trace(q)
	if err != nil {
		return answer{}, malformed("url: " + err.Error())
	}
	return answer{status: http.StatusOK, body: t}, nil
}

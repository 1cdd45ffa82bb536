// Package rest is Kong's Admin API on the wire: paths, methods, forms, JSON, error bodies, and /cluster for gwctl.
//
// Handlers are generated from the entities' schemas; what an entity means is package service's business. The package
// listens on nothing and knows no sockets: New returns an http.Handler.
package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"concord/admin/auth"
	"concord/admin/service"
	"concord/fsm/schema"
)

// Plugin is an installed plugin as the Admin API presents it.
type Plugin struct {
	Name     string
	Version  string
	Priority int
	Schema   *schema.Schema // of its row: config, protocols, forbidden scopes
}

// Info is what GET / and GET /status tell about this node. Functions may be nil.
type Info struct {
	NodeID        string // without a Cluster, which knows better: joining gives a node a new id
	Hostname      string
	Version       string                // of this program; clients of Kong see KongVersion
	Configuration func() map[string]any // settings by their kong.conf names, secrets masked
	Counters      func() Counters
	Ready         func() error // nil: traffic may be sent to this node
	// Metrics is the text of GET /metrics; nil: the path is absent.
	Metrics  func() (body []byte, contentType string)
	LogLevel *LogLevel // nil: /debug/node/log-level is absent
}

// Counters of the proxy's connections since the start.
type Counters struct {
	Active, Accepted, Requests uint64
}

// Options of New. Service is required, for New also Guard and Door.
type Options struct {
	Service *service.Service
	Guard   *auth.Guard
	Door    *auth.Door
	Cluster Cluster // nil: /cluster is absent
	// Balancer is this node's; nil: the health of upstreams is absent.
	Balancer Balancer
	// Tracer is this node's proxy; nil: /debug/route is absent.
	Tracer  Tracer
	ACME    ACME // nil: /acme is absent
	Plugins []Plugin
	Info    Info
	Log     *slog.Logger
}

// API is the Admin API.
type API struct {
	o      Options
	router router
	drain  atomic.Bool // somebody wants no more traffic sent here

	secretRefs map[string]bool // path parameters whose value may be a secret
}

// New makes the Admin API.
func New(o Options) *API {
	a := newAPI(o)
	a.nodeRoutes()
	a.debugRoutes()
	a.traceRoutes()
	a.schemaRoutes()
	a.wasmRoutes()
	a.entityRoutes()
	a.groupRoutes()
	a.apiRoutes()
	a.upstreamRoutes()
	a.clusterRoutes()
	a.configRoutes()
	a.tokenRoutes()
	a.acmeRoutes()
	a.auditRoutes()
	return a
}

// NewStatus makes the reduced API of the status listener: GET /status, and /status/ready with its switch. It is asked by load
// balancers and probes under any name, so no guard stands before it; no web page may read it or use the switch.
func NewStatus(o Options) *API {
	o.Guard, o.Door = nil, nil
	a := newAPI(o)
	a.statusRoutes()
	a.router.add(http.MethodPost, "/status/ready", a.setReady)
	return a
}

func newAPI(o Options) *API {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &API{o: o, secretRefs: map[string]bool{}}
}

// call is one request.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	params []string // decoded path parameters, in order
}

// query is the first value of a query argument.
func (c *call) query(name string) string { return c.r.URL.Query().Get(name) }

// stream is JSON of a known size that is written bit by bit.
type stream struct {
	size  int
	write func(io.Writer) error
}

// answer is what a handler wants sent. body is JSON as bytes or a stream, text/plain for a string, anything else is encoded, nil is no body.
type answer struct {
	status int
	body   any
	index  uint64 // of the write or of what was read; 0: this node's
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ans, err := a.serve(w, r)
	if err != nil {
		ans = a.refusal(w, r, err)
	}
	h := w.Header()
	h.Set("Server", "concord/"+a.o.Info.Version)
	if ans.index == 0 {
		ans.index = a.o.Service.Index()
	}
	h.Set("X-Config-Index", strconv.FormatUint(ans.index, 10))
	var body []byte
	size, write := -1, func(w io.Writer) error { _, err := w.Write(body); return err }
	switch b := ans.body.(type) {
	case nil:
	case stream:
		size, write = b.size, b.write
	case []byte:
		body = b
	case string:
		body = []byte(b)
		h.Set("Content-Type", "text/plain")
	default:
		body = encode(b)
	}
	if body != nil {
		size = len(body)
	}
	if size >= 0 {
		if h.Get("Content-Type") == "" {
			h.Set("Content-Type", "application/json; charset=utf-8")
		}
		h.Set("Content-Length", strconv.Itoa(size))
	}
	h.Set("X-Kong-Admin-Latency", strconv.FormatInt(time.Since(start).Milliseconds(), 10))
	w.WriteHeader(ans.status)
	if r.Method != http.MethodHead {
		_ = write(w) // the client may be gone
	}
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) (ans answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.o.Log.Error("admin handler panicked", "method", r.Method, "path", a.LogPath(r.URL.EscapedPath()), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if a.o.Guard != nil {
		if err := a.o.Guard.Check(r); err != nil {
			return answer{}, &statusError{http.StatusForbidden, err.Error(), ""}
		}
		cors(w.Header(), r)
	}
	if strings.Count(r.URL.RawQuery, "&") >= maxArgs {
		return answer{}, malformed("Too many arguments")
	}
	if a.o.Door != nil && r.Method != http.MethodOptions { // browsers ask for permission without credentials
		actor, err := a.o.Door.Enter(r)
		if err != nil {
			return answer{}, err
		}
		r = r.WithContext(service.WithActor(r.Context(), actor))
	}
	e, params := a.router.find(r.URL.EscapedPath())
	if a.o.Door != nil && r.Method != http.MethodOptions && !(e != nil && e.path == tokensPath && r.Method == http.MethodPost) { // the first token is made without one
		if err := a.o.Service.Admit(r.Context()); err != nil {
			return answer{}, err
		}
	}
	if e == nil {
		return answer{}, &statusError{http.StatusNotFound, "Not found", ""}
	}
	for _, p := range params {
		if !utf8.ValidString(p) {
			return answer{}, malformed("the path has invalid utf-8")
		}
	}
	if r.Method == http.MethodOptions {
		return options(w.Header(), r, e), nil
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	handle := e.methods[method]
	if handle == nil {
		w.Header().Set("Allow", strings.Join(e.allow(), ", "))
		return answer{}, notAllowed()
	}
	if text := r.Header.Get("X-Min-Config-Index"); text != "" {
		index, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return answer{}, malformed("X-Min-Config-Index must be a number, as X-Config-Index of an earlier answer gave it")
		}
		if err := a.o.Service.WaitIndex(r.Context(), index); err != nil {
			return answer{}, err
		}
	}
	if method == http.MethodGet {
		wish := r.Header.Get("X-Consistency")
		if q := r.URL.Query(); q.Has("consistency") {
			wish = q.Get("consistency")
		}
		consistency, err := service.ParseConsistency(wish)
		if err != nil {
			return answer{}, err
		}
		r = r.WithContext(service.WithConsistency(r.Context(), consistency))
	}
	return handle(&call{w, r, params})
}

// cors lets the web pages that the guard admitted read the answer. Kong Manager sends credentials, for which "*" is not enough.
func cors(h http.Header, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		origin = "*"
	} else {
		h.Set("Access-Control-Allow-Credentials", "true")
		h.Set("Vary", "Origin")
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "ETag, X-Config-Index, X-Kong-Admin-Latency")
}

func options(h http.Header, r *http.Request, e *endpoint) answer {
	methods := strings.Join(e.allow(), ", ")
	h.Set("Allow", methods)
	h.Set("Access-Control-Allow-Methods", methods)
	headers := r.Header.Get("Access-Control-Request-Headers")
	if headers == "" {
		headers = "Content-Type"
	}
	h.Set("Access-Control-Allow-Headers", headers)
	return answer{status: http.StatusNoContent}
}

// statuses maps the service's kinds to HTTP, as Kong maps its codes.
var statuses = map[service.Kind]int{
	service.UniqueTaken: http.StatusConflict, service.NotFound: http.StatusNotFound, service.Missing: http.StatusNotFound,
	service.Unavailable: http.StatusServiceUnavailable, service.Unknown: http.StatusServiceUnavailable,
	service.Busy:            http.StatusTooManyRequests,
	service.Unauthenticated: http.StatusUnauthorized, service.Forbidden: http.StatusForbidden,
	service.IndexAhead: http.StatusPreconditionFailed, service.Changed: http.StatusPreconditionFailed, service.Internal: http.StatusInternalServerError,
}

// errorBody is Kong's error envelope, and hint, which Kong does not have.
type errorBody struct {
	Message string         `json:"message"`
	Code    int            `json:"code,omitempty"`
	Name    string         `json:"name,omitempty"`
	Fields  map[string]any `json:"fields,omitempty"`
	Options map[string]any `json:"options,omitempty"`
	Hint    string         `json:"hint,omitempty"`
}

func (a *API) refusal(w http.ResponseWriter, r *http.Request, err error) answer {
	var direct *statusError
	if errors.As(err, &direct) {
		return answer{status: direct.status, body: errorBody{Message: direct.message, Hint: direct.hint}}
	}
	var config *configError
	if errors.As(err, &config) {
		return answer{status: http.StatusBadRequest, body: config}
	}
	var limited *auth.LimitedError
	if errors.As(err, &limited) {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(limited.Wait.Seconds()+0.999))))
		return answer{status: http.StatusTooManyRequests, body: errorBody{Message: limited.Error()}}
	}
	var e *service.Error
	if !errors.As(err, &e) || e.Kind == service.Internal {
		a.o.Log.Error("admin request failed", "method", r.Method, "path", a.LogPath(r.URL.EscapedPath()), "error", err)
		return answer{status: http.StatusInternalServerError, body: errorBody{Message: "An unexpected error occurred"}}
	}
	status, ok := statuses[e.Kind]
	if !ok {
		status = http.StatusBadRequest
	}
	switch status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "1")
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="concord"`)
	case http.StatusForbidden:
		w.Header().Set("WWW-Authenticate", `Bearer realm="concord", error="insufficient_scope"`) // RFC 6750, 3.1
	}
	body := errorBody{Message: e.Message, Name: e.Name, Fields: e.Fields, Options: e.Options, Hint: e.Hint}
	if e.Name != "" {
		body.Code = int(e.Kind)
	}
	return answer{status: status, body: body}
}

// encode is JSON as Kong's clients expect it: no HTML escapes, no newline.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // a mistake in this package: everything encoded here is plain data
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Package rpc is the Admin API for programs: the services of proto/concord/admin/v1 over gRPC, gRPC-Web and Connect.
//
// It translates: what an entity means and who may touch it is package service's business, as on Kong's paths, which package
// rest serves. The package listens on nothing: New returns an http.Handler for the paths that Serves names.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"

	"concord/admin/auth"
	"concord/admin/service"
	"concord/cluster"
	"concord/proto/concord/admin/v1/adminv1connect"
)

// maxMessage bounds a request after decompression, in bytes. Kong's Admin API takes bodies of 10 MiB; those of whole configurations are larger.
const maxMessage = 64 << 20

// Membership changes who belongs to the cluster; *cluster.Node has it.
type Membership interface {
	CreateToken(context.Context, cluster.TokenOptions) (string, error)
	Join(ctx context.Context, addr, token string, discard bool) error
	Leave(context.Context) error
	Remove(ctx context.Context, nodeID string) error
}

// Cluster is what the API needs of the cluster.
type Cluster interface {
	Membership
	ID() string
	Status(context.Context) cluster.Status
	TransferLeadership(ctx context.Context, to string) error
}

// Options of New. All but Log are required.
type Options struct {
	Service *service.Service
	Guard   *auth.Guard
	Door    *auth.Door
	Cluster Cluster
	Log     *slog.Logger
}

// API is the Admin API for programs.
type API struct {
	o      Options
	mux    *http.ServeMux
	errors *connect.ErrorWriter

	closing context.Context
	close   context.CancelFunc
}

// New makes the API.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &API{o: o, mux: http.NewServeMux(), errors: connect.NewErrorWriter()}
	a.closing, a.close = context.WithCancel(context.Background())
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
			o.Log.Error("admin call panicked", "procedure", spec.Procedure, "panic", p, "stack", string(debug.Stack()))
			return connect.NewError(connect.CodeInternal, errInternal)
		}),
	}
	a.mux.Handle(adminv1connect.NewConfigServiceHandler(config{a}, options...))
	a.mux.Handle(adminv1connect.NewClusterServiceHandler(members{a}, options...))
	reflector := grpcreflect.NewStaticReflector(adminv1connect.ConfigServiceName, adminv1connect.ClusterServiceName)
	a.mux.Handle(grpcreflect.NewHandlerV1(reflector, options...))
	a.mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, options...))
	return a
}

// Serves tells whether a request is for this package. No path of Kong's begins like that.
func Serves(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/concord.admin.") || strings.HasPrefix(r.URL.Path, "/grpc.reflection.")
}

// ServeHTTP lets in whom the guard and the door of the Admin API let in.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := a.o.Guard.Check(r); err != nil {
		a.refuse(w, r, connect.NewError(connect.CodePermissionDenied, err))
		return
	}
	cors(w.Header(), r)
	if r.Method == http.MethodOptions { // browsers ask for permission without credentials
		w.WriteHeader(http.StatusNoContent)
		return
	}
	actor, err := a.o.Door.Enter(r)
	if err == nil {
		r = r.WithContext(service.WithActor(r.Context(), actor))
		err = a.o.Service.Admit(r.Context())
	}
	if err == nil {
		err = a.await(r)
	}
	if err != nil {
		a.refuse(w, r, a.refusal(r.Context(), err))
		return
	}
	a.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), writerKey{}, writer{http.NewResponseController(w)})))
}

// await holds a request back until this node serves the index that it asks for.
func (a *API) await(r *http.Request) error {
	text := r.Header.Get("X-Min-Config-Index")
	if text == "" {
		return nil
	}
	index, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return malformed("X-Min-Config-Index must be a number, as X-Config-Index of an earlier answer gave it")
	}
	return a.o.Service.WaitIndex(r.Context(), index)
}

// refuse answers in the protocol of the request.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if a.errors.IsSupported(r) {
		_ = a.errors.Write(w, r, err) // the client may be gone
		return
	}
	status := http.StatusForbidden
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		status = http.StatusUnauthorized
	case connect.CodeResourceExhausted:
		status = http.StatusTooManyRequests
	}
	http.Error(w, err.Error(), status)
}

// cors lets the web pages that the guard admitted call, and read the answer: connect-web sends and reads more headers than browsers allow
// without asking.
func cors(h http.Header, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Set("Vary", "Origin")
	h.Set("Access-Control-Expose-Headers", indexHeader+", Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin")
	if r.Method == http.MethodOptions {
		h.Set("Access-Control-Allow-Methods", "GET, POST")
		h.Set("Access-Control-Allow-Headers", "Content-Type, Connect-Protocol-Version, Connect-Timeout-Ms, Grpc-Timeout, X-Grpc-Web, X-User-Agent, "+
			"Authorization, Kong-Admin-Token, X-Min-Config-Index")
		h.Set("Access-Control-Max-Age", "600")
	}
}

const indexHeader = "X-Config-Index"

// answer is a response with the index of what it reflects.
func answer[T any](m *T, index uint64) *connect.Response[T] {
	res := connect.NewResponse(m)
	res.Header().Set(indexHeader, strconv.FormatUint(index, 10))
	return res
}

var errInternal = errors.New("an unexpected error occurred")

func malformed(format string, args ...any) *service.Error {
	return &service.Error{Kind: service.Malformed, Message: fmt.Sprintf(format, args...)}
}

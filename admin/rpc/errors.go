package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"concord/admin/auth"
	"concord/admin/service"
	"concord/cluster"
	adminv1 "concord/proto/concord/admin/v1"
)

// codes maps the service's kinds, once. A kind that is not here is a mistake in the request.
var codes = map[service.Kind]connect.Code{
	service.PrimaryKeyTaken: connect.CodeAlreadyExists, service.UniqueTaken: connect.CodeAlreadyExists,
	service.ForeignKey: connect.CodeFailedPrecondition, service.Referenced: connect.CodeFailedPrecondition,
	service.NotFound: connect.CodeNotFound, service.Missing: connect.CodeNotFound,
	service.Unavailable: connect.CodeUnavailable, service.Busy: connect.CodeResourceExhausted,
	service.Unknown:    connect.CodeDeadlineExceeded, // "may be returned even if the operation has completed", and clients do not repeat it by themselves
	service.IndexAhead: connect.CodeOutOfRange, service.Internal: connect.CodeInternal,
	service.Changed:         connect.CodeAborted,
	service.Unauthenticated: connect.CodeUnauthenticated, service.Forbidden: connect.CodePermissionDenied,
}

// refusal is an error as clients get it. What the gateway did not foresee is logged and not shown.
func (a *API) refusal(ctx context.Context, err error) *connect.Error {
	out := a.translate(ctx, err)
	out.Meta().Set(indexHeader, strconv.FormatUint(a.o.Service.Index(), 10))
	return out
}

func (a *API) translate(ctx context.Context, err error) *connect.Error {
	var done *connect.Error
	if errors.As(err, &done) {
		return done
	}
	var limited *auth.LimitedError
	if errors.As(err, &limited) {
		out := connect.NewError(connect.CodeResourceExhausted, limited)
		out.Meta().Set("Retry-After", strconv.Itoa(max(1, int(limited.Wait.Seconds()+0.999))))
		return out
	}
	var e *service.Error
	switch {
	case errors.As(err, &e) && e.Kind != service.Internal:
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
		}
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	default:
		a.o.Log.Error("admin call failed", "error", err)
		return connect.NewError(connect.CodeInternal, errInternal)
	}
	code, ok := codes[e.Kind]
	if !ok {
		code = connect.CodeInvalidArgument
	}
	out := connect.NewError(code, e)
	detail := &adminv1.Refusal{Name: e.Name, Hint: e.Hint}
	if e.Name != "" {
		detail.Code = int32(e.Kind)
	}
	fields := e.Fields
	if len(fields) == 0 {
		fields = e.Options
	}
	if bad := violations("", fields); len(bad) > 0 {
		attach(out, &errdetails.BadRequest{FieldViolations: bad})
		if text, err := json.Marshal(fields); err == nil {
			detail.Fields = &structpb.Struct{}
			if detail.Fields.UnmarshalJSON(text) != nil {
				detail.Fields = nil
			}
		}
	}
	if !proto.Equal(detail, &adminv1.Refusal{}) {
		attach(out, detail)
	}
	return out
}

func attach(e *connect.Error, m proto.Message) {
	if d, err := connect.NewErrorDetail(m); err == nil {
		e.AddDetail(d)
	}
}

// violations are the texts in Kong's nested fields, each with its path.
func violations(path string, v any) (list []*errdetails.BadRequest_FieldViolation) {
	switch v := v.(type) {
	case nil:
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			at := name
			if path != "" {
				at = path + "." + name
			}
			list = append(list, violations(at, v[name])...)
		}
	case []any:
		for i, x := range v {
			list = append(list, violations(fmt.Sprintf("%s[%d]", path, i), x)...)
		}
	default:
		list = append(list, &errdetails.BadRequest_FieldViolation{Field: path, Description: fmt.Sprint(v)})
	}
	return list
}

// clusterError maps the cluster's errors.
func (a *API) clusterError(ctx context.Context, err error) error {
	var refused *cluster.RefusedError
	var lost *cluster.NoLeaderError
	code := connect.Code(0)
	switch {
	case errors.Is(err, cluster.ErrUnknownNode):
		code = connect.CodeNotFound
	case errors.Is(err, cluster.ErrHoldsData):
		code = connect.CodeFailedPrecondition
	case errors.As(err, &refused):
		code = connect.CodeInvalidArgument
	case errors.As(err, &lost), errors.Is(err, cluster.ErrNotLeader), errors.Is(err, cluster.ErrOutcomeUnknown), errors.Is(err, cluster.ErrClosed):
		code = connect.CodeUnavailable
	default:
		return a.refusal(ctx, err)
	}
	return connect.NewError(code, err)
}

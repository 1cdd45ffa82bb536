package rpc

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"concord/admin/service"
	adminv1 "concord/proto/concord/admin/v1"
)

// stallTimeout is how long a client may take to receive one message.
const stallTimeout = 30 * time.Second

var errClosing = errors.New("this node is stopping: watch at another one, from the last index")

// Watch tells every change behind an index.
func (c config) Watch(ctx context.Context, req *connect.Request[adminv1.WatchRequest], stream *connect.ServerStream[adminv1.WatchResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.closing, func() { cancel(errClosing) })()
	pace(ctx).begin()
	stream.ResponseHeader().Set(indexHeader, strconv.FormatUint(c.o.Service.Index(), 10))
	if err := stream.Send(nil); err != nil { // the headers, so that the client knows that it is heard
		return err
	}
	err := c.o.Service.Watch(ctx, service.WatchOptions{From: req.Msg.FromIndex, Kinds: req.Msg.GetKinds()}, func(b service.Batch) error {
		m := &adminv1.WatchResponse{Index: b.Index, More: b.More, Reset_: b.Reset}
		for _, h := range b.Changes {
			x := &adminv1.Change{Kind: h.Kind, Id: h.ID, Before: h.Before, After: h.After}
			if h.After {
				var err error
				if x.Entity, err = entityOf(h.Kind, h.Row, h.Tag, req.Msg.GetFormat()); err != nil {
					return err
				}
			}
			m.Changes = append(m.Changes, x)
		}
		defer pace(ctx).expect()()
		return stream.Send(m)
	})
	switch {
	case context.Cause(ctx) == errClosing:
		return connect.NewError(connect.CodeUnavailable, errClosing)
	case err != nil && ctx.Err() == nil:
		return c.refusal(ctx, err)
	}
	return err
}

// Close ends what would not end by itself: watching.
func (a *API) Close() { a.close() }

// writer is the connection side of a request.
type writer struct{ c *http.ResponseController }

type writerKey struct{}

func pace(ctx context.Context) writer {
	w, _ := ctx.Value(writerKey{}).(writer)
	return w
}

// begin lifts the limit on the time of reading a request, which is over: it would end the stream.
func (w writer) begin() {
	if w.c != nil {
		_ = w.c.SetReadDeadline(time.Time{}) // without it the stream ends early, and is taken up again
	}
}

// expect limits the time of one write, up to the call of what it returns.
func (w writer) expect() (done func()) {
	if w.c == nil {
		return func() {}
	}
	_ = w.c.SetWriteDeadline(time.Now().Add(stallTimeout))
	return func() { _ = w.c.SetWriteDeadline(time.Time{}) }
}

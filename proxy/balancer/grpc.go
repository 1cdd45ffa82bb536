package balancer

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"concord/proxy/exchange"
)

// statusOf is the HTTP status that an answer counts as. A gRPC call says what became of it behind its last message: then it is not known
// yet, and the body tells when it comes to its end.
func (d *Dispatch) statusOf(x *exchange.Exchange) (status int, known bool) {
	p := &x.Response
	if !x.Upstream.HTTP2 || p.Status != http.StatusOK || !strings.HasPrefix(p.Header.Get("Content-Type"), "application/grpc") {
		return p.Status, true
	}
	if s := p.Header.Get("grpc-status"); s != "" {
		return grpcToHTTP(x, s), true
	}
	if p.Body == nil {
		return grpcToHTTP(x, p.Trailer.Get("grpc-status")), true
	}
	if d.trial {
		return p.Status, true // a call may last for hours, in which nobody else could try the peer
	}
	d.answer = grpcAnswer{p.Body, d, x}
	p.Body = &d.answer
	return 0, false
}

// grpcAnswer is the body of a gRPC answer, whose trailers are complete when it ends. One that breaks off says nothing: who broke it is not
// known.
type grpcAnswer struct {
	exchange.Body
	d *Dispatch
	x *exchange.Exchange
}

// Next implements exchange.Body.
func (b *grpcAnswer) Next() ([]byte, error) {
	chunk, err := b.Body.Next()
	if err == io.EOF && b.d != nil {
		b.d.verdict(grpcToHTTP(b.x, b.x.Response.Trailer.Get("grpc-status")))
		b.d = nil
	}
	return chunk, err
}

// Ready implements exchange.Readier.
func (b *grpcAnswer) Ready() bool { return exchange.Ready(b.Body) }

// grpcToHTTP is the HTTP status that a gRPC status counts as, by Envoy's table. That the client's own deadline has passed is nobody's failure:
// with short ones, a client could take out all targets.
func grpcToHTTP(x *exchange.Exchange, status string) int {
	n, err := strconv.Atoi(status)
	if err != nil || n < 0 || n >= len(httpOfGRPC) {
		return http.StatusInternalServerError // no status, or none that there is, is UNKNOWN to every client
	}
	if n == deadlineExceeded && x.Request.Header.Has("grpc-timeout") {
		return statusClientLeft
	}
	return httpOfGRPC[n]
}

const (
	deadlineExceeded = 4
	statusClientLeft = 499 // nginx's
)

var httpOfGRPC = [...]int{
	0: http.StatusOK, 1: statusClientLeft, 2: http.StatusInternalServerError, 3: http.StatusBadRequest, deadlineExceeded: http.StatusGatewayTimeout,
	5: http.StatusNotFound, 6: http.StatusConflict, 7: http.StatusForbidden, 8: http.StatusTooManyRequests, 9: http.StatusBadRequest,
	10: http.StatusConflict, 11: http.StatusBadRequest, 12: http.StatusNotImplemented, 13: http.StatusInternalServerError,
	14: http.StatusServiceUnavailable, 15: http.StatusInternalServerError, 16: http.StatusUnauthorized,
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"

	"concord/proxy/h1"
)

// Kind says what went wrong, in the terms of Kong's answers.
type Kind uint8

// The kinds of failure.
const (
	Resolve  Kind = iota + 1 // the name has no address: 503 name resolution failed
	Connect                  // refused, unreachable, TLS handshake failed: 502
	Timeout                  // connecting, writing or reading took too long: 504
	Closed                   // the connection broke before an answer: 502
	Invalid                  // the answer is not HTTP/1.1 as it should be: 502
	Refused                  // the guard forbids the address, or the node has no more files: 503
	Request                  // the client's body was broken or too slow: 400 or 408
	Canceled                 // the request could not be written: 500
)

// Error is why there is no answer of the upstream.
type Error struct {
	Kind Kind
	Op   string
	Addr netip.AddrPort
	Err  error

	sent     bool // the upstream may have seen the request
	answered bool // a part of an answer was received
}

func (e *Error) Error() string {
	if !e.Addr.IsValid() {
		return fmt.Sprintf("upstream: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("upstream: %s %s: %v", e.Op, e.Addr, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Status is what the client is told (Kong's and nginx's choice).
func (e *Error) Status() int {
	switch e.Kind {
	case Resolve, Refused:
		return http.StatusServiceUnavailable
	case Timeout:
		return http.StatusGatewayTimeout
	case Request:
		var f *h1.Fault
		if errors.As(e.Err, &f) {
			return f.Status
		}
		return http.StatusBadRequest
	case Canceled:
		return http.StatusInternalServerError
	}
	return http.StatusBadGateway
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// noFiles tells that it is the node that lacks something: there is nothing wrong with the upstream.
func noFiles(err error) bool { return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) }

func connectKind(err error) Kind {
	if isTimeout(err) {
		return Timeout
	}
	return Connect
}

func kindOf(err error) Kind {
	var body *h1.RequestBodyError
	var fault *h1.Fault
	switch {
	case errors.As(err, &body):
		return Request
	case errors.Is(err, h1.ErrRequest):
		return Canceled
	case errors.As(err, &fault), errors.Is(err, h1.ErrInformational), errors.Is(err, h1.ErrUpgrade):
		return Invalid
	case isTimeout(err):
		return Timeout
	case errors.Is(err, h1.ErrNoResponse), errors.Is(err, h1.ErrStale), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return Closed
	}
	return Closed
}

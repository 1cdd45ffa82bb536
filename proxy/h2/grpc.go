package h2

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"concord/proxy/exchange"
)

const grpcType = "application/grpc"

// isGRPC tells whether a request is gRPC by its content type, as Kong does; grpc-web is not.
func isGRPC(r *exchange.Request) bool {
	t := r.Header.Get("Content-Type")
	if len(t) < len(grpcType) || !exchange.EqualFold(t[:len(grpcType)], grpcType) {
		return false
	}
	return len(t) == len(grpcType) || t[len(grpcType)] == '+' || t[len(grpcType)] == ';' || t[len(grpcType)] == ' '
}

// AnswerGRPC turns an answer of the gateway itself into what gRPC clients read: no body, the status in grpc-status, the
// message in grpc-message (Kong; "Trailers-Only" in the gRPC specification). Whoever wrote the answer need not know.
func AnswerGRPC(x *exchange.Exchange) {
	if !isGRPC(&x.Request) {
		return
	}
	r := &x.Response
	h := &r.Header
	message := h.Get("grpc-message")
	if !h.Has("grpc-status") {
		h.Set("grpc-status", strconv.Itoa(exchange.GRPCStatus(r.Status)))
		if message == "" {
			message = grpcMessage(r)
		}
	}
	if message != "" {
		h.Set("grpc-message", escapeMessage(message))
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	h.Set("Content-Type", grpcType)
	h.Del("Content-Length")
	r.Body, r.Length = nil, 0
}

// trailersOnly tells whether a response without a body is one that gRPC clients expect without a length.
func trailersOnly(r *exchange.Response) bool { return r.Header.Has("grpc-status") }

// maxMessage bounds what is read of an answer to find its message.
const maxMessage = 8 << 10

// grpcMessage is what an answer says: the message of a JSON object, the text of a plain body, else the status's name.
func grpcMessage(r *exchange.Response) string {
	if r.Body == nil {
		return http.StatusText(r.Status)
	}
	var b []byte
	for len(b) <= maxMessage {
		p, err := r.Body.Next()
		b = append(b, p...)
		if err != nil && err != io.EOF {
			return http.StatusText(r.Status)
		}
		if err == io.EOF {
			break
		}
	}
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &said) == nil && said.Message != "" {
		return said.Message
	}
	if len(b) <= maxMessage && strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		return strings.TrimSpace(string(b))
	}
	return http.StatusText(r.Status)
}

// escapeMessage percent-encodes what may not stand in grpc-message (gRPC over HTTP/2, "Responses").
func escapeMessage(m string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(m); i++ {
		if c := m[i]; c < 0x20 || c > 0x7e || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

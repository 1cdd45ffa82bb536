package balancer

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"

	"concord/fsm/entity"
)

// grpcUnimplemented is the status of a server without health service.
const grpcUnimplemented = "12"

// askGRPC asks the gRPC health service (grpc.health.v1) whether the server serves, or one of its services if http_path names it
// ("/pkg.Service"). A server that speaks gRPC and has no health service passes: Kong asks for no more than a connection.
func askGRPC(ctx context.Context, conn net.Conn, a *entity.ActiveChecks, host string) outcome {
	scheme, protocols := "http", new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	if a.Type == "grpcs" {
		scheme = "https"
		protocols.SetHTTP2(true)
	}
	use := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	t := &http.Transport{DialContext: use, DialTLSContext: use, Protocols: protocols, MaxResponseHeaderBytes: maxProbeAnswer}
	defer t.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://host/grpc.health.v1.Health/Check", bytes.NewReader(healthRequest(strings.Trim(a.HTTPPath, "/"))))
	if err != nil {
		return httpFailure
	}
	for name, values := range a.Headers {
		for _, v := range values {
			if http.CanonicalHeaderKey(name) != "Host" {
				r.Header.Add(name, v)
			} else {
				host = v
			}
		}
	}
	r.Host = host
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("User-Agent", "")
	res, err := t.RoundTrip(r)
	if err != nil {
		return connectFailure(err)
	}
	defer res.Body.Close()
	message, err := io.ReadAll(io.LimitReader(res.Body, maxProbeAnswer))
	if err != nil {
		return connectFailure(err)
	}
	status := res.Trailer.Get("Grpc-Status")
	if status == "" {
		status = res.Header.Get("Grpc-Status") // an answer without a message
	}
	if res.StatusCode == http.StatusOK && (status == grpcUnimplemented || status == "0" && serving(message)) {
		return success
	}
	return httpFailure
}

// healthRequest is a HealthCheckRequest, whose field 1 is the name of the service, behind gRPC's prefix.
func healthRequest(service string) []byte {
	var m []byte
	if service != "" {
		m = append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service))), service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// serving reads a HealthCheckResponse, whose field 1 is 1 for SERVING. Fields of later versions may come before and behind it.
func serving(b []byte) bool {
	if len(b) < 5 || b[0] != 0 || int(binary.BigEndian.Uint32(b[1:])) != len(b)-5 {
		return false
	}
	status := uint64(0)
	for b = b[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return false
		}
		v, size := uint64(0), 0
		switch b = b[n:]; tag & 7 {
		case 0:
			if v, size = binary.Uvarint(b); size <= 0 {
				return false
			}
			if tag>>3 == 1 {
				status = v
			}
		case 1:
			size = 8
		case 2:
			if v, size = binary.Uvarint(b); size <= 0 || v > uint64(len(b)) {
				return false
			}
			size += int(v)
		case 5:
			size = 4
		default:
			return false
		}
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return status == 1
}

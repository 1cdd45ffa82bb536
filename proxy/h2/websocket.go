package h2

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6455 §4.2.2 demands it; nothing is protected by it
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"concord/proxy/exchange"
)

// webSocket is the protocol that CONNECT may ask for (RFC 8441).
const webSocket = "websocket"

var errAccept = errors.New("h2: the upstream's Sec-WebSocket-Accept is wrong")

const (
	keyField    = "sec-websocket-key"
	acceptField = "sec-websocket-accept"
)

// beginWebSocket turns a CONNECT into the request that HTTP/1.1 knows, with a key of the gateway's own (RFC 8441 §5).
func beginWebSocket(r *exchange.Request) {
	var key [16]byte
	_, _ = rand.Read(key[:]) // it never fails
	r.Method, r.Upgrade = http.MethodGet, webSocket
	r.Header.Set(keyField, base64.StdEncoding.EncodeToString(key[:]))
}

// accepts is what an upstream must answer to a key (RFC 6455 §4.2.2).
func accepts(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // see the import
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tunnel answers 200 and copies both ways until one side has ended, or nothing has moved in either direction for the upstream's read timeout.
func (s *serverStream) tunnel() {
	x, up := &s.own, s.own.Response.Tunnel
	defer up.Close()
	r := &x.Response
	if r.Header.Get(acceptField) != accepts(x.Request.Header.Get(keyField)) {
		x.Err = errAccept
		r.Header.Reset()
		r.Status, r.Tunnel, r.Body = http.StatusBadGateway, nil, nil
		s.respond()
		return
	}
	r.Header.Del(acceptField)
	r.Status = http.StatusOK
	if !s.makeHead(r, false) {
		s.abort(errInjection)
		return
	}
	if !s.put(s.block, nil, false, true) {
		return
	}
	c := s.c
	c.mu.Lock()
	s.readTime, s.lateErr = x.Upstream.ReadTimeout, errStalled
	c.mu.Unlock()
	in := (*body)(&s.stream)
	var moved atomic.Int64 // how often bytes arrived from either side
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			before := moved.Load()
			p, err := up.Next()
			if len(p) > 0 {
				moved.Add(1)
				if !s.put(nil, p, false, true) {
					break
				}
			}
			if err == io.EOF {
				s.put(nil, nil, true, true)
				break
			}
			if err != nil && (!isTimeout(err) || moved.Load() == before) {
				s.abort(err)
				break
			}
		}
		_ = in.Close()
	}()
	for {
		before := moved.Load()
		p, err := in.Next()
		if len(p) > 0 {
			moved.Add(1)
			if _, werr := up.Write(p); werr != nil {
				_ = up.Close()
				break
			}
		}
		if err == io.EOF {
			if up.CloseWrite() != nil {
				_ = up.Close()
			}
			break
		}
		if err != nil && (!isTimeout(err) || moved.Load() == before) {
			_ = up.Close()
			break
		}
	}
	<-done
}

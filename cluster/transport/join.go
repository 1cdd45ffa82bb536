package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"concord/cluster/pki"
)

// The join path is a length-prefixed message and a length-prefixed answer, then the end. There is no HTTP here on purpose: a
// stranger shall reach as little code as possible.

func (t *Transport) serveJoin(conn *tls.Conn, state tls.ConnectionState) {
	defer conn.Close()
	select {
	case t.joins <- struct{}{}:
		defer func() { <-t.joins }()
	default:
		return
	}
	conn.SetDeadline(time.Now().Add(t.opt.HandshakeTimeout))
	message, err := readFrame(conn, maxJoinRequest)
	if err != nil {
		return
	}
	conn.SetDeadline(time.Now().Add(joinTimeout))
	ctx, cancel := context.WithTimeout(t.ctx, joinTimeout)
	defer cancel()
	if err := writeFrame(conn, t.opt.Join(ctx, conn.RemoteAddr(), state, message)); err != nil {
		return
	}
	_ = conn.CloseWrite() // the answer is out; who does not read it gains nothing
}

// Join sends one join request to the node at addr. The token's pin is compared in the handshake; message is only called, with the
// connection to bind a proof to, once the server has shown that it belongs to the token's cluster.
func Join(ctx context.Context, addr string, token pki.Token, message func(tls.ConnectionState) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtoJoin},
		InsecureSkipVerify: true, // VerifyConnection compares the pin
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != ProtoJoin {
				return errNoProtocol
			}
			return token.VerifyServer(s.PeerCertificates, time.Now())
		},
	})
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	msg, err := message(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	if err := writeFrame(conn, msg); err != nil {
		return nil, err
	}
	answer, err := readFrame(conn, maxJoinAnswer)
	if err != nil {
		return nil, fmt.Errorf("no answer to the join request: %w", err)
	}
	return answer, nil
}

func writeFrame(w io.Writer, data []byte) error {
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data)))
	_, err := w.Write(append(buf, data...))
	return err
}

func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return nil, fmt.Errorf("message of %d bytes, at most %d are allowed", n, limit)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return data, err
}

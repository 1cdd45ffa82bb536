package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

// The opcodes of RFC 6455 §5.2.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// frame is one frame; final says that it ends its message.
type frame struct {
	op      byte
	final   bool
	payload []byte
}

func (f frame) String() string { return fmt.Sprintf("%d %v %.40q", f.op, f.final, f.payload) }

// append writes the frame, masked as a client's.
func (f frame) append(b []byte, masked bool) []byte {
	first := f.op
	if f.final {
		first |= 0x80
	}
	b = append(b, first)
	mask := byte(0)
	if masked {
		mask = 0x80
	}
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	if !masked {
		return append(b, f.payload...)
	}
	key := [4]byte{1, 2, 3, byte(len(f.payload))}
	b = append(b, key[:]...)
	for i, c := range f.payload {
		b = append(b, c^key[i&3])
	}
	return b
}

func readFrame(r *bufio.Reader) (f frame, err error) {
	var h [2]byte
	if _, err = io.ReadFull(r, h[:]); err != nil {
		return f, err
	}
	f.op, f.final = h[0]&15, h[0]&0x80 != 0
	n := uint64(h[1] & 0x7f)
	switch n {
	case 126:
		var b [2]byte
		if _, err = io.ReadFull(r, b[:]); err != nil {
			return f, err
		}
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err = io.ReadFull(r, b[:]); err != nil {
			return f, err
		}
		n = binary.BigEndian.Uint64(b[:])
	}
	var key [4]byte
	if h[1]&0x80 != 0 {
		if _, err = io.ReadFull(r, key[:]); err != nil {
			return f, err
		}
	}
	if h[0]&0x70 != 0 || n > 16<<20 {
		return f, errors.New("not a frame")
	}
	f.payload = make([]byte, n)
	if _, err = io.ReadFull(r, f.payload); err != nil {
		return f, err
	}
	for i := range f.payload {
		f.payload[i] ^= key[i&3]
	}
	return f, nil
}

func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// startWebSocket is an upstream that greets in the packet of its 101, echoes messages frame by frame, answers pings, and
// answers a close with the same code. Requests for /refuse get a 403.
func startWebSocket(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReaderSize(c, 64<<10)
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				if r.URL.Path == "/refuse" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
					fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nrefuse")
					return
				}
				w := bufio.NewWriterSize(c, 64<<10)
				fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: chat\r\n\r\n", accept(r.Header.Get("Sec-WebSocket-Key")))
				w.Write(frame{opText, true, []byte("hello " + r.Header.Get("X-Consumer-Username"))}.append(nil, false))
				var out []byte
				for w.Flush() == nil {
					for more := true; more; more = br.Buffered() > 0 {
						f, err := readFrame(br)
						if err != nil {
							return
						}
						if f.op == opPing {
							f.op = opPong
						}
						out = f.append(out[:0], false)
						w.Write(out)
						if f.op == opClose {
							w.Flush()
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// webSocket is a client's connection behind the handshake.
type webSocket struct {
	net.Conn
	br *bufio.Reader
}

// dialWebSocket sends the handshake with first behind it in the same packet.
func dialWebSocket(t *testing.T, n *harness.Node, secure bool, path string, first []byte) (*webSocket, *http.Response) {
	t.Helper()
	var c net.Conn
	var err error
	if secure {
		c, err = tls.Dial("tcp", n.ProxyTLS, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = net.Dial("tcp", n.Proxy)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	c.Write(append([]byte("GET "+path+" HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "+key+"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"), first...))
	br := bufio.NewReaderSize(c, 64<<10)
	r, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatusCode == 101 && (r.Header.Get("Sec-WebSocket-Accept") != accept(key) || r.Header.Get("Sec-WebSocket-Protocol") != "chat") {
		t.Errorf("%v", r.Header)
	}
	return &webSocket{c, br}, r
}

// TestWebSocket speaks RFC 6455 through a node, over ws and wss.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	n := harness.NewNode(t, "solo")
	n.Start()
	expect(t, "service", n.JSON("POST", "/services", `{"name":"s","url":"http://`+startWebSocket(t)+`"}`), 201)
	expect(t, "route", n.JSON("POST", "/services/s/routes", `{"paths":["/ws"],"protocols":["http","https"]}`), 201)
	expect(t, "route", n.JSON("POST", "/services/s/routes", `{"paths":["/closed"],"name":"closed"}`), 201)
	expect(t, "plugin", n.JSON("POST", "/routes/closed/plugins", `{"name":"key-auth"}`), 201)
	expect(t, "consumer", n.JSON("POST", "/consumers", `{"username":"alice"}`), 201)
	last := expect(t, "key", n.JSON("POST", "/consumers/alice/key-auth", `{"key":"k1"}`), 201)
	n.Get("/", "X-Min-Config-Index", last.Index())
	for name, secure := range map[string]bool{"ws": false, "wss": true} {
		t.Run(name, func(t *testing.T) {
			// Frames behind the handshake, in its packet, are not lost, nor is the greeting in the packet of the 101.
			first := frame{opText, true, []byte("early")}.append(nil, true)
			ws, r := dialWebSocket(t, n, secure, "/ws", first)
			if r.StatusCode != 101 {
				t.Fatal(r.Status)
			}
			ws.wants(t, frame{opText, true, []byte("hello ")}, frame{opText, true, []byte("early")})
			// Fragments stay what they are, a ping between them is answered between them.
			big := bytes.Repeat([]byte("0123456789abcdef"), 70_000/16*16)
			sent := []frame{{opText, false, []byte("a")}, {opContinuation, false, nil}, {opPing, true, []byte("p")}, {opContinuation, true, []byte("b")}, {opBinary, true, nil}, {opBinary, true, big[:125]}, {opBinary, true, big[:126]}, {opBinary, true, big[:65535]}, {opBinary, true, big[:65536]}, {opBinary, true, big}}
			var out []byte
			for _, f := range sent {
				out = f.append(out, true)
			}
			go ws.Write(out)
			for _, f := range sent {
				if f.op == opPing {
					f.op = opPong
				}
				ws.wants(t, f)
			}
			const messages = 20_000
			var wg sync.WaitGroup
			wg.Go(func() {
				w := bufio.NewWriter(ws)
				var b []byte
				for i := range messages {
					b = frame{opText, true, fmt.Appendf(nil, "message %d", i)}.append(b[:0], true)
					w.Write(b)
				}
				w.Flush()
			})
			for i := range messages {
				if f, err := readFrame(ws.br); err != nil || string(f.payload) != fmt.Sprintf("message %d", i) {
					t.Fatalf("message %d: %v %v", i, f, err)
				}
			}
			wg.Wait()
			bye := frame{opClose, true, append(binary.BigEndian.AppendUint16(nil, 4001), "bye"...)}
			ws.Write(bye.append(nil, true))
			ws.wants(t, bye)
			if _, err := readFrame(ws.br); !errors.Is(err, io.EOF) {
				t.Errorf("behind the close: %v", err)
			}
		})
	}
	t.Run("refused by the upstream", func(t *testing.T) {
		_, r := dialWebSocket(t, n, false, "/ws/refuse", nil)
		if b, _ := io.ReadAll(io.LimitReader(r.Body, 6)); r.StatusCode != 403 || string(b) != "refuse" {
			t.Errorf("%s %q", r.Status, b)
		}
	})
	t.Run("refused by a plugin", func(t *testing.T) {
		if _, r := dialWebSocket(t, n, false, "/closed", nil); r.StatusCode != 401 {
			t.Error(r.Status)
		}
		ws, r := dialWebSocket(t, n, false, "/closed?apikey=k1", nil)
		if r.StatusCode != 101 {
			t.Fatal(r.Status)
		}
		ws.wants(t, frame{opText, true, []byte("hello alice")})
	})
	t.Run("an upstream that leaves ends the client", func(t *testing.T) {
		ws, _ := dialWebSocket(t, n, false, "/ws", nil)
		ws.wants(t, frame{opText, true, []byte("hello ")})
		ws.Write([]byte{0xff, 0xff, 0xff}) // not a frame: the upstream closes
		ws.Write(make([]byte, 20))
		if _, err := readFrame(ws.br); err == nil {
			t.Error("still open")
		}
	})
}

func (ws *webSocket) wants(t *testing.T, frames ...frame) {
	t.Helper()
	for _, want := range frames {
		f, err := readFrame(ws.br)
		if err != nil || f.op != want.op || f.final != want.final || !bytes.Equal(f.payload, want.payload) {
			t.Fatalf("%v %v, want %v", f, err, want)
		}
	}
}

package h2

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// TestGRPCAnswers: what the gateway itself answers reaches gRPC clients as a status, in one HEADERS frame.
func TestGRPCAnswers(t *testing.T) {
	tests := []struct {
		name     string
		ctype    string
		fill     func(x *exchange.Exchange)
		status   string
		code     string // grpc-status; "": not a gRPC answer
		message  string
		withBody bool
	}{
		{name: "message in JSON", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Response.Status = 401
			x.Response.Header.Add("Content-Type", "application/json; charset=utf-8")
			x.Response.Header.Add("WWW-Authenticate", "Key")
			x.Response.SetBody([]byte(`{"message":"No API key found in request"}`))
		}, status: "401", code: "16", message: "No API key found in request"},
		{name: "subtype", ctype: "application/grpc+proto", fill: func(x *exchange.Exchange) { x.Response.Status = 404 }, status: "404", code: "5", message: "Not Found"},
		{name: "parameter", ctype: "application/grpc; charset=utf-8", fill: func(x *exchange.Exchange) { x.Response.Status = 429 }, status: "429", code: "8", message: "Too Many Requests"},
		{name: "plain text", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Response.Status = 503
			x.Response.Header.Add("Content-Type", "text/plain")
			x.Response.SetBody([]byte("come back\n"))
		}, status: "503", code: "14", message: "come back"},
		{name: "something else", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Response.Status = 502
			x.Response.SetBody(make([]byte, 100000))
		}, status: "502", code: "13", message: "Bad Gateway"},
		{name: "set already", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Response.Status = 200
			x.Response.Header.Add("grpc-status", "1")
			x.Response.Header.Add("grpc-message", "gRPC request matched gRPCs route")
			x.Response.SetBody(nil)
		}, status: "200", code: "1", message: "gRPC request matched gRPCs route"},
		{name: "escaped", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Response.Status = 400
			x.Response.SetBody([]byte(`{"message":"100 % müde\n"}`))
		}, status: "400", code: "3", message: "100 %25 m%C3%BCde%0A"},
		{name: "from the upstream", ctype: "application/grpc", fill: func(x *exchange.Exchange) {
			x.Proxied = true
			x.Response.Status = 401
			x.Response.SetBody([]byte("upstream's own"))
		}, status: "401", withBody: true},
		{name: "not gRPC", ctype: "application/grpc-web", fill: func(x *exchange.Exchange) {
			x.Response.Status = 401
			x.Response.SetBody([]byte("text"))
		}, status: "401", withBody: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, addr := startServer(t, Options{Handler: &handlerFunc{serve: tt.fill}})
			c := dialRaw(t, addr).hello()
			c.headers(1, true, append(postFields, "content-type", tt.ctype, "te", "trailers")...)
			a := c.await(1)
			if a.status != tt.status || a.header["grpc-status"] != tt.code || a.header["grpc-message"] != tt.message || !a.end || (a.body != "") != tt.withBody {
				t.Errorf("%+v", a)
			}
			if !tt.withBody && (a.header["content-type"] != "application/grpc" || a.header["content-length"] != "") {
				t.Errorf("%v", a.header)
			}
		})
	}
	for status, want := range map[int]int{200: 0, 400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 499: 1, 500: 13, 501: 12, 503: 14, 504: 4, 502: 13, 418: 3, 302: 2} {
		if got := exchange.GRPCStatus(status); got != want {
			t.Errorf("%d became %d, want %d", status, got, want)
		}
	}
}

// TestRefusedGRPC: so does a request that no handler has seen.
func TestRefusedGRPC(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr).hello()
	c.headers(1, true, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/a%00b", "content-type", "application/grpc")
	if a := c.await(1); a.header["grpc-status"] != "3" || a.body != "" {
		t.Errorf("%+v", a)
	}
	c.headers(3, true, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/a b", "content-type", "application/grpc")
	if a := c.await(3); a.header["grpc-status"] != "3" || a.body != "" {
		t.Errorf("%+v", a)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	s := New(Options{IdleTimeout: 50 * time.Millisecond, Handler: &handlerFunc{serve: func(x *exchange.Exchange) {
		x.Response.Status = 200
		x.Response.SetBody([]byte(x.Request.Scheme + " " + x.Conn.SNI))
	}}})
	addr, _ := listenFor(t, func(nc net.Conn) {
		tc := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
		if tc.Handshake() == nil {
			state := tc.ConnectionState()
			s.ServeConn(tc, &h1.ConnInfo{Conn: exchange.Conn{TLS: &state, SNI: state.ServerName}})
		}
	})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	for _, tt := range []struct {
		name   string
		config *tls.Config
		want   http2.ErrCode
	}{
		{name: "1.3", config: &tls.Config{MinVersion: tls.VersionTLS13}},
		{name: "1.2", config: &tls.Config{MaxVersion: tls.VersionTLS12}},
		{name: "weak", config: &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, want: http2.ErrCodeInadequateSecurity},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.InsecureSkipVerify, tt.config.ServerName, tt.config.NextProtos = true, "a.test", []string{"h2"}
			c := dialRaw(t, addr)
			tc := tls.Client(c.nc, tt.config)
			c.nc, c.fr = tc, http2.NewFramer(tc, tc)
			c.fr.ReadMetaHeaders = newDecoder()
			c.hello()
			c.headers(1, true, getFields...)
			a := c.await(1)
			if tt.want != 0 {
				if a.goaway == nil || a.goaway.ErrCode != tt.want {
					t.Errorf("%+v", a)
				}
				return
			}
			if a.body != "https a.test" {
				t.Errorf("%+v", a)
			}
			if a := c.await(3); !a.closed { // idle: a read deadline must not break TLS
				t.Errorf("%+v", a)
			}
		})
	}
}

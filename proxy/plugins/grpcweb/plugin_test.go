package grpcweb

import (
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

func filters(t *testing.T, i plugin.Instance, x *exchange.Exchange, chunks ...string) string {
	t.Helper()
	if err := i.(plugin.HeaderFilter).HeaderFilter(x); err != nil {
		t.Fatal(err)
	}
	out := ""
	for n, c := range append(chunks, "") {
		b, err := i.(plugin.BodyFilter).BodyFilter(x, []byte(c), n == len(chunks))
		if err != nil {
			t.Fatal(err)
		}
		out += string(b)
	}
	return out
}

func TestRequests(t *testing.T) {
	g := plugintest.New(t)
	b64 := base64.StdEncoding.EncodeToString
	for _, tt := range []struct {
		name, mime string
		chunks     []string
		upstream   string // content type
		body       string
		status     int // of a refusal
	}{
		{"binary", "application/grpc-web+proto", []string{"\x00\x00\x00\x00\x01a"}, "application/grpc+proto", "\x00\x00\x00\x00\x01a", 0},
		{"binary without kind", "Application/gRPC-Web; charset=x", []string{"ab", "c"}, "application/grpc", "abc", 0},
		{"text", "application/grpc-web-text+proto", []string{b64([]byte("hello world"))}, "application/grpc+proto", "hello world", 0},
		{"text in pieces", "application/grpc-web-text", strings.Split(b64([]byte("hello world")), ""), "application/grpc", "hello world", 0},
		{"texts with their own padding", "application/grpc-web-text", []string{b64([]byte("a")) + b64([]byte("bc")), "\r\n" + b64([]byte("def"))}, "application/grpc", "abcdef", 0},
		{"text that is none", "application/grpc-web-text", []string{"????"}, "application/grpc", "", 400},
		{"text that ends early", "application/grpc-web-text", []string{"YWJj", "YW"}, "application/grpc", "abc", 400},
		{"gRPC", "application/grpc", nil, "", "", 400},
		{"JSON", "application/json", nil, "", "", 400},
		{"something else", "application/grpc-websocket", nil, "", "", 400},
		{"nothing", "", nil, "", "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := plugintest.Request("POST", "/strip/pkg.S/M", "Content-Type: "+tt.mime, "Content-Length: 7")
			x.Upstream.Path = "/pkg.S/M"
			plugintest.Body(x, 7, tt.chunks...)
			exit := plugintest.Access(t, x, g.Build(Plugin(), schema.Record{"pass_stripped_path": true}))
			if tt.upstream == "" {
				if exit == nil || exit.Status != tt.status {
					t.Fatalf("got %v", exit)
				}
				return
			}
			if exit != nil {
				t.Fatal(exit.Body)
			}
			body, err := plugintest.ReadBody(t, x)
			var e *plugin.Exit
			if errors.As(err, &e) != (tt.status != 0) || e != nil && e.Status != tt.status {
				t.Errorf("error %v", err)
			}
			if body != tt.body || x.Request.Header.Get("Content-Type") != tt.upstream || x.Request.Header.Has("Content-Length") || !x.Request.TETrailers || x.Upstream.Path != "/pkg.S/M" {
				t.Errorf("body %q, path %s, header %v", body, x.Upstream.Path, x.Request.Header)
			}
		})
	}
	x := plugintest.Request("POST", "/strip/pkg.S/M", "Content-Type: application/grpc-web")
	x.Upstream.Path = "/pkg.S/M"
	if plugintest.Access(t, x, g.Build(Plugin(), nil)); x.Upstream.Path != "/strip/pkg.S/M" {
		t.Errorf("path %s: gRPC services get the whole one", x.Upstream.Path)
	}
	if _, errs := plugintest.Validate(Plugin(), schema.Record{"proto": "/a.proto"}); errs == nil || !strings.Contains(errs.Message(), "JSON is not translated") {
		t.Errorf("proto: %v", errs)
	}
}

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"allow_origin_header": "https://a.example"})
	begin := func(mime string) *exchange.Exchange {
		x := plugintest.Request("POST", "/pkg.S/M", "Content-Type: "+mime)
		if exit := plugintest.Access(t, x, i); exit != nil {
			t.Fatal(exit.Body)
		}
		x.Proxied, x.Response.Status = true, 200
		x.Response.Header.Set("Content-Type", "application/grpc+proto")
		return x
	}
	const frame = "\x80\x00\x00\x00\x22grpc-status:5\r\ngrpc-message:none\r\n"

	x := begin("application/grpc-web+proto")
	x.Response.Trailer.Add("grpc-status", "5")
	x.Response.Trailer.Add("Grpc-Message", "none")
	if got := filters(t, i, x, "one", "two"); got != "onetwo"+frame {
		t.Errorf("binary: %q", got)
	}
	if h := x.Response.Header; h.Get("Content-Type") != "application/grpc-web+proto" || h.Get("Access-Control-Allow-Origin") != "https://a.example" || len(x.Response.Trailer.Fields) > 0 {
		t.Errorf("head %v, trailer %v", h, x.Response.Trailer)
	}

	x = begin("application/grpc-web-text")
	x.Response.Trailer.Add("grpc-status", "0")
	text := ""
	for rest := filters(t, i, x, "one", "fours"); rest != ""; { // every piece is padded
		n := strings.IndexByte(rest, '=')
		for n >= 0 && n+1 < len(rest) && rest[n+1] == '=' {
			n++
		}
		if n < 0 {
			n = len(rest) - 1
		}
		b, err := base64.StdEncoding.DecodeString(rest[:n+1])
		if err != nil {
			t.Fatal(err)
		}
		text, rest = text+string(b), rest[n+1:]
	}
	if text != "onefours\x80\x00\x00\x00\x0fgrpc-status:0\r\n" {
		t.Errorf("text: %q", text)
	}

	x = begin("application/grpc-web")
	if got := filters(t, i, x, "x"); !strings.Contains(got, "grpc-status:2\r\n") {
		t.Errorf("no trailers: %q", got)
	}
	x = begin("application/grpc-web")
	x.Response.Header.Set("grpc-status", "12")
	if got := filters(t, i, x); got != "" || x.Response.Header.Get("Content-Type") != "application/grpc-web" {
		t.Errorf("trailers only: %q %v", got, x.Response.Header)
	}
	x = begin("application/grpc-web")
	x.Response.Header.Set("Content-Type", "text/html")
	if got := filters(t, i, x, "page"); got != "page" || x.Response.Header.Get("Content-Type") != "text/html" {
		t.Errorf("no gRPC: %q %v", got, x.Response.Header)
	}

	// The gateway's own answers, before and behind this plugin.
	for _, seen := range []bool{true, false} {
		x = plugintest.Request("POST", "/pkg.S/M", "Content-Type: application/grpc-web-text")
		if seen {
			plugintest.Access(t, x, i)
		}
		x.Response.Status = 401
		x.Response.SetBody([]byte(`{"message":"no"}`))
		got := filters(t, i, x)
		if h := x.Response.Header; got != "" || h.Get("grpc-status") != "16" || h.Get("grpc-message") != "Unauthorized" || h.Get("Content-Type") != "application/grpc-web-text" || x.Response.Length != 0 {
			t.Errorf("refused: %q %v", got, h)
		}
	}
	x = plugintest.Request("OPTIONS", "/pkg.S/M")
	if exit := plugintest.Access(t, x, i); exit == nil || exit.Status != 200 || exit.Body != nil || len(exit.Header) != 3 {
		t.Errorf("preflight: %v", exit)
	}
	if got := filters(t, i, x); got != "" || x.Response.Header.Get("Access-Control-Allow-Origin") != "https://a.example" {
		t.Errorf("preflight: %q %v", got, x.Response.Header)
	}
}

// FuzzDecoder: in whatever pieces a text arrives, it yields what it stands for, or an error.
func FuzzDecoder(f *testing.F) {
	f.Add("aGVsbG8=d29ybGQ=", 3)
	f.Add("!", 1)
	f.Fuzz(func(t *testing.T, text string, size int) {
		read := func(size int) (string, error) {
			x := plugintest.Request("POST", "/")
			var chunks []string
			for rest := text; rest != ""; {
				n := min(size, len(rest))
				chunks, rest = append(chunks, rest[:n]), rest[n:]
			}
			plugintest.Body(x, -1, chunks...)
			d := &decoder{inner: x.Request.Body}
			out := ""
			for {
				b, err := d.Next()
				out += string(b)
				if err == io.EOF {
					return out, nil
				}
				if err != nil {
					return "", err
				}
			}
		}
		whole, err := read(len(text) + 1)
		parts, err2 := read(max(1, size%7))
		if whole != parts || (err == nil) != (err2 == nil) {
			t.Errorf("%q: %q %v, in pieces %q %v", text, whole, err, parts, err2)
		}
		if plain, e := base64.StdEncoding.DecodeString(text); e == nil && string(plain) != whole {
			t.Errorf("%q: %q", text, whole)
		}
	})
}

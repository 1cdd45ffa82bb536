// Package grpcweb lets browsers call gRPC services: it turns gRPC-Web requests, binary and text, into gRPC and the answers back
// (PROTOCOL-WEB of the gRPC project).
//
// Messages pass as they are, both ways and while they come. Kong's plugin can also translate JSON with the service's .proto file; this one
// knows no messages.
package grpcweb

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"strconv"
	"strings"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the grpc-web plugin.
func Plugin() plugin.Plugin {
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "grpc-web", Priority: 3,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "proto", Type: schema.String, Check: refuseProto,
					Description: "Path of a .proto file, with which Kong takes JSON too. It must be null: JSON is not translated here."},
				{Name: "pass_stripped_path", Type: schema.Boolean,
					Description: "Whether the upstream gets the path without what the route's strip_path removes."},
				{Name: "allow_origin_header", Type: schema.String, Default: "*",
					Description: "Value of Access-Control-Allow-Origin."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			return &instance{*c}, nil
		}),
	}
}

func refuseProto(any) string {
	return "JSON is not translated: leave it null and let clients send application/grpc-web or application/grpc-web-text"
}

type config struct {
	PassStrippedPath  bool   `json:"pass_stripped_path"`
	AllowOriginHeader string `json:"allow_origin_header"`
}

type instance struct{ config }

// state is the key of an exchange's *call.
const state = "grpc-web"

// call is one exchange that the plugin translates.
type call struct {
	mime  string // of request and answer
	text  bool
	frame bool // the answer is gRPC: it ends with a frame of trailers
}

const (
	grpc = "application/grpc"
	web  = "application/grpc-web"
)

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	r := &x.Request
	if r.Method == "OPTIONS" {
		return &plugin.Exit{Status: 200, Header: []exchange.Field{
			{Name: "Content-Type", Value: web + "-text+proto"},
			{Name: "Access-Control-Allow-Methods", Value: "POST"},
			{Name: "Access-Control-Allow-Headers", Value: "content-type,x-grpc-web,x-user-agent"},
		}}
	}
	c, ok := parse(r.Header.Get("Content-Type"))
	if !ok {
		return &plugin.Exit{Status: 400, Body: "the content type is not " + web + " or " + web + "-text"}
	}
	x.Leave(state, c)
	if !i.PassStrippedPath {
		x.Upstream.Path = r.Path
	}
	r.Header.Set("Content-Type", grpc+strings.TrimPrefix(strings.TrimPrefix(c.mime, web), "-text"))
	r.Header.Del("Content-Length")
	r.TETrailers = true
	if c.text && r.Body != nil {
		r.Body, r.Length = &decoder{inner: r.Body}, -1
	}
	return nil
}

// parse reads a content type: what follows the name of the format ("+proto", "+json") is between client and server.
func parse(mime string) (*call, bool) {
	mime, _, _ = strings.Cut(mime, ";")
	mime = strings.ToLower(strings.Trim(mime, " \t"))
	rest, ok := strings.CutPrefix(mime, web)
	rest, text := strings.CutPrefix(rest, "-text")
	return &call{mime: mime, text: text}, ok && (rest == "" || rest[0] == '+')
}

// HeaderFilter implements plugin.HeaderFilter.
func (i *instance) HeaderFilter(x *exchange.Exchange) error {
	p := &x.Response
	if i.AllowOriginHeader != "" {
		p.Header.Set("Access-Control-Allow-Origin", i.AllowOriginHeader)
	}
	if x.Request.Method == "OPTIONS" {
		return nil
	}
	p.Header.Set("Access-Control-Expose-Headers", "grpc-status,grpc-message")
	c, _ := x.Left(state).(*call)
	switch {
	case x.Proxied:
		if t := p.Header.Get("Content-Type"); c != nil && p.Status == 200 && strings.HasPrefix(strings.ToLower(t), grpc) {
			p.Header.Set("Content-Type", c.mime)
			c.frame = true
		}
	case c == nil: // another plugin has ended it, before this one
		if c, ok := parse(x.Request.Header.Get("Content-Type")); ok {
			refuse(p, c.mime)
		}
	default:
		refuse(p, c.mime)
	}
	return nil
}

// refuse makes an answer of the gateway one that gRPC-Web clients understand: the status in the head, no messages.
func refuse(p *exchange.Response, mime string) {
	if !p.Header.Has("grpc-status") {
		p.Header.Set("grpc-status", strconv.Itoa(exchange.GRPCStatus(p.Status)))
		p.Header.Set("grpc-message", plugin.Message(p.Status))
	}
	p.Header.Set("Content-Type", mime)
	p.SetBody(nil)
}

// BodyFilter implements plugin.BodyFilter.
func (i *instance) BodyFilter(x *exchange.Exchange, chunk []byte, last bool) ([]byte, error) {
	c, _ := x.Left(state).(*call)
	if c == nil || !c.frame {
		return chunk, nil
	}
	if last && !x.Response.Header.Has("grpc-status") { // else the head has said it
		chunk = append(chunk[:len(chunk):len(chunk)], trailers(&x.Response.Trailer)...)
	}
	if last {
		x.Response.Trailer.Reset()
	}
	if !c.text || len(chunk) == 0 {
		return chunk, nil
	}
	// Every piece for itself, padded, so that none of it waits for the next.
	return base64.StdEncoding.AppendEncode(nil, chunk), nil
}

// trailers is the last frame of an answer. A server that sends none has broken off.
func trailers(t *exchange.Header) []byte {
	b := make([]byte, 5, 64)
	b[0] = 0x80
	for _, f := range t.Fields {
		b = append(append(append(append(b, strings.ToLower(f.Name)...), ':'), f.Value...), "\r\n"...)
	}
	if !t.Has("grpc-status") {
		b = append(b, "grpc-status:2\r\ngrpc-message:the upstream sent no status\r\n"...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return b
}

// decoder is a body that arrives in base64: one text, or several one after the other, each with its padding.
type decoder struct {
	inner exchange.Body
	group [4]byte // characters that are not decoded yet
	n     int
	out   []byte
}

var errText = &plugin.Exit{Status: 400, Body: "the body is not base64"}

// Next implements exchange.Body.
func (d *decoder) Next() ([]byte, error) {
	chunk, err := d.inner.Next()
	if err != nil && err != io.EOF {
		return nil, err
	}
	d.out = d.out[:0]
	for _, c := range chunk {
		if c == '\r' || c == '\n' {
			continue
		}
		d.group[d.n] = c
		if d.n++; d.n < len(d.group) {
			continue
		}
		d.n = 0
		var wrong error
		if d.out, wrong = base64.StdEncoding.AppendDecode(d.out, d.group[:]); wrong != nil {
			return nil, errText
		}
	}
	if err == io.EOF && d.n > 0 {
		return nil, errText
	}
	return d.out, err
}

// Close implements exchange.Body.
func (d *decoder) Close() error { return d.inner.Close() }

// Ready implements exchange.Readier.
func (d *decoder) Ready() bool { return exchange.Ready(d.inner) }

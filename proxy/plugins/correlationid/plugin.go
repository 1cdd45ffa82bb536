// Package correlationid gives requests an id that the upstream, and if wanted the client, can log.
package correlationid

import (
	"context"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the correlation-id plugin. All its instances share one counter.
func Plugin() plugin.Plugin {
	counter := &counter{prefix: uuid.NewString() + "#"}
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "correlation-id", Priority: 100001,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "header_name", Type: schema.String, Default: "Kong-Request-ID", Check: schema.CookieName("").Check,
					Description: "The header that holds the id."},
				{Name: "generator", Type: schema.String, Required: true, Default: "uuid#counter",
					OneOf: []any{"uuid", "uuid#counter", "tracker"}, Description: "How ids are made."},
				{Name: "echo_downstream", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether the response has the id, too."},
			}},
		},
		New: plugin.Typed(func(_ context.Context, _ plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			if c.HeaderName == "" {
				c.HeaderName = "Kong-Request-ID"
			}
			if !c.EchoDownstream {
				return &instance{*c, counter}, nil
			}
			return &echoing{instance{*c, counter}}, nil
		}),
	}
}

type config struct {
	HeaderName     string `json:"header_name"`
	Generator      string `json:"generator"`
	EchoDownstream bool   `json:"echo_downstream"`
}

type counter struct {
	prefix string // a uuid of this process
	n      atomic.Uint64
}

type instance struct {
	config
	counter *counter
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	i.id(x)
	return nil
}

// id is the request's id, made and set if it has none.
func (i *instance) id(x *exchange.Exchange) string {
	id := x.Request.Header.Get(i.HeaderName)
	if id == "" {
		id = x.Keep(i.generate(x, x.Scratch()))
		x.Request.Header.Set(i.HeaderName, id)
	}
	return id
}

func (i *instance) generate(x *exchange.Exchange, b []byte) []byte {
	switch i.Generator {
	case "uuid":
		id, _ := uuid.New().MarshalText()
		return append(b, id...)
	case "tracker": // server address-port-pid-connection-requests-time
		b = x.Conn.Local.Addr().Unmap().AppendTo(b)
		b = strconv.AppendUint(append(b, '-'), uint64(x.Conn.Local.Port()), 10)
		b = strconv.AppendInt(append(b, '-'), int64(os.Getpid()), 10)
		b = strconv.AppendUint(append(b, '-'), x.Conn.Serial, 10)
		b = strconv.AppendUint(append(b, '-'), x.Conn.Requests, 10)
		return strconv.AppendFloat(append(b, '-'), float64(time.Now().UnixMilli())/1000, 'f', 3, 64)
	}
	return strconv.AppendUint(append(b, i.counter.prefix...), i.counter.n.Add(1), 10)
}

// echoing is an instance that puts the id on the response as well.
type echoing struct{ instance }

// HeaderFilter implements plugin.HeaderFilter. The request may not have come to the access phase.
func (i *echoing) HeaderFilter(x *exchange.Exchange) error {
	x.Response.Header.Set(i.HeaderName, i.id(x))
	return nil
}

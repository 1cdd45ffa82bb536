// Package plugintest runs plugins in tests: a real state machine with rows, plugin instances with complete configurations, and
// exchanges without a network.
package plugintest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Gateway is what a plugin needs around it.
type Gateway struct {
	Env  plugin.Env
	Logs *Log

	t       testing.TB
	machine *fsm.Machine
	index   uint64
}

// Log collects what is logged.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// New makes a gateway without rows.
func New(t testing.TB) *Gateway {
	t.Helper()
	keys, err := seal.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{t: t, Logs: &Log{}, machine: fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})}
	g.Env = plugin.Env{
		Store: g.machine.Store(), Log: slog.New(slog.NewTextHandler(g.Logs, nil)),
		NodeID: func() string { return "4e3e5c5e-0000-4000-8000-000000000001" }, Hostname: "test",
	}
	return g
}

// Put writes a row with a new id, or with the one in rec, and returns the id.
func (g *Gateway) Put(table string, rec schema.Record) string {
	g.t.Helper()
	return g.PutUntil(table, rec, time.Time{})
}

// PutUntil writes a row that expires.
func (g *Gateway) PutUntil(table string, rec schema.Record, at time.Time) string {
	g.t.Helper()
	id, ok := rec["id"].(string)
	if !ok {
		id = uuid.NewString()
		rec["id"] = id
	}
	raw, err := schema.Encode(rec)
	if err != nil {
		g.t.Fatal(err)
	}
	put := command.Put{Table: g.table(table), ID: uuid.MustParse(id), Raw: raw}
	if !at.IsZero() {
		put.Expires = at.UnixMilli()
	}
	g.apply(put)
	return id
}

// Delete removes a row.
func (g *Gateway) Delete(table, id string) {
	g.t.Helper()
	g.apply(command.Put{Table: g.table(table), ID: uuid.MustParse(id)})
}

func (g *Gateway) table(name string) uint16 {
	g.t.Helper()
	def, ok := entity.Lookup(name)
	if !ok {
		g.t.Fatalf("no table %q", name)
	}
	return def.Table
}

func (g *Gateway) apply(put command.Put) {
	g.t.Helper()
	data := command.Encode(command.Command{Level: 1, Op: command.Txn{Puts: []command.Put{put}}})
	g.index++
	if res := g.machine.ApplyAll([]fsm.Entry{{Index: g.index, Data: data}}); res[0].Err != nil {
		g.t.Fatal(res[0].Err)
	}
}

// Consumer writes a consumer with this username and returns its id.
func (g *Gateway) Consumer(username string) string {
	g.t.Helper()
	return g.Put("consumers", schema.Record{"username": username, "custom_id": "c-" + username})
}

// Ref is a reference to a row.
func Ref(id string) schema.Record { return schema.Record{"id": id} }

// Build makes an instance. config is what a client of the Admin API would send; it is validated and completed.
func (g *Gateway) Build(p plugin.Plugin, config schema.Record) plugin.Instance {
	g.t.Helper()
	full := g.Complete(p, config)
	inst, err := p.New(g.t.Context(), g.Env, plugin.Config{ID: uuid.NewString(), Record: full})
	if err != nil {
		g.t.Fatal(err)
	}
	return inst
}

// Complete validates a configuration and fills in its defaults.
func (g *Gateway) Complete(p plugin.Plugin, config schema.Record) schema.Record {
	g.t.Helper()
	rec, errs := Validate(p, config)
	if errs != nil {
		g.t.Fatal(errs.Message())
	}
	return rec["config"].(schema.Record)
}

// Validate validates a plugin entity with this configuration.
func Validate(p plugin.Plugin, config schema.Record) (schema.Record, schema.Errors) {
	def, _ := entity.Lookup("plugins")
	return def.Schema.Prepare(schema.Record{"name": p.Info.Name, "config": config}, schema.Options{
		Mode: schema.Insert,
		Auto: schema.Auto{Now: func() float64 { return 1700000000 }, UUID: uuid.NewString, Random: uuid.NewString},
		Sub:  func(string) (*schema.Schema, bool) { return plugin.SchemaOf(p), true },
	})
}

// Access runs the access phase of instances in order until one ends the exchange.
func Access(t testing.TB, x *exchange.Exchange, instances ...plugin.Instance) *plugin.Exit {
	t.Helper()
	for _, i := range instances {
		if err := i.(plugin.Accessor).Access(x); err != nil {
			var exit *plugin.Exit
			if !errors.As(err, &exit) {
				t.Fatalf("access: %v", err)
			}
			return exit
		}
	}
	return nil
}

// Request makes an exchange; headers are "Name: value".
func Request(method, target string, headers ...string) *exchange.Exchange {
	x := &exchange.Exchange{}
	r := &x.Request
	r.Method, r.Target, r.Scheme, r.Major, r.Minor, r.Host = method, target, "http", 1, 1, "example.test"
	r.Path, r.RawQuery, r.HasQuery = strings.Cut(target, "?")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ":")
		r.Header.Add(name, strings.TrimPrefix(value, " "))
	}
	return x
}

// Body gives a request a body that arrives in chunks; length -1 hides its length.
func Body(x *exchange.Exchange, length int64, chunks ...string) {
	x.Request.Body, x.Request.Length = &body{chunks}, length
}

type body struct{ chunks []string }

func (b *body) Next() ([]byte, error) {
	if len(b.chunks) == 0 {
		return nil, io.EOF
	}
	c := b.chunks[0]
	b.chunks = b.chunks[1:]
	return []byte(c), nil
}

func (b *body) Close() error { return nil }

// ReadBody takes the request body as the upstream would receive it.
func ReadBody(t testing.TB, x *exchange.Exchange) (string, error) {
	t.Helper()
	var all []byte
	for x.Request.Body != nil {
		chunk, err := x.Request.Body.Next()
		all = append(all, chunk...)
		if err == io.EOF {
			break
		}
		if err != nil {
			return string(all), err
		}
	}
	return string(all), nil
}

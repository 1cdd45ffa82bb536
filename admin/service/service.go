// Package service is the only door to the gateway's entities: Mutate changes them through the replicated log, Get and
// List read the local view. It speaks records and refusals, not HTTP; admin/rest and other fronts translate.
//
// It is not a cache and holds no state of its own: what it knows is in the machine's store.
package service

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// Log is what the service needs of consensus; *cluster.Node has it.
type Log interface {
	// Propose appends a command; it works on the leader only and returns after the local machine applied it. cluster.ErrNotLeader and
	// cluster.ErrOutcomeUnknown say that it did not, or may not have.
	Propose(ctx context.Context, c command.Command) (fsm.Result, error)
	// Forward has the handler of HandleForward run on the leader, waiting for one within bounds (*cluster.NoLeaderError), and again on
	// the next leader when one is lost.
	Forward(ctx context.Context, req []byte) ([]byte, error)
	HandleForward(func(ctx context.Context, req []byte) ([]byte, error))
	// ReadIndex asks the leader for the index a linearizable read must wait for.
	ReadIndex(ctx context.Context) (uint64, error)
	// Wait returns once the local machine applied index; *cluster.FutureIndexError when there is no such index.
	Wait(ctx context.Context, index uint64) error
}

// Options of New. Log and Machine are required.
type Options struct {
	Log     Log
	Machine *fsm.Machine
	// Plugins returns the schema of an installed plugin's row; nil: there are none.
	Plugins func(name string) (*schema.Schema, bool)
	// DryBuild builds what the data plane would need of the changed rows, so that nothing is committed that a node cannot
	// build. Its error text is shown to the client. nil: nothing to build.
	DryBuild func(ctx context.Context, changes []state.Change) error
	// Published returns once the local data plane serves index. nil: at once.
	Published func(ctx context.Context, index uint64) error
	Logger    *slog.Logger
	// Busy tells whether the node proxies requests now, which large changes are not to delay. nil: it never does.
	Busy func() bool

	// RequireToken demands an admin token of programs on this machine too. Until there is one, they may make the first.
	RequireToken bool

	// Timeout bounds one mutation, retries included. Default 10 s.
	Timeout time.Duration
	// MinIndexTimeout bounds the wait for X-Min-Config-Index. Default 5 s.
	MinIndexTimeout time.Duration
}

// Service reads and changes entities.
type Service struct {
	o      Options
	store  *state.Store
	tables map[string]state.AnyTable // of the Admin API, by plural name
	auto   schema.Auto
	bulk   sync.Mutex // one large Apply at a time
	used   usage      // of admin tokens

	watching *watching
}

// Target names an entity or a collection the way a URL does.
type Target struct {
	Entity string  `json:"entity"`        // plural name of what is read or written
	Ref    string  `json:"ref,omitempty"` // id or alternative key; "" for the collection
	Parent *Parent `json:"parent,omitempty"`
}

// Parent is the entity before the last one in a nested URL. With Owner false the target's Field refers to the parent
// (/services/{s}/routes); with Owner true the parent's Field refers to the target (/routes/{r}/service).
type Parent struct {
	Entity string `json:"entity"`
	Ref    string `json:"ref"`
	Field  string `json:"field"`
	Owner  bool   `json:"owner,omitempty"`
}

// Verb is what a Mutation does.
type Verb string

// The verbs, with the HTTP method that Kong gives them.
const (
	Create Verb = "create" // POST
	Update Verb = "update" // PATCH
	Upsert Verb = "upsert" // PUT
	Delete Verb = "delete" // DELETE
)

// Mutation is one change as the client asked for it. It is executed on the leader, against the leader's current rows.
type Mutation struct {
	Verb   Verb          `json:"verb"`
	Target Target        `json:"target"`
	Body   schema.Record `json:"body,omitempty"`
	Form   bool          `json:"form,omitempty"` // Body holds a form's text values, to be converted by the schema
	Actor  Actor         `json:"actor"`          // set by Mutate, from its context

	Conditions Conditions `json:"conditions,omitzero"`
}

// Result of a Mutation or Get.
type Result struct {
	Index uint64 // of the log entry, or of the view that was read
	Row   []byte // the entity as JSON with secrets in clear; nil after Delete
	Tag   string // the entity tag of Row, quoted (RFC 9110, 8.8.3)
	Hint  string // advice about a write that succeeded but may not do what was meant
}

// New makes a Service and becomes the handler of what other nodes forward to this one.
func New(o Options) *Service {
	if o.Plugins == nil {
		o.Plugins = func(string) (*schema.Schema, bool) { return nil, false }
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MinIndexTimeout == 0 {
		o.MinIndexTimeout = 5 * time.Second
	}
	s := &Service{o: o, store: o.Machine.Store(), tables: map[string]state.AnyTable{},
		auto: schema.Auto{
			Now:    func() float64 { return float64(time.Now().UnixMilli()) / 1000 },
			UUID:   uuid.NewString,
			Random: func() string { return randomText(32) },
		}}
	for _, t := range s.store.Tables() {
		if !t.Def().Schema.Internal || t.Name() == entity.AdminTokens {
			s.tables[t.Name()] = t
		}
	}
	s.used = usage{last: map[state.ID]time.Time{}, live: func(id state.ID) bool {
		_, ok := s.tables[entity.AdminTokens].Get(s.store.View(), id)
		return ok
	}}
	s.watching = newWatching(s.store)
	o.Log.HandleForward(s.handle)
	return s
}

// Schema finds the schema of an entity, or of a view.
func (s *Service) Schema(name string) (*schema.Schema, bool) {
	if t, ok := s.tables[name]; ok && !t.Def().Schema.Internal {
		return t.Def().Schema, true
	}
	for _, v := range entity.Views() {
		if v.Name == name {
			return v, true
		}
	}
	return nil, false
}

// Validate checks a record as Create would, without looking at other entities.
func (s *Service) Validate(name string, body schema.Record, form bool) error {
	sch, ok := s.Schema(name)
	if !ok {
		return notFound()
	}
	if form {
		body = sch.Coerce(body, s.o.Plugins)
	}
	rec, errs := check(sch, body, schema.Options{Mode: schema.Insert, Auto: s.auto, Sub: s.o.Plugins})
	if len(errs) > 0 {
		s.foreignErrors(sch, body, form, errs)
		return violation(errs)
	}
	if t, ok := s.tables[name]; ok {
		_, err := transform(t.Def(), rec, nil)
		return err
	}
	return nil
}

// Entities lists the entities of the Admin API by table number.
func (s *Service) Entities() []entity.Def {
	var defs []entity.Def
	for _, t := range s.store.Tables() {
		if !t.Def().Schema.Internal {
			defs = append(defs, t.Def())
		}
	}
	return defs
}

// randomText is n characters A-Z, a-z, 0-9 from the system's random source.
func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	buf := make([]byte, 2*n)
	for len(out) < n {
		rand.Read(buf) // never fails (crypto/rand)
		for _, b := range buf {
			if int(b) < 4*len(letters) && len(out) < n { // the rest would favour some letters
				out = append(out, letters[int(b)%len(letters)])
			}
		}
	}
	return string(out)
}

// EnabledPlugins lists the names of the plugins that are configured anywhere, sorted.
func (s *Service) EnabledPlugins() []string {
	names := map[string]bool{}
	if table, ok := s.tables["plugins"]; ok {
		for row := range table.Scan(s.store.View(), "", "", state.ID{}) {
			if p, ok := row.Val.(*entity.Plugin); ok {
				names[p.Name] = true
			}
		}
	}
	return append([]string{}, slices.Sorted(maps.Keys(names))...)
}

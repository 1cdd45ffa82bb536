// Package ratelimiting limits how many requests of a consumer, a credential, an address, a service, a header value or a path
// pass in a second, minute, hour, day, month or year.
//
// It says who is limited and tells clients what remains; package ratelimit counts.
package ratelimiting

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/ratelimit"
)

// Plugin is the rate-limiting plugin. All its instances share the counters of local, so that a changed configuration goes on with
// the counts of the old one.
func Plugin(local *ratelimit.Local) plugin.Plugin { return with(local) }

// counter decides and counts; ratelimit.Local is one.
type counter interface {
	Take(now time.Time, key ratelimit.Key, limits []ratelimit.Limit, d *ratelimit.Decision) error
}

func with(local counter) plugin.Plugin {
	pool := &sync.Pool{New: func() any { return &verdict{} }}
	return plugin.Plugin{
		Info: info(),
		New: plugin.Typed(func(_ context.Context, env plugin.Env, cfg plugin.Config, c *config) (plugin.Instance, error) {
			return newInstance(local, pool, env.Log, cfg.Scope, c)
		}),
	}
}

type config struct {
	Second, Minute, Hour *float64
	Day, Month, Year     *float64
	LimitBy              string `json:"limit_by"`
	HeaderName           string `json:"header_name"`
	Path                 string `json:"path"`
	Policy               string `json:"policy"`
	FaultTolerant        bool   `json:"fault_tolerant"`
	HideClientHeaders    bool   `json:"hide_client_headers"`
	ErrorCode            *int   `json:"error_code"`
	ErrorMessage         string `json:"error_message"`
}

type instance struct {
	config
	counter counter
	pool    *sync.Pool // of *verdict
	log     *slog.Logger
	scope   string
	limits  []ratelimit.Limit
	texts   []texts // for each limit
	refusal *plugin.Exit
}

// texts are what the headers of one limit say and never changes.
type texts struct {
	limit                    string
	limitName, remainingName string
	max                      float64
	seconds                  int64
}

// verdict is what Access leaves to HeaderFilter.
type verdict struct {
	ratelimit.Decision
	now int64 // Unix seconds
}

func newInstance(counter counter, pool *sync.Pool, log *slog.Logger, scope string, c *config) (*instance, error) {
	if c.Policy != "" && c.Policy != "local" {
		return nil, fmt.Errorf("config.policy: %q cannot be served by this version; use local", c.Policy)
	}
	i := &instance{config: *c, counter: counter, pool: pool, log: log, scope: scope}
	for p, limit := range []*float64{c.Second, c.Minute, c.Hour, c.Day, c.Month, c.Year} {
		if limit == nil {
			continue
		}
		period := ratelimit.Period(p)
		name := period.String()
		name = string(name[0]-'a'+'A') + name[1:]
		// A limit of 2.5 admits three requests: Kong refuses when nothing is left, not when less than one is.
		i.limits = append(i.limits, ratelimit.Limit{Period: period, Max: int64(min(math.Ceil(*limit), 1<<62))})
		i.texts = append(i.texts, texts{
			limit: number(*limit), max: *limit, seconds: period.Seconds(),
			limitName: "X-RateLimit-Limit-" + name, remainingName: "X-RateLimit-Remaining-" + name,
		})
	}
	if path, err := exchange.NormalizePath(c.Path); err == nil && c.Path != "" {
		i.Path = path // the form in which requests' paths are compared
	}
	status := 429
	if c.ErrorCode != nil {
		status = *c.ErrorCode
	}
	i.refusal = plugin.Refuse(status, c.ErrorMessage, "")
	return i, nil
}

// The kinds of names that have limits.
const (
	byIP = iota
	byConsumer
	byCredential
	byService
	byHeader
	byPath
)

// key says who is limited.
func (i *instance) key(x *exchange.Exchange) ratelimit.Key {
	k := ratelimit.Key{Scope: i.scope}
	switch i.LimitBy {
	case "consumer":
		if x.Consumer != nil {
			k.Kind, k.ID = byConsumer, x.Consumer.ID
		} else if x.Credential != nil {
			k.Kind, k.ID = byCredential, x.Credential.ID
		}
	case "credential":
		if x.Credential != nil {
			k.Kind, k.ID = byCredential, x.Credential.ID
		}
	case "service":
		if x.Service != nil {
			k.Kind, k.ID = byService, x.Service.ID
		}
	case "header":
		if v, ok := x.Request.Header.Lookup(i.HeaderName); ok {
			k.Kind, k.ID = byHeader, v
		}
	case "path":
		if x.Request.Path == i.Path {
			k.Kind, k.ID = byPath, i.Path
		}
	}
	if k.Kind == byIP {
		ip := x.ClientIP.As16()
		k.ID = x.Keep(append(x.Scratch(), ip[:]...))
	}
	return k
}

const state = "rate-limiting" // that Access leaves

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	now := x.Now()
	v := i.pool.Get().(*verdict)
	v.now = now.Unix()
	if err := i.counter.Take(now, i.key(x), i.limits, &v.Decision); err != nil {
		i.pool.Put(v)
		if !i.FaultTolerant {
			return fmt.Errorf("rate-limiting: the request could not be counted: %w", err)
		}
		i.log.Error("rate-limiting: a request passes uncounted", "error", err, "request_id", x.RequestID)
		return nil
	}
	admitted := v.Admitted
	if i.HideClientHeaders {
		i.pool.Put(v)
	} else {
		x.Leave(state, v)
	}
	if !admitted {
		return i.refusal
	}
	return nil
}

// HeaderFilter implements plugin.HeaderFilter.
func (i *instance) HeaderFilter(x *exchange.Exchange) error {
	v, ok := x.Left(state).(*verdict)
	if !ok {
		return nil // counted nowhere, or not to be told
	}
	h := &x.Response.Header
	tightest, lowest, left := 0, 0.0, ""
	for n := range i.texts {
		t := &i.texts[n]
		remaining := max(0, t.max-float64(v.Usage[n].Used))
		text := x.Keep(appendNumber(x.Scratch(), remaining))
		// Of equally tight limits clients are told the longest (Kong).
		if n == 0 || remaining <= lowest {
			tightest, lowest, left = n, remaining, text
		}
		h.Set(t.limitName, t.limit)
		h.Set(t.remainingName, text)
	}
	t := &i.texts[tightest]
	reset := x.Keep(strconv.AppendInt(x.Scratch(), max(1, t.seconds-(v.now-v.Usage[tightest].Start)), 10))
	h.Set("RateLimit-Limit", t.limit)
	h.Set("RateLimit-Remaining", left)
	h.Set("RateLimit-Reset", reset)
	if !v.Admitted {
		h.Set("Retry-After", reset)
	}
	i.pool.Put(v) // the exchange forgets it, and this phase runs once
	return nil
}

// number writes numbers as Kong does (Lua's %.14g).
func number(f float64) string { return string(appendNumber(nil, f)) }

func appendNumber(b []byte, f float64) []byte {
	if f < 1e14 && f == math.Trunc(f) {
		return strconv.AppendInt(b, int64(f), 10)
	}
	return strconv.AppendFloat(b, f, 'g', 14, 64)
}

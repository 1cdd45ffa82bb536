package dataplane

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/router"
)

// The builders below turn one row into one part of a snapshot. They have no effect elsewhere, so DryBuild uses them
// on rows that are not committed yet.

// buildService precomputes what every request to the service needs, except TLS.
func buildService(e *entity.Service) *Service {
	scheme := e.Protocol
	switch scheme {
	case "grpc":
		scheme = "http"
	case "grpcs":
		scheme = "https"
	}
	retries := 5
	if e.Retries != nil {
		retries = *e.Retries
	}
	u := exchange.Upstream{
		Scheme: scheme, HTTP2: e.Protocol != scheme, Host: e.Host, Port: e.Port, HostHeader: hostHeader(scheme, e.Host, e.Port), Path: e.Path,
		ConnectTimeout: time.Duration(e.ConnectTimeout) * time.Millisecond,
		WriteTimeout:   time.Duration(e.WriteTimeout) * time.Millisecond,
		ReadTimeout:    time.Duration(e.ReadTimeout) * time.Millisecond,
		Retries:        retries,
	}
	return &Service{Entity: e, Upstream: u}
}

// hostHeader is the service's host, with the port unless it is the scheme's own (Kong).
func hostHeader(scheme, host string, port int) string {
	if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
		host = "[" + host + "]"
	}
	if scheme == "http" && port == 80 || scheme == "https" && port == 443 {
		return host
	}
	return host + ":" + strconv.Itoa(port)
}

// subsystemsOf tells what the protocols of a route or plugin row concern. More is not looked at for plugins (Kong).
func subsystemsOf(protocols []string) (s [subsystems]bool) {
	s[forHTTP] = slices.ContainsFunc(protocols, func(p string) bool {
		return p == "http" || p == "https" || p == "grpc" || p == "grpcs"
	})
	s[forStreams] = router.StreamProtocols(protocols) != 0
	return s
}

// checkStream is Kong's rule that a service serves routes of one subsystem.
func checkStream(e *entity.Service) error {
	if router.StreamProtocols([]string{e.Protocol}) == 0 {
		return fmt.Errorf("protocols: service %s speaks %s, which stream routes cannot use: give it the protocol tcp, tls, tls_passthrough or udp", e.ID, e.Protocol)
	}
	return nil
}

func refID(r *entity.Ref) string {
	if r == nil {
		return ""
	}
	return r.ID
}

// buildStep makes the plugin instance of a row.
func buildStep(ctx context.Context, known map[string]plugin.Plugin, env plugin.Env, e *entity.Plugin) (s *Step, err error) {
	p, ok := known[e.Name]
	if !ok {
		return nil, fmt.Errorf("name: plugin %q is not part of this program", e.Name)
	}
	var config schema.Record
	if len(e.Config) > 0 {
		if config, err = schema.Decode(e.Config); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	s = newStep(e, p.Info.Priority)
	s.secretParams = secretParams(config)
	scope := s.route + ":" + s.service + ":" + s.consumer
	if s.group != "" {
		scope += ":" + s.group
	}
	instance, err := newInstance(ctx, p, env, plugin.Config{ID: e.ID, Scope: scope, Record: config})
	if err != nil {
		return nil, err
	}
	s.Rewriter, _ = instance.(plugin.Rewriter)
	s.Accessor, _ = instance.(plugin.Accessor)
	s.Header, _ = instance.(plugin.HeaderFilter)
	s.Body, _ = instance.(plugin.BodyFilter)
	s.Logger, _ = instance.(plugin.Logger)
	s.StreamAccessor, _ = instance.(plugin.StreamAccessor)
	s.StreamLogger, _ = instance.(plugin.StreamLogger)
	s.Closer, _ = instance.(plugin.Closer)
	s.asks = asks(instance)
	s.source, _ = instance.(plugin.CertificateSource)
	return s, nil
}

func newStep(e *entity.Plugin, priority int) *Step {
	s := &Step{ID: e.ID, Name: e.Name, Priority: priority, route: refID(e.Route), service: refID(e.Service), consumer: refID(e.Consumer), group: refID(e.Group)}
	s.subsystems = subsystemsOf(e.Protocols)
	s.level = s.scopeLevel()
	return s
}

func newInstance(ctx context.Context, p plugin.Plugin, env plugin.Env, c plugin.Config) (i plugin.Instance, err error) {
	defer func() {
		if r := recover(); r != nil {
			env.Log.Error("plugin factory panicked", "plugin", p.Info.Name, "id", c.ID, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("config: plugin %s failed to start: %v", p.Info.Name, r)
		}
	}()
	return p.New(ctx, env, c)
}

// broken stands in for a plugin that cannot be built. It refuses requests: leaving out, say, an authentication plugin
// would open what it protects.
type broken struct{ err error }

func (b broken) Access(*exchange.Exchange) error { return b.err }

func (b broken) StreamAccess(*exchange.Exchange) error { return b.err }

func brokenStep(e *entity.Plugin, priority int, err error) *Step {
	s := newStep(e, priority)
	b := broken{errors.New("plugin " + e.Name + " (" + e.ID + ") could not be built: " + err.Error())}
	s.Accessor, s.StreamAccessor = b, b
	return s
}

// secretParams are the query parameters by which an authentication plugin takes credentials, by the names that Kong's plugins give the
// setting.
func secretParams(config schema.Record) (names []string) {
	for _, key := range []string{"key_names", "uri_param_names"} {
		list, _ := config[key].([]any)
		for _, v := range list {
			if s, ok := v.(string); ok {
				names = append(names, s)
			}
		}
	}
	return names
}

// sameInstance tells whether two versions of a row need no new instance.
func sameInstance(a, b *entity.Plugin) bool {
	return a.Name == b.Name && refID(a.Route) == refID(b.Route) && refID(a.Service) == refID(b.Service) &&
		refID(a.Consumer) == refID(b.Consumer) && refID(a.Group) == refID(b.Group) && string(a.Config) == string(b.Config) && subsystemsOf(a.Protocols) == subsystemsOf(b.Protocols)
}

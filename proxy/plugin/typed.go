package plugin

import (
	"context"
	"encoding/json"
	"fmt"

	"concord/fsm/schema"
)

// Typed makes a Factory from a constructor that takes the configuration as a struct with json tags.
func Typed[C any](build func(context.Context, Env, Config, *C) (Instance, error)) Factory {
	return func(ctx context.Context, env Env, cfg Config) (Instance, error) {
		c := new(C)
		raw, err := json.Marshal(cfg.Record)
		if err == nil {
			err = json.Unmarshal(raw, c)
		}
		if err != nil {
			return nil, fmt.Errorf("plugin %s: config does not fit its schema: %w", cfg.ID, err)
		}
		return build(ctx, env, cfg, c)
	}
}

// SchemaOf is the plugin's sub-schema of the plugins entity, as package schema wants it: the config record, the protocols the
// plugin understands, and a field that must be null for every scope it forbids.
func SchemaOf(p Plugin) *schema.Schema {
	i := p.Info
	scopes := i.Scopes
	if scopes == 0 {
		scopes = ScopeAll
	}
	protocols := i.Protocols
	if protocols == nil {
		protocols = schema.HTTPProtocols()
	}
	s := &schema.Schema{Name: i.Name, Checks: i.Checks}
	if scopes&ScopeConsumer == 0 {
		s.Fields = append(s.Fields, schema.NoConsumer(), schema.NoConsumerGroup())
	}
	if scopes&ScopeRoute == 0 {
		s.Fields = append(s.Fields, schema.NoRoute())
	}
	if scopes&ScopeService == 0 {
		s.Fields = append(s.Fields, schema.NoService())
	}
	config := i.Config
	config.Name, config.Type, config.Required = "config", schema.RecordT, true
	chosen := schema.Protocols(protocols...)
	if i.Streams {
		chosen.Elem.OneOf = schema.AllProtocols()
	}
	s.Fields = append(s.Fields, chosen, config)
	return s
}

package service

import (
	"slices"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// related checks the rules between rows of different entities that a schema, which sees one record, cannot express.
func (s *Service) related(view *state.View, def entity.Def, rec schema.Record) schema.Errors {
	if def.Schema.Name == "plugins" {
		return s.pluginProtocols(view, rec)
	}
	return nil
}

// pluginProtocols is Kong's rule that a plugin shares a protocol with the route it is on, or with one of the routes of
// its service; a service without routes passes.
func (s *Service) pluginProtocols(view *state.View, rec schema.Record) schema.Errors {
	shares := func(row state.AnyRow) bool {
		route, ok := row.Val.(*entity.Route)
		return !ok || slices.ContainsFunc(route.Protocols, func(p string) bool { return slices.Contains(texts(rec["protocols"]), p) })
	}
	routes := s.tables["routes"]
	if id, err := state.ParseID(keyPart(rec["route"])); err == nil {
		if row, ok := routes.Get(view, id); ok && !shares(row) {
			return schema.Errors{"protocols": "must match the associated route's protocols"}
		}
		return nil
	}
	if id := keyPart(rec["service"]); id != "" {
		any := false
		for row := range routes.Scan(view, "service", id, state.ID{}) {
			if shares(row) {
				return nil
			}
			any = true
		}
		if any {
			return schema.Errors{"protocols": "must match the protocols of at least one route pointing to this Plugin's service"}
		}
	}
	return nil
}

func texts(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, x := range list {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

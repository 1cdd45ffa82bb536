package service

import (
	"slices"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// related checks the rules between rows of different entities that a schema, which sees one record, cannot express.
func (s *Service) related(view *state.View, def entity.Def, rec schema.Record) schema.Errors {
	if def.Schema.Name != "plugins" {
		return nil
	}
	routes := s.tables["routes"]
	return protocolsMatch(rec, func(id state.ID) ([]string, bool) {
		row, ok := routes.Get(view, id)
		return protocolsOf(row), ok
	}, func(service string) (list [][]string) {
		for row := range routes.Scan(view, "service", service, state.ID{}) {
			list = append(list, protocolsOf(row))
		}
		return list
	})
}

func protocolsOf(row state.AnyRow) []string {
	if route, ok := row.Val.(*entity.Route); ok {
		return route.Protocols
	}
	return nil
}

// protocolsMatch is Kong's rule that a plugin shares a protocol with the route it is on, or with one of the routes of
// its service; a service without routes passes.
func protocolsMatch(rec schema.Record, route func(state.ID) ([]string, bool), through func(service string) [][]string) schema.Errors {
	own := texts(rec["protocols"])
	shares := func(protocols []string) bool {
		return slices.ContainsFunc(protocols, func(p string) bool { return slices.Contains(own, p) })
	}
	if id, err := state.ParseID(keyPart(rec["route"])); err == nil {
		if protocols, ok := route(id); ok && !shares(protocols) {
			return schema.Errors{"protocols": "must match the associated route's protocols"}
		}
		return nil
	}
	if id := keyPart(rec["service"]); id != "" {
		if list := through(id); len(list) > 0 && !slices.ContainsFunc(list, shares) {
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

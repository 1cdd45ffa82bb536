package service

import (
	"slices"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// related checks the rules between rows of different entities that a schema, which sees one record, cannot express. There is one, Kong's: a
// plugin shares a protocol with the route it is on, or with one of the routes of its service; a service without routes passes. As in Kong it
// guards what a request says about protocols or scope. Default protocols are not looked at, nor are whole configurations: the
// ingress controller puts a plugin of HTTP on services of TCP, where it does nothing.
func (p *planner) related(body, rec schema.Record) schema.Errors {
	_, route := body["route"]
	_, service := body["service"]
	own := texts(rec["protocols"])
	if p.def.Schema.Name != "plugins" || body["protocols"] == nil && (p.m.Verb != Update || !route && !service) {
		return nil
	}
	apart := func(row state.AnyRow) bool {
		r, ok := row.Val.(*entity.Route)
		return ok && !slices.ContainsFunc(r.Protocols, func(p string) bool { return slices.Contains(own, p) })
	}
	routes := p.s.tables["routes"]
	if id, err := state.ParseID(keyPart(rec["route"])); err == nil {
		if row, _ := routes.Get(p.view, id); apart(row) {
			return schema.Errors{"protocols": "must match the associated route's protocols"}
		}
		return nil
	}
	found := false
	if id := keyPart(rec["service"]); id != "" {
		for row := range routes.Scan(p.view, "service", id, state.ID{}) {
			if !apart(row) {
				return nil
			}
			found = true
		}
	}
	if found {
		return schema.Errors{"protocols": "must match the protocols of at least one route pointing to this Plugin's service"}
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

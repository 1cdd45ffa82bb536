package entity

import (
	"slices"
	"strings"

	"concord/fsm/schema"
)

// TableAdminTokens holds the credentials of the Admin API.
const TableAdminTokens uint16 = 103

// AdminTokens is the name of that table.
const AdminTokens = "admin_tokens"

// AdminLevel is the cluster level from which on all members know the tables of this file.
const AdminLevel uint32 = 2

// The roles of admin tokens.
const (
	RoleSuper    = "super"     // everything
	RoleAdmin    = "admin"     // everything but tokens, the cluster's members and the audit log
	RoleReadOnly = "read-only" // reads, secrets left out
)

// AuditScope among the entities of a token lets it read the audit log.
const AuditScope = "audit"

// AdminToken is a credential of the Admin API. Of its secret only a hash is kept.
type AdminToken struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	Entities  []string `json:"entities"` // plural names of what it is limited to; empty: all
	Tags      []string `json:"tags"`     // it is limited to rows with one of them; empty: all
	Hash      string   `json:"hash"`     // SHA-256 of the secret, in hexadecimal digits
}

func adminDefs() []Def {
	one := 1 // an empty list would be no limit at all
	tags := schema.Tags()
	tags.LenMin = &one
	return []Def{{Table: TableAdminTokens, Since: AdminLevel, New: func() any { return new(AdminToken) }, Endpoints: NoEndpoints, Schema: &schema.Schema{
		Name: AdminTokens, EndpointKey: "name", Internal: true, TTL: true,
		Fields: []schema.Field{
			schema.ID(),
			schema.CreatedAt(),
			{Name: "name", Type: schema.String, Required: true, Unique: true, Pattern: "^[A-Za-z0-9._~@-]{1,128}$"},
			{Name: "role", Type: schema.String, Required: true, OneOf: []any{RoleSuper, RoleAdmin, RoleReadOnly}},
			{Name: "entities", Type: schema.Set, LenMin: &one, Elem: &schema.Field{Type: schema.String, Check: checkScope}},
			tags,
			{Name: "hash", Type: schema.String, Required: true, Secret: true, Immutable: true},
		},
		Checks: []schema.Check{schema.Custom{Paths: []string{"role", "entities", "tags"}, Run: func(rec schema.Record) schema.Errors {
			if rec["role"] == RoleSuper && (rec["entities"] != nil || rec["tags"] != nil) {
				return schema.Errors{"role": "super cannot be limited: use admin with entities and tags"}
			}
			return nil
		}}},
	}}}
}

// checkScope accepts what a token can be limited to.
func checkScope(v any) string {
	names := []string{AuditScope}
	for _, d := range All() {
		if !d.Schema.Internal {
			names = append(names, d.Schema.Name)
		}
	}
	if slices.Contains(names, v.(string)) {
		return ""
	}
	slices.Sort(names)
	return "expected one of: " + strings.Join(names, ", ")
}

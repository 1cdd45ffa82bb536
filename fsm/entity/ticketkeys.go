package entity

import "concord/fsm/schema"

// SharedLevel is the cluster level from which on all members know the table of this file and acme_storage: some programs of the level before
// do not.
const SharedLevel uint32 = 3

// TLSTicketKeys is the one row with the keys by which all nodes read and write TLS session tickets (RFC 5077, RFC 8446 §4.6.1), so
// that a client resumes its session on any of them.
type TLSTicketKeys struct {
	ID        string   `json:"id"`
	RotatedAt float64  `json:"rotated_at"` // Unix seconds
	Keys      []string `json:"keys"`       // base64, sealed: the one that encrypts, the one before it, the one that comes next
}

var tlsTicketKeys = Def{Table: TableTLSTicketKeys, Since: SharedLevel, New: func() any { return new(TLSTicketKeys) }, Schema: &schema.Schema{
	Name: "tls_ticket_keys", Internal: true, Fields: []schema.Field{
		{Name: "id", Type: schema.String, Required: true},
		{Name: "rotated_at", Type: schema.Number, Required: true},
		{Name: "keys", Type: schema.Array, Required: true, Elem: &schema.Field{Type: schema.String, Secret: true}},
	}}}

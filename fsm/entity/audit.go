package entity

import (
	"encoding/json"

	"concord/fsm/schema"
)

// TableAuditRecords holds the audit log. Only the machine writes it.
const TableAuditRecords uint16 = 104

// AuditRecords is the name of that table.
const AuditRecords = "audit_records"

// AuditRecord is one change of the configuration, or under the highest id the head of the log: the numbers of the first and the
// last record kept, the hash of the last one, and as prev that of the one before the first.
type AuditRecord struct {
	ID      string          `json:"id"`
	Seq     float64         `json:"seq"`
	First   float64         `json:"first"` // of the head
	Index   float64         `json:"index"` // of the log entry
	Time    float64         `json:"time"`  // Unix milliseconds, the leader's
	Token   string          `json:"token"` // id of the admin token
	Name    string          `json:"name"`  // of the token, or of the part of the gateway
	From    string          `json:"from"`  // the client's address
	Verb    string          `json:"verb"`
	Entity  string          `json:"entity"`
	Changes json.RawMessage `json:"changes"` // [{"entity","id","before","after"}]: SHA-256 of the rows, "" for none
	Detail  string          `json:"detail"`  // what the changes do not tell; not in every record
	More    float64         `json:"more"`    // changes that are not listed, but in the digest
	Digest  string          `json:"digest"`  // SHA-256 over all changes
	Prev    string          `json:"prev"`    // hash of the record before
	Hash    string          `json:"hash"`    // SHA-256 of this record as JSON without the member hash, names sorted, no white space
}

func auditDefs() []Def {
	text := func(name string) schema.Field { return schema.Field{Name: name, Type: schema.String} }
	number := func(name string) schema.Field { return schema.Field{Name: name, Type: schema.Number} }
	return []Def{{Table: TableAuditRecords, New: func() any { return new(AuditRecord) }, Endpoints: NoEndpoints, Journal: true, Schema: &schema.Schema{
		Name: AuditRecords, Internal: true, Fields: []schema.Field{
			text("id"), number("seq"), number("first"), number("index"), number("time"), text("token"), text("name"), text("from"), text("verb"), text("entity"),
			{Name: "changes", Type: schema.Array, Elem: &schema.Field{Type: schema.RecordT, Fields: []schema.Field{text("entity"), text("id"), text("before"), text("after")}}},
			text("detail"), number("more"), text("digest"), text("prev"), text("hash"),
		}}}}
}

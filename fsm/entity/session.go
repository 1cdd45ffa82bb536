package entity

import "concord/fsm/schema"

// Session is a browser's session that is kept by the gateway instead of in the cookie.
type Session struct {
	ID        string  `json:"id"`
	SessionID string  `json:"session_id"`
	Expires   int     `json:"expires"` // Unix seconds
	Data      string  `json:"data"`
	CreatedAt float64 `json:"created_at"`
}

var sessions = Def{Table: 21, Runtime: true, New: func() any { return new(Session) }, Schema: &schema.Schema{
	Name:        "sessions",
	EndpointKey: "session_id",
	TTL:         true,
	Fields: []schema.Field{
		schema.ID(),
		{Name: "session_id", Type: schema.String, Secret: true, Unique: true, Required: true},
		{Name: "expires", Type: schema.Integer},
		{Name: "data", Type: schema.String, Secret: true},
		schema.CreatedAt(),
	},
}}

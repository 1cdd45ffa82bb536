// Package schema describes entities as data: their fields, types, defaults and rules, with Kong's validation texts.
//
// It is a pure leaf: no clock, no randomness, no I/O. It knows neither entities nor storage nor HTTP. Everything that is
// shown to or taken from an Admin API client is derived from a Schema: validation, form coercion, /schemas answers, the
// set of secret fields, unique indexes and foreign keys.
package schema

// Record is one entity or nested record as JSON values: nil, bool, float64, string, []any, Record.
// Numbers are always float64 (Kong's only number type); a prepared record holds every declared field, nil when unset.
type Record = map[string]any

// Type is the type of a field.
type Type string

// The field types, named as Kong's /schemas answers name them.
const (
	String  Type = "string"
	Integer Type = "integer"
	Number  Type = "number"
	Boolean Type = "boolean"
	Array   Type = "array"
	Set     Type = "set" // like Array, duplicates removed, order kept
	Map     Type = "map"
	RecordT Type = "record"
	Foreign Type = "foreign" // {"id": "<uuid>"} of entity Field.Ref
)

// RefAction says what deleting the referenced entity does to the row that refers to it.
type RefAction string

// The actions of a foreign key on delete.
const (
	Restrict RefAction = "restrict" // refuse the delete (Kong's default)
	Cascade  RefAction = "cascade"  // delete the referring row too
	SetNull  RefAction = "null"     // clear the field of the referring row
)

// Field is one named value of a Schema or of a nested record.
type Field struct {
	Name     string
	Type     Type
	Elem     *Field  // element of Array, Set; value of Map
	Keys     *Field  // key of Map
	Fields   []Field // of RecordT
	Ref      string  // Foreign: plural name of the referenced entity
	OnDelete RefAction

	Default   any  // nil: none
	Required  bool // may not be null
	Unique    bool
	Auto      bool // made by the gateway when absent: id, timestamps, random keys (see AutoKind)
	AutoKind  AutoKind
	Secret    bool // sealed at rest, redacted in logs
	Vault     bool // accepts {vault://...} references, for which validation of the value is skipped
	Immutable bool
	Null      bool   // the value must be null (a plugin's forbidden scope)
	Since     uint32 // cluster level that introduced the field

	OneOf       []any
	NotOneOf    []any
	Between     *[2]float64
	GT          *float64
	LenMin      *int // strings and lists; strings default to 1 unless LenMin is 0
	LenMax      *int
	LenEq       *int
	Pattern     string // RE2; a mismatch is "invalid value: <v>"
	MatchNone   []Match
	StartsWith  string
	Contains    any // list must contain it
	UUID        bool
	Timestamp   bool
	Regex       bool // the value must compile as a regular expression
	Description string

	// Check is a custom rule on the (non-null, type-checked) value. It returns the error text, "" when fine.
	Check func(any) string
}

// Match is a pattern that must not match, with the error text if it does.
type Match struct{ Pattern, Err string }

// AutoKind says how an Auto field is made.
type AutoKind string

// The kinds of values made by the gateway.
const (
	AutoUUID    AutoKind = "uuid"
	AutoNow     AutoKind = "now"   // created_at: Unix seconds, set once
	AutoTouch   AutoKind = "touch" // updated_at: Unix seconds, set on every write
	AutoNowMS   AutoKind = "nowms" // float seconds with milliseconds (targets)
	AutoTouchMS AutoKind = "touchms"
	AutoRandom  AutoKind = "random" // 32 characters [A-Za-z0-9]
)

// Schema is one entity, or one plugin's configuration.
type Schema struct {
	Name        string // plural, as in error texts and /schemas: "services", "jwt_secrets"
	EndpointKey string // alternative look-up key in URLs: "name", "username", "key"
	TTL         bool   // rows may expire
	Fields      []Field
	Unique      [][]string  // composite unique keys; foreign fields take part by id, nulls are equal
	Shorthands  []Shorthand // write-only inputs that expand into fields (services: url)
	Checks      []Check
	SubKey      string // field whose value selects the sub-schema of the "config" record ("name" for plugins)
	Internal    bool   // kept out of the Admin API (the cluster's own tables)
}

// Shorthand is a write-only input that is rewritten into other fields before validation.
type Shorthand struct {
	Name   string
	Type   Type
	Expand func(v any, in Record) (Record, Errors) // fields to set, overriding those present
}

// Mode is what the caller is about to do.
type Mode int

// The modes of Prepare.
const (
	Insert Mode = iota // POST
	Update             // PATCH: in is the client's body, current the stored record
	Upsert             // PUT: unspecified fields fall back to defaults
)

// Auto makes the values that may be decided only once, on the leader.
type Auto struct {
	Now    func() (sec float64) // Unix time in seconds with fraction
	UUID   func() string
	Random func() string // 32 characters [A-Za-z0-9]
}

// Options of Prepare.
type Options struct {
	Mode    Mode
	Current Record // Update: the stored record
	Auto    Auto
	Sub     func(key string) (*Schema, bool) // sub-schema of "config" for SubKey
}

// Errors is Kong's tree of validation errors: a field's value is a string, a nested Errors, or a []any whose elements
// are nil, string or Errors (1-based positions in the message). Entity-level errors are a []any of strings under "@entity".
type Errors map[string]any

// Check is a rule over several fields of one record. Its concrete forms are in checks.go.
type Check interface {
	// Apply returns the violations; field paths may be dotted ("config.allow").
	Apply(rec Record, mode Mode) Errors
	// Describe is the check as /schemas shows it, nil to hide it.
	Describe() Record
}

// Package schema describes entities as data: their fields, types, defaults and rules, with Kong's validation texts.
//
// It is a pure leaf: no clock, no randomness, no I/O. It knows neither entities nor storage nor HTTP. Everything that is
// shown to or taken from an Admin API client is derived from a Schema: validation, form coercion, /schemas answers, the
// set of secret fields, unique indexes and foreign keys.
//
// # Sub-schemas
//
// A schema with a SubKey ("name" for plugins) is completed by a second schema that the value of that field selects
// (Options.Sub). The sub-schema is a *Schema as well and is laid over the first:
//
//   - Its Name is the value that selects it ("rate-limiting").
//   - Its Fields replace the fields of the same name in the outer schema. A plugin declares "config" (a required RecordT
//     with its own Fields, Shorthands and Checks), and where it differs from the plugins schema "protocols" (another
//     default, other elements) and forbidden scopes "consumer", "route", "service" (Foreign with Null: true, see
//     NoConsumer, NoRoute, NoService). Fields that the outer schema does not have are not allowed.
//   - Its Checks run on the whole outer record, so their paths read "config.allow", and their errors appear under
//     "@entity" of the entity. Checks of the config field itself (Field.Checks) see the config record only, with paths
//     relative to it, and their errors appear under config["@entity"]. Field.Check of config sees the config record and its
//     text appears as the error of "config" itself.
//   - Its Shorthands are ignored: a plugin's old flat names are Field.Shorthands of its config field.
//
// Sub-schema and outer schema are merged once per sub-schema value and kept; a Schema must not be changed once used.
package schema

import "sync/atomic"

// Record is one entity or nested record as JSON values: nil, bool, float64, string, []any, Record.
// Numbers are always float64 (Kong's only number type); a prepared record holds every declared field, nil when unset (see Prepare).
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
	Ref      string  // Foreign: plural name of the referenced entity; also of a String that holds an id of it (elements of lists)
	OnDelete RefAction

	Default   any  // nil: none
	Required  bool // may not be null
	Nullable  bool // of RecordT, which is otherwise required and expanded with its defaults: may be null and stay so
	Unique    bool
	Auto      bool // made by the gateway when absent: id, timestamps, random keys (see AutoKind)
	AutoKind  AutoKind
	Secret    bool // sealed at rest, redacted in logs
	Vault     bool // accepts {vault://...} references, for which validation of the value is skipped
	Immutable bool
	Transient bool   // not part of the stored row (entity.Def.Members)
	Null      bool   // the value must be null (a plugin's forbidden scope)
	Since     uint32 // cluster level that introduced the field; unset it is left out, so that rows without it are as they were before

	OneOf       []any
	NotOneOf    []any
	Between     *[2]float64
	GT          *float64
	LenMin      *int // strings and lists; strings default to 1 unless LenMin is 0
	LenMax      *int
	LenEq       *int
	Pattern     string // RE2; a mismatch is "invalid value: <v>"
	NotPattern  string // RE2; a match is "invalid value: <v>"
	MatchAll    []Match
	MatchNone   []Match
	MatchAny    []string // RE2; if none matches the error is MatchAnyErr
	MatchAnyErr string
	StartsWith  string
	Contains    any // list must contain it
	Equal       any // "value must be <x>"; null does not equal it
	NotEqual    any
	Disjoint    [][]string // a list may take its elements from one of these groups only
	UUID        bool
	Timestamp   bool
	Regex       bool   // the value must compile as a regular expression
	Err         string // text for all of the rules above instead of their own
	Description string

	// Check is a custom rule on the (non-null, type-checked) value. It returns the error text, "" when fine.
	Check func(any) string

	Shorthands []Shorthand // of RecordT: as Schema.Shorthands, inside this record
	Checks     []Check     // of RecordT: as Schema.Checks, with paths relative to this record
}

// Match is a RE2 pattern with the error text for a value that breaks the rule.
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
	SubKey      string                           // field whose value (if a list: its first known element) selects the sub-schema
	Subs        func(key string) (*Schema, bool) // where the sub-schemas come from, instead of Options.Sub (routes)
	SubUnknown  string                           // error text for an unknown sub-schema with %s for the key; "" : "unknown type: %s"
	Internal    bool                             // kept out of the Admin API (the cluster's own tables)

	plan atomic.Value // *plan: what compile made of this value; a copy of the Schema makes its own
}

// Shorthand is a write-only input that is rewritten into other fields before validation. Named like a field, it is a hook
// that sees what the client sends for that field and may set it and others.
type Shorthand struct {
	Name   string
	Type   Type
	Expand func(v any, in Record) (Record, Errors) // fields to set, overriding those present; v may be nil
	// ReplacedWith makes the shorthand the deprecated name of the field at this path ("redis", "host"): it sets that
	// field unless the client sets it too (then both must be equal) and Present shows it again. Expand is not used.
	ReplacedWith []string
	Rule         Field // further rules of the value (Elem, OneOf, …)
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

// EntityKey is the key of Errors under which the violations of rules over several fields are listed.
const EntityKey = "@entity"

// Check is a rule over several fields of one record, in one of the forms of checks.go. Field paths may be dotted
// ("config.allow").
type Check interface {
	// Describe is the check as /schemas shows it, nil to hide it.
	Describe() Record

	bind(p *plan) boundCheck
}

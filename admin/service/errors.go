package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"concord/fsm/schema"
)

// Kind says what went wrong. Kinds below 100 are Kong's error codes and appear as "code" in its error envelope; the
// others have a bare message. Each front maps kinds to its own status codes, once.
type Kind int

// Kong's codes (kong/db/errors.lua numbers them) and the kinds that Kong has no number for.
const (
	InvalidKey        Kind = 1   // the reference is no id, and the entity has no other key
	SchemaViolation   Kind = 2   // a field or a rule over fields is violated
	PrimaryKeyTaken   Kind = 3   // the id of a new entity exists already
	ForeignKey        Kind = 4   // a reference to nothing, or a delete of something referred to
	UniqueTaken       Kind = 5   // another entity has the unique value
	NotFound          Kind = 6   // the entity to change does not exist
	InvalidOffset     Kind = 7   // paging token
	InvalidSize       Kind = 9   // page size
	InvalidUnique     Kind = 10  // the reference breaks the rules of the key it is looked up by
	InvalidOptions    Kind = 11  // query options, or ttl where there is none
	ForeignUnresolved Kind = 13  // a reference by unique field finds nothing
	Referenced        Kind = 19  // a delete of something that a list of ids holds
	Malformed         Kind = 100 // the request cannot be understood
	Missing           Kind = 101 // nothing there (reads, parents, nested entities)
	Unavailable       Kind = 102 // no leader, no quorum, or too busy: try again
	IndexAhead        Kind = 103 // the wanted index lies beyond what the cluster committed
	Unknown           Kind = 104 // the write's outcome is not known
	Internal          Kind = 105
	Busy              Kind = 106 // this node is busy with another one of the kind
	Unauthenticated   Kind = 107 // no valid admin token where one is needed
	Forbidden         Kind = 108 // the role does not allow it
	Changed           Kind = 109 // a precondition does not hold
)

var kindNames = map[Kind]string{
	InvalidKey: "invalid primary key", SchemaViolation: "schema violation", PrimaryKeyTaken: "primary key violation",
	ForeignKey: "foreign key violation", UniqueTaken: "unique constraint violation", NotFound: "not found",
	InvalidOffset: "invalid offset", InvalidSize: "invalid size", InvalidOptions: "invalid options",
	ForeignUnresolved: "foreign keys unresolved", Referenced: "referenced by others",
}

// Error is a refusal as a client sees it.
type Error struct {
	Kind    Kind           `json:"kind"`
	Name    string         `json:"name,omitempty"` // Kong's name of the code
	Message string         `json:"message"`
	Fields  map[string]any `json:"fields,omitempty"`
	Options map[string]any `json:"options,omitempty"` // instead of Fields, for query options
	Hint    string         `json:"hint,omitempty"`    // how to mend it, where Kong's text is cryptic
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

func refuse(k Kind, fields map[string]any, format string, args ...any) *Error {
	return &Error{Kind: k, Name: kindNames[k], Message: fmt.Sprintf(format, args...), Fields: fields}
}

func violation(errs schema.Errors) *Error {
	return &Error{Kind: SchemaViolation, Name: kindNames[SchemaViolation], Message: errs.Message(), Fields: errs}
}

// invalid is the refusal of a record for a reason that may not name its field.
func invalid(err error) *Error {
	var errs schema.Errors
	if errors.As(err, &errs) {
		return violation(errs)
	}
	return violation(schema.EntityError(err.Error()))
}

func notFound() *Error { return &Error{Kind: Missing, Message: "Not found"} }

// asError turns any error into an *Error; what is not one already is internal.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Message: err.Error()}
}

// keyText renders a key as Kong's messages do, in Lua table syntax with sorted names: {name="x",service={id="…"}}.
func keyText(key map[string]any) string {
	names := make([]string, 0, len(key))
	for n := range key {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	b.WriteByte('{')
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(n)
		b.WriteByte('=')
		switch v := key[n].(type) {
		case nil:
			b.WriteString("null")
		case string:
			b.WriteString(strconv.Quote(v))
		case map[string]any:
			b.WriteString(keyText(v))
		default:
			j, _ := json.Marshal(v)
			b.Write(j)
		}
	}
	b.WriteByte('}')
	return b.String()
}

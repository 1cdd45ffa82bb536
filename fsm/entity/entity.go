// Package entity holds the entities of the gateway: for each a Go struct as the data plane uses it and its schema.
//
// One file per entity; All is the only list. The package knows nothing of storage, HTTP or plugins' code: the schemas
// of plugin configurations are handed in by whoever wires the program.
package entity

import (
	"cmp"
	"encoding/json"

	"concord/fsm/schema"
)

// Def registers one entity: its schema, its stable table number and the Go type its rows decode to.
type Def struct {
	Table  uint16 // never reused
	Schema *schema.Schema
	New    func() any // pointer to a zero struct; rows are decoded into it with encoding/json

	// Transform changes a prepared record before it is stored (basic-auth: the password becomes its digest). current is
	// the stored record that a PATCH or PUT replaces, nil on insert. It is pure; nil: nothing to do.
	Transform func(rec, current schema.Record) (schema.Record, error)
	// Runtime rows are made while the gateway serves (tokens, sessions). They are not part of a configuration, which replaces none of them.
	Runtime bool
	// Since is the cluster level that introduced the table; 0: it was there from the beginning.
	Since uint32
	// Joins are the two ends of a row that says that two entities belong together, and nothing else. Under the one, the id or the name of the
	// other finds it. nil: the entity is no join.
	Joins []Join
	// Journal rows are appended by the machine, in the order of their ids. They are read in that order, and no subscriber hears of them.
	Journal bool
	// WriteOnly: nobody is shown the secrets of its rows.
	WriteOnly bool
	// Advise warns the client about a record that is valid but probably not what was meant; "" when all is well. nil: no advice.
	Advise func(rec schema.Record) string
	// Members is the list field that stands for rows of another entity. nil: none.
	Members *Members

	// The rest is how the Admin API's URLs name the entity; each empty value means the plural name.
	Endpoints   Endpoints
	PutUpdates  bool     // PUT changes what is there like PATCH and makes nothing
	NewestFirst bool     // collections under a parent are in the order of created_at, not of the ids
	Collection  string   // top-level collection: "key-auths" in /key-auths
	Nested      string   // collection under an entity it refers to: "key-auth" in /consumers/{c}/key-auth
	NestedKey   string   // field that, with the parent, finds one row: "group" in /consumers/{c}/acls/{group}
	Filters     []string // unique fields by which the collection may be filtered: "custom_id" in /consumers?custom_id=x
}

// Members is a list of names that is not stored in the row: each name is a row of another entity that refers to this one.
// Who writes the list makes and deletes those rows, and a name serves as a reference to this row (certificates: snis).
type Members struct {
	Field    string // the list, a transient field of this entity's schema: "snis"
	Entity   string // whose rows they are; its EndpointKey is the name: "snis"
	Ref      string // its foreign field that refers to this entity: "certificate"
	NotFound string // what a URL with an unknown name is answered
}

// Join is one end of a join's rows.
type Join struct {
	Field string // that refers to the entity at this end: "consumer"
	List  string // in files, the list of that entity that names those at the other end: "groups". They are written at the first end
}

// OtherEnd is the field of a join beside one of its two.
func (d Def) OtherEnd(field string) string {
	for _, j := range d.Joins {
		if j.Field != field {
			return j.Field
		}
	}
	return ""
}

// Endpoints says which of the endpoints that an entity's schema implies the Admin API has.
type Endpoints uint8

// The values of Endpoints.
const (
	AllEndpoints    Endpoints = iota
	NoOwnerEndpoint           // not what an item refers to: no /snis/{s}/certificate
	NestedEndpoints           // only those under the entity it refers to: /upstreams/{u}/targets, no /targets
	NoEndpoints               // none: the gateway's own rows
)

// CollectionName is the entity's top-level collection in URLs.
func (d Def) CollectionName() string { return cmp.Or(d.Collection, d.Schema.Name) }

// HasTags tells whether rows of the entity can have tags.
func (d Def) HasTags() bool {
	_, ok := d.Schema.Field("tags")
	return ok
}

// NestedName is the entity's collection under an entity that it refers to.
func (d Def) NestedName() string { return cmp.Or(d.Nested, d.CollectionName()) }

// Ref is a foreign key as it is stored and shown: {"id": "<uuid>"}.
type Ref struct {
	ID string `json:"id"`
}

// Service is an upstream API. Times are Unix seconds, timeouts milliseconds.
type Service struct {
	ID                string   `json:"id"`
	CreatedAt         float64  `json:"created_at"`
	UpdatedAt         float64  `json:"updated_at"`
	Name              string   `json:"name"`
	Retries           *int     `json:"retries"`
	Protocol          string   `json:"protocol"`
	Host              string   `json:"host"`
	Port              int      `json:"port"`
	Path              string   `json:"path"` // "" when null
	ConnectTimeout    int      `json:"connect_timeout"`
	WriteTimeout      int      `json:"write_timeout"`
	ReadTimeout       int      `json:"read_timeout"`
	Tags              []string `json:"tags"`
	ClientCertificate *Ref     `json:"client_certificate"`
	TLSVerify         *bool    `json:"tls_verify"`
	TLSVerifyDepth    *int     `json:"tls_verify_depth"`
	CACertificates    []string `json:"ca_certificates"`
	Enabled           bool     `json:"enabled"`
}

// IPPort is one element of a stream route's sources or destinations.
type IPPort struct {
	IP   string `json:"ip"`
	Port *int   `json:"port"`
}

// Route matches requests and sends them to its service.
type Route struct {
	ID                      string              `json:"id"`
	CreatedAt               float64             `json:"created_at"`
	UpdatedAt               float64             `json:"updated_at"`
	Name                    string              `json:"name"`
	Protocols               []string            `json:"protocols"`
	HTTPSRedirectStatusCode int                 `json:"https_redirect_status_code"`
	StripPath               bool                `json:"strip_path"`
	PreserveHost            bool                `json:"preserve_host"`
	RequestBuffering        bool                `json:"request_buffering"`
	ResponseBuffering       bool                `json:"response_buffering"`
	Tags                    []string            `json:"tags"`
	Service                 *Ref                `json:"service"`
	SNIs                    []string            `json:"snis"`
	Sources                 []IPPort            `json:"sources"`
	Destinations            []IPPort            `json:"destinations"`
	Methods                 []string            `json:"methods"`
	Hosts                   []string            `json:"hosts"`
	Paths                   []string            `json:"paths"`
	Headers                 map[string][]string `json:"headers"`
	RegexPriority           int                 `json:"regex_priority"`
	PathHandling            string              `json:"path_handling"`
}

// Consumer is a client of the APIs.
type Consumer struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
	Username  string   `json:"username"`
	CustomID  string   `json:"custom_id"`
	Tags      []string `json:"tags"`
}

// Plugin is one configured plugin on a scope.
type Plugin struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	InstanceName string          `json:"instance_name"`
	CreatedAt    float64         `json:"created_at"`
	UpdatedAt    float64         `json:"updated_at"`
	Route        *Ref            `json:"route"`
	Service      *Ref            `json:"service"`
	Consumer     *Ref            `json:"consumer"`
	Group        *Ref            `json:"consumer_group"`
	Config       json.RawMessage `json:"config"` // decoded by the plugin's factory
	Protocols    []string        `json:"protocols"`
	Enabled      bool            `json:"enabled"`
	Tags         []string        `json:"tags"`
}

// JWTSecret is a consumer's credential for the jwt plugin.
type JWTSecret struct {
	ID           string   `json:"id"`
	CreatedAt    float64  `json:"created_at"`
	Consumer     Ref      `json:"consumer"`
	Key          string   `json:"key"`
	Secret       string   `json:"secret"`
	RSAPublicKey string   `json:"rsa_public_key"`
	Algorithm    string   `json:"algorithm"`
	Tags         []string `json:"tags"`
}

// KeyAuthCredential is a consumer's API key.
type KeyAuthCredential struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	Consumer  Ref      `json:"consumer"`
	Key       string   `json:"key"`
	Tags      []string `json:"tags"`
}

// BasicAuthCredential is a consumer's user name and the SHA-1 digest of password + consumer id (Kong's form).
type BasicAuthCredential struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	Consumer  Ref      `json:"consumer"`
	Username  string   `json:"username"`
	Password  string   `json:"password"`
	Tags      []string `json:"tags"`
}

// ACL puts a consumer into a group.
type ACL struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	Consumer  Ref      `json:"consumer"`
	Group     string   `json:"group"`
	Tags      []string `json:"tags"`
}

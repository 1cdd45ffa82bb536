package entity

import (
	"encoding/json"

	"concord/fsm/schema"
)

// Vault is a source of values for {vault://<prefix>/<key>} references.
type Vault struct {
	ID          string          `json:"id"`
	Prefix      string          `json:"prefix"`
	Name        string          `json:"name"` // its kind
	Description string          `json:"description"`
	Config      json.RawMessage `json:"config"` // *EnvVault or *FileVault
	CreatedAt   float64         `json:"created_at"`
	UpdatedAt   float64         `json:"updated_at"`
	Tags        []string        `json:"tags"`
}

// EnvVault is the configuration of a vault "env": the environment of the node. Its variable is the prefix followed by the
// key, in capitals and with "_" for "-".
type EnvVault struct {
	Prefix string `json:"prefix"`
}

// FileVault is the configuration of a vault "file": one file for each key, as container platforms mount secrets.
type FileVault struct {
	Directory string `json:"directory"`
}

var vaults = Def{Table: 14, New: func() any { return new(Vault) }, Schema: &schema.Schema{
	Name:        "vaults",
	EndpointKey: "prefix",
	SubKey:      "name",
	Subs:        vaultKinds,
	SubUnknown:  "vault '%s' is not installed",
	Fields: []schema.Field{
		schema.ID(),
		// {vault://env/…} needs no entity, so no entity may take the name.
		{Name: "prefix", Type: schema.String, Required: true, Unique: true, NotOneOf: []any{"env"}, Pattern: "^[a-z][a-z0-9-]*[a-z0-9]$"},
		{Name: "name", Type: schema.String, Required: true},
		{Name: "description", Type: schema.String},
		{Name: "config", Type: schema.RecordT}, // of the kind
		schema.CreatedAt(),
		schema.UpdatedAt(),
		schema.Tags(),
	},
}}

func vaultKinds(name string) (*schema.Schema, bool) {
	switch name {
	case "env":
		return envVault, true
	case "file":
		return fileVault, true
	}
	return nil, false
}

var envVault = &schema.Schema{Name: "env", Fields: []schema.Field{{Name: "config", Type: schema.RecordT, Fields: []schema.Field{
	{Name: "prefix", Type: schema.String, Pattern: "^[A-Za-z_-][A-Za-z0-9_-]*$"},
}}}}

var fileVault = &schema.Schema{Name: "file", Fields: []schema.Field{{Name: "config", Type: schema.RecordT, Fields: []schema.Field{
	{Name: "directory", Type: schema.String, Required: true, StartsWith: "/"},
}}}}

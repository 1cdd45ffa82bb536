package entity

import "concord/fsm/schema"

// ACMEStorageTable is the plural name of ACMEStorage.
const ACMEStorageTable = "acme_storage"

// ACMEStorage is what the acme plugin keeps: accounts, certificates with their keys, challenges and locks.
type ACMEStorage struct {
	ID        string  `json:"id"`
	Key       string  `json:"key"`
	Value     string  `json:"value"`
	CreatedAt float64 `json:"created_at"`
}

var acmeStorage = Def{Table: 22, Since: SharedLevel, New: func() any { return new(ACMEStorage) }, Runtime: true, WriteOnly: true, Schema: &schema.Schema{
	Name:        ACMEStorageTable,
	EndpointKey: "key",
	TTL:         true,
	Fields: []schema.Field{
		schema.ID(),
		{Name: "key", Type: schema.String, Required: true, Unique: true},
		{Name: "value", Type: schema.String, Required: true, Secret: true},
		schema.CreatedAt(),
	},
}}

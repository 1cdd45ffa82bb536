package entity

import "concord/fsm/schema"

// The tables of the cluster itself. Their rows are written by package cluster only and never shown by the Admin API.
const (
	TableClusterMeta   uint16 = 100
	TableClusterNodes  uint16 = 101
	TableClusterTokens uint16 = 102
	TableTLSTicketKeys uint16 = 110
)

// ClusterMeta is the one row that all nodes of a cluster share.
type ClusterMeta struct {
	ID            string   `json:"id"`
	ClusterID     string   `json:"cluster_id"`
	CACertificate string   `json:"ca_certificate"` // PEM
	CAKey         string   `json:"ca_key"`         // PEM, sealed
	GossipKeys    []string `json:"gossip_keys"`    // base64, sealed; the first one encrypts, all of them decrypt
	GossipPhase   string   `json:"gossip_phase"`   // where a rotation of the gossip key stands: steady, install, use
}

// ClusterNode is a node that is or was a member. A removed node's row outlives the validity of its last certificate.
type ClusterNode struct {
	ID            string  `json:"id"`
	CreatedAt     float64 `json:"created_at"`
	Name          string  `json:"name"`
	Address       string  `json:"address"`        // host:port of the peer port
	GossipAddress string  `json:"gossip_address"` // host:port
	Role          string  `json:"role"`           // what it is meant to become: voter, nonvoter
	State         string  `json:"state"`          // active, removed
	Version       string  `json:"version"`
	Level         float64 `json:"level"` // the highest cluster level it understands
}

// ClusterToken admits nodes. It holds what verifies the proof of a joining node, not the secret of the token.
type ClusterToken struct {
	ID        string  `json:"id"`
	CreatedAt float64 `json:"created_at"`
	ExpiresAt float64 `json:"expires_at"` // Unix seconds
	Role      string  `json:"role"`
	Uses      float64 `json:"uses"` // left
	ProofKey  string  `json:"proof_key"`
}

func clusterDefs() []Def {
	text := func(name string) schema.Field { return schema.Field{Name: name, Type: schema.String, Required: true} }
	number := func(name string) schema.Field { return schema.Field{Name: name, Type: schema.Number, Required: true} }
	oneOf := func(name string, values ...any) schema.Field {
		return schema.Field{Name: name, Type: schema.String, Required: true, OneOf: values}
	}
	secret := func(f schema.Field) schema.Field { f.Secret = true; return f }
	return []Def{
		{Table: TableClusterMeta, New: func() any { return new(ClusterMeta) }, Schema: &schema.Schema{
			Name: "cluster_meta", Internal: true, Fields: []schema.Field{
				text("id"), text("cluster_id"), text("ca_certificate"), secret(text("ca_key")),
				{Name: "gossip_keys", Type: schema.Array, Required: true, Elem: &schema.Field{Type: schema.String, Secret: true}},
				oneOf("gossip_phase", "steady", "install", "use"),
			}}},
		{Table: TableClusterNodes, New: func() any { return new(ClusterNode) }, Schema: &schema.Schema{
			Name: "cluster_nodes", Internal: true, TTL: true, Fields: []schema.Field{
				text("id"), number("created_at"), text("name"), text("address"), text("gossip_address"),
				oneOf("role", "voter", "nonvoter"), oneOf("state", "active", "removed"), text("version"), number("level"),
			}}},
		{Table: TableClusterTokens, New: func() any { return new(ClusterToken) }, Schema: &schema.Schema{
			Name: "cluster_tokens", Internal: true, TTL: true, Fields: []schema.Field{
				text("id"), number("created_at"), number("expires_at"), oneOf("role", "voter", "nonvoter"), number("uses"),
				secret(text("proof_key")),
			}}},
		tlsTicketKeys,
	}
}

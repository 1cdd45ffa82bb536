package cluster

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// metaID is the id of the one row of cluster_meta.
var metaID = state.ID{15: 1}

const (
	nodeActive  = "active"
	nodeRemoved = "removed"
)

// The phases of a rotation of the gossip key.
const (
	phaseSteady  = "steady"
	phaseInstall = "install" // the new key is second: everyone can read it
	phaseUse     = "use"     // the new key is first: everyone writes it
)

// rows reads and writes the cluster's own tables.
type rows struct {
	store  *state.Store
	meta   *state.Table[entity.ClusterMeta]
	nodes  *state.Table[entity.ClusterNode]
	tokens *state.Table[entity.ClusterToken]
	ticket *state.Table[entity.TLSTicketKeys]
	admins *state.Table[entity.AdminToken]
	audit  *state.Table[entity.AuditRecord]
}

func newRows(s *state.Store) *rows {
	return &rows{s, state.TableOf[entity.ClusterMeta](s), state.TableOf[entity.ClusterNode](s), state.TableOf[entity.ClusterToken](s), state.TableOf[entity.TLSTicketKeys](s),
		state.TableOf[entity.AdminToken](s), state.TableOf[entity.AuditRecord](s)}
}

func (r *rows) clusterMeta() (state.Row[entity.ClusterMeta], bool) {
	return r.meta.Get(r.store.View(), metaID)
}

func (r *rows) node(id string) (state.Row[entity.ClusterNode], bool) {
	key, err := state.ParseID(id)
	if err != nil {
		return state.Row[entity.ClusterNode]{}, false
	}
	return r.nodes.Get(r.store.View(), key)
}

// tokenName is what an admin token is called, "" if there is none.
func (r *rows) tokenName(id string) string {
	key, err := state.ParseID(id)
	if err != nil {
		return ""
	}
	row, _ := r.admins.Get(r.store.View(), key)
	return row.Val.Name
}

// active lists the members by id.
func (r *rows) active() []state.Row[entity.ClusterNode] {
	var list []state.Row[entity.ClusterNode]
	for row := range r.nodes.All(r.store.View()) {
		if row.Val.State == nodeActive {
			list = append(list, row)
		}
	}
	return list
}

// put makes the Put of a row, its secret fields sealed.
func (r *rows) put(id string, val any, ifIndex uint64, expiresMS int64) (command.Put, error) {
	key, err := state.ParseID(id)
	if err != nil {
		return command.Put{}, err
	}
	var table string
	switch val.(type) {
	case *entity.ClusterMeta:
		table = "cluster_meta"
	case *entity.ClusterNode:
		table = "cluster_nodes"
	case *entity.ClusterToken:
		table = "cluster_tokens"
	case *entity.TLSTicketKeys:
		table = "tls_ticket_keys"
	}
	t, ok := r.store.Table(table)
	if !ok {
		return command.Put{}, fmt.Errorf("the machine has no table for %T", val)
	}
	clear, err := json.Marshal(val)
	if err != nil {
		return command.Put{}, err
	}
	rec, err := schema.Decode(clear)
	if err != nil {
		return command.Put{}, err
	}
	rec, err = t.Def().Schema.MapSecrets(rec, nil, func(_, v string) (any, error) {
		return r.store.Keys().Seal(t.Number(), key, v)
	})
	if err != nil {
		return command.Put{}, err
	}
	raw, err := schema.Encode(rec)
	return command.Put{Table: t.Number(), ID: key, IfIndex: ifIndex, Expires: expiresMS, Raw: raw}, err
}

func newSecretKey() (string, error) {
	key := make([]byte, 32)
	_, err := rand.Read(key)
	return base64.StdEncoding.EncodeToString(key), err
}

func decodeKeys(list []string) ([][]byte, error) {
	if len(list) == 0 {
		return nil, errors.New("no gossip key")
	}
	keys := make([][]byte, len(list))
	for i, s := range list {
		var err error
		if keys[i], err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// holdsUserData says whether any entity of the gateway exists.
func (r *rows) holdsUserData() bool {
	v := r.store.View()
	for _, t := range r.store.Tables() {
		if !t.Def().Schema.Internal && t.Len(v) > 0 {
			return true
		}
	}
	return false
}

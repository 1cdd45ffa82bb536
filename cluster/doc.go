// Package cluster is one member of a Concord cluster: the raft log that all nodes agree on, who the members are, and how a
// request reaches the leader.
//
// It proposes commands and hands committed ones to the machine (package fsm), which it does not look into beyond the
// cluster's own tables. It knows nothing of the Admin API, of entities or of proxied traffic: what is forwarded to the
// leader is opaque bytes. DESIGN.md says how the parts work together and which failures shaped them.
package cluster

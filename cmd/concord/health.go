package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"concord/cluster"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
)

// tellTimeout bounds how long an operator waits for nodes that do not answer.
const tellTimeout = 2 * time.Second

// health is the balancer as the Admin API sees it. Every node finds out by itself how targets are; only what an operator says of
// one is told to all.
type health struct {
	*balancer.Set
	cluster *cluster.Node
	holder  *dataplane.Holder
	log     *slog.Logger
}

// verdict is what an operator said.
type verdict struct {
	Upstream string `json:"upstream"`
	Target   string `json:"target"`
	Address  string `json:"address,omitempty"`
	Healthy  bool   `json:"healthy"`
	Index    uint64 `json:"index"` // up to which the configuration must be known for the target to be known
}

func newHealth(set *balancer.Set, c *cluster.Node, holder *dataplane.Holder, log *slog.Logger) *health {
	h := &health{set, c, holder, log}
	c.HandleTell(h.hear)
	return h
}

// SetHealth overrides the health of a target on all nodes that can be reached. This node's error is the answer; the
// others' are only logged, for health is no more than what a node believes at the moment: theirs corrects itself by checks.
func (h *health) SetHealth(upstreamID, targetID, address string, healthy bool) error {
	if err := h.Set.SetHealth(upstreamID, targetID, address, healthy); err != nil {
		return err
	}
	message, err := json.Marshal(verdict{upstreamID, targetID, address, healthy, h.holder.PublishedIndex()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	if err := h.cluster.TellAll(ctx, message); err != nil {
		h.log.Warn("some nodes did not take over the health of a target", "upstream", upstreamID, "target", targetID, "healthy", healthy, "error", err)
	}
	return nil
}

// hear takes over what an operator said to another node.
func (h *health) hear(ctx context.Context, message []byte) error {
	var v verdict
	if err := json.Unmarshal(message, &v); err != nil {
		return err
	}
	if err := h.holder.Wait(ctx, v.Index); err != nil {
		return err
	}
	return h.Set.SetHealth(v.Upstream, v.Target, v.Address, v.Healthy)
}

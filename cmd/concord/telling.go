package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"concord/admin/rest"
	"concord/cluster"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
)

// tellTimeout bounds how long an operator waits for nodes that do not answer.
const tellTimeout = 2 * time.Second

// telling is what an operator says to one node and means for all: how a target is, and for a while the log level. It is the balancer
// as the Admin API sees it; beside this every node finds out by itself how targets are.
type telling struct {
	*balancer.Set
	level   *rest.LogLevel
	cluster *cluster.Node
	holder  *dataplane.Holder
	log     *slog.Logger
}

// word is what is told: a verdict on a target, or with Level a log level.
type word struct {
	Upstream string `json:"upstream,omitempty"`
	Target   string `json:"target,omitempty"`
	Address  string `json:"address,omitempty"`
	Healthy  bool   `json:"healthy,omitempty"`
	Index    uint64 `json:"index,omitempty"` // up to which the configuration must be known for the target to be known

	Level   string `json:"log_level,omitempty"`
	Seconds int    `json:"seconds,omitempty"`
}

func newTelling(set *balancer.Set, level *rest.LogLevel, c *cluster.Node, holder *dataplane.Holder, log *slog.Logger) *telling {
	t := &telling{set, level, c, holder, log}
	level.Tell = func(level string, seconds int) error { return t.tell(word{Level: level, Seconds: seconds}) }
	c.HandleTell(t.hear)
	return t
}

// SetHealth overrides the health of a target on all nodes that can be reached. This node's error is the answer; the
// others' are only logged, for health is no more than what a node believes at the moment: theirs corrects itself by checks.
func (t *telling) SetHealth(upstreamID, targetID, address string, healthy bool) error {
	if err := t.Set.SetHealth(upstreamID, targetID, address, healthy); err != nil {
		return err
	}
	if err := t.tell(word{Upstream: upstreamID, Target: targetID, Address: address, Healthy: healthy, Index: t.holder.PublishedIndex()}); err != nil {
		t.log.Warn("some nodes did not take over the health of a target", "upstream", upstreamID, "target", targetID, "healthy", healthy, "error", err)
	}
	return nil
}

func (t *telling) tell(w word) error {
	message, err := json.Marshal(w)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	return t.cluster.TellAll(ctx, message)
}

// hear takes over what an operator said to another node.
func (t *telling) hear(ctx context.Context, message []byte) error {
	var w word
	if err := json.Unmarshal(message, &w); err != nil {
		return err
	}
	if w.Level != "" {
		level, ok := t.level.Parse(w.Level)
		if !ok {
			return fmt.Errorf("unknown log level: %s", w.Level)
		}
		t.level.Set(level, time.Duration(w.Seconds)*time.Second)
		t.log.Warn("log level changed through the Admin API of another node", "level", w.Level, "for", (time.Duration(w.Seconds) * time.Second).String())
		return nil
	}
	if err := t.holder.Wait(ctx, w.Index); err != nil {
		return err
	}
	return t.Set.SetHealth(w.Upstream, w.Target, w.Address, w.Healthy)
}

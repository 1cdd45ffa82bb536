package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// readyPatience is how long a question for readiness may wait for an answer of the leader; probes give up after a second or so.
const readyPatience = 500 * time.Millisecond

// ready says whether load balancers should send traffic. A node that starts, or has just joined, may be far behind: it is ready once
// its data plane has published all that the leader had committed at some moment since. From then on it stays ready, also
// without a leader: traffic does not depend on the cluster.
func (n *node) ready() error {
	if n.draining.Load() {
		return errors.New("the node is stopping")
	}
	if known := n.upToDate.Load(); known != nil && *known == n.who() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	index, err := n.cluster.ReadIndex(ctx)
	if err != nil {
		return fmt.Errorf("the node has not caught up yet: no leader tells how far the cluster is: %w", err)
	}
	holder := n.compiler.Holder()
	if err := holder.Wait(ctx, index); err != nil {
		return fmt.Errorf("the node has not caught up yet: it serves config index %d, the cluster has %d", holder.PublishedIndex(), index)
	}
	n.caughtUp()
	return nil
}

// pack puts together what came from the log, like what came from a snapshot, and gives the memory back that this took, before there is traffic.
func (n *node) pack() {
	if n.machine.Store().Pack() {
		debug.FreeOSMemory()
	}
}

func (n *node) caughtUp() {
	n.packed.Do(n.pack)
	who := n.who()
	n.upToDate.Store(&who)
}

// who is this node as a member: after joining another cluster it is another one.
func (n *node) who() string { return n.cluster.ClusterID() + " " + n.cluster.ID() }

// awaitReady notes when the node is ready, in case nobody asks.
func (n *node) awaitReady() {
	for n.ready() != nil && !n.draining.Load() {
		time.Sleep(readyPatience)
	}
}

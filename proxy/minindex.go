package proxy

import (
	"context"
	"strconv"
	"sync"
	"time"

	"concord/proxy/dataplane"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// CommittedFunc tells the index the cluster has committed. It asks the leader, so it costs a round trip.
type CommittedFunc func(ctx context.Context) (uint64, error)

// maxIndexWaiters bounds how many requests may wait for the configuration at once.
const maxIndexWaiters = 1024

// indexGate holds back requests that demand a configuration index this node has not reached. The header comes from anybody, so
// waiting is bounded in number and time, an index the cluster has not committed is refused at once, and the leader is asked by one call
// at a time however many requests wait.
type indexGate struct {
	holder    *dataplane.Holder
	committed CommittedFunc
	wait      time.Duration
	slots     chan struct{}

	mu   sync.Mutex
	next *indexCall // not begun yet; joined by whoever arrives
	busy bool
}

type indexCall struct {
	done  chan struct{}
	index uint64
	err   error
}

func newIndexGate(h *dataplane.Holder, committed CommittedFunc, wait time.Duration) *indexGate {
	if wait == 0 {
		wait = 5 * time.Second
	}
	return &indexGate{holder: h, committed: committed, wait: wait, slots: make(chan struct{}, maxIndexWaiters)}
}

// awaitIndex honours X-Min-Config-Index: read-your-writes for whoever has the X-Config-Index of an admin answer.
func (h *Handler) awaitIndex(x *exchange.Exchange, r *run) error {
	v, ok := x.Request.Header.Lookup("X-Min-Config-Index")
	if !ok {
		return nil
	}
	r.showIndex = true
	want, err := strconv.ParseUint(v, 10, 64)
	x.Request.Header.Del("X-Min-Config-Index") // an upstream gateway counts differently
	if err != nil {
		return &plugin.Exit{Status: 400, Body: "X-Min-Config-Index: not a number; send the X-Config-Index of an admin answer"}
	}
	if h.holder.PublishedIndex() >= want {
		return nil
	}
	return h.gate.pass(want)
}

func (g *indexGate) pass(want uint64) error {
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		return later(503, "X-Min-Config-Index: too many requests are waiting for the configuration; try again")
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.wait)
	defer cancel()
	if g.committed != nil {
		index, err := g.ask(ctx)
		if err != nil {
			return later(503, "X-Min-Config-Index: this node is behind and the leader cannot be asked; try again")
		}
		if want > index {
			return &plugin.Exit{Status: 412, Body: "X-Min-Config-Index: " + strconv.FormatUint(want, 10) +
				" has not been committed, the newest index is " + strconv.FormatUint(index, 10)}
		}
	}
	if g.holder.Wait(ctx, want) != nil {
		return later(503, "X-Min-Config-Index: this node has not caught up in time, it is at "+
			strconv.FormatUint(g.holder.PublishedIndex(), 10)+"; try again")
	}
	return nil
}

func later(status int, message string) error {
	return &plugin.Exit{Status: status, Body: message, Header: []exchange.Field{{Name: "Retry-After", Value: "1"}}}
}

// ask returns an index that was read after the call: every index committed before it is covered.
func (g *indexGate) ask(ctx context.Context) (uint64, error) {
	g.mu.Lock()
	c := g.next
	if c == nil {
		c = &indexCall{done: make(chan struct{})}
		g.next = c
		if !g.busy {
			g.busy = true
			go g.askLeader()
		}
	}
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.index, c.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (g *indexGate) askLeader() {
	for {
		g.mu.Lock()
		c := g.next
		g.next = nil
		g.busy = c != nil
		g.mu.Unlock()
		if c == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), g.wait)
		c.index, c.err = g.committed(ctx)
		cancel()
		close(c.done)
	}
}

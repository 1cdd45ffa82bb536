package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/proxy"
	fx "concord/proxy/dataplane/fixture"
)

func TestMinConfigIndex(t *testing.T) {
	var committed atomic.Uint64
	var fail atomic.Bool
	g := start(t, func(o *proxy.Options) {
		o.MinIndexWait = 2 * time.Second
		o.Committed = func(context.Context) (uint64, error) {
			if fail.Load() {
				return 0, errors.New("no leader")
			}
			return committed.Load(), nil
		}
	})
	g.put(fx.Route("x", "svc", "/x"))
	now := g.c.Holder().PublishedIndex()
	committed.Store(now + 1)
	for _, c := range []struct {
		name, value string
		noLeader    bool
		status      int
		body        string
	}{
		{"reached", fmt.Sprint(now), false, 200, ""},
		{"reached, without a leader", fmt.Sprint(now), true, 200, ""},
		{"not a number", "soon", false, 400, `{"message":"X-Min-Config-Index: not a number; send the X-Config-Index of an admin answer"}`},
		{"never committed", "99999", false, 412, `{"message":"X-Min-Config-Index: 99999 has not been committed, the newest index is 3"}`},
		{"committed, not here in time", fmt.Sprint(now + 1), false, 503, `{"message":"X-Min-Config-Index: this node has not caught up in time, it is at 2; try again"}`},
		{"no leader to ask", fmt.Sprint(now + 1), true, 503, `{"message":"X-Min-Config-Index: this node is behind and the leader cannot be asked; try again"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			fail.Store(c.noLeader)
			a := g.get("/x", "X-Min-Config-Index: "+c.value)
			if a.StatusCode != c.status || c.body != "" && a.body != c.body {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
			if a.StatusCode == 503 && a.Header.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
			if a.Header.Get("X-Config-Index") != strconv.FormatUint(now, 10) {
				t.Errorf("X-Config-Index %q, want %d", a.Header.Get("X-Config-Index"), now)
			}
			if a.StatusCode == 200 && a.saw("X-Min-Config-Index") != "" {
				t.Error("the upstream saw X-Min-Config-Index")
			}
		})
	}
	fail.Store(false)
	if a := g.get("/x"); a.Header.Get("X-Config-Index") != "" {
		t.Error("X-Config-Index without being asked")
	}
}

// A request that demands what is just being written waits for it and is served with it.
func TestMinConfigIndexIsReadYourWrites(t *testing.T) {
	var calls, running atomic.Int64
	g := start(t, func(o *proxy.Options) {
		o.Committed = func(context.Context) (uint64, error) {
			calls.Add(1)
			if running.Add(1) > 1 {
				t.Error("the leader is asked twice at once")
			}
			defer running.Add(-1)
			time.Sleep(5 * time.Millisecond)
			return 1 << 40, nil
		}
	})
	const n = 40
	next := g.c.Holder().PublishedIndex() + 1
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if a := g.get("/new", fmt.Sprint("X-Min-Config-Index: ", next)); a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
	for end := time.Now().Add(60 * time.Second); calls.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	g.put(fx.Route("new", "svc", "/new"))
	wg.Wait()
	if c := calls.Load(); c == 0 || c > n {
		t.Errorf("%d calls to the leader", c)
	}
}

package cluster

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"concord/test/harness"
)

// TestConfigIsAtomic: a configuration of thousands of rows is on every node whole or not at all, also when the leader is killed while it
// is written.
func TestConfigIsAtomic(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 3)
	const consumers, routes = 3000, 200
	document := func(round int) string {
		type rec = map[string]any
		doc := rec{"_format_version": "3.0"}
		var people, paths []rec
		for i := range consumers {
			people = append(people, rec{"username": fmt.Sprint("u", round, "-", i), "keyauth_credentials": []rec{{"key": fmt.Sprint("k", round, "-", i)}}})
		}
		for i := range routes {
			paths = append(paths, rec{"name": fmt.Sprint("r", round, "-", i), "paths": []string{fmt.Sprint("/", round, "/", i)}})
		}
		doc["consumers"], doc["services"] = people, []rec{{"name": fmt.Sprint("s", round), "host": "127.0.0.1", "routes": paths}}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	type difference struct {
		Summary struct{ Creating, Updating, Deleting, Unchanged int }
	}
	// differs is how a node differs from a document; reads ask the leader, so that it tells of the newest state.
	differs := func(n *harness.Node, doc string) (d difference) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			a, err := harness.Do("POST", "http://"+n.Admin+"/config?dry_run=1", "application/json", doc)
			if err == nil && a.Status == 200 && json.Unmarshal([]byte(a.Body), &d) == nil {
				return d
			}
			if time.Now().After(deadline) {
				t.Fatalf("no answer from %s: %d %v %.200s", n.Name, a.Status, err, a.Body)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	const all = 2*consumers + routes + 1
	stored := document(0)
	if a, err := harness.Do("POST", "http://"+c.Any().Admin+"/config?diff=1", "application/json", stored); err != nil || a.Status != 200 {
		t.Fatalf("%v %d %.300s", err, a.Status, a.Body)
	}
	for round := 1; round <= 2; round++ {
		next := document(round)
		leader := c.Leader(10 * time.Second)
		if leader == nil {
			t.Fatal("no leader")
		}
		var via *harness.Node
		for _, n := range c.Nodes {
			if n != leader {
				via = n
			}
		}
		done := make(chan harness.Answer, 1)
		go func() {
			a, err := harness.Do("POST", "http://"+via.Admin+"/config?diff=1", "application/json", next)
			if err != nil {
				t.Error(err)
			}
			done <- a
		}()
		time.Sleep(time.Duration(100+rand.IntN(900)) * time.Millisecond)
		leader.Kill()
		answer := <-done
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			d := differs(n, next).Summary
			switch {
			case d.Unchanged == all && d.Creating+d.Updating+d.Deleting == 0:
				stored = next
			case d.Creating == all && d.Deleting == all && answer.Status != 200: // the old one, untouched
			default:
				t.Errorf("round %d (answered %d): %s differs by %+v", round, answer.Status, n.Name, d)
			}
		}
		leader.Start()
		c.WaitVoters(3, 60*time.Second)
		if d := differs(leader, stored).Summary; d.Unchanged != all {
			t.Errorf("round %d: the node that was killed differs by %+v", round, d)
		}
	}
}

package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
)

// recorded lists what the audit log tells: who did what to what, from where, and the detail.
func (n *testNode) recorded() (list []string) {
	for row := range n.rows.audit.All(n.rows.store.View()) {
		if r := row.Val; row.ID != fsm.AuditHead {
			list = append(list, fmt.Sprintf("%s|%s %s|%s|%s", r.Name, r.Verb, r.Entity, r.From, r.Detail))
		}
	}
	return list
}

func has(list []string, begin, end string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, begin) && strings.HasSuffix(s, end) })
}

// TestMembershipIsAudited: what changes the cluster is in the audit log, with who did it; what strangers try is not.
func TestMembershipIsAudited(t *testing.T) {
	t.Parallel()
	a, b, c := newNode(t, "a", nil), newNode(t, "b", nil), newNode(t, "c", nil)
	admin, raw := [16]byte{7}, `{"created_at":1,"entities":null,"hash":"x","id":"07000000-0000-0000-0000-000000000000","name":"alice","role":"super","tags":null,"ttl":null}`
	if res, err := a.Propose(t.Context(), command.Command{Level: 2, Op: command.Txn{Puts: []command.Put{{Table: entity.TableAdminTokens, ID: admin, Raw: []byte(raw)}}}}); err != nil || res.Err != nil {
		t.Fatal(err, res.Err)
	}
	ctx := WithCause(t.Context(), fsm.Cause{Token: "07000000-0000-0000-0000-000000000000", From: "10.0.0.9"})
	make := func(o TokenOptions) (text, id string) {
		text, err := a.CreateToken(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return text, strings.Split(text, ".")[3]
	}
	join := func(n *testNode, tok string, ok bool) {
		if err := n.Join(t.Context(), a.Address(), tok, false); (err == nil) != ok {
			t.Fatalf("join: %v", err)
		}
	}
	good, goodID := make(TokenOptions{Uses: 2})
	short, shortID := make(TokenOptions{TTL: time.Millisecond, Role: Nonvoter})
	stranger, _ := strings.CutSuffix(good, strings.Split(good, ".")[4])
	for range 3 {
		join(b, short, false) // has expired
	}
	for range 3 {
		join(b, stranger+strings.Split(short, ".")[4], false) // has another secret
	}
	refused := slices.DeleteFunc(a.recorded(), func(s string) bool { return !strings.Contains(s, "|refuse ") })
	if len(refused) != 1 {
		t.Errorf("refused joins: %q", refused)
	}
	if n := a.Progress().Refused; n != 6 {
		t.Errorf("%d joins refused, want 6", n)
	}
	join(b, good, true)
	join(c, good, true)
	nodes := []*testNode{a, b, c}
	waitVoters(t, nodes, 3)
	if err := b.Note(ctx, fsm.Cause{Verb: "reload", Entity: "settings", Detail: "changed: x"}); err != nil {
		t.Fatal(err)
	}
	leader := leaderOf(t, nodes)
	next := others(nodes, leader)[0]
	from, to := leader.ID(), next.ID()
	if err := next.TransferLeadership(ctx, to); err != nil {
		t.Fatal(err)
	}
	if err := leaderOf(t, nodes).Remove(ctx, c.ID()); err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything recorded", func() error {
		list := a.recorded()
		for _, want := range [][2]string{
			{"alice|create cluster_tokens|10.0.0.9|", "join token for 2 voter, valid for 1h0m0s"},
			{"alice|create cluster_tokens|10.0.0.9|", "join token for 1 nonvoter, valid for 1ms"},
			{"join token " + shortID + "|refuse cluster_nodes|127.0.0.1|node b", "make a new one with `gwctl cluster token`"},
			{"join token " + goodID + "|join cluster_nodes|127.0.0.1|node b", ""},
			{"join token " + goodID + "|join cluster_nodes|127.0.0.1|node c", ""},
			{"cluster|promote cluster_nodes||node b", "may vote"},
			{"cluster|promote cluster_nodes||node c", "may vote"},
			{"node b|reload settings||", "changed: x"},
			{"alice|transfer cluster_nodes|10.0.0.9|leadership goes from node " + from, to},
			{"alice|remove cluster_nodes|10.0.0.9|node ", c.ID()},
			{"alice|leave cluster_nodes|10.0.0.9|node ", ""},
		} {
			if !has(list, want[0], want[1]) {
				return fmt.Errorf("%q is missing in\n%s", want, strings.Join(list, "\n"))
			}
		}
		return nil
	})
}

// TestAuditIsTrimmed: the leader's settings decide what all nodes keep.
func TestAuditIsTrimmed(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2, func(o *Options) { o.Tuning.AuditRecords, o.Tuning.ExpireEvery = 5, time.Millisecond })
	a := leaderOf(t, nodes)
	for i := range 20 {
		if err := a.Note(context.Background(), fsm.Cause{Verb: "reload", Entity: "settings", Detail: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		eventually(t, "trimmed", func() error {
			if list := n.recorded(); len(list) > 5 || !has(list, "", "|19") { // a node may announce itself in between
				return fmt.Errorf("%q", list)
			}
			return nil
		})
	}
}

// TestAuditIsTrimmedByAge: all that is too old goes, but for the newest.
func TestAuditIsTrimmedByAge(t *testing.T) {
	t.Parallel()
	a := newNode(t, "a", func(o *Options) { o.Tuning.AuditAge, o.Tuning.ExpireEvery = time.Millisecond, time.Millisecond })
	for i := range 20 {
		if err := a.Note(context.Background(), fsm.Cause{Verb: "reload", Entity: "settings", Detail: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "trimmed", func() error {
		if list := a.recorded(); len(list) != 1 {
			return fmt.Errorf("%q", list)
		}
		return nil
	})
}

package state

import (
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

type owner struct {
	Name string `json:"name"`
}

type badge struct {
	Key   string     `json:"key"`
	Owner entity.Ref `json:"owner"`
}

const ownersTable, badgesTable = 3, 8

func badgeStore(t testing.TB) *Store {
	return New([]entity.Def{
		{Table: ownersTable, New: func() any { return new(owner) }, Schema: &schema.Schema{Name: "owners", Fields: []schema.Field{{Name: "name", Unique: true}}}},
		{Table: badgesTable, New: func() any { return new(badge) }, Schema: &schema.Schema{Name: "badges", Fields: []schema.Field{
			{Name: "key", Unique: true}, {Name: "owner", Type: schema.Foreign, Ref: "owners", Required: true},
		}}},
	}, keyring(t))
}

// found is what a join finds; answer is the same without hints.
type found struct {
	Badge Row[badge]
	Owner Row[owner]
	OK    bool
}

func answer(s *Store, v *View, key string) (f found) {
	badge, ok := TableOf[badge](s).By(v, "key", key)
	owns, err := ParseID(badge.Val.Owner.ID)
	if !ok || err != nil {
		return f
	}
	owner, ok := TableOf[owner](s).Get(v, owns)
	if !ok {
		return f
	}
	return found{badge, owner, true}
}

// checkJoin compares all answers with those that come without hints, and the set of places with the rows; it counts the badges whose hint is
// that of their owner.
func checkJoin(t interface {
	Helper()
	Fatalf(string, ...any)
}, s *Store, v *View, keys int,
) (followed int) {
	t.Helper()
	join := JoinOf[badge, owner](s, "key")
	for k := range keys {
		key := fmt.Sprint("k", k)
		var got found
		got.Badge, got.Owner, got.OK = join.By(v, key)
		if !got.OK {
			got.Badge, got.Owner = Row[badge]{}, Row[owner]{}
		}
		want := answer(s, v, key)
		if got != want {
			t.Fatalf("view %d: %s (-want +got):\n%s", v.Index(), key, cmp.Diff(want, got))
		}
		var r record
		owners := v.tables[join.of.m.slot]
		if at, hint := v.tables[join.t.m.slot].unique(join.t.m, join.ix, key, 0, &r, owners); at != 0 && hint != 0 && want.OK && owners.idAt(hint) == want.Owner.ID {
			followed++
		}
	}
	c := v.tables[join.of.m.slot]
	k, rows, places := c.trees[byID].seek(c, &point{}), 0, 0
	for it := k.next(); it != nil; it = k.next() {
		if rows++; !c.now.has(it.at) {
			t.Fatalf("view %d: %s is not in the set", v.Index(), c.idAt(it.at))
		}
	}
	for _, p := range c.now.pages {
		for i := 0; p != nil && i < len(p.bits); i++ {
			places += bits.OnesCount(p.bits[i])
		}
	}
	if places != rows {
		t.Fatalf("view %d: %d places of %d rows", v.Index(), places, rows)
	}
	return followed
}

func putRow(t interface{ Fatalf(string, ...any) }, tx *Tx, table uint16, x ID, index uint64, expires int64, raw string) {
	d, err := tx.Decode(table, AnyRow{ID: x, Index: index, ExpiresAt: expires, Raw: []byte(raw)})
	if err != nil {
		t.Fatalf("%v", err)
	}
	if _, taken := tx.Conflict(d); !taken {
		tx.Set(d)
	}
}

// reload puts all rows of the newest view in the place of the store's, as a snapshot does.
func reload(t interface{ Fatalf(string, ...any) }, s *Store) {
	l := s.BeginLoad(s.Keys())
	for _, table := range s.Tables() {
		table.Raws(s.View(), func(r *AnyRow) {
			d, err := l.Decode(table.Number(), *r)
			if err == nil {
				err = l.Add(d)
			}
			if err != nil {
				t.Fatalf("%v", err)
			}
		})
	}
	if err := l.Build(); err != nil {
		t.Fatalf("%v", err)
	}
	l.Commit(s.View().Index()+1, nil)
}

// Hints never change an answer: rows come, change, move and go, are rolled back and loaded anew, and every view says what it says without them.
func TestHintsChangeNoAnswer(t *testing.T) {
	const owners, badges = 40, 60
	rapid.Check(t, func(rt *rapid.T) {
		s := badgeStore(t)
		ownerRaw := func(i int) string {
			// Large, so that slabs are emptied often; the ids of others lie within at every offset.
			n := rapid.SampledFrom([]int{0, 1, 50, 300}).Draw(rt, "size")
			return `{"name":"` + fmt.Sprint(i, " ") + strings.Repeat(id(rapid.IntRange(0, owners).Draw(rt, "in it")).String()+"-", n) + `"}`
		}
		views := []*View{}
		for range rapid.IntRange(1, 25).Draw(rt, "commits") {
			tx := s.Begin()
			index := s.View().Index() + 1
			for range rapid.IntRange(1, 30).Draw(rt, "writes") {
				mark := tx.Mark()
				i, b := rapid.IntRange(1, owners).Draw(rt, "owner"), rapid.IntRange(1, badges).Draw(rt, "badge")
				expires := rapid.SampledFrom([]int64{0, 0, 5}).Draw(rt, "expires")
				badgeRaw := fmt.Sprintf(`{"key":"k%d","owner":{"id":"%s"}}`, rapid.IntRange(0, badges).Draw(rt, "key"), id(i))
				switch rapid.IntRange(0, 9).Draw(rt, "what") {
				case 0:
					tx.Delete(ownersTable, id(i))
				case 1:
					tx.Delete(badgesTable, id(100+b))
				case 2: // as the machine replaces
					tx.Delete(ownersTable, id(i))
					putRow(rt, tx, ownersTable, id(i), index, expires, ownerRaw(i))
				case 3, 4, 5:
					putRow(rt, tx, ownersTable, id(i), index, expires, ownerRaw(i))
				default:
					putRow(rt, tx, badgesTable, id(100+b), index, expires, badgeRaw)
				}
				if rapid.IntRange(0, 5).Draw(rt, "roll back") == 0 {
					tx.Rollback(mark)
				}
			}
			if rapid.IntRange(0, 9).Draw(rt, "abort") == 0 {
				tx.Abort()
			} else {
				tx.Commit(index, nil)
			}
			if rapid.IntRange(0, 9).Draw(rt, "load") == 0 {
				reload(rt, s)
			}
			views = append(views, s.View())
		}
		for _, v := range views {
			checkJoin(rt, s, v, badges+1)
			checkJoin(rt, s, v.At(5), badges+1)
		}
	})
}

// Hints are there, and follow the rows: without them all answers would be right as well, but late.
func TestHintsFollow(t *testing.T) {
	const owners = 500
	s := badgeStore(t)
	index := uint64(0)
	write := func(f func(tx *Tx)) {
		t.Helper()
		tx := s.Begin()
		index = s.View().Index() + 1
		f(tx)
		tx.Commit(index, nil)
		if got := checkJoin(t, s, s.View(), owners); got != owners {
			t.Fatalf("view %d: %d of %d hints", index, got, owners)
		}
	}
	putOwner := func(tx *Tx, i int, name string) { putRow(t, tx, ownersTable, id(1+i), index, 0, `{"name":"`+name+`"}`) }
	putBadge := func(tx *Tx, i int) {
		putRow(t, tx, badgesTable, id(1000+i), index, 0, fmt.Sprintf(`{"key":"k%d","owner":{"id":"%s"}}`, i, id(1+i)))
	}
	long := strings.Repeat("x", 1000)
	write(func(tx *Tx) {
		for i := range owners { // some of them before their owner
			if i%2 == 0 {
				putBadge(tx, i)
			}
			putOwner(tx, i, fmt.Sprint(i, long))
			if i%2 != 0 {
				putBadge(tx, i)
			}
		}
	})
	write(func(tx *Tx) {
		for i := range owners {
			if i%10 < 8 { // the others are moved to other slabs
				putOwner(tx, i, fmt.Sprint(i, "new"))
			}
		}
	})
	write(func(tx *Tx) {
		for i := range owners {
			if i%5 == 0 {
				tx.Delete(ownersTable, id(1+i))
				putOwner(tx, i, fmt.Sprint(i, long))
				putBadge(tx, i)
			}
		}
	})
	write(func(tx *Tx) {
		mark := tx.Mark()
		for i := range owners {
			tx.Delete(ownersTable, id(1+i))
		}
		tx.Rollback(mark)
	})
	reload(t, s)
	write(func(*Tx) {})
}

// An owner of very many badges costs no more to change than one of few.
func TestHintsAreBounded(t *testing.T) {
	s := badgeStore(t)
	const badges = 5 * maxHints
	for change := range 2 {
		tx := s.Begin()
		putRow(t, tx, ownersTable, id(1), 1, 0, fmt.Sprintf(`{"name":"%d"}`, change))
		for i := range badges * (1 - change) {
			putRow(t, tx, badgesTable, id(1000+i), 1, 0, fmt.Sprintf(`{"key":"k%d","owner":{"id":"%s"}}`, i, id(1)))
		}
		tx.Commit(uint64(change+1), nil)
		if got, want := checkJoin(t, s, s.View(), badges), []int{badges, maxHints}[change]; got != want {
			t.Errorf("change %d: %d hints, want %d", change, got, want)
		}
	}
}

// What a reader asks for ahead of time is never what the writer is writing: for the race detector.
func TestJoinBesideWriter(t *testing.T) {
	const owners = 20
	s := badgeStore(t)
	commit := func(n int) {
		tx := s.Begin()
		for i := range owners {
			if n == 0 || i%7 == n%7 {
				putRow(t, tx, ownersTable, id(1+i), uint64(n+1), 0, fmt.Sprintf(`{"name":"%d %s"}`, i, strings.Repeat("x", n%300)))
				putRow(t, tx, badgesTable, id(100+i), uint64(n+1), 0, fmt.Sprintf(`{"key":"k%d","owner":{"id":"%s"}}`, i, id(1+i)))
			}
		}
		tx.Commit(uint64(n+1), nil)
	}
	commit(0)
	join, done := JoinOf[badge, owner](s, "key"), make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				if _, of, ok := join.By(s.View(), fmt.Sprint("k", i%owners)); !ok || of.ID != id(1+i%owners) {
					t.Errorf("badge %d: %v of %v", i%owners, ok, of)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for n := range 400 {
		commit(n + 1)
	}
	close(done)
	readers.Wait()
}

func TestJoinOfOthers(t *testing.T) {
	for name, f := range map[string]func(){
		"no index":     func() { JoinOf[badge, owner](badgeStore(t), "nosuch") },
		"not unique":   func() { JoinOf[badge, owner](badgeStore(t), "owner") },
		"other table":  func() { JoinOf[badge, badge](badgeStore(t), "key") },
		"no reference": func() { JoinOf[owner, badge](badgeStore(t), "name") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it is taken")
				}
			}()
			f()
		})
	}
	if _, _, ok := JoinOf[badge, owner](badgeStore(t), "key").By(badgeStore(t).View(), ""); ok {
		t.Error("the empty key is found")
	}
}

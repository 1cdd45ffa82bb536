package state

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// idsOnly lays out n rows of which only the ids are looked at, in no order. Places are 8 steps apart.
func idsOnly(n int) *content {
	c := &content{open: -1}
	for i := range n {
		if i%(perSlab/8) == 0 {
			c.slabs = append(c.slabs, make([]byte, slabSize))
		}
		var id ID
		binary.BigEndian.PutUint32(id[:], uint32(i%7)) // few different heads
		binary.BigEndian.PutUint64(id[8:], uint64(i+1)*0x9e3779b97f4a7c15)
		text := id.text()
		copy(c.bytes(place(i*8)), text[:])
	}
	return c
}

// model is a tree's content as a sorted list.
type model []item

func (m model) find(c *content, p point) (int, bool) {
	return slices.BinarySearchFunc(m, p, func(a item, p point) int {
		id := c.idAt(a.at)
		return cmp.Or(cmp.Compare(a.head(), p.head), compareID(&id, &p.id))
	})
}

func (m model) equal(t *testing.T, c *content, x *tree, from point) {
	t.Helper()
	at, _ := m.find(c, from)
	k := x.seek(c, &from)
	for i, want := range m[at:] {
		if got := k.next(); got == nil || *got != want {
			t.Fatalf("item %d from %v is %v, want %v", i, from, got, want)
		}
	}
	if got := k.next(); got != nil || x.len != len(m) {
		t.Fatalf("%d items and then %v, want %d", x.len, got, len(m))
	}
}

// sound checks what a tree is to be like whatever it holds: nodes within their limits, nothing kept alive behind the last kid, no room between
// the leaves of a block.
func sound(t *testing.T, n *node, root bool) {
	t.Helper()
	most := leafItems
	if n.kids != nil {
		most = fanout
		for i := range n.kids {
			if k := &n.kids[i]; i < len(n.items) {
				sound(t, &k.node, false)
			} else if k.items != nil || k.kids != nil {
				t.Fatalf("kid %d of %d is left", i, len(n.items))
			}
		}
	}
	if n.epoch == inBlock && cap(n.items) > len(n.items) {
		t.Fatalf("a leaf in a block would grow into the next one")
	}
	if len(n.items) > most || len(n.items) == 0 && !root {
		t.Fatalf("a node of %d items, at most %d (inner: %t)", len(n.items), most, n.kids != nil)
	}
}

// loose counts the leaves that lie in no block.
func (n *node) loose() (count int) {
	if n.kids == nil {
		if n.epoch != inBlock {
			count++
		}
		return count
	}
	for i := range n.items {
		count += n.kids[i].node.loose()
	}
	return count
}

func (h *hash) loose() (count int) {
	for _, s := range h.segments {
		for i := range s.buckets {
			if s.buckets[i].epoch != inBlock {
				count++
			}
		}
	}
	return count
}

func TestTree(t *testing.T) {
	const rows = 26_000
	c := idsOnly(rows)
	heads := map[string]func(i int) uint64{
		"even":     func(i int) uint64 { return uint64(i+1) * 0xbf58476d1ce4e5b9 },
		"ordered":  func(i int) uint64 { return uint64(i) },
		"one":      func(int) uint64 { return 5 },
		"few, far": func(i int) uint64 { return [...]uint64{0, 1, 1 << 63, 1<<64 - 1}[i%4] },
	}
	for name, head := range heads {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			var x tree
			var m model
			type version struct {
				tree
				model
			}
			var old []version
			for step := range 4 * rows {
				i := random.IntN(rows)
				if name == "ordered" && step < rows {
					i = step
				}
				p := point{head(i), c.idAt(place(i * 8))}
				at, found := m.find(c, p)
				// It grows, shrinks to nothing and grows again.
				if grow := step < rows*3/2 || step > 3*rows; grow && random.IntN(8) > 0 {
					it := newItem(p.head, place(i*8))
					x.set(c, &p, it.at)
					if !found {
						m = slices.Insert(m, at, it)
					}
				} else if !grow && len(m) > 0 {
					at = random.IntN(len(m))
					p = point{m[at].head(), c.idAt(m[at].at)}
					x.delete(c, &p)
					m = slices.Delete(m, at, at+1)
				} else {
					x.delete(c, &p)
					if found {
						m = slices.Delete(m, at, at+1)
					}
				}
				if random.IntN(rows/4) == 0 {
					if random.IntN(2) == 0 {
						if x.pack(); x.root.kids != nil && x.root.loose() > 0 {
							t.Fatalf("%d leaves lie in no block", x.root.loose())
						}
					}
					old = append(old, version{x, slices.Clone(m)})
					x.freeze()
				}
				if step%2500 == 0 {
					m.equal(t, c, &x, p)
					sound(t, &x.root, true)
				}
			}
			m.equal(t, c, &x, point{})
			sound(t, &x.root, true)
			for _, v := range old {
				v.equal(t, c, &v.tree, point{})
			}
			planted := plant(c, m)
			m.equal(t, c, &planted, point{})
			sound(t, &planted.root, true)
			for len(m) > 0 {
				p := point{m[0].head(), c.idAt(m[0].at)}
				planted.delete(c, &p)
				m = m[1:]
			}
			if m.equal(t, c, &planted, point{}); planted.root.kids != nil {
				t.Error("an empty tree has inner nodes")
			}
		})
	}
}

func TestHash(t *testing.T) {
	for _, hinted := range []bool{false, true} {
		t.Run(fmt.Sprint("hinted=", hinted), func(t *testing.T) { testHash(t, hinted) })
	}
}

func testHash(t *testing.T, hinted bool) {
	const rows = 50_000
	hint := func(at place) place { return 3*at + 1 }
	random := rand.New(rand.NewPCG(3, 4))
	head := func(at place) uint64 { return uint64(at) * 0x9e3779b97f4a7c15 }
	holds := func(h *hash, at place) bool {
		tag := tagOf(head(at))
		b := h.bucket(tag)
		for i := b.find(b.home(tag), tag); i >= 0; i = b.find(b.after(i), tag) {
			if b.at(i) == at {
				return b.hint(i) == hint(at) == hinted
			}
		}
		return false
	}
	type version struct {
		hash
		have map[place]bool
	}
	equal := func(v version) {
		t.Helper()
		for at := place(1); at < rows; at++ {
			if holds(&v.hash, at) != v.have[at] {
				t.Fatalf("place %d: found %v, want %v", at, !v.have[at], v.have[at])
			}
		}
	}
	v := version{hash{hinted: hinted}, map[place]bool{}}
	equal(v)
	var old []version
	for step := range 3 * rows {
		at := place(1 + random.IntN(rows-1))
		switch {
		case !v.have[at] && (step < rows || step > 2*rows):
			v.set(head(at), 0, at, hint(at)+1)
			v.rehint(head(at), at, hint(at))
			v.have[at] = true
		case v.have[at] && random.IntN(2) == 0:
			v.delete(head(at), at)
			delete(v.have, at)
		case v.have[at]: // away and back
			v.set(head(at), at, rows+1, 0)
			v.set(head(at), rows+1, at, 0)
		}
		if step%(rows/2) == 7 {
			have := map[place]bool{}
			for at := range v.have {
				have[at] = true
			}
			if v.pack(); v.loose() > 0 {
				t.Fatalf("%d buckets lie in no block", v.loose())
			}
			old = append(old, version{v.hash, have})
			v.freeze()
		}
	}
	equal(v)
	for _, v := range old {
		equal(v)
	}
	var items []seedling
	for at := range v.have {
		items = append(items, seedling{newItem(head(at), at), uint32(at)})
	}
	twice := seedling{newItem(items[0].head(), rows+7), 0}
	var same []place
	sown := hash{hinted: hinted}
	sown.sow(append(items, twice), func(a, b place) { same = append(same, a, b) }, func(at uint32) place { return hint(place(at)) })
	sown.delete(twice.head(), rows+7)
	equal(version{sown, v.have})
	slices.Sort(same)
	if len(same) != 2 || same[1] != rows+7 {
		t.Errorf("items with one head: %v", same)
	}
}

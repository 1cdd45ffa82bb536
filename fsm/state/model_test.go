package state

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestHashAndTreeAgainstModel draws runs of writes whose heads crowd: buckets fill, divide and hold the same tag many times over, leaves
// fill and empty, while older versions stay as they were.
func TestHashAndTreeAgainstModel(t *testing.T) {
	const rows = 3000
	c := idsOnly(rows + 1)
	at := func(i int) place { return place((i + 1) * 8) } // 0 is no place
	rapid.Check(t, func(rt *rapid.T) {
		// Rows of one group have heads that share their first bits; some of them the whole tag.
		shift := rapid.SampledFrom([]int{0, 4, 8}).Draw(rt, "shared bits")
		equal := rapid.IntRange(1, 60).Draw(rt, "rows of one tag")
		head := func(i int) uint64 {
			return uint64(i%3)<<62 | uint64(i/equal)*0x9e3779b97f4a7c15>>shift&(1<<62-1)
		}
		type version struct {
			h    hash
			x    tree
			have map[int]bool
		}
		var order []int // of the rows in a tree
		for i := range rows {
			order = append(order, i)
		}
		slices.SortFunc(order, func(a, b int) int {
			x, y := c.idAt(at(a)), c.idAt(at(b))
			return cmp.Or(cmp.Compare(head(a), head(b)), compareID(&x, &y))
		})
		hinted := rapid.Bool().Draw(rt, "hinted")
		hint := func(i int) place { return place(7*i + 1) }
		now := version{h: hash{hinted: hinted}, have: map[int]bool{}}
		check := func(v *version) {
			var m model
			for _, i := range order {
				tag, found := tagOf(head(i)), false
				b := v.h.bucket(tag)
				for j := b.find(b.home(tag), tag); j >= 0; j = b.find(b.after(j), tag) {
					if b.at(j) == at(i) {
						if found = true; hinted && b.hint(j) != hint(i) {
							rt.Fatalf("row %d has the hint %d, want %d", i, b.hint(j), hint(i))
						}
					}
				}
				if found != v.have[i] {
					rt.Fatalf("row %d in the hash: %v, want %v", i, found, v.have[i])
				}
				if v.have[i] {
					m = append(m, newItem(head(i), at(i)))
				}
			}
			m.equal(t, c, &v.x, point{})
		}
		var old []version
		for range rapid.IntRange(1, 8).Draw(rt, "runs") {
			from, n := rapid.IntRange(0, rows-1).Draw(rt, "from"), rapid.IntRange(1, rows).Draw(rt, "count")
			add := rapid.Bool().Draw(rt, "add")
			step := rapid.SampledFrom([]int{1, 3, 7}).Draw(rt, "step")
			for k := range n {
				i := (from + k*step) % rows
				p := point{head(i), c.idAt(at(i))}
				switch {
				case add && !now.have[i]:
					now.h.set(head(i), 0, at(i), hint(i))
					now.x.set(c, &p, at(i))
					now.have[i] = true
				case add: // in its place again
					now.h.set(head(i), at(i), at(i), 0)
					now.x.set(c, &p, at(i))
				default:
					if now.have[i] {
						now.h.delete(head(i), at(i))
					}
					now.x.delete(c, &p) // of a row that is not there, too
					delete(now.have, i)
				}
			}
			if rapid.Bool().Draw(rt, "freeze") {
				now.h.pack()
				now.x.pack()
				old = append(old, version{now.h, now.x, maps.Clone(now.have)})
				now.h.freeze()
				now.x.freeze()
			}
		}
		for _, v := range append(old, now) {
			check(&v)
		}
	})
}

// A hash that does not hold a row of its table is broken: it says so, where searching on would never end.
func TestAbsentFromHash(t *testing.T) {
	var h hash
	first := newBucket(0, 0, 0, 2)
	full := first.size() * 7 / 8
	for at := place(1); at <= place(full); at++ {
		h.set(uint64(at)<<40, 0, at, 0)
	}
	for name, f := range map[string]func(){
		"delete":  func() { h.delete(5<<40, place(full+1)) },
		"replace": func() { h.set(5<<40, place(full+1), place(full+2), 0) },
		"empty":   func() { (&hash{}).set(5<<40, 1, 2, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of an absent row goes unnoticed", name)
				}
			}()
			f()
		}()
	}
}

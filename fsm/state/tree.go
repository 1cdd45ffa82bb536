package state

import (
	"encoding/binary"
	"slices"
)

// place is where a row lies in its table's slabs, in steps of slabStep bytes. 0 is no place.
type place uint32

// item is an entry of a tree: twelve bytes without a pointer, so that millions of them cost the garbage collector nothing. The head is
// what rows are looked up by: the first half of an id, the hash of a key, a time. Items with equal heads are ordered by the ids of their rows.
type item struct {
	hi, lo uint32 // the head; in halves, because an uint64 would pad the item to sixteen bytes
	at     place
}

func newItem(head uint64, at place) item { return item{uint32(head >> 32), uint32(head), at} }

func (i *item) head() uint64 { return uint64(i.hi)<<32 | uint64(i.lo) }

// point is a position in a tree: that of the item with this head and of the row with this id.
type point struct {
	head uint64
	id   ID
}

func headOf(id *ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

// leafItems is how many items a leaf holds at most (8 KiB, a size class of Go's allocator). What a collection of garbage costs is above all
// looking at the leaves, one by one, whatever their size; what a change costs is copying one.
const leafItems = 682

// fanout is how many kids an inner node holds at most.
const fanout = 32

// node is a leaf (kids nil) or an inner node of a B+ tree, as its parent holds it. The items are a piece of memory without pointers and hardly
// larger than they need. Those of an inner node are lower bounds of its kids, with the ids of their rows beside the kids, for such a row may be gone.
type node struct {
	items []item
	kids  *[fanout]kid
	epoch uint64 // of the tree that may change items and kids in place; inBlock: none may
}

type kid struct {
	node
	id ID // of the row that gave the bound
}

func (n *node) full() bool {
	if n.kids != nil {
		return len(n.items) == fanout
	}
	return len(n.items) == leafItems
}

// tree is a copy-on-write B+ tree. A copy of it shares all nodes; freeze makes the original copy each of them before changing it.
type tree struct {
	root  node
	epoch uint64
	len   int
}

func (t *tree) freeze() { t.epoch++ }

// A collection of garbage looks at each leaf and each bucket that is a piece of memory of its own, and waits for memory several times for each,
// because what Go knows about it lies far from all else. So those made in bulk lie in blocks of some. One that is changed leaves its block, for a
// piece of its own; the block lives as long as one that is in it.

// blockSize is how many leaves or buckets lie in a block, of 256 KiB at most. However many, changed ones and blocks together are less than twice
// what there would be without blocks; with eight a collection costs a fifth more.
const blockSize = 32

// inBlock is the epoch of a leaf or bucket that lies in a block.
const inBlock = ^uint64(0)

// block copies pieces into one block and makes each end where the next one begins.
func block[E any](pieces []*[]E) {
	size := 0
	for _, p := range pieces {
		size += len(*p)
	}
	b := make([]E, 0, size)
	for _, p := range pieces {
		from := len(b)
		b = append(b, *p...)
		*p = b[from:len(b):len(b)]
	}
}

// pack puts all leaves into blocks.
func (t *tree) pack() {
	if t.root.kids != nil {
		t.packBelow(t.own(&t.root))
	}
}

func (t *tree) packBelow(n *node) {
	for kids := range slices.Chunk(n.kids[:len(n.items)], blockSize) {
		var leaves []*[]item
		for i := range kids {
			if k := &kids[i].node; k.kids != nil {
				t.packBelow(t.own(k))
			} else {
				leaves = append(leaves, &k.items)
				k.epoch = inBlock
			}
		}
		block(leaves)
	}
}

// compare orders item i of the node and the point.
func (n *node) compare(rows *content, i int, p *point) int {
	switch head := n.items[i].head(); {
	case head < p.head:
		return -1
	case head > p.head:
		return 1
	case n.kids != nil:
		return compareID(&n.kids[i].id, &p.id)
	}
	id := rows.idAt(n.items[i].at)
	return compareID(&id, &p.id)
}

// search is the number of items before the point.
func (n *node) search(rows *content, p *point) int {
	lo, hi := n.guess(p.head)
	for lo < hi {
		if mid := (lo + hi) / 2; n.compare(rows, mid, p) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// near is how far from where it is expected a head is looked for.
const near = 4

// guess narrows a search. Random ids and hashes are spread evenly, so that a head lies close to where its value says. It is looked for there
// and, should it not be, where its value says within what is left. So a leaf is searched at the price of a few cache lines.
func (n *node) guess(head uint64) (lo, hi int) {
	hi = len(n.items)
	for range 3 { // what is spread otherwise is left to halving
		if hi-lo <= 2*near {
			break
		}
		first, last := n.items[lo].head(), n.items[hi-1].head()
		switch {
		case head < first:
			return lo, lo
		case head > last:
			return hi, hi
		case head == first || head == last:
			return lo, hi
		}
		at := lo + int(float64(hi-1-lo)*(float64(head-first)/float64(last-first)))
		for _, i := range [...]int{at - near, at + near} {
			if i < lo || i >= hi {
				continue
			}
			switch h := n.items[i].head(); {
			case h < head:
				lo = i + 1
			case h > head:
				hi = i
			}
		}
	}
	return lo, hi
}

// kid is the number of the kid that the point belongs to.
func (n *node) kid(rows *content, p *point) int {
	i := n.search(rows, p)
	if i == len(n.items) || i > 0 && n.compare(rows, i, p) > 0 {
		i--
	}
	return i
}

// own makes the root, or a kid of an owned node, owned as well.
func (t *tree) own(n *node) *node {
	if n.epoch != t.epoch {
		n.epoch, n.items = t.epoch, slices.Clone(n.items)
		if n.kids != nil {
			k := *n.kids
			n.kids = &k
		}
	}
	return n
}

// set puts an item at the point, in the place of the one there.
func (t *tree) set(rows *content, p *point, at place) {
	n := t.own(&t.root)
	if n.full() {
		*n = node{items: make([]item, 1), kids: &[fanout]kid{{node: *n}}, epoch: t.epoch}
		t.split(rows, n, 0, p)
	}
	for n.kids != nil { // a node that is passed has room, so that its kid can be split
		i := n.kid(rows, p)
		if t.own(&n.kids[i].node).full() {
			t.split(rows, n, i, p)
			i = n.kid(rows, p)
		}
		n = &n.kids[i].node
	}
	i := n.search(rows, p)
	if i < len(n.items) && n.compare(rows, i, p) == 0 {
		n.items[i].at = at
		return
	}
	n.insert(i, newItem(p.head, at))
	t.len++
}

func (n *node) insert(i int, it item) {
	if len(n.items) == cap(n.items) { // by less than append would: there are many leaves, and most are copied before they grow again
		n.items = append(make([]item, 0, min(len(n.items)*9/8+8, leafItems)), n.items...)
	}
	n.items = slices.Insert(n.items, i, it)
}

// split divides the full kid i in two; if everything goes to its end, as rows do that come in order, it stays almost full.
func (t *tree) split(rows *content, n *node, i int, p *point) {
	left, right := &n.kids[i].node, kid{node: node{epoch: t.epoch}}
	mid := len(left.items) / 2
	if left.compare(rows, len(left.items)-1, p) < 0 {
		mid = len(left.items) - 1
	}
	right.items, left.items = slices.Clone(left.items[mid:]), slices.Clone(left.items[:mid])
	if left.kids == nil {
		right.id = rows.idAt(right.items[0].at)
	} else {
		right.kids = new([fanout]kid)
		copy(right.kids[:], left.kids[mid:])
		clear(left.kids[mid:])
		right.id = right.kids[0].id
	}
	copy(n.kids[i+2:], n.kids[i+1:len(n.items)])
	n.kids[i+1] = right
	n.insert(i+1, newItem(right.items[0].head(), 0))
}

// delete takes out the item at the point.
func (t *tree) delete(rows *content, p *point) {
	n := t.own(&t.root)
	for n.kids != nil {
		i := n.kid(rows, p)
		if !t.join(n, i) && i > 0 && t.join(n, i-1) {
			i--
		}
		n = t.own(&n.kids[i].node)
	}
	if i := n.search(rows, p); i < len(n.items) && n.compare(rows, i, p) == 0 {
		n.items = slices.Delete(n.items, i, i+1)
		t.len--
	}
	for t.root.kids != nil && len(t.root.items) == 1 {
		t.root = t.root.kids[0].node
	}
}

// join moves what is in kid i+1 to kid i if both together fill less than three quarters of a node.
func (t *tree) join(n *node, i int) bool {
	if i+1 >= len(n.items) {
		return false
	}
	left, right, most := &n.kids[i].node, n.kids[i+1].node, leafItems
	if left.kids != nil {
		most = fanout
	}
	if len(left.items)+len(right.items) > most*3/4 {
		return false
	}
	t.own(left)
	if left.kids != nil {
		copy(left.kids[len(left.items):], right.kids[:len(right.items)])
	}
	left.items = slices.Concat(left.items, right.items)
	copy(n.kids[i+1:], n.kids[i+2:len(n.items)])
	n.items = slices.Delete(n.items, i+1, i+2)
	n.kids[len(n.items)] = kid{}
	return true
}

// packed is how full plant makes nodes: room for some more items before they split.
func packed(n int) int { return n * 7 / 8 }

// plant makes a tree of items that are in order.
func plant(rows *content, items []item) tree {
	t := tree{len: len(items)}
	var level []kid
	for block := range slices.Chunk(items, blockSize*packed(leafItems)) {
		for chunk := range slices.Chunk(slices.Clone(block), packed(leafItems)) { // each ends where the next one begins
			level = append(level, kid{node{items: chunk, epoch: inBlock}, rows.idAt(chunk[0].at)})
		}
	}
	for len(level) > 1 {
		var up []kid
		for chunk := range slices.Chunk(level, packed(fanout)) {
			n := node{kids: new([fanout]kid)}
			for i := range chunk {
				n.items = append(n.items, newItem(chunk[i].items[0].head(), 0))
			}
			copy(n.kids[:], chunk)
			up = append(up, kid{n, chunk[0].id})
		}
		level = up
	}
	if len(level) > 0 {
		t.root = level[0].node
	}
	return t
}

// cursor walks through the items of a tree that does not change meanwhile.
type cursor struct {
	path [10]step // 30 to the power of 10 is more items than there are places
	top  int
}

type step struct {
	n *node
	i int // the next one
}

// seek goes to the first item at the point or behind it.
func (t *tree) seek(rows *content, p *point) (c cursor) {
	n := &t.root
	for ; n.kids != nil; c.top++ {
		i := n.kid(rows, p)
		c.path[c.top] = step{n, i + 1}
		n = &n.kids[i].node
	}
	c.path[c.top] = step{n, n.search(rows, p)}
	return c
}

// next gives the item under the cursor and moves on; nil at the end.
func (c *cursor) next() *item {
	for c.top >= 0 {
		s := &c.path[c.top]
		switch i := s.i; {
		case i == len(s.n.items):
			c.top--
		case s.n.kids == nil:
			s.i++
			return &s.n.items[i]
		default:
			s.i++
			c.top++
			c.path[c.top] = step{n: &s.n.kids[i].node}
		}
	}
	return nil
}

func compareID(a, b *ID) int {
	x, y := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(b[:8])
	if x == y {
		x, y = binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])
	}
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

package state

import (
	"encoding/binary"
	"slices"
	"unsafe"
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

// fanout makes a node fill a size class of Go's allocator (768 bytes).
const fanout = 61

// node is a leaf (kids nil) or an inner node of a B+ tree. The items of an inner node are lower bounds of its kids, with the ids
// beside them, for the row that gave a bound may be gone.
type node struct {
	kids  *kids
	epoch uint64 // of the tree that may change the node in place
	n     int32
	items [fanout]item
}

type kids struct {
	nodes [fanout]*node
	ids   [fanout]ID
}

// leaf is a node as the garbage collector sees it when it has no kids and never will have: without a pointer. Almost all nodes are leaves, and
// looking for their kids would be half of what a collection does among millions of rows.
type leaf struct {
	_     uintptr // kids
	epoch uint64
	n     int32
	items [fanout]item
}

// A node and a leaf are alike in memory.
var _ = [1]struct{}{}[unsafe.Sizeof(node{})-unsafe.Sizeof(leaf{})+unsafe.Offsetof(node{}.items)-unsafe.Offsetof(leaf{}.items)]

func newLeaf(epoch uint64) *node { return (*node)(unsafe.Pointer(&leaf{epoch: epoch})) }

func newInner(epoch uint64) *node { return &node{epoch: epoch, kids: &kids{}} }

// tree is a copy-on-write B+ tree. A copy of it shares all nodes; freeze makes the original copy each of them before changing it.
type tree struct {
	root  *node
	epoch uint64
	len   int
}

func (t *tree) freeze() { t.epoch++ }

// compare orders item i of the node and the point.
func (n *node) compare(rows *content, i int, p *point) int {
	switch head := n.items[i].head(); {
	case head < p.head:
		return -1
	case head > p.head:
		return 1
	case n.kids != nil:
		return compareID(&n.kids.ids[i], &p.id)
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

// near is how far from where it is expected a head is looked for first.
const near = 4

// guess narrows a search. Random ids and hashes are spread evenly, so that a head lies close to where its value says, and a node is searched
// at the price of two cache lines instead of five.
func (n *node) guess(head uint64) (lo, hi int) {
	hi = int(n.n)
	if hi <= 2*near {
		return 0, hi
	}
	first, last := n.items[0].head(), n.items[hi-1].head()
	if head <= first || head >= last {
		return 0, hi
	}
	at := int(float64(hi-1) * (float64(head-first) / float64(last-first)))
	if i := at - near; i > 0 && n.items[i].head() < head {
		lo = i + 1
	}
	if i := at + near; i < hi && n.items[i].head() > head {
		hi = i
	}
	return lo, hi
}

// kid is the number of the kid that the point belongs to.
func (n *node) kid(rows *content, p *point) int {
	i := n.search(rows, p)
	if i == int(n.n) || i > 0 && n.compare(rows, i, p) > 0 {
		i--
	}
	return i
}

func (t *tree) owned(n *node) *node {
	if n.epoch == t.epoch {
		return n
	}
	c := newLeaf(t.epoch)
	if n.kids != nil {
		c = newInner(t.epoch)
		*c.kids = *n.kids
	}
	c.n, c.items = n.n, n.items
	return c
}

// own makes kid i of an owned node owned as well.
func (t *tree) own(n *node, i int) *node {
	k := t.owned(n.kids.nodes[i])
	n.kids.nodes[i] = k
	return k
}

// set puts an item at the point, in the place of the one there.
func (t *tree) set(rows *content, p *point, at place) {
	if t.root == nil {
		t.root = newLeaf(t.epoch)
	}
	t.root = t.owned(t.root)
	if t.root.n == fanout {
		top := newInner(t.epoch)
		top.n = 1
		top.kids.nodes[0] = t.root
		t.root = top
		t.split(rows, top, 0, p)
	}
	n := t.root
	for n.kids != nil { // a node that is passed has room, so that its kid can be split
		i := n.kid(rows, p)
		if t.own(n, i).n == fanout {
			t.split(rows, n, i, p)
			i = n.kid(rows, p)
		}
		n = n.kids.nodes[i]
	}
	i := n.search(rows, p)
	if i < int(n.n) && n.compare(rows, i, p) == 0 {
		n.items[i].at = at
		return
	}
	n.insert(i, newItem(p.head, at))
	t.len++
}

func (n *node) insert(i int, it item) {
	copy(n.items[i+1:], n.items[i:n.n])
	n.items[i] = it
	n.n++
}

// split divides the full kid i in two; if everything goes to its end, as rows do that come in order, it stays almost full.
func (t *tree) split(rows *content, n *node, i int, p *point) {
	left, right, mid := n.kids.nodes[i], newLeaf(t.epoch), fanout/2
	if left.kids != nil {
		right = newInner(t.epoch)
	}
	if left.compare(rows, fanout-1, p) < 0 {
		mid = fanout - 1
	}
	left.n, right.n = int32(mid), int32(copy(right.items[:], left.items[mid:]))
	var bound ID
	if left.kids == nil {
		bound = rows.idAt(right.items[0].at)
	} else {
		copy(right.kids.nodes[:], left.kids.nodes[mid:])
		copy(right.kids.ids[:], left.kids.ids[mid:])
		clear(left.kids.nodes[mid:])
		bound = right.kids.ids[0]
	}
	copy(n.kids.nodes[i+2:], n.kids.nodes[i+1:n.n])
	copy(n.kids.ids[i+2:], n.kids.ids[i+1:n.n])
	n.kids.nodes[i+1], n.kids.ids[i+1] = right, bound
	n.insert(i+1, newItem(right.items[0].head(), 0))
}

// delete takes out the item at the point.
func (t *tree) delete(rows *content, p *point) {
	if t.root == nil {
		return
	}
	t.root = t.owned(t.root)
	n := t.root
	for n.kids != nil {
		i := n.kid(rows, p)
		t.own(n, i)
		if !t.join(n, i) && i > 0 && t.join(n, i-1) {
			i--
		}
		n = n.kids.nodes[i]
	}
	if i := n.search(rows, p); i < int(n.n) && n.compare(rows, i, p) == 0 {
		copy(n.items[i:], n.items[i+1:n.n])
		n.n--
		t.len--
	}
	for t.root.kids != nil && t.root.n == 1 {
		t.root = t.root.kids.nodes[0]
	}
}

// join moves what is in kid i+1 to kid i if both together fill less than three quarters of a node.
func (t *tree) join(n *node, i int) bool {
	if i+1 >= int(n.n) || n.kids.nodes[i].n+n.kids.nodes[i+1].n > fanout*3/4 {
		return false
	}
	left, right := t.own(n, i), n.kids.nodes[i+1]
	copy(left.items[left.n:], right.items[:right.n])
	if left.kids != nil {
		copy(left.kids.nodes[left.n:], right.kids.nodes[:right.n])
		copy(left.kids.ids[left.n:], right.kids.ids[:right.n])
	}
	left.n += right.n
	copy(n.items[i+1:], n.items[i+2:n.n])
	copy(n.kids.nodes[i+1:], n.kids.nodes[i+2:n.n])
	copy(n.kids.ids[i+1:], n.kids.ids[i+2:n.n])
	n.n--
	n.kids.nodes[n.n] = nil
	return true
}

// packed is how full plant makes nodes: room for some more items before they split.
const packed = fanout * 7 / 8

// plant makes a tree of items that are in order.
func plant(rows *content, items []item) tree {
	t := tree{len: len(items)}
	var level []*node
	var ids []ID // the lower bounds of level
	for chunk := range slices.Chunk(items, packed) {
		n := newLeaf(0)
		n.n = int32(copy(n.items[:], chunk))
		level = append(level, n)
		ids = append(ids, rows.idAt(chunk[0].at))
	}
	for len(level) > 1 {
		var up []*node
		var upIDs []ID
		for i := 0; i < len(level); i += packed {
			n := newInner(0)
			n.n = int32(copy(n.kids.nodes[:packed], level[i:]))
			copy(n.kids.ids[:packed], ids[i:])
			for j := range n.kids.nodes[:n.n] {
				n.items[j] = newItem(level[i+j].items[0].head(), 0)
			}
			up, upIDs = append(up, n), append(upIDs, ids[i])
		}
		level, ids = up, upIDs
	}
	if len(level) > 0 {
		t.root = level[0]
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
	i int32 // the next one
}

// seek goes to the first item at the point or behind it.
func (t *tree) seek(rows *content, p *point) (c cursor) {
	if t.root == nil {
		c.top = -1
		return c
	}
	n := t.root
	for ; n.kids != nil; c.top++ {
		i := n.kid(rows, p)
		c.path[c.top] = step{n, int32(i) + 1}
		n = n.kids.nodes[i]
	}
	c.path[c.top] = step{n, int32(n.search(rows, p))}
	return c
}

// next gives the item under the cursor and moves on; nil at the end.
func (c *cursor) next() *item {
	for c.top >= 0 {
		s := &c.path[c.top]
		switch i := s.i; {
		case i == s.n.n:
			c.top--
		case s.n.kids == nil:
			s.i++
			return &s.n.items[i]
		default:
			s.i++
			c.top++
			c.path[c.top] = step{n: s.n.kids.nodes[i]}
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

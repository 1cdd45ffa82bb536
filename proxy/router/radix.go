package router

import (
	"slices"
	"strings"
	"unsafe"
)

// owner marks the arrays made during one Edit: they are not yet visible to readers and may be changed in place.
type owner struct{ _ byte }

// short is how many bytes of text have room in a node, which makes it a cache line without its value.
const short = 33

// node is a byte radix tree that is shared between versions: an update copies the path to the changed key
// only. The shape depends on the keys alone, not on the order of updates.
//
// A look-up among many keys waits for memory and for little else. So a node is one cache line, its text is in it, and its children lie
// in one array: each step waits once. The value is the line behind it, which the processor asks for while it still waits for the first.
type node[V any] struct {
	first *node[V] // of the kids, which are in the order of the first bytes of their labels
	own   *owner   // of the array of kids
	long  *byte    // label and firsts in a row, if they have no room in text
	cut   uint32   // where they meet
	count uint16   // of kids, and so of firsts
	has   bool     // a value
	text  [short]byte
	val   V
}

func (n *node[V]) kids() []node[V] { return unsafe.Slice(n.first, n.count) }

func (n *node[V]) setKids(o *owner, kids []node[V]) {
	n.first, n.count, n.own = unsafe.SliceData(kids), uint16(len(kids)), o
}

// both are label and firsts in a row. They are valid as long as the node is not changed.
func (n *node[V]) both() string {
	size := int(n.cut) + int(n.count)
	if size <= short {
		return unsafe.String(&n.text[0], size)
	}
	return unsafe.String(n.long, size)
}

// label is the bytes between the parent and the node; the root may have one too.
func (n *node[V]) label() string { return n.both()[:n.cut] }

// firsts are the first bytes of the children's labels, ascending.
func (n *node[V]) firsts() string { return n.both()[n.cut:] }

// setText gives the node a label, which may be in its own text, and the firsts of its kids.
func (n *node[V]) setText(label string) {
	var buf [256]byte
	b := append(buf[:0], label...)
	for i := range n.kids() {
		b = append(b, n.kids()[i].both()[0])
	}
	n.cut, n.long = uint32(len(label)), nil
	if len(b) > short {
		n.long = unsafe.SliceData(slices.Clone(b))
		return
	}
	copy(n.text[:], b)
}

func (n *node[V]) empty() bool { return !n.has && n.count == 0 }

// change makes of a key's value, the zero one if there is none, another one, and tells whether there is one now. What the value refers to is
// shared with other versions of the tree.
type change[V any] func(V) (V, bool)

// update changes the value of key. It returns the new tree.
func (n *node[V]) update(o *owner, key string, f change[V]) *node[V] {
	var m node[V]
	if n == nil {
		if !m.init(key, f) {
			return nil
		}
		return &m
	}
	m = *n
	switch {
	case !m.set(o, key, f):
		return n
	case m.empty():
		return nil
	}
	return &m
}

// init makes a node for a key without a value so far, if it gets one.
func (n *node[V]) init(key string, f change[V]) bool {
	n.setText(key)
	n.val, n.has = f(n.val)
	return n.has
}

// set is update for a node that is not visible to readers. It tells whether the node may have changed.
func (n *node[V]) set(o *owner, key string, f change[V]) bool {
	label := n.label()
	l := commonPrefix(label, key)
	switch {
	case l < len(label):
		var mid, kid node[V]
		kids := []node[V]{*n}
		if l == len(key) {
			if mid.val, mid.has = f(mid.val); !mid.has {
				return false
			}
		} else {
			if !kid.init(key[l:], f) {
				return false
			}
			kids = append(kids, kid)
		}
		kids[0].setText(label[l:])
		if len(kids) == 2 && key[l] < label[l] {
			slices.Reverse(kids)
		}
		mid.setKids(o, kids)
		mid.setText(label[:l])
		*n = mid
		return true
	case l == len(key):
		had := n.has
		if n.val, n.has = f(n.val); !n.has {
			n.compact()
		}
		return had || n.has
	}
	rest := key[l:]
	i := strings.IndexByte(n.firsts(), rest[0])
	if i < 0 {
		var kid node[V]
		if !kid.init(rest, f) {
			return false
		}
		i = 0
		for first := n.firsts(); i < len(first) && first[i] < rest[0]; {
			i++
		}
		n.setKids(o, slices.Concat(n.kids()[:i], []node[V]{kid}, n.kids()[i:])) // no longer than that: most stay as they are
		n.setText(label)
		return true
	}
	kid := n.kids()[i]
	if !kid.set(o, rest, f) {
		return false
	}
	if kid.empty() {
		n.setKids(o, slices.Concat(n.kids()[:i], n.kids()[i+1:]))
		n.setText(label)
		n.compact()
		return true
	}
	if n.own != o {
		n.setKids(o, slices.Clone(n.kids()))
	}
	n.kids()[i] = kid
	return true
}

// compact joins a node without value and its only child.
func (n *node[V]) compact() {
	if n.has || n.count != 1 {
		return
	}
	kid := *n.first
	kid.setText(n.label() + kid.label())
	*n = kid
}

// step goes one node on towards a key. It returns the node's value, if the key so far has one, the next node, and what is left of the key. Called until there
// is no node, it visits the values of all keys that are prefixes of the one looked for, shortest first.
func (n *node[V]) step(key string) (val *V, next *node[V], rest string) {
	both, cut := n.both(), int(n.cut)
	if !strings.HasPrefix(key, both[:cut]) {
		return nil, nil, key
	}
	if key = key[cut:]; key != "" {
		if i := strings.IndexByte(both[cut:], key[0]); i >= 0 {
			next = &n.kids()[i]
		}
	}
	if n.has {
		val = &n.val
	}
	return val, next, key
}

// get returns the value of exactly key, nil when there is none.
func (n *node[V]) get(key string) (val *V) {
	for n != nil {
		if val, n, key = n.step(key); key == "" {
			return val
		}
	}
	return nil
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

package router

import "strings"

// owner marks the nodes made during one Edit: they are not yet visible to readers and may be changed in place.
type owner struct{ _ byte }

// node is a byte radix tree whose nodes are shared between versions: an update copies the path to the changed key
// only. The shape depends on the keys alone, not on the order of updates.
//
// A look-up among many keys waits for memory and for little else, so a node is one cache line, and its text another one.
type node[V any] struct {
	text string // label and firsts in a row
	cut  int    // where they meet
	kids []*node[V]
	val  *V
	own  *owner
}

// label is the bytes between the parent and the node; the root may have one too.
func (n *node[V]) label() string { return n.text[:n.cut] }

// firsts are the first bytes of the children's labels, ascending.
func (n *node[V]) firsts() string { return n.text[n.cut:] }

func (n *node[V]) setText(label, firsts string) { n.text, n.cut = label+firsts, len(label) }

// owned returns a node that o may change: n itself, or a copy.
func (n *node[V]) owned(o *owner) *node[V] {
	if n.own == o {
		return n
	}
	c := *n
	c.own = o
	c.kids = append(make([]*node[V], 0, len(n.kids)+1), n.kids...)
	return &c
}

// update sets the value of key to f(old value); nil stands for "no value" both ways. It returns the new tree.
func (n *node[V]) update(o *owner, key string, f func(*V) *V) *node[V] {
	if n == nil {
		if v := f(nil); v != nil {
			return leafNode(o, key, v)
		}
		return nil
	}
	label := n.label()
	l := commonPrefix(label, key)
	switch {
	case l < len(label):
		v := f(nil)
		if v == nil {
			return n
		}
		tail := n.owned(o)
		mid := &node[V]{text: label[:l+1], cut: l, kids: []*node[V]{tail}, own: o}
		tail.text, tail.cut = tail.text[l:], tail.cut-l
		if l == len(key) {
			mid.val = v
		} else {
			mid.addKid(leafNode(o, key[l:], v))
		}
		return mid
	case l == len(key):
		v := f(n.val)
		if v == n.val {
			return n
		}
		m := n.owned(o)
		m.val = v
		return m.compact(o)
	}
	rest := key[l:]
	i := strings.IndexByte(n.firsts(), rest[0])
	if i < 0 {
		v := f(nil)
		if v == nil {
			return n
		}
		m := n.owned(o)
		m.addKid(leafNode(o, rest, v))
		return m
	}
	kid := n.kids[i].update(o, rest, f)
	if kid == n.kids[i] {
		return n
	}
	m := n.owned(o)
	if kid != nil {
		m.kids[i] = kid
		return m
	}
	m.kids = append(m.kids[:i], m.kids[i+1:]...)
	m.setText(label, n.firsts()[:i]+n.firsts()[i+1:])
	return m.compact(o)
}

func leafNode[V any](o *owner, key string, v *V) *node[V] {
	return &node[V]{text: key, cut: len(key), val: v, own: o}
}

// addKid inserts a child whose first byte is new. n must be owned.
func (n *node[V]) addKid(k *node[V]) {
	i, first := 0, n.firsts()
	for i < len(first) && first[i] < k.text[0] {
		i++
	}
	n.setText(n.label(), first[:i]+k.text[:1]+first[i:])
	n.kids = append(n.kids, nil)
	copy(n.kids[i+1:], n.kids[i:])
	n.kids[i] = k
}

// compact drops a node without value and children and joins one with a single child. n must be owned.
func (n *node[V]) compact(o *owner) *node[V] {
	if n.val != nil || len(n.kids) > 1 {
		return n
	}
	if len(n.kids) == 0 {
		return nil
	}
	k := n.kids[0].owned(o)
	k.setText(n.label()+k.label(), k.firsts())
	return k
}

// get returns the value of exactly key, nil when there is none.
func (n *node[V]) get(key string) *V {
	for n != nil && strings.HasPrefix(key, n.label()) {
		key = key[n.cut:]
		if key == "" {
			return n.val
		}
		i := strings.IndexByte(n.firsts(), key[0])
		if i < 0 {
			return nil
		}
		n = n.kids[i]
	}
	return nil
}

// walk visits the values of all keys that are prefixes of a string, shortest first.
type walk[V any] struct {
	n    *node[V]
	rest string
}

// next returns the next value and how many bytes of the string follow its key; nil at the end.
func (w *walk[V]) next() (*V, int) {
	for w.n != nil {
		n := w.n
		if !strings.HasPrefix(w.rest, n.label()) {
			break
		}
		w.rest = w.rest[n.cut:]
		w.n = nil
		if w.rest != "" {
			if i := strings.IndexByte(n.firsts(), w.rest[0]); i >= 0 {
				w.n = n.kids[i]
			}
		}
		if n.val != nil {
			return n.val, len(w.rest)
		}
	}
	w.n = nil
	return nil, 0
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

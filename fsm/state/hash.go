package state

import "slices"

const (
	// bucketSize makes a bucket fill a size class of Go's allocator (768 bytes).
	bucketSize = 94
	// bucketFull leaves so many slots empty that a search ends soon.
	bucketFull = bucketSize * 7 / 8
)

// bucket holds the places of the rows whose hashes begin with the same depth bits, each in the first empty slot behind the one that its
// tag asks for.
type bucket struct {
	epoch uint64 // of the hash that may change the bucket in place
	n     uint32
	depth uint32
	slots [bucketSize]slot
}

// slot is empty if at is 0. The tag is the first half of the hash.
type slot struct {
	tag uint32
	at  place
}

// segmentSize balances what a write after a commit copies: a segment, and the list of the segments.
const (
	segmentBits = 8
	segmentSize = 1 << segmentBits
)

type segment struct {
	epoch   uint64
	buckets *[segmentSize]*bucket
}

// hash is a copy-on-write hash table of places (extendible hashing): the first depth bits of a hash select the pointer to a bucket, and
// a full bucket of fewer bits is divided by its next one. It finds a row of millions with two or three cache misses, where a tree needs
// ten. It does not shrink. Like a tree it is copied by assignment, and freeze makes the original copy what it changes.
type hash struct {
	segments []segment
	depth    uint32 // segmentBits at least
	epoch    uint64
	listed   uint64 // epoch of segments
}

// none is the bucket of tables that never held anything.
var none bucket

// begin makes the first bucket.
func (h *hash) begin() {
	h.depth, h.listed = segmentBits, h.epoch
	h.segments = []segment{{h.epoch, new([segmentSize]*bucket)}}
	h.point(0, &bucket{epoch: h.epoch})
}

func (h *hash) freeze() { h.epoch++ }

func tagOf(head uint64) uint32 { return uint32(head >> 32) }

// bucket is the one of a tag.
func (h *hash) bucket(tag uint32) *bucket {
	if h.segments == nil {
		return &none
	}
	i := tag >> (32 - h.depth)
	return h.segments[i>>segmentBits].buckets[i%segmentSize]
}

// point makes b the bucket of all tags that begin like this one.
func (h *hash) point(tag uint32, b *bucket) {
	if h.listed != h.epoch {
		h.segments, h.listed = slices.Clone(h.segments), h.epoch
	}
	span := uint32(1) << (h.depth - b.depth)
	first := tag >> (32 - h.depth) &^ (span - 1)
	for i := first; i < first+span; i++ {
		s := &h.segments[i>>segmentBits]
		if s.epoch != h.epoch {
			c := *s.buckets
			*s = segment{h.epoch, &c}
		}
		s.buckets[i%segmentSize] = b
	}
}

// own gives the bucket of a tag for changing it.
func (h *hash) own(tag uint32) *bucket {
	b := h.bucket(tag)
	if b.epoch != h.epoch {
		c := *b
		c.epoch = h.epoch
		b = &c
		h.point(tag, b)
	}
	return b
}

// home is the slot where the search for a tag begins; its factor mixes those bits that the tags of a bucket do not share.
func home(tag uint32) int { return int(uint64(tag*0x9e3779b1) * bucketSize >> 32) }

func after(i int) int {
	if i++; i < bucketSize {
		return i
	}
	return 0
}

// find is the first slot with the tag from slot i on, -1 if there is none.
func (b *bucket) find(i int, tag uint32) int {
	for ; b.slots[i].at != 0; i = after(i) {
		if b.slots[i].tag == tag {
			return i
		}
	}
	return -1
}

// findPlace is the slot of a place.
func (b *bucket) findPlace(tag uint32, at place) int {
	i := home(tag)
	for ; b.slots[i].at != at; i = after(i) {
		if b.slots[i].at == 0 {
			panic("state: a hash does not hold a row that is in the table") // looking on would never end
		}
	}
	return i
}

func (b *bucket) add(tag uint32, at place) {
	i := home(tag)
	for b.slots[i].at != 0 {
		i = after(i)
	}
	b.slots[i] = slot{tag, at}
	b.n++
}

// remove empties slot i and moves up those behind it that would not be found any more.
func (b *bucket) remove(i int) {
	b.n--
	for j := after(i); ; j = after(j) {
		s := b.slots[j]
		if s.at == 0 {
			b.slots[i] = slot{}
			return
		}
		// How far a slot is behind the home: if the empty one is nearer, or as near, the row may go there.
		from := home(s.tag)
		if (i-from+bucketSize)%bucketSize <= (j-from+bucketSize)%bucketSize {
			b.slots[i], i = s, j
		}
	}
}

// set puts in a place; that of the row before it moved or was replaced, if not 0, goes.
func (h *hash) set(head uint64, old, at place) {
	if h.segments == nil {
		h.begin()
	}
	tag := tagOf(head)
	b := h.own(tag)
	if old != 0 {
		b.slots[b.findPlace(tag, old)].at = at
		return
	}
	for b.n == bucketFull {
		h.split(tag, b)
		b = h.bucket(tag)
	}
	b.add(tag, at)
}

func (h *hash) delete(head uint64, at place) {
	tag := tagOf(head)
	b := h.own(tag)
	b.remove(b.findPlace(tag, at))
}

// split moves the tags of an owned bucket whose next bit is set to a new one. Hashes are seeded: a bucket of equal tags does not occur.
func (h *hash) split(tag uint32, b *bucket) {
	for h.depth == b.depth {
		h.double()
	}
	old := b.slots
	b.n, b.slots = 0, [bucketSize]slot{}
	b.depth++
	bit := uint32(1) << (32 - b.depth)
	other := &bucket{epoch: h.epoch, depth: b.depth}
	for _, s := range old {
		switch {
		case s.at == 0:
		case s.tag&bit == 0:
			b.add(s.tag, s.at)
		default:
			other.add(s.tag, s.at)
		}
	}
	h.point(tag|bit, other)
}

// double lets one more bit select the pointer.
func (h *hash) double() {
	list := make([]segment, 0, 2*len(h.segments))
	for _, s := range h.segments {
		for half := range 2 {
			var buckets [segmentSize]*bucket
			for i := range buckets {
				buckets[i] = s.buckets[half*segmentSize/2+i/2]
			}
			list = append(list, segment{h.epoch, &buckets})
		}
	}
	h.segments, h.listed = list, h.epoch
	h.depth++
}

// sow makes a hash of items, whose order it changes. same is called with the places of items that have the same head.
func sow(items []item, same func(a, b place)) (h hash) {
	if len(items) > 0 {
		h.begin()
		h.sow(items, 0, 0, same)
	}
	return h
}

func (h *hash) sow(items []item, prefix, depth uint32, same func(a, b place)) {
	if len(items) > bucketFull*7/8 { // room for some more before they split
		bit := uint32(1) << (31 - depth)
		n := 0
		for i := range items {
			if items[i].hi&bit == 0 {
				items[n], items[i] = items[i], items[n]
				n++
			}
		}
		h.sow(items[:n], prefix, depth+1, same)
		h.sow(items[n:], prefix|bit, depth+1, same)
		return
	}
	b := &bucket{depth: depth}
	for i, it := range items {
		for _, other := range items[:i] {
			if it.head() == other.head() {
				same(other.at, it.at)
			}
		}
		b.add(it.hi, it.at)
	}
	for h.depth < depth {
		h.double()
	}
	h.point(prefix, b)
}

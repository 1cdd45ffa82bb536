package state

import "slices"

// bucketWords makes a bucket fill a size class of Go's allocator (1536 bytes). Larger ones cost more to copy; with smaller ones the
// pointers to those of a million rows do not fit beside everything else into a processor's cache.
const bucketWords = 380

// bucket holds the places of the rows whose hashes begin with the same depth bits, each in the first empty slot behind the one that its
// tag asks for.
type bucket struct {
	epoch uint64 // of the hash that may change the bucket in place
	n     uint32
	depth uint16
	width uint16              // of a slot, in words
	words [bucketWords]uint32 // slots: tag (the first half of the hash), place (0: empty) and, where there are three, hint
}

func newBucket(epoch uint64, depth uint32, hinted bool) *bucket {
	b := &bucket{epoch: epoch, depth: uint16(depth), width: 2}
	if hinted {
		b.width = 3
	}
	return b
}

func (b *bucket) size() int {
	if b.width == 3 {
		return bucketWords / 3
	}
	return bucketWords / 2
}

func (b *bucket) slot(i int) []uint32 { return b.words[i*int(b.width):][:b.width] }

func (b *bucket) tag(i int) uint32 { return b.words[i*int(b.width)] }

func (b *bucket) at(i int) place { return place(b.words[i*int(b.width)+1]) }

// hint is the third word of a slot, which means nothing to a hash.
func (b *bucket) hint(i int) place {
	if b.width < 3 {
		return 0
	}
	return place(b.words[3*i+2])
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
	hinted   bool   // slots hold hints
}

// full leaves so many slots of a bucket empty that a search ends soon.
func (h *hash) full() int {
	if h.hinted {
		return bucketWords / 3 * 7 / 8
	}
	return bucketWords / 2 * 7 / 8
}

// none is the bucket of tables that never held anything.
var none = bucket{width: 2}

// begin makes the first bucket.
func (h *hash) begin() {
	h.depth, h.listed = segmentBits, h.epoch
	h.segments = []segment{{h.epoch, new([segmentSize]*bucket)}}
	h.point(0, newBucket(h.epoch, 0, h.hinted))
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
	span := uint32(1) << (h.depth - uint32(b.depth))
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
func (b *bucket) home(tag uint32) int { return int(uint64(tag*0x9e3779b1) * uint64(b.size()) >> 32) }

func (b *bucket) after(i int) int {
	if i++; i < b.size() {
		return i
	}
	return 0
}

// find is the first slot with the tag from slot i on, -1 if there is none.
func (b *bucket) find(i int, tag uint32) int {
	for ; b.at(i) != 0; i = b.after(i) {
		if b.tag(i) == tag {
			return i
		}
	}
	return -1
}

// findPlace is the slot of a place.
func (b *bucket) findPlace(tag uint32, at place) int {
	i := b.home(tag)
	for ; b.at(i) != at; i = b.after(i) {
		if b.at(i) == 0 {
			panic("state: a hash does not hold a row that is in the table") // looking on would never end
		}
	}
	return i
}

func (b *bucket) add(tag uint32, at, hint place) {
	i := b.home(tag)
	for b.at(i) != 0 {
		i = b.after(i)
	}
	b.n++
	s := b.slot(i)
	s[0], s[1] = tag, uint32(at)
	if len(s) > 2 {
		s[2] = uint32(hint)
	}
}

// remove empties slot i and moves up those behind it that would not be found any more.
func (b *bucket) remove(i int) {
	b.n--
	size := b.size()
	for j := b.after(i); ; j = b.after(j) {
		if b.at(j) == 0 {
			clear(b.slot(i))
			return
		}
		// How far a slot is behind the home: if the empty one is nearer, or as near, the row may go there.
		from := b.home(b.tag(j))
		if (i-from+size)%size <= (j-from+size)%size {
			copy(b.slot(i), b.slot(j))
			i = j
		}
	}
}

// set puts in a place and a hint; if the row moved from an old place, which is not 0 then, that goes and the hint there stays.
func (h *hash) set(head uint64, old, at, hint place) {
	if h.segments == nil {
		h.begin()
	}
	tag := tagOf(head)
	b := h.own(tag)
	if old != 0 {
		b.slot(b.findPlace(tag, old))[1] = uint32(at)
		return
	}
	for int(b.n) == h.full() {
		h.split(tag, b)
		b = h.bucket(tag)
	}
	b.add(tag, at, hint)
}

// rehint changes the hint beside a place.
func (h *hash) rehint(head uint64, at, hint place) {
	tag := tagOf(head)
	if b := h.bucket(tag); h.hinted && b.hint(b.findPlace(tag, at)) != hint {
		b = h.own(tag)
		b.slot(b.findPlace(tag, at))[2] = uint32(hint)
	}
}

func (h *hash) delete(head uint64, at place) {
	tag := tagOf(head)
	b := h.own(tag)
	b.remove(b.findPlace(tag, at))
}

// split moves the tags of an owned bucket whose next bit is set to a new one. Hashes are seeded: a bucket of equal tags does not occur.
func (h *hash) split(tag uint32, b *bucket) {
	for h.depth == uint32(b.depth) {
		h.double()
	}
	old := *b
	*b = *newBucket(h.epoch, uint32(old.depth)+1, h.hinted)
	bit := uint32(1) << (32 - b.depth)
	other := newBucket(h.epoch, uint32(b.depth), h.hinted)
	for i := range old.size() {
		switch tag, at := old.tag(i), old.at(i); {
		case at == 0:
		case tag&bit == 0:
			b.add(tag, at, old.hint(i))
		default:
			other.add(tag, at, old.hint(i))
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

// seedling is an entry of a hash that is to be; its hint is what the caller makes one of.
type seedling struct {
	item
	hint uint32
}

// sow fills an empty hash with items, whose order it changes. same is called with the places of items that have the same head, hint
// to have the hints that go into the slots.
func (h *hash) sow(items []seedling, same func(a, b place), hint func(uint32) place) {
	if len(items) > 0 {
		h.begin()
		h.grow(items, 0, 0, same, hint)
	}
}

func (h *hash) grow(items []seedling, prefix, depth uint32, same func(a, b place), hint func(uint32) place) {
	if len(items) > h.full()*7/8 { // room for some more before they split
		bit := uint32(1) << (31 - depth)
		n := 0
		for i := range items {
			if items[i].hi&bit == 0 {
				items[n], items[i] = items[i], items[n]
				n++
			}
		}
		h.grow(items[:n], prefix, depth+1, same, hint)
		h.grow(items[n:], prefix|bit, depth+1, same, hint)
		return
	}
	b := newBucket(h.epoch, depth, h.hinted)
	for i, it := range items {
		for _, other := range items[:i] {
			if it.head() == other.head() {
				same(other.at, it.at)
			}
		}
		b.add(it.hi, it.at, hint(it.hint))
	}
	for h.depth < depth {
		h.double()
	}
	h.point(prefix, b)
}

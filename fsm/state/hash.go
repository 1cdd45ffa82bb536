package state

import "slices"

// bucket holds the places of the rows whose hashes begin with the same depth bits, each in the first empty slot behind the one that its
// tag asks for. One that is full becomes larger, and one that is as large as it may be is divided.
type bucket struct {
	words []uint32 // slots: tag (the first half of the hash), place (0: empty) and, where there are three, hint
	epoch uint64   // of the hash that may change the words in place; inBlock: none may
	rows  uint32
	depth uint16
	width uint16 // of a slot, in words
}

// bucketWords makes a bucket fill a size class of Go's allocator (8 KiB). Larger ones cost a change more, that copies them;
// smaller ones are more, and cost a collection of garbage more, that looks at each.
const bucketWords = 2048

// newBucket makes one that has room for some more rows than it is to get.
func newBucket(epoch uint64, depth uint16, rows int, width uint16) bucket {
	return bucket{words: make([]uint32, min(bucketWords, (rows+rows/4+8)*8/7*int(width))), epoch: epoch, depth: depth, width: width}
}

// size is how many slots there are.
func (b *bucket) size() int {
	if b.width == 3 { // dividing by what is known is quicker
		return len(b.words) / 3
	}
	return len(b.words) / 2
}

// full leaves so many slots empty that a search ends soon.
func (b *bucket) full() bool { return int(b.rows) == b.size()*7/8 }

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
	segmentBits = 5
	segmentSize = 1 << segmentBits
)

type segment struct {
	epoch   uint64
	buckets *[segmentSize]bucket
}

// hash is a copy-on-write hash table of places (extendible hashing): the first depth bits of a hash select the bucket, and
// a full bucket of fewer bits is divided by its next one. It finds a row of millions with two or three cache misses, where a tree needs
// ten. It does not shrink. Like a tree it is copied by assignment, and freeze makes the original copy what it changes.
type hash struct {
	segments []segment
	depth    uint16 // segmentBits at least
	epoch    uint64
	listed   uint64 // epoch of segments
	hinted   bool   // slots hold hints
}

// none is the bucket of tables that never held anything.
var none = bucket{words: make([]uint32, 2), width: 2}

func (h *hash) width() uint16 {
	if h.hinted {
		return 3
	}
	return 2
}

// begin makes the first bucket.
func (h *hash) begin() {
	h.depth, h.listed = segmentBits, h.epoch
	h.segments = []segment{{h.epoch, new([segmentSize]bucket)}}
	h.point(0, newBucket(h.epoch, 0, 0, h.width()))
}

func (h *hash) freeze() { h.epoch++ }

// pack puts all buckets into blocks.
func (h *hash) pack() {
	if h.segments == nil {
		return
	}
	var tags []uint32
	var buckets []bucket
	for i := uint64(0); i < 1<<32; {
		b := *h.bucket(uint32(i))
		tags, buckets = append(tags, uint32(i)), append(buckets, b)
		if i += 1 << (32 - b.depth); i < 1<<32 && len(tags) < blockSize {
			continue
		}
		var words []*[]uint32
		for j := range buckets {
			words = append(words, &buckets[j].words)
			buckets[j].epoch = inBlock
		}
		block(words)
		for j := range buckets {
			h.point(tags[j], buckets[j])
		}
		tags, buckets = tags[:0], buckets[:0]
	}
}

func tagOf(head uint64) uint32 { return uint32(head >> 32) }

// bucket is the one of a tag, for reading.
func (h *hash) bucket(tag uint32) *bucket {
	if h.segments == nil {
		return &none
	}
	i := tag >> (32 - h.depth)
	return &h.segments[i>>segmentBits].buckets[i%segmentSize]
}

// point makes b the bucket of all tags that begin like this one.
func (h *hash) point(tag uint32, b bucket) {
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

// own gives the bucket of a tag for changing it, and for pointing to it then.
func (h *hash) own(tag uint32) bucket {
	b := *h.bucket(tag)
	if b.epoch != h.epoch {
		b.epoch, b.words = h.epoch, slices.Clone(b.words)
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
	b.rows++
	s := b.slot(i)
	s[0], s[1] = tag, uint32(at)
	if len(s) > 2 {
		s[2] = uint32(hint)
	}
}

// remove empties slot i and moves up those behind it that would not be found any more.
func (b *bucket) remove(i int) {
	b.rows--
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
	} else {
		for b.full() {
			b = h.room(tag, b)
		}
		b.add(tag, at, hint)
	}
	h.point(tag, b)
}

// rehint changes the hint beside a place.
func (h *hash) rehint(head uint64, at, hint place) {
	tag := tagOf(head)
	if b := h.bucket(tag); h.hinted && b.hint(b.findPlace(tag, at)) != hint {
		b := h.own(tag)
		b.slot(b.findPlace(tag, at))[2] = uint32(hint)
		h.point(tag, b)
	}
}

func (h *hash) delete(head uint64, at place) {
	tag := tagOf(head)
	b := h.own(tag)
	b.remove(b.findPlace(tag, at))
	h.point(tag, b)
}

// room makes more room in a full bucket, and gives that of the tag then.
func (h *hash) room(tag uint32, b bucket) bucket {
	if len(b.words) < bucketWords {
		larger := newBucket(h.epoch, b.depth, int(b.rows), b.width)
		b.pour(0, &larger, &larger)
		return larger
	}
	if h.depth == b.depth {
		h.double()
	}
	// Hashes are seeded: a bucket of equal tags does not occur.
	bit := uint32(1) << (31 - b.depth)
	ones := 0
	for i := range b.size() {
		if b.at(i) != 0 && b.tag(i)&bit != 0 {
			ones++
		}
	}
	zero, one := newBucket(h.epoch, b.depth+1, int(b.rows)-ones, b.width), newBucket(h.epoch, b.depth+1, ones, b.width)
	b.pour(bit, &zero, &one)
	h.point(tag&^bit, zero)
	h.point(tag|bit, one)
	return *h.bucket(tag)
}

// pour puts the rows into other buckets, as a bit of their tags says.
func (b *bucket) pour(bit uint32, zero, one *bucket) {
	for i := range b.size() {
		switch tag, at := b.tag(i), b.at(i); {
		case at == 0:
		case tag&bit == 0:
			zero.add(tag, at, b.hint(i))
		default:
			one.add(tag, at, b.hint(i))
		}
	}
}

// double lets one more bit select the pointer.
func (h *hash) double() {
	list := make([]segment, 0, 2*len(h.segments))
	for _, s := range h.segments {
		for half := range 2 {
			var buckets [segmentSize]bucket
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

// sow fills an empty hash with items, whose order it changes. same is called with the places of items that have the same tag, hint
// to have the hints that go into the slots.
func (h *hash) sow(items []seedling, same func(a, b place), hint func(uint32) place) {
	if len(items) > 0 {
		h.begin()
		h.grow(items, 0, 0, same, hint)
	}
}

func (h *hash) grow(items []seedling, prefix uint32, depth uint16, same func(a, b place), hint func(uint32) place) {
	width := h.width()
	if len(items) > bucketWords/int(width)*3/4 { // room for some more before they are divided
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
	b := newBucket(h.epoch, depth, len(items), width)
	for _, it := range items {
		for i := b.find(b.home(it.hi), it.hi); i >= 0; i = b.find(b.after(i), it.hi) {
			same(b.at(i), it.at)
		}
		b.add(it.hi, it.at, hint(it.hint))
	}
	for h.depth < depth {
		h.double()
	}
	h.point(prefix, b)
}

package jwt

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/exchange"
)

// Bounds of the cache: sets*ways tokens, whose texts are at most sets*setBytes (32 MiB) together, with those of whom they stand for.
const (
	sets     = 4096
	ways     = 8
	setBytes = 8 << 10
)

// cache remembers tokens whose signatures were good, for all instances of the plugin. It saves what is the same each time: reading the
// token, checking the signature, and reading whom it stands for. It does not decide: who finds a token still looks whether its
// credential and the consumer are what they were, and whether the token's time has come or gone.
//
// It is a table of sets of a few tokens each, where a new one replaces one that was not asked for lately. So a flood of tokens that
// come once does not push out those in use, and a look-up takes no lock.
type cache struct {
	seed maphash.Seed
	sets [sets]cacheSet
}

type cacheSet struct {
	tags [ways]atomic.Uint32 // of what is in the ways: who looks for another token does not wait for the memory of theirs
	ways [ways]atomic.Pointer[verified]

	mu    sync.Mutex // held to change tags and ways
	hand  int        // the way to be judged next
	bytes int        // of the texts
}

// tag is the part of a hash that does not choose the set.
func tag(hash uint64) uint32 { return uint32(hash >> 32) }

// verified is a token with a good signature, and whom it stands for.
type verified struct {
	hash     uint64
	instance uint64 // whose settings led from the token to the credential
	text     string
	size     int // of all texts
	times    times
	used     atomic.Bool   // since the hand passed
	checked  atomic.Uint64 // index of a view in which both rows are these

	credential exchange.Credential
	consumer   entity.Consumer
	rows       rows
}

// rows are the versions of credential and consumer.
type rows struct{ credential, consumer version }

// version names one version of a row.
type version struct {
	id    state.ID
	index uint64
}

// holds tells whether the rows that the token was accepted by are those of the view. Any change of a row makes another version of it. A view that
// they were found in needs no second look: an index stands for one state of all rows.
func (v *verified) holds(i *instance, view *state.View) bool {
	if v.checked.Load() == view.Index() {
		return true
	}
	credential, ok := i.secrets.Get(view, v.rows.credential.id)
	if !ok || credential.Index != v.rows.credential.index {
		return false
	}
	consumer, ok := i.consumers.Get(view, v.rows.consumer.id)
	if !ok || consumer.Index != v.rows.consumer.index {
		return false
	}
	v.checked.Store(view.Index())
	return true
}

// texts are all strings of a token.
func (v *verified) texts() []*string {
	list := []*string{&v.text, &v.credential.ID, &v.credential.Identifier, &v.consumer.ID, &v.consumer.Username, &v.consumer.CustomID}
	for i := range v.consumer.Tags {
		list = append(list, &v.consumer.Tags[i])
	}
	return list
}

// keep gives the token memory of its own, its texts in one piece.
func (v *verified) keep() {
	v.consumer.Tags = slices.Clone(v.consumer.Tags)
	list := v.texts()
	var b strings.Builder
	b.Grow(v.size)
	for _, s := range list {
		b.WriteString(*s)
	}
	rest := b.String()
	for _, s := range list {
		*s, rest = rest[:len(*s)], rest[len(*s):]
	}
}

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

func (c *cache) hash(instance uint64, text string) uint64 {
	return maphash.String(c.seed, text) ^ instance*0x9e3779b97f4a7c15
}

// get finds a token; nil if it is not known.
func (c *cache) get(instance uint64, text string) *verified {
	h := c.hash(instance, text)
	s := &c.sets[h%sets]
	for i := range s.ways {
		if s.tags[i].Load() != tag(h) {
			continue
		}
		if v := s.ways[i].Load(); v != nil && v.hash == h && v.instance == instance && v.text == text {
			if !v.used.Load() { // not written each time: other processors read it
				v.used.Store(true)
			}
			return v
		}
	}
	return nil
}

// put remembers a token that was verified in a view, unless it is very long. It gets memory of its own.
func (c *cache) put(v *verified, view *state.View) {
	v.checked.Store(view.Index())
	for _, s := range v.texts() {
		v.size += len(*s)
	}
	if v.size > setBytes/2 {
		return
	}
	v.hash = c.hash(v.instance, v.text)
	v.keep()
	s := &c.sets[v.hash%sets]
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ways {
		if s.tags[i].Load() != tag(v.hash) {
			continue
		}
		if old := s.ways[i].Load(); old != nil && old.hash == v.hash && old.instance == v.instance && old.text == v.text {
			s.empty(i) // of earlier versions of the rows, or put in at the same moment
			s.hand = i
			break
		}
	}
	for placed := false; !placed; s.hand = (s.hand + 1) % ways {
		if old := s.ways[s.hand].Load(); old != nil && old.used.Swap(false) {
			continue
		}
		s.empty(s.hand)
		if placed = s.bytes+v.size <= setBytes; placed {
			s.ways[s.hand].Store(v)
			s.tags[s.hand].Store(tag(v.hash))
			s.bytes += v.size
		}
	}
}

func (s *cacheSet) empty(way int) {
	if old := s.ways[way].Swap(nil); old != nil {
		s.bytes -= old.size
	}
}

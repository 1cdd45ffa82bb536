package jwt

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	"concord/fsm/state"
)

// Bounds of the cache: sets*ways tokens, whose texts are at most sets*setBytes (32 MiB) together.
const (
	sets     = 4096
	ways     = 8
	setBytes = 8 << 10
)

// cache remembers tokens whose signatures were good, for all instances of the plugin. It saves what is the same each time: reading the
// token and checking the signature. It does not decide: who finds a token still looks whether its credential is the one that signed
// it, whether the token's time has come or gone, and who the consumer is.
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

// verified is a token with a good signature.
type verified struct {
	hash       uint64
	instance   uint64 // whose settings led from the token to the credential
	text       string
	credential state.ID
	version    uint64 // of the credential's row
	times      times
	used       atomic.Bool // since the hand passed
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

// put remembers a token, unless it is very long.
func (c *cache) put(instance uint64, text string, credential state.ID, version uint64, t times) {
	if len(text) > setBytes/2 {
		return
	}
	v := &verified{hash: c.hash(instance, text), instance: instance, text: strings.Clone(text), credential: credential, version: version, times: t}
	s := &c.sets[v.hash%sets]
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ways { // of an earlier version of the credential, or put in at the same moment
		if s.tags[i].Load() != tag(v.hash) {
			continue
		}
		if old := s.ways[i].Load(); old != nil && old.hash == v.hash && old.instance == instance && old.text == text {
			s.ways[i].Store(v)
			return
		}
	}
	for placed := false; !placed; s.hand = (s.hand + 1) % ways {
		way := &s.ways[s.hand]
		old := way.Load()
		if old != nil && old.used.Swap(false) {
			continue
		}
		if old != nil {
			s.bytes -= len(old.text)
			way.Store(nil)
		}
		if placed = s.bytes+len(text) <= setBytes; placed {
			way.Store(v)
			s.tags[s.hand].Store(tag(v.hash))
			s.bytes += len(text)
		}
	}
}

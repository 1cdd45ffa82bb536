package ratelimit

import (
	"encoding/binary"
	"errors"
)

// errExport says that bytes are not what Export has made.
var errExport = errors.New("ratelimit: not an export of counters")

// exported is the form of an export: the secret, then each counter as its id, list, start, length of the window and count; numbers are
// unsigned varints, so that all of it ends with the process it was made in and the one that imports it.
const exported = 1

// Export is all counters whose windows last at the time now, in Unix seconds, for the Import of a process that takes over from this one.
// It holds the secret of their keys: it is for that process only.
func (l *Local) Export(now int64) []byte {
	b := append([]byte{exported}, l.secret[:]...)
	for i := range l.shards {
		b = l.shards[i].export(b, now)
	}
	return b
}

func (s *shard) export(b []byte, now int64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for list := range uint32(lists) {
		for n := s.slots[list].prev; n != list; n = s.slots[n].prev { // those used last come last, and so first in the list that they are put in again
			c := &s.slots[n]
			if c.end <= now || c.start < 0 {
				continue
			}
			b = binary.LittleEndian.AppendUint64(b, c.id.hi)
			b = binary.LittleEndian.AppendUint64(b, c.id.lo)
			b = append(b, byte(list))
			b = binary.AppendUvarint(b, uint64(c.start))
			b = binary.AppendUvarint(b, uint64(c.end-c.start))
			b = binary.AppendUvarint(b, uint64(c.used))
		}
	}
	return b
}

// Import goes on with the counters of an Export, as many as there is room for. Nothing may have been counted before, nor may anything be
// counted meanwhile. After an error it is as if nothing had been imported.
func (l *Local) Import(b []byte) error {
	if len(b) < 1+len(l.secret) || b[0] != exported {
		return errExport
	}
	key, rest := secret(b[1:]), b[1+len(l.secret):]
	for pass := range 2 { // the first one only looks
		if pass == 1 {
			l.secret = key
		}
		for b := rest; len(b) > 0; {
			var c slot
			var ok bool
			if c, b, ok = readCounter(b); !ok {
				return errExport
			}
			if pass == 1 {
				l.shards[c.id.hi%shards].put(c)
			}
		}
	}
	return nil
}

func readCounter(b []byte) (c slot, rest []byte, ok bool) {
	if len(b) < 17 || b[16] >= lists {
		return c, nil, false
	}
	c.id = id{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
	c.list = uint32(b[16])
	b = b[17:]
	for _, to := range []*int64{&c.start, &c.end, &c.used} {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<62 {
			return c, nil, false
		}
		*to, b = int64(v), b[n:]
	}
	c.end += c.start
	return c, b, c.end > c.start
}

func (s *shard) put(c slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := uint32(len(s.slots))
	if _, twice := s.index[c.id]; twice || len(s.slots) >= s.max {
		return
	}
	s.slots = append(s.slots, c)
	s.index[c.id] = n
	s.link(n, c.list)
}

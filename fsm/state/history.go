package state

import (
	"encoding/binary"
	"slices"
)

// History is what one commit did, entry by entry of the log, where Changes is the net effect of all of them: how entries are put together to
// commits differs from node to node, what an entry did does not.
type History struct {
	Index  uint64 // of the commit's last entry
	Reset  bool   // everything may have changed: Writes is empty, read the view
	Writes []Write
}

// Write is the net effect of one entry on one row, in the order in which the entry first touched its rows.
type Write struct {
	Index    uint64 // of the entry
	Table    uint16
	ID       ID
	Old, New Image
}

// Image is a row as it was at some time. It keeps nothing else of the store alive.
type Image struct {
	row []byte
	d   *dict
}

// Exists is false where there was no row.
func (i Image) Exists() bool { return i.row != nil }

// Size is what the image takes, in bytes.
func (i Image) Size() int { return len(i.row) }

// Row is the row of an image that exists, without Val.
func (i Image) Row() AnyRow {
	var r record
	i.d.parse(i.row, &r)
	return AnyRow{ID: r.rowID(), Index: r.index, ExpiresAt: r.expires, Raw: r.appendRaw(nil)}
}

type follower struct {
	id     int
	tables []uint16
	f      func(History)
}

// Follow calls f after every commit with what it did to the rows of some tables, even if that is nothing. It holds what Subscribe says.
func (s *Store) Follow(tables []uint16, f func(History)) (cancel func()) {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	s.subNext++
	id := s.subNext
	s.follows = append(slices.Clip(s.follows), follower{id, tables, f})
	return func() {
		s.subMu.Lock()
		defer s.subMu.Unlock()
		s.follows = slices.DeleteFunc(slices.Clone(s.follows), func(x follower) bool { return x.id == id })
	}
}

func (s *Store) followers() []follower {
	s.subMu.Lock()
	defer s.subMu.Unlock()
	return s.follows
}

// mark is where the writes of an entry begin.
type mark struct {
	index uint64
	at    int
}

// Entry says that what is written from now on is the doing of an entry of the log.
func (tx *Tx) Entry(index uint64) { tx.marks = append(tx.marks, mark{index, len(tx.log)}) }

// written is what each follower is told.
func (tx *Tx) written(follows []follower) [][]Write {
	lists := make([][]Write, len(follows))
	if len(follows) == 0 {
		return lists
	}
	for i, m := range tx.marks {
		end := len(tx.log)
		if i+1 < len(tx.marks) {
			end = tx.marks[i+1].at
		}
		for n, w := range tx.net(m.at, end) {
			tx.yield(n)
			t := tx.work[w.slot]
			for f := range follows {
				if w.old != w.new && slices.Contains(follows[f].tables, t.m.def.Table) {
					lists[f] = append(lists[f], Write{Index: m.index, Table: t.m.def.Table, ID: w.id, Old: t.image(w.old), New: t.image(w.new)})
				}
			}
		}
	}
	return lists
}

// image copies the row at a place; none at 0.
func (t *table) image(at place) Image {
	if at == 0 {
		return Image{}
	}
	b := t.bytes(at)
	length, n := binary.Uvarint(b[idSize:])
	return Image{slices.Clone(b[:idSize+n+int(length)]), t.dict}
}

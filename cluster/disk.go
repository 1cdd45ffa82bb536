package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// backend is what disk wraps: raft-boltdb, or a faulty one in tests.
type backend interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// disk is raft's log and stable store with what the library leaves out:
//
//   - A checksum on every entry and value, because the file format has none for its content.
//   - A note about where the log ends, in the same transaction as the entries, so that a lost end is noticed.
//   - A deadline. raft goes on leading when a write hangs, and leads again after a failed fsync, when nobody knows what is on the
//     disk: one failed or stalled write ends the process here, and the others elect. A full disk ends the node's part in the cluster only (full.go).
type disk struct {
	path    string
	inner   backend
	fatal   func(error)
	applied func() uint64 // index that the machine has applied, hence is committed
	stall   time.Duration

	first, last atomic.Uint64
	noted       atomic.Uint64 // commit index in the note
	failed      atomic.Pointer[error]
	busy        atomic.Int64 // start of the write under way in Unix nanoseconds, 0: none
	writes      sync.Mutex   // raft writes log and votes from different goroutines
	stop        chan struct{}
	once        sync.Once
	silent      chan struct{} // closed when nobody hears this node any more
}

// noteIndex is the key of the note about the log's end. It lies behind every real index.
const noteIndex = math.MaxUint64

// noteEvery is how soon an idle node has noted that its newest entries are committed.
const noteEvery = time.Second

// note says where the log may end and how far it was known to be committed.
type note struct{ floor, last, applied uint64 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func entrySum(l *raft.Log) []byte {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, l.Data)
	sum = crc32.Update(sum, castagnoli, l.Extensions)
	return binary.BigEndian.AppendUint32(nil, sum)
}

func sealEntry(l *raft.Log) *raft.Log {
	c := *l
	c.Extensions = append(append(make([]byte, 0, len(l.Extensions)+4), l.Extensions...), entrySum(l)...)
	return &c
}

func (d *disk) damaged(what string) error {
	return fmt.Errorf("%s is damaged (%s): the node does not start on it; remove this node from the cluster (gwctl cluster remove), empty its prefix and let it join again, or restore the file", d.path, what)
}

// openEntry verifies and removes the checksum.
func (d *disk) openEntry(index uint64, l *raft.Log) error {
	n := len(l.Extensions) - 4
	if n < 0 {
		return d.damaged(fmt.Sprintf("log entry %d has no checksum", index))
	}
	sum := l.Extensions[n:]
	l.Extensions = l.Extensions[:n:n]
	if n == 0 {
		l.Extensions = nil
	}
	if l.Index != index || string(entrySum(l)) != string(sum) {
		return d.damaged(fmt.Sprintf("checksum of log entry %d", index))
	}
	return nil
}

// newDisk verifies all that the backend holds.
func newDisk(path string, inner backend, stall time.Duration, fatal func(error), applied func() uint64) (*disk, error) {
	d := &disk{path: path, inner: inner, fatal: fatal, applied: applied, stall: stall, stop: make(chan struct{}), silent: make(chan struct{})}
	if err := d.check(); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *disk) check() error {
	first, err := d.inner.FirstIndex()
	if err != nil {
		return d.damaged(err.Error())
	}
	end, err := d.inner.LastIndex()
	if err != nil {
		return d.damaged(err.Error())
	}
	if end == 0 {
		return nil // nothing was ever written
	}
	n, err := d.note()
	if err != nil {
		return err
	}
	if first == noteIndex {
		first = 0
	}
	var last uint64
	if first != 0 {
		for i := first; ; i++ {
			var l raft.Log
			err := d.inner.GetLog(i, &l)
			if errors.Is(err, raft.ErrLogNotFound) {
				break
			}
			if err != nil {
				return d.damaged(fmt.Sprintf("log entry %d: %v", i, err))
			}
			if err := d.openEntry(i, &l); err != nil {
				return err
			}
			last = i
		}
	}
	if last < n.floor || last > n.last {
		return d.damaged(fmt.Sprintf("the log ends at entry %d, it must end at %d", last, n.last))
	}
	d.first.Store(first)
	d.last.Store(last)
	return d.checkStable()
}

// checkStable looks at raft's own keys: term and last vote.
func (d *disk) checkStable() error {
	for _, key := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} {
		if _, err := d.Get([]byte(key)); err != nil && err.Error() != "not found" {
			return err
		}
	}
	return nil
}

func (d *disk) note() (note, error) {
	var l raft.Log
	if err := d.inner.GetLog(noteIndex, &l); err != nil {
		return note{}, d.damaged("the note about the log's end: " + err.Error())
	}
	if err := d.openEntry(noteIndex, &l); err != nil {
		return note{}, err
	}
	if len(l.Data) != 24 {
		return note{}, d.damaged("the note about the log's end")
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(l.Data[i:]) }
	return note{u(0), u(8), u(16)}, nil
}

func (d *disk) noteEntry(floor, last uint64) *raft.Log {
	applied := min(d.applied(), last)
	d.noted.Store(applied)
	var data []byte
	for _, v := range []uint64{floor, last, applied} {
		data = binary.BigEndian.AppendUint64(data, v)
	}
	return sealEntry(&raft.Log{Index: noteIndex, Type: raft.LogNoop, Data: data})
}

// known is the index up to which the log on disk was known to be committed when it was last written.
func (d *disk) known() (uint64, error) {
	if end, err := d.inner.LastIndex(); err != nil || end == 0 {
		return 0, err
	}
	n, err := d.note()
	return n.applied, err
}

func (d *disk) FirstIndex() (uint64, error) { return d.first.Load(), nil }
func (d *disk) LastIndex() (uint64, error)  { return d.last.Load(), nil }

func (d *disk) GetLog(index uint64, l *raft.Log) error {
	if index < d.first.Load() || index > d.last.Load() || index == 0 {
		return raft.ErrLogNotFound
	}
	if err := d.inner.GetLog(index, l); err != nil {
		return err
	}
	if err := d.openEntry(index, l); err != nil {
		d.fail(err) // it was sound when the node started: the disk changed under us
		return err
	}
	return nil
}

func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *disk) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	return d.write(func() error {
		first, last := d.first.Load(), d.last.Load()
		if last != 0 && logs[0].Index > last+1 {
			// A snapshot from the leader reaches beyond our log: what is before the gap is covered by it.
			if err := d.deleteRange(first, last); err != nil {
				return err
			}
			last = 0
		}
		sealed := make([]*raft.Log, 0, len(logs)+1)
		for _, l := range logs {
			sealed = append(sealed, sealEntry(l))
		}
		end := max(last, logs[len(logs)-1].Index)
		if err := d.inner.StoreLogs(append(sealed, d.noteEntry(end, end))); err != nil {
			return err
		}
		if last == 0 {
			d.first.Store(logs[0].Index)
		}
		d.last.Store(end)
		return nil
	})
}

func (d *disk) DeleteRange(lo, hi uint64) error {
	return d.write(func() error { return d.deleteRange(lo, hi) })
}

func (d *disk) deleteRange(lo, hi uint64) error {
	first, last := d.first.Load(), d.last.Load()
	if last == 0 || lo > last || hi < first {
		return nil
	}
	hi = min(hi, last)
	if hi < last { // compaction: the end stays
		if lo > first {
			return fmt.Errorf("deleting log entries %d to %d of %d to %d would leave a hole", lo, hi, first, last)
		}
		if err := d.inner.DeleteRange(first, hi); err != nil {
			return err
		}
		d.first.Store(hi + 1)
		return nil
	}
	// The end moves. Both ends are right while entries and note cannot be written in one transaction.
	end := lo - 1
	if lo <= first {
		lo, end = first, 0
	}
	if err := d.inner.StoreLog(d.noteEntry(end, last)); err != nil {
		return err
	}
	if err := d.inner.DeleteRange(lo, last); err != nil {
		return err
	}
	if err := d.inner.StoreLog(d.noteEntry(end, end)); err != nil {
		return err
	}
	d.last.Store(end)
	if end == 0 {
		d.first.Store(0)
	}
	return nil
}

// Set stores a term or a vote. raft panics when that fails. On a full disk, which does not end the process, it has to wait instead until
// nobody can hear it; then it may believe what it likes until it is shut down, which is soon. What is there already, as is the term when raft starts,
// needs no room.
func (d *disk) Set(key, value []byte) error {
	if old, err := d.Get(key); err == nil && bytes.Equal(old, value) {
		return nil
	}
	err := d.write(func() error {
		sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
		return d.inner.Set(key, binary.BigEndian.AppendUint32(append([]byte(nil), value...), sum))
	})
	if full(err) {
		select {
		case <-d.silent:
			return nil
		case <-time.After(hush):
		}
	}
	return err
}

func (d *disk) silence() { close(d.silent) }

func (d *disk) Get(key []byte) ([]byte, error) {
	b, err := d.inner.Get(key)
	if err != nil {
		return nil, err
	}
	n := len(b) - 4
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b[:n]) {
		return nil, d.damaged("checksum of " + string(key))
	}
	return b[:n], nil
}

func (d *disk) SetUint64(key []byte, v uint64) error {
	return d.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

func (d *disk) GetUint64(key []byte) (uint64, error) {
	b, err := d.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, d.damaged("value of " + string(key))
	}
	return binary.BigEndian.Uint64(b), nil
}

// write runs one write under the watch. After a failure nothing is written any more.
func (d *disk) write(f func() error) error {
	d.writes.Lock()
	defer d.writes.Unlock()
	if err := d.failed.Load(); err != nil {
		return *err
	}
	d.busy.Store(time.Now().UnixNano())
	err := f()
	d.busy.Store(0)
	if err != nil {
		err = fmt.Errorf("writing %s failed: %w", d.path, err)
		d.fail(err)
		return err
	}
	if err := d.failed.Load(); err != nil {
		return *err // it came back after it had been given up
	}
	return nil
}

func (d *disk) fail(err error) {
	if d.failed.CompareAndSwap(nil, &err) {
		d.fatal(err)
	}
}

// watch ends the process when a write stalls. It runs until close.
func (d *disk) watch() {
	tick := time.NewTicker(d.stall / 10)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
			if t := d.busy.Load(); t != 0 && time.Since(time.Unix(0, t)) > d.stall {
				d.fail(fmt.Errorf("writing %s stalls for more than %s: the disk hangs", d.path, d.stall))
			}
		}
	}
}

// keepNote writes down, while there is nothing else to write, how far the log is committed. It runs until close.
func (d *disk) keepNote() {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
			_ = d.writeNote() // a failed write has told Fatal already
		}
	}
}

func (d *disk) writeNote() error {
	last := d.last.Load()
	if last == 0 || min(d.applied(), last) == d.noted.Load() {
		return nil
	}
	return d.writable()
}

// writable finds out, by writing the note.
func (d *disk) writable() error {
	return d.write(func() error {
		last := d.last.Load()
		if last == 0 {
			return nil
		}
		return d.inner.StoreLog(d.noteEntry(last, last))
	})
}

func (d *disk) close() error {
	var err error
	d.once.Do(func() {
		close(d.stop)
		err = d.writeNote()
	})
	return errors.Join(err, d.inner.Close())
}

package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const boltLockWait = time.Second // another process holds the file: say so soon

// openBolt opens the log file. An existing one is verified first: what bbolt would answer with a panic, a fault or the silent use of
// an older state becomes an error that names the file.
// On a full disk it can only be read: noRoom says why.
func openBolt(path string) (b *raftboltdb.BoltStore, noRoom, err error) {
	info, err := os.Stat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	switch {
	case fresh:
	case err != nil:
		return nil, nil, err
	case info.Size() > 0:
		if err := verifyBolt(path); err != nil {
			return nil, nil, err
		}
	}
	b, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: boltLockWait}})
	switch {
	case fresh && err != nil:
		os.Remove(path) // the beginning of a file would be taken for a damaged one
	case full(err):
		noRoom = openError(path, err)
		b, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: boltLockWait, ReadOnly: true}})
	}
	if err != nil {
		return nil, nil, openError(path, errors.Join(err, noRoom))
	}
	return b, noRoom, nil
}

func openError(path string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%s is in use: another concord process runs with this prefix", path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func verifyBolt(path string) (err error) {
	d := &disk{path: path}
	if err := checkFile(path); err != nil {
		return d.damaged(err.Error())
	}
	// bbolt maps the file: a damaged page number becomes a fault in the goroutine that follows it.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = d.damaged(fmt.Sprint(p))
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: boltLockWait, ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return openError(path, err)
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		// First every page that is in use, here, where a fault can be caught; then bbolt's own check, in its goroutine.
		var size int
		err := tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error { size += len(k) + len(v); return nil })
		})
		if err != nil {
			return d.damaged(err.Error())
		}
		for e := range tx.Check() {
			err = errors.Join(err, e)
		}
		if err != nil {
			return d.damaged(err.Error())
		}
		return nil
	})
}

// checkFile reads what bbolt would map. Both meta pages must be sound: bbolt is content with one and then goes back one transaction, so an
// acknowledged write or a vote would be gone. (A page is written in one piece below a sector's size, so no crash explains a broken one.)
// And whatever a page in use refers to must lie where the page says: bbolt's own check follows such references in a goroutine of its own,
// where a fault cannot be caught.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const (
		metaSize, sumAt = 64, 56
		magic           = 0xED0CDAED
	)
	w := pageWalk{file: f, pageSize: int64(os.Getpagesize()), seen: map[uint64]bool{}}
	var newest, root uint64
	for i := range int64(2) {
		buf := make([]byte, pageHeader+metaSize)
		if _, err := f.ReadAt(buf, i*w.pageSize); err != nil && err != io.EOF {
			return err
		}
		m := buf[pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:sumAt])
		if binary.NativeEndian.Uint32(m) != magic || binary.NativeEndian.Uint64(m[sumAt:]) != sum.Sum64() {
			return fmt.Errorf("meta page %d", i)
		}
		w.pages = max(w.pages, binary.NativeEndian.Uint64(m[40:]))
		if tx := binary.NativeEndian.Uint64(m[48:]); tx >= newest {
			newest, root = tx, binary.NativeEndian.Uint64(m[16:])
		}
	}
	if need := int64(w.pages) * w.pageSize; info.Size() < need {
		return fmt.Errorf("%d bytes long, must be at least %d", info.Size(), need)
	}
	return w.page(root)
}

// The layout of bbolt's pages: a header (id, flags, count, overflow), then count elements, each of which gives the place of its key and
// value relative to itself.
const (
	pageHeader, pageElement     = 16, 16
	branchPage, leafPage        = 1, 2
	bucketElement, bucketHeader = 1, 16
)

type pageWalk struct {
	file     *os.File
	pageSize int64
	pages    uint64 // how many there are
	seen     map[uint64]bool
}

func (w *pageWalk) page(id uint64) error {
	if id < 2 || id >= w.pages {
		return fmt.Errorf("a reference to page %d of %d", id, w.pages)
	}
	if w.seen[id] {
		return fmt.Errorf("two references to page %d", id)
	}
	w.seen[id] = true
	buf := make([]byte, w.pageSize)
	if _, err := w.file.ReadAt(buf, int64(id)*w.pageSize); err != nil {
		return err
	}
	if got := binary.NativeEndian.Uint64(buf); got != id {
		return fmt.Errorf("page %d calls itself %d", id, got)
	}
	if more := uint64(binary.NativeEndian.Uint32(buf[12:])); more > 0 {
		if id+more >= w.pages {
			return fmt.Errorf("page %d ends behind the file", id)
		}
		rest := make([]byte, int64(more)*w.pageSize)
		if _, err := w.file.ReadAt(rest, int64(id+1)*w.pageSize); err != nil {
			return err
		}
		buf = append(buf, rest...)
	}
	if err := w.elements(buf); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements follows what a page, or the page within a small bucket, refers to.
func (w *pageWalk) elements(page []byte) error {
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if flags != branchPage && flags != leafPage {
		return fmt.Errorf("flags %#x", flags)
	}
	if pageHeader+count*pageElement > len(page) {
		return fmt.Errorf("%d elements", count)
	}
	for i := range count {
		rest := page[pageHeader+i*pageElement:]
		n := func(at int) uint64 { return uint64(binary.NativeEndian.Uint32(rest[at:])) }
		if flags == branchPage { // pos, ksize, page
			if n(0)+n(4) > uint64(len(rest)) {
				return fmt.Errorf("key %d lies outside", i)
			}
			if err := w.page(binary.NativeEndian.Uint64(rest[8:])); err != nil {
				return err
			}
			continue
		}
		kind, key, end := n(0), n(4), n(4)+n(8)+n(12) // flags, pos, ksize, vsize
		if key < pageElement || end > uint64(len(rest)) {
			return fmt.Errorf("entry %d lies outside", i)
		}
		if kind&bucketElement == 0 {
			continue
		}
		value := rest[key+n(8) : end]
		switch {
		case len(value) < bucketHeader:
			return fmt.Errorf("bucket %d has %d bytes", i, len(value))
		case binary.NativeEndian.Uint64(value) != 0:
			if err := w.page(binary.NativeEndian.Uint64(value)); err != nil {
				return err
			}
		case len(value) < bucketHeader+pageHeader:
			return fmt.Errorf("bucket %d has %d bytes", i, len(value))
		default:
			if err := w.elements(value[bucketHeader:]); err != nil {
				return err
			}
		}
	}
	return nil
}

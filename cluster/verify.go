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
func openBolt(path string) (*raftboltdb.BoltStore, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Size() > 0:
		if err := verifyBolt(path); err != nil {
			return nil, err
		}
	}
	b, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: boltLockWait}})
	if err != nil {
		return nil, openError(path, err)
	}
	return b, nil
}

func openError(path string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%s is in use: another concord process runs with this prefix", path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func verifyBolt(path string) (err error) {
	d := &disk{path: path}
	if err := checkMeta(path); err != nil {
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

// checkMeta demands that both of bbolt's meta pages are sound. bbolt is content with one and then goes back one transaction: an
// acknowledged write or a vote would be gone. A page is written in one piece below a sector's size, so no crash explains a broken one.
func checkMeta(path string) error {
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
		header, metaSize, sumAt = 16, 64, 56
		magic                   = 0xED0CDAED
	)
	pageSize := int64(os.Getpagesize())
	var pages uint64
	for i := range int64(2) {
		buf := make([]byte, header+metaSize)
		if _, err := f.ReadAt(buf, i*pageSize); err != nil && err != io.EOF {
			return err
		}
		m := buf[header:]
		sum := fnv.New64a()
		sum.Write(m[:sumAt])
		if binary.NativeEndian.Uint32(m) != magic || binary.NativeEndian.Uint64(m[sumAt:]) != sum.Sum64() {
			return fmt.Errorf("meta page %d", i)
		}
		pages = max(pages, binary.NativeEndian.Uint64(m[40:]))
	}
	if need := int64(pages) * pageSize; info.Size() < need {
		return fmt.Errorf("%d bytes long, must be at least %d", info.Size(), need)
	}
	return nil
}

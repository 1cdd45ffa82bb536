package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"concord/fsm"
	"concord/fsm/seal"
)

const (
	snapshotsDir = "snapshots"
	damagedDir   = "damaged"
)

// recovery brings the machine to the state on disk before raft starts: the newest sound snapshot, then the entries of the log that
// are known to be committed. raft alone would take an older snapshot for a damaged one without asking whether the log still
// reaches back to it, and would leave the machine at the snapshot until there is a leader.
type recovery struct {
	dir     string // of raft
	machine *machine
	log     *disk
	snaps   *raft.FileSnapshotStore
	trans   raft.Transport
	// fetch gives the leader's snapshot, for a node that lost its own.
	fetch func(ctx context.Context, use func(*raft.SnapshotMeta, io.Reader) error) error
}

func (r *recovery) run(ctx context.Context) error {
	reached, damaged, err := r.restore()
	if err != nil {
		return err
	}
	if first := r.log.first.Load(); len(damaged) > 0 && (first == 0 || first > reached+1) || first > reached+1 {
		if err := r.refetch(ctx, damaged); err != nil {
			return err
		}
	}
	if err := r.quarantine(damaged); err != nil {
		return err
	}
	return r.replay()
}

// restore loads the newest snapshot that is sound and returns its index, and the files of the newer ones that are not.
func (r *recovery) restore() (reached uint64, damaged []damage, err error) {
	names, err := r.names()
	if err != nil {
		return 0, nil, err
	}
	for _, name := range names {
		var term, index uint64
		if _, err := fmt.Sscanf(name, "%d-%d-", &term, &index); err == nil && index <= r.machine.index() {
			return index, damaged, nil // the machine has outlived a suspension: going back would be seen by requests
		}
		meta, err := r.load(name)
		if err == nil {
			return meta.Index, damaged, nil
		}
		var key *seal.MissingKeyError
		var level *fsm.LevelError
		file := filepath.Join(r.dir, snapshotsDir, name)
		if errors.As(err, &key) || errors.As(err, &level) {
			return 0, nil, fmt.Errorf("%s: %w", file, err) // sound, but not for this node
		}
		damaged = append(damaged, damage{file, err})
	}
	return 0, damaged, nil
}

// damage is a snapshot that cannot be used, and why.
type damage struct {
	path string
	err  error
}

func (d damage) String() string { return fmt.Sprintf("%s: %v", d.path, d.err) }

// names lists the snapshots, newest first: raft's own listing leaves out those whose description is damaged.
func (r *recovery) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, snapshotsDir))
	if err != nil {
		return nil, err
	}
	type snap struct {
		name        string
		term, index uint64
	}
	var list []snap
	for _, e := range entries {
		path := filepath.Join(r.dir, snapshotsDir, e.Name())
		if strings.HasSuffix(e.Name(), ".tmp") { // cut off while it was written
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
			continue
		}
		s := snap{name: e.Name()}
		var ms int64
		if _, err := fmt.Sscanf(e.Name(), "%d-%d-%d", &s.term, &s.index, &ms); err == nil && e.IsDir() {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b snap) int {
		return cmp.Or(cmp.Compare(b.index, a.index), cmp.Compare(b.term, a.term))
	})
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.name
	}
	return names, nil
}

func (r *recovery) load(name string) (*raft.SnapshotMeta, error) {
	meta, body, err := r.snaps.Open(name) // compares the checksum
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if !strings.HasPrefix(name, fmt.Sprintf("%d-%d-", meta.Term, meta.Index)) {
		return nil, errors.New("its description is of another snapshot")
	}
	if err := r.machine.Machine.Restore(body); err != nil {
		return nil, err
	}
	r.machine.move(r.machine.Store().View().Index())
	return meta, nil
}

// refetch replaces lost snapshots by the leader's. The log and the votes stay: the node goes on as the voter it was.
func (r *recovery) refetch(ctx context.Context, damaged []damage) error {
	what := fmt.Sprintf("%s holds no snapshot that reaches to log entry %d", filepath.Join(r.dir, snapshotsDir), r.log.first.Load())
	if len(damaged) > 0 {
		what = fmt.Sprint("damaged snapshot ", damaged)
	}
	err := r.fetch(ctx, func(meta *raft.SnapshotMeta, body io.Reader) error {
		if first := r.log.first.Load(); first > meta.Index+1 {
			return fmt.Errorf("the leader's snapshot ends at %d, the log here begins at %d", meta.Index, first)
		}
		sink, err := r.snaps.Create(raft.SnapshotVersionMax, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, r.trans)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(sink, body, meta.Size); err != nil {
			return errors.Join(err, sink.Cancel())
		}
		if err := sink.Close(); err != nil {
			return err
		}
		if _, err := r.load(sink.ID()); err != nil {
			return err
		}
		if first, last := r.log.first.Load(), r.log.last.Load(); last != 0 && last < meta.Index {
			return r.log.DeleteRange(first, last)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s; it could not be fetched from the leader either: %w. Start the node when a majority of the others runs, or remove it from the cluster, empty its prefix and let it join again", what, err)
	}
	return nil
}

// quarantine keeps damaged snapshots for whoever wants to know why, out of raft's sight.
func (r *recovery) quarantine(damaged []damage) error {
	for _, d := range damaged {
		to := filepath.Join(r.dir, damagedDir)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		err := os.Rename(d.path, filepath.Join(to, filepath.Base(d.path)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // raft may have reaped it
			return err
		}
	}
	return nil
}

// replay applies what the log holds and was known to be committed, so that a node serves its configuration before, or without,
// a leader.
func (r *recovery) replay() error {
	known, err := r.log.known()
	if err != nil {
		return err
	}
	var batch []*raft.Log
	flush := func() {
		r.machine.ApplyBatch(batch)
		batch = batch[:0]
	}
	for i := max(r.machine.index()+1, r.log.first.Load()); i <= min(known, r.log.last.Load()); i++ {
		l := new(raft.Log)
		if err := r.log.GetLog(i, l); err != nil {
			return err
		}
		if batch = append(batch, l); len(batch) == 512 {
			flush()
		}
	}
	flush()
	return r.machine.Machine.Fatal()
}

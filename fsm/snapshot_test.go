package fsm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/command"
	"concord/fsm/seal"
	"concord/fsm/state"
)

var update = flag.Bool("update", false, "rewrite golden files")

// full is a machine with something in every part of a snapshot.
func full(t testing.TB) *Machine {
	m := world(t)
	p := row(t, keys, 23, obj{"key": "k-23", "owner": ref(12)})
	p.Expires = 1_700_000_000_000
	c := txnOf(p)
	c.RequestID, c.LeaderTime, c.Actor = [16]byte{7}, 1_600_000_000_000, "admin"
	do(m, c)
	do(m, command.Command{RequestID: [16]byte{8}, Op: command.Noop{}})
	return m
}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, m := range map[string]*Machine{"full": full(t), "staged": staged(t), "empty": machine(t)} {
		data := snapshot(t, m)
		fresh := world(t) // with something to replace
		var told []state.Changes
		fresh.Store().Subscribe(func(c state.Changes) { told = append(told, c) })
		if err := fresh.Restore(iotest.OneByteReader(bytes.NewReader(data))); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(data, snapshot(t, fresh)) {
			t.Errorf("%s: the restored machine writes another snapshot", name)
		}
		index := m.Store().View().Index()
		if want := []state.Changes{{Index: index, Reset: true}}; !cmp.Equal(want, told) {
			t.Errorf("%s: subscribers were told %v", name, told)
		}
		if fresh.LeaderTime() != m.LeaderTime() || fresh.Level() != m.Level() || fresh.Store().View().Index() != index {
			t.Errorf("%s: header: time %d, level %d", name, fresh.LeaderTime(), fresh.Level())
		}
		// The indexes and the remembered requests are back as well: both go on alike.
		for _, x := range []*Machine{m, fresh} {
			do(x, txnOf(row(t, teams, 3, obj{"name": "red"})))
			do(x, txnOf(drop(owners, 11)))
			do(x, command.Command{RequestID: [16]byte{8}, Op: command.Txn{Puts: []command.Put{drop(teams, 2)}}})
			do(x, command.Command{Level: 2, Op: command.Commit{ID: [16]byte{1}, Pieces: 2}})
			do(x, command.Command{LeaderTime: 1_800_000_000_000, Op: command.ExpireBefore{T: 1_800_000_000_000, Limit: 5}})
		}
		if !bytes.Equal(snapshot(t, m), snapshot(t, fresh)) {
			t.Errorf("%s: the machines part after the restore", name)
		}
		h1, _ := m.Hash(m.Store().View())
		if h2, _ := fresh.Hash(fresh.Store().View()); h1 != h2 || !bytes.HasSuffix(snapshot(t, m), h1[:]) {
			t.Errorf("%s: hashes %x and %x", name, h1, h2)
		}
	}
}

// The snapshot is of the view, whatever was applied since: also its request ids, for the log behind it will be applied again.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	m := full(t)
	v, want := m.Store().View(), snapshot(t, m)
	c := txnOf(row(t, teams, 3, obj{"name": "later"}))
	c.RequestID, c.LeaderTime = [16]byte{77}, 1_900_000_000_000
	do(m, c)
	do(m, txnOf(drop(owners, 11)))
	var b bytes.Buffer
	if err := m.Persist(v, &b); err != nil || !bytes.Equal(want, b.Bytes()) {
		t.Errorf("the snapshot of an old view changed: %v", err)
	}
}

func TestSnapshotDamage(t *testing.T) {
	m := full(t)
	good := snapshot(t, m)
	victim := world(t)
	before := snapshot(t, victim)
	refused := func(name string, data []byte) error {
		t.Helper()
		err := victim.Restore(bytes.NewReader(data))
		if !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: error %v", name, err)
		}
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		bad := bytes.Clone(good)
		bit := random.IntN(8 * len(bad))
		bad[bit/8] ^= 1 << (bit % 8)
		refused("flipped bit", bad)
	}
	for n := range good {
		refused("truncated", good[:n])
	}
	refused("longer", append(bytes.Clone(good), 0))
	refused("twice", append(bytes.Clone(good), good...))
	if !bytes.Equal(before, snapshot(t, victim)) {
		t.Error("a refused snapshot changed the machine")
	}
	err := refused("cut in a table", good[:len(good)/2])
	for _, part := range []string{"SHA-256 does not match", "table keys: row 3 of 3"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	boom := errors.New("boom")
	if err := victim.Restore(io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(boom))); !errors.Is(err, boom) {
		t.Errorf("read error became %v", err)
	}
	if err := m.Persist(m.Store().View(), failing{boom}); !errors.Is(err, boom) {
		t.Errorf("write error became %v", err)
	}
}

type failing struct{ error }

func (f failing) Write([]byte) (int, error) { return 0, f.error }

// An intact snapshot that this node cannot use is not called corrupt: the file is fine.
func TestSnapshotOfAnotherNode(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
		is   func(error) bool
		text string
	}{
		{"missing key", snapshot(t, full(t)), as[*seal.MissingKeyError], `row is sealed with key "k1"`},
		{"level", signed(snapshotMagic, "\x01", "\x05", "\x05\x00\x00\x00"), as[*LevelError], "needs cluster level 5"},
		{"format", signed(snapshotMagic, "\x03"), nil, "has format 3, this binary reads up to 2"},
		{"table", signed(snapshotMagic, "\x01", "\x01", "\x05\x00", "\x01\x4d\x01"), nil, "table 77, which this binary does not know"},
	} {
		other, err := seal.New("k2", map[string][]byte{"k2": make([]byte, seal.KeySize)})
		if err != nil {
			t.Fatal(err)
		}
		m := New(Options{Defs: defs(), Keys: other})
		err = m.Restore(bytes.NewReader(c.data))
		if err == nil || errors.Is(err, ErrSnapshot) || c.is != nil && !c.is(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// signed is a snapshot made by hand, with a checksum that matches.
func signed(parts ...string) []byte {
	body := []byte(strings.Join(parts, ""))
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}

// Snapshots of every format ever released are read for ever: a new format adds a directory and changes none.
func TestSnapshotGolden(t *testing.T) {
	for version, made := range map[string]func(testing.TB) *Machine{"v1": full, "v2": staged} {
		path := filepath.Join("testdata", "snapshots", version, "full.snap")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, snapshot(t, made(t)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := machine(t)
		if err := m.Restore(bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(names(made(t)), names(m)); diff != "" {
			t.Errorf("%s: rows (-want +got):\n%s", version, diff)
		}
		if m.Staged() != made(t).Staged() {
			t.Errorf("%s: %d bytes are staged", version, m.Staged())
		}
		if !bytes.Equal(want, snapshot(t, made(t))) {
			t.Errorf("%s: the same log writes other bytes than before: nodes of two versions would not compare equal", version)
		}
	}
}

// No clear text of a sealed field is in a snapshot.
func TestSnapshotHoldsNoSecret(t *testing.T) {
	data := snapshot(t, full(t))
	for _, s := range []string{"k-21", "k-22", "k-23"} {
		if bytes.Contains(data, []byte(s)) {
			t.Errorf("the snapshot holds %q", s)
		}
	}
	if !bytes.Contains(data, []byte("hall")) {
		t.Error("the snapshot does not hold its open fields: the test looks at nothing")
	}
}

func FuzzRestore(f *testing.F) {
	f.Add(snapshot(f, full(f)))
	f.Add(snapshot(f, staged(f)))
	f.Add(signed(snapshotMagic, "\x01", "\x01", "\x05\x00", "\x01\x04\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := machine(t)
		for _, in := range [][]byte{data, signed(string(data))} { // signed: past the checksum, into the parser
			if err := m.Restore(bytes.NewReader(in)); err == nil {
				again := machine(t)
				if err := again.Restore(bytes.NewReader(snapshot(t, m))); err != nil {
					t.Errorf("what was restored does not persist: %v", err)
				}
			}
		}
	})
}

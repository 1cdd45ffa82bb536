package command

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

func samples() map[string]Command {
	id := [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	return map[string]Command{
		"txn": {Level: 1, RequestID: [16]byte{15: 9}, LeaderTime: 1_700_000_000_123, Actor: "admin\xff", Op: Txn{Puts: []Put{
			{Table: 1, ID: id, IfIndex: 77, Expires: 1_800_000_000_000, Raw: []byte(`{"id":"x"}`)},
			{Table: 0xffff, ID: id, IfIndex: IfAbsent},
			{Table: 2, ID: id, Raw: []byte{}},
		}}},
		"expire_before": {Level: 1, LeaderTime: 5, Op: ExpireBefore{T: 1_700_000_000_000, Limit: 1000}},
		"set_level":     {Level: 1, Op: SetLevel{Level: 3}},
		"noop":          {Op: Noop{}},
		"stage":         {Level: 2, LeaderTime: 7, Op: Stage{ID: id, Seq: 3, Puts: []Put{{Table: 1, ID: id, Raw: []byte(`{"id":"x"}`)}, {Table: 2, ID: id}}}},
		"trim_audit":    {Level: 4, LeaderTime: 8, Op: TrimAudit{First: 1 << 40, Limit: 1000}},
		"commit":        {Level: 2, RequestID: [16]byte{15: 9}, Op: Commit{ID: id, Pieces: 4}},
	}
}

// The bytes are for ever: a log written by any version is read by all later ones.
func TestGolden(t *testing.T) {
	for name, c := range samples() {
		path := filepath.Join("testdata", "v1", name+".hex")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.EncodeToString(Encode(c))+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if got := Encode(c); !bytes.Equal(got, want) {
			t.Errorf("%s: encoded as\n%x, want\n%x", name, got, want)
		}
		if got, err := Decode(want); err != nil || !cmp.Equal(c, got) {
			t.Errorf("%s: decoded %v\n%s", name, err, cmp.Diff(c, got))
		}
	}
}

func TestNoOpIsNoop(t *testing.T) {
	if got, err := Decode(Encode(Command{})); err != nil || got.Op != (Noop{}) {
		t.Errorf("%v %v", got, err)
	}
}

func TestDamage(t *testing.T) {
	for name, c := range samples() {
		good := Encode(c)
		for bit := range 8 * len(good) {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := Decode(bad); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: bit %d flipped: %v", name, bit, err)
			}
		}
		for n := range good {
			if _, err := Decode(good[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: cut to %d bytes: %v", name, n, err)
			}
		}
	}
}

// signed puts a matching checksum behind hand-made protobuf.
func signed(body string) []byte {
	sum := crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli))
	return append([]byte(body), 0x7d, byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24))
}

func TestUnknownIsNotSkipped(t *testing.T) {
	for _, c := range []struct {
		name, body string
		is         error
		level      uint32
	}{
		{"field of the command", "\x08\x07\x42\x00\x68\x01", ErrUnknown, 7},
		{"op", "\x08\x07\x72\x00", ErrUnknown, 7},
		{"field of an op", "\x08\x07\x42\x02\x08\x01", ErrUnknown, 7},
		{"field of a put", "\x08\x07\x2a\x16\x0a\x14\x12\x10" + strings.Repeat("i", 16) + "\x30\x01", ErrUnknown, 7},
		{"no op", "\x08\x07", ErrUnknown, 7},
		{"short id", "\x2a\x05\x0a\x03\x12\x01i", ErrCorrupt, 0},
		{"short stage id", "\x4a\x03\x0a\x01i", ErrCorrupt, 0},
		{"no stage id", "\x52\x00", ErrCorrupt, 0},
		{"field of a commit", "\x08\x07\x52\x14\x0a\x10" + strings.Repeat("i", 16) + "\x18\x01", ErrUnknown, 7},
		{"short request id", "\x12\x01r\x42\x00", ErrCorrupt, 0},
		{"no protobuf", "\xff\xff", ErrCorrupt, 0},
	} {
		if got, err := Decode(signed(c.body)); !errors.Is(err, c.is) || got.Level != c.level {
			t.Errorf("%s: level %d, error %v", c.name, got.Level, err)
		}
	}
}

func TestEncodeRefusesPointers(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a pointer to an op is encoded as something")
		}
	}()
	Encode(Command{Op: &Txn{}})
}

func FuzzDecode(f *testing.F) {
	for _, c := range samples() {
		data := Encode(c)
		f.Add(data)
		f.Add(data[:len(data)-5])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range [][]byte{data, signed(string(data))} { // signed: past the checksum
			c, err := Decode(in)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknown) {
					t.Errorf("error of no kind: %v", err)
				}
				continue
			}
			if again, err := Decode(Encode(c)); err != nil || !cmp.Equal(c, again) {
				t.Errorf("decoded, encoded and decoded: %v\n%s", err, cmp.Diff(c, again))
			}
		}
	})
}

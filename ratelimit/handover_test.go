package ratelimit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestSip compares with the vectors of SipHash's authors (key 00 01 … 0f, message 00 01 …).
func TestSip(t *testing.T) {
	var k secret
	for i := range k {
		k[i] = byte(i)
	}
	for n, want := range map[int]string{
		0: "a3817f04ba25a8e66df67214c7550293",
		1: "da87c1d86b99af44347659119b22fc45",
		7: "a1f1ebbed8dbc153c0b84aa61ff08239",
		8: "3b62a9ba6258f5610f83e264f31497b4",
	} {
		var message string
		for i := range n {
			message += string(rune(i))
		}
		whole := n / 8 * 8
		got := newSip(&k).text(message[:whole]).end(uint64(n)<<56 | tail(message[whole:]))
		var b [16]byte
		for i := range 8 {
			b[i], b[8+i] = byte(got.lo>>(8*i)), byte(got.hi>>(8*i))
		}
		if hex.EncodeToString(b[:]) != want {
			t.Errorf("%d bytes: %x, want %s", n, b, want)
		}
	}
}

// TestHandOver: whoever takes over decides as the one before would have, in all windows; and so does the one after it.
func TestHandOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := noon
		limits := []Limit{{Second, 2}, {Hour, 5}, {Year, 9}}
		one, other := NewLocal(Options{}), NewLocal(Options{})
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 300, 1000, 3_601_000}).Draw(t, "ms")) * time.Millisecond)
			if rapid.IntRange(0, 9).Draw(t, "upgrade") == 0 {
				next := NewLocal(Options{})
				if err := next.Import(other.Export(now.Unix())); err != nil {
					t.Fatal(err)
				}
				other = next
			}
			id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id")
			if diff := cmp.Diff(take(one, now, id, limits...), take(other, now, id, limits...)); diff != "" {
				t.Fatalf("at %v: %s", now, diff)
			}
		}
		other.check(t)
	})
}

// TestHandOverRoom: with less room than before, what was used last stays, and nothing breaks.
func TestHandOverRoom(t *testing.T) {
	l := NewLocal(Options{})
	for i := range 3 * smallest {
		take(l, noon, fmt.Sprint(i), Limit{Day, 5})
	}
	b := l.Export(noon.Unix())
	s := small()
	if err := s.Import(b); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats(); n.Counters > smallest || n.Counters < smallest/2 {
		t.Errorf("%+v", n)
	}
	s.check(t)
	if d := take(s, noon, "new", Limit{Day, 5}); !d.Admitted {
		t.Error("a new key is refused")
	}
	if later := l.Export(noon.AddDate(0, 0, 2).Unix()); len(later) != 17 {
		t.Errorf("windows that are over take %d bytes", len(later))
	}
}

func FuzzImport(f *testing.F) {
	l := NewLocal(Options{MaxBytes: 1})
	for i := range 5 {
		take(l, noon, fmt.Sprint(i), Limit{Hour, 2}, Limit{Year, 1})
	}
	f.Add(l.Export(noon.Unix()))
	f.Add([]byte{exported})
	f.Add(bytes.Repeat([]byte{exported, 0xff}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := small()
		before := l.secret
		if err := l.Import(b); err != nil && (l.secret != before || l.Stats().Counters != 0) {
			t.Error("something was imported in spite of the error")
		}
		l.check(t)
		take(l, noon, "a", Limit{Hour, 2})
		l.check(t)
	})
}

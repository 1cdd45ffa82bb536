package ratelimit

import (
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// noon is the start of a window of all periods up to the day's half.
var noon = time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)

func take(l *Local, at time.Time, id string, limits ...Limit) Decision {
	var d Decision
	if err := l.Take(at, Key{Scope: "s", ID: id}, limits, &d); err != nil {
		panic(err)
	}
	return d
}

// used are the counts of a decision about n limits.
func used(d Decision, n int) (list []int64) {
	for _, u := range d.Usage[:n] {
		list = append(list, u.Used)
	}
	return list
}

func TestTake(t *testing.T) {
	l := NewLocal(Options{})
	limits := []Limit{{Minute, 3}, {Hour, 5}}
	for _, c := range []struct {
		name     string
		at       time.Time
		id       string
		admitted bool
		used     []int64
	}{
		{"first", noon, "a", true, []int64{1, 1}},
		{"second", noon.Add(time.Second), "a", true, []int64{2, 2}},
		{"another key", noon.Add(time.Second), "b", true, []int64{1, 1}},
		{"third", noon.Add(58 * time.Second), "a", true, []int64{3, 3}},
		{"the minute is full", noon.Add(59 * time.Second), "a", false, []int64{3, 3}},
		{"and what was refused counts nowhere", noon.Add(59*time.Second + 999*time.Millisecond), "a", false, []int64{3, 3}},
		{"the next minute", noon.Add(60 * time.Second), "a", true, []int64{1, 4}},
		{"a request from before it, decided late, counts in it", noon.Add(59 * time.Second), "a", true, []int64{2, 5}},
		{"the hour is full", noon.Add(61 * time.Second), "a", false, []int64{2, 5}},
		{"also in a minute without requests", noon.Add(30 * time.Minute), "a", false, []int64{0, 5}},
		{"the next hour", noon.Add(time.Hour), "a", true, []int64{1, 1}},
		{"the clock was set back", noon.Add(-time.Hour), "a", true, []int64{1, 1}},
		{"the other key was never touched", noon.Add(30 * time.Second), "b", true, []int64{2, 2}},
	} {
		d := take(l, c.at, c.id, limits...)
		if d.Admitted != c.admitted || !cmp.Equal(used(d, 2), c.used) {
			t.Errorf("%s: %v %v, want %v %v", c.name, d.Admitted, used(d, 2), c.admitted, c.used)
		}
	}
}

// TestKeys: every part of a key counts.
func TestKeys(t *testing.T) {
	l := NewLocal(Options{})
	for _, k := range []Key{{"s", 1, "a"}, {"s", 2, "a"}, {"t", 1, "a"}, {"s", 1, "b"}, {"sa", 1, ""}, {"", 1, "sa"}} {
		for range 2 {
			var d Decision
			if err := l.Take(noon, k, []Limit{{Day, 2}}, &d); err != nil || !d.Admitted {
				t.Errorf("%v: %v %v", k, d.Admitted, err)
			}
		}
	}
}

// TestLimitsChange: counts belong to keys, not to limits, so a changed configuration goes on where the old one was.
func TestLimitsChange(t *testing.T) {
	l := NewLocal(Options{})
	for range 3 {
		take(l, noon, "a", Limit{Hour, 3})
	}
	for _, c := range []struct {
		name     string
		limits   []Limit
		admitted bool
		used     []int64
	}{
		{"full", []Limit{{Hour, 3}}, false, []int64{3}},
		{"a higher limit", []Limit{{Hour, 5}}, true, []int64{4}},
		{"one more period", []Limit{{Minute, 9}, {Hour, 5}}, true, []int64{1, 5}},
		{"a lower limit", []Limit{{Minute, 9}, {Hour, 2}}, false, []int64{1, 5}},
		{"without it", []Limit{{Minute, 9}}, true, []int64{2}},
	} {
		d := take(l, noon, "a", c.limits...)
		if n := len(c.limits); d.Admitted != c.admitted || !cmp.Equal(used(d, n), c.used) {
			t.Errorf("%s: %v %v, want %v %v", c.name, d.Admitted, used(d, n), c.admitted, c.used)
		}
	}
}

// TestModel: as long as there is room, Local decides as the plainest possible implementation does.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLocal(Options{})
		type window struct {
			id     string
			period Period
			start  int64
		}
		model := map[window]int64{}
		now := noon.Add(time.Duration(rapid.IntRange(0, 400*86400).Draw(t, "start")) * time.Second)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 0, 300, 1000, 61_000, 3_601_000, 30 * 86_400_000}).Draw(t, "ms")) * time.Millisecond)
			id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id")
			var limits []Limit
			for p := range Period(Periods) {
				if rapid.Bool().Draw(t, p.String()) {
					limits = append(limits, Limit{p, rapid.Int64Range(1, 6).Draw(t, "max")})
				}
			}
			want := Decision{Admitted: true}
			for i, lim := range limits {
				start, _ := lim.Period.Window(now.Unix())
				u := Usage{model[window{id, lim.Period, start}], start}
				want.Admitted = want.Admitted && u.Used < lim.Max
				want.Usage[i] = u
			}
			for i, lim := range limits {
				if want.Admitted {
					want.Usage[i].Used++
					model[window{id, lim.Period, want.Usage[i].Start}]++
				}
			}
			if diff := cmp.Diff(want, take(l, now, id, limits...)); diff != "" {
				t.Fatalf("%s at %v, limits %v: %s", id, now, limits, diff)
			}
		}
		l.check(t)
	})
}

// check looks at the lists and the index of all shards.
func (l *Local) check(t interface{ Fatalf(string, ...any) }) {
	for i := range l.shards {
		s := &l.shards[i]
		n := 0
		for list := range uint32(lists) {
			length := 0
			for at := s.slots[list].next; at != list; at = s.slots[at].next {
				c := &s.slots[at]
				if s.index[c.id] != at || c.list != list || s.slots[c.next].prev != at {
					t.Fatalf("shard %d: slot %d %+v in list %d, index %d", i, at, *c, list, s.index[c.id])
				}
				length++
			}
			if length != s.size[list] {
				t.Fatalf("shard %d: list %d has %d counters, not %d", i, list, length, s.size[list])
			}
			n += length
		}
		if n != len(s.index) || len(s.slots) > s.max || n > len(s.slots)-lists {
			t.Fatalf("shard %d: %d counters in lists, %d in the index, %d of %d slots", i, n, len(s.index), len(s.slots), s.max)
		}
	}
}

// TestConcurrent: however many ask at once, exactly as many pass as may.
func TestConcurrent(t *testing.T) {
	const workers, each = 64, 400
	l := NewLocal(Options{})
	for _, limits := range [][]Limit{{{Minute, 1000}}, {{Second, 1200}, {Hour, 1000}, {Year, 5000}}} {
		key := Key{Scope: fmt.Sprint(limits), ID: "hot"}
		var admitted atomic.Int64
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					var d, other Decision
					if l.Take(noon, key, limits, &d); d.Admitted {
						admitted.Add(1)
					}
					l.Take(noon, Key{Scope: "cold", ID: strconv.Itoa(w*each + i)}, limits, &other)
				}
			})
		}
		wg.Wait()
		if n := admitted.Load(); n != 1000 {
			t.Errorf("%v: %d of %d requests passed, want exactly 1000", limits, n, workers*each)
		}
	}
	l.check(t)
}

// small has as little memory as possible.
func small() *Local { return NewLocal(Options{MaxBytes: 1}) }

const smallest = shards * minPerShard

// TestFloodKeepsFullKeys: a flood of new keys neither takes more memory than allowed nor makes a key forget that it is at its
// limit.
func TestFloodKeepsFullKeys(t *testing.T) {
	l := small()
	full := []Limit{{Month, 1}}
	for i := range 100 {
		take(l, noon, fmt.Sprint("full ", i), full...)
	}
	for i := range 100_000 {
		if !take(l, noon, fmt.Sprint("spoofed ", i), Limit{Minute, 10}, Limit{Day, 100}).Admitted {
			t.Fatalf("a new key is refused")
		}
	}
	for i := range 100 {
		if take(l, noon.Add(time.Hour), fmt.Sprint("full ", i), full...).Admitted {
			t.Errorf("full key %d passes again", i)
		}
	}
	n := l.Stats()
	if n.Counters > smallest || n.Evicted == 0 || n.Forgotten != 0 {
		t.Errorf("%+v, at most %d counters", n, smallest)
	}
	l.check(t)
}

// TestFloodPushesOutItsOwnKind: counters of other periods stay while one period is flooded, and of that one those in use.
func TestFloodPushesOutItsOwnKind(t *testing.T) {
	l := small()
	take(l, noon, "monthly", Limit{Month, 100})
	for i := range 50_000 {
		take(l, noon, fmt.Sprint("spoofed ", i), Limit{Hour, 10})
		if i%10 == 0 {
			take(l, noon, "busy", Limit{Hour, 1_000_000})
		}
	}
	if d := take(l, noon, "monthly", Limit{Month, 100}); d.Usage[0].Used != 2 {
		t.Errorf("monthly: %d used, want 2", d.Usage[0].Used)
	}
	if d := take(l, noon, "busy", Limit{Hour, 1_000_000}); d.Usage[0].Used != 5001 {
		t.Errorf("busy: %d used, want 5001", d.Usage[0].Used)
	}
	l.check(t)
}

// TestFloodOfFullKeys: only when all counters are at their limit one of them is forgotten.
func TestFloodOfFullKeys(t *testing.T) {
	l := small()
	for i := range 3 * smallest {
		take(l, noon, fmt.Sprint(i), Limit{Year, 1})
	}
	if n := l.Stats(); n.Counters > smallest || n.Forgotten == 0 || n.Forgotten != n.Evicted {
		t.Errorf("%+v", n)
	}
	// Keys with several periods need several counters: none may take the place of another of the same key.
	for i := range smallest {
		limits := []Limit{{Second, 1}, {Minute, 2}, {Hour, 3}, {Day, 4}, {Month, 5}, {Year, 6}}
		d := take(l, noon.Add(time.Minute), fmt.Sprint("six ", i), limits...)
		if d.Admitted && take(l, noon.Add(time.Minute), fmt.Sprint("six ", i), limits...).Admitted {
			t.Fatal("a key forgot itself")
		}
	}
	l.check(t)
}

// TestReuse: counters whose window is over make room for new ones before memory grows.
func TestReuse(t *testing.T) {
	l := NewLocal(Options{})
	for minute := range 20 {
		for i := range 2000 {
			take(l, noon.Add(time.Duration(minute)*time.Minute), fmt.Sprint(minute, " ", i), Limit{Minute, 5})
		}
	}
	// Keys fall into shards by chance, so some shards have had a few more in one minute than in another.
	if n := l.Stats(); n.Counters > 4000 || n.Evicted != 0 {
		t.Errorf("%+v after 20 minutes with 2000 keys each", n)
	}
	l.check(t)
}

// TestMemory: a flood of keys stays within the cap.
func TestMemory(t *testing.T) {
	const limit = 16 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	l := NewLocal(Options{MaxBytes: limit})
	worst := uint64(0)
	for i := range 400_000 {
		take(l, noon, strconv.Itoa(i), Limit{Hour, 10})
		if i%20_000 == 0 {
			if now := heap(); now > before { // what earlier tests left may go meanwhile
				worst = max(worst, now-before)
			}
		}
	}
	n := l.Stats()
	t.Logf("%d counters in %d bytes at most", n.Counters, worst)
	if worst > limit || n.Counters < limit/counterBytes*9/10 {
		t.Errorf("%d bytes for %d counters, want at most %d bytes for %d", worst, n.Counters, limit, limit/counterBytes)
	}
}

func BenchmarkTake(b *testing.B) {
	for _, limits := range [][]Limit{{{Minute, 1 << 40}}, {{Second, 1 << 40}, {Hour, 1 << 40}}, {{Second, 1 << 40}, {Minute, 1 << 40}, {Hour, 1 << 40}, {Day, 1 << 40}, {Month, 1 << 40}, {Year, 1 << 40}}} {
		for _, keys := range []int{1, 100_000} {
			b.Run(fmt.Sprintf("periods=%d/keys=%d", len(limits), keys), func(b *testing.B) {
				l := NewLocal(Options{})
				names := make([]string, keys)
				for i := range names {
					names[i] = fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
				}
				scope := "8d1f7b0a-0000-4000-8000-000000000000:8d1f7b0a-0000-4000-8000-000000000001:"
				var d Decision
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					i++
					_ = l.Take(noon, Key{Scope: scope, Kind: 1, ID: names[i%keys]}, limits, &d)
				}
			})
		}
	}
}

func BenchmarkTakeParallel(b *testing.B) {
	l := NewLocal(Options{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var d Decision
		limits := []Limit{{Minute, 1 << 40}}
		for pb.Next() {
			_ = l.Take(noon, Key{Scope: "s", ID: "hot"}, limits, &d)
		}
	})
}

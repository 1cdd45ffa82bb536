package fsm

import (
	"encoding/binary"
	"slices"
	"testing"
)

// Each request keeps its own keys while older ones leave, and so does what a view saw of them.
func TestRecentKeys(t *testing.T) {
	id := func(i int) (id [16]byte) {
		binary.BigEndian.PutUint32(id[:], uint32(i))
		return id
	}
	keys := func(i int) (keys []Key) {
		for k := range i % (rememberKeys + 3) {
			keys = append(keys, Key{Table: uint16(i), ID: [16]byte{byte(k), byte(i >> 8)}})
		}
		return keys
	}
	const requests = 3*Remember + 7
	var r recent
	r.reset(remembered{})
	var seen remembered
	for i := range requests {
		if i == requests-Remember/2 {
			seen = r.snapshot()
		}
		r.add(id(i), Result{Index: uint64(i), Keys: keys(i)})
	}
	want := func(i int) []Key { return keys(i)[:min(len(keys(i)), rememberKeys)] }
	equal := func(i int, index uint64, got []Key) {
		t.Helper()
		if index != uint64(i) || !slices.Equal(got, want(i)) {
			t.Fatalf("request %d: index %d, keys %v, want %v", i, index, got, want(i))
		}
	}
	for i := requests - Remember; i < requests; i++ {
		res, ok := r.get(id(i))
		if !ok {
			t.Fatalf("request %d is not remembered", i)
		}
		equal(i, res.Index, res.Keys)
		_ = append(res.Keys, Key{}) // what is got is the caller's, and the next request's keys are not
	}
	if _, ok := r.get(id(requests - Remember - 1)); ok || len(r.at) != Remember {
		t.Errorf("%d requests are remembered, want %d", len(r.at), Remember)
	}
	for n, q := range seen.list {
		i := requests - Remember/2 - len(seen.list) + n
		equal(i, q.index, seen.keysOf(q))
	}
	again := recent{}
	again.reset(seen)
	if res, ok := again.get(id(requests - Remember/2 - 1)); !ok || !slices.Equal(res.Keys, want(requests-Remember/2-1)) {
		t.Errorf("after a restore: %v, %v", res, ok)
	}
}

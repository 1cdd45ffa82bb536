package harness

import "testing"

// NoAllocs fails the test when f allocates. What a goroutine beside it allocates is counted, too, so the best of some rounds counts; under the
// race detector nothing does.
func NoAllocs(t testing.TB, what string, f func()) {
	t.Helper()
	f()
	if Race {
		return
	}
	least := 0.0
	for range 5 {
		if least = testing.AllocsPerRun(100, f); least == 0 {
			return
		}
	}
	t.Errorf("%s: %v allocations", what, least)
}

//go:build race

package harness

// Race tells whether the race detector is on: sync.Pool then forgets at random, and what uses it allocates (regexp does, too).
const Race = true

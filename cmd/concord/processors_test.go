package main

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestShorten(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil || before.Policy != 0 || before.Runtime == 0 {
		t.Skipf("this kernel tells no slices: %+v, %v", before, err)
	}
	defer func() { _ = unix.SchedSetAttr(0, before, 0) }()
	long := *before
	long.Runtime = uint64(50 * timeSlice)
	if err := unix.SchedSetAttr(0, &long, 0); err != nil {
		t.Skip("no slice can be set:", err)
	}
	shorten(unix.Gettid())
	after, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(after.Runtime) != timeSlice || after.Nice != before.Nice {
		t.Errorf("a slice of %v and niceness %d, want %v and %d", time.Duration(after.Runtime), after.Nice, timeSlice, before.Nice)
	}
}

package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// timeSlice is how long one of the process's threads may keep another one, or one of another program, from its processor. It is the least
// that Linux takes; its default is 1.4 to 5.6 ms, longer than most requests take.
const timeSlice = 100 * time.Microsecond

// shareProcessors lets requests go on while the process does something else that takes long: a change, a collection of garbage, a write to the
// disk. Go looks for what has come over the network when a processor has nothing else to do. With a single one that is after all the goroutines
// that a change wakes one after the other, and not while a thread waits for the disk; so there is one more for the scheduler
// than there is in truth, and it is the kernel that makes them take turns, in short slices.
func shareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
	threads, _ := filepath.Glob("/proc/self/task/*") // those that begin later take after the one that begins them
	for _, dir := range threads {
		if id, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			shorten(id)
		}
	}
}

// shorten is for the better only: kernels before 6.12 take the slice and make nothing of it, a container may forbid the call.
func shorten(thread int) {
	const normal = 0 // SCHED_NORMAL; whoever chose another policy had reasons
	if attr, err := unix.SchedGetAttr(thread, 0); err == nil && attr.Policy == normal {
		attr.Runtime = uint64(timeSlice)
		_ = unix.SchedSetAttr(thread, attr, 0)
	}
}

package harness

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Leaks returns an error when goroutines are left that do not end. It waits for them much longer than goleak does by itself (less than half a
// second): on a busy machine the last ones of a test need more to notice that it is over.
func Leaks(options ...goleak.Option) error {
	for end := time.Now().Add(20 * time.Second); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// NoLeaks runs the tests of a package and fails when they leave goroutines behind. It is for TestMain and does not return.
func NoLeaks(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if err := Leaks(options...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

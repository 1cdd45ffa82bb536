// Package cluster tests the promises of a cluster of real nodes: visibility, lost leaders, lost quorum, restarts,
// catching up, joining, and that no secret is in clear text on a disk.
package cluster

import (
	"os"
	"testing"

	"concord/test/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Clean()
	os.Exit(code)
}

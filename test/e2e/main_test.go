// Package e2e runs the tutorials the product must be able to replace, command by command, against real nodes.
package e2e

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

// onBoth runs f against a single node and against a cluster of three. pick returns the node for the next request: in the
// cluster a random one, so that every step depends on what an earlier step told another node.
func onBoth(t *testing.T, f func(t *testing.T, pick func() *harness.Node)) {
	t.Run("one node", func(t *testing.T) {
		t.Parallel()
		n := harness.NewNode(t, "solo")
		n.Start()
		f(t, func() *harness.Node { return n })
	})
	t.Run("three nodes", func(t *testing.T) {
		t.Parallel()
		c := harness.StartCluster(t, 3)
		f(t, c.Any)
	})
}

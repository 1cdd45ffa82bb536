package cluster

import (
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestCloseWaitsForHeartbeat: the store may be closed once the transport is, so nobody may write to it then.
func TestCloseWaitsForHeartbeat(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	layer := newTransportLayer(stream{Listener: ln}, hclog.NewNullLogger(), time.Second)
	handled, begun, end, closed := 0, make(chan struct{}), make(chan struct{}), make(chan struct{})
	beat := layer.untilClosed(func(raft.RPC) {
		handled++
		close(begun)
		<-end
	})
	go beat(raft.RPC{})
	<-begun
	go func() {
		_ = layer.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("closed while a heartbeat was handled")
	case <-time.After(50 * time.Millisecond):
	}
	close(end)
	<-closed
	if beat(raft.RPC{}); handled != 1 {
		t.Error("a heartbeat was handled after Close")
	}
}

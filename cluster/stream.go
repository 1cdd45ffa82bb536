package cluster

import (
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"concord/cluster/transport"
)

// stream lets raft use the peer port.
type stream struct {
	net.Listener
	port *transport.Transport
	addr string
}

func (s stream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.port.DialRaft(string(addr), timeout)
}

type streamAddr string

func (streamAddr) Network() string  { return "tcp" }
func (a streamAddr) String() string { return string(a) }

// Addr is what raft tells the others.
func (s stream) Addr() net.Addr { return streamAddr(s.addr) }

// transportLayer is raft's network transport, plus a way to start an election at once.
type transportLayer struct {
	*raft.NetworkTransport
	rpcs chan raft.RPC
	done chan struct{}
	once sync.Once

	beats  sync.RWMutex // held for reading while a heartbeat is handled
	closed bool
}

func newTransportLayer(s stream, log hclog.Logger, timeout time.Duration) *transportLayer {
	t := &transportLayer{rpcs: make(chan raft.RPC), done: make(chan struct{})}
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: 3, Logger: log, Timeout: timeout, MsgpackUseNewTimeFormat: true,
	})
	go t.pump()
	return t
}

func (t *transportLayer) pump() {
	for {
		select {
		case <-t.done:
			return
		case rpc := <-t.NetworkTransport.Consumer():
			t.hand(rpc)
		}
	}
}

func (t *transportLayer) hand(rpc raft.RPC) {
	select {
	case t.rpcs <- rpc:
	case <-t.done:
	}
}

// Consumer implements raft.Transport.
func (t *transportLayer) Consumer() <-chan raft.RPC { return t.rpcs }

// elect has raft stand for election now. A node that is alone in its cluster need not wait for a leader who cannot exist.
func (t *transportLayer) elect() {
	t.hand(raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: make(chan raft.RPCResponse, 1),
	})
}

// SetHeartbeatHandler implements raft.Transport.
func (t *transportLayer) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(t.untilClosed(handle))
}

// untilClosed is for heartbeats, which raft handles beside its own goroutines and does not wait for: one that was still about to note a new term in
// a store that had been closed ended the process.
func (t *transportLayer) untilClosed(handle func(raft.RPC)) func(raft.RPC) {
	return func(rpc raft.RPC) {
		t.beats.RLock()
		defer t.beats.RUnlock()
		if !t.closed {
			handle(rpc)
		}
	}
}

// Close implements raft.WithClose; raft calls it, too. No heartbeat is handled when it has returned.
func (t *transportLayer) Close() error {
	t.once.Do(func() { close(t.done) })
	err := t.NetworkTransport.Close()
	t.beats.Lock()
	defer t.beats.Unlock()
	t.closed = true
	return err
}

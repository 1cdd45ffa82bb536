// Package gossip tells which nodes are alive, and carries small messages between them, over memberlist.
//
// It is not the membership of the cluster: that is decided in the log, and a node which only gossips is not a member. All
// traffic is encrypted with the cluster's gossip key and labelled with the cluster id, so that two clusters never merge.
package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// Meta is what a node says about itself, at most 512 bytes as JSON.
type Meta struct {
	Name    string `json:"n"`
	Version string `json:"v"`
	Level   uint32 `json:"l"`
	Address string `json:"a"` // host:port of its peer port
}

// Options of Start. NodeID, Label, Listen and Keys are required.
type Options struct {
	NodeID    string
	Label     string // cluster id
	Listen    string // host:port, TCP and UDP
	Advertise string // host:port; default: chosen by memberlist
	Keys      [][]byte
	Meta      Meta
	Receive   func(message []byte) // must be quick and must not keep the slice
	Fast      bool                 // timers for loopback, for tests
	Log       *slog.Logger
}

// Gossip is one node's end.
type Gossip struct {
	id   string
	list *memberlist.Memberlist
	ring *memberlist.Keyring
	recv func([]byte)

	mu    sync.Mutex
	meta  []byte
	alive map[string]Node // copies: memberlist writes to the nodes that its Members returns
}

// Start opens the port and begins to answer.
func Start(o Options) (*Gossip, error) {
	host, portText, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip_listen %s: %w", o.Listen, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("gossip_listen %s: the port must be a number", o.Listen)
	}
	if len(o.Keys) == 0 {
		return nil, errors.New("gossip: no key")
	}
	ring, err := memberlist.NewKeyring(o.Keys, o.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g := &Gossip{id: o.NodeID, ring: ring, recv: o.Receive, alive: make(map[string]Node)}
	if err := g.setMeta(o.Meta); err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	if o.Fast {
		c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 200*time.Millisecond, 100*time.Millisecond, 2
		c.GossipInterval, c.PushPullInterval, c.TCPTimeout = 50*time.Millisecond, time.Second, time.Second
	}
	if host == "" {
		host = "0.0.0.0"
	}
	c.Name, c.Label = o.NodeID, o.Label
	c.BindAddr, c.BindPort, c.AdvertisePort = host, int(port), int(port)
	if o.Advertise != "" {
		if c.AdvertiseAddr, c.AdvertisePort, err = splitAddr(o.Advertise); err != nil {
			return nil, fmt.Errorf("gossip_advertise %s: %w", o.Advertise, err)
		}
	}
	c.Keyring, c.GossipVerifyIncoming, c.GossipVerifyOutgoing = ring, true, true
	c.Delegate, c.Events = (*delegate)(g), (*delegate)(g)
	c.Logger = log.New(logWriter{o.Log}, "", 0)
	c.DeadNodeReclaimTime = time.Second // a node that restarts with another address is believed
	g.list, err = memberlist.Create(c)
	switch {
	case errors.Is(err, syscall.EADDRINUSE), err != nil && strings.Contains(err.Error(), "address already in use"):
		return nil, fmt.Errorf("gossip_listen %s: the TCP or UDP port is already in use by another program or node: choose another port", o.Listen)
	case err != nil:
		return nil, fmt.Errorf("gossip_listen %s: %w", o.Listen, err)
	}
	return g, nil
}

func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if net.ParseIP(host) == nil { // memberlist announces addresses, not names
		ips, err := net.LookupIP(host)
		if err != nil {
			return "", 0, err
		}
		host = ips[0].String()
	}
	port, err = strconv.Atoi(p)
	return host, port, err
}

// Addr is where the others reach this node.
func (g *Gossip) Addr() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.alive[g.id].Addr
}

// Join contacts nodes; with at least one of them everyone is found.
func (g *Gossip) Join(addrs []string) error {
	if len(addrs) == 0 {
		return nil
	}
	if n, err := g.list.Join(addrs); n == 0 {
		return err
	}
	return nil
}

// Node is a member as gossip sees it.
type Node struct {
	ID   string
	Addr string
	Meta Meta
}

// Alive lists the nodes that answer, this one included.
func (g *Gossip) Alive() []Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.alive))
}

// SendBestEffort sends one datagram to a node. It may be lost, doubled or reordered.
func (g *Gossip) SendBestEffort(nodeID string, message []byte) error {
	g.mu.Lock()
	n, alive := g.alive[nodeID]
	g.mu.Unlock()
	if !alive {
		return fmt.Errorf("node %s is not alive", nodeID)
	}
	return g.list.SendToAddress(memberlist.Address{Addr: n.Addr, Name: nodeID}, message)
}

// SetKeys makes keys the keyring: the first one encrypts, all of them decrypt.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip: no key")
	}
	for _, k := range keys {
		if err := g.ring.AddKey(k); err != nil {
			return err
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return err
	}
	for _, have := range g.ring.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, have) }) {
			if err := g.ring.RemoveKey(have); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetMeta tells the others what changed about this node.
func (g *Gossip) SetMeta(m Meta) error {
	if err := g.setMeta(m); err != nil {
		return err
	}
	return g.list.UpdateNode(time.Second)
}

func (g *Gossip) setMeta(m Meta) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > memberlist.MetaMaxSize {
		return fmt.Errorf("gossip: node_name, version and address take %d bytes together, at most %d are allowed", len(b), memberlist.MetaMaxSize)
	}
	g.mu.Lock()
	g.meta = b
	g.mu.Unlock()
	return nil
}

// Stop says good-bye, so that the others need not find out, and closes the port.
func (g *Gossip) Stop() error {
	leave := g.list.Leave(500 * time.Millisecond)
	if err := g.list.Shutdown(); err != nil {
		return err
	}
	if leave != nil && g.list.NumMembers() > 1 {
		return leave
	}
	return nil
}

// Abort closes the port without a word, like a crash.
func (g *Gossip) Abort() error { return g.list.Shutdown() }

type delegate Gossip

func (d *delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.meta
}

func (d *delegate) NotifyMsg(b []byte) {
	if d.recv != nil {
		d.recv(b)
	}
}
func (*delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (*delegate) LocalState(bool) []byte          { return nil }
func (*delegate) MergeRemoteState([]byte, bool)   {}

// NotifyJoin and its like run while memberlist holds its lock: what they are given does not change meanwhile.
func (d *delegate) NotifyJoin(m *memberlist.Node) {
	n := Node{ID: m.Name, Addr: m.Address()}
	err := json.Unmarshal(m.Meta, &n.Meta)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.alive, n.ID) // not one of ours
		return
	}
	d.alive[n.ID] = n
}

func (d *delegate) NotifyUpdate(m *memberlist.Node) { d.NotifyJoin(m) }

func (d *delegate) NotifyLeave(m *memberlist.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.alive, m.Name)
}

// logWriter takes memberlist's lines apart into levels.
type logWriter struct{ log *slog.Logger }

var _ io.Writer = logWriter{}

func (w logWriter) Write(line []byte) (int, error) {
	if w.log == nil {
		return len(line), nil
	}
	level, text := slog.LevelDebug, strings.TrimSpace(string(line))
	for mark, l := range map[string]slog.Level{"[DEBUG] ": slog.LevelDebug, "[INFO] ": slog.LevelInfo, "[WARN] ": slog.LevelWarn, "[ERR] ": slog.LevelWarn} {
		if rest, ok := strings.CutPrefix(text, mark); ok {
			level, text = l, rest
		}
	}
	w.log.Log(context.Background(), level, strings.TrimPrefix(text, "memberlist: "))
	return len(line), nil
}

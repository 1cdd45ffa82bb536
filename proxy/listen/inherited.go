package listen

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// Inherited are listening sockets that another process has opened and handed over, so that no client finds the port closed while
// one process takes the other's place. They are known by what they were opened for: network and address as they are configured.
type Inherited struct {
	mu    sync.Mutex
	files map[string][]*os.File
}

func socketName(network, address string) string { return network + " " + address }

// Add takes a descriptor over under the name with which Sockets gave it out.
func (i *Inherited) Add(name string, fd int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.files == nil {
		i.files = map[string][]*os.File{}
	}
	i.files[name] = append(i.files[name], os.NewFile(uintptr(fd), name))
}

func (i *Inherited) take(network, address string) *os.File {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	list := i.files[socketName(network, address)]
	if len(list) == 0 {
		return nil
	}
	i.files[socketName(network, address)] = list[1:]
	return list[0]
}

// listener is nil when there is no such socket.
func (i *Inherited) listener(network, address string) (net.Listener, error) {
	f := i.take(network, address)
	if f == nil {
		return nil, nil
	}
	defer f.Close() // net has made a copy
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	return ln, nil
}

// packetConn is nil when there is no such socket.
func (i *Inherited) packetConn(network, address string) (net.PacketConn, error) {
	f := i.take(network, address)
	if f == nil {
		return nil, nil
	}
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	return pc, nil
}

// Conn takes a connected socket with the name kind and name, joined as Sockets gave it out; nil when there is none.
func (i *Inherited) Conn(kind, name string) (net.Conn, error) {
	f := i.take(kind, name)
	if f == nil {
		return nil, nil
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	return c, nil
}

// Close closes the sockets that nobody has taken: their listeners are not configured any more.
func (i *Inherited) Close() {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for name, list := range i.files {
		for _, f := range list {
			_ = f.Close()
		}
		delete(i.files, name)
	}
}

// Sockets gives out the group's sockets, each with the name for Inherited.Add. The descriptors are valid during the call only.
func (g *Group) Sockets(give func(name string, fd int) error) error {
	for _, l := range g.listeners {
		if err := GiveSocket(l.spec, l.Listener, give); err != nil {
			return err
		}
	}
	return nil
}

// GiveSocket gives out the socket of a listener or packet connection, with its name.
func GiveSocket(spec Spec, socket any, give func(name string, fd int) error) error {
	return GiveNamed(spec.SocketName(), socket, give)
}

// GiveNamed gives out a socket that is known by another name.
func GiveNamed(name string, socket any, give func(name string, fd int) error) error {
	err := controlled(socket, func(raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return give(name, fd) })
	})
	if err != nil {
		return fmt.Errorf("hand over %s: %w", name, err)
	}
	return nil
}

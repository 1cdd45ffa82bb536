package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// A write to a full disk fails as a whole, so unlike after other failures it is known what the file holds. And disks of several nodes fill up at
// the same time, with what all of them log. So the node does not end: it lets go of its part in the cluster, serves what it has, and takes the part
// up again when there is room. Other nodes see it as one that is being upgraded.

const (
	// roomEvery is how often a node looks whether there is room again; roomBytes is how much there must be, so that it does not come and go.
	roomEvery = 2 * time.Second
	roomBytes = 8 << 20
	// hush is how long raft may wait for the node to fall silent, see disk.Set.
	hush = 30 * time.Second
)

// fullError is why a node that sits out does nothing in the cluster.
type fullError struct{ error }

func (e *fullError) Error() string {
	return fmt.Sprintf("the disk of this node is full, it takes part in the cluster again when there is room: %v", e.error)
}

func (e *fullError) Unwrap() error { return e.error }

// Is makes it an ErrClosed: nothing has happened.
func (e *fullError) Is(target error) bool { return target == ErrClosed }

func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// fatal is called by raft's goroutines when the files of the cluster cannot be trusted or written any more.
func (n *Node) fatal(err error) {
	if full(err) && n.opening.Load() {
		return // Open hears of it
	}
	if full(err) && n.isMember() {
		if n.full.CompareAndSwap(nil, &fullError{err}) {
			go n.sitOut(err)
		}
		return
	}
	n.fatalOnce.Do(func() { go n.opt.Fatal(err) }) // Fatal may want to shut down
}

func (n *Node) isMember() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.current != nil || n.full.Load() != nil
}

// sitOut ends the node's part in the cluster until there is room on its disk, or it is shut down.
func (n *Node) sitOut(err error) {
	n.log.Error("the disk is full: this node serves what it has, without the cluster, until there is room", "error", err)
	n.switching.Lock()
	m, err := n.membership()
	if err != nil { // it was about to stop anyway
		n.full.Store(nil)
		n.switching.Unlock()
		return
	}
	n.setCurrent(nil)
	// Nobody hears this node from here on: only then may raft go on with votes and terms that could not be written.
	perr := n.port.Pause()
	m.disk.silence()
	n.log.Debug("the part in the cluster has ended", "error", errors.Join(perr, m.stop(true)))
	n.switching.Unlock()
	n.awaitRoom()
}

// sitOutFromStart is for a node that finds its disk full when it starts, and could read what it has.
func (n *Node) sitOutFromStart(id identity, err *fullError) error {
	n.who.Store(&id)
	n.log.Error("the disk is full: this node serves what it has, without the cluster, until there is room", "error", err.error)
	n.full.Store(err)
	perr := n.port.Pause()
	go n.awaitRoom()
	return perr
}

// awaitRoom takes the node's part up again when there is room.
func (n *Node) awaitRoom() {
	for {
		time.Sleep(roomEvery)
		n.mu.RLock()
		closed := n.closed
		n.mu.RUnlock()
		if closed {
			return
		}
		if err := n.room(); err != nil {
			continue
		}
		m, err := n.resume(context.Background()) // it has limits of its own, which begin when the log has been read
		switch {
		case err == nil || m != nil && full(err):
			n.full.Store(nil)
			if err := m.disk.failed.Load(); err != nil { // meanwhile: from the beginning
				n.fatal(*err)
			} else {
				n.log.Warn("there is room on the disk again: this node takes part in the cluster")
			}
			return
		case full(err):
			_ = n.port.Pause()
		case errors.Is(err, ErrClosed):
			return
		default:
			n.fatalOnce.Do(func() { go n.opt.Fatal(err) })
			return
		}
	}
}

// room says whether files can grow.
func (n *Node) room() error {
	f, err := os.CreateTemp(n.dir(), "room-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, roomBytes))
	return errors.Join(err, f.Sync(), f.Close())
}

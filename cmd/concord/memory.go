package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"concord/proxy/balancer"
)

// memory is what a process knows that is in no log: the counts of rate-limiting on this node, and how targets do. A process gives it to the one
// that replaces it, so that an upgrade opens no limit and tries no sick target anew. Without it, or if it cannot be read, the new process begins
// like any that starts.
type memory struct {
	Limits  []byte           // of ratelimit.Local
	Targets []balancer.Known // of the balancer
}

// memoryVersion is that of its form: a header of version and length in plain text, the SHA-256 of what follows, then JSON.
const memoryVersion = 1

const memoryHeader = "concord memory %4d %10d\n"

// maxMemory bounds what is read: twice what the counters of rate-limiting can be.
const maxMemory = 64 << 20

// remember gives the memory to the new process, by a file that is only in memory, too: it may be more than a message can carry. understands is
// what the new process said. A failure is no reason not to go on.
func (n *node) remember(s *successor, understands int) {
	if understands < memoryVersion {
		return
	}
	f, err := (&memory{Limits: n.limits.Export(time.Now().Unix()), Targets: n.balancer.Export()}).file()
	if err == nil {
		defer f.Close()
		err = s.send(message{Step: stepMemory}, int(f.Fd()))
	}
	if err != nil {
		n.log.Warn("upgrade: the new process begins to count anew", "error", err)
	}
}

func (m *memory) file() (*os.File, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("concord-memory", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "concord-memory")
	sum := sha256.Sum256(b)
	for _, part := range [][]byte{fmt.Appendf(nil, memoryHeader, memoryVersion, len(b)), sum[:], b} {
		if _, err := f.Write(part); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

// recall goes on with the memory of the process before this one; nil: it gave none.
func (n *node) recall(f *os.File) {
	if f == nil {
		return
	}
	defer f.Close()
	m, err := readMemory(io.NewSectionReader(f, 0, maxMemory))
	if err == nil {
		err = n.limits.Import(m.Limits)
	}
	if err != nil {
		n.log.Warn("upgrade: counting anew, for what the old process knew cannot be used", "error", err)
		return
	}
	n.balancer.Import(m.Targets)
	n.notice("upgrade: took over what the old process knew", "counters", n.limits.Stats().Counters, "targets", len(m.Targets))
}

func readMemory(r io.Reader) (m memory, err error) {
	header := make([]byte, len(fmt.Sprintf(memoryHeader, 0, 0)))
	if _, err := io.ReadFull(r, header); err != nil {
		return m, fmt.Errorf("its header: %w", err)
	}
	var version, length int
	if _, err := fmt.Sscanf(string(header), memoryHeader, &version, &length); err != nil {
		return m, fmt.Errorf("its header: %w", err)
	}
	switch {
	case version != memoryVersion:
		return m, fmt.Errorf("it has version %d, this program understands %d", version, memoryVersion)
	case length < 0 || length > maxMemory:
		return m, fmt.Errorf("it has %d bytes, at most %d are read", length, maxMemory)
	}
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(r, sum[:]); err != nil {
		return m, fmt.Errorf("its checksum: %w", err)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return m, fmt.Errorf("it breaks off: %w", err)
	}
	if sha256.Sum256(b) != sum {
		return m, fmt.Errorf("it is damaged: its checksum does not match")
	}
	return m, json.Unmarshal(b, &m)
}

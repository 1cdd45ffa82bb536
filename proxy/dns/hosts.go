package dns

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Hosts is a hosts file. It is read again when it has changed, which is looked at every few seconds.
type Hosts struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	changed time.Time // modification time of what was read
	size    int64
	names   map[string][]netip.Addr
}

// hostsInterval is how old what is known of the file may be; maxHosts is how much of it is read.
const (
	hostsInterval = 5 * time.Second
	maxHosts      = 4 << 20
)

// NewHosts reads a file when it is first asked. One that cannot be read has no names.
func NewHosts(path string) *Hosts { return &Hosts{path: path} }

// addresses are those of a name; nil: it is not in the file.
func (h *Hosts) addresses(name string) []netip.Addr {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.looked.IsZero() || now.Sub(h.looked) >= hostsInterval {
		h.looked = now
		h.refresh()
	}
	return h.names[strings.ToLower(strings.TrimSuffix(name, "."))]
}

func (h *Hosts) refresh() {
	f, err := os.Open(h.path)
	if err != nil {
		h.names = nil
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		if h.names != nil && info.ModTime().Equal(h.changed) && info.Size() == h.size {
			return
		}
		h.changed, h.size = info.ModTime(), info.Size()
	}
	h.names = parseHosts(io.LimitReader(f, maxHosts))
}

// parseHosts reads lines of an address and its names; what makes no sense is skipped (hosts(5)).
func parseHosts(r io.Reader) map[string][]netip.Addr {
	names := map[string][]netip.Addr{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, n := range fields[1:] {
			n = strings.ToLower(strings.TrimSuffix(n, "."))
			names[n] = append(names[n], addr.Unmap())
		}
	}
	return names
}

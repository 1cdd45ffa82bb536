package upstream

// Stats are of the connections to upstreams that are kept for the next request. Those of HTTP/2 are shared while in use and not
// counted.
type Stats struct {
	Endpoints int // places that requests were sent to lately
	Idle      int // connections nobody uses now
}

// Stats counts.
func (t *Transport) Stats() Stats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := Stats{Endpoints: len(t.endpoints)}
	for _, e := range t.endpoints {
		e.mu.Lock()
		s.Idle += len(e.idle)
		e.mu.Unlock()
	}
	return s
}

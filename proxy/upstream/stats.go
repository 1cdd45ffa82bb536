package upstream

// Stats are of the connections to upstreams.
type Stats struct {
	Endpoints int // places that requests were sent to lately
	Idle      int // connections of HTTP/1.1 that nobody uses now
	HTTP2     int // connections of HTTP/2, which are shared while in use
	Streams   int // exchanges on these
}

// Stats counts.
func (t *Transport) Stats() Stats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := Stats{Endpoints: len(t.endpoints)}
	s.HTTP2, s.Streams = t.h2.Stats()
	for _, e := range t.endpoints {
		e.mu.Lock()
		s.Idle += len(e.idle)
		e.mu.Unlock()
	}
	return s
}

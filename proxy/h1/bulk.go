package h1

// Of a long response the kernel takes at once only a part if the listener says so (TCP_NOTSENT_LOWAT): clients that stop reading shall not fill
// its memory. Taking as much as there is room for costs a third less, so a few responses at a time may have that, when the client has shown
// that it reads.
const (
	bulkFrom = 1 << 20 // bytes
	maxBulk  = 32
)

// beginBulk returns what endBulk is to restore; 0: nothing was changed.
func (c *conn) beginBulk() int {
	if c.s.bulk.Add(1) <= maxBulk {
		if limit := unsent(c.nc); limit != 0 {
			setUnsent(c.nc, 0)
			return limit
		}
	}
	c.s.bulk.Add(-1)
	return 0
}

func (c *conn) endBulk(limit int) {
	if limit != 0 {
		setUnsent(c.nc, limit)
		c.s.bulk.Add(-1)
	}
}
